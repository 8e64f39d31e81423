"""Label rules of data movement, most of which is run on the labels themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from prunelab.graph.labels import axis_parts, channels_and_space, joined_axes
from prunelab.graph.labels.axis_parts import PARTS, pick
from prunelab.graph.labels.label_store import LabelStore
from prunelab.graph.labels.layout import argument, axes_of, moved, viewed
from prunelab.graph.labels.op_tables import MOVES, PICKS, RESHAPES, aten


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
        pick(store, func, args, kwargs, out)
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


RULES: Mapping[Any, Callable[..., None]] = {
    **axis_parts.RULES,
    **joined_axes.RULES,
    **channels_and_space.RULES,
}
