"""Repair without training: least squares for the layers that lost inputs.

A layer that lost input channels gets the weights that best give, from the channels it still has,
what it gave before (the reconstruction of Channel Pruning, He et al., ICCV 2017, solved from second
moments instead of samples). Labels are not needed. May import values, channels,
coupling, tracing, evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.channels import FIXED, ChannelGraph, Layer
from prunelab.coupling.calls import Call
from prunelab.errors import BadData
from prunelab.evidence.aim import Output, Outputs, aim, unbiased
from prunelab.evidence.batch import batch_size, checked, guarded, held_out, of_rows
from prunelab.evidence.moments import cross_moment, patch_moments, patches, positions_of
from prunelab.repair.fit import Fit, Moments, Rows, fit
from prunelab.repair.recalibration import Traced, places, shift_norm
from prunelab.tracing.tracer import undisturbed
from prunelab.values import Progress

WIDEST = 8192  # patch entries whose second moment is kept: 0.5 GB in float64
MOMENTS = 2**27  # entries of all second moments kept at once: 1 GB in float64
ROWS = 2**27  # entries of the samples kept of a layer that is wider: 0.5 GB in float32
POSITIONS = 32  # of an image that judges
DETERMINED = 4  # samples an entry
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
    for it; BatchNorm elsewhere should be recalibrated afterwards. Gives the names of the layers
    that were solved.
    """
    watched = small if source is None else source
    lost = [
        layer.name
        for layer in _ready((source or target).graph.layers)
        if len(small.graph.layer(layer.name).in_units) < len(layer.in_units)
    ]
    tasks = (_task(small, watched.graph.layer(name), target.graph.layer(name)) for name in lost)
    found: dict[str, Fit] = {}
    for portion in _portions(filter(None, tasks), 0 if source is None else MOMENTS):
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


def _portions(tasks: Iterable[_Task], most: int) -> Iterator[list[_Task]]:
    """The tasks in order, as many at once as keep at most `most` entries of moments, or one."""
    portion: list[_Task] = []
    for task in tasks:
        if portion and sum(some.entries**2 for some in [*portion, task]) > most:
            yield portion
            portion = []
        portion.append(task)
    if portion:
        yield portion


@dataclass(slots=True, eq=False)
class _Task:
    """One layer to be solved: min ||(P, 1) W' - Y||^2 over the patches P that it still reads.

    `layer` is as in the small network; `inputs` are the positions of its input channels in the
    network that is watched, `outputs` those of its outputs in the target. Y is without bias. Of
    the images, some are held out: they are not solved on, they judge.
    """

    layer: Layer
    constant: bool  # whether there is a bias or a BatchNorm to put the constant into
    inputs: Tensor
    outputs: Tensor
    solved: Rows | Moments | None = None
    held: Rows | None = None

    @property
    def entries(self) -> int:
        """The entries of one patch."""
        return len(self.layer.in_units) * prod(self.layer.kernel)

    @property
    def determined(self) -> bool:
        """Whether there are as many samples as it takes to solve for every entry."""
        return self.solved is not None and len(self.solved) >= DETERMINED * self.entries

    def add(self, call: Call, y: Tensor, held: Tensor) -> None:
        """Take in one batch: the layer's call, what it aims at, which images are held out."""
        x = call.x
        if len(self.inputs) < x.shape[1]:
            x = x.index_select(1, self.inputs.to(x.device))
        judges = of_rows(held, len(x)).to(x.device)
        if bool(judges.any()):
            self.held = _sum(self.held, _sample(x[judges], y[judges], call))
        if not bool(judges.all()):
            self._solve_on(x[~judges], y[~judges], call)

    def _solve_on(self, x: Tensor, y: Tensor, call: Call) -> None:
        """Rows while they are fewer than the entries, moments from then on."""
        rows = y.numel() // y.shape[1]
        there = 0 if self.solved is None else len(self.solved)
        few = not isinstance(self.solved, Moments) and there + rows <= self.entries
        kernel = tuple(call.weight.shape[2:])
        if few or self.entries > WIDEST:
            if (there + rows) * self.entries <= ROWS:
                found = Rows(patches(x, kernel, call.conv), positions_of(y))
                self.solved = found if self.solved is None else self.solved + found  # type: ignore[operator]
            return
        moments = Moments(
            patch_moments(x, kernel, call.conv).moment,
            cross_moment(x, y, kernel, call.conv),
            y.movedim(1, 0).flatten(1).double().square().sum(1),
        )
        before = self.solved.moments if isinstance(self.solved, Rows) else self.solved
        self.solved = moments if before is None else before + moments

    def solve(self, small: nn.Module, target: nn.Module) -> Fit | None:
        """Put into `small` what is best, see `fit`; None where the layer was not called."""
        if self.solved is None:
            return None
        weight = dict(small.named_parameters())[self.layer.weight]
        old = weight.detach().reshape(len(weight), -1).double().T
        norm = self._norm(target)
        scale = None
        if norm is not None:
            gamma = norm.weight if norm.weight is not None else torch.ones_like(norm.running_var)
            scale = gamma.detach().double().square() / (norm.running_var.double() + norm.eps)
            scale = scale[self.outputs.to(scale.device)]
        found = fit(
            self.solved, self.held, old, constant=self.constant, normed=norm is not None,
            importance=scale,
        )  # fmt: skip
        self._put(found, small, target)
        return found

    def _norm(self, network: nn.Module) -> Any:
        """The BatchNorm behind the layer, if its statistics can be changed."""
        if self.layer.norm is None:
            return None
        norm = network.get_submodule(self.layer.norm)
        whole = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_var is not None
        return norm if whole else None

    @torch.no_grad()
    def _put(self, found: Fit, small: nn.Module, target: nn.Module) -> None:
        """The constant goes into the bias or, where there is none, into BatchNorm's mean."""
        if found.choice == "kept":
            return
        norms = self._norm(small), self._norm(target)
        if found.choice == "bn":
            shift_norm(*norms, self.outputs, found.shift, found.ratio)
            return
        parameters = dict(small.named_parameters())
        weight = parameters[self.layer.weight]
        weight.copy_(found.weight.T.reshape(weight.shape))
        bias, constant = parameters.get(_bias_of(self.layer)), found.constant
        if bias is not None:
            there = dict(target.named_parameters())[_bias_of(self.layer)].detach()
            bias.copy_(there[self.outputs.to(there.device)] + constant)
            constant = torch.zeros_like(constant)
        if norms[0] is not None:
            shift_norm(*norms, self.outputs, -constant, torch.ones_like(constant))


