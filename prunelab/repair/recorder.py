"""Records a forward pass on tensors without data, and refuses what cannot be replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from prunelab.evidence.reconstruction_target import SELECTING
from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.graph.labels.layout import tensors_in
from prunelab.graph.labels.op_tables import NORMALISES_BATCH, aten
from prunelab.graph.surgery.editing import copy_with
from prunelab.graph.surgery.held_tensors import entries
from prunelab.graph.surgery.network_state import state_preserved
from prunelab.repair.dataflow import (
    LayerCall,
    NotReplayable,
    Operation,
    Read,
    Recording,
    Slot,
    tensors_of,
)


def record(
    network: nn.Module,
    batch: Any,
    forward: Callable[[nn.Module, Any], Any],
    like: Recording | None = None,
) -> Recording:
    """Record `forward(network, batch)` in evaluation mode, without computing anything.

    A copy runs whose tensors share the network's memory, so what the code stores in its modules is
    lost. Code may keep what it made for a shape in places of its own: run the network itself on the
    batch before, or tensors without data are kept there. It is recorded twice, to see that it
    computes the same; once is enough if the operations are those of a recording for another shape
    of batch, `like`.

    Raises `NotReplayable` where the code asks for a value, draws random numbers, changes the
    network or the batch, selects by what it computed, computes something else the second time, or
    cannot run without data.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with state_preserved(network):
            copy = _sharing(network).eval()
            stands: dict[int, tuple[Tensor, Tensor]] = {}

            def recorded() -> Recording:
                given = tree_map(
                    lambda x: fake.from_tensor(x) if isinstance(x, Tensor) else x, batch
                )
                recorder = _Recorder(copy, fake, tensors_of(given), stands)
                with recorder:
                    forward(copy, given)
                return recorder.recording

            found = recorded()
            again = None if like is not None and found.alike(like) else recorded()
    except NotReplayable:
        raise
    except Exception as error:  # whatever the code does with a tensor that has no data
        raise NotReplayable(f"{type(error).__name__}: {error}") from error
    if not _shares(copy, network):
        raise NotReplayable("the code replaces a parameter or a buffer")
    if again is not None and not _same(found, again):
        raise NotReplayable("the code computes something else the second time")
    return found


def _sharing(network: nn.Module) -> nn.Module:
    """A copy of a network whose parameters and buffers are others that share their memory."""
    held = {entry.name: entry.tensor.detach() for entry in entries(network)}
    copy = copy_with(network, held).requires_grad_(False)
    if set(copy.modules()) & set(network.modules()) or not _shares(copy, network):
        raise NotReplayable("the network has no copy that shares its tensors alone")
    return copy


def _shares(copy: nn.Module, network: nn.Module) -> bool:
    """Whether the parameters and buffers of a copy are where those of the network are."""

    def places(net: nn.Module) -> list[tuple[Any, ...]]:
        tensors = [*net.named_parameters(), *net.named_buffers()]
        return [(name, t.device, t.dtype, t.shape, t.data_ptr()) for name, t in tensors]

    return places(copy) == places(network)


