"""Least squares before a ReLU: its steps against brute force, and what it must better."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunelab.repair.rectified import auxiliary, rectified
from prunelab.repair.regression import Rows


@settings(max_examples=60, deadline=None)
@given(st.floats(-3, 3), st.floats(0, 3), st.floats(0.01, 10))
def test_auxiliary_is_the_minimum_over_a_fine_grid(u: float, want: float, penalty: float) -> None:
    found = float(auxiliary(torch.tensor([u]).double(), torch.tensor([want]).double(), penalty)[0])
    grid = np.linspace(-5, 5, 20_001)

    def cost(z: np.ndarray | float) -> np.ndarray:
        return np.square(want - np.maximum(z, 0)) + penalty * np.square(np.asarray(z) - u)

    assert cost(found) <= cost(grid).min() + 1e-9


def samples(rows: int, seed: int) -> tuple[Rows, Tensor, Tensor, Tensor]:
    """Targets of 12 inputs of which 5 are left, the fit of these, and a scale and a shift."""
    draw = torch.Generator().manual_seed(seed)
    every = torch.randn(rows, 12, dtype=torch.float64, generator=draw)
    y = every @ torch.randn(12, 8, dtype=torch.float64, generator=draw)
    p = torch.cat([every[:, :5], torch.ones(rows, 1).double()], 1)
    fitted = torch.linalg.lstsq(p, y).solution
    scale = 0.5 + torch.rand(8, dtype=torch.float64, generator=draw)
    return Rows(every[:, :5], y), fitted[:5], fitted[5], scale * torch.tensor([1.0, -1.0] * 4)


def behind(rows: Rows, weight: Tensor, constant: Tensor, scale: Tensor, shift: Tensor) -> float:
    """The squared error behind the ReLU."""
    got = (scale * (rows.p @ weight + constant) + shift).relu()
    return float((got - (scale * rows.y + shift).relu()).square().sum())


def test_refit_is_nearer_behind_the_relu_than_least_squares() -> None:
    for seed in range(5):
        rows, weight, constant, scale = samples(4000, seed)
        shift = torch.full((8,), -1.0).double()
        solved, held = Rows(rows.p[:3000], rows.y[:3000]), Rows(rows.p[3000:], rows.y[3000:])
        found = rectified(solved, held, weight, constant, 1e-6, (scale, shift))
        before = behind(held, weight, constant, scale, shift)
        assert behind(held, *found, scale, shift) < 0.97 * before


def test_refit_that_would_be_worse_on_held_out_samples_is_not_taken() -> None:
    rows, weight, constant, scale = samples(2000, 0)
    few, shift = Rows(rows.p[:4], rows.y[:4]), torch.zeros(8).double()
    held = Rows(rows.p[4:], rows.y[4:])
    found = rectified(few, held, weight, constant, 1e-6, (scale, shift))
    assert found[0] is weight
    assert found[1] is constant


def test_outputs_that_nothing_is_read_of_stay() -> None:
    rows, weight, constant, scale = samples(2000, 1)
    scale[3] = 0
    held = Rows(rows.p[1500:], rows.y[1500:])
    found = rectified(rows, held, weight, constant, 1e-6, (scale, torch.zeros(8).double()))
    assert torch.equal(found[0][:, 3], weight[:, 3])
    assert torch.isfinite(found[0]).all()
