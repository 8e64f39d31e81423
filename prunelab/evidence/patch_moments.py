"""Patch moments: the second moments of the patches a layer reads, with a constant 1 appended.

Few patches are kept as they are: they need less memory than their products, and least squares on
them takes their number cubed, not that of their entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.evidence.patch_correlation import correlations_of, symmetric_product
from prunelab.graph.labels.layer_calls import Conv

ENTRIES = 2**25  # of patches made at once: 128 MB in float32
WIDEST = 8192  # patch entries up to which a second moment is kept or inverted: 0.5 GB in float64


@dataclass(frozen=True, slots=True, eq=False)
class PatchMoments:
    """Sums over all samples and positions of p p', where p = (patch, 1).

    Attributes
    ----------
    rows
        The number of patches.
    summed
        The sum [c k + 1, c k + 1] in float64, c input channels and k kernel entries, channel-major
        as in a weight flattened from axis 1; None while `kept` holds the patches, and where
        neither is needed any more.
    kept
        The patches themselves [rows, c k], while they are at most half as many as their entries.
    """

    rows: int
    summed: Tensor | None = None
    kept: Tensor | None = None

    @property
    def moment(self) -> Tensor:
        """The sum, also of kept patches [c k + 1, c k + 1]."""
        if self.summed is not None:
            return self.summed
        assert self.kept is not None
        rows = torch.cat([self.kept, self.kept.new_ones(self.rows, 1)], 1).double()
        return symmetric_product(rows.T)

    @property
    def finite(self) -> bool:
        """Whether there is no NaN or infinity: no entry of the sum is above the diagonal."""
        found = self.moment.diagonal() if self.kept is None else self.kept
        return bool(torch.isfinite(found).all())

    def __add__(self, other: PatchMoments) -> PatchMoments:
        rows = self.rows + other.rows
        if self.kept is not None and other.kept is not None and _few(rows, self.kept.shape[1]):
            return PatchMoments(rows, kept=torch.cat([self.kept, other.kept]))
        return PatchMoments(rows, self.moment + other.moment)


def _few(rows: int, entries: int) -> bool:
    return 2 * rows <= entries


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


def patch_moments(
    x: Tensor, kernel: tuple[int, ...], conv: Conv | None, before: PatchMoments | None = None
) -> PatchMoments:
    """The patch moments of one batch, and of those `before`, which are used up.

    Parameters
    ----------
    x
        The layer's input [N, c, *space], or [rows, c] of a linear layer.
    kernel, conv
        The kernel's shape and how it is applied (None: a linear layer).
    before
        The moments of other batches.
    """
    x = _summable(x)
    plan = correlations_of(tuple(x.shape[2:]), kernel, conv)
    channels, entries = x.shape[1], prod(kernel)
    size, added = channels * entries, len(x) * plan.outputs
    rows = added + (before.rows if before else 0)
    if _few(rows, size) and (before is None or before.kept is not None):
        earlier = () if before is None or before.kept is None else (before.kept,)
        return PatchMoments(rows, kept=torch.cat([*earlier, patches(x, kernel, conv)]))
    moment = before.moment if before else x.new_zeros(size + 1, size + 1, dtype=torch.float64)
    blocks = moment[:size, :size].view(channels, entries, channels, entries)
    for (a, b), block in plan.second_moment(x).items():
        blocks[:, a, :, b] += block
        if a != b:
            blocks[:, b, :, a] += block.T
    moment[:size, size] += (sums := plan.entry_sums(x).flatten())
    moment[size, :size] += sums
    moment[size, size] += added
    return PatchMoments(rows, moment)


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
