"""AOFP's invariants: on planted problems, in closed form and sampled."""

from __future__ import annotations

import itertools
from math import inf, log2

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from toys import batches

import prunelab as pl
from prunelab.evidence import ConsumerGram, ContributionGram
from prunelab.methods.aofp_sampled import ScoringPath, _LayerSearch
from prunelab.methods.aofp_search import expected_damages, iter_rungs, judge
from prunelab.methods.aofp_target import MOST, STEP
from prunelab.values import Rung


def gram_of(z: np.ndarray) -> ContributionGram:
    """Contributions z [units, samples] to one consumer, as evidence."""
    units, gram = tuple(range(len(z))), z @ z.T
    consumer = ConsumerGram("next", units, gram, gram.sum(1), float(gram.sum()))
    return ContributionGram("layer", units, {"next": consumer})


def exhaust(z: np.ndarray, theta: float) -> tuple[set[int], int]:
    """Moves on frozen weights until none passes: the units dropped, and the halvings it took."""
    alive = list(range(len(z)))
    dropped: set[int] = set()
    halvings = 0
    while len(alive) > 1:
        rungs = list(iter_rungs(gram_of(z[alive]), theta))
        halvings += len(rungs)
        if rungs[-1].verdict != "take":
            break
        taken = {alive[index] for index in rungs[-1].candidates}
        assert not taken & dropped
        dropped |= taken
        alive = [unit for unit in alive if unit not in taken]
    return dropped, halvings


@pytest.mark.parametrize(("n", "k"), [(16, 4), (64, 10), (64, 20), (256, 60)])
def test_exactly_the_units_without_energy_are_dropped(n: int, k: int) -> None:
    rng = np.random.default_rng(n + k)
    z = rng.normal(size=(n, 400)) + 0.1
    free = rng.choice(n, k, replace=False)
    z[free] = 0
    dropped, halvings = exhaust(z, theta=1e-9)
    assert dropped == set(free.tolist())
    assert halvings <= 3 * (1 + log2(k)) * int(log2(n))


def test_duplicates_are_not_free() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(16, 2000))
    z[1], z[3], z[5], z[7] = z[0], z[2], z[4], z[6]
    assert exhaust(z, theta=0.01)[0] == set()


@pytest.mark.parametrize(
    ("n", "widths"), [(20, [20, 10, 5, 3, 2, 1]), (16, [16, 8, 4, 2, 1]), (7, [7, 4, 2, 1])]
)
def test_theta_zero_never_drops_and_infinity_halves_each_move(n: int, widths: list[int]) -> None:
    z = np.random.default_rng(n).normal(size=(n, 50))
    assert exhaust(z, theta=0.0)[0] == set()
    alive, found = list(range(n)), [n]
    while len(alive) > 1:
        (rung,) = iter_rungs(gram_of(z[alive]), inf)  # the first half passes at once
        alive = [unit for index, unit in enumerate(alive) if index not in rung.candidates]
        found.append(len(alive))
    assert found == widths


def test_in_a_session_infinity_halves_every_layer_and_leaves_one(
    trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data, pl.AOFP(theta=inf, groups="all", images=64), repair=None)
    seen = [session.plan.widths]
    gone: dict[str, set[int]] = {}
    while (move := session.propose()) is not None:
        for name, units in move.drop.items():  # a dropped unit never comes back
            assert not gone.setdefault(name, set()) & set(units)
            gone[name] |= set(units)
        session.approve()
        seen.append(session.plan.widths)
    assert [widths["conv1"] for widths in seen] == [12, 6, 3, 2, 1]
    assert [widths["conv3"] for widths in seen] == [16, 8, 4, 2, 1]
    assert [widths["stem"] for widths in seen] == [8, 4, 2, 1, 1]


