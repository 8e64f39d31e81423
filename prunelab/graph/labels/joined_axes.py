"""Label rules of what joins axes or adds to them: concatenation, stacking, padding, rolling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from prunelab.graph.labels.label_store import FROZEN, LabelStore
from prunelab.graph.labels.layout import along, argument, compact, varying_axes
from prunelab.graph.labels.op_tables import aten


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


RULES: Mapping[Any, Callable[..., None]] = {
    aten.cat: _cat,
    aten.stack: _stack,
    aten.constant_pad_nd: _pad,
    aten.roll: _roll,
}
