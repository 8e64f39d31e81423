"""Sampled AOFP against its released loop, written out by hand with masks and no surgery."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Tiny, batches

import prunelab as pl
from prunelab.methods import aofp_sampled
from prunelab.methods.aofp_sampled import ScoringPath
from prunelab.session.context import search_context


class Chain(nn.Module):
    """Three convolutions in a row and a linear layer, so that consumers are pruned themselves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        for name, into in (("a", 1), ("b", 8), ("c", 8)):
            self.add_module(name, nn.Conv2d(into, 8, 3, padding=1))
            self.add_module(f"bn_{name}", nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for name in "abc":
            x = F.relu(getattr(self, f"bn_{name}")(getattr(self, name)(x)))
        return self.fc(x.mean((2, 3)))


SMALL = [(x.double(), y) for x, y in batches(128, 3)]


@dataclass
class Released:
    """The released training loop: base masks, score masks, search spaces, one optimiser."""

    model: Chain
    method: pl.AOFP
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    iteration: int = 0

    def __post_init__(self) -> None:
        self.seen_means: list[tuple[str, list[float]]] = []
        self.base = {name: torch.ones(8, dtype=torch.float64) for name in "abc"}
        self.space = {name: list(range(8)) for name in "abc"}
        self.seen = dict.fromkeys("abc", 0)
        for name in "abc":
            self.sums[name], self.counts[name] = np.zeros(8), np.zeros(8)
        stagger = self.method.batches // 3
        self.start = {n: self.method.warmup + i * stagger for i, n in enumerate("abc")}
        self.optimiser = torch.optim.SGD(
            [
                {
                    "params": [value],
                    "lr": (2 if "bias" in key else 1) * self.method.lr,
                    "weight_decay": 0.0 if "bias" in key or "bn" in key else 1e-4,
                }
                for key, value in self.model.named_parameters()
            ],
            lr=self.method.lr,
            momentum=0.9,
        )

    def forward(self, x: Tensor, score: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The base path's outputs, and t of every layer that its consumer has scored."""
        damage, ablated, before = {}, x, ""
        for name in "abc":
            conv, bn = getattr(self.model, name), getattr(self.model, f"bn_{name}")
            z = conv(x)
            mean, var = z.mean((0, 2, 3), keepdim=True), z.var((0, 2, 3), False, keepdim=True)
            mask = self.base[name].view(1, -1, 1, 1)
            x = F.relu(bn(z)) * mask
            if before:
                v = (conv(ablated) - mean) / (var + bn.eps).sqrt()
                v = F.relu(v * bn.weight.view(1, -1, 1, 1) + bn.bias.view(1, -1, 1, 1)) * mask
                damage[before] = self.ratio(x, v)
            ablated, before = x * score.get(name, torch.ones(8)).view(1, -1, 1, 1), name
        out = self.model.fc(x.mean((2, 3)))
        damage["c"] = self.ratio(out, self.model.fc(ablated.mean((2, 3))))
        return out, damage

    def ratio(self, u: Tensor, v: Tensor) -> float:
        """The isolated damage of one batch."""
        lost, whole = (u - v).detach().square(), u.detach().square()
        if self.method.damage == "batch_ratio":
            return float(lost.sum() / whole.sum())
        return float((lost.flatten(1).sum(1) / whole.flatten(1).sum(1)).mean())

    def move(self, graph: pl.ChannelGraph, seed: int) -> tuple[dict[str, tuple[int, ...]], int]:
        """Train until `STEP` of the MACs is saved: the units masked meanwhile, and the batches."""
        rng, stream, first = np.random.default_rng(seed), cycle(SMALL), self.iteration
        before = {name: mask.clone() for name, mask in self.base.items()}
        full = pl.WidthPlan.full(graph)
        goal = self.macs(graph, full) - aofp_sampled.STEP * pl.cost(graph, full).macs
        while self.macs(graph, full) > goal:
            active = [name for name in "abc" if self.start[name] <= self.iteration]
            score = {}
            for name in active:
                space = self.space[name]
                score[name] = torch.ones(8, dtype=torch.float64)
                score[name][rng.choice(space, len(space) // 2, replace=False)] = 0
            x, y = next(stream)
            out, damage = self.forward(x, score)
            self.optimiser.zero_grad()
            F.cross_entropy(out, y).backward()
            self.optimiser.step()
            for name in active:
                masked = (score[name] == 0).numpy()
                self.sums[name][masked] += damage[name]
                self.counts[name][masked] += 1
                self.seen[name] += 1
                if self.seen[name] == self.method.batches:
                    self.halve_or_stop(name)
            self.iteration += 1
        gone = {n: tuple(np.flatnonzero((before[n] - self.base[n]).numpy())) for n in "abc"}
        return {n: tuple(map(int, u)) for n, u in gone.items() if u}, self.iteration - first

    def halve_or_stop(self, name: str) -> None:
        """The decision after a half, after which sums and counts begin anew."""
        space = self.space[name]
        with np.errstate(invalid="ignore"):
            mean = np.nan_to_num(self.sums[name] / self.counts[name], nan=np.inf)
        self.seen_means.append((name, [mean[unit] for unit in space]))
        better = sorted(space, key=lambda unit: mean[unit])[: len(space) // 2]
        if mean[better[-1]] < self.method.theta:
            self.base[name][better] = 0
            self.space[name] = [u for u in range(8) if self.base[name][u]]
        elif len(better) > 1:
            self.space[name] = sorted(better)
        else:
            self.space[name] = [u for u in range(8) if self.base[name][u]]
        self.sums[name][:], self.counts[name][:], self.seen[name] = 0, 0, 0

    def macs(self, graph: pl.ChannelGraph, full: pl.WidthPlan) -> int:
        """The multiply-adds of what is left."""
        gone = {n: np.flatnonzero((1 - mask).numpy()).tolist() for n, mask in self.base.items()}
        return pl.cost(graph, full.drop(gone)).macs


@pytest.mark.parametrize(
    ("damage", "theta", "warmup", "step"),
    [
        ("batch_ratio", 0.15, 2, 1 / 32),
        ("batch_ratio", 0.15, 0, 1 / 3),
        ("sample_ratio", 0.12, 0, 1 / 8),
    ],
)
def test_sampled_search_is_the_released_loop_from_move_to_move(
    damage: Any, theta: float, warmup: int, step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aofp_sampled, "STEP", step)
    method = pl.AOFP(
        theta=theta, scoring="sampled", batches=4, warmup=warmup, lr=0.01, damage=damage,
        retire_after=99,
    )  # fmt: skip
    data = pl.Data(train=SMALL, val=SMALL)
    session = pl.Session(Chain().double(), data, method, repair=None)
    graph, released = session.graph, Released(Chain().double().train(), method)
    names, again = set(), False
    for _ in range(2 if step > 0.1 else 4):
        move = session.propose()
        drop, count = released.move(graph, move.seed)
        assert (dict(move.drop), move.carry["batches"]) == (drop, count)
        rungs = session.state.proposed.seen
        for rung, (name, means) in zip(rungs, released.seen_means, strict=True):
            assert rung.group == name
            assert rung.damages == pytest.approx(means, rel=1e-5)
        released.seen_means.clear()
        session.approve()
        names |= set(drop)
        takes = [rung.group for rung in rungs if rung.verdict == "take"]
        again |= len(takes) > len(set(takes))
        x = SMALL[0][0]
        with torch.no_grad():
            want = evaluated(released, x)
            torch.testing.assert_close(session.model(x), want, rtol=1e-9, atol=1e-9)
    assert len(names) > 1
    assert again == (step > 0.1)  # a layer that has succeeded searches on in the same move
    kept = session.plan.kept
    for name, before in (("b", "a"), ("c", "b")):
        mine = getattr(session.model, name).weight
        theirs = getattr(released.model, name).weight[list(kept[name])][:, list(kept[before])]
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def evaluated(released: Released, x: Tensor) -> Tensor:
    """The masked network's outputs in evaluation mode."""
    for name in "abc":
        mask = released.base[name].view(1, -1, 1, 1)
        conv, bn = getattr(released.model, name), getattr(released.model, f"bn_{name}")
        x = F.relu(bn.eval()(conv(x))) * mask
        bn.train()
    return released.model.fc(x.mean((2, 3)))


def searching(theta: float, **more: Any) -> pl.AOFP:
    return pl.AOFP(theta=theta, scoring="sampled", **{"batches": 3, "warmup": 4, **more})


def test_an_approved_search_goes_on_after_a_restart_and_a_rejected_one_from_before(
    trained: nn.Module, data: pl.Data, tmp_path: Any
) -> None:
    path = tmp_path / "run.prunelab"
    session, stopped = (
        pl.Session(trained, data, searching(0.3), repair=None, path=at) for at in (None, path)
    )
    for one in (session, stopped):
        first = one.propose()
        one.approve()
    assert first.carry["step"] == first.carry["batches"]
    resumed = pl.Session.open(path, model=trained, data=data)
    second = resumed.propose()
    assert second == session.propose()
    resumed.reject("again")
    third = resumed.propose()
    assert third.carry["step"] - third.carry["batches"] == first.carry["step"]
    for name, layer in third.carry["layers"].items():
        assert set(layer["search"]) <= set(resumed.graph[name].units) - set(
            third.drop.get(name, ())
        )


def test_momentum_is_cut_as_the_network_is_and_ends_with_a_tune(
    trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data, searching(0.3), repair=None)
    session.propose()
    assert session._history.momentum() is None
    session.approve()
    moving = session._history.momentum()
    shapes = {name: p.shape for name, p in session.model.named_parameters()}
    assert {name: p.shape for name, p in moving.named_parameters()} == shapes
    assert all(p.abs().max() > 0 for p in moving.parameters())
    session.repair("bn")
    assert session._history.momentum() is not None
    session.tune(steps=1)
    assert session._history.momentum() is None
    session.undo()
    assert session._history.momentum() is not None


def test_a_layer_whose_move_was_adjusted_starts_anew(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, searching(0.3), repair=None)
    move = session.propose()
    name = next(iter(move.drop))
    session.adjust(
        drop={name: [unit for unit in session.graph[name].units if unit not in move.drop[name]][:1]}
    )
    session.approve()
    context = search_context(
        session._evaluator, session._history, session.state, None, session._history.network
    )
    targets = session.method.targets(context)
    searches, step, _ = aofp_sampled._resumed(session.method, context, targets)
    assert step == move.carry["step"]
    for search in searches:
        anew = search.group.name == name
        assert (search.search == search.group.units and not search.seen) == anew
        assert bool(search.sums) != anew


def test_with_other_parameters_the_search_starts_anew(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, searching(0.3), repair=None)
    session.propose()
    session.approve()
    session.method = searching(0.31)
    move = session.propose()
    assert move.carry["step"] == move.carry["batches"]


def test_where_all_layers_retire_theta_is_doubled_towards_a_target_alone(
    trained: nn.Module, data: pl.Data
) -> None:
    method = searching(1e-4, retire_after=1, batches=2, warmup=0)
    assert pl.Session(trained, data, method).propose() is None
    session = pl.Session(trained, data, method, repair=None)
    move = session.propose(target_macs=0.5)
    thetas = [rung.theta for rung in session.state.proposed.seen]
    assert thetas == sorted(thetas)
    assert move.parameters["theta"] == move.carry["theta"] == thetas[-1] > 1e-4
    session.approve()
    session.propose(target_macs=0.5)
    assert min(rung.theta for rung in session.state.proposed.seen) == thetas[-1]


def test_a_run_ends_at_the_target_within_a_unit(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, searching(0.3, groups="all"), repair=None)
    session.run(target_macs=0.6, min_accuracy=None)
    share = session.state.now.cost.macs / session.state.base.cost.macs
    assert 0.5 < share <= 0.6
    assert session.state.moves >= 2
    assert all(p.abs().sum((1, 2, 3)).min() > 0 for p in session.model.parameters() if p.ndim == 4)


def test_units_that_are_gone_do_not_count_in_what_feeds_them(trained: nn.Module) -> None:
    x = batches(32, 9)[0][0]
    graph = pl.trace(trained, x)
    gone = {"conv3": (1, 7), "stem": (3,)}
    path = ScoringPath(trained, graph, {"stem": (0, 2), "conv1": (5,)}, gone=gone)
    with torch.no_grad(), path:
        trained(x)
    plan = pl.WidthPlan.full(graph).drop({"conv3": [1, 7]})
    small = pl.cut(trained, graph, plan)
    evidence = pl.measure(small, graph.after(plan), [x])
    assert path.damage("stem") == pytest.approx(evidence["stem"].damage([0, 2]), rel=1e-5)


def test_the_sample_ratio_is_the_mean_of_the_ratios_of_single_images() -> None:
    model, x = Tiny().eval(), batches(32, 9)[0][0]
    graph = pl.trace(model, x)
    path = ScoringPath(model, graph, {"stem": (0, 2), "conv3": (5,)}, damage="sample_ratio")
    with torch.no_grad(), path:
        model(x)
    for name, units in (("stem", [0, 2]), ("conv3", [5])):
        each = [pl.measure(model, graph, [image])[name].damage(units) for image in x.split(1)]
        assert path.damage(name) == pytest.approx(np.mean(each), rel=1e-5)


def test_the_closed_form_has_no_sample_ratio() -> None:
    with pytest.raises(pl.InvalidValue, match="sampled"):
        pl.AOFP(damage="sample_ratio")
