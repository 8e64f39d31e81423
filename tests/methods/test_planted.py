"""Planted channels: each method's required decision on one small network.

They are: a channel that nothing reads, a dead one, two equal ones, two that cancel, one that is
scaled up and read by smaller weights, and channels in another order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl
from prunelab.values import Importance, Rung

N = 8  # channels of the layer `a`
P, Q = 2, 5  # the planted ones


class Planted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, N, 3), nn.Conv2d(N, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def images(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(96, 2, 7, 7, dtype=torch.float64, generator=generator)
    y = torch.randint(4, (96,), generator=generator)
    return list(zip(x.split(32), y.split(32), strict=True))


DATA = pl.Data(train=images(1), val=images(2))


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    """Nothing planted; trained for a few steps, so that the loss minds every channel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = Planted().double()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(20):
            for x, y in images(1):
                optimiser.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimiser.step()
    return model.eval()


def unread(model: Planted) -> None:
    model.b.weight[:, P] = 0


def dead(model: Planted) -> None:
    model.a.weight[P], model.a.bias[P] = 0, -1


def same(model: Planted) -> None:
    model.a.weight[Q], model.a.bias[Q] = model.a.weight[P], model.a.bias[P]
    model.b.weight[:, Q] = model.b.weight[:, P]


def cancelling(model: Planted) -> None:
    same(model)
    model.b.weight[:, Q] = -model.b.weight[:, P]


def scaled(model: Planted) -> None:
    model.a.weight[P] *= 7
    model.a.bias[P] *= 7
    model.b.weight[:, P] /= 7


ORDER = [3, 7, 0, 5, 1, 6, 2, 4]


def permuted(model: Planted) -> None:
    model.a.weight.copy_(model.a.weight[ORDER].clone())
    model.a.bias.copy_(model.a.bias[ORDER].clone())
    model.b.weight.copy_(model.b.weight[:, ORDER].clone())


def planted(plain: nn.Module, plant: Callable[[Planted], None]) -> Planted:
    model = copy.deepcopy(plain)
    with torch.no_grad():
        plant(model)
    return model


# ---------------------------------------------------------------- the methods


def method_of(name: str, k: int) -> Any:
    """The method that drops `k` channels of `a` in its first move (Group Fisher: one of any)."""
    ratio = {"pruning_ratio": {"a": k / N}}
    made: dict[str, Callable[[], Any]] = {
        "aofp": lambda: pl.AOFP(theta=1e-9),
        "greedy": lambda: pl.ThiNet(**ratio, selection="greedy"),
        "omp": lambda: pl.ThiNet(**ratio, selection="omp"),
        "channel_pruning": lambda: pl.ChannelPruning(**ratio),
        "group_fisher": lambda: pl.GroupFisher(training=False, normalise=None, share=0),
        "oracle": lambda: pl.Oracle(**ratio, signed=False),
        "elimination": lambda: pl.Elimination(**ratio),
    }
    return made[name]()


NAMES = ["aofp", "greedy", "omp", "channel_pruning", "group_fisher", "oracle", "elimination"]


def proposal(model: nn.Module, name: str, k: int = 1) -> tuple[set[int], list[Any]]:
    """The channels of `a` that go in the first move, and what was shown of `a`."""
    session = pl.Session(model, DATA, method_of(name, k), repair=None)
    move = session.propose()
    seen = [item for item in session.state.proposed.seen if item.group == "a"]
    return set(move.drop.get("a", ())) if move else set(), seen