def _same(one: Recording, other: Recording) -> bool:
    """Whether two recordings are of the same operations on the same values."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a is b or (a.shape == b.shape and torch.equal(a, b))
        return type(a) is type(b) and bool(a == b)

    pairs = zip(one.operations, other.operations, strict=False)
    return len(one.operations) == len(other.operations) and all(
        a.func is b.func and a.made == b.made and all(map(equal, a.leaves, b.leaves))
        for a, b in pairs
    )


class _Recorder(Watch):
    """Runs operations on tensors without data and records them.

    `stands` are the network's tensors, by their ids, each with what stands for it.
    """

    def __init__(
        self,
        model: nn.Module,
        fake: FakeTensorMode,
        inputs: list[Tensor],
        stands: dict[int, tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__(model)
        self.fake = fake
        self.stands = stands
        self.alive: list[Tensor] = list(inputs)  # so that neither ids nor storages are used again
        self.slots = {id(tensor): slot for slot, tensor in enumerate(inputs)}
        self.recording = Recording(tuple(range(len(inputs))))
        self._made: dict[int, int] = {}  # slot -> the operation that made it
        self._written: dict[int, int] = {}  # storage -> the last operation that wrote it
        self._readers: dict[int, set[int]] = {}  # storage -> those that read it since
        self._followed: dict[int, tuple[str, int]] = {}  # slot -> layer, and number of its call
        self._own = {_storage(x) for x in inputs}  # storages of the batch
        self._network: dict[int, Tensor] = {}  # storages that stand for the network's; kept alive
        self._computed = set(self.recording.inputs)  # slots that depend on the batch

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "prim":  # asks for the device of a tensor
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run an operation and record it."""
        if _draws(func, args, kwargs):
            raise NotReplayable(f"{func} draws random numbers")
        if func.overloadpacket in SELECTING and any(
            not x.is_floating_point() and self.slots.get(id(x)) in self._computed
            for x in tensors_in(*args[1:], kwargs)
        ):
            raise NotReplayable(f"{func} selects by what was computed")
        fakes = tree_map(self._stand_in, (args, kwargs))
        if func.overloadpacket is aten.lift_fresh:  # a tensor of the code's own, new at every call
            fakes = args, kwargs
        for x in _written_by(func, args, kwargs):
            if not isinstance(x, FakeTensor) or _storage(x) in self._network:
                raise NotReplayable(f"{func} changes the network")
            if _storage(x) in self._own:
                raise NotReplayable(f"{func} changes the batch")
        with self.fake:  # which knows operations on its own tensors again, and then is fast
            out = func(*fakes[0], **fakes[1])
        if not all(isinstance(leaf, (Tensor, type(None))) for leaf in tree_leaves(out)):
            raise NotReplayable(f"{func} gives the code a value")
        if func.overloadpacket is aten.lift_fresh:
            func = aten.clone.default
        self._record(func, args, kwargs, out)
        return out

    def _stand_in(self, x: Any) -> Any:
        """What stands for `x`, if it is a tensor of the network."""
        if not isinstance(x, Tensor) or isinstance(x, FakeTensor):
            return x
        if id(x) not in self.stands:
            self.stands[id(x)] = x, self.fake.from_tensor(x)
        stand = self.stands[id(x)][1]
        self._network[_storage(stand)] = stand
        return stand

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        index = len(self.recording.operations)
        after: set[int] = set()
        written = {_storage(x) for x in _written_by(func, args, kwargs)}
        reads = []

        def placed(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            storage = _storage(x)
            before = {self._written[storage]} if storage in self._written else set()
            if isinstance(x, FakeTensor):
                slot = self.slots.get(id(x))
                if slot is None:
                    raise NotReplayable(f"{func} reads a tensor of unknown origin")
                if slot in self._made:
                    before.add(self._made[slot])
                reads.append(Read(slot, frozenset(before)))
                x = Slot(slot)
            after.update(before)
            if storage in written:
                after.update(self._readers.get(storage, ()))
            self._readers.setdefault(storage, set()).add(index)
            return x

        given = tree_map(placed, (args, kwargs))
        for storage in written:
            self._written[storage], self._readers[storage] = index, set()
        made: list[int | None] = []
        for leaf in tree_leaves(out):
            if leaf is None:
                made.append(None)
                continue
            if id(leaf) not in self.slots:
                self.slots[id(leaf)] = len(self.alive)
                self._made[len(self.alive)] = index
                self.alive.append(leaf)
            made.append(self.slots[id(leaf)])
        if any(read.slot in self._computed for read in reads):
            self._computed.update(slot for slot in made if slot is not None)
        after.discard(index)
        lying = written and {s for s, x in enumerate(self.alive) if _storage(x) in written}
        operation = Operation(
            func, given, tuple(reads), tuple(made), frozenset(after), frozenset(lying)
        )
        self.recording.operations.append(operation)
        self.recording.overwritten |= lying

    def on_call(self, call: Call, out: Tensor) -> None:
        """Record a layer's call, and follow its output."""
        at = len(self.recording.operations) - 1
        x = next(
            (r for r in self.recording.operations[at].reads if self.alive[r.slot] is call.x), None
        )
        if x is None:
            raise NotReplayable(f"{call.name} does not read what it is given")
        calls = self.recording.layers.setdefault(call.name, [])
        self._followed[self.slots[id(out)]] = call.name, len(calls)
        if isinstance(call.bias, FakeTensor):
            raise NotReplayable(f"the bias of {call.name} is computed")
        calls.append(LayerCall(call, at, x, self.recording.output(at)))

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Follow a layer's output through its BatchNorm into the sum or ReLU that it enters."""
        operation = self.recording.operations[-1]
        if func.overloadpacket in NORMALISES_BATCH:
            if followed := self._followed.pop(self.slots.get(id(args[0]), -1), None):
                self._change(followed, norm=len(self.recording.operations) - 1)
                self._followed[self.slots[id(out[0])]] = followed
        elif func.overloadpacket in (aten.add, aten.add_):
            a, b = args[:2]
            if not isinstance(b, Tensor) or a.shape != b.shape or kwargs.get("alpha", 1) != 1:
                return
            if len(operation.reads) == 2:
                for one, other in (operation.reads, operation.reads[::-1]):
                    if followed := self._followed.pop(one.slot, None):
                        self._change(followed, shortcut=other)
        elif func.overloadpacket in (aten.relu, aten.relu_):
            if followed := self._followed.pop(self.slots.get(id(args[0]), -1), None):
                self._change(followed, rectified=True)
        elif args and isinstance(out, Tensor) and out is args[0]:
            self._followed.pop(self.slots.get(id(out), -1), None)  # overwritten

    def _change(self, followed: tuple[str, int], **fields: Any) -> None:
        name, number = followed
        calls = self.recording.layers[name]
        calls[number] = replace(calls[number], **fields)


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _draws(func: Any, args: tuple[Any, ...], kwargs: Any) -> bool:
    """Whether an operation draws random numbers: dropout at a rate of 0 does not."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    given = {
        argument.name: args[place] if place < len(args) else kwargs.get(argument.name, None)
        for place, argument in enumerate(func._schema.arguments)
    }
    rate = given.get("dropout_p", given.get("p"))
    return not (given.get("train") is False or rate == 0 or ("dropout_p" in given and rate is None))


def _written_by(func: Any, args: tuple[Any, ...], kwargs: Any) -> list[Tensor]:
    """The tensors that an operation writes in place."""
    found: list[Any] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += tree_leaves(value)
    if func.overloadpacket in NORMALISES_BATCH and len(args) > 5 and args[5] is True:
        found += [args[3], args[4]]  # running statistics, which the schema does not mention
    return [x for x in found if isinstance(x, Tensor)]
