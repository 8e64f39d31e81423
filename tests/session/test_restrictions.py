"""`freeze` and `round_to`: one rule for every method, run, preview, allocation and re-design."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import batches

import prunelab as pl
from prunelab.methods import METHODS

SETTINGS: dict[str, dict[str, Any]] = {
    "aofp": {"images": 64},
    "oracle": {"images": 32},
    "group_fisher": {"interval": 2},
}


class Wide(nn.Module):
    """Input [N, 1, 12, 12]; widths that are multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.c1, self.bn1 = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.c2 = nn.Conv2d(24, 16, 3, padding=1)
        self.c3 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.c2(F.relu(self.bn1(self.c1(x)))))
        return self.fc(F.relu(self.c3(x)).mean((2, 3)))


@pytest.fixture
def wide() -> nn.Module:
    return Wide().eval()


@pytest.fixture(scope="module")
def few() -> pl.Data:
    some = batches(64, 1)
    return pl.Data(some, some)


def kept(session: pl.Session) -> bool:
    """Whether the stem is whole, and every other width a multiple of 4."""
    widths = dict(session.plan.widths)
    return widths.pop("stem") == 16 and not any(width % 4 for width in widths.values())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_keeps_what_is_frozen_and_the_multiples(
    name: str, wide: nn.Module, few: pl.Data
) -> None:
    method = pl.make_method(name, **SETTINGS.get(name, {}))
    work = pl.Session(wide, few, method, freeze=["stem"], round_to=4, repair=None)
    work.run(0.8, min_accuracy=None)
    assert work.state.now.cost.macs <= 0.8 * work.state.base.cost.macs
    assert kept(work)


@pytest.mark.parametrize("name", ["thinet", "oracle", "magnitude", "group_fisher"])
def test_without_a_target_a_method_still_drops_its_least_units(
    name: str, wide: nn.Module, few: pl.Data
) -> None:
    given = {"scope": "uniform", "greedy": True} if name == "oracle" else {}
    ratio = {} if name == "group_fisher" else {"pruning_ratio": {"c3": 0.3}}
    method = pl.make_method(name, **SETTINGS.get(name, {}), **ratio, **given)
    work = pl.Session(wide, few, method, freeze="stem", round_to=4, repair=None)
    move = work.propose()
    assert move is not None
    work.approve()
    assert kept(work)
    if name != "group_fisher":
        assert len(move.drop["c3"]) == 8  # 0.3 of 32, in steps of 4
    scores = next(one for one in work.state.proposed.seen if one.group in move.drop)
    least = sorted(zip(scores.values, scores.units, strict=True))[: len(move.drop[scores.group])]
    if name != "oracle":  # its scores are those of different steps
        assert set(move.drop[scores.group]) == {unit for _, unit in least}


def test_a_live_budget_and_allocation_keep_both(wide: nn.Module, few: pl.Data) -> None:
    work = pl.Session(wide, few, "taylor", freeze=["stem"], round_to=4)
    work.measure()
    seen = work.foresee(target_macs=0.7)
    assert seen.widths["stem"] == 16
    assert not any(width % 4 for width in seen.widths.values())
    evidence = pl.measure(wide, work.graph, list(few.train))
    plan = pl.allocate(work.graph, evidence, 0.7)
    assert plan.widths["stem"] == 16
    assert not any(width % 4 for width in plan.widths.values())
    with pytest.raises(pl.IllegalPlan, match="you asked to freeze it"):
        work.what_if({"stem": [0]})


def test_a_session_is_resumed_and_replayed_with_both(
    wide: nn.Module, few: pl.Data, tmp_path: Path
) -> None:
    graph = pl.trace(wide, few.train[0][0], freeze=["stem"], round_to=4)
    for given in ({"freeze": ["stem"], "round_to": 4}, {"graph": graph}):
        path = tmp_path / f"{len(given)}.prunelab"
        work = pl.Session(wide, few, "magnitude", path=path, **given)
        work.propose(0.8)
        script = work.export(tmp_path / "run.py").read_text()
        assert "freeze=('stem',), round_to=4" in script
        opened = pl.Session.open(path, model=wide, data=few)
        assert opened.graph.round_to == 4
        assert [g.name for g in opened.graph.groups if g.why == "you asked to freeze it"] == [
            "stem"
        ]


def test_names_and_widths_that_cannot_be_are_told(wide: nn.Module, few: pl.Data) -> None:
    with pytest.raises(pl.UnknownName, match="stem"):
        pl.Session(wide, few, freeze=["stm"])
    for round_to in (0, 2.0, True):
        with pytest.raises(pl.InvalidValue, match="round_to"):
            pl.Session(wide, few, round_to=round_to)  # type: ignore[arg-type]


def test_redesign_keeps_both(wide: nn.Module, few: pl.Data) -> None:
    found = pl.redesign(
        wide, few, 1.5, 1.0, "magnitude", steps=1, tune=1, seeds=1, freeze=["stem"], round_to=4
    )
    widths = {name: final for name, (_, _, final) in found.widths.items()}
    assert widths and not any(width % 4 for width in widths.values())
    assert found.plan.widths["stem"] == 16


def test_a_percentage_is_no_share(wide: nn.Module, few: pl.Data) -> None:
    work = pl.Session(wide, few, "magnitude")
    for verb in (work.run, work.propose, lambda share: work.foresee(target_macs=share)):
        with pytest.raises(pl.InvalidValue, match=r"0\.3 is 30%"):
            verb(30)
    evidence = pl.measure(wide, work.graph, list(few.train))
    with pytest.raises(pl.InvalidValue, match=r"0\.5 is 50%"):
        pl.allocate(work.graph, evidence, 50)


def test_a_method_that_finds_nothing_says_why(wide: nn.Module, few: pl.Data) -> None:
    for method, given, why in (
        (pl.AOFP(theta=1e-9, images=64), {}, "no layer passes theta=1e-09"),
        (pl.Magnitude(0.0), {}, "every layer has had its pruning_ratio=0.0"),
        (pl.Magnitude(0.1), {"round_to": 16}, "pruning_ratio"),
        (pl.ThiNet(), {"freeze": ["c1", "c3"]}, "groups='internal' leaves"),
        (pl.GroupFisher(training=False), {"round_to": 64}, "smallest width"),
    ):
        work = pl.Session(wide, few, method, repair=None, **given)
        assert work.propose() is None
        assert why in work.state.line()
    work = pl.Session(wide, few, "magnitude", repair=None)
    assert work.propose(1.0) is None
    assert "within the target already" in work.state.line()


def test_advice_fits_the_method(wide: nn.Module, few: pl.Data) -> None:
    torch.manual_seed(0)
    for method, has, hasnt in (
        (pl.AOFP(theta=1e-9, max_theta=1e-9, images=64, groups="all"), "max_theta", "groups="),
        (pl.Magnitude({"c3": 0.1}), "larger target", "max_theta"),
    ):
        work = pl.Session(wide, few, method, repair=None)
        with pytest.raises(pl.BudgetUnreachable) as caught:
            work.run(0.3, min_accuracy=None)
        assert has in str(caught.value)
        assert hasnt not in str(caught.value)
