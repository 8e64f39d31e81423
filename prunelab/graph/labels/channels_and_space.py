"""Label rules of what exchanges channels and space: shuffles, windows, transforms, regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from prunelab.graph.labels.axis_parts import PARTS
from prunelab.graph.labels.label_store import LabelStore
from prunelab.graph.labels.layout import along, compact, spread, varying_axes
from prunelab.graph.labels.op_tables import aten

UNKNOWN = -1  # no label: memory beside a tensor


def _channels(store: LabelStore, x: Tensor, axis: int, why: str) -> Tensor | None:
    """The labels along `axis`; None, with everything frozen, where they vary along another axis."""
    labels = store.labels(x)
    if any(other != axis % x.ndim for other in varying_axes(labels)):
        store.freeze(labels, f"{why} reads channels from an unsupported axis layout")
        return None
    return along(labels, axis % x.ndim, x.shape[axis]).reshape(-1)


def _put_channels(store: LabelStore, out: Tensor, axis: int, labels: Tensor) -> None:
    shape = [1] * out.ndim
    shape[axis] = -1
    store.put(out, compact(labels.reshape(shape)))


def _pixel_shuffle(
    store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor
) -> None:
    labels = _channels(store, args[0], -3, "pixel_shuffle")
    if labels is not None:
        blocks = labels.view(-1, args[1] ** 2)
        why = "pixel_shuffle makes one channel of several"
        _put_channels(store, out, out.ndim - 3, store.collapse(blocks, [1], why))


def _pixel_unshuffle(
    store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor
) -> None:
    labels = _channels(store, args[0], -3, "pixel_unshuffle")
    if labels is not None:
        _put_channels(store, out, out.ndim - 3, labels.repeat_interleave(args[1] ** 2))


def _shuffle(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    labels = _channels(store, args[0], 1, "channel_shuffle")
    if labels is not None:
        first = store.collapse(labels.view(args[1], -1), [0], PARTS)
        _put_channels(store, out, 1, first.reshape(-1).repeat_interleave(args[1]))


def _im2col(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    labels = _channels(store, args[0], -3, "unfold")
    if labels is not None:
        entries = out.shape[-2] // len(labels)
        _put_channels(store, out, out.ndim - 2, labels.repeat_interleave(entries))


def _col2im(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    labels = _channels(store, args[0], -2, "fold")
    if labels is not None:
        blocks = labels.view(out.shape[-3], -1)
        why = "fold makes one channel of several"
        _put_channels(store, out, out.ndim - 3, store.collapse(blocks, [1], why))


def _strided(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    x, labels = args[0], store.labels(args[0])
    memory = torch.full((x.untyped_storage().nbytes() // x.element_size(),), UNKNOWN)
    memory.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(spread(labels, x.shape))
    made = memory.as_strided(out.shape, out.stride(), out.storage_offset())
    if (made == UNKNOWN).any():
        store.freeze(labels, "it is read with given strides")
    else:
        store.put(out, compact(made))


def _transform(
    store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor
) -> None:
    """A Fourier transform over axes that hold no channels."""
    labels = store.labels(args[0])
    if any(labels.shape[axis] > 1 for axis in args[1]):
        store.freeze(labels, "a Fourier transform is taken over its channels")
    else:
        store.put(out, labels)


def _as_real(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    store.put(out, store.labels(args[0]).unsqueeze(-1))


def _as_complex(
    store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor
) -> None:
    labels = store.labels(args[0])
    if labels.shape[-1] > 1:
        store.freeze(labels, "two of its channels make one complex number")
    else:
        store.put(out, labels.squeeze(-1))


def _windows(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    labels = store.labels(args[0])
    if labels.shape[args[1]] > 1:
        store.freeze(labels, "windows are taken over its channels")
    else:
        store.put(out, labels.unsqueeze(-1))


def _affine(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
    store.freeze(store.labels(args[0]), "it holds the numbers of affine maps")


def _regions(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
    """Regions of interest: each has the channels of the image."""
    made = out[0] if isinstance(out, (tuple, list)) else out
    labels = _channels(store, args[0], 1, "pooling regions of interest")
    if labels is not None:
        _put_channels(store, made, 1, labels)
    store.freeze(store.labels(args[1]), "it holds coordinates for regions of interest")


def _packed(
    store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: tuple[Tensor, Tensor]
) -> None:
    """Sequences [time, sequences, *features] packed as rows [rows, *features], or padded again."""
    x, made = args[0], out[0]
    labels = store.labels(x)
    ahead = 1 if func.overloadpacket is aten._pad_packed_sequence else 2
    if any(axis < ahead for axis in varying_axes(labels)):
        store.freeze(labels, "channels are laid out over sequences that are packed")
        return
    store.put(made, labels.reshape((1,) * (made.ndim - x.ndim + ahead) + labels.shape[ahead:]))


RULES: Mapping[Any, Callable[..., None]] = {
    aten.pixel_shuffle: _pixel_shuffle,
    aten.pixel_unshuffle: _pixel_unshuffle,
    aten.channel_shuffle: _shuffle,
    aten.native_channel_shuffle: _shuffle,
    aten.im2col: _im2col,
    aten.col2im: _col2im,
    aten.unfold: _windows,
    aten.as_strided: _strided,
    aten._fft_r2c: _transform,
    aten._fft_c2r: _transform,
    aten._fft_c2c: _transform,
    aten.view_as_real: _as_real,
    aten.view_as_complex: _as_complex,
    aten._pack_padded_sequence: _packed,
    aten._pad_packed_sequence: _packed,
    aten.affine_grid_generator: _affine,
}
REGIONS = {"torchvision::roi_align": _regions, "torchvision::roi_pool": _regions}
