"""Exchanges of removed units against least squares on raw samples, for every pair."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunelab.methods.elimination import eliminate, eliminated
from prunelab.methods.exchanges import _Swept, exchanged
from prunelab.methods.refit import RefitProblem

Array = np.ndarray
Blocks = dict[int, Array]


def raw(seed: int, channels: int, entries: int) -> tuple[Array, Array, Blocks]:
    """Strongly correlated patches [rows, n], outputs [rows, out], and the entries of each unit."""
    rng = np.random.default_rng(seed)
    n = channels * entries
    p = rng.normal(size=(100, n)) @ rng.normal(size=(n, n)) / 3 + 0.3 * rng.normal(size=(100, n))
    y = p @ rng.normal(size=(4, n)).T
    return p, y, {i: np.arange(i * entries, (i + 1) * entries) for i in range(channels)}


def problem(p: Array, y: Array, blocks: Blocks) -> RefitProblem:
    kernel = np.linalg.lstsq(p, y, rcond=None)[0].T
    inverse = np.linalg.inv(p.T @ p)
    return RefitProblem(inverse, kernel, dict(blocks), np.arange(4), float(np.sum(y**2)))


def error(p: Array, y: Array, blocks: Blocks, gone: list[int]) -> float:
    """What least squares on the other units leaves of y."""
    rest = np.concatenate([block for i, block in blocks.items() if i not in gone])
    return float(np.sum((y - p[:, rest] @ np.linalg.lstsq(p[:, rest], y, rcond=None)[0]) ** 2))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 4]))
def test_every_exchange_changes_the_error_as_least_squares_does(seed: int, entries: int) -> None:
    p, y, blocks = raw(seed, 6, entries)
    gone, kept = [4, 1], [0, 2, 3, 5]
    swept = _Swept(problem(p, y, blocks), gone)
    assert swept.error(gone) == pytest.approx(error(p, y, blocks, gone), rel=1e-6)
    for again in range(2):  # the second time after an exchange
        changes = swept.changes(gone, kept)
        now = error(p, y, blocks, gone)
        for i, out in enumerate(gone):
            for j, into in enumerate(kept):
                after = error(p, y, blocks, [*(u for u in gone if u != out), into])
                assert now + changes[i, j] == pytest.approx(after, rel=1e-6)
        if not again:
            swept.exchange(gone[0], kept[2])
            gone[0], kept[2] = kept[2], gone[0]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_no_exchange_of_one_unit_betters_what_is_removed(seed: int) -> None:
    """Of two layers that read the same units, with patches of 1 and of 3 entries."""
    one, two = raw(seed, 7, 1), raw(seed + 1, 7, 3)

    def problems() -> list[RefitProblem]:
        return [problem(*one), problem(*two)]

    def together(gone: list[int]) -> float:
        return error(*one, gone) + error(*two, gone)

    greedy, _ = eliminate(problems(), range(7), 3)
    order, errors = eliminated(problems, range(7), 3)
    gone, kept = order[:3], order[3:]
    least = together(gone)
    assert least <= together(greedy[:3]) * (1 + 1e-9)
    for out in gone:
        for into in kept:
            assert together([*(u for u in gone if u != out), into]) >= least * (1 - 1e-6)
    assert errors[gone[-1]] == pytest.approx(least, rel=1e-6)
    for unit in kept:  # the error, if it were the next
        assert errors[unit] == pytest.approx(together([*gone, unit]), rel=1e-6)


def test_exchanges_often_find_the_best_set_where_greedy_does_not() -> None:
    greedy_best = swapped_best = 0
    for seed in range(40):
        p, y, blocks = raw(seed, 8, 1)
        sets = {s: error(p, y, blocks, list(s)) for s in combinations(range(8), 4)}
        best = min(sets.values()) * (1 + 1e-6)
        greedy = eliminate([problem(p, y, blocks)], range(8), 4)[0][:4]
        better = exchanged(lambda p=p, y=y, b=blocks: [problem(p, y, b)], range(8), greedy)
        greedy_best += sets[tuple(sorted(greedy))] <= best
        swapped_best += sets[tuple(sorted(better))] <= best
    assert greedy_best < swapped_best
    assert swapped_best >= 35


def test_units_with_different_numbers_of_entries_are_left_as_they_are() -> None:
    p, y, _ = raw(0, 4, 2)
    blocks = {0: np.arange(4), 1: np.arange(4, 6), 2: np.arange(6, 8)}
    assert exchanged(lambda: [problem(p, y, blocks)], range(3), [2]) == [2]
    assert exchanged(list, range(3), [1]) == [1]


def test_a_dead_layer_keeps_the_greedy_set() -> None:
    inverse, kernel = np.diag([1e200] * 6), np.zeros((4, 6))
    blocks = {i: np.arange(2 * i, 2 * i + 2) for i in range(3)}

    def problems() -> list[RefitProblem]:
        return [RefitProblem(inverse, kernel.copy(), dict(blocks), np.arange(4), 0.0)]

    assert exchanged(problems, range(3), [1]) == [1]
    singular = np.zeros((6, 6))
    assert exchanged(
        lambda: [RefitProblem(singular, kernel, dict(blocks), np.arange(4), 0.0)], range(3), [1, 0]
    ) == [1, 0]
