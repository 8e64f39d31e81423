"""Label rules of what takes parts of an axis: slices, splits, picks.

Where a channel axis is split into parts of equal size, the network's code does the same with fewer
channels: the parts must stay equal, so the i-th channels of all parts are coupled. A part that is
not one of several equal ones is addressed by fixed indices, so the axis is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunelab.graph.labels.label_store import FROZEN, LabelStore
from prunelab.graph.labels.layout import along, argument, compact, spread, tensors_in, varying_axes
from prunelab.graph.labels.op_tables import aten

PARTS = "the axis is split into equal parts, which must stay equal"
FIXED_PART = "a part of it is taken by fixed numbers"
UNEQUAL = "it is split into unequal parts by fixed numbers"


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


def pick(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
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


RULES: Mapping[Any, Callable[..., None]] = {
    aten.slice: _slice,
    aten.select: _select,
    aten.split: _split,
    aten.split_with_sizes: _split,
    aten.unsafe_split: _split,
    aten.unsafe_split_with_sizes: _split,
    aten.unbind: _unbind,
    aten.glu: _glu,
}
