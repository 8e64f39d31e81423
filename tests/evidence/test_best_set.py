"""The best set of channels: the bound holds for every set, and small problems are solved."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prunelab as pl
from prunelab.evidence.best_set import searching_best, swapped
from prunelab.evidence.contribution import ConsumerGram, ContributionGram
from prunelab.evidence.damage_curves import damage_curve
from prunelab.values import Progress


def gram_of(matrix: np.ndarray) -> ContributionGram:
    units = tuple(range(len(matrix)))
    energy = float(matrix.sum()) or 1.0
    return ContributionGram(
        "conv1", units, {"next": ConsumerGram("next", units, matrix, matrix.sum(1), energy)}
    )


def random_gram(seed: int, size: int) -> np.ndarray:
    """<z_i, z_j> of contributions that go together, some nearly the same, some dead."""
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 2 * size))
    z = rng.normal(size=(rank, size)) * np.exp(rng.normal(size=size))
    z += rng.normal(size=(rank, 1)) * rng.uniform(0, 2)
    if rng.random() < 0.3:
        z[:, rng.integers(size)] = 0
    if rng.random() < 0.3:
        z[:, rng.integers(size)] = z[:, rng.integers(size)] * -1
    return z.T @ z


def exhaustive(matrix: np.ndarray, count: int) -> float:
    """The least x'Gx of all sets of this size, one after the other."""
    sets = combinations(range(len(matrix)), count)
    return min(float(matrix[np.ix_(chosen, chosen)].sum()) for chosen in sets)


def assert_bounded(seed: int, size: int, count: int, nodes: int) -> pl.BestSet:
    matrix = random_gram(seed, size)
    gram = gram_of(matrix)
    found = pl.best_set(gram, count, nodes=nodes)
    best = exhaustive(matrix, count) / gram.energy
    room = 1e-9 * float(np.trace(matrix)) / gram.energy
    assert len(found.units) == count
    assert found.damage == pytest.approx(gram.damage(found.units), abs=room)
    assert found.bound <= max(0.0, best) + room
    assert found.damage >= best - room
    return found


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.data())
def test_no_set_loses_less_than_the_bound(seed: int, size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, size - 1))
    assert_bounded(seed, size, count, nodes=data.draw(st.sampled_from((0, 1, 5))))


@pytest.mark.slow
def test_no_set_of_thousands_of_problems_loses_less_than_the_bound() -> None:
    rng = np.random.default_rng(0)
    for seed in range(5000):
        size = int(rng.integers(2, 11))
        assert_bounded(seed, size, int(rng.integers(1, size)), nodes=int(rng.integers(0, 9)))


@pytest.mark.parametrize("seed", range(20))
def test_the_best_of_a_small_group_is_found_and_proved(seed: int) -> None:
    found = assert_bounded(seed, 10, 1 + seed % 9, nodes=2000)
    best = exhaustive(random_gram(seed, 10), 1 + seed % 9)
    assert found.damage * gram_of(random_gram(seed, 10)).energy == pytest.approx(
        max(0.0, best), rel=1e-6, abs=1e-9 * np.trace(random_gram(seed, 10))
    )
    assert found.proved or found.damage < 1e-9


def test_swaps_mend_a_greedy_choice_that_is_not_the_best() -> None:
    # Alone, 0 is the cheapest; but 1 and 2 cancel each other.
    matrix = np.array([[1.0, 0.2, 0.2], [0.2, 4.0, -3.9], [0.2, -3.9, 4.0]])
    greedy = damage_curve(gram_of(matrix)).first(2)
    assert 0 in greedy
    assert swapped(matrix, list(greedy)) == [1, 2]
    found = pl.best_set(gram_of(matrix), 2)
    assert (found.units, found.proved) == ((1, 2), True)
    assert str(found).endswith("the best set of 2 units, proved")


def test_swaps_never_lose_and_end_where_no_exchange_helps() -> None:
    for seed in range(50):
        matrix = random_gram(seed, 12)
        start = list(range(5))
        after = swapped(matrix, start)
        lost = float(matrix[np.ix_(after, after)].sum())
        assert lost <= matrix[:5, :5].sum() + 1e-9 * np.trace(matrix)
        for out in after:
            for into in set(range(12)) - set(after):
                other = [*(i for i in after if i != out), into]
                assert matrix[np.ix_(other, other)].sum() >= lost - 1e-8 * np.trace(matrix)


def test_what_is_not_proved_says_how_far_it_can_be_from_the_best() -> None:
    found = pl.best_set(gram_of(random_gram(3, 40)), 13, nodes=0)
    assert found.bound < found.damage
    assert found.excess() == pytest.approx(found.damage / found.bound - 1)
    assert f"within {found.excess():.1%} of the best set of 13 units" in str(found)
    assert found.excess(found.bound) == 0
    assert found.excess(2 * found.damage) > found.excess()


def test_a_group_without_a_signal_loses_nothing() -> None:
    found = pl.best_set(gram_of(np.zeros((6, 6))), 3)
    assert (found.damage, found.bound, found.proved, found.excess()) == (0, 0, True, 0)


def test_the_search_can_be_ended_after_any_branch() -> None:
    search = searching_best(gram_of(random_gram(3, 40)), 13, nodes=50)
    assert isinstance(next(search), Progress)
    search.close()


@pytest.mark.parametrize("count", [0, 6, -1])
def test_a_count_that_is_no_set_is_refused(count: int) -> None:
    with pytest.raises(pl.InvalidValue, match="from 1 to 5"):
        pl.best_set(gram_of(random_gram(0, 6)), count)


@pytest.mark.parametrize(("group", "count"), [("layer1.0.conv1", 8), ("layer2.0.conv2", 8)])
def test_a_layer_of_the_shipped_resnet_is_solved(group: str, count: int) -> None:
    model, data = pl.zoo.load("resnet20"), pl.data.load("fashion", subset=True)
    batch = next(iter(data.train))
    graph = pl.trace(model, batch[0][:1])
    evidence = pl.measure(model, graph, [batch])
    found = pl.best_set(evidence[group], count, nodes=400)
    assert found.proved
    greedy = damage_curve(evidence[group]).damages[count - 1]
    assert found.damage <= greedy * (1 + 1e-9)
