"""ThiNet's invariants: greedy and pursuit against brute force, the refit, and layer by layer."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from toys import Tiny, batches, measured

import prunelab as pl
from prunelab.evidence import AimedGram, ConsumerGram, ContributionGram, aiming, damage_curve
from prunelab.graph.channels.channel_graph import FIXED
from prunelab.ledger.events import Repaired
from prunelab.loops.batch import finish
from prunelab.methods.layerwise import keep_factors
from prunelab.methods.thinet import by_greedy, by_omp, greedy_removal, matching_pursuit
from prunelab.methods.thinet_samples import (
    draw_scalars,
    iter_stratified,
    scalar_rows,
)
from prunelab.repair.rescale import factors

seeds = st.integers(0, 10_000)
patient = settings(deadline=None, max_examples=40)  # the machine may be busy


def columns(seed: int, n: int, rows: int = 60) -> np.ndarray:
    """Correlated contributions [n, rows]."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n)) @ rng.normal(size=(n, rows)) + 0.3


def gram_of(z: np.ndarray) -> ContributionGram:
    units, gram = tuple(range(len(z))), z @ z.T
    consumer = ConsumerGram("next", units, gram, gram.sum(1), float(gram.sum()))
    return ContributionGram("layer", units, {"next": consumer})


def aimed(z: np.ndarray, y: np.ndarray) -> AimedGram:
    """Contributions z [n, rows] against an aim y [rows] of one output."""
    energy, sums, total = float(y @ y), z.sum(1, keepdims=True), np.array([y.sum()])
    return AimedGram(np.arange(len(z)), z @ z.T, z @ y, energy, sums, total, z.shape[1])


def unexplained(z: np.ndarray, kept: list[int], y: np.ndarray) -> float:
    fit = np.linalg.lstsq(z[kept].T, y, rcond=None)[0] if kept else np.zeros(0)
    return float(np.sum((y - fit @ z[kept]) ** 2)) if kept else float(y @ y)


def test_swaps_leave_a_set_that_no_exchange_betters(trained: nn.Module, data: pl.Data) -> None:
    damages = {}
    for selection in ("greedy", "swaps"):
        method = pl.ThiNet(pruning_ratio={"conv1": 0.5}, selection=selection, images=256)
        session = pl.Session(trained, data, method=method)
        move = session.propose()
        assert move is not None
        damages[selection] = move.damage["conv1"]
    gram, gone = session.evidence.evidence["conv1"], set(move.drop["conv1"])
    assert damages["swaps"] <= damages["greedy"]
    for out in gone:
        for into in set(gram.units) - gone:
            assert gram.damage(gone - {out} | {into}) >= damages["swaps"] * (1 - 1e-6)
    scores = next(item for item in session.state.proposed.seen if isinstance(item, pl.Importance))
    value = dict(zip(scores.units, scores.values, strict=True))
    assert max(value[u] for u in gone) <= min(value[u] for u in set(gram.units) - gone)


@patient
@given(seeds)
def test_what_goes_first_is_ordered_greedily_in_itself(seed: int) -> None:
    z = columns(seed, 7)
    gram = z @ z.T
    order, values = greedy_removal(gram, [5, 1, 4])
    assert set(order[:3]) == {1, 4, 5} and sorted(order) == list(range(7))
    for step in range(7):
        gone = order[: step + 1]
        assert values[step] == pytest.approx(max(0.0, gram[np.ix_(gone, gone)].sum()))
    inside, _ = greedy_removal(gram[np.ix_([1, 4, 5], [1, 4, 5])])
    assert order[:3] == [[1, 4, 5][i] for i in inside]


# ---------------------------------------------------------------- greedy


@patient
@given(seeds, st.integers(2, 8))
def test_greedy_takes_the_smallest_sum_at_every_step(seed: int, n: int) -> None:
    z = columns(seed, n)
    order, lost = greedy_removal(z @ z.T)
    gone: list[int] = []
    for index, value in zip(order, lost, strict=True):
        options = {j: np.sum(z[[*gone, j]].sum(0) ** 2) for j in range(n) if j not in gone}
        assert options[index] == pytest.approx(min(options.values()), rel=1e-6)
        assert value == pytest.approx(options[index], rel=1e-6)
        gone.append(index)


