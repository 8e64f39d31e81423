"""What moving data does to labels: views, slices, concatenation, shuffles, windows.

Most such operations are run on the labels themselves. Where a channel axis is split into parts
of equal size, the network's code will do so again with fewer channels: the parts must stay
equal, so the i-th channels of all parts live and die together. A part that is not one of
several equal ones is found by its number, and freezes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from prunelab.graph.labels.label_store import FROZEN, Book
from prunelab.graph.labels.layout import (
    along,
    argument,
    compact,
    moved,
    spread,
    tensors_in,
    varying,
    viewed,
)
from prunelab.graph.labels.op_tables import MOVES, PICKS, RESHAPES, aten

PARTS = "the axis is split into equal parts, which must stay equal"
FIXED_PART = "a part of it is taken by fixed numbers"


def rearrange(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> bool:
    """Label `out`, if `func` is an operation that moves data; else False."""
    packet = func.overloadpacket
    rule = RULES.get(packet)
    if packet in MOVES:
        made = moved(func, book.labels(args[0]), args[0].shape, args[1:], kwargs)
        for tensor, labels in zip(tree_leaves(out), made, strict=True):
            book.put(tensor, labels)
    elif packet in RESHAPES:
        _view(book, args, out)
    elif packet in PICKS:
        _pick(book, func, args, kwargs, out)
    elif rule is not None:
        rule(book, func, args, kwargs, out)
    else:
        return False
    return True


def _view(book: Book, args: tuple[Any, ...], out: Tensor) -> None:
    found = viewed(book.labels(args[0]), args[0].shape, out.shape)
    if found is None:
        book.freeze(book.labels(args[0]), "it is viewed in another type")
        return
    labels, splits = found
    sizes = args[1] if len(args) > 1 and isinstance(args[1], Sequence) else ()
    for axes in splits:
        # the part that gives way is the one left open by a -1, or else the longest
        open_ = [axis for axis in axes if axis < len(sizes) and sizes[axis] == -1]
        gives = open_[0] if open_ else max(axes, key=lambda axis: (out.shape[axis], axis))
        labels = book.collapse(labels, [axis for axis in axes if axis != gives], PARTS)
    book.put(out, labels)


# ---------------------------------------------------------------- parts of an axis


def _part(book: Book, labels: Tensor, axis: int, size: int, start: int, length: int) -> Tensor:
    """The labels of channels start .. start+length-1 of `axis`."""
    if labels.shape[axis] == 1 or length >= size:
        return labels
    if not along(labels, axis, size).narrow(axis, start, max(0, length)).any():
        return torch.full((1,) * labels.ndim, FROZEN)  # no channel stands there (yet)
    if length < 1 or size % length or start % length:
        book.freeze(labels, FIXED_PART)
        return torch.full((1,) * labels.ndim, FROZEN)
    parts = along(labels, axis, size).unflatten(axis, (size // length, length))
    return compact(book.collapse(parts, [axis], PARTS).squeeze(axis))


def _slice(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    x, axis = args[0], argument(func, args, kwargs, "dim", 0) % args[0].ndim
    labels, size = book.labels(x), x.shape[axis]
    start, end, step = slice(
        argument(func, args, kwargs, "start"), argument(func, args, kwargs, "end")
    ).indices(size)
    step = argument(func, args, kwargs, "step", 1)
    if step == 1 or labels.shape[axis] == 1:
        book.put(out, _part(book, labels, axis, size, start, end - start))
    elif size % step == 0 and start < step and end > size - step:
        parts = along(labels, axis, size).unflatten(axis, (size // step, step))
        book.put(out, compact(book.collapse(parts, [axis + 1], PARTS).squeeze(axis + 1)))
    else:
        book.freeze(labels, FIXED_PART)


def _select(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    x, axis, place = args[0], args[1] % args[0].ndim, args[2] % max(1, args[0].shape[args[1]])
    labels = _part(book, book.labels(x), axis, x.shape[axis], place, 1)
    book.put(out, labels.squeeze(axis))


def _split(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
    x, axis = args[0], argument(func, args, kwargs, "dim", 0) % args[0].ndim
    labels, place = book.labels(x), 0
    equal = len({part.shape[axis] for part in out}) == 1
    for part in out:
        length = part.shape[axis]
        if equal or labels.shape[axis] == 1:
            book.put(part, _part(book, labels, axis, x.shape[axis], place, length))
        place += length
    if not equal and labels.shape[axis] > 1:
        book.freeze(labels, "it is split into unequal parts by fixed numbers")


def _unbind(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
    x, axis = args[0], argument(func, args, kwargs, "dim", 0) % args[0].ndim
    labels = _part(book, book.labels(x), axis, x.shape[axis], 0, 1).squeeze(axis)
    for part in out:
        book.put(part, labels)


def _glu(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    x, axis = args[0], argument(func, args, kwargs, "dim", -1) % args[0].ndim
    size = x.shape[axis]
    book.put(out, _part(book, book.labels(x), axis, size, 0, size // 2))


def _pick(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
    """Elements picked by number: fine along the axes where channels are not laid out."""
    x, packet = args[0], func.overloadpacket
    labels = book.labels(x)
    for index in tensors_in(*args[1:], kwargs):
        book.freeze(book.labels(index), "it says what is picked")
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
        book.freeze(labels, "its channels are picked by number")
    elif packet is aten.index and made.ndim != x.ndim:
        _place(book, labels, x, args[1], made)
    else:
        book.put(made, labels)


def _place(book: Book, labels: Tensor, x: Tensor, indices: Sequence[Any], made: Tensor) -> None:
    """Where an advanced index leaves the channel axis, by sending its numbers along."""
    for axis in varying(labels):
        marks = along(labels, axis, x.shape[axis])
        places = [None if index is None else index.to(marks.device) for index in indices]
        result = aten.index(spread(marks, x.shape), places)
        if not result.numel():
            book.freeze(labels, "its channels are picked by number")
            return
        book.put(made, compact(result))


# ---------------------------------------------------------------- tensors put together


def _cat(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    parts = [part for part in args[0] if part.ndim == out.ndim]
    axis = argument(func, args, kwargs, "dim", 0) % out.ndim
    known = [book.labels(part) for part in parts if part in book]
    beside = any(found.shape[axis] > 1 for found in known)
    for part in parts:
        book.settle(part, None if beside else known[0], axis)
    labels = [book.labels(part) for part in parts]
    others = sorted({a for found in labels for a in varying(found) if a != axis})
    if not others:
        wide = [
            along(found, axis, part.shape[axis])
            for found, part in zip(labels, parts, strict=True)
            if part.shape[axis]
        ]
        book.put(out, compact(torch.cat(wide, axis)) if wide else labels[0])
        return
    # the parts lie side by side, so that along every other axis they must have the same channels
    whole = torch.broadcast_shapes(
        *[(*found.shape[:axis], 1, *found.shape[axis + 1 :]) for found in labels]
    )
    first: Tensor | None = None
    for found in labels:
        found = book.collapse(found, [axis], "a concatenation across its channels").expand(whole)
        if first is not None:
            book.unite(first, found, "a concatenation across its channels")
        first = found if first is None else torch.where(first == FROZEN, found, first)
    assert first is not None
    book.put(out, compact(first))


def _stack(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    axis = argument(func, args, kwargs, "dim", 0) % out.ndim
    first: Tensor | None = None
    for part in args[0]:
        found = book.labels(part).unsqueeze(axis)
        if first is not None:
            book.unite(first, found, "a stack of tensors")
            found, first = torch.broadcast_tensors(found, first)
        first = found if first is None else torch.where(first == FROZEN, found, first)
    assert first is not None
    book.put(out, compact(first))


def _pad(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    """A constant border belongs to the channel that it surrounds; added channels to none."""
    labels, pads = book.labels(args[0]), list(args[1])
    for axis in range(labels.ndim):
        place = 2 * (labels.ndim - 1 - axis)
        if place < len(pads) and labels.shape[axis] > 1:
            border = [0] * place + list(pads[place : place + 2])
            labels = torch.constant_pad_nd(labels, border, FROZEN)
    book.put(out, compact(labels))


def _roll(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    labels, axes = book.labels(args[0]), argument(func, args, kwargs, "dims", ())
    if any(labels.shape[axis] > 1 for axis in (axes or range(labels.ndim))):
        book.freeze(labels, "its channels are rolled by a fixed number")
    else:
        book.put(out, labels)


# ---------------------------------------------------------------- channels and space


def _channels(book: Book, x: Tensor, axis: int, why: str) -> Tensor | None:
    """Labels along `axis`, where nothing else varies; else everything is frozen."""
    labels = book.labels(x)
    if any(other != axis % x.ndim for other in varying(labels)):
        book.freeze(labels, f"{why} meets channels laid out in an unusual way")
        return None
    return along(labels, axis % x.ndim, x.shape[axis]).reshape(-1)


def _put_channels(book: Book, out: Tensor, axis: int, labels: Tensor) -> None:
    shape = [1] * out.ndim
    shape[axis] = -1
    book.put(out, compact(labels.reshape(shape)))


def _pixel_shuffle(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    labels = _channels(book, args[0], -3, "pixel_shuffle")
    if labels is not None:
        blocks = labels.view(-1, args[1] ** 2)
        why = "pixel_shuffle makes one channel of several"
        _put_channels(book, out, out.ndim - 3, book.collapse(blocks, [1], why))


def _pixel_unshuffle(
    book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor
) -> None:
    labels = _channels(book, args[0], -3, "pixel_unshuffle")
    if labels is not None:
        _put_channels(book, out, out.ndim - 3, labels.repeat_interleave(args[1] ** 2))


def _shuffle(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    labels = _channels(book, args[0], 1, "channel_shuffle")
    if labels is not None:
        first = book.collapse(labels.view(args[1], -1), [0], PARTS)
        _put_channels(book, out, 1, first.reshape(-1).repeat_interleave(args[1]))


def _im2col(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    labels = _channels(book, args[0], -3, "unfold")
    if labels is not None:
        entries = out.shape[-2] // len(labels)
        _put_channels(book, out, out.ndim - 2, labels.repeat_interleave(entries))


def _col2im(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    labels = _channels(book, args[0], -2, "fold")
    if labels is not None:
        blocks = labels.view(out.shape[-3], -1)
        why = "fold makes one channel of several"
        _put_channels(book, out, out.ndim - 3, book.collapse(blocks, [1], why))


def _windows(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
    labels = book.labels(args[0])
    if labels.shape[args[1]] > 1:
        book.freeze(labels, "windows are taken over its channels")
    else:
        book.put(out, labels.unsqueeze(-1))


def _regions(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
    """Regions of interest: as many as there are, each with the channels of the image."""
    made = out[0] if isinstance(out, (tuple, list)) else out
    labels = _channels(book, args[0], 1, "pooling regions of interest")
    if labels is not None:
        _put_channels(book, made, 1, labels)
    book.freeze(book.labels(args[1]), "it says where regions of interest are")


RULES = {
    aten.slice: _slice,
    aten.select: _select,
    aten.split: _split,
    aten.split_with_sizes: _split,
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
}
REGIONS = {"torchvision::roi_align": _regions, "torchvision::roi_pool": _regions}
