"""Least squares of one layer: the ridge, the three choices, and the held-out images."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunelab.repair import fit as fitting
from prunelab.repair.fit import RIDGES, Fit, fit, ridge_without
from prunelab.repair.recalibration import LEAST_RATIO
from prunelab.repair.regression import Rows


def problem(
    rows: int, entries: int = 12, outs: int = 3, *, noise: float = 0.0, seed: int = 0
) -> tuple[Rows, Rows, Tensor, Tensor]:
    """Samples to solve on, samples that judge, the present weights and the true ones."""
    draw = torch.Generator().manual_seed(seed)
    old = torch.randn(entries, outs, dtype=torch.float64, generator=draw)
    true = old + 0.3 * torch.randn(entries, outs, dtype=torch.float64, generator=draw)
    p = torch.randn(rows + 200, entries, dtype=torch.float64, generator=draw)
    y = p @ true + 0.7
    y = y + noise * torch.randn(y.shape, dtype=torch.float64, generator=draw)
    return Rows(p[:rows], y[:rows]), Rows(p[rows:], y[rows:]), old, true


def ridge_by_numpy(solved: Rows, old: Tensor, ridge: float, constant: bool) -> np.ndarray:
    """The solution on raw samples: rows of the ridge are added below them."""
    p, y = solved.p.numpy(), solved.y.numpy() - solved.p.numpy() @ old.numpy()
    if constant:
        p, y = p - p.mean(0), y - y.mean(0)
    load = np.sqrt(ridge * np.square(p).sum(0))
    below = np.vstack([p, np.diag(load)])
    aims = np.vstack([y, np.zeros((p.shape[1], y.shape[1]))])
    return old.numpy() + np.linalg.lstsq(below, aims, rcond=None)[0]


@pytest.mark.parametrize("constant", [True, False], ids=["with a constant", "without"])
@pytest.mark.parametrize("rows", [5, 12, 300])
def test_weights_are_those_of_ridge_regression_from_the_present_ones(
    rows: int, constant: bool
) -> None:
    solved, held, old, _ = problem(rows, noise=0.5)
    for samples in (solved, solved.moments):
        found = fit(samples, held, old, constant=constant, normed=False)
        assert np.allclose(found.weight, ridge_by_numpy(solved, old, found.ridge, constant))


@pytest.mark.parametrize("constant", [True, False], ids=["with a constant", "without"])
@pytest.mark.parametrize("rows", [4, 12, 60])
def test_samples_and_their_moments_give_the_same_fit(rows: int, constant: bool) -> None:
    solved, held, old, _ = problem(rows, noise=0.2, seed=rows)
    a = fit(solved, held, old, constant=constant, normed=True)
    b = fit(solved.moments, held.moments, old, constant=constant, normed=True)
    assert (a.choice, a.ridge, a.rows) == (b.choice, b.ridge, b.rows)
    for name in ("weight", "constant", "shift", "ratio"):
        assert torch.allclose(getattr(a, name), getattr(b, name)), name
    assert {name: round(error, 9) for name, error in a.errors.items()} == {
        name: round(error, 9) for name, error in b.errors.items()
    }


def test_errors_are_what_each_choice_misses_of_the_images_that_judge() -> None:
    solved, held, old, _ = problem(40, noise=0.3)
    found = fit(solved, held, old, constant=True, normed=True)
    whole = (held.y - held.y.mean(0)).square().sum()
    left = held.y - held.p @ found.weight - found.constant
    assert found.errors["lstsq"] == pytest.approx(float(left.square().sum() / whole))
    left = held.y - held.p @ old
    assert found.errors["kept"] == pytest.approx(float(left.square().sum() / whole))
    now, want = solved.p @ old, solved.y
    redone = (held.p @ old - now.mean(0)) / now.std(0, correction=0) * want.std(0, correction=0)
    left = held.y - redone - want.mean(0)
    assert found.errors["bn"] == pytest.approx(float(left.square().sum() / whole))


def test_enough_exact_samples_give_the_true_weights() -> None:
    solved, held, old, true = problem(400)
    found = fit(solved.moments, held, old, constant=True, normed=True)
    assert (found.choice, found.ridge) == ("lstsq", RIDGES[0])
    assert found.rows == 400
    assert torch.allclose(found.weight, true, atol=1e-4)
    assert torch.allclose(found.constant, torch.full((3,), 0.7, dtype=torch.float64), atol=1e-4)


def test_fewer_samples_than_entries_are_shrunk_and_do_not_harm() -> None:
    solved, held, old, _ = problem(30, entries=200, noise=3.0)
    found = fit(solved, held, old, constant=True, normed=False)
    assert found.rows == 30
    assert found.ridge > RIDGES[0]
    unshrunk = ridge_by_numpy(solved, old, RIDGES[0], True)
    centre = solved.p.mean(0).numpy()
    left = held.y.numpy() - solved.y.numpy().mean(0) - (held.p.numpy() - centre) @ unshrunk
    shrunk = (held.y - held.p @ found.weight - found.constant).square().sum()
    assert float(shrunk) < float(np.square(left).sum())
    assert found.errors["lstsq"] < found.errors["kept"]


def test_weights_that_are_right_already_are_kept_though_the_sample_says_otherwise() -> None:
    solved, held, old, _ = problem(10, entries=40)
    noise = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    right = Rows(held.p, held.p @ old)
    found = fit(Rows(solved.p, solved.p @ old + noise), right, old, constant=True, normed=True)
    assert found.choice == "kept"
    assert found.errors["kept"] == 0


def test_outputs_that_are_only_scaled_and_shifted_get_batchnorm_alone() -> None:
    solved, held, old, _ = problem(12, entries=400)
    scale = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    solved = Rows(solved.p, solved.p @ old * scale + 4)
    held = Rows(held.p, held.p @ old * scale + 4)
    found = fit(solved, held, old, constant=True, normed=True)
    assert found.choice == "bn"
    assert torch.allclose(found.ratio.sqrt() * scale, torch.ones(3, dtype=torch.float64))
    assert fit(solved, held, old, constant=True, normed=False).choice == "lstsq"


@pytest.mark.parametrize(("normed", "choice"), [(True, "bn"), (False, "kept")])
def test_without_images_that_judge_nothing_is_solved(normed: bool, choice: str) -> None:
    solved, _, old, _ = problem(300)
    found = fit(solved, None, old, constant=True, normed=normed)
    assert (found.choice, found.errors) == (choice, {})


def test_a_channel_that_all_but_died_is_not_blown_up() -> None:
    solved, held, old, _ = problem(30)
    old[:, 1] = 0  # gives nothing now
    found = fit(solved, held, old, constant=True, normed=True)
    assert float(found.ratio[1]) == LEAST_RATIO
    assert torch.isfinite(found.weight).all()


def test_what_an_output_counts_decides_the_ridge() -> None:
    """One output follows its samples exactly, of the other they say nothing."""
    solved, held, old, true = problem(60, outs=2, entries=50)
    draw = torch.Generator().manual_seed(5)
    solved.y[:, 1] = 30 * torch.randn(60, dtype=torch.float64, generator=draw)
    held.y[:, 1] = held.p @ old[:, 1]
    ridges = [
        fit(
            solved, held, old, constant=True, normed=False,
            importance=torch.tensor(weigh, dtype=torch.float64),
        ).ridge
        for weigh in ([1.0, 0.0], [0.0, 1.0])
    ]  # fmt: skip
    assert ridges == [RIDGES[0], RIDGES[-1]]
    assert true.shape == old.shape


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=len(RIDGES), max_size=len(RIDGES), unique=True),
    st.integers(0, len(RIDGES) - 1),
)
def test_the_walk_finds_the_least_of_any_error_that_falls_and_then_rises(
    errors: list[float], turn: int
) -> None:
    falling = sorted(errors[:turn], reverse=True)
    falling = [inf if error > 0.9 else error for error in falling]  # no solution there
    low = min(errors) - 1
    curve = [*falling, low, *sorted(errors[turn + 1 :])]
    asked: list[int] = []

    def error_at(place: int) -> float:
        asked.append(place)
        return curve[place]

    assert fitting._smallest(error_at) == (turn, low)
    assert len(asked) == len(set(asked))  # each costs a factorisation


def test_a_fit_is_finite_where_entries_are_dead_or_copies() -> None:
    solved, held, old, true = problem(100)
    for samples in (solved, held):
        samples.p[:, 3] = 0
        samples.p[:, 4] = samples.p[:, 5]
        samples.y[:] = samples.p @ true
    found: Fit = fit(solved.moments, held, old, constant=True, normed=True)
    assert torch.isfinite(found.weight).all()
    assert found.errors["lstsq"] < 0.1 * found.errors["kept"]


# ---------------------------------------------------------------- the ridge of an elimination


def seconds(rows: int, entries: int, rank: int, seed: int) -> Tensor:
    """The second moment of (entries, 1) over samples that vary in `rank` directions."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(
        rank, entries, dtype=torch.float64, generator=torch.Generator().manual_seed(9)
    )
    p = torch.randn(rows, rank, dtype=torch.float64, generator=draw) @ mix
    p = p + torch.randn(rows, entries, dtype=torch.float64, generator=draw)
    p = torch.cat([p, torch.ones(rows, 1, dtype=torch.float64)], 1)
    return p.T @ p


