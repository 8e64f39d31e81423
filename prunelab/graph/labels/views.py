"""Views of tensors, and the effect of in-place writes on the labels of their bases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from prunelab.graph.labels.label_store import LabelStore
from prunelab.graph.labels.layout import compact, spread, tensors_in, varying_axes
from prunelab.graph.labels.op_tables import aten


class Views:
    """The views created while a network runs, each with the operation that created it."""

    def __init__(self, store: LabelStore) -> None:
        self.store = store
        self._made = WeakTensorKeyDictionary()  # of a view: (base tensor, func, args, kwargs)

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._made

    def note(self, view: Tensor, func: Any, args: tuple[Any, ...], kwargs: Any) -> None:
        """Record that `func(*args, **kwargs)` created `view`."""
        self._made[view] = (args[0], func, args[1:], kwargs)

    def written(self, target: Tensor, before: Tensor) -> None:
        """Update the base of `target`, into which data was written; its labels were `before`.

        The same views are taken of the base's labels, down to the part that was written.
        """
        store, chain, base = self.store, [], target
        labels = store.labels(target)
        if labels.shape == before.shape and torch.equal(labels, before):
            return
        while base in self._made:
            parent, func, args, kwargs = self._made[base]
            chain.append((func, args, kwargs))
            base = parent
        if not chain:
            return
        whole = spread(store.labels(base), base.shape).clone()
        window: Any = whole
        for func, args, kwargs in reversed(chain):
            window = func(window, *args, **kwargs)
            by_strides = func.overloadpacket is aten.as_strided  # of memory laid out in another way
            if by_strides or not isinstance(window, Tensor):
                store.freeze(labels, "a write into a part of a split tensor")
                store.freeze(whole, "a write into a part of a split tensor")
                return
        window.copy_(labels.expand(window.shape))
        store.put(base, compact(whole))

    def written_fixed(self, target: Tensor) -> None:
        """Values without a channel were written: `target` and its bases are no longer uniform."""
        self.store.forget_uniform(target)
        while target in self._made:
            target = self._made[target][0]
            self.store.forget_uniform(target)


def index_put(store: LabelStore, args: tuple[Any, ...], out: Tensor) -> None:
    """Writes at given indices: channels along an indexed axis are frozen."""
    target, indices, values = args[:3]
    for index in tensors_in(indices):
        store.freeze(store.labels(index), "it holds indices for a write")
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    labels, have = store.labels(values), store.labels(target)
    labels = labels.reshape((1,) * max(0, target.ndim - labels.ndim) + tuple(labels.shape))
    if labels.ndim != target.ndim or any(
        found.shape[axis] > 1 for axis in axes for found in (labels, have)
    ):
        store.freeze(labels, "it is written at given indices")
        store.freeze(have, "it is written at given indices")
        return
    if target in store:
        store.unite(have, labels, "a write into rows")
    store.put(out, labels if varying_axes(labels) else have)
