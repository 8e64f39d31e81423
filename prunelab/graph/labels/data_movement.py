"""Label rules of data movement: views, slices, concatenation, shuffles, windows.

Most such operations are run on the labels themselves. Where a channel axis is split into parts
of equal size, the network's code does the same with fewer channels: the parts must stay equal, so
the i-th channels of all parts are coupled. A part that is not one of several equal ones is
addressed by fixed indices, so the axis is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from prunelab.graph.labels.label_store import FROZEN, LabelStore
from prunelab.graph.labels.layout import (
    along,
    argument,
    axes_of,
    compact,
    moved,
    spread,
    tensors_in,
    varying_axes,
    viewed,
)
from prunelab.graph.labels.op_tables import MOVES, PICKS, RESHAPES, aten

PARTS = "the axis is split into equal parts, which must stay equal"
FIXED_PART = "a part of it is taken by fixed numbers"
UNKNOWN = -1  # no label: memory beside a tensor
UNEQUAL = "it is split into unequal parts by fixed numbers"


def rearrange(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> bool:
    """Label `out` and return True if `func` moves data; otherwise return False."""
    packet = func.overloadpacket
    rule = RULES.get(packet)
    if packet in MOVES:
        if packet is aten.squeeze:
            _squeezed(store, func, args, kwargs)
        made = moved(func, store.labels(args[0]), args[0].shape, args[1:], kwargs)
        for tensor, labels in zip(tree_leaves(out), made, strict=True):
            store.put(tensor, labels)
    elif packet in RESHAPES:
        _view(store, args, out)
    elif packet in PICKS:
        _pick(store, func, args, kwargs, out)
    elif rule is not None:
        rule(store, func, args, kwargs, out)
    else:
        return False
    return True


def _squeezed(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any) -> None:
    """An axis of channels that is squeezed stays only while it has two of them."""
    labels = store.labels(args[0])
    for axis in axes_of(argument(func, args, kwargs, "dim"), labels.ndim):
        if labels.shape[axis] > 1:
            store.trace.several.append(labels.transpose(0, axis).flatten(1))


def _view(store: LabelStore, args: tuple[Any, ...], out: Tensor) -> None:
    found = viewed(store.labels(args[0]), args[0].shape, out.shape)
    if found is None:
        store.freeze(store.labels(args[0]), "it is viewed in another type")
        return
    labels, splits = found
    sizes = args[1] if len(args) > 1 and isinstance(args[1], Sequence) else ()
    derived = store.derived.get((args[0].shape, out.shape), set())
    for axes in splits:
        # the new axis that shrinks is the one given as -1, or derived, or else the longest
        open_ = [axis for axis in axes if axis < len(sizes) and sizes[axis] == -1]
        among = open_ or [axis for axis in axes if axis in derived] or axes
        gives = max(among, key=lambda axis: (out.shape[axis], axis))
        labels = store.collapse(labels, [axis for axis in axes if axis != gives], PARTS)
    store.put(out, labels)


# ---------------------------------------------------------------- parts of an axis


def _part(store: LabelStore, x: Tensor, axis: int, start: int, length: int) -> Tensor:
    """The labels of channels start .. start+length-1 of `axis` of `x`."""
    labels, size = store.labels(x), x.shape[axis]
    if labels.shape[axis] == 1 or length >= size:
        return labels
    if not along(labels, axis, size).narrow(axis, start, max(0, length)).any():
        return torch.full((1,) * labels.ndim, FROZEN)  # no layer's channel is there (yet)
    if length < 1 or size % length or start % length:
        if store.edit and length > 0 and not store.uniform(x):
            return _numbered(store, labels, axis, size, start, length)
        store.freeze(labels, FIXED_PART)
        return torch.full((1,) * labels.ndim, FROZEN)
    parts = along(labels, axis, size).unflatten(axis, (size // length, length))
    if store.uniform(x):  # made to be written to; where nothing was, it has any width
        store.unite_known(parts, parts.narrow(axis, start // length, 1), PARTS)
        return compact(parts.select(axis, start // length))
    return compact(store.collapse(parts, [axis], PARTS).squeeze(axis))


def _numbered(
    store: LabelStore, labels: Tensor, axis: int, size: int, start: int, length: int
) -> Tensor:
    """The labels of a part whose place and length attributes may hold."""
    whole = along(labels, axis, size)
    if start:
        store.part(whole.narrow(axis, 0, start), FIXED_PART)
    part = whole.narrow(axis, start, length)
    store.part(part, FIXED_PART)
    return compact(part)


def _slice(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    x, axis = args[0], argument(func, args, kwargs, "dim", 0) % args[0].ndim
    labels, size = store.labels(x), x.shape[axis]
    start, end, step = slice(
        argument(func, args, kwargs, "start"), argument(func, args, kwargs, "end")
    ).indices(size)
    step = argument(func, args, kwargs, "step", 1)
    if step == 1 or labels.shape[axis] == 1:
        store.put(out, _part(store, x, axis, start, end - start))
    elif size % step == 0 and start < step and end > size - step:
        parts = along(labels, axis, size).unflatten(axis, (size // step, step))
        if store.uniform(x):
            store.unite_known(parts, parts.narrow(axis + 1, start, 1), PARTS)
            store.put(out, compact(parts.select(axis + 1, start)))
        else:
            store.put(out, compact(store.collapse(parts, [axis + 1], PARTS).squeeze(axis + 1)))
    else:
        store.freeze(labels, FIXED_PART)


def _select(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    x, axis, place = args[0], args[1] % args[0].ndim, args[2] % max(1, args[0].shape[args[1]])
    labels = _part(store, x, axis, place, 1)
    store.put(out, labels.squeeze(axis))


def _split(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
    x, axis = args[0], argument(func, args, kwargs, "dim", 0) % args[0].ndim
    labels, place = store.labels(x), 0
    equal = len({part.shape[axis] for part in out}) == 1
    for part in out:
        length = part.shape[axis]
        if equal or labels.shape[axis] == 1:
            store.put(part, _part(store, x, axis, place, length))
        elif store.edit:
            found = along(labels, axis, x.shape[axis]).narrow(axis, place, length)
            store.part(found, UNEQUAL)
            store.put(part, compact(found))
        place += length
    if not (equal or store.edit) and labels.shape[axis] > 1:
        store.freeze(labels, UNEQUAL)


def _unbind(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
    x, axis = args[0], argument(func, args, kwargs, "dim", 0) % args[0].ndim
    labels = _part(store, x, axis, 0, 1).squeeze(axis)
    for part in out:
        store.put(part, labels)


def _glu(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    x, axis = args[0], argument(func, args, kwargs, "dim", -1) % args[0].ndim
    store.put(out, _part(store, x, axis, 0, x.shape[axis] // 2))


def _pick(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
    """Elements selected by index: allowed along axes that hold no channels."""
    x, packet = args[0], func.overloadpacket
    labels = store.labels(x)
    for index in tensors_in(*args[1:], kwargs):
        store.freeze(store.labels(index), "it holds indices for a selection")
    made = out[0] if isinstance(out, (tuple, list)) else out
    if packet is aten.index:
        axes = [place for place, index in enumerate(args[1]) if index is not None]
        width = sum(
            max(1, index.ndim - 1) * (index.dtype == torch.bool)
            for index in args[1]
            if index is not None
        )
        axes = list(range(x.ndim)) if width > len(axes) else axes
        axes = [axis for axis in axes if axis < x.ndim]
    elif packet is aten.masked_select:
        axes = list(range(x.ndim))
    else:
        place = argument(func, args, kwargs, "dim", -1)
        axes = [place % x.ndim] if x.ndim else []
    if any(labels.shape[axis] > 1 for axis in axes):
        store.freeze(labels, "its channels are selected by index")
    elif packet is aten.index and made.ndim != x.ndim:
        _place(store, labels, x, args[1], made)
    else:
        store.put(made, labels)


def _place(
    store: LabelStore, labels: Tensor, x: Tensor, indices: Sequence[Any], made: Tensor
) -> None:
    """Label an advanced index that moves the channel axis, by indexing the labels themselves."""
    for axis in varying_axes(labels):
        marks = along(labels, axis, x.shape[axis])
        places = [None if index is None else index.to(marks.device) for index in indices]
        result = aten.index(spread(marks, x.shape), places)
        if not result.numel():
            store.freeze(labels, "its channels are selected by index")
            return
        store.put(made, compact(result))


# ---------------------------------------------------------------- concatenation, stacking, padding


def _cat(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    parts = [part for part in args[0] if part.ndim == out.ndim]
    axis = argument(func, args, kwargs, "dim", 0) % out.ndim
    known = [store.labels(part) for part in parts if part in store]
    beside = any(found.shape[axis] > 1 for found in known)
    for part in parts:
        store.settle(part, None if beside else known[0], axis)
    labels = [store.labels(part) for part in parts]
    others = sorted({a for found in labels for a in varying_axes(found) if a != axis})
    if not others:
        wide = [
            along(found, axis, part.shape[axis])
            for found, part in zip(labels, parts, strict=True)
            if part.shape[axis]
        ]
        store.put(out, compact(torch.cat(wide, axis)) if wide else labels[0])
        return
    # along every other axis the concatenated parts must have the same channels
    whole = torch.broadcast_shapes(
        *[(*found.shape[:axis], 1, *found.shape[axis + 1 :]) for found in labels]
    )
    first: Tensor | None = None
    for found in labels:
        found = store.collapse(found, [axis], "a concatenation across its channels").expand(whole)
        if first is not None:
            store.unite(first, found, "a concatenation across its channels")
        first = found if first is None else torch.where(first == FROZEN, found, first)
    assert first is not None
    store.put(out, compact(first))


def _stack(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    axis = argument(func, args, kwargs, "dim", 0) % out.ndim
    first: Tensor | None = None
    for part in args[0]:
        found = store.labels(part).unsqueeze(axis)
        if first is not None:
            store.unite(first, found, "a stack of tensors")
            found, first = torch.broadcast_tensors(found, first)
        first = found if first is None else torch.where(first == FROZEN, found, first)
    assert first is not None
    store.put(out, compact(first))


def _pad(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    """Padding in space belongs to its channel; padded channels belong to no layer."""
    labels, pads = store.labels(args[0]), list(args[1])
    for axis in range(labels.ndim):
        place = 2 * (labels.ndim - 1 - axis)
        if place < len(pads) and labels.shape[axis] > 1:
            border = [0] * place + list(pads[place : place + 2])
            labels = torch.constant_pad_nd(labels, border, FROZEN)
    store.put(out, compact(labels))


def _roll(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    labels, axes = store.labels(args[0]), argument(func, args, kwargs, "dims", ())
    if any(labels.shape[axis] > 1 for axis in (axes or range(labels.ndim))):
        store.freeze(labels, "its channels are shifted by a fixed offset")
    else:
        store.put(out, labels)


# ---------------------------------------------------------------- channels and space


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


RULES = {
    aten.slice: _slice,
    aten.select: _select,
    aten.split: _split,
    aten.split_with_sizes: _split,
    aten.unsafe_split: _split,
    aten.unsafe_split_with_sizes: _split,
    aten.unbind: _unbind,
    aten.glu: _glu,
    aten.cat: _cat,
    aten.stack: _stack,
    aten.constant_pad_nd: _pad,
    aten.roll: _roll,
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
