"""Patch moments: the second moments of the patches a layer reads, with a constant 1 appended."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.evidence.patch_correlation import correlations_of
from prunelab.graph.labels.layer_calls import Conv

ENTRIES = 2**25  # of patches made at once: 128 MB in float32
WIDEST = 8192  # patch entries up to which a second moment is kept or inverted: 0.5 GB in float64


@dataclass(frozen=True, slots=True, eq=False)
class PatchMoments:
    """Sums over all samples and positions of p p', where p = (patch, 1).

    `moment` [c k + 1, c k + 1] in float64, c input channels and k kernel entries, channel-major
    as in a weight flattened from axis 1; `rows` is the number of patches.
    """

    moment: Tensor
    rows: int

    def __add__(self, other: PatchMoments) -> PatchMoments:
        return PatchMoments(self.moment + other.moment, self.rows + other.rows)


def patches(
    x: Tensor, kernel: tuple[int, ...], conv: Conv | None, at: Tensor | None = None
) -> Tensor:
    """The patches that a layer reads, as rows.

    Parameters
    ----------
    x
        The layer's input [N, c, *space], or [rows, c] of a linear layer.
    kernel
        The kernel's shape, of k entries.
    conv
        How the convolution is applied; None for a linear layer.
    at
        Flat indices of the output positions to use (None: all).

    Returns
    -------
    Tensor
        Patches [N positions, c k]; of a linear layer, x itself.
    """
    if conv is None:
        return x
    if prod(kernel) == 1 and not any(conv.padding):
        every = (slice(None, None, stride) for stride in conv.stride)
        x = x[(slice(None), slice(None), *every)]
        return positions_of(x, at).reshape(-1, x.shape[1])
    x = F.pad(x, [pad for size in reversed(conv.padding) for pad in (size, size)])
    for axis, (size, stride, dilation) in enumerate(
        zip(kernel, conv.stride, conv.dilation, strict=True)
    ):
        x = x.unfold(2 + axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    # [N, c, *positions, *kernel] -> [N, *positions, c, *kernel]
    x = x.movedim(1, 1 + len(kernel))
    channels = x.shape[1 + len(kernel)]
    if at is not None:
        places: tuple[Any, ...] = torch.unravel_index(at, x.shape[1 : 1 + len(kernel)])
        x = x[(slice(None), *places)]
    return x.reshape(-1, channels * prod(kernel))


def positions_of(y: Tensor, at: Tensor | None = None) -> Tensor:
    """A layer's output y [N, out, *positions] as rows [N positions, out]; `at` as in `patches`."""
    rows = y.movedim(1, -1).flatten(1, -2) if y.ndim > 2 else y[:, None]
    return (rows if at is None else rows[:, at]).reshape(-1, y.shape[1])


def patch_moments(x: Tensor, kernel: tuple[int, ...], conv: Conv | None) -> PatchMoments:
    """The patch moments of one batch.

    Parameters
    ----------
    x
        The layer's input [N, c, *space], or [rows, c] of a linear layer.
    kernel, conv
        The kernel's shape and how it is applied (None: a linear layer).
    """
    x = _summable(x)
    plan = correlations_of(tuple(x.shape[2:]), kernel, conv)
    channels, entries = x.shape[1], prod(kernel)
    size = channels * entries
    moment = torch.zeros(size + 1, size + 1, dtype=torch.float64, device=x.device)
    blocks = moment[:size, :size].view(channels, entries, channels, entries)
    for (a, b), found in plan.second_moment(x).items():
        blocks[:, a, :, b] = found
        blocks[:, b, :, a] = found.T
    moment[:size, size] = moment[size, :size] = plan.entry_sums(x).flatten()
    moment[size, size] = rows = len(x) * plan.outputs
    return PatchMoments(moment, rows)


def cross_moment(x: Tensor, y: Tensor, kernel: tuple[int, ...], conv: Conv | None) -> Tensor:
    """(P, 1)' Y over patches P of the input x and values Y at their output positions.

    Parameters
    ----------
    x
        The layer's input [N, c, *space], or [rows, c] of a linear layer.
    y
        One value for each output [N, out, *positions], or [rows, out].
    kernel, conv
        The kernel's shape, of k entries, and how it is applied (None: a linear layer).

    Returns
    -------
    Tensor
        The products in float64 [c k + 1, out].
    """
    x, y = _summable(x), _summable(y)
    sums = y.movedim(1, 0).flatten(1).sum(1, dtype=torch.float64)
    if conv is not None and kernel == (3, 3) and _same_3x3(conv):
        cross = _cross_by_shifts(x, y).double()
    else:
        positions = y[:1, :1].numel()
        step = max(1, ENTRIES // max(1, len(x) * x.shape[1] * prod(kernel)))
        parts = torch.arange(positions, device=x.device).split(step) if step < positions else [None]
        cross = x.new_zeros(x.shape[1] * prod(kernel), y.shape[1], dtype=torch.float64)
        for at in parts:
            cross += patches(x, kernel, conv, at).T @ positions_of(y, at)
    return torch.cat([cross, sums[None]])


def _summable(x: Tensor) -> Tensor:
    """At least float32: sums in half precision overflow or keep only three digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _cross_by_shifts(x: Tensor, y: Tensor) -> Tensor:
    """P' Y of a 3x3 convolution with stride and padding 1, as nine shifted products."""
    channels, width = x.shape[1], x.shape[3]
    flat_x, flat_y = (
        F.pad(part, (1, 1, 1, 1)).transpose(0, 1).reshape(part.shape[1], -1) for part in (x, y)
    )
    cross = x.new_empty(channels, 3, 3, y.shape[1])
    length = flat_x.shape[1]
    for a in range(3):
        for b in range(3):
            shift = (a - 1) * (width + 2) + b - 1  # rows that wrap around multiply y's zero padding
            xs = flat_x[:, max(0, shift) : length + min(0, shift)]
            ys = flat_y[:, max(0, -shift) : length + min(0, -shift)]
            cross[:, a, b] = xs @ ys.T
    return cross.view(channels * 9, -1)


def _same_3x3(conv: Conv) -> bool:
    return (conv.stride, conv.padding, conv.dilation, conv.transposed) == (
        (1, 1), (1, 1), (1, 1), False,
    )  # fmt: skip