def test_two_units_are_scored_by_their_own_damage(trained: nn.Module) -> None:
    gram = gram_of(np.random.default_rng(0).normal(size=(2, 9)))
    expected = np.diagonal(gram.gram)
    np.testing.assert_allclose(expected_damages(gram.gram), expected)
    images = [batches(32, 9)[0]]
    graph = pl.trace(trained, images[0][0])
    evidence = pl.measure(trained, graph, images)
    session = pl.Session(
        trained, pl.Data(train=images, val=images), pl.AOFP(theta=1e-9, images=32), repair=None
    )
    session.propose()
    pairs = [rung for rung in session.state.proposed.seen if len(rung.search) == 2]
    assert {rung.group for rung in pairs} == {"conv3"}  # conv1 goes 12, 6, 3
    for rung in pairs:
        assert rung.damages == pytest.approx(
            [evidence[rung.group].damage([unit]) for unit in rung.search], rel=1e-5
        )


def test_the_search_sets_halve_and_nest() -> None:
    rungs = list(iter_rungs(gram_of(np.random.default_rng(3).normal(size=(37, 80))), 1e-9))
    assert [len(rung.search) for rung in rungs] == [37, 18, 9, 4, 2]
    assert [rung.verdict for rung in rungs] == ["halve"] * 4 + ["fail"]
    for a, b in itertools.pairwise(rungs):
        assert b.search == a.candidates
        assert set(b.search) < set(a.search)


def test_theta_changes_decisions_only_never_measurements() -> None:
    gram = gram_of(np.random.default_rng(5).normal(size=(32, 60)))
    loose, strict = list(iter_rungs(gram, 0.3)), list(iter_rungs(gram, 1e-6))
    for a, b in zip(loose, strict, strict=False):
        assert a.damages == b.damages
        assert a.worst == b.worst


def test_sampled_scores_converge_to_the_closed_form(trained: nn.Module) -> None:
    xs = [x for x, _ in batches(128, 9)]
    graph = pl.trace(trained, xs[0])
    evidence = pl.measure(trained, graph, xs)
    gram = evidence["conv1"]
    exact = expected_damages(gram.gram / gram.energy)
    rng = np.random.default_rng(0)
    sums, counts = np.zeros(12), np.zeros(12)
    agreement = {}
    for index in range(1, 401):
        mask = rng.choice(12, 6, replace=False)
        path = ScoringPath(trained, graph, {"conv1": tuple(mask)})
        with torch.no_grad(), path:
            trained(xs[index % len(xs)])
        sums[mask] += path.damage("conv1")
        counts[mask] += 1
        if index in (10, 400):
            agreement[index] = spearmanr(sums / np.maximum(counts, 1), exact).statistic
    assert agreement[400] > 0.85
    assert agreement[400] > agreement[10]
    np.testing.assert_allclose(sums / counts, exact, rtol=0.15)


def test_scoring_one_mask_is_the_exact_damage(trained: nn.Module) -> None:
    x = batches(32, 9)[0][0]
    graph = pl.trace(trained, x)
    for at in ("conv", "bn"):
        path = ScoringPath(trained, graph, {"conv1": (1, 4), "conv3": (0,)}, at)
        with torch.no_grad(), path:
            trained(x)
        evidence = pl.measure(trained, graph, [x], at=at)
        assert path.damage("conv1") == pytest.approx(evidence["conv1"].damage([1, 4]), rel=1e-4)
        assert path.damage("conv3") == pytest.approx(evidence["conv3"].damage([0]), rel=1e-4)


def test_behind_the_activation_the_damage_is_that_of_the_masked_network() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5),
        nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(5 * 16, 2),
    ).double().eval()  # fmt: skip
    model[3].running_mean += 0.3
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    graph = pl.trace(model, x)
    path = ScoringPath(model, graph, {"0": (1, 2)}, "relu")
    with torch.no_grad(), path:
        model(x)
    same = pl.masked(model, graph, pl.WidthPlan.full(graph).drop({"0": [1, 2]}))
    with torch.no_grad():
        u, v = model[:5](x), same[:5](x)
    want = float((u - v).square().sum() / u.square().sum())
    assert path.damage("0") == pytest.approx(want, rel=1e-10)