@pytest.mark.parametrize(("rows", "low", "high"), [(20_000, 1e-6, 1e-6), (45, 1e-2, 1.0)])
def test_the_ridge_of_an_elimination_grows_as_samples_get_few(
    rows: int, low: float, high: float
) -> None:
    gone = torch.arange(60) % 2 == 1
    weight = torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    solved, held = seconds(rows, 60, 5, 2), seconds(5_000, 60, 5, 3)
    assert low <= ridge_without(gone, weight, solved, held, constant=True) <= high


def test_the_ridge_of_an_elimination_is_cautious_where_nothing_judges_it() -> None:
    gone = torch.arange(8) % 2 == 1
    solved = seconds(100, 8, 2, 0)
    weight = torch.ones(8, 1, dtype=torch.float64)
    nothing = torch.full_like(solved, torch.nan)
    assert ridge_without(gone, weight, solved, nothing, constant=False) == fitting.DEFAULT_RIDGE
    assert ridge_without(gone, weight, solved, None, constant=False) == fitting.DEFAULT_RIDGE


def test_the_ridge_of_an_elimination_is_the_weakest_that_does_nearly_as_well_as_the_best() -> None:
    draw = torch.Generator().manual_seed(4)
    p = torch.randn(90, 10, dtype=torch.float64, generator=draw)
    weight = torch.randn(10, 2, dtype=torch.float64, generator=draw)
    gone = torch.arange(10) < 4
    solved, held = (Rows(part[:, ~gone], part @ weight) for part in (p[:30], p[30:]))
    errors = []
    for ridge in RIDGES:
        found = ridge_by_numpy(solved, weight[~gone], ridge, True)
        shift = solved.y.numpy().mean(0) - solved.p.numpy().mean(0) @ found
        errors.append(float(np.square(held.y.numpy() - held.p.numpy() @ found - shift).sum()))
    want = next(r for r, e in zip(RIDGES, errors, strict=True) if e <= 1.1 * min(errors))
    second = [torch.cat([part, torch.ones(len(part), 1)], 1) for part in (p[:30], p[30:])]
    second = [part.T @ part for part in second]
    assert ridge_without(gone, weight, *second, constant=True) == want


