"""Repair without training: least squares for the layers that lost inputs, then BatchNorm.

A layer that lost input channels gets the weights that best give, from the channels it still has,
what it gave before (the reconstruction of Channel Pruning, He et al., ICCV 2017, section 3.1,
solved from second moments instead of samples). Labels are not needed. May import evidence,
channels, calls, values.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.calls import Call, Watch
from prunelab.channels import ChannelGraph, Layer
from prunelab.errors import BadData
from prunelab.evidence.measure import batch_size, checked, guarded
from prunelab.evidence.moments import cross_moment, patch_moments
from prunelab.tracing import undisturbed
from prunelab.values import Progress

KINDS = ("lstsq", "bn")
WIDEST = 8192  # patch entries whose second moment is kept: 0.5 GB in float64
RIDGE = 1e-6  # of the mean second moment


def repairing(
    small: nn.Module,
    graph: ChannelGraph,
    source: nn.Module,
    source_graph: ChannelGraph,
    target: nn.Module,
    target_graph: ChannelGraph,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int = 0,
) -> Generator[Progress, None, None]:
    """Repair `small`, just cut from `source`, in place and in one pass; yields Progress.

    Every layer that lost inputs by the cut is solved anew: it reads what `source` reads, of the
    channels that `small` still has, and aims at what the same layer gives in `target`, the
    network from before any cut. So errors of earlier moves are made good too (the accumulated
    error of Channel Pruning: inputs from the pruned network, targets from the original). Each
    graph describes the network before it. BatchNorm is recalibrated at the end.
    """
    tasks = [
        _task(small, graph, layer, target_graph)
        for layer in source_graph.layers
        if len(graph.layer(layer.name).in_units) < len(layer.in_units)
    ]
    keep = {layer.name: layer for layer in source_graph.layers}
    for task in filter(None, tasks):
        layer = keep[task.layer.name]
        stays = np.isin(layer.in_units, task.layer.in_units)
        task.inputs = torch.from_numpy(np.flatnonzero(stays))
    yield from _solved(
        [task for task in tasks if task], small, source, target, batches, forward, expected
    )
    yield from recalibrating(small, graph, target, target_graph, batches, forward, expected)


def repairing_in_order(
    small: nn.Module,
    graph: ChannelGraph,
    target: nn.Module,
    target_graph: ChannelGraph,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int = 0,
) -> Generator[Progress, None, None]:
    """Repair all of `small` in place, front to back; yields Progress.

    Every layer that has fewer inputs than in `target` is solved anew, one after the other: it
    reads what the layers repaired before it give. One pass over the batches a layer, so slower
    and better than `repairing`. BatchNorm is recalibrated at the end.
    """
    for layer in graph.layers:
        if len(layer.in_units) < len(target_graph.layer(layer.name).in_units):
            task = _task(small, graph, layer, target_graph)
            if task is not None:
                yield from _solved([task], small, small, target, batches, forward, expected)
    yield from recalibrating(small, graph, target, target_graph, batches, forward, expected)


@dataclass(slots=True, eq=False)
class _Task:
    """One layer to be solved: min ||(P, 1) W' - Y||^2 over the patches P that it still reads.

    `layer` is as in `small`; `inputs` are the positions of its input channels in the network
    that is watched (None: all), `outputs` those of its outputs in the target. `moment` is
    (P, 1)'(P, 1) and `cross` (P, 1)'Y, added up over batches in float64.
    """

    layer: Layer
    constant: bool  # whether there is a bias or a BatchNorm to put the constant into
    outputs: Tensor
    inputs: Tensor | None = None
    moment: Tensor | None = None
    cross: Tensor | None = None
    square: Tensor | None = None  # sums of Y squared [outputs]

    def add(self, call: Call, y: Tensor) -> None:
        """Take in one batch: the layer's call, and the outputs of target."""
        kernel = tuple(call.weight.shape[2:])
        x = call.x
        if self.inputs is not None:
            x = x.index_select(1, self.inputs.to(x.device))
        y = y.index_select(1, self.outputs.to(y.device))
        moment = patch_moments(x, kernel, call.conv).moment
        cross = cross_moment(x, y, kernel, call.conv)
        self.moment = moment if self.moment is None else self.moment + moment
        self.cross = cross if self.cross is None else self.cross + cross
        square = y.double().square().movedim(1, 0).flatten(1).sum(1)
        self.square = square if self.square is None else self.square + square

    def solve(self, small: nn.Module, target: nn.Module) -> None:
        """Put the least-squares weights into `small`, and their statistics into its BatchNorm.

        The change from the present weights W solves (M + ridge) X = C - M W'; the ridge pulls
        towards them, and is as small as lets rank-deficient patches be solved at all.
        """
        if self.moment is None or self.cross is None or self.square is None:
            return  # the layer was not called
        parameters = dict(small.named_parameters())
        weight = parameters[self.layer.weight]
        bias = parameters.get(_bias_of(self.layer))
        offset = torch.zeros(len(weight)) if bias is None else bias.detach()
        old = torch.cat([weight.detach().reshape(len(weight), -1), offset[:, None].to(weight)], 1)
        full = old.double().T
        size = len(full) if self.constant else len(full) - 1
        moment = self.moment[:size, :size]
        ridge = RIDGE * moment.diagonal().mean() * torch.eye(size, device=moment.device)
        full[:size] += torch.linalg.solve(moment + ridge, self.cross[:size] - moment @ full[:size])
        with torch.no_grad():
            weight.copy_(full[:-1].T.reshape(weight.shape))
            if bias is not None:
                bias.copy_(full[-1])
            else:
                full[-1] = 0  # BatchNorm takes the constant up, as its mean
            if self.layer.norm is not None:
                rows = self.moment[-1, -1]
                mean = full.T @ self.moment[-1] / rows
                square = ((self.moment @ full) * full).sum(0) / rows
                aim = self.cross[-1] / rows
                _shift_norm(
                    small.get_submodule(self.layer.norm),
                    target.get_submodule(self.layer.norm),
                    self.outputs,
                    mean - aim,
                    (square - mean.square()) / (self.square / rows - aim.square()),
                )


