"""Patch moments: the second moment of what a layer reads, with the constant 1 appended."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.calls import Conv


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


def patches(x: Tensor, kernel: tuple[int, ...], conv: Conv | None) -> Tensor:
    """The patches a convolution reads from x [N, c, *space], as rows [N positions, c k].

    For a linear layer x [rows, c] itself.
    """
    if conv is None:
        return x
    if all(size == 1 for size in kernel):
        for axis, (stride, pad) in enumerate(zip(conv.stride, conv.padding, strict=True)):
            if pad:
                break
            x = x.narrow(2 + axis, 0, x.shape[2 + axis])[
                (slice(None),) * (2 + axis) + (slice(None, None, stride),)
            ]
        else:
            return x.movedim(1, -1).reshape(-1, x.shape[1])
    x = F.pad(x, [pad for size in reversed(conv.padding) for pad in (size, size)])
    for axis, (size, stride, dilation) in enumerate(
        zip(kernel, conv.stride, conv.dilation, strict=True)
    ):
        x = x.unfold(2 + axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    # [N, c, *positions, *kernel] -> [N, *positions, c, *kernel]
    x = x.movedim(1, 1 + len(kernel))
    channels = x.shape[1 + len(kernel)]
    entries = 1
    for size in kernel:
        entries *= size
    return x.reshape(-1, channels * entries)


def second_moment(x: Tensor, kernel: tuple[int, ...], conv: Conv | None) -> Tensor:
    """P' P over the patches P of x [N, c, *space]: [c k, c k]."""
    if conv is not None and kernel == (3, 3) and _same_3x3(conv):
        return _by_shifts(x)
    rows = patches(x, kernel, conv)
    return rows.T @ rows


def patch_moments(x: Tensor, kernel: tuple[int, ...], conv: Conv | None) -> PatchMoments:
    """The patch moments of one batch x."""
    second = second_moment(x, kernel, conv)
    size = len(second)
    summed = patches(x.sum(0, keepdim=True), kernel, conv)  # patches are linear in x
    rows = len(summed) * len(x)
    moment = torch.empty(size + 1, size + 1, dtype=torch.float64, device=x.device)
    moment[:size, :size] = second
    moment[:size, size] = moment[size, :size] = summed.sum(0, dtype=torch.float64)
    moment[size, size] = rows
    return PatchMoments(moment, rows)


def cross_moment(x: Tensor, y: Tensor, kernel: tuple[int, ...], conv: Conv | None) -> Tensor:
    """(P, 1)' Y over the patches P of x and the outputs Y at their places: [c k + 1, out].

    y [N, out, *positions], or [rows, out] for a linear layer.
    """
    flat_y = y if conv is None else y.movedim(1, -1).reshape(-1, y.shape[1])
    if conv is not None and kernel == (3, 3) and _same_3x3(conv):
        cross = _cross_by_shifts(x, y)
    else:
        cross = patches(x, kernel, conv).T @ flat_y
    return torch.cat([cross.double(), flat_y.sum(0, keepdim=True, dtype=torch.float64)])


def _cross_by_shifts(x: Tensor, y: Tensor) -> Tensor:
    """P' Y of a 3x3 convolution with stride and padding 1: nine shifted products."""
    channels, width = x.shape[1], x.shape[3]
    flat_x, flat_y = (
        F.pad(part, (1, 1, 1, 1)).transpose(0, 1).reshape(part.shape[1], -1) for part in (x, y)
    )
    cross = x.new_empty(channels, 3, 3, y.shape[1])
    length = flat_x.shape[1]
    for a in range(3):
        for b in range(3):
            shift = (a - 1) * (width + 2) + b - 1  # what wraps around meets y's zero padding
            xs = flat_x[:, max(0, shift) : length + min(0, shift)]
            ys = flat_y[:, max(0, -shift) : length + min(0, -shift)]
            cross[:, a, b] = xs @ ys.T
    return cross.view(channels * 9, -1)


def _same_3x3(conv: Conv) -> bool:
    return (conv.stride, conv.padding, conv.dilation, conv.transposed) == (
        (1, 1), (1, 1), (1, 1), False,
    )  # fmt: skip


def _by_shifts(x: Tensor) -> Tensor:
    """P' P of a 3x3 convolution with stride and padding 1, without making the patches.

    Two entries of a patch, (a, b) and (a + dy, b + dx), are the image and the image shifted by
    (dy, dx): of the 81 blocks only 13 differ, up to transposition and to the borders. The window
    of a = 0 misses the last row and that of a = 2 the first; beside zero padding that shows only
    where dy = 0. Columns are alike, and corners were taken off twice.
    """
    channels, height, width = x.shape[1:]
    image = F.pad(x, (1, 1, 1, 1)).transpose(0, 1)  # [c, N, H + 2, W + 2]

    def correlate(part: Tensor, shift: int) -> Tensor:
        flat = part.reshape(channels, -1)  # the padding keeps what wraps around at zero
        return flat[:, : flat.shape[1] - shift] @ flat[:, shift:].T

    rows = {0: image[:, :, height], 2: image[:, :, 1]}  # what the window of this a misses
    columns = {0: image[..., width], 2: image[..., 1]}
    row = {(a, dx): correlate(rows[a], dx) for a in rows for dx in range(3)}
    column = {(b, dy): correlate(columns[b], dy) for b in columns for dy in range(3)}
    corner = {
        (a, b): correlate(rows[a][..., width if b == 0 else 1], 0) for a in rows for b in columns
    }
    moment = x.new_empty(channels, 3, 3, channels, 3, 3)
    for dy in range(3):
        for dx in range(-2 if dy else 0, 3):
            whole = correlate(image, dy * (width + 2) + dx)
            for a in range(3 - dy):
                for b in range(max(0, -dx), min(3, 3 - dx)):
                    block = whole
                    if dy == 0 and a in rows:
                        block = block - row[a, dx]
                    if dx == 0 and b in columns:
                        block = block - column[b, dy]
                    if dy == dx == 0 and a in rows and b in columns:
                        block = block + corner[a, b]
                    moment[:, a, b, :, a + dy, b + dx] = block
                    moment[:, a + dy, b + dx, :, a, b] = block.T
    return moment.view(channels * 9, channels * 9)
