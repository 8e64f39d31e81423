"""The loss oracle: cached runs against full runs, conditional and greedy against all subsets."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from toys import Couplings, Tiny, batches

import prunelab as pl
from prunelab.evidence.ablation import Ablator


class InPlace(nn.Module):
    """Writes into what ran before: an in-place add on a shortcut, views, a sum on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 5, 1)
        self.fc = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x), inplace=True)
        total = torch.zeros_like(x)
        y = self.b(x.view(x.shape))
        y.transpose(2, 3).mul_(0.5)
        x += y  # the shortcut is written into after self.b has read it
        total.add_(x)
        y = self.d(F.silu(self.c(x)))
        total[:, :, 0] *= 2  # and this after self.d
        return self.fc(torch.tanh(torch.cat([total, y], 1).mean((2, 3))))


def networks() -> list[tuple[nn.Module, Tensor, Tensor]]:
    torch.manual_seed(3)
    x = torch.randn(6, 2, 8, 8, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    return [(Couplings().double().eval(), x, y), (InPlace().double().eval(), x[:, :1], y)]


def plain_loss(model: nn.Module, graph: pl.ChannelGraph, drop: Any, x: Tensor, y: Tensor) -> float:
    """The loss of a masked copy, run whole."""
    full = pl.WidthPlan.full(graph)
    with torch.no_grad():
        return float(F.cross_entropy(pl.masked(model, graph, full.drop(drop))(x), y))


@pytest.mark.parametrize("which", [0, 1])
def test_a_cached_prefix_gives_the_losses_of_whole_runs(which: int) -> None:
    model, x, y = networks()[which]
    graph = pl.trace(model, x[:1])
    names = [group.name for group in graph if group.prunable]
    assert names
    drops: list[dict[str, tuple[int, ...]]] = [{}]
    drops += [{name: (unit,)} for name in reversed(names) for unit in graph[name].units]
    drops += [dict.fromkeys(names, (0,)), {names[-1]: (1,), names[0]: (0, 1)}, {}]
    want = [plain_loss(model, graph, drop, x, y) for drop in drops]
    assert len(set(want)) > len(want) / 2
    found = pl.ablate(model, graph, [(x, y)], drops)
    np.testing.assert_allclose(found, want, rtol=1e-12)
    whole = Ablator(model, graph, lambda net, b: F.cross_entropy(net(b[0]), b[1]), cached=False)
    losses = dict(whole.measure((x, y), drops))
    np.testing.assert_allclose([losses[i] for i in range(len(drops))], want, rtol=1e-12)


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that really run."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ == "conv2d"
        return func(*args, **(kwargs or {}))


def test_only_what_follows_a_mask_runs_again(trained: nn.Module) -> None:
    x, y = batches(32, 4)[0]
    graph = pl.trace(trained, x)
    for group, runs in (("conv3", 4), ("conv1", 2 + 2 * 8), ("stem", 1 + 3 * 8)):
        with Convolutions() as mode:
            pl.ablate(trained, graph, [(x, y)], [{group: (unit,)} for unit in range(8)])
        assert mode.count == runs, group


def test_views_of_the_user_s_own_tensors_are_taken_anew() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 1)).double()
    images = list(torch.randn(5, 1, 6, 6, dtype=torch.float64))
    labels = torch.tensor([0, 1, 2, 0, 1])
    graph = pl.trace(model, images[0][None])

    def loss(network: nn.Module, batch: tuple[list[Tensor], Tensor]) -> Tensor:
        maps = [network(image[None])[0].mean((1, 2)) for image in batch[0]]
        return F.cross_entropy(torch.stack(maps), batch[1])

    drops = [{}, *({"0": (unit,)} for unit in range(4))]
    found = pl.ablate(model, graph, [(images, labels)], drops, loss=loss)
    full = pl.WidthPlan.full(graph)
    with torch.no_grad():
        want = [float(loss(pl.masked(model, graph, full.drop(d)), (images, labels))) for d in drops]
    np.testing.assert_allclose(found, want, rtol=1e-12)


def test_a_network_that_draws_at_random_is_still_run_right() -> None:
    class Noisy(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.1 * torch.rand_like(x))

    x, y = batches(32, 4)[0]
    model = Noisy().eval()
    graph = pl.trace(model, x)
    drops = [{"conv1": (unit,)} for unit in range(4)]

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(batch[0]), batch[1])

    torch.manual_seed(5)
    found = pl.ablate(model, graph, [(x, y)], drops, loss=loss)
    torch.manual_seed(5)
    whole = dict(Ablator(model, graph, loss, cached=False).measure((x, y), drops))
    np.testing.assert_allclose(found, [whole[i] for i in range(4)], rtol=1e-6)