@patient
@given(seeds, st.integers(3, 8))
def test_greedy_is_never_better_than_brute_force_and_exact_for_one(seed: int, n: int) -> None:
    z = columns(seed, n)
    _, lost = greedy_removal(z @ z.T)
    for k in range(1, n):
        best = min(np.sum(z[list(s)].sum(0) ** 2) for s in combinations(range(n), k))
        assert lost[k - 1] >= best * (1 - 1e-9)
        if k == 1:
            assert lost[0] == pytest.approx(best)


@patient
@given(seeds, st.integers(3, 8))
def test_greedy_is_exact_for_orthogonal_contributions(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    z = np.linalg.qr(rng.normal(size=(40, n)))[0].T * rng.uniform(0.1, 3, size=(n, 1))
    _, lost = greedy_removal(z @ z.T)
    np.testing.assert_allclose(lost, np.cumsum(np.sort(np.sum(z**2, 1))), rtol=1e-9)


def test_greedy_misses_a_cancelling_pair_which_brute_force_finds() -> None:
    z = columns(0, 6)
    z[5] = -z[2]
    z[[2, 5]] *= 3
    order, lost = greedy_removal(z @ z.T)
    assert np.sum(z[[2, 5]].sum(0) ** 2) == 0
    assert set(order[:2]) != {2, 5}
    assert lost[1] > 0


@patient
@given(seeds)
def test_a_permutation_of_channels_permutes_both_orders(seed: int) -> None:
    z, shuffle = columns(seed, 7), np.random.default_rng(seed).permutation(7)
    for order in (lambda g: greedy_removal(g)[0], lambda g: matching_pursuit(g)[0]):
        plain, mixed = order(z @ z.T), order(z[shuffle] @ z[shuffle].T)
        assert [int(shuffle[i]) for i in mixed] == plain


def test_importance_tells_the_order_of_removal_and_the_damage_by_then() -> None:
    gram = gram_of(columns(4, 9))
    order, importance = by_greedy(gram)
    told = [importance.values[unit] for unit in order]
    assert told == sorted(told)
    for k in range(1, 10):
        assert told[k - 1] >= gram.damage(order[:k]) - 1e-9
    assert told[-1] >= 1  # all of it


@patient
@given(seeds, st.integers(1, 8))
def test_damage_curves_follow_thinets_greedy_order(seed: int, n: int) -> None:
    gram = gram_of(columns(seed, n))
    order, values = greedy_removal(gram.gram)
    curve = damage_curve(gram)
    assert list(curve.order) == [gram.units[index] for index in order]
    assert curve.damages == tuple((values / gram.energy).tolist())
    assert curve.first(3) == tuple(sorted(order[:3]))


# ---------------------------------------------------------------- matching pursuit


@patient
@given(seeds, st.integers(2, 8))
def test_pursuit_is_matching_pursuit_with_a_refit_at_every_step(seed: int, n: int) -> None:
    z = columns(seed, n)
    y = z.sum(0)
    order, left = matching_pursuit(z @ z.T)
    kept: list[int] = []
    for index, missing in zip(order, left, strict=True):
        assert missing == pytest.approx(unexplained(z, kept, y), rel=1e-4, abs=1e-6 * (y @ y))
        if missing < 1e-6 * (y @ y):
            break  # nothing is left to tell columns apart by
        fit = np.linalg.lstsq(z[kept].T, y, rcond=None)[0] @ z[kept] if kept else 0 * y
        scores = (z @ (y - fit)) ** 2 / np.sum(z**2, 1)
        scores[kept] = -1
        assert scores[index] == pytest.approx(scores.max(), rel=1e-4)
        kept.append(index)


def test_pursuit_drops_duplicates_and_dead_channels_which_greedy_does_not() -> None:
    z = columns(1, 8)
    z[3] = z[0]
    z[5] = 0
    order, left = matching_pursuit(z @ z.T)
    assert order[-1] == 5
    assert order[-2] in (0, 3)
    assert left[-1] == pytest.approx(0, abs=1e-8 * np.sum(z.sum(0) ** 2))
    assert by_omp(gram_of(z))[0][0] == 5
    assert greedy_removal(z @ z.T)[0][0] == 5
    assert greedy_removal(z @ z.T)[1][1] > 1e-3  # the duplicate is not free without a refit


def test_a_group_without_signal_is_ordered_all_the_same() -> None:
    for order in (by_greedy, by_omp):
        ranked, importance = order(gram_of(np.zeros((4, 5))))
        assert sorted(ranked) == [0, 1, 2, 3]
        assert importance.values == (0.0,) * 4


@patient
@given(seeds, st.integers(2, 8))
def test_rows_in_another_order_choose_the_same_and_fewer_are_a_prefix(seed: int, n: int) -> None:
    z = columns(seed, n)
    shuffle = np.random.default_rng(seed).permutation(z.shape[1])
    for order in (lambda g: greedy_removal(g)[0], lambda g: matching_pursuit(g)[0]):
        whole = order(z @ z.T)
        assert order(z[:, shuffle] @ z[:, shuffle].T) == whole
    assert greedy_removal(z @ z.T)[0][: n - 1] == greedy_removal((2 * z) @ (2 * z).T)[0][: n - 1]


# ---------------------------------------------------------------- the refit


@patient
@given(seeds, st.integers(2, 6))
def test_factors_are_the_least_squares_of_raw_samples(seed: int, n: int) -> None:
    z = columns(seed, n + 2)
    y, kept = z.sum(0), z[:n]
    want = np.linalg.lstsq(kept.T, y, rcond=None)[0]
    found = factors(aimed(kept, y), aimed(kept, y))  # judged by themselves: the least ridge
    error, best = np.sum((y - found @ kept) ** 2), np.sum((y - want @ kept) ** 2)
    assert error <= best + 1e-5 * (y @ y)
    assert error <= np.sum((y - kept.sum(0)) ** 2) + 1e-9 * (y @ y)
    assert np.abs(kept @ (y - found @ kept)).max() <= 1e-4 * np.abs(kept @ y).max() + 1e-4


def test_the_survivor_of_a_duplicate_doubles_and_a_dead_channel_keeps_one() -> None:
    z = columns(2, 5)
    z[4] = z[1]
    y = z.sum(0)
    kept = np.vstack([z[:4], 0 * y])
    gram = aimed(kept, y)
    np.testing.assert_allclose(factors(gram, gram), [1, 2, 1, 1, 1], atol=1e-3)
    np.testing.assert_array_equal(factors(gram, None), 1)  # nothing judges it
    both = np.vstack([z, 0 * y])
    np.testing.assert_allclose(factors(aimed(both, y), aimed(both, y)), 1, atol=1e-6)


def test_factors_that_do_not_hold_on_other_samples_are_not_taken() -> None:
    z, other = columns(2, 40)[:, :45], columns(3, 40)
    noise = np.random.default_rng(0).normal(size=45)
    solved = aimed(z, z.sum(0) + 5 * noise)
    np.testing.assert_array_equal(factors(solved, aimed(other, other.sum(0))), 1)


def test_inputs_of_no_unit_keep_their_weight() -> None:
    z = columns(3, 4)
    gram = aimed(z, z.sum(0) + z[0])
    fixed = AimedGram(
        np.array([0, 1, 2, FIXED]), gram.gram, gram.cross, gram.energy, gram.sums, gram.aims, 60
    )
    found = factors(fixed, fixed)
    assert found[3] == 1
    np.testing.assert_allclose(found[:3], [2, 1, 1], atol=1e-2)


# ---------------------------------------------------------------- aims, on a network


def doubled(model: nn.Module) -> Tiny:
    same = Tiny()
    same.load_state_dict(model.state_dict())
    return same.double().eval()


def block(model: Tiny, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What conv2 reads, what it gives, and its shortcut."""
    shortcut = F.relu(model.bn0(model.stem(x)))
    inside = F.relu(model.bn1(model.conv1(shortcut)))
    return inside, model.conv2(inside), shortcut


def test_the_last_layer_of_a_branch_aims_at_what_its_shortcut_lost_too(trained: nn.Module) -> None:
    target, model = doubled(trained), doubled(trained)
    x = batches(32, 7)[0][0].double()
    graph = pl.trace(target, x)
    with torch.no_grad():
        model.stem.weight *= 1.3
    plan = pl.WidthPlan.full(graph).drop({"conv1": [0, 5], "stem": [3]})
    small, after = pl.cut(model, graph, plan), graph.after(plan)
    found = finish(aiming(small, after, target, graph, [x], ["conv2"]))["conv2"]
    with torch.no_grad():
        inside, _, now = block(small, x)
        _, y, then = block(target, x)
        kept = [u for u in range(8) if u != 3]
        scale = (target.bn2.weight / torch.sqrt(target.bn2.running_var + target.bn2.eps))[kept]
        want = y[:, kept] + (then[:, kept] - now) / scale.view(1, -1, 1, 1)
        z = torch.stack(
            [F.conv2d(inside[:, i : i + 1], small.conv2.weight[:, i : i + 1], padding=1)
             for i in range(10)]
        ).flatten(1)  # fmt: skip
    np.testing.assert_allclose(found.gram, (z @ z.T).numpy(), rtol=1e-9)
    np.testing.assert_allclose(found.cross, (z @ want.flatten()).numpy(), rtol=1e-9)
    assert found.energy == pytest.approx(float(want.square().sum()))
    flat = z.view(10, 32, 7, -1) - z.view(10, 32, 7, -1).mean((1, 3), keepdim=True)
    aim = want.flatten(2) - want.flatten(2).mean((0, 2), keepdim=True)
    np.testing.assert_allclose(
        found.centred.cross, (flat.flatten(1) @ aim.flatten()).numpy(), rtol=1e-8
    )
    assert found.centred.energy == pytest.approx(float(aim.square().sum()))


def test_an_unpruned_shortcut_leaves_the_aim_to_the_original_output(trained: nn.Module) -> None:
    model = doubled(trained)
    x = batches(32, 7)[0][0].double()
    graph = pl.trace(model, x)
    plan = pl.WidthPlan.full(graph).drop({"conv1": [0, 5]})
    small, after = pl.cut(model, graph, plan), graph.after(plan)
    found = finish(aiming(small, after, model, graph, [x], ["conv2"]))["conv2"]
    whole = pl.measure(model, graph, [x])["conv1"].consumers["conv2"]
    kept = [u for u in range(12) if u not in (0, 5)]
    np.testing.assert_allclose(found.cross, whole.cross[kept], rtol=1e-9)
    assert found.energy == pytest.approx(whole.energy)


def test_rescaling_brings_a_layer_nearer_to_the_original(trained: nn.Module, data: pl.Data) -> None:
    x = batches(64, 5)[0][0]
    errors = {}
    for repair in (None, "rescale"):
        method = pl.ThiNet(pruning_ratio={"conv1": 0.6}, images=128)
        session = pl.Session(trained, data, method=method, repair=repair)
        session.propose()
        session.approve()
        with torch.no_grad():
            _, y, _ = block(session.model, x)
            _, want, _ = block(trained, x)
        errors[repair] = float((y - want).square().sum() / want.square().sum())
        event = session.ledger[-1]
        assert isinstance(event, Repaired) == (repair is not None)
    assert event.kind == "rescale"
    assert event.automatic
    assert errors["rescale"] < errors[None]


def test_rescaling_again_changes_nothing_more(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, method=pl.ThiNet(pruning_ratio={"conv3": 0.5}), repair=None)
    session.propose()
    session.approve()
    plain = session.model.fc.weight.clone()
    session.repair("rescale")
    assert session.ledger[-1].kind == "rescale"
    once = session.model.fc.weight.clone()
    ratios = (once / plain).detach()
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))  # one factor a channel
    session.repair("rescale")
    change = (session.model.fc.weight - once).norm() / (once - plain).norm()
    assert change < 0.01  # the ridge lets faint channels go the rest of their way


# ---------------------------------------------------------------- ThiNet's sample


@pytest.mark.parametrize("name", ["conv2", "conv3", "fc"])
def test_a_sampled_row_adds_up_to_the_output_it_was_drawn_from(
    trained: nn.Module, name: str
) -> None:
    from prunelab.evidence.gram_collector import columns_of
    from prunelab.graph.labels.layer_calls import Call, Watch

    model = doubled(trained)
    x = batches(32, 8)[0][0].double()
    graph = pl.trace(model, x)
    layer = graph.layer(name)
    columns_, count = columns_of(layer)

    class Look(Watch):
        def on_call(self, call: Call, out: torch.Tensor) -> None:
            if call.name != layer.weight:
                return
            given = (call.x, call.weight.detach(), call.conv, columns_, count)
            rows, _ = scalar_rows(*given, 5, torch.Generator().manual_seed(1))
            y = out if call.bias is None else out - call.bias.view(1, -1, *[1] * (out.ndim - 2))
            y = y.flatten(2).transpose(1, 2).flatten(1) if y.ndim > 2 else y
            image, scalar = draw_scalars(len(y), y.shape[1], 5, torch.Generator().manual_seed(1))
            torch.testing.assert_close(rows.sum(1), y[image, scalar])
            self.seen = len(rows)

    with torch.no_grad(), Look(model) as look:
        model(x)
    assert look.seen == 32 * 5


@pytest.mark.parametrize("what", ["positions", "scalars"])
def test_samples_agree_with_the_exact_gram_the_better_the_more(
    trained: nn.Module, what: str
) -> None:
    xs = [x for x, _ in batches(128, 9)]
    graph = pl.trace(trained, xs[0])
    exact = pl.measure(trained, graph, xs)["conv1"].alone()

    def sampled(number: int) -> ContributionGram:
        return measured(trained, graph, xs, **{what: number}, seed=3)["conv1"]

    def error(number: int) -> float:
        return float(np.abs(sampled(number).alone() - exact).sum() / exact.sum())

    most = {"positions": 100, "scalars": 400}[what]
    assert error(most) < error(4)
    assert error(most) < 0.1
    np.testing.assert_array_equal(sampled(4).gram, sampled(4).gram)


def test_images_are_counted_by_class() -> None:
    labels = torch.cat([y for _, y in iter_stratified(batches(256, 1), 7)])
    assert torch.bincount(labels).tolist() == [7, 7, 7, 7]
    with pytest.raises(pl.BadData, match="class"):
        list(iter_stratified([torch.zeros(3, 1, 12, 12)], 7))


def test_published_sampling_proposes_and_is_repeatable(trained: nn.Module, data: pl.Data) -> None:
    method = pl.ThiNet(per_class=10, positions=10)
    moves = [pl.Session(trained, data, method=method, seed=s).propose() for s in (1, 1)]
    assert moves[0] == moves[1]
    assert len(moves[0].drop["conv1"]) == 6


# ---------------------------------------------------------------- layer by layer


def widths(session: pl.Session) -> dict[str, int]:
    return session.state.widths()


def test_layers_are_pruned_front_to_back_and_only_inside_blocks(
    trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data, method="thinet")
    seen = []
    while (move := session.propose()) is not None:
        seen.append(list(move.drop))
        session.approve()
    assert seen == [["conv1"], ["conv3"]]  # stem and conv2 make the residual stream
    assert (widths(session)["conv1"], widths(session)["conv3"]) == (6, 8)
    assert session.state.exhausted


def test_the_ratio_is_of_the_original_width_and_one_always_stays(
    trained: nn.Module, data: pl.Data
) -> None:
    method = pl.ThiNet(pruning_ratio=0.99, groups="all")
    session = pl.Session(trained, data, method=method, repair=None)
    while session.propose() is not None:
        session.approve()
    assert {n: w for n, w in widths(session).items() if n != "fc"} == {
        "stem": 1, "conv1": 1, "conv3": 1,
    }  # fmt: skip
    session.method = pl.ThiNet(pruning_ratio=0.3)
    assert session.propose() is None


def test_an_adjusted_layer_is_not_asked_again_but_a_rejected_one_is(
    trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data, method="thinet")
    session.propose()
    session.reject()
    assert list(session.propose().drop) == ["conv1"]
    session.adjust({"conv1": [0]})
    session.approve()
    assert list(session.propose().drop) == ["conv3"]
    session.undo()
    assert list(session.propose().drop) == ["conv1"]
    session.approve()
    session.method = pl.ThiNet(pruning_ratio=0.75)  # another schedule starts at the front
    assert list(session.propose().drop) == ["conv1"]


def test_a_resumed_session_goes_on_as_if_it_had_never_stopped(
    trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    path = tmp_path / "run.prunelab"
    method = pl.ThiNet(pruning_ratio={"conv1": 0.5, "conv3": 0.25})
    session = pl.Session(trained, data, method=method, path=path)
    session.propose()
    session.approve()
    want = session.propose()
    session.reject()
    again = pl.Session.open(path, model=Tiny(), data=data)
    assert again.method == method
    found = again.propose()
    assert (found.drop, found.carry) == (want.drop, want.carry)


@pytest.mark.parametrize("selection", ["greedy", "omp", "swaps"])
@pytest.mark.parametrize("target", [0.6, 0.45])
def test_towards_a_target_all_layers_give_the_same_share(
    trained: nn.Module, data: pl.Data, selection: str, target: float
) -> None:
    session = pl.Session(trained, data, method=pl.ThiNet(selection=selection))
    session.run(target_macs=target)
    base, now = session.state.base.cost.macs, session.state.now.cost.macs
    assert now <= target * base
    shares = [widths(session)["conv1"] / 12, widths(session)["conv3"] / 16]
    assert abs(shares[0] - shares[1]) < 2 / 12
    one = base / 12  # a unit of conv1 is the dearest step
    assert now > target * base - one


def test_a_target_out_of_reach_changes_nothing(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, method="thinet")
    with pytest.raises(pl.BudgetUnreachable) as caught:
        session.run(target_macs=0.01)
    assert caught.value.plan == pl.WidthPlan.full(session.graph)
    assert session.state.moves == 0


def test_the_conv_schedule_spares_the_last_resolution(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, method=pl.ThiNet(schedule="conv"))
    assert list(session.propose().drop) == ["conv1"]
    session.approve()
    assert session.propose() is None
    vgg = pl.zoo.load("vgg8", pretrained=False)
    graph = pl.trace(vgg, torch.zeros(1, 1, 28, 28))
    keeps = keep_factors("conv", graph, [g for g in graph.groups if g.prunable])
    assert [name for name, times in keeps.items() if times == 1] == [
        "conv1", "conv2", "conv3", "conv4",
    ]  # fmt: skip


class VGG16(nn.Module):
    """The thirteen convolutions of VGG-16, an eighth as wide, under a global average pool."""

    def __init__(self) -> None:
        super().__init__()
        stages = {1: (8, 8), 2: (16, 16), 3: (32, 32, 32), 4: (64, 64, 64), 5: (64, 64, 64)}
        before, self.names = 1, []
        for stage, widths in stages.items():
            for index, width in enumerate(widths, start=1):
                name = f"conv{stage}_{index}"
                self.add_module(name, nn.Conv2d(before, width, 3, padding=1))
                self.names.append(name)
                before = width
        self.fc = nn.Linear(before, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            if name.endswith("_1") and name != "conv1_1":
                x = F.max_pool2d(x, 2)
            x = F.relu(self.get_submodule(name)(x))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("method", "want"),
    [
        (  # ThiNet-Conv and, with this head, ThiNet-GAP: the first ten halved, conv5 whole
            pl.ThiNet(schedule="conv", images=8),
            [4, 4, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64],
        ),
        (  # the widths of ThiNet-Tiny
            pl.ThiNet(
                pruning_ratio={
                    **dict.fromkeys(("conv1_1", "conv1_2", "conv2_1", "conv2_2"), 0.75),
                    **dict.fromkeys(("conv3_1", "conv3_2"), 0.75),
                    "conv3_3": 0.75,
                    **{f"conv4_{i}": 0.75 for i in (1, 2, 3)},
                    **{f"conv5_{i}": share for i, share in ((1, 0.75), (2, 0.75), (3, 0.5))},
                },
                images=8,
            ),
            [2, 2, 4, 4, 8, 8, 8, 16, 16, 16, 16, 16, 32],
        ),
    ],
)
def test_the_published_widths_of_vgg16(method: pl.ThiNet, want: list[int]) -> None:
    x = torch.randn(8, 1, 32, 32)
    images = [(x, torch.arange(8) % 4)]
    session = pl.Session(VGG16(), pl.Data(train=images, val=images), method, repair=None)
    while session.propose() is not None:
        session.approve()
    widths = session.plan.widths
    assert [widths[name] for name in VGG16().names] == want


@pytest.mark.parametrize(
    "wrong",
    [
        {"pruning_ratio": 1.0},
        {"pruning_ratio": -0.1},
        {"pruning_ratio": "half"},
        {"pruning_ratio": {"conv1": 2}},
        {"pruning_ratio": {"conv1": 0.5}, "schedule": "conv"},
        {"schedule": "shallow"},
        {"selection": "lasso"},
        {"groups": "some"},
        {"images": 0},
        {"positions": 0},
        {"per_class": 0},
    ],
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(pl.InvalidValue):
        pl.ThiNet(**wrong)


def test_a_ratio_for_a_group_that_is_not_there_is_refused(
    trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data, method=pl.ThiNet(pruning_ratio={"conv9": 0.5}))
    with pytest.raises(pl.UnknownName, match="conv9"):
        session.propose()
