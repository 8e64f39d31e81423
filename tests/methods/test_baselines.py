"""One-shot methods: their scores, how many units they drop, and a user's own method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import Couplings, Tiny, batches

import prunelab as pl
from prunelab.methods import METHODS, Context
from prunelab.values import Move, Progress

ONE_SHOT = [
    "magnitude", "batchnorm_scale", "taylor", "random", "first_k", "max_response", "apoz", "oracle",
]  # fmt: skip


def scores(session: pl.Session, method: Any) -> dict[str, np.ndarray]:
    """What a method proposes by, group by group."""
    session.method = method
    session.propose()
    seen = session.state.proposed.seen
    session.reject()
    return {item.group: np.array(item.values) for item in seen}


# ---------------------------------------------------------------- what is scored


def test_magnitude_is_the_mean_norm_of_the_filters(session: pl.Session) -> None:
    model = session.model
    first, second = (m.weight.detach().flatten(1) for m in (model.stem, model.conv2))
    for norm in (1, 2):
        found = scores(session, pl.Magnitude(norm=norm))
        trunk = (first.norm(norm, dim=1) + second.norm(norm, dim=1)) / 2  # they share their units
        np.testing.assert_allclose(found["stem"], trunk, rtol=1e-4)
        own = model.conv1.weight.detach().flatten(1).norm(norm, dim=1)
        np.testing.assert_allclose(found["conv1"], own, rtol=1e-4)
    most = scores(session, pl.MaxResponse())
    np.testing.assert_allclose(most["stem"], scores(session, pl.Magnitude())["stem"])
    read = scores(session, pl.MaxResponse(weights="consumers"))
    want = model.conv1.weight.detach().abs().sum((0, 2, 3)) + model.conv3.weight.detach().abs().sum(
        (0, 2, 3)
    )
    np.testing.assert_allclose(read["stem"], want, rtol=1e-4)


def test_filters_of_grouped_and_transposed_convolutions() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(1, 8, 3, padding=1)
            self.b = nn.Conv2d(8, 8, 3, padding=1, groups=4)
            self.up = nn.ConvTranspose2d(8, 6, 2, 2)
            self.fc = nn.Conv2d(6, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.up(self.b(self.a(x).relu()).relu()).relu()).mean((2, 3))

    model = Net()
    data = pl.Data(train=batches(32, 1), val=batches(32, 2))
    session = pl.Session(model, data, method="magnitude")
    found = scores(session, pl.Magnitude(pruning_ratio=0.25))
    a = model.a.weight.detach().abs().flatten(1).sum(1).view(4, 2).sum(1)
    b = model.b.weight.detach().abs().flatten(1).sum(1).view(4, 2).sum(1)
    np.testing.assert_allclose(found["a"], (a + b) / 2, rtol=1e-4)
    up = model.up.weight.detach().abs().sum((0, 2, 3))
    np.testing.assert_allclose(found["up"], up, rtol=1e-4)


def test_batch_norm_scale_is_gamma_and_leaves_others_whole(session: pl.Session) -> None:
    found = scores(session, pl.BatchNormScale())
    model = session.model
    trunk = (model.bn0.weight.detach().abs() + model.bn2.weight.detach().abs()) / 2
    np.testing.assert_allclose(found["stem"], trunk, rtol=1e-4)
    np.testing.assert_allclose(found["conv1"], model.bn1.weight.detach().abs(), rtol=1e-4)
    assert "conv3" not in found
    move = session.propose()
    assert sum(len(units) for units in move.drop.values()) == 10  # half of stem and conv1
    bare = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 4))
    with pytest.raises(pl.BadModel, match="BatchNorm"):
        pl.Session(bare, session.data, method="batchnorm_scale").propose()


def test_taylor_is_the_mean_absolute_mask_gradient(session: pl.Session) -> None:
    few = list(session.data.train)[:2]
    graph = session.graph
    evidence = pl.measure(session.model, graph, few, kinds=("gradient",))
    plain = scores(session, pl.Taylor(images=64, normalise=False))
    share = scores(session, pl.Taylor(images=64))
    for group in graph:
        if group.prunable:
            want = evidence.gradient(group.name).taylor
            np.testing.assert_allclose(plain[group.name], want, rtol=1e-4)
            np.testing.assert_allclose(share[group.name], want / np.linalg.norm(want), rtol=1e-4)


def test_first_k_keeps_the_first_and_random_is_the_seeds(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, method=pl.FirstK(pruning_ratio=0.25))
    assert dict(session.propose().drop) == {
        "stem": (6, 7), "conv1": (9, 10, 11), "conv3": (12, 13, 14, 15),
    }  # fmt: skip
    a, b, c = (pl.Session(trained, data, method="random", seed=s).propose() for s in (1, 1, 2))
    assert a.drop == b.drop
    assert a.drop != c.drop


SCORED = st.sampled_from(["magnitude", "batchnorm_scale", "taylor", "max_response"])


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(12)), name=SCORED)
def test_permuting_channels_permutes_the_scores(
    trained: nn.Module, data: pl.Data, order: list[int], name: str
) -> None:
    permuted = Tiny()
    permuted.load_state_dict(trained.state_dict())
    with torch.no_grad():
        permuted.conv1.weight.copy_(trained.conv1.weight[order])
        for part in ("weight", "bias", "running_mean", "running_var"):
            getattr(permuted.bn1, part).copy_(getattr(trained.bn1, part)[order])
        permuted.conv2.weight.copy_(trained.conv2.weight[:, order])
    found = [scores(pl.Session(m, data, repair=None), name)["conv1"] for m in (trained, permuted)]
    np.testing.assert_allclose(found[1], found[0][order], rtol=1e-3, atol=1e-6)


def test_apoz_is_the_share_of_values_that_are_not_zero(session: pl.Session) -> None:
    inputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, given: inputs.__setitem__(name, given[0])

    model = session.model.eval()
    names = ("conv1", "conv2", "conv3", "fc")
    hooks = [getattr(model, n).register_forward_pre_hook(keep(n)) for n in names]
    x = torch.cat([x for x, _ in session._evaluator.splits.images(64)])
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    alive = {n: (v != 0).double().flatten(2).mean((0, 2)) for n, v in inputs.items() if n != "fc"}
    found = scores(session, pl.APoZ(images=64))
    both = torch.cat([inputs["conv1"], inputs["conv3"]])  # they read the same channels
    trunk = (both != 0).double().mean((0, 2, 3))
    np.testing.assert_allclose(found["stem"], trunk, rtol=1e-4)
    np.testing.assert_allclose(found["conv1"], alive["conv2"], rtol=1e-4)
    np.testing.assert_allclose(found["conv3"], (inputs["fc"] != 0).double().mean(0), rtol=1e-4)
    assert 0 < min(found["conv1"]) < max(found["conv1"]) < 1


# ---------------------------------------------------------------- how many are dropped


@pytest.mark.parametrize("ratio", [0, 0.05, 0.25, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_the_ratio_is_the_share_that_is_gone(session: pl.Session, ratio: float, scope: str) -> None:
    session.method = pl.Magnitude(pruning_ratio=ratio, scope=scope)
    move = session.propose()
    gone = {name: len(units) for name, units in (move.drop if move else {}).items()}
    groups = [group for group in session.graph if group.prunable]
    if scope == "uniform":
        for group in groups:
            assert gone.get(group.name, 0) == min(int(ratio * group.width), group.width - 1)
    else:
        widths = [group.width for group in groups]
        assert sum(gone.values()) == min(int(ratio * sum(widths)), sum(widths) - len(widths))
    if move is not None:
        session.approve()
        assert session.propose() is None  # the ratio is of the original network


def test_the_lowest_scores_go(session: pl.Session) -> None:
    for scope in ("uniform", "global"):
        session.method = pl.Magnitude(pruning_ratio=0.5, scope=scope)
        move = session.propose()
        seen = {item.group: item for item in session.state.proposed.seen}
        dropped, kept = [], []
        for group, item in seen.items():
            gone = move.drop.get(group, ())
            low = [v for u, v in zip(item.units, item.values, strict=True) if u in gone]
            high = [v for u, v in zip(item.units, item.values, strict=True) if u not in gone]
            assert max(low, default=0) <= min(high)
            dropped += low
            kept += high if len(high) > 1 else []  # the last one stays, whatever its score
        if scope == "global":
            assert max(dropped) <= min(kept)
        session.reject()


def test_a_mapping_says_which_groups_give_how_much(session: pl.Session) -> None:
    session.method = pl.Magnitude(pruning_ratio={"conv2": 0.5, "conv3": 0.25})
    move = session.propose()
    assert {name: len(units) for name, units in move.drop.items()} == {"stem": 4, "conv3": 4}
    session.reject()
    target = session.propose(target_macs=0.6)
    assert set(target.drop) == {"stem", "conv3"}
    session.reject()
    session.method = pl.Magnitude(pruning_ratio={"fc": 0.5})
    with pytest.raises(pl.IllegalPlan, match="cannot be pruned"):
        session.propose()
    session.method = pl.Magnitude(pruning_ratio={"conv9": 0.5})
    with pytest.raises(pl.UnknownName, match="conv9"):
        session.propose()


@pytest.mark.parametrize("name", ONE_SHOT)
def test_a_target_is_met_within_one_unit(trained: nn.Module, data: pl.Data, name: str) -> None:
    few = {"images": 32} if name in ("taylor", "oracle") else {}
    method = pl.make_method(name, **few)
    session = pl.Session(trained, data, method=method, repair=None)
    move = session.propose(target_macs=0.5)
    goal = session.state.base.cost.macs * 0.5
    assert move.after.macs <= goal
    full = pl.WidthPlan.full(session.graph)
    drops = dict(move.drop)
    smaller = [
        {**drops, group: tuple(u for u in units if u != unit)}
        for group, units in drops.items()
        for unit in units
    ]
    assert any(pl.cost(session.graph, full.drop(drop)).macs > goal for drop in smaller)
    assert not move.damage  # nobody measured any
    session.run(target_macs=0.5, min_accuracy=None)  # random, unrepaired: a ruin on the target
    assert session.state.now.cost.macs <= goal
    assert session.state.moves == 1


def test_uniform_takes_the_same_share_of_every_group(session: pl.Session) -> None:
    session.method = pl.Random()
    move = session.propose(target_macs=0.4)
    shares = [len(units) / session.graph[name].width for name, units in move.drop.items()]
    assert len(shares) == 3
    assert max(shares) - min(shares) <= 1 / 8  # within a unit of the narrowest


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("magnitude", {"pruning_ratio": 1.0}),
        ("magnitude", {"pruning_ratio": -0.1}),
        ("magnitude", {"pruning_ratio": "half"}),
        ("magnitude", {"pruning_ratio": {"conv1": 1}}),
        ("magnitude", {"scope": "layer"}),
        ("magnitude", {"norm": 3}),
        ("max_response", {"weights": "all"}),
        ("taylor", {"theta": 0.1}),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(pl.InvalidValue):
        pl.make_method(name, **wrong)


# ---------------------------------------------------------------- in a session


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_works_in_a_session_that_resumes(
    name: str, trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    quick = {
        "aofp": {"theta": 0.2, "images": 32},
        "oracle": {"images": 32, "pruning_ratio": {"conv3": 0.5}},
        "taylor": {"images": 32},
        "group_fisher": {"interval": 1, "share": 0.0},
    }
    method = pl.make_method(name, **quick.get(name, {}))
    path = tmp_path / "run.prunelab"
    first = pl.Session(trained, data, method=method, path=path, repair=None)
    move = first.propose()
    assert move is not None
    assert move.method == name
    if name != "aofp":
        shown = {item.group: item for item in first.state.proposed.seen}
        assert set(move.drop) <= set(shown)
        assert all(isinstance(item, pl.Importance) and item.meaning for item in shown.values())
    again = pl.Session.open(path, model=Tiny().eval(), data=data)
    assert again.method == method
    assert again.state == first.state
    again.approve()
    whole = pl.Session(trained, data, method=method, repair=None)
    assert whole.propose() == move
    whole.approve()
    x = batches(32, 4)[0][0]
    with torch.no_grad():
        assert torch.equal(again.model(x), whole.model(x))


def test_the_script_of_a_session_names_the_shares(session: pl.Session, tmp_path: Path) -> None:
    session.method = pl.Magnitude(pruning_ratio={"conv1": 0.5}, norm=2)
    session.propose()
    script = session.export(tmp_path / "run.py").read_text()
    assert "'magnitude', pruning_ratio={'conv1': 0.5}, scope='uniform', norm=2" in script


@dataclass(frozen=True)
class Quietest(pl.OneShot):
    """Drops the channels whose contribution to what reads them is smallest."""

    name: ClassVar[str] = "quietest"
    kinds: ClassVar[tuple[str, ...]] = ("contribution",)
    meaning = "share of the signal"

    def scores(self, context: Context, evidence: Any) -> Mapping[str, np.ndarray]:
        return {group.name: evidence[group.name].alone() for group in context.prunable}


class OneByOne:
    """No dataclass, no base: the widest group loses its last channel."""

    name = "one_by_one"

    def search(self, context: Context) -> Any:
        yield Progress(1, 1, "looking")
        widest = max(context.prunable, key=lambda group: len(group.units))
        return context.move(self, {widest.name: widest.units[-1:]})


def test_a_method_of_ones_own_is_a_small_class(trained: nn.Module, data: pl.Data) -> None:
    result = pl.prune(trained, data, method=Quietest(), target_macs=0.6)
    whole = pl.cost(trained, batches(32, 1)[0][0][:1])
    assert pl.cost(result.model, batches(32, 1)[0][0][:1]).macs <= 0.6 * whole.macs
    session = pl.Session(trained, data, method=OneByOne())
    move: Move = session.propose()
    assert dict(move.drop) == {"conv3": (15,)}
    session.approve()
    session.run(target_macs=0.8)
    assert session.state.moves > 1
    assert len(session.plan.kept["conv3"]) < 15


def test_groups_of_every_kind_are_scored_by_every_method_that_ranks_them_all() -> None:
    torch.manual_seed(0)
    model = Couplings()

    def images(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(16, 2, 8, 8, generator=generator)
        return [(x, torch.arange(16) % 4)]

    data = pl.Data(train=images(1), val=images(2))
    whole = [name for name, kind in METHODS.items() if issubclass(kind, pl.OneShot)]
    for name in [*whole, "group_fisher"]:
        method = pl.make_method(name)
        if name == "group_fisher":
            method = replace(method, interval=1, units_per_step=4)
        session = pl.Session(model, data, method=method)
        move = session.propose(target_macs=0.6)
        assert move is not None, name
        shown = {item.group for item in session.state.proposed.seen}
        has_norm = {"stem"} if name == "batchnorm_scale" else set()
        assert shown == (has_norm or {g.name for g in session.graph if g.prunable})
        session.approve()