def exhausted(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """All that AOFP drops at a tiny theta, move by move."""
    session = pl.Session(model, DATA, method_of("aofp", 1), repair=None)
    while session.propose() is not None:
        session.approve()
    return dict(session.plan.dropped)


def shown(seen: list[Any]) -> np.ndarray:
    """The scores of `a`, one for each channel: an Importance, or AOFP's first rung."""
    return np.array(
        next(
            item.values if isinstance(item, Importance) else item.damages
            for item in seen
            if isinstance(item, Importance | Rung)
        )
    )


def refitted_error(model: nn.Module, drop: set[int]) -> float:
    """The share of `b`'s output that the least-squares repair leaves amiss after this cut."""
    session = pl.Session(model, DATA, pl.FirstK(), repair="lstsq")
    session.propose()
    session.adjust({"a": drop})
    session.approve()
    outputs = []
    for network in (model, session.model):
        with torch.no_grad():
            found = [network.b(torch.relu(network.a(x))) for x, _ in DATA.train]
        outputs.append(torch.cat(found))
    want, got = outputs
    return float((want - got).square().sum() / want.square().sum())


# ---------------------------------------------------------------- what nobody misses


@pytest.mark.parametrize("plant", [unread, dead])
@pytest.mark.parametrize("name", NAMES)
def test_a_channel_without_effect_goes_first(
    plain: nn.Module, plant: Callable[[Planted], None], name: str
) -> None:
    model = planted(plain, plant)
    if name == "aofp":
        assert exhausted(model) == {"a": (P,)}
        return
    dropped, seen = proposal(model, name)
    assert dropped == {P}
    scores = shown(seen)
    if name in ("group_fisher", "oracle", "greedy", "channel_pruning"):
        assert scores[P] == pytest.approx(0, abs=1e-12)
        assert np.delete(scores, P).min() > 1e-9
    else:
        assert scores.argmin() == P


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_free_where_nothing_is_planted(plain: nn.Module, name: str) -> None:
    if name == "aofp":
        assert exhausted(plain) == {}
    else:
        assert shown(proposal(plain, name)[1]).min() > 1e-9


# ---------------------------------------------------------------- duplicates


def test_of_duplicates_aofp_drops_none(plain: nn.Module) -> None:
    assert exhausted(planted(plain, same)) == {}


@pytest.mark.parametrize("name", ["omp", "channel_pruning", "elimination"])
def test_of_duplicates_one_goes_where_a_refit_is_counted_on(plain: nn.Module, name: str) -> None:
    model = planted(plain, same)
    dropped, _ = proposal(model, name)
    assert len(dropped) == 1
    assert dropped < {P, Q}
    assert refitted_error(model, dropped) < 1e-9
    assert refitted_error(model, {0}) > 1e-4


@pytest.mark.parametrize("name", ["greedy", "group_fisher", "oracle"])
def test_to_the_others_a_duplicate_is_not_free_but_the_pair_is_alike(
    plain: nn.Module, name: str
) -> None:
    scores = shown(proposal(planted(plain, same), name)[1])
    if name != "greedy":  # which tells of a channel in its turn
        assert scores[P] == pytest.approx(scores[Q], rel=1e-4)
    assert min(scores[P], scores[Q]) > 1e-7


# ---------------------------------------------------------------- a pair that cancels


def test_a_cancelling_pair_does_no_damage_together(plain: nn.Module) -> None:
    model = planted(plain, cancelling)
    graph = pl.trace(model, DATA.train[0][0])
    gram = pl.measure(model, graph, DATA.train)["a"]
    assert gram.damage([P, Q]) == pytest.approx(0, abs=1e-12)
    assert min(gram.damage([P]), gram.damage([Q])) > 1e-3
    base, both, one, other = pl.ablate(
        model, graph, DATA.train, [{}, {"a": [P, Q]}, {"a": [P]}, {"a": [Q]}]
    )
    assert both == pytest.approx(base, abs=1e-12)
    assert min(abs(one - base), abs(other - base)) > 1e-5


@pytest.mark.parametrize("name", ["omp", "channel_pruning", "elimination"])
def test_a_cancelling_pair_goes_where_a_refit_is_counted_on(plain: nn.Module, name: str) -> None:
    model = planted(plain, cancelling)
    assert proposal(model, name, k=2)[0] == {P, Q}
    assert refitted_error(model, {P, Q}) < 1e-9


def test_the_masks_of_a_cancelling_pair_pull_in_opposite_directions(plain: nn.Module) -> None:
    model = planted(plain, cancelling)
    graph = pl.trace(model, DATA.train[0][0])
    found = pl.measure(model, graph, DATA.train, kinds=("gradient",)).gradient("a")
    assert found.signed[P] == pytest.approx(-found.signed[Q], rel=1e-9)
    assert found.square[P] == pytest.approx(found.square[Q], rel=1e-9)
    assert found.square[P] > 0  # under one shared mask the sum before the square would be none


# ---------------------------------------------------------------- the same, written otherwise


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_scaling_a_channel_and_its_readers_back_changes_no_score(
    plain: nn.Module, name: str, k: int
) -> None:
    dropped, seen = proposal(plain, name, k)
    again, seen_again = proposal(planted(plain, scaled), name, k)
    assert again == dropped
    np.testing.assert_allclose(shown(seen_again), shown(seen), rtol=1e-3)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_channels_in_another_order_are_the_same_channels(
    plain: nn.Module, name: str, k: int
) -> None:
    dropped, seen = proposal(plain, name, k)
    moved, seen_moved = proposal(planted(plain, permuted), name, k)
    assert {ORDER[unit] for unit in moved} == dropped
    np.testing.assert_allclose(shown(seen_moved), shown(seen)[ORDER], rtol=1e-6, atol=1e-12)


# ---------------------------------------------------------------- what all have in common


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("aofp", "group_fisher")])
def test_where_nothing_is_to_go_nothing_is_proposed(plain: nn.Module, name: str) -> None:
    assert pl.Session(plain, DATA, method_of(name, 0), repair="lstsq").propose() is None


def test_a_mask_of_ones_changes_nothing(plain: nn.Module) -> None:
    x, y = DATA.train[0]
    graph = pl.trace(plain, x)
    same_network = pl.masked(plain, graph, pl.WidthPlan.full(graph))
    with torch.no_grad():
        assert torch.equal(same_network(x), plain(x))
        loss = F.cross_entropy(plain(x), y).item()
    assert pl.ablate(plain, graph, [(x, y)], [{}]).tolist() == [loss]


@pytest.mark.parametrize("name", NAMES)
def test_the_cut_network_gives_what_the_masked_one_gives(plain: nn.Module, name: str) -> None:
    model = planted(plain, unread)
    session = pl.Session(model, DATA, method_of(name, 3), repair=None)
    move = session.propose()
    assert move == pl.Session(model, DATA, method_of(name, 3), repair=None).propose()
    session.approve()
    x = DATA.val[0][0]
    with torch.no_grad():
        want = pl.masked(model, pl.trace(model, x), session.plan)(x)
        torch.testing.assert_close(session.model(x), want, rtol=1e-12, atol=1e-12)
    counted = pl.cost(session.model, x[:1])
    assert move.after == counted
    assert session.state.now.cost == counted
