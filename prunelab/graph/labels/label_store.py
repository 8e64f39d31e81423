"""The label store: the channel that every element of every tensor comes from, and the couplings.

Holds the labels of tensors while a network runs, and records the results: coupled channels,
frozen channels, and the axes of parameters that channels index.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from prunelab.data.tensors import tensors_of
from prunelab.graph.labels.derived_sizes import Derived
from prunelab.graph.labels.layout import along, varying_axes
from prunelab.graph.labels.module_stack import ModuleStack
from prunelab.graph.labels.provenance import Key, Origin, Pair

FROZEN = 0  # the label of everything that is no layer's output: inputs and constants


@dataclass(frozen=True, slots=True)
class Edge:
    """Labels `a` and `b` (equal length), coupled pair by pair by the operation `why`.

    `where` names the innermost running module; "" is the network itself.
    """

    a: Tensor
    b: Tensor
    why: str
    where: str = ""


@dataclass(slots=True)
class LayerTrace:
    """The trace of one layer.

    `out` [out channels] and `into` [in channels] are labels; `in_axis` is the weight's axis that
    reads channels; `groups` and `transposed` are those of the convolution; `positions` is the
    number of output positions of one input, `applied` the number of applications of the kernel to
    it, both summed over calls. Where the rows of the input are channels (labels `rows`, of one
    input), both count for one row. `other` holds the multiply-adds and output elements of calls of
    other shapes, which cannot be cut. `norm` names the BatchNorm that follows; `order` is the
    position in execution order. `computed` says that the weight in use is computed from its
    parameters, `cuttable` that its channels can be removed; `added` are parameters that are added
    to the main one, with the axis that reads channels.
    """

    name: str
    out: Tensor
    into: Tensor
    kernel: tuple[int, ...]
    groups: int
    transposed: bool
    in_axis: int
    order: int
    computed: bool
    cuttable: bool
    positions: int = 0
    applied: int = 0
    calls: int = 0
    norm: str | None = None
    rows: Tensor | None = None
    other: tuple[int, int] = (0, 0)
    added: set[Key] = field(default_factory=set)


@dataclass(slots=True)
class Trace:
    """The result of running a network on labels.

    `count` is the number of labels; `edges` are couplings, `frozen` labels with reasons. `slots`
    gives the labels along an axis of a parameter or buffer. `norms` are weight norms, (direction,
    length, axis); `inexact` are labels of channels whose normalisation changes with their number;
    `bare` are the labels that normalisation modules without parameters read; `several` those along
    an axis [length, rest] of which two positions must stay; `parts` those of the parts of an axis
    that code takes by numbers, each with the reason to freeze it.
    """

    count: int = 1
    edges: list[Edge] = field(default_factory=list)
    frozen: list[tuple[Tensor, str]] = field(default_factory=list)
    slots: dict[Key, Tensor] = field(default_factory=dict)
    layers: dict[str, LayerTrace] = field(default_factory=dict)
    norms: set[tuple[str, str, int]] = field(default_factory=set)
    inexact: list[Tensor] = field(default_factory=list)
    bare: dict[str, Tensor] = field(default_factory=dict)
    several: list[Tensor] = field(default_factory=list)
    parts: list[tuple[Tensor, str]] = field(default_factory=list)


class LabelStore:
    """The labels of all tensors of one run, and the `Trace` built from them.

    `guarded` maps names of modules to reasons. Whatever the code of such a module can access is
    frozen: its inputs, what it computes, and the outputs of its submodules. `met` collects the
    same tensors of every module, as labels and shapes, where it is a list. `derived` is what
    `derived_sizes` found. With `inexact`,
    channels over which statistics are taken are marked instead of frozen; with `edit`, so are parts
    of an axis that are taken by numbers.
    """

    def __init__(
        self,
        stack: ModuleStack,
        inexact: bool = False,
        edit: bool = False,
        derived: Derived | None = None,
    ) -> None:
        self.trace = Trace()
        self.inexact, self.edit = inexact, edit
        self._stack = stack
        self._labels = WeakTensorKeyDictionary()
        self._uniform = WeakTensorKeyDictionary()
        self._rigid: dict[Key, str] = {}
        self._paired: list[Pair] = []
        self._places = WeakTensorKeyDictionary()  # of maxima over channels: the channels
        self.guarded: dict[str, str] = {}
        self.derived = derived or {}
        self.met: list[tuple[str, Tensor, torch.Size]] | None = None

    # ------------------------------------------------------------ labels of tensors

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._labels

    def labels(self, tensor: Tensor) -> Tensor:
        """The label of every element, broadcastable to `tensor`'s shape."""
        found = self._labels.get(tensor)
        if found is None:
            return torch.full((1,) * tensor.ndim, FROZEN)
        return found

    def put(self, tensor: Tensor, labels: Tensor) -> None:
        """Store compact `labels` for `tensor`; a tensor without channels has none."""
        if labels.numel() == 1 and int(labels) == FROZEN:
            self._labels.pop(tensor, None)
        else:
            self._labels[tensor] = labels
            self.guard(tensor)

    def guard(self, given: Any) -> None:
        """Freeze, or collect, the tensors in `given` while their module is running."""
        here = self._stack.innermost
        why = self.guarded.get(here)
        for tensor in tensors_of(given) if why is not None or self.met is not None else ():
            if tensor not in self:
                continue
            if why is not None:
                self.freeze(self.labels(tensor), why)
            if self.met is not None:
                self.met.append((here, self.labels(tensor), tensor.shape))

    def copy(self, tensor: Tensor, other: Tensor) -> None:
        """`tensor` has the same elements as `other`, so it gets the same labels."""
        if other in self._labels:
            self.put(tensor, self.labels(other))
        if other in self._uniform:
            self._uniform[tensor] = self._uniform[other]

    def uniform(self, tensor: Tensor) -> bool:
        """Whether a tensor without labels is the same for every channel, for any number of them."""
        return tensor in self._uniform

    def forget_uniform(self, tensor: Tensor) -> None:
        """`tensor` is no longer uniform: position-dependent values were written into it."""
        self._uniform.pop(tensor, None)

    def fill(self, tensor: Tensor) -> None:
        """Where nothing was written into a uniform tensor, it has the channels written beside."""
        labels = self._labels.get(tensor)
        if labels is None or tensor not in self._uniform:
            return
        for axis in varying_axes(labels):
            most = labels.amax(axis, keepdim=True)
            others = [a for a in varying_axes(labels) if a != axis]
            if others and bool(((labels == most) | (labels == FROZEN)).all()):
                labels = most
        self.put(tensor, labels)

    def make_uniform(self, made: Any, like: Tensor | None = None) -> None:
        """No element of `made` depends on its channel, so it fits any number of channels.

        Where it has the shape of `like`, it is taken to have the channels of `like`.
        """
        for tensor in tensors_of(made):
            self._make_uniform(tensor, like)

    def _make_uniform(self, tensor: Tensor, like: Tensor | None) -> None:
        alike = like is not None and like.shape == tensor.shape and like in self
        self._uniform[tensor] = self.labels(like) if alike and like is not None else None

    def settle(self, tensor: Tensor, labels: Tensor | None = None, axis: int = 1) -> None:
        """Give a uniform tensor the labels of the first tensor that it is combined with.

        These are `labels`, of its rank or a higher one. Without any, it is read along `axis` and
        gets labels that no layer issued.
        """
        if tensor in self or tensor not in self._uniform:
            return
        found = self._uniform[tensor]
        if found is None and labels is None:
            shape = [1] * tensor.ndim
            shape[axis] = -1
            found = self.issue(tensor.shape[axis]).reshape(shape)
        elif found is None and labels is not None:
            more = labels.ndim - tensor.ndim
            axes = varying_axes(labels)
            if all(axis >= more and tensor.shape[axis - more] > 1 for axis in axes):
                found = labels.reshape(labels.shape[more:])
        if found is not None:
            self.put(tensor, found)

    # ------------------------------------------------------------ couplings and frozen channels

    def issue(self, width: int) -> Tensor:
        """New labels [width]."""
        start = self.trace.count
        self.trace.count += width
        return torch.arange(start, start + width)

    def freeze(self, labels: Tensor, why: str) -> None:
        """Freeze these channels, for the reason `why`."""
        some = torch.unique(labels)
        some = some[some != FROZEN]
        if len(some):
            self.trace.frozen.append((some, why))

    def bend(self, labels: Tensor, why: str) -> bool:
        """Mark these channels as inexact and return True or, unless `inexact`, freeze them."""
        if self.inexact:
            self.trace.inexact.append(torch.unique(labels))
        else:
            self.freeze(labels, why)
        return self.inexact

    def note_places(self, tensor: Tensor, labels: Tensor) -> None:
        """`tensor` says which of these channels is the largest: whoever uses it freezes them."""
        self._places[tensor] = labels

    def used(self, tensors: Iterable[Tensor]) -> None:
        """Freeze the channels whose numbers are in one of `tensors`."""
        for tensor in tensors if self._places else ():
            if tensor in self._places:
                self.freeze(self._places[tensor], "which of its channels is largest is used")

    def part(self, labels: Tensor, why: str) -> None:
        """Mark a part of an axis that code takes by numbers, which an attribute may hold."""
        self.trace.parts.append((torch.unique(labels), why))

    def unite(self, a: Tensor, b: Tensor, why: str) -> None:
        """Couple `a` and `b` element by element; a label paired with FROZEN is frozen."""
        if a.shape == b.shape and torch.equal(a, b):
            return
        a, b = torch.broadcast_tensors(a, b)
        different = a != b
        a, b = a[different], b[different]
        if not len(a):
            return
        low, high = torch.minimum(a, b), torch.maximum(a, b)
        pairs = low * self.trace.count + high
        if not bool((pairs[1:] > pairs[:-1]).all()):
            pairs = torch.unique(pairs)
        low, high = pairs // self.trace.count, pairs % self.trace.count
        fixed = low == FROZEN
        self.freeze(high[fixed], f"it is combined with a tensor of fixed width by {why}")
        if (~fixed).any():
            self.trace.edges.append(Edge(low[~fixed], high[~fixed], why, self._stack.innermost))

    def unite_known(self, a: Tensor, b: Tensor, why: str) -> None:
        """Couple `a` and `b` element by element where both are channels."""
        a, b = torch.broadcast_tensors(a, b)
        known = (a != FROZEN) & (b != FROZEN)
        self.unite(a[known], b[known], why)

    def collapse(self, labels: Tensor, axes: list[int], why: str) -> Tensor:
        """Couple the labels along `axes` with each other, and keep one of them."""
        for axis in axes:
            if labels.shape[axis] > 1:
                first = labels.narrow(axis, 0, 1)
                self.unite(labels, first, why)
                labels = torch.maximum(first, labels.amax(axis, keepdim=True) * (first == FROZEN))
        return labels

    def column(self, tensor: Tensor, axis: int, why: str) -> Tensor:
        """One label for each position of `axis`, which stands for the whole column."""
        labels = self.labels(tensor)
        axis %= tensor.ndim
        others = [other for other in varying_axes(labels) if other != axis]
        labels = self.collapse(labels, others, why)
        return along(labels, axis, tensor.shape[axis]).reshape(-1).clone()

    # ------------------------------------------------------------ parameters

    def index(self, origin: Origin, labels: Tensor, why: str) -> None:
        """Assign parameter entries to channels.

        Parameters
        ----------
        origin
            The parameters from which a tensor was computed.
        labels
            The channels of that tensor, broadcastable to it. The channels of parameters whose
            entries are mixed with each other are frozen.
        why
            The operation.
        """
        for key in origin.mixed:
            self._rigid.setdefault(key, f"the entries of {key[0]} depend on each other")
        if origin.tangled:
            self.freeze(labels, f"{origin.name} is computed with others in a way without a rule")
        self.trace.norms |= origin.norms
        self._paired += origin.paired
        axes = set(varying_axes(labels))
        for key, index in origin.axes.items():
            if axes.isdisjoint(varying_axes(index)):
                continue
            at, met = torch.broadcast_tensors(index, labels)
            at, met = at.reshape(-1), met.reshape(-1)
            size = int(at.max()) + 1
            if len(at) != size or not torch.equal(at, torch.arange(size)):
                order = torch.argsort(at, stable=True)
                at, met = at[order], met[order]
                starts = torch.ones(len(at), dtype=torch.bool)
                starts[1:] = at[1:] != at[:-1]
                if int(starts.sum()) != size:
                    self.freeze(labels, f"it is combined with a part of {key[0]} by {why}")
                    continue
                first = met[starts]
                self.unite(met, first[torch.cumsum(starts, 0) - 1], why)
                met = first
            self.slot(key, met, why)

    def slot(self, key: Key, labels: Tensor, why: str) -> None:
        """Record that the channels `labels` index this axis of a parameter or buffer."""
        if key in self.trace.slots:
            self.unite(self.trace.slots[key], labels, why)
        else:
            self.trace.slots[key] = labels.clone()

    def close(self) -> Trace:
        """The finished trace."""
        for key, other, index in self._paired:
            if other in self.trace.slots:
                labels = self.trace.slots[other][index]
                self.slot(key, labels, f"a product of {key[0]} and {other[0]}")
        for key, why in self._rigid.items():
            if key in self.trace.slots:
                self.bend(self.trace.slots[key], why)
        return self.trace
