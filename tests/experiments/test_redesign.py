"""Redesign: widen, train, prune back to the original cost, and compare at equal steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Tiny

import prunelab as pl
from prunelab.experiments.results import Outcome
from prunelab.ledger.events import Proposed
from prunelab.values import Progress

X = torch.zeros(1, 1, 12, 12)


@pytest.fixture(scope="module")
def redesigned(trained: nn.Module, data: pl.Data) -> pl.Redesign:
    return pl.redesign(
        trained, data, 2.0, method=pl.AOFP(theta=0.1, images=128), steps=4, tune=3, scratch=5,
        seeds=[7, 8],
    )  # fmt: skip


def test_the_widths_differ_and_the_cost_is_that_of_the_original(
    redesigned: pl.Redesign, trained: nn.Module
) -> None:
    found = dict(redesigned.widths)
    assert {name: widths[:2] for name, widths in found.items()} == {
        "stem": (8, 8),  # a residual stream, which AOFP leaves alone
        "conv1": (12, 24),
        "conv3": (16, 32),
    }
    assert {name: widths[2] for name, widths in found.items()} == {
        name: redesigned.plan.widths[name] for name in found
    }
    original = pl.cost(trained, X).macs
    for network in (redesigned.model, redesigned.architecture()):
        assert 0.75 * original < pl.cost(network, X).macs <= original


def test_the_same_steps_stand_side_by_side(redesigned: pl.Redesign) -> None:
    rows = redesigned.comparison.rows
    assert [row.name for row in rows] == [
        "redesigned, tuned",
        "original, trained on",
        "redesigned, fresh",
        "original, fresh",
    ]
    assert all([outcome.seed for outcome in row.outcomes] == [7, 8] for row in rows)
    for row in rows[2:]:
        assert row.spread("loss") > 0
    text = repr(redesigned)
    assert "widened" in text
    assert "original, fresh" in text


def test_the_first_seed_is_the_network_handed_over(redesigned: pl.Redesign, data: pl.Data) -> None:
    (tuned,) = [row for row in redesigned.comparison.rows if row.name == "redesigned, tuned"]
    assert dict(tuned.outcomes[0].metrics) == redesigned.session.evaluate()
    kinds = [type(event).__name__ for event in redesigned.session.ledger]
    assert kinds[:2] == ["Began", "Tuned"]
    assert kinds[-1] == "Tuned"


def test_a_redesigned_network_is_exported_and_loaded_into_the_wide_architecture(
    redesigned: pl.Redesign, tmp_path: Path
) -> None:
    def wide() -> nn.Module:
        plain = Tiny()
        return pl.widened(plain, pl.trace(plain, X), 2.0, groups=["conv1", "conv3"])

    redesigned.session.export(tmp_path / "small.safetensors")
    again = pl.load_pruned(wide, tmp_path / "small.safetensors")
    x = torch.randn(3, 1, 12, 12)
    torch.testing.assert_close(again(x), redesigned.model(x), rtol=0, atol=0)


def test_another_method_target_groups_and_loader_of_ones_own(
    trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    heard: list[Any] = []
    found = pl.redesign(
        trained, data, 1.5, 0.7, "magnitude", steps=0, tune=0, seeds=1, groups=["conv3"],
        path=tmp_path / "run.prunelab", listen=heard.append, repair="bn",
    )  # fmt: skip
    assert found.widths["conv1"][:2] == (12, 12)
    assert found.widths["conv3"][:2] == (16, 24)
    assert pl.cost(found.model, X).macs <= 0.7 * pl.cost(trained, X).macs
    assert [row.name for row in found.comparison.rows] == [
        "redesigned, tuned",
        "original, trained on",
    ]
    told = [(item.done, item.total, item.what) for item in heard if isinstance(item, Progress)]
    stages = [
        "training the widened network",
        "pruning it back",
        "redesigned, tuned, seed 0",
        "original, trained on, seed 0",
    ]
    assert [step for step in told if step[2] in stages] == [
        (place, 4, what) for place, what in enumerate(stages)
    ]
    assert [item for item in heard if isinstance(item, Outcome)] == list(found.comparison.outcomes)
    assert (tmp_path / "run.prunelab").is_file()


class Own(nn.Module):
    """Its first weights are nobody's but its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 1, 3, 3))
        self.conv1 = nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(F.relu(F.conv2d(x, self.weight, padding=1))))
        return self.fc(x.mean((2, 3)))


def test_fresh_weights_are_drawn_by_a_function_of_ones_own(data: pl.Data) -> None:
    with pytest.raises(pl.BadModel, match="init="):
        pl.redesign(Own(), data, steps=1, tune=0, scratch=1, seeds=1)

    def init(network: nn.Module) -> None:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(std=0.1)

    found = pl.redesign(Own(), data, steps=1, tune=0, scratch=1, seeds=2, init=init)
    assert found.comparison["original, fresh"][0].spread("loss") > 0
    one, two = found.architecture(3, init), found.architecture(3, init)
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"widen": 1.0},
        {"widen": "twice"},
        {"target_macs": 0},
        {"target_macs": True},
        {"steps": -1},
        {"tune": 1.5},
        {"scratch": True},
        {"seeds": []},
        {"seed": 3},
        {"noise": -1.0},
        {"method": object()},
    ],
)
def test_what_makes_no_sense_is_refused(
    trained: nn.Module, data: pl.Data, wrong: dict[str, Any]
) -> None:
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    with pytest.raises(pl.InvalidValue):
        pl.redesign(trained, data, **{"steps": 0, "tune": 0, **wrong})
    torch.testing.assert_close(dict(trained.state_dict()), before, rtol=0, atol=0)


def test_a_target_out_of_reach_and_nothing_to_widen_are_told(
    trained: nn.Module, data: pl.Data
) -> None:
    with pytest.raises(pl.BudgetUnreachable) as caught:
        pl.redesign(trained, data, target_macs=0.01, method="magnitude", steps=0, tune=0)
    assert isinstance(caught.value.plan, pl.WidthPlan)

    class OnlyAStream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 6, 3, padding=1)
            self.conv = nn.Conv2d(6, 6, 3, padding=1)
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.fc((x + self.conv(x)).mean((2, 3)))

    with pytest.raises(pl.BadModel, match="groups="):
        pl.redesign(OnlyAStream(), data, steps=0, tune=0)


def test_the_control_trains_on_as_many_batches_as_the_search(
    trained: nn.Module, data: pl.Data
) -> None:
    steps = []

    def train(model: nn.Module, data: Any, count: int) -> None:
        steps.append(count)

    method = pl.AOFP(theta=0.3, scoring="sampled", batches=3, warmup=0)
    found = pl.redesign(
        trained, data, 1.5, method=method, steps=4, tune=2, seeds=[7], train=train, repair=None
    )
    moves = [e.move for e in found.session.ledger if isinstance(e, Proposed) and e.move]
    searched = sum(move.carry["batches"] for move in moves)
    assert searched > 0
    assert steps == [4, 2, 4 + searched + 2]
