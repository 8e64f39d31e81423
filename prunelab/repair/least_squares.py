"""Least-squares repair, without training, of the layers that lost inputs.

A layer that lost input channels gets the weights that best reproduce its former outputs from the
channels it still has: the reconstruction of Channel Pruning (He, Zhang, Sun; ICCV 2017), solved
from second moments instead of samples. Labels are not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from prunelab.data.batches import HOLD, Part, apart, batch_size
from prunelab.data.private_random import private_steps
from prunelab.errors import BadData
from prunelab.evidence.reconstruction_target import (
    LayerOutput,
    OutputWatch,
    reconstruction_target,
    same_rows,
    unbiased,
)
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph, Layer
from prunelab.graph.labels.layer_calls import Call
from prunelab.graph.labels.layout import tensors_in
from prunelab.graph.labels.op_tables import aten
from prunelab.graph.trace import state_preserved
from prunelab.loops.batch import checked, guarded
from prunelab.repair.dataflow import NotReplayable
from prunelab.repair.fit import Fit
from prunelab.repair.front_to_back import solving_in_order
from prunelab.repair.layer_problem import IMAGES, POSITIONS, LayerProblem
from prunelab.repair.recalibration import Traced
from prunelab.values import Progress

KEPT = 2**28  # entries of all moments and rows kept at once: 2 GB in float64


def repairing(
    small: Traced,
    target: Traced,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int = 0,
    source: Traced | None = None,
) -> Generator[Progress, None, dict[str, Fit]]:
    """Repair the network `small` in place.

    The target of every layer is its output in `target`, the network from before any cut, so errors
    of earlier moves are corrected too (Channel Pruning: inputs from the pruned network, targets
    from the original).

    A BatchNorm behind a solved layer keeps the target's variance, because least squares targets
    the outputs that it was trained with. BatchNorm elsewhere, and after a repair with `source`,
    should be recalibrated afterwards.

    Parameters
    ----------
    small
        The network that was just cut.
    target
        The network whose outputs are the targets.
    batches
        Returns the batches; called once for each pass.
    forward
        `forward(model, batch)` runs a network.
    expected
        How many images there are, for Progress.
    source
        The network that `small` was cut from. With it, the layers that lost inputs in this cut are
        solved together in one pass, each from its inputs in `source`, restricted to the remaining
        channels. Without it, every layer with fewer inputs than in `target` is solved, front to
        back, from its inputs after the repair of the layers before: one pass a layer, so slower,
        and better where repairs build on each other (see `chained`). The last layer of a residual
        branch then corrects the drift of its shortcut (see `reconstruction_target`).

    Yields
    ------
    Progress
        Progress in images.

    Returns
    -------
    dict of str to Fit
        The fit of each layer that was solved, by name.

    Raises
    ------
    BadData
        For no batches, or batches on which a network fails.
    """
    watched = small if source is None else source
    lost = [
        layer.name
        for layer in _by_readiness((source or target).graph.layers)
        if len(small.graph.layer(layer.name).in_units) < len(layer.in_units)
    ]

    def problems() -> Iterator[LayerProblem]:
        made = (
            LayerProblem.of(small, watched.graph.layer(name), target.graph.layer(name))
            for name in lost
            if name not in found
        )
        return filter(None, made)

    found: dict[str, Fit] = {}
    if source is None:
        with suppress(NotReplayable):
            yield from solving_in_order(
                list(problems()), small.network, target.network, batches, forward, expected, found
            )
            return found
    for portion in _iter_portions(problems(), 0 if source is None else KEPT):
        found |= yield from _solving(
            portion, small.network, watched.network, target.network, batches, forward, expected,
            drifts=set() if source else {task.layer.weight for task in problems()},
        )  # fmt: skip
    return found


def _by_readiness(layers: Sequence[Layer]) -> list[Layer]:
    """The layers in the order in which their inputs are final.

    So a shortcut's layer comes before the last layer of its branch, wherever it is called.
    """
    made: dict[int, int] = {}  # unit -> the latest layer so far that produces it
    ready = {}
    for place, layer in enumerate(layers):
        ready[layer.name] = max(
            (made.get(unit, -1) for unit in layer.in_units.tolist()), default=-1
        )
        made |= dict.fromkeys(layer.out_units[layer.out_units != FIXED].tolist(), place)
    return sorted(layers, key=lambda layer: ready[layer.name])


def _iter_portions(tasks: Iterable[LayerProblem], most: int) -> Iterator[list[LayerProblem]]:
    """Yield the tasks in order, in portions of at most `most` entries, or single ones."""
    portion: list[LayerProblem] = []
    for task in tasks:
        if portion and sum(map(_size, [*portion, task])) > most:
            yield portion
            portion = []
        portion.append(task)
    if portion:
        yield portion


def _size(task: LayerProblem) -> int:
    """How many float64 entries a layer's moments and held-out rows take."""
    rows = IMAGES // HOLD * POSITIONS // 2  # in the network's precision: half a float64
    return task.entries * (task.entries + rows)


