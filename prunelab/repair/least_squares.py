"""Least-squares repair, without training, of the layers that lost inputs.

A layer that lost input channels gets the weights that best reproduce its former outputs from the
channels it still has: the reconstruction of Channel Pruning (He, Zhang, Sun; ICCV 2017), solved
from second moments instead of samples. Labels are not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from prunelab.data.batches import batch_size
from prunelab.data.holding_out import apart
from prunelab.data.private_random import private_steps
from prunelab.errors import BadData
from prunelab.evidence.reconstruction_target import OutputWatch, reconstruction_target, same_rows
from prunelab.graph.channels.channel_graph import FIXED, Layer
from prunelab.graph.labels.layer_calls import Call
from prunelab.graph.labels.layout import tensors_in
from prunelab.graph.labels.op_tables import aten
from prunelab.graph.surgery.network_state import state_preserved
from prunelab.loops.batch import checked, guarded
from prunelab.repair.dataflow import NotReplayable
from prunelab.repair.fit import Fit
from prunelab.repair.front_to_back import solving_in_order
from prunelab.repair.layer_problem import LayerProblem
from prunelab.repair.recalibration import Traced
from prunelab.values import Progress


def repairing(
    small: Traced,
    target: Traced,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int = 0,
) -> Generator[Progress, None, dict[str, Fit]]:
    """Repair the network `small` in place: every layer with fewer inputs than in `target`.

    The target of a layer is its output in `target`, the network from before any cut, and its
    inputs are those after the repair of the layers before, so errors of earlier moves are
    corrected too (Channel Pruning: inputs from the pruned network, targets from the original). The
    last layer of a residual branch corrects the drift of its shortcut (see
    `reconstruction_target`).

    All images wait while a layer is solved, so two passes are enough (see `solving_in_order`). A
    network that cannot be recorded for that takes a pass for each layer.

    A BatchNorm behind a solved layer keeps the target's variance, because least squares targets
    the outputs that it was trained with. BatchNorm elsewhere should be recalibrated afterwards.

    Parameters
    ----------
    small
        The network that was cut.
    target
        The network whose outputs are the targets.
    batches
        Returns the batches; called once for each pass.
    forward
        `forward(model, batch)` runs a network.
    expected
        How many images there are, for Progress.

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
    fits: dict[str, Fit] = {}

    def left() -> list[LayerProblem]:
        made = (
            LayerProblem.of(small, small.graph.layer(layer.name), layer)
            for layer in _by_readiness(target.graph.layers)
            if len(small.graph.layer(layer.name).in_units) < len(layer.in_units)
            and layer.name not in fits
        )
        return [problem for problem in made if problem is not None]

    with suppress(NotReplayable):
        yield from solving_in_order(left(), small, target, batches, forward, expected, fits)
        return fits
    waiting = left()
    for place, task in enumerate(waiting):
        later = {other.layer.weight for other in waiting[place:]}
        found = yield from _solving(
            task, small.network, target.network, batches, forward, expected, later
        )
        if found is not None:
            fits[task.layer.name] = found
    return fits


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


class _Complete(BaseException):
    """The wanted layer has run: the rest of the forward pass is not needed."""


class _TaskWatch(OutputWatch):
    """Keeps the calls of one layer, and ends the forward pass once all are complete.

    A call is complete when its output has entered a sum with a shortcut. A shortcut that depends
    on a layer that is yet to be solved, one of `later`, is none.
    """

    def __init__(
        self, model: nn.Module, task: LayerProblem, later: Collection[str], inputs: bool
    ) -> None:
        super().__init__(model, [task.layer.weight], inputs)
        self.left = task.layer.calls
        self.later = later
        self._unsettled = WeakTensorKeyDictionary()  # what depends on these

    def on_call(self, call: Call, out: Tensor) -> None:
        """Keep the call of the wanted layer."""
        super().on_call(call, out)
        if call.name in self.later or call.x in self._unsettled:
            self._unsettled[out] = True
        self.left -= call.name in self.found
        self._end()

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Follow the outputs, until all are complete."""
        super().on_operation(func, args, kwargs, out)
        if any(x in self._unsettled for x in tensors_in(*args, kwargs)):
            self._unsettled |= dict.fromkeys(tensors_in(out, *tensors_in(out)), True)
        self._end()

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Follow the layer's output into a sum with what is settled."""
        summands = tensors_in(*args[:2])
        if func.overloadpacket in (aten.add, aten.add_) and all(
            x in self._unsettled for x in summands
        ):
            for x in summands:
                self._followed.pop(x, None)
            return
        super().follow(func, args, kwargs, out)

    def _end(self) -> None:
        if not self.left and not self._followed:
            raise _Complete


@private_steps
@torch.no_grad()
def _solving(
    task: LayerProblem,
    small: nn.Module,
    target: nn.Module,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int,
    later: Collection[str],
) -> Generator[Progress, None, Fit | None]:
    """Run both networks over the batches up to a layer, then solve it in `small`.

    The parameters are those of `repairing`; `later` are the layers that are not solved, this one
    among them. None if the layer was not called.
    """
    what = f"solving {task.layer.name} by least squares"
    count = 0
    with state_preserved(small), state_preserved(target):
        small.eval()
        target.eval()
        for some in apart(guarded(batches())):
            if task.satisfied(some.start):
                break
            there = _TaskWatch(target, task, later, inputs=False)
            here = _TaskWatch(small, task, later, inputs=True)
            for network, watch in ((target, there), (small, here)):
                with suppress(_Complete), watch:
                    checked(forward, network, some.batch)
            pairs = zip(there.found[task.layer.weight], here.found[task.layer.weight], strict=False)
            for aim, given in pairs:
                if given.y.numel() and same_rows(there, aim, here, given):
                    y = reconstruction_target(aim, given, task.outputs.to(given.y.device))
                    task.add(given.call, y, batch_size(some.batch), some.held)
            count = some.stop
            yield Progress(count, max(expected, count), what)
    if not count:
        raise BadData("There are no batches to repair on; give at least one.")
    return task.solve(small, target)
