"""Ablation, the oracle of the loss: runs the network with units masked.

A unit is masked where its consumers read it. Everything before the first of them is the same for
every mask, so it runs once; later runs take those results from a `PrefixCache`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunelab.data.batches import batch_size
from prunelab.data.private_random import private_random, private_steps
from prunelab.errors import BadData, NotFinite
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph
from prunelab.graph.modules.dispatch_mode import DispatchMode
from prunelab.graph.surgery.editing import masked_tensors
from prunelab.graph.surgery.network_state import state_preserved
from prunelab.graph.trace import copy_of
from prunelab.loops.batch import Loss, checked, cross_entropy, finish, guarded
from prunelab.loops.own import loss_of
from prunelab.loops.ranks import sharded, summed
from prunelab.values import Progress, Units, many
from prunelab.values.given import as_annotated

Array = np.ndarray
Drop = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True, eq=False)
class Ablation:
    """The mean loss on `images` images without each unit of a group alone [units].

    `base` is the loss with all units.
    """

    group: str
    units: Units
    images: int
    losses: Array
    base: float

    @property
    def signed(self) -> Array:
        """The increase of the loss without each unit [units], the loss oracle; may be negative."""
        return self.losses - self.base

    @property
    def absolute(self) -> Array:
        """The absolute change of the loss [units]; it ranks differently from `signed`."""
        return np.abs(self.signed)


class Ablator:
    """Runs a private copy of `model` with sets of units masked; `model` itself is not changed.

    Parameters
    ----------
    model, graph
        The network and its graph.
    loss
        `loss(model, batch)`, a mean over the batch.
    cached
        Whether to reuse what runs before the masked units; without, every set runs the whole
        network, which is slower and gives the same losses.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, loss: Loss, *, cached: bool = True
    ) -> None:
        self._network = copy_of(model).eval().requires_grad_(False)
        self._graph = graph
        self._loss = loss_of(loss)
        self._cached = cached

    def measure(self, batch: Any, drops: Sequence[Drop]) -> Iterator[tuple[int, float]]:
        """Yield (index in drops, loss) on `batch` with each of `drops`, group to units, masked.

        In the order of the first layer that reads them, because the cached prefix can only grow.
        """
        gone = [self._graph.gone(drop) for drop in drops]
        first = [self._first_reader(units) for units in gone]
        cache = PrefixCache()
        for index in np.argsort(first, kind="stable").tolist():
            loss = self._run(batch, gone[index], cache)
            if not np.isfinite(loss):
                raise NotFinite(
                    f"The loss is {loss} without {dict(drops[index])}. Look for NaN in the weights "
                    "and images."
                )
            yield index, loss

    def _first_reader(self, gone: Array) -> int:
        """The index, in execution order, of the first layer that reads a masked unit."""
        layers = self._graph.layers
        reads = (
            place for place, one in enumerate(layers) if one.dense and gone[one.in_units].any()
        )
        return next(reads, len(layers))

    def _run(self, batch: Any, gone: Array, cache: PrefixCache) -> float:
        network = self._network
        parameters = dict(network.named_parameters())
        changed = masked_tensors(network, self._graph, gone)
        read = {id(parameters[name]) for name in changed}
        still = state_preserved(network)
        with torch.inference_mode(), still, private_random(), _replaced(parameters, changed):
            if not self._cached:
                return float(checked(self._loss, network, batch))
            try:
                with cache.until(read):
                    return float(checked(self._loss, network, batch))
            except _PrefixMismatch:
                cache.clear()
            with cache.until(read):
                return float(checked(self._loss, network, batch))


