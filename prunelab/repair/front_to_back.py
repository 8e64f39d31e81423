"""Layers solved front to back while the images wait: two passes in all, not two for each layer.

The images stand in both networks just before the layer to solve. Once it is solved they go on, and
what they meet next has seen the repair. They carry what the rest of the networks will read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from math import isclose
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.data.batches import batch_size
from prunelab.data.holding_out import Part, apart
from prunelab.data.private_random import private_steps
from prunelab.errors import BadData
from prunelab.evidence.reconstruction_target import LayerOutput, reconstruction_target, unbiased
from prunelab.graph.labels.layer_calls import Call
from prunelab.loops.batch import guarded
from prunelab.repair.dataflow import (
    LayerCall,
    NotReplayable,
    Read,
    Recording,
    Run,
    signature,
    tensors_of,
)
from prunelab.repair.fit import Fit
from prunelab.repair.layer_problem import LayerProblem
from prunelab.repair.recalibration import Traced
from prunelab.repair.recordings import SHAPES, Sums, sums_of
from prunelab.values import Progress

CARRIED = 2**31  # bytes that all images together may carry; others start anew for every layer
ALIKE = 1e-3  # of the sums of a layer's outputs, between a recording and the network itself


@private_steps
@torch.no_grad()
def solving_in_order(
    tasks: Sequence[LayerProblem],
    small: Traced,
    target: Traced,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int,
    fits: dict[str, Fit],
) -> Generator[Progress, None, None]:
    """Solve the layers of `small`, each once its inputs are final, and put what is found in `fits`.

    The parameters are those of `repairing`. Raises `NotReplayable` where a network cannot be
    recorded, in most cases before anything is solved, and `BadData` as `repairing` does.
    """
    queue = _Queue(tasks, small, target, batches, forward)
    for task in queue.order:
        for some in queue.images_for(task):
            for call, y, rectified in some.samples(task):
                images, held = batch_size(some.part.batch), some.part.held
                task.add(call, y, images, held, rectified=rectified)
            count = some.part.stop
            what = f"solving {task.layer.name} by least squares"
            yield Progress(count, max(expected, count), what)
        found = task.solve(small.network, target.network)
        queue.go_on(task)
        if found is not None:
            fits[task.layer.name] = found


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    """What is taken for one call of a layer from the runs of both networks.

    `shortcuts` are the other summands where the layer corrects their drift, `norm` the target's
    BatchNorm before that sum; `rectified` says that a ReLU follows instead.
    """

    call: Call
    x: Read
    target: Call
    y: Read
    shortcuts: tuple[Read, Read] | None
    norm: Read | None
    rectified: bool

    @property
    def here(self) -> list[Read]:
        """From the small network."""
        return [self.x, *(self.shortcuts or ())[:1]]

    @property
    def there(self) -> list[Read]:
        """From the target network."""
        norm = [self.norm] if self.norm is not None else []
        return [self.y, *norm, *(self.shortcuts or ())[1:]]


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What is taken from the runs of one shape of batch, by layer.

    `stale` are the layers whose inputs depend on an unsolved layer: on themselves, where they run
    more than once. What has been computed with them is computed anew. `ran` are the sums over the
    last output of each layer if the target itself ran on `batch`, to record it.
    """

    small: Recording
    target: Recording
    taken: dict[str, list[_Taken]]
    stale: frozenset[str]
    batch: Any
    ran: Sums

    def check(self, name: str, y: Tensor) -> None:
        """Raise `NotReplayable` where the recording gives a layer another last output `y`."""
        pairs = zip(self.ran[name], sums_of(y), strict=True)
        if not all(isclose(a, b, rel_tol=ALIKE, abs_tol=1e-9) for a, b in pairs):
            raise NotReplayable(f"{name} gives other outputs than it does")