def _shift_norm(
    norm: nn.Module, target: nn.Module, channels: Tensor, shift: Tensor, ratio: Tensor
) -> None:
    """Give a BatchNorm the statistics of its target's `channels`, changed as measured.

    `shift` is the measured difference of means and `ratio` that of variances, small to target,
    on the same images. So a network that did not change keeps its statistics, whatever images
    (augmented ones, say) they were made on.
    """
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        return
    assert isinstance(target, nn.modules.batchnorm._BatchNorm)
    assert norm.running_var is not None
    assert target.running_mean is not None
    assert target.running_var is not None
    channels = channels.to(norm.running_mean.device)
    ratio = torch.nan_to_num(ratio, nan=1.0, posinf=1.0).clamp_min(1e-3)
    norm.running_mean.copy_(target.running_mean[channels] + shift)
    norm.running_var.copy_(target.running_var[channels] * ratio)


def _bias_of(layer: Layer) -> str:
    return layer.weight.removesuffix("weight") + "bias"


def chained(source_graph: ChannelGraph, graph: ChannelGraph) -> bool:
    """Whether a cut took inputs and outputs of one layer, so that repairs build on each other."""
    return any(
        len(now.in_units) < len(layer.in_units) and len(now.out_units) < len(layer.out_units)
        for layer, now in zip(source_graph.layers, graph.layers, strict=True)
        if layer.dense
    )


def _task(
    small: nn.Module, graph: ChannelGraph, layer: Layer, target_graph: ChannelGraph
) -> _Task | None:
    """What is to be solved of `layer`; None where least squares does not apply."""
    now = graph.layer(layer.name)
    entries = len(now.in_units) * prod(now.kernel)
    if not now.dense or now.transposed or now.computed or entries > WIDEST:
        return None
    there = {unit: place for place, unit in enumerate(target_graph.layer(layer.name).out_units)}
    has_bias = _bias_of(layer) in dict(small.named_parameters())
    return _Task(
        layer=now,
        constant=has_bias or layer.norm is not None,
        outputs=torch.tensor([there[unit] for unit in now.out_units.tolist()]),
    )


class _Enough(BaseException):
    """All wanted layers were called: the rest of the forward pass is of no interest."""


