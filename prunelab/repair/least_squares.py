"""Repair without training: least squares for the layers that lost inputs.

A layer that lost input channels gets the weights that best give, from the channels it still has,
what it gave before (the reconstruction of Channel Pruning, He et al., ICCV 2017, solved from second
moments instead of samples). Labels are not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.data.batches import HOLD, Part, apart, batch_size
from prunelab.data.private_random import private_steps
from prunelab.errors import BadData
from prunelab.evidence.reconstruction_target import Output, Outputs, aim, meet, unbiased
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph, Layer
from prunelab.graph.labels.layer_calls import Call
from prunelab.graph.trace import undisturbed
from prunelab.loops.batch import checked, guarded
from prunelab.repair.fit import Fit
from prunelab.repair.layer_problem import POSITIONS, LayerProblem, problem_of
from prunelab.repair.recalibration import Traced
from prunelab.values import Progress

KEPT = 2**28  # entries of all moments and rows kept at once: 2 GB in float64
IMAGES = 512  # at least; more only where a layer is not determined by them


def repairing(
    small: Traced,
    target: Traced,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int = 0,
    source: Traced | None = None,
) -> Generator[Progress, None, dict[str, Fit]]:
    """Repair the network `small` in place; yields Progress.

    Every layer that lost inputs is solved anew: it aims at what the same layer gives in `target`,
    the network from before any cut. So errors of earlier moves are made good too (the accumulated
    error of Channel Pruning: inputs from the pruned network, targets from the original).

    With `source`, the network that `small` was just cut from, the layers that lost inputs by this
    cut are solved together, in one pass over the batches: each reads what it reads in `source`,
    of the channels that are left. Without, all layers that have fewer inputs than in `target` are
    solved front to back, each reading what the ones before it give since their own repair; a pass
    a layer, so slower, and better where one repair builds on another (see `chained`). The last
    layer of a residual branch then makes good what its shortcut has drifted by (see `aim`).

    A BatchNorm behind a layer that was solved keeps the target's variance: least squares aims at
    the very outputs that it was made for. Where layers were solved front to back that is the best
    for it; BatchNorm elsewhere should be recalibrated afterwards. Gives what each layer got, by
    name.
    """
    watched = small if source is None else source
    lost = [
        layer.name
        for layer in _ready((source or target).graph.layers)
        if len(small.graph.layer(layer.name).in_units) < len(layer.in_units)
    ]
    tasks = (
        problem_of(small, watched.graph.layer(name), target.graph.layer(name)) for name in lost
    )
    found: dict[str, Fit] = {}
    for portion in _portions(filter(None, tasks), 0 if source is None else KEPT):
        found |= yield from _solved(
            portion, small.network, watched.network, target.network, batches, forward, expected,
            drifts=source is None,
        )  # fmt: skip
    return found


def _ready(layers: Sequence[Layer]) -> list[Layer]:
    """The layers in the order in which what they read is ready.

    So a shortcut's layer comes before the end of the branch beside it, wherever it is called.
    """
    made: dict[int, int] = {}  # by unit, the latest layer so far that makes it
    ready = {}
    for place, layer in enumerate(layers):
        ready[layer.name] = max(
            (made.get(unit, -1) for unit in layer.in_units.tolist()), default=-1
        )
        made |= dict.fromkeys(layer.out_units[layer.out_units != FIXED].tolist(), place)
    return sorted(layers, key=lambda layer: ready[layer.name])


def _portions(tasks: Iterable[LayerProblem], most: int) -> Iterator[list[LayerProblem]]:
    """The tasks in order, as many at once as keep at most `most` entries, or one."""
    portion: list[LayerProblem] = []
    for task in tasks:
        if portion and sum(map(_size, [*portion, task])) > most:
            yield portion
            portion = []
        portion.append(task)
    if portion:
        yield portion


def _size(task: LayerProblem) -> int:
    """How many entries a layer's moments have, and the rows that judge it, in float64."""
    rows = IMAGES // HOLD * POSITIONS // 2  # in the network's precision, half of that
    return task.entries * (task.entries + rows)


def chained(source_graph: ChannelGraph, graph: ChannelGraph) -> bool:
    """Whether a cut took inputs and outputs of one layer, so that repairs build on each other."""
    return any(
        len(now.in_units) < len(layer.in_units) and len(now.out_units) < len(layer.out_units)
        for layer, now in zip(source_graph.layers, graph.layers, strict=True)
        if layer.dense
    )


class _Enough(BaseException):
    """All wanted layers were called: the rest of the forward pass is of no interest."""


class _Listening(Outputs):
    """Keeps the calls of wanted layers, and ends the forward pass once no more can come of them.

    With `drifts` their sums with a shortcut are waited for; where there is one to `hear` them they
    are handed over at once and not kept.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Mapping[str, LayerProblem],
        drifts: bool,
        inputs: bool,
    ) -> None:
        super().__init__(model, tasks, inputs)
        self.left = sum(task.layer.calls for task in tasks.values())
        self.drifts = drifts
        self.hear: Callable[[Output], None] | None = None

    def on_call(self, call: Call, out: Tensor) -> None:
        """Take in the call of a wanted layer."""
        if self.hear is None:
            super().on_call(call, out)
        elif call.name in self.found:
            self.hear(Output(call, unbiased(call, out), len(self.picks)))
        self.left -= call.name in self.found
        self._end()

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Look on, until nothing more can come of it."""
        super().on_operation(func, args, kwargs, out)
        self._end()

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Follow a wanted layer's output into a sum, if sums are waited for."""
        if self.drifts:
            super().follow(func, args, kwargs, out)

    def _end(self) -> None:
        if not self.left and not (self.drifts and self._followed):
            raise _Enough


@private_steps
@torch.no_grad()
def _solved(
    tasks: list[LayerProblem],
    small: nn.Module,
    watched: nn.Module,
    target: nn.Module,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int,
    drifts: bool,
) -> Generator[Progress, None, dict[str, Fit]]:
    """Run `watched` and `target` over the batches, then solve the tasks in `small`."""
    wanted = {task.layer.weight: task for task in tasks}
    what = tasks[0].layer.name if len(tasks) == 1 else f"{len(tasks)} layers"
    count = 0
    with undisturbed(watched), undisturbed(target):
        watched.eval()
        target.eval()
        for some in apart(guarded(batches())):
            if some.start >= IMAGES and all(task.determined for task in tasks):
                break
            there = _Listening(target, wanted, drifts, inputs=False)
            here = _Listening(watched, wanted, drifts, inputs=True)
            aims = {name: iter(found) for name, found in there.found.items()}

            def take(
                given: Output,
                some: Part = some,
                there: _Listening = there,
                here: _Listening = here,
                aims: Mapping[str, Iterator[Output]] = aims,
            ) -> None:
                asked, task = next(aims[given.call.name], None), wanted[given.call.name]
                if some.start >= IMAGES and task.determined:
                    return
                if given.y.numel() and asked is not None and meet(there, asked, here, given):
                    y = aim(asked, given, task.outputs.to(given.y.device))
                    task.add(given.call, y, batch_size(some.batch), some.held)

            here.hear = None if drifts else take
            for network, ears in ((target, there), (watched, here)):
                with suppress(_Enough), ears:
                    checked(forward, network, some.batch)
            for given in (output for found in here.found.values() for output in found):
                take(given)
            count = some.stop
            yield Progress(count, max(expected, count), f"solving {what} by least squares")
    if not count:
        raise BadData("There are no batches to repair on; give at least one.")
    return {
        task.layer.name: found for task in tasks if (found := task.solve(small, target)) is not None
    }
