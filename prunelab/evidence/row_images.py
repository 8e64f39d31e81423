"""Which image of a batch each row of a tensor comes from, followed while a network runs.

Regions of interest, tokens and windows put several rows of one image, often of unequal numbers,
into one tensor. Operations that move data are run on the images' numbers themselves; all others
keep the first axis. What cannot be followed is unknown, and never guessed.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from prunelab.data.batches import batch_size, sample_lists
from prunelab.graph.labels.layer_calls import Origins
from prunelab.graph.labels.layout import (
    arange,
    axes_of,
    compact,
    moved,
    spread,
    varying_axes,
    viewed,
)
from prunelab.graph.labels.op_tables import MOVES, REDUCES, RESHAPES, UNIFORM, VIEWS, aten

NONE = -1  # an entry that comes from no image: it was created from a size
REGIONS = {"torchvision::roi_align", "torchvision::roi_pool", "torchvision::ps_roi_align"}
REARRANGES = VIEWS | MOVES | {  # run on the labels themselves
    aten.index, aten.index_select, aten.cat, aten.stack, aten.constant_pad_nd, aten.roll,
}  # fmt: skip
WRITES = {aten.index_put_, aten.index_put, aten.copy_}
UNKNOWN = torch.empty(0)


class RowImages:
    """The images of rows while a network runs on `batch`.

    Where the batch holds its images in one tensor, any with as many rows as it has images, of which
    nothing else is known, has one row an image, unless it is one of `weights`.
    """

    def __init__(self, batch: Any, weights: Origins) -> None:
        self.count = batch_size(batch)
        self._weights = weights
        self._labels = WeakTensorKeyDictionary()
        self._created: dict[int, weakref.ref[Tensor]] = {}  # by storage
        lists = sample_lists(batch)
        self._implicit = not lists
        for column in lists:
            for image, entry in enumerate(column):
                for x in tree_leaves(entry):
                    if isinstance(x, Tensor):
                        self._labels[x] = torch.full((1,) * x.ndim, image)
        for x in tree_leaves(batch) if lists else ():
            if isinstance(x, Tensor) and x not in self._labels and len(x) == self.count:
                self._labels[x] = arange(self.count, x.ndim, 0)

    def of(self, x: Tensor) -> Tensor | None:
        """The image of each row of `x` [rows]; None if that is not known."""
        if not len(x):
            return torch.empty(0, dtype=torch.long)
        labels = self._known(x)
        if labels is None or varying_axes(labels) not in ([], [0]):
            return None
        rows = spread(labels, (len(x), *[1] * (x.ndim - 1))).reshape(-1)
        if bool((rows == NONE).all()) and len(x) == self.count:
            return torch.arange(self.count)
        return None if bool((rows == NONE).any()) else rows

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Take note of an operation's outputs."""
        packet = func.overloadpacket
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.is_floating_point()]
        if not made:
            return
        if packet in UNIFORM:
            for x in made:
                self._labels[x] = torch.full((1,) * x.ndim, NONE)
                self._created[x.untyped_storage().data_ptr()] = weakref.ref(x)
        elif packet in WRITES:
            self._write(packet, args, made[0])
        elif func.name().split(".")[0] in REGIONS:
            self._regions(args, made[0])
        elif packet in REARRANGES:
            self._rearrange(func, packet, args, kwargs, made)
        else:
            self._keep(packet, args, kwargs, made)

    def _followed(self, args: tuple[Any, ...]) -> list[Tensor]:
        """The inputs that may hold rows of images."""
        tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
        return [x for x in tensors if x.is_floating_point() and x not in self._weights]

    def _known(self, x: Tensor) -> Tensor | None:
        found = self._labels.get(x)
        if found is not None:
            return None if found is UNKNOWN else found
        plain = self._implicit and x.ndim and len(x) == self.count
        return arange(self.count, x.ndim, 0) if plain else None

    def _put(self, x: Tensor, labels: Tensor | None) -> None:
        if not x.numel():
            self._labels[x] = torch.full((1,) * x.ndim, NONE)
        elif labels is None:
            self._labels[x] = UNKNOWN
        elif (
            self._implicit
            and x.ndim
            and len(x) == self.count
            and labels.equal(arange(self.count, x.ndim, 0))
        ):
            self._labels.pop(x, None)
        else:
            self._labels[x] = labels

    def _regions(self, args: tuple[Any, ...], made: Tensor) -> None:
        """Regions name, in their first column, the row that they are taken from."""
        images = self.of(args[0])
        rows = None if images is None else images[args[1][:, 0].long().cpu()]
        self._put(made, None if rows is None else rows.reshape(-1, *[1] * (made.ndim - 1)))

    def _write(self, packet: Any, args: tuple[Any, ...], made: Tensor) -> None:
        """Rows that are written into another tensor."""
        into = self._known(args[0])
        value = self._known(args[1 if packet is aten.copy_ else 2])
        if packet is aten.copy_:
            self._copy(made, value)
        elif into is None or value is None:
            self._put(made, None)
        elif not args[2].numel():
            self._put(made, into)
        else:
            places = [None if index is None else index.cpu() for index in args[1]]
            whole = spread(into, args[0].shape).clone()
            written = spread(value, args[2].shape)
            self._put(made, compact(aten.index_put(whole, places, written)))

    def _copy(self, view: Tensor, value: Tensor | None) -> None:
        """A copy into a view of a tensor that was created from a size."""
        base = self._created.get(view.untyped_storage().data_ptr(), lambda: None)()
        if base is None or not base.ndim or not base.is_contiguous() or not view.numel():
            self._put(view, value if value is None or value.ndim == view.ndim else None)
            return
        row = max(1, base.stride(0))
        first = view.storage_offset() - base.storage_offset()
        last = first + sum((n - 1) * s for n, s in zip(view.shape, view.stride(), strict=True))
        first, stop = first // row, last // row + 1
        known = self._known(base)
        if value is None or known is None or varying_axes(known) not in ([], [0]):
            self._put(base, None)
        elif value.numel() == 1 or (varying_axes(value) == [0] and len(value) == stop - first):
            whole = spread(known, (len(base), *[1] * (base.ndim - 1))).clone()
            whole[first:stop] = value.reshape(-1, *[1] * (base.ndim - 1))
            self._put(base, compact(whole))
        else:
            self._put(base, None)

    def _rearrange(
        self, func: Any, packet: Any, args: tuple[Any, ...], kwargs: Any, made: list[Tensor]
    ) -> None:
        moves = self._followed(args)
        known = [self._known(x) for x in moves]
        if all(found is None for found in known) and not any(x in self._labels for x in moves):
            return
        labels = [found for found in known if found is not None]
        results: list[Any]
        if len(labels) < len(known):
            results = [None] * len(made)
        elif packet in RESHAPES:
            regrouped = viewed(labels[0], args[0].shape, made[0].shape)
            results = [None if regrouped is None else regrouped[0]]
        elif packet in (aten.cat, aten.stack):
            parts = [
                spread(found, x.shape) for found, x in zip(labels, moves, strict=True) if x.numel()
            ]
            results = [compact(func(parts, *args[1:], **kwargs)) if parts else None]
        else:
            rest = tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, args[1:])
            results = moved(func, labels[0], args[0].shape, rest, kwargs)
        for x, found in zip(made, results, strict=True):
            self._put(x, found)

    def _keep(self, packet: Any, args: tuple[Any, ...], kwargs: Any, made: list[Tensor]) -> None:
        """Other operations keep the first axis, or the shape."""
        inputs = self._followed(args)
        if not any(x in self._labels for x in inputs):
            if any(self._known(x) is not None for x in inputs):
                over = args[1] if len(args) > 1 else kwargs.get("dim")
                mixed = packet in REDUCES and 0 in axes_of(over, args[0].ndim)
                for x in made:
                    if mixed or not x.ndim or len(x) != self.count:
                        self._labels[x] = UNKNOWN
            return
        for x in made:
            self._put(x, self._shared(inputs, x))

    def _of_none(self, x: Tensor) -> bool:
        """Whether a tensor holds nothing of any image."""
        labels = self._known(x)
        return x not in self._labels if labels is None else bool((labels == NONE).all())

    def _shared(self, inputs: list[Tensor], x: Tensor) -> Tensor | None:
        """The labels that all inputs give `x`; None if they differ or do not fit."""
        shared: Tensor | None = None
        for each in [x for x in inputs if not self._of_none(x)] or inputs[:1]:
            labels = self._known(each)
            if labels is not None and each.shape != x.shape:
                labels = self._fitted(labels, each, x)
            if labels is None or (shared is not None and not torch.equal(shared, labels)):
                return None
            shared = labels
        return shared

    def _fitted(self, labels: Tensor, given: Tensor, x: Tensor) -> Tensor | None:
        """The labels of `given` for a tensor `x` with the same rows."""
        varying = varying_axes(labels)
        if varying and not (varying == [0] and x.ndim and len(given) == len(x)):
            return None
        return labels.reshape(-1, *[1] * (x.ndim - 1)) if x.ndim else None