class _Outputs(Watch):
    """Keeps what the wanted layers give, call by call."""

    def __init__(self, model: nn.Module, tasks: Mapping[str, _Task]) -> None:
        super().__init__(model)
        self.tasks = tasks
        self.left = sum(task.layer.calls for task in tasks.values())
        self.found: dict[str, list[Tensor]] = {name: [] for name in tasks}

    def on_call(self, call: Call, out: Tensor) -> None:
        if call.name in self.tasks:
            self.found[call.name].append(out)
            self.left -= 1
            if not self.left:
                raise _Enough


class _Inputs(Watch):
    """Hands each call of a wanted layer to its task, with what `target` gave there."""

    def __init__(
        self, model: nn.Module, tasks: Mapping[str, _Task], targets: dict[str, list[Tensor]]
    ) -> None:
        super().__init__(model)
        self.tasks = tasks
        self.targets = targets
        self.left = sum(task.layer.calls for task in tasks.values())

    def on_call(self, call: Call, out: Tensor) -> None:
        if call.name in self.tasks:
            y = self.targets[call.name].pop(0)
            if out.numel():
                self.tasks[call.name].add(call, y)
            self.left -= 1
            if not self.left:
                raise _Enough


def _solved(
    tasks: list[_Task],
    small: nn.Module,
    source: nn.Module,
    target: nn.Module,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int = 0,
) -> Generator[Progress, None, None]:
    """Run `source` and `target` over the batches, then solve the tasks in `small`."""
    if not tasks:
        return
    wanted = {task.layer.weight: task for task in tasks}
    what = tasks[0].layer.name if len(tasks) == 1 else f"{len(tasks)} layers"
    count = 0
    with undisturbed(source), undisturbed(target), torch.no_grad():
        source.eval()
        target.eval()
        for batch in guarded(batches()):
            outputs = _Outputs(target, wanted)
            with suppress(_Enough), outputs:
                checked(forward, target, batch)
            with suppress(_Enough), _Inputs(source, wanted, outputs.found):
                checked(forward, source, batch)
            count += batch_size(batch)
            yield Progress(count, max(expected, count), f"solving {what} by least squares")
    if not count:
        raise BadData("There are no batches to repair on; give at least one.")
    for task in tasks:
        task.solve(small, target)


def recalibrating(
    small: nn.Module,
    graph: ChannelGraph,
    target: nn.Module,
    target_graph: ChannelGraph,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int = 0,
) -> Generator[Progress, None, None]:
    """Change the BatchNorm statistics of `small`, in place, by what pruning changed.

    Both networks run over the same batches, normalising by each batch; the difference between
    what they measure is applied to the target's statistics.
    """
    here = yield from _statistics(small, batches, forward, expected)
    there = yield from _statistics(target, batches, forward, expected)
    with torch.no_grad():
        for name, (mean, variance) in here.items():
            key = (f"{name}.running_mean", 0)
            channels = torch.arange(len(there[name][0]))
            if key in graph.slots and key in target_graph.slots:
                units, wanted = target_graph.slots[key], graph.slots[key]
                place = {unit: index for index, unit in enumerate(units.tolist())}
                if len(wanted) < len(units):
                    channels = torch.tensor([place[unit] for unit in wanted.tolist()])
            aim, spread = (value[channels.to(value.device)] for value in there[name])
            _shift_norm(
                small.get_submodule(name), target.get_submodule(name), channels,
                mean - aim, variance / spread,
            )  # fmt: skip


def _statistics(
    model: nn.Module,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int = 0,
) -> Generator[Progress, None, dict[str, tuple[Tensor, Tensor]]]:
    """The mean and variance that each BatchNorm sees [channels], averaged over batches."""
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    }
    if not norms:
        return {}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    count = 0
    with undisturbed(model), torch.no_grad():
        model.eval()
        try:
            for norm in norms.values():
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative average
            for batch in guarded(batches()):
                checked(forward, model, batch)
                count += batch_size(batch)
                yield Progress(count, max(expected, count), "measuring BatchNorm statistics")
            found = {
                name: (norm.running_mean.clone(), norm.running_var.clone())  # type: ignore[union-attr]
                for name, norm in norms.items()
            }
        finally:
            for name, norm in norms.items():
                norm.momentum = momenta[name]
    if not count:
        raise BadData("There are no batches to measure BatchNorm on; give at least one.")
    return found