def _sum(before: Rows | None, more: Rows) -> Rows:
    return more if before is None else before + more


def _sample(x: Tensor, y: Tensor, call: Call) -> Rows:
    """A few positions of each image: they judge as well as all of them do."""
    positions = y[0, 0].numel()
    at = None
    if positions > POSITIONS:
        draw = torch.Generator().manual_seed(positions)
        at = torch.randperm(positions, generator=draw)[:POSITIONS].sort().values.to(x.device)
    return Rows(patches(x, tuple(call.weight.shape[2:]), call.conv, at), positions_of(y, at))


def _bias_of(layer: Layer) -> str:
    return layer.weight.removesuffix("weight") + "bias"


def chained(source_graph: ChannelGraph, graph: ChannelGraph) -> bool:
    """Whether a cut took inputs and outputs of one layer, so that repairs build on each other."""
    return any(
        len(now.in_units) < len(layer.in_units) and len(now.out_units) < len(layer.out_units)
        for layer, now in zip(source_graph.layers, graph.layers, strict=True)
        if layer.dense
    )


def _task(small: Traced, watched: Layer, target: Layer) -> _Task | None:
    """What is to be solved of a layer; None where least squares does not apply."""
    now = small.graph.layer(watched.name)
    if not now.dense or now.transposed or now.computed:
        return None
    has_bias = _bias_of(now) in dict(small.network.named_parameters())
    return _Task(
        layer=now,
        constant=has_bias or now.norm is not None,
        inputs=places(now.in_units, watched.in_units),
        outputs=places(now.out_units, target.out_units),
    )


class _Enough(BaseException):
    """All wanted layers were called: the rest of the forward pass is of no interest."""


class _Listening(Outputs):
    """Keeps the calls of wanted layers, and ends the forward pass once no more can come of them.

    With `drifts` their sums with a shortcut are waited for; with `hear` they are handed over at
    once and not kept.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Mapping[str, _Task],
        drifts: bool,
        inputs: bool,
        hear: Callable[[Output], None] | None = None,
    ) -> None:
        super().__init__(model, tasks, inputs)
        self.left = sum(task.layer.calls for task in tasks.values())
        self.drifts = drifts
        self.hear = hear

    def on_call(self, call: Call, out: Tensor) -> None:
        """Take in the call of a wanted layer."""
        if self.hear is None:
            super().on_call(call, out)
        elif call.name in self.found:
            self.hear(Output(call, unbiased(call, out)))
        self.left -= call.name in self.found
        self._end()

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Follow a wanted layer's output into a sum."""
        if self.drifts:
            super().on_operation(func, args, kwargs, out)
        self._end()

    def _end(self) -> None:
        if not self.left and not (self.drifts and self._followed):
            raise _Enough


def _solved(
    tasks: list[_Task],
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
    with undisturbed(watched), undisturbed(target), torch.no_grad():
        watched.eval()
        target.eval()
        for batch in guarded(batches()):
            size = batch_size(batch)
            held = held_out(count, size)
            there = _Listening(target, wanted, drifts, inputs=False)
            aims = {name: iter(found) for name, found in there.found.items()}

            def meet(given: Output, aims: Mapping[str, Iterator[Output]] = aims) -> None:
                asked, task = next(aims[given.call.name]), wanted[given.call.name]
                if given.y.numel() and not (count >= IMAGES and task.determined):
                    task.add(given.call, aim(asked, given, task.outputs.to(given.y.device)), held)

            here = _Listening(watched, wanted, drifts, inputs=True, hear=None if drifts else meet)
            for network, ears in ((target, there), (watched, here)):
                with suppress(_Enough), ears:
                    checked(forward, network, batch)
            for given in (output for found in here.found.values() for output in found):
                meet(given)
            count += size
            yield Progress(count, max(expected, count), f"solving {what} by least squares")
            if count >= IMAGES and all(task.determined for task in tasks):
                break
    if not count:
        raise BadData("There are no batches to repair on; give at least one.")
    return {
        task.layer.name: found
        for task in tasks
        if (found := task.solve(small, target)) is not None
    }
