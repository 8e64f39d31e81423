"""A forward pass as a list of operations that run in any order which respects the flow of data.

A network is recorded once, on tensors without data, for every shape of batch. A batch can then be
advanced to any operation, wait there, and go on when the weights behind it have changed: so layers
are repaired front to back in one pass instead of one pass each, whatever the network's code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from prunelab.evidence.reconstruction_target import batch_norm_scale
from prunelab.graph.labels.layer_calls import Call

PLAIN = (int, float, bool, str, bytes, type(None), torch.dtype, torch.device)


class NotReplayable(Exception):
    """What a network computes depends on more than the shapes of its batch."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a tensor that an operation makes or reads."""

    number: int


@dataclass(frozen=True, slots=True)
class Read:
    """One tensor as an operation reads it: its slot, and the operations that must run before."""

    slot: int
    after: frozenset[int]


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One operation: its arguments with slots for tensors, what it reads, the slots it fills.

    `after` are the operations that must run before it: those that make or last change what it
    reads and, where it writes in place, those that read the value before. `overwrites` are the
    slots of all tensors that lie where it writes.
    """

    func: Any
    given: tuple[tuple[Any, ...], dict[str, Any]]
    reads: tuple[Read, ...]
    made: tuple[int | None, ...]
    after: frozenset[int]
    overwrites: frozenset[int]

    @property
    def leaves(self) -> list[Any]:
        """The arguments, flat, with slots for tensors."""
        return tree_leaves(self.given, is_leaf=lambda x: isinstance(x, Slot))


@dataclass(frozen=True, slots=True, eq=False)
class LayerCall:
    """The operation `at` calls a layer; `x` is what it reads, `y` its output.

    `norm` is the BatchNorm that reads the output alone; `shortcut` the other summand, where the
    output, or the BatchNorm's, enters a sum; `rectified` says that it enters a ReLU instead.
    """

    call: Call
    at: int
    x: Read
    y: Read
    norm: int | None = None
    shortcut: Read | None = None
    rectified: bool = False


@dataclass(slots=True, eq=False)
class Recording:
    """The operations of a network on one shape of batch.

    `layers` are the calls of each layer, `overwritten` the slots that an operation overwrites.
    """

    inputs: tuple[int, ...]
    operations: list[Operation] = field(default_factory=list)
    layers: dict[str, list[LayerCall]] = field(default_factory=dict)
    overwritten: set[int] = field(default_factory=set)
    _layer_at: dict[int, str] = field(default_factory=dict)

    def output(self, index: int) -> Read:
        """The first tensor that an operation makes."""
        slot = self.operations[index].made[0]
        assert slot is not None
        return Read(slot, frozenset({index}))

    def alike(self, other: Recording) -> bool:
        """Whether these are the same operations in the same flow, on tensors of any shapes."""
        return len(self.operations) == len(other.operations) and all(
            a.func is b.func and a.made == b.made and a.reads == b.reads
            for a, b in zip(self.operations, other.operations, strict=True)
        )

    def upstream(self, read: Read) -> set[str]:
        """The layers that a tensor depends on."""
        if not self._layer_at:
            self._layer_at |= {c.at: name for name, calls in self.layers.items() for c in calls}
        return {self._layer_at[i] for i in self.closure(read.after) if i in self._layer_at}

    def closure(self, operations: Iterable[int], done: Sequence[int] = ()) -> set[int]:
        """These operations and all that must run before them, but for those done."""
        found: set[int] = set()
        waiting = list(operations)
        while waiting:
            index = waiting.pop()
            if index not in found and not (done and done[index]):
                found.add(index)
                waiting.extend(self.operations[index].after)
        return found


def signature(batch: Any) -> Hashable:
    """What a recording depends on: a batch's structure, its tensors' layout, its other values.

    Raises `NotReplayable` for a batch that holds objects in which tensors may hide.
    """
    leaves, structure = tree_flatten(batch)
    if not all(isinstance(leaf, (Tensor, *PLAIN)) for leaf in leaves):
        raise NotReplayable("the batch holds other objects than tensors and plain values")
    laid = [
        (tuple(x.shape), x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else (type(x), x)
        for x in leaves
    ]
    return structure, tuple(laid)


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors of a batch, in the order of a recording's inputs."""
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