def chained(source_graph: ChannelGraph, graph: ChannelGraph) -> bool:
    """Whether a cut removed inputs and outputs of a layer, so repairs build on each other."""
    return any(
        len(now.in_units) < len(layer.in_units) and len(now.out_units) < len(layer.out_units)
        for layer, now in zip(source_graph.layers, graph.layers, strict=True)
        if layer.dense
    )


class _AllCalled(BaseException):
    """All wanted layers were called: the rest of the forward pass is not needed."""


class _TaskWatch(OutputWatch):
    """Keeps the calls of wanted layers, and ends the forward pass once all are complete.

    With `drifts` a call is complete when its output has entered a sum with a shortcut; a shortcut
    that depends on a layer yet to be solved is none. If `handle` is set, calls are passed to it at
    once and not kept.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Mapping[str, LayerProblem],
        drifts: Collection[str],
        inputs: bool,
    ) -> None:
        super().__init__(model, tasks, inputs)
        self.left = sum(task.layer.calls for task in tasks.values())
        self.drifts = drifts  # the layers that are yet to be solved
        self._unsettled = WeakTensorKeyDictionary()  # what depends on them
        self.handle: Callable[[LayerOutput], None] | None = None

    def on_call(self, call: Call, out: Tensor) -> None:
        """Keep or handle the call of a wanted layer."""
        if self.handle is None:
            super().on_call(call, out)
        elif call.name in self.found:
            self.handle(LayerOutput(call, unbiased(call, out), len(self.selections)))
        if call.name in self.drifts or call.x in self._unsettled:
            self._unsettled[out] = True
        self.left -= call.name in self.found
        self._end()

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Follow the outputs, until all are complete."""
        super().on_operation(func, args, kwargs, out)
        if self.drifts and any(x in self._unsettled for x in tensors_in(*args, kwargs)):
            self._unsettled |= dict.fromkeys(tensors_in(out, *tensors_in(out)), True)
        self._end()

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Follow a wanted layer's output into a sum, with `drifts`."""
        if not self.drifts:
            return
        if func.overloadpacket in (aten.add, aten.add_) and all(
            x in self._unsettled for x in tensors_in(*args[:2])
        ):
            for x in tensors_in(*args[:2]):
                self._followed.pop(x, None)
            return
        super().follow(func, args, kwargs, out)

    def _end(self) -> None:
        if not self.left and not (self.drifts and self._followed):
            raise _AllCalled


@private_steps
@torch.no_grad()
def _solving(
    tasks: list[LayerProblem],
    small: nn.Module,
    watched: nn.Module,
    target: nn.Module,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int,
    drifts: Collection[str],
) -> Generator[Progress, None, dict[str, Fit]]:
    """Run `watched` and `target` over the batches, then solve the tasks in `small`.

    The parameters are those of `repairing`; `drifts` are the layers that are yet to be solved,
    where the drift of shortcuts counts in the targets, and empty where it does not.
    """
    wanted = {task.layer.weight: task for task in tasks}
    what = tasks[0].layer.name if len(tasks) == 1 else f"{len(tasks)} layers"
    count = 0
    with state_preserved(watched), state_preserved(target):
        watched.eval()
        target.eval()
        for some in apart(guarded(batches())):
            if all(task.satisfied(some.start) for task in tasks):
                break
            there = _TaskWatch(target, wanted, drifts, inputs=False)
            here = _TaskWatch(watched, wanted, drifts, inputs=True)
            aims = {name: iter(found) for name, found in there.found.items()}

            def add(
                given: LayerOutput,
                some: Part = some,
                there: _TaskWatch = there,
                here: _TaskWatch = here,
                aims: Mapping[str, Iterator[LayerOutput]] = aims,
            ) -> None:
                aim, task = next(aims[given.call.name], None), wanted[given.call.name]
                if task.satisfied(some.start):
                    return
                if given.y.numel() and aim is not None and same_rows(there, aim, here, given):
                    y = reconstruction_target(aim, given, task.outputs.to(given.y.device))
                    task.add(given.call, y, batch_size(some.batch), some.held)

            here.handle = None if drifts else add
            for network, watch in ((target, there), (watched, here)):
                with suppress(_AllCalled), watch:
                    checked(forward, network, some.batch)
            for given in (output for found in here.found.values() for output in found):
                add(given)
            count = some.stop
            yield Progress(count, max(expected, count), f"solving {what} by least squares")
    if not count:
        raise BadData("There are no batches to repair on; give at least one.")
    return {
        task.layer.name: found for task in tasks if (found := task.solve(small, target)) is not None
    }