def test_the_scoring_path_does_not_disturb_the_base_path(trained: nn.Module) -> None:
    x = batches(32, 9)[0][0]
    graph = pl.trace(trained, x)

    def step(scored: bool) -> list[torch.Tensor]:
        model = type(trained)()
        model.load_state_dict(trained.state_dict())
        model.train()
        path = ScoringPath(model, graph, {"conv1": (0, 1), "conv3": (5,)}, "relu")
        if scored:
            with path:
                out = model(x)
            assert path.damage("conv1") > 0
        else:
            out = model(x)
        out.square().sum().backward()
        return [out.detach(), *(p.grad for p in model.parameters()), *model.buffers()]

    for a, b in zip(step(True), step(False), strict=True):
        assert torch.equal(a, b)


def test_sampled_search_trains_a_copy_that_approve_adopts(
    trained: nn.Module, data: pl.Data
) -> None:
    method = pl.AOFP(theta=0.2, scoring="sampled", batches=4, warmup=1, retire_after=1)
    session = pl.Session(trained, data, method=method, repair=None)
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    move = session.propose()
    assert move is not None
    rungs = session.state.proposed.seen
    assert {rung.batches for rung in rungs} == {4}
    assert set(move.drop) == {rung.group for rung in rungs if rung.verdict == "take"}
    for name, tensor in session.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    session.approve()
    kept = list(session.plan.kept["stem"])
    assert kept == list(range(8))
    assert not torch.equal(session.model.stem.weight, before["stem.weight"])
    session.undo()
    for name, tensor in session.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_sampled_search_is_the_same_from_the_same_seed(trained: nn.Module, data: pl.Data) -> None:
    method = pl.AOFP(theta=0.2, scoring="sampled", batches=3, warmup=0, retire_after=1)
    first, second, other = (
        pl.Session(trained, data, method=method, seed=seed).propose() for seed in (4, 4, 5)
    )
    assert first == second
    assert first.seed != other.seed


@pytest.mark.parametrize(("n", "batches_a_half"), [(9, 7), (16, 5), (2, 3)])
def test_of_every_half_each_mask_counts_for_the_units_it_held(n: int, batches_a_half: int) -> None:
    group = pl.ChannelGroup(
        "g", n, tuple(range(n)), ("g",), ("next",), why="", first=0, residual=False
    )
    search, rng = _LayerSearch(group, 1, 0, group.units, group.units), np.random.default_rng(0)
    while True:
        held = dict.fromkeys(search.search, 0)
        sums = dict.fromkeys(search.search, 0.0)
        for index in range(batches_a_half):
            mask = search.draw(rng)
            assert len(set(mask)) == len(search.search) // 2
            assert set(mask) <= set(search.search)
            search.add(1.0 + index)
            for unit in mask:
                held[unit] += 1
                sums[unit] += 1.0 + index
        assert sum(search.counts.values()) == len(search.search) // 2 * batches_a_half
        assert search.counts == {unit: count for unit, count in held.items() if count}
        rung = search.decide(theta=1e-9)
        assert rung.batches == batches_a_half
        for unit, mean in zip(rung.search, rung.damages, strict=True):
            want = sums[unit] / held[unit] if held[unit] else inf
            assert mean == pytest.approx(want, rel=1e-5)
        if rung.verdict == "fail":
            break
        assert search.search == rung.candidates
        assert not search.counts
    assert search.retired
    assert search.search == group.units


def test_evaluating_draws_no_masks(trained: nn.Module, data: pl.Data) -> None:
    method = pl.AOFP(theta=0.2, scoring="sampled", batches=2, warmup=0, retire_after=1)
    session = pl.Session(trained, data, method=method)
    first = session.evaluate("val")
    session.propose()
    assert session.evaluate("val") == first == pl.Session(trained, data).evaluate("val")