class Run:
    """One batch on its way through a recording.

    `wanted` are the tensors that will be taken, each as often as it is given; a tensor is let go
    when nothing is left that reads it. `scales` keeps what each BatchNorm of `norms`, its outputs,
    multiplied its input by.
    """

    def __init__(
        self,
        recording: Recording,
        batch: Any,
        wanted: Iterable[Read],
        norms: Iterable[Read] = (),
    ) -> None:
        self.recording = recording
        self.batch = batch
        self.wanted = Counter(wanted)
        self.norms = {index: norm for norm in norms for index in norm.after}
        self.scales: dict[Read, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Let everything go: what is asked for next is computed anew, with the weights then."""
        self.values = dict(zip(self.recording.inputs, tensors_of(self.batch), strict=True))
        self.done = bytearray(len(self.recording.operations))
        self.saved: dict[Read, Tensor] = {}  # wanted, and overwritten since
        self._count()

    def _count(self) -> None:
        """Count how often each tensor will yet be read, and let go those that will not."""
        self._left: Counter[int] = Counter()
        for read, times in self.wanted.items():
            self._left[read.slot] += times
        ahead = self.recording.closure((i for read in self.wanted for i in read.after), self.done)
        for index in ahead:
            self._left.update(read.slot for read in self.recording.operations[index].reads)
        self.values = {slot: x for slot, x in self.values.items() if self._left[slot]}

    def take(self, read: Read) -> Tensor:
        """A wanted tensor, for which whatever is missing is computed."""
        for index in sorted(self.recording.closure(read.after, self.done)):
            self._run(index)
        value = self.saved.get(read)
        if value is None:
            value = self.values[read.slot]
            if read.slot in self.recording.overwritten:
                value = value.clone()
        self.wanted -= Counter([read])
        if read not in self.wanted:
            self.saved.pop(read, None)
        self._release(read.slot)
        return value

    def leave(self, reads: Iterable[Read]) -> None:
        """Do without wanted tensors."""
        self.wanted -= Counter(reads)
        self.saved = {read: x for read, x in self.saved.items() if read in self.wanted}
        self._count()

    def _run(self, index: int) -> None:
        operation = self.recording.operations[index]
        if operation.overwrites:
            self.saved |= {
                read: self.values[read.slot].clone()
                for read in self.wanted
                if read.slot in operation.overwrites
                and read not in self.saved
                and all(self.done[before] for before in read.after)
            }
        args, kwargs = tree_map(
            lambda x: self.values[x.number] if isinstance(x, Slot) else x,
            operation.given,
            is_leaf=lambda x: isinstance(x, Slot),
        )
        try:
            out = operation.func(*args, **kwargs)
        except Exception as error:
            raise NotReplayable(f"{operation.func}: {error}") from error
        self.done[index] = True
        if index in self.norms:
            self.scales[self.norms[index]] = batch_norm_scale(args, out)
        for slot, value in zip(operation.made, tree_leaves(out), strict=True):
            if slot is not None and self._left[slot]:
                self.values[slot] = value
        for read in operation.reads:
            self._release(read.slot)

    def _release(self, slot: int) -> None:
        self._left[slot] -= 1
        if not self._left[slot]:
            self.values.pop(slot, None)

    @property
    def carried(self) -> int:
        """The bytes of the tensors that are kept, but for the batch's own."""
        own = {x.untyped_storage().data_ptr() for x in tensors_of(self.batch)}
        kept = {
            value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
            for value in [*self.values.values(), *self.saved.values()]
        }
        return sum(size for place, size in kept.items() if place not in own)