def test_a_forward_that_changes_its_mind_is_run_anew(trained: nn.Module) -> None:
    class Turning(Tiny):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            type(self).calls += 1
            return super().forward(x * 1.0 if type(self).calls % 2 else x + 0.0)

    x, y = batches(32, 4)[0]
    model = Turning()
    model.load_state_dict(trained.state_dict())
    model.eval()
    graph = pl.trace(model, x)
    drops = [{"conv1": (unit,)} for unit in range(4)]
    want = [plain_loss(trained, pl.trace(trained, x), drop, x, y) for drop in drops]
    np.testing.assert_allclose(pl.ablate(model, graph, [(x, y)], drops), want, rtol=1e-5)


def test_ablation_leaves_no_trace(trained: nn.Module) -> None:
    model = type(trained)()
    model.load_state_dict(trained.state_dict())
    model.train()
    few = batches(64, 4)
    graph = pl.trace(model, few[0][0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = [x.clone() for x, _ in few]
    rng = torch.get_rng_state()
    pl.measure(model, graph, few, kinds=("ablation",))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model.training
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(a, b) for a, (b, _) in zip(images, few, strict=True))


def test_single_conditional_and_evidence_agree_and_add_up(trained: nn.Module) -> None:
    few = batches(96, 4)
    graph = pl.trace(trained, few[0][0])
    whole = pl.measure(trained, graph, few, kinds=("ablation",))
    parts = [pl.measure(trained, graph, some, kinds=("ablation",)) for some in (few[:1], few[1:])]
    np.testing.assert_allclose((parts[0] + parts[1]).ablated, whole.ablated, rtol=1e-6)
    one = whole.ablation("conv1")
    losses = pl.ablate(trained, graph, few, [{}, *({"conv1": (u,)} for u in one.units)])
    assert one.base == pytest.approx(losses[0])
    np.testing.assert_allclose(one.signed, losses[1:] - losses[0], atol=1e-6)
    np.testing.assert_array_equal(one.absolute, abs(one.signed))
    with pytest.raises(pl.UnknownName, match="ablation"):
        whole.ablation("fc")
    with pytest.raises(pl.UnknownName, match="gradient"):
        whole.gradient("conv1")
    with pytest.raises(pl.StaleEvidence):
        whole + pl.measure(trained, graph, few, kinds=("gradient",))


def test_a_unit_that_nothing_reads_costs_nothing(trained: nn.Module) -> None:
    model = type(trained)()
    model.load_state_dict(trained.state_dict())
    model.eval()
    few = batches(32, 4)
    with torch.no_grad():
        model.conv2.weight[:, 3] = 0
    graph = pl.trace(model, few[0][0])
    one = pl.measure(model, graph, few, kinds=("ablation",)).ablation("conv1")
    assert one.signed[3] == 0
    assert np.count_nonzero(one.signed) == 11


def test_bad_batches_and_losses_are_told(trained: nn.Module) -> None:
    x, y = batches(32, 4)[0]
    graph = pl.trace(trained, x)
    with pytest.raises(pl.BadData, match="no batches"):
        pl.ablate(trained, graph, [], [{}])
    with pytest.raises(pl.BadData, match="cannot run on this batch"):
        pl.ablate(trained, graph, [(torch.randn(2, 3, 12, 12), y[:2])], [{}])
    with pytest.raises(pl.NotFinite, match="without"):
        pl.ablate(trained, graph, [(torch.full_like(x, torch.nan), y)], [{"conv1": (1,)}])
    with pytest.raises(pl.UnknownName, match="channel group"):
        pl.ablate(trained, graph, [(x, y)], [{"conv9": (1,)}])
    with pytest.raises(pl.IllegalPlan, match="does not have"):
        pl.ablate(trained, graph, [(x, y)], [{"conv1": (99,)}])


# ---------------------------------------------------------------- the method


def exhaustive(
    model: nn.Module, graph: pl.ChannelGraph, few: list[Any], group: str, k: int
) -> tuple[tuple[int, ...], float]:
    """The best set of k units, by trying them all."""
    sets = list(combinations(graph[group].units, k))
    losses = pl.ablate(model, graph, few, [{group: some} for some in sets])
    return sets[int(np.argmin(losses))], float(losses.min())


@pytest.mark.parametrize("greedy", [False, True])
def test_one_unit_is_the_best_there_is(trained: nn.Module, data: pl.Data, greedy: bool) -> None:
    few = list(data.train)[:1]
    method = pl.Oracle(images=32, greedy=greedy, pruning_ratio={"conv1": 1 / 12})
    session = pl.Session(trained, data, method=method)
    best, _ = exhaustive(trained, session.graph, few, "conv1", 1)
    assert dict(session.propose().drop) == {"conv1": best}


def test_greedy_is_greedy_and_no_better_than_the_best(trained: nn.Module, data: pl.Data) -> None:
    few = list(data.train)[:1]
    method = pl.Oracle(images=32, greedy=True, pruning_ratio={"stem": 0.375})
    session = pl.Session(trained, data, method=method)
    graph = session.graph
    found = session.propose().drop["stem"]
    gone: tuple[int, ...] = ()
    for _ in range(3):
        left = [unit for unit in graph["stem"].units if unit not in gone]
        losses = pl.ablate(trained, graph, few, [{"stem": (*gone, unit)} for unit in left])
        gone = (*gone, left[int(np.argmin(losses))])
    assert found == tuple(sorted(gone))
    reached = pl.ablate(trained, graph, few, [{"stem": found}])[0]
    assert reached >= exhaustive(trained, graph, few, "stem", 3)[1] - 1e-6
    (shown,) = session.state.proposed.seen
    assert shown.units == graph["stem"].units
    assert "last value before its removal" in shown.meaning


def test_greedy_stops_at_the_target_and_keeps_one_of_each(
    trained: nn.Module, data: pl.Data
) -> None:
    method = pl.Oracle(images=32, greedy=True, pruning_ratio={"conv1": 0.5, "conv3": 0.5})
    session = pl.Session(trained, data, method=method, repair=None)
    move = session.propose(target_macs=0.8)
    assert set(move.drop) <= {"conv1", "conv3"}
    goal = 0.8 * session.state.base.cost.macs
    assert move.after.macs <= goal
    session.reject()
    move = session.propose(target_macs=0.01)  # out of reach
    assert {name: len(units) for name, units in move.drop.items()} == {"conv1": 11, "conv3": 15}


def test_signed_and_absolute_rank_differently(trained: nn.Module, data: pl.Data) -> None:
    """A unit whose removal helps goes first when signed, and late when absolute."""
    model = Tiny()
    model.load_state_dict(trained.state_dict())
    model.eval()
    few = list(data.train)[:1]
    with torch.no_grad():
        model.fc.bias.add_(torch.tensor([3.0, 0.0, 0.0, 0.0]))  # wrong on most images
    graph = pl.trace(model, few[0][0])
    one = pl.measure(model, graph, few, kinds=("ablation",)).ablation("conv3")
    assert one.signed.min() < 0
    session = pl.Session(model, data, method=pl.Oracle(images=32))
    for signed in (True, False):
        session.method = pl.Oracle(images=32, signed=signed)
        session.propose()
        seen = {item.group: item.values for item in session.state.proposed.seen}
        want = one.signed if signed else one.absolute
        np.testing.assert_allclose(seen["conv3"], want, rtol=1e-4, atol=1e-6)
        session.reject()


def test_the_conditional_oracle_is_the_oracle_of_the_masked_network(
    trained: nn.Module, data: pl.Data
) -> None:
    few = list(data.train)[:1]
    graph = pl.trace(trained, few[0][0])
    plan = pl.WidthPlan.full(graph).drop({"conv1": [2, 5]})
    given = pl.masked(trained, graph, plan)
    units = [unit for unit in range(12) if unit not in (2, 5)]
    losses = pl.ablate(given, graph, few, [{}, *({"conv1": (unit,)} for unit in units)])
    want = pl.ablate(trained, graph, few, [{"conv1": (2, 5, unit)} for unit in units])
    np.testing.assert_allclose(losses[1:], want, rtol=1e-5)
    small = pl.cut(trained, graph, plan)  # and so of the network that is cut
    after = pl.measure(small, graph.after(plan), few, kinds=("ablation",)).ablation("conv1")
    assert list(after.units) == units
    np.testing.assert_allclose(after.losses, want, rtol=1e-4)
