"""Contributions of single channels or patches, summed to those of units.

`columns` [in channels or features] is the row of each input's unit, `count` how many rows there
are, as in `GramAccumulator`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.graph.labels.layer_calls import Conv


def by_unit(by_channel: Tensor, columns: Tensor, count: int) -> Tensor:
    """Rows of channels summed to rows of units [count, ...]."""
    if count == len(columns) and torch.equal(columns, torch.arange(count, device=columns.device)):
        return by_channel
    found = by_channel.new_zeros(count, *by_channel.shape[1:])
    return found.index_add_(0, columns, by_channel)


def by_units(half: Tensor, columns: Tensor, count: int) -> Tensor:
    """G by units [count, count], where `half` plus its transpose is G by channels [c, c]."""
    by_row = by_unit(half, columns, count)
    both = by_unit(by_row.T, columns, count)
    return both + both.T


def summed(entries: Tensor, weight: Tensor, columns: Tensor, count: int) -> Tensor:
    """Each unit's contribution summed over samples and positions [count, out].

    Parameters
    ----------
    entries
        The sum of all patches [c, *kernel].
    weight
        The layer's weight [out, c, *kernel].
    columns, count
        The units' rows, see above.
    """
    flat = weight.reshape(weight.shape[0], *entries.shape[:1], -1)
    each = torch.einsum("ck,ock->co", entries.reshape(len(entries), -1), flat.double())
    return by_unit(each, columns, count)


def contributions(
    x: Tensor, weight: Tensor, conv: Conv | None, columns: Tensor, count: int
) -> Tensor:
    """Every unit's contribution to every output, by definition.

    Parameters
    ----------
    x, weight
        Of a linear layer, [N, in] and [out, in]; or of a dense transposed convolution.
    conv
        How the convolution is applied; None for a linear layer.
    columns, count
        The units' rows, see above.

    Returns
    -------
    Tensor
        The contributions [count, N, out, positions].
    """
    if conv is None:
        order = torch.argsort(columns, stable=True)
        sizes = torch.bincount(columns, minlength=count).tolist()
        if not bool((columns.diff() >= 0).all()):  # as after a flatten: a copy would be large
            x, weight = x[:, order], weight[:, order]
        xs, ws = (a.split(sizes, dim=1) for a in (x, weight))
        return torch.stack([a @ w.T for a, w in zip(xs, ws, strict=True)])[..., None]
    deconvolve = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
    apply = deconvolve[weight.ndim - 2]
    channels, out = weight.shape[:2]
    each = apply(  # every channel is a conv-group of its own
        x, weight, None, conv.stride, conv.padding, 0, channels, conv.dilation
    )
    return by_unit(each.view(len(x), channels, out, -1).transpose(0, 1), columns, count)
