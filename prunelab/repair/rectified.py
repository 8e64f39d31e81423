"""Least squares of a layer in front of a ReLU, where what stays negative need not be right.

min sum ||r(Y) - r(P W + b)||^2 with r(x) = max(x, 0), by an auxiliary Z that stands for P W + b
(Zhang, Zou, He, Sun, "Accelerating very deep convolutional networks", 2016, sec. 2.2):

  Z step   min ||r(Y) - r(Z)||^2 + penalty ||Z - P W - b||^2, entry by entry
  W step   min ||Z - P W - b||^2, least squares as before

alternate while the penalty rises, as often as in the released code of Channel Pruning
(ethanhe42/channel-pruning, `lib/decompose.py`, `ITQ_decompose`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunelab.repair.regression import Rows, solver, with_ridge

PENALTIES = ((0.1, 30), (1.0, 20))  # and how often both steps are done with each
ROWS = 4096
LEAST = 1e-3  # of the largest scale: an output with a smaller one is left as it is


def rectified(
    solved: Rows, held: Rows, weight: Tensor, constant: Tensor, ridge: float, affine: Affine
) -> tuple[Tensor, Tensor]:
    """The weights [entries, out] and constants [out] that are better behind the ReLU.

    Parameters
    ----------
    solved, held
        Samples to solve on, and those of other images to judge by.
    weight, constant
        The solution by least squares, which is given back where it is better.
    ridge
        Its ridge.
    affine
        The scale and shift [out] of the outputs between the layer and the ReLU (bias, BatchNorm).
    """
    scale, shift = affine
    p = solved.p if solved.p.dtype == torch.float64 else solved.p.float()
    want = (scale * solved.y.double() + shift).relu().to(p)
    start, mean = weight * scale, p.double().mean(0)
    centred = p - mean.to(p)
    solution = solver(with_ridge(centred.double().T @ centred.double() / len(p), ridge))
    present = p @ start.to(p)
    w, b = start, constant * scale + shift
    for penalty, steps in PENALTIES:
        for _ in range(steps):
            z = auxiliary(p @ w.to(p) + b.to(p), want, penalty)
            w = start + solution((centred.T @ (z - present)).double() / len(p))
            b = z.double().mean(0) - mean @ w
    usable = scale.abs() > LEAST * scale.abs().max()
    safe = torch.where(usable, scale, 1.0)
    new = torch.where(usable, w / safe, weight), torch.where(usable, (b - shift) / safe, constant)
    given = weight, constant
    return min((given, new), key=lambda found: _error(held, found, affine))


Affine = tuple[Tensor, Tensor]


def auxiliary(u: Tensor, want: Tensor, penalty: float) -> Tensor:
    """Argmin over z of (want - r(z))^2 + penalty (z - u)^2, entry by entry; `want` is not < 0."""
    below, above = u.clamp_max(0), ((penalty * u + want) / (penalty + 1)).clamp_min(0)

    def cost(z: Tensor) -> Tensor:
        return (want - z.relu()).square() + penalty * (z - u).square()

    return torch.where(cost(below) < cost(above), below, above)


def _error(rows: Rows, found: tuple[Tensor, Tensor], affine: Affine) -> float:
    (weight, constant), (scale, shift) = found, affine
    got = (scale * (rows.p.double() @ weight + constant) + shift).relu()
    error = float(((scale * rows.y.double() + shift).relu() - got).square().sum())
    return error if error == error else float("inf")