@pytest.mark.parametrize(
    "wrong",
    [
        {"theta": -0.1},
        {"theta": float("nan")},
        {"scoring": "guess"},
        {"groups": "some"},
        {"at": "relu"},
        {"images": 0},
        {"scoring": "sampled", "lr": 0.0},
    ],
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(pl.InvalidValue):
        pl.AOFP(**wrong)


# ---------------------------------------------------------------- what one move may take


def test_towards_a_target_one_move_takes_at_most_an_eighth_of_a_layers_signal(
    trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data, pl.AOFP(theta=0.6))
    move = session.propose(target_macs=0.01)
    searched = {}
    for rung in session.state.proposed.seen:
        searched[rung.group] = rung
    assert any(len(move.drop[name]) < len(searched[name].candidates) for name in move.drop)
    evidence = pl.measure(trained, session.graph, session._evaluator.splits.images(512))
    for name, units in move.drop.items():
        assert set(units) <= set(searched[name].candidates)
        assert move.damage[name] <= MOST or len(units) == 1
        alone = dict(zip(evidence[name].units, evidence[name].alone(), strict=True))
        left = sorted(set(searched[name].candidates) - set(units), key=alone.get)
        assert not left or evidence[name].damage([*units, left[0]]) > MOST


def test_without_a_target_theta_alone_decides(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, pl.AOFP(theta=0.6))
    move = session.propose()
    assert max(move.damage.values()) > MOST
    taken = {r.group: r.candidates for r in session.state.proposed.seen if r.verdict == "take"}
    assert dict(move.drop) == taken


@pytest.mark.parametrize("theta", [0.5, 0.05, 0.03])
def test_a_rung_judged_with_another_theta_is_as_if_it_had_been_searched_with_it(
    theta: float,
) -> None:
    rungs = (
        Rung("conv1", 0, (0, 1, 2, 3), (0.3, 0.1, 0.2, 0.4), (1, 2), 0.2, 0.05, "halve"),
        Rung("conv1", 1, (1, 2), (0.03, 0.06), (1,), 0.03, 0.05, "take"),
    )
    for rung in rungs:
        damages = np.array(rung.damages)
        assert rung.at(theta) == judge("conv1", rung.halving, rung.search, damages, theta)


# ---------------------------------------------------------------- towards a target the loss decides


class Faint(nn.Module):
    """The label is a faint part of what `mid` reads, and all that `fc` does.

    Units 0 to 3 of `stem` say which class it is, 4 to 7 are loud and of no use: the units of `mid`
    that they go to, 4 to 15, are not read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 8, 1, bias=False)
        self.mid = nn.Conv2d(8, 16, 1, bias=False)
        self.fc = nn.Linear(16, 4, bias=False)
        with torch.no_grad():
            self.stem.weight.copy_(torch.eye(8)[:, :, None, None])
            self.mid.weight.zero_()
            self.mid.weight[:4, :4, 0, 0] = 10 * torch.eye(4)
            self.mid.weight[4:, 4:] = 1.0
            self.fc.weight.copy_(5 * torch.eye(4, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.mid(self.stem(x).relu()).relu().mean((2, 3)))


def faint(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two batches of 32 images [32, 8, 4, 4] for `Faint`, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(64) % 4
    x = torch.randn(64, 8, 4, 4, generator=generator).abs()
    x[:, :4] = 0.1 * torch.eye(4)[labels][:, :, None, None]
    return list(zip(x.split(32), labels.split(32), strict=True))


FAINT = pl.Data(train=faint(0), val=faint(1))


def test_a_layer_that_is_cheap_by_its_signal_may_be_dear_by_the_loss() -> None:
    model = Faint().eval()
    session = pl.Session(model, FAINT, pl.AOFP(), repair=None)
    move = session.propose()  # as published: whatever passes theta
    assert set(move.drop["stem"]) < {0, 1, 2, 3}
    assert set(move.drop["mid"]) < set(range(4, 16))
    assert 0 < move.damage["stem"] < 0.01
    sets = [{}, *({name: units} for name, units in move.drop.items())]
    base, *losses = pl.ablate(model, session.graph, FAINT.train, sets)
    rise = dict(zip(move.drop, losses - base, strict=True))
    assert rise["stem"] > 0.5
    assert rise["mid"] == pytest.approx(0, abs=1e-6)


def test_towards_a_target_the_dear_layer_is_spared() -> None:
    session = pl.Session(Faint().eval(), FAINT, pl.AOFP(), repair=None)
    assert set(session.propose(target_macs=0.6).drop) == {"mid"}
    session.run(target_macs=0.6)
    assert session.evaluate("val")["accuracy"] == 1.0
    assert set(session.plan.kept["stem"]) >= {0, 1, 2, 3}
    assert session.state.now.cost.macs <= 0.6 * session.state.base.cost.macs


def test_a_dear_layer_is_taken_where_nothing_else_passes() -> None:
    graph = pl.trace(Faint().eval(), FAINT.train[0][0], freeze=["mid"])
    session = pl.Session(Faint().eval(), FAINT, pl.AOFP(), graph=graph, repair=None)
    assert set(session.propose(target_macs=0.6).drop) == {"stem"}


def test_a_move_towards_a_target_is_the_same_every_time(trained: nn.Module, data: pl.Data) -> None:
    first, second = (pl.Session(trained, data, pl.AOFP(theta=0.01)) for _ in range(2))
    move = first.propose(target_macs=0.5)
    assert move == second.propose(target_macs=0.5)
    assert move.before.macs - move.after.macs >= STEP * move.before.macs


def test_images_without_labels_are_judged_by_the_signal_alone() -> None:
    images = [x for x, _ in FAINT.train]

    def spread(model: nn.Module, loader: object) -> float:
        with torch.no_grad():
            return float(model(images[0]).var())

    data = pl.Data(train=images, val=images)
    session = pl.Session(Faint().eval(), data, pl.AOFP(), metrics={"spread": spread})
    move = session.propose(target_macs=0.6)
    assert move.drop
    assert move.after.macs < move.before.macs


class Heavy(nn.Module):
    """Convolutions and two hidden fully connected layers, as VGG has, and a token-wise layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3, 2), nn.Conv2d(6, 8, 3, 2)
        self.mix = nn.Linear(8, 10)
        self.fc1, self.fc2, self.out = nn.Linear(40, 12), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x).relu()).relu()
        x = self.mix(x.permute(0, 2, 3, 1)).relu().permute(0, 3, 1, 2)
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.out(self.fc2(self.fc1(x).relu()).relu())


@pytest.mark.parametrize("scoring", ["exact", "sampled"])
def test_fully_connected_layers_are_no_targets_unless_all_are(scoring: str, data: pl.Data) -> None:
    how = {"scoring": scoring, "theta": inf, "batches": 1, "warmup": 0}
    names = {}
    for groups in ("internal", "all"):
        session = pl.Session(Heavy(), data, pl.AOFP(groups=groups, **how), repair=None)
        session.propose()
        names[groups] = {rung.group for rung in session.state.proposed.seen}
    assert names["internal"] == {"a", "b", "mix"}  # mix is applied at every position
    assert scoring == "sampled" or "fc1" in names["all"]
    assert {g.name for g in session.graph if g.fully_connected} == {"fc1", "fc2", "out"}
    with pytest.raises(pl.BudgetUnreachable, match="fully connected"):
        pl.Session(Heavy(), data, repair=None).run(target_macs=0.05)


def test_vgg16s_fully_connected_layers_stay() -> None:
    models = pytest.importorskip("torchvision.models")
    graph = pl.trace(models.vgg16(weights=None).eval(), torch.zeros(1, 3, 32, 32))
    names = {group.name for group in graph if group.prunable and group.fully_connected}
    assert names == {"classifier.0", "classifier.3"}
