"""Which tensors are views of which, and what writing into one does to the labels of others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from prunelab.graph.labels.label_store import Book
from prunelab.graph.labels.layout import compact, spread, tensors_in, varying


class Views:
    """The views made while a network runs, each with the operation that made it."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self._made = WeakTensorKeyDictionary()  # of a view: (base tensor, func, args, kwargs)

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._made

    def note(self, view: Tensor, func: Any, args: tuple[Any, ...], kwargs: Any) -> None:
        """`func(*args, **kwargs)` made `view`."""
        self._made[view] = (args[0], func, args[1:], kwargs)

    def written(self, target: Tensor, before: Tensor) -> None:
        """Data was written into `target`, whose labels were `before`: its base changes too.

        The same views are taken of the base's labels, down to the window that was written.
        """
        book, chain, base = self.book, [], target
        labels = book.labels(target)
        if labels.shape == before.shape and torch.equal(labels, before):
            return
        while base in self._made:
            parent, func, args, kwargs = self._made[base]
            chain.append((func, args, kwargs))
            base = parent
        if not chain:
            return
        whole = spread(book.labels(base), base.shape).clone()
        window: Any = whole
        for func, args, kwargs in reversed(chain):
            window = func(window, *args, **kwargs)
            if not isinstance(window, Tensor):
                book.freeze(labels, "a write into a part of a split tensor")
                book.freeze(whole, "a write into a part of a split tensor")
                return
        window.copy_(labels.expand(window.shape))
        book.put(base, compact(whole))

    def written_fixed(self, target: Tensor) -> None:
        """Numbers without a channel were written: no tensor in question is uniform any more."""
        self.book.forget_uniform(target)
        while target in self._made:
            target = self._made[target][0]
            self.book.forget_uniform(target)


def index_put(book: Book, args: tuple[Any, ...], out: Tensor) -> None:
    """Rows are written at given places: along them there are no channels, or they freeze."""
    target, indices, values = args[:3]
    for index in tensors_in(indices):
        book.freeze(book.labels(index), "it says where something is written")
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    labels, have = book.labels(values), book.labels(target)
    labels = labels.reshape((1,) * max(0, target.ndim - labels.ndim) + tuple(labels.shape))
    if labels.ndim != target.ndim or any(
        found.shape[axis] > 1 for axis in axes for found in (labels, have)
    ):
        book.freeze(labels, "it is written at places given by number")
        book.freeze(have, "it is written at places given by number")
        return
    if target in book:
        book.unite(have, labels, "a write into rows")
    book.put(out, labels if varying(labels) else have)