@contextmanager
def _replaced(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Any:
    """Within it, parameters have other `values`."""
    saved = {name: parameters[name].clone() for name in values}
    for name, value in values.items():
        parameters[name].copy_(value)
    try:
        yield
    finally:
        for name, value in saved.items():
            parameters[name].copy_(value)


class _PrefixMismatch(BaseException):  # a user's loss, which it passes, may catch an Exception
    """The run differs from the one whose operations are cached."""


class PrefixCache(DispatchMode):
    """Caches the results of a network's operations up to the first that reads given weights.

    Runs must be identical up to there. Within `until(weights)`, cached operations are not
    computed again, further ones up to the first that reads one of `weights` (ids) are cached, and
    the rest are computed; tensors of the cache that these write to are restored at the end.
    Random operations are never cached.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._done: list[tuple[Any, Any]] = []
        self._kept: set[int] = set()  # the storages of cached tensors
        self._weights: set[int] = set()
        self._place: int | None = 0  # None: past the first read of the weights
        self._undo: list[tuple[Tensor, Tensor]] = []

    def clear(self) -> None:
        """Empty the cache."""
        self._done.clear()
        self._kept.clear()

    @contextmanager
    def until(self, weights: set[int]) -> Any:
        """One run of the network: reuse the prefix, extend it, compute the rest."""
        self._weights, self._place = weights, 0
        try:
            with self:
                yield
        finally:
            for tensor, value in reversed(self._undo):
                tensor.copy_(value)
            self._undo.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self._place is not None and (
            any(id(tensor) in self._weights for tensor in tensors)
            or torch.Tag.nondeterministic_seeded in func.tags
        ):
            if self._place < len(self._done):
                raise _PrefixMismatch
            self._place = None
        if self._place is None:
            if func._schema.is_mutable:
                self._save(func, args, kwargs)
            return func(*args, **kwargs)
        place, self._place = self._place, self._place + 1
        if place < len(self._done):
            known, out = self._done[place]
            if known is not func:
                raise _PrefixMismatch
            # autograd accepts a view of the user's own tensors only once, so it is made again
            return func(*args, **kwargs) if _is_view(func) else out
        out = func(*args, **kwargs)
        self._done.append((func, out))
        self._kept |= {_storage(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
        return out

    def _save(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> None:
        """Save the cached tensors that an operation is about to write to."""
        for place, argument in enumerate(func._schema.arguments):
            given = kwargs.get(argument.name, args[place] if place < len(args) else None)
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_leaves(given):
                    if isinstance(tensor, Tensor) and _storage(tensor) in self._kept:
                        self._undo.append((tensor, tensor.clone()))


def _is_view(func: Any) -> bool:
    """Whether an operation returns a view of its input and writes nothing."""
    aliases = [given.alias_info for given in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@as_annotated
def ablate(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    drops: Sequence[Drop],
    *,
    loss: Loss = cross_entropy,
) -> Array:
    """The mean loss of a network with sets of units masked; the network is left as it was.

    Parameters
    ----------
    model, graph
        The network and its graph.
    batches
        What `loss` takes, read once.
    drops
        The sets to mask, mappings from group to units; an empty one gives the loss as it is.
    loss
        `loss(model, batch)`, a mean over the batch.

    Returns
    -------
    np.ndarray
        The mean loss with each set masked [drops].

    Raises
    ------
    BadData
        For no batches, or batches on which the network or the loss fails.
    NotFinite
        For a loss that is NaN or infinite.
    """
    losses: Array = finish(ablating(model, graph, batches, drops, loss))
    return losses


@private_steps
def ablating(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    drops: Sequence[Drop],
    loss: Loss,
    expected: int = 0,
) -> Generator[Progress, None, Array]:
    """`ablate` as a generator: yields Progress in runs of the network; returns the losses.

    `expected` is how many images there are; the other parameters are those of `ablate`.
    """
    sums = _Sums(Ablator(model, graph, loss), drops)
    for batch in guarded(sharded(batches)):
        yield from sums.measuring(batch, expected)
    total = summed({"losses": sums.losses, "images": sums.images})
    if not total["images"]:
        raise BadData("There are no batches to measure on; give at least one.")
    losses: Array = total["losses"] / total["images"]
    return losses


class _Sums:
    """Sums losses over batches: `losses` [drops], over `images`."""

    def __init__(self, ablator: Ablator, drops: Sequence[Drop]) -> None:
        self.ablator = ablator
        self.drops = drops
        self.losses = np.zeros(len(drops))
        self.images = 0
        self._runs = 0

    def measuring(self, batch: Any, expected: int = 0) -> Generator[Progress, None, None]:
        """Add a batch; yields Progress after every run of the network."""
        size = batch_size(batch)
        whole = len(self.drops) * -(-max(expected, self.images + size) // max(1, size))
        for index, loss in self.ablator.measure(batch, self.drops):
            self.losses[index] += loss * size
            self._runs += 1
            what = f"running the network without each of {many(len(self.drops), 'set')}"
            yield Progress(self._runs, max(self._runs, whole), what)
        self.images += size


class LossSums(_Sums):
    """The loss without each prunable unit and, last, with all units."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, loss: Loss) -> None:
        units = [(g.name, g.first, unit) for g in graph.groups if g.prunable for unit in g.units]
        super().__init__(Ablator(model, graph, loss), [{}, *({n: (u,)} for n, _, u in units)])
        self._place = np.array([FIXED, *(first + unit for _, first, unit in units)])
        self._units = graph.units

    @property
    def sums(self) -> Array:
        """The losses summed over images, by graph-wide unit number [units + 1]."""
        sums = np.zeros(self._units + 1)
        sums[self._place] = self.losses
        return sums