def test_a_channel_scaled_and_its_readers_scaled_back_leave_the_fit_the_same() -> None:
    scale = torch.tensor([10.0, 0.3, *[1.0] * 10], dtype=torch.float64)
    for rows in (8, 60):
        solved, held, old, _ = problem(rows, noise=0.5)
        plain = fit(solved, held, old, constant=True, normed=True)
        scaled = fit(
            Rows(solved.p * scale, solved.y), Rows(held.p * scale, held.y), old / scale[:, None],
            constant=True, normed=True,
        )  # fmt: skip
        assert scaled.ridge == plain.ridge
        assert torch.allclose(scaled.weight * scale[:, None], plain.weight)


def test_the_ridge_of_a_wide_layer_is_nearly_that_of_all_its_outputs() -> None:
    solved, held, old, _ = problem(90, entries=60, outs=300, noise=1.0)
    found = fit(solved.moments, held, old, constant=True, normed=False)
    errors = {}
    for ridge in RIDGES:
        weight = torch.from_numpy(ridge_by_numpy(solved, old, ridge, True))
        constant = (solved.y - solved.p @ weight).mean(0)
        errors[ridge] = float(held.errors(weight, constant).sum() / held.variances.sum())
    assert errors[found.ridge] <= 1.01 * min(errors.values())
    assert found.errors["lstsq"] == pytest.approx(errors[found.ridge])  # over all outputs