class _Queue:
    """The layers in order, and the images that wait before the next of them."""

    def __init__(
        self,
        tasks: Sequence[LayerProblem],
        small: Traced,
        target: Traced,
        batches: Callable[[], Iterable[Any]],
        forward: Callable[[nn.Module, Any], Any],
    ) -> None:
        self.small, self.target = small, target
        self.batches, self.forward = batches, forward
        self.waiting: list[_Waiting] = []
        self.coming = apart(guarded(batches()))  # after those that wait
        first = next(self.coming, None)
        if first is None:
            raise BadData("There are no batches to repair on; give at least one.")
        self.coming = chain([first], self.coming)
        self.left = [task.layer.weight for task in tasks]
        recorded = self._recorded(first.batch)
        self.order = _by_readiness(recorded[0], tasks)
        self.left = [task.layer.weight for task in self.order]
        plan = self._planned(first.batch, *recorded)
        self.plans: dict[Hashable, _Plan] = {signature(first.batch): plan}

    def images_for(self, task: LayerProblem) -> Iterator[_Waiting]:
        """The images to solve a layer on: those that wait and, where it needs more, others."""
        for some in self.waiting:
            if task.satisfied(some.part.start):
                return
            yield some
        for part in self.coming:
            if task.satisfied(part.start):
                self.coming = chain([part], self.coming)
                return
            some = _Waiting(part, self._plan(part.batch), self.left)
            yield some
            self.waiting.append(some)
            if self._carried() > CARRIED:
                self.waiting.pop()
                break
        else:
            return
        for part in islice(apart(guarded(self.batches())), len(self.waiting) + 1, None):
            if task.satisfied(part.start):
                break
            yield _Waiting(part, self._plan(part.batch), self.left)
        self.coming = islice(apart(guarded(self.batches())), len(self.waiting), None)

    def go_on(self, task: LayerProblem) -> None:
        """Let the images pass a layer that is solved."""
        name = task.layer.weight
        self.left.remove(name)
        over = self._carried() - CARRIED
        for some in self.waiting:
            some.skip(name)
            if over > 0:
                over -= some.size
                some.restart()
            elif name in some.plan.stale:
                some.here.restart()

    def _carried(self) -> int:
        return sum(some.size for some in self.waiting)

    def _plan(self, batch: Any) -> _Plan:
        key = signature(batch)
        if key not in self.plans:
            if len(self.plans) == SHAPES:
                raise NotReplayable("the batches have too many shapes")
            self.plans[key] = self._planned(batch, *self._recorded(batch))
        return self.plans[key]

    def _recorded(self, batch: Any) -> tuple[Recording, Recording, Sums]:
        """Both networks recorded, and the sums of what the target's layers gave if it ran."""
        small, target = self.small, self.target
        ours, _ = small.recordings.of(small.network, batch, self.forward)
        theirs, ran = target.recordings.of(target.network, batch, self.forward, self.left)
        return ours, theirs, ran

    def _planned(self, batch: Any, small: Recording, target: Recording, ran: Sums) -> _Plan:
        taken: dict[str, list[_Taken]] = {}
        stale = set()
        for place, task in enumerate(self.order):
            name, unsolved = task.layer.weight, {t.layer.weight for t in self.order[place:]}
            calls = zip(small.layers.get(name, ()), target.layers.get(name, ()), strict=False)
            taken[name] = [
                _taken(here, there, target, unsolved, small)
                for here, there in calls
                if _rows(here.call.x) == _rows(there.call.x)
            ]
            if any(small.upstream(call.x) & unsolved for call in small.layers.get(name, ())):
                stale.add(name)
        return _Plan(small, target, taken, frozenset(stale), batch, ran)


def _rows(x: Tensor) -> tuple[int, ...]:
    """The samples and positions of a layer's input."""
    return len(x), *x.shape[2:]


def _taken(
    here: LayerCall, there: LayerCall, target: Recording, unsolved: set[str], small: Recording
) -> _Taken:
    """What is taken for a call in both networks; `unsolved` layers make a shortcut unfit."""
    shortcuts = norm = None
    if here.shortcut and there.shortcut and not small.upstream(here.shortcut) & unsolved:
        shortcuts = here.shortcut, there.shortcut
        norm = None if there.norm is None else target.output(there.norm)
    return _Taken(here.call, here.x, there.call, there.y, shortcuts, norm, there.rectified)


def _by_readiness(recording: Recording, tasks: Sequence[LayerProblem]) -> list[LayerProblem]:
    """The layers that are called, in the order in which their inputs are final.

    So a projection comes before the last layer of its branch, wherever it is called.
    """
    wanted = {task.layer.weight: task for task in tasks if task.layer.weight in recording.layers}
    place = {name: recording.layers[name][-1].at for name in wanted}

    def ready(name: str) -> tuple[int, int]:
        above = {n for call in recording.layers[name] for n in recording.upstream(call.x)}
        return max((place[n] for n in above & wanted.keys() - {name}), default=-1), place[name]

    return [wanted[name] for name in sorted(wanted, key=ready)]


class _Waiting:
    """Some images on their way through both networks, to the layers that are `left`."""

    def __init__(self, part: Part, plan: _Plan, left: Iterable[str]) -> None:
        self.part, self.plan = part, plan
        self.ahead = {name: plan.taken[name] for name in left}
        taken = [one for some in self.ahead.values() for one in some]
        norms = [one.norm for one in taken if one.norm is not None]
        self.here = Run(plan.small, part.batch, [read for one in taken for read in one.here])
        self.there = Run(
            plan.target, part.batch, [read for one in taken for read in one.there], norms
        )

    def samples(self, task: LayerProblem) -> Iterator[tuple[Call, Tensor, bool]]:
        """The layer's calls in the small network, their targets, whether a ReLU follows."""
        name = task.layer.weight
        last = self.plan.target.layers[name][-1].y if name in self.plan.ran else None
        for one in self.ahead.pop(name):
            y = self.there.take(one.y)
            if one.y == last and self.part.batch is self.plan.batch:
                self.plan.check(name, y)
            y = unbiased(one.target, y)
            x = self.here.take(one.x)
            aim, given = LayerOutput(one.target, y), LayerOutput(one.call, y)
            if one.norm is not None:
                self.there.take(one.norm)
                aim.scale = self.there.scales.pop(one.norm)
            if one.shortcuts is not None:
                given.shortcut = self.here.take(one.shortcuts[0])
                aim.shortcut = self.there.take(one.shortcuts[1])
            if y.numel():
                channels = task.outputs.to(y.device)
                target = reconstruction_target(aim, given, channels)
                yield replace(one.call, x=x), target, one.rectified

    def skip(self, name: str) -> None:
        """Do without what would be taken for a layer, if it was not."""
        for one in self.ahead.pop(name, ()):
            self.here.leave(one.here)
            self.there.leave(one.there)

    def restart(self) -> None:
        """Start anew in both networks."""
        self.here.restart()
        self.there.restart()

    @property
    def size(self) -> int:
        """The bytes of these images and of what they carry."""
        own = sum(x.nbytes for x in tensors_of(self.part.batch))
        return own + self.here.carried + self.there.carried
