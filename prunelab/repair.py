"""Repair without training: least squares for the layers that lost inputs, then BatchNorm.

A layer that lost input channels gets the weights that best give, from the channels it still has,
what it gave before (the reconstruction of Channel Pruning, He et al., ICCV 2017, section 3.1,
solved from second moments instead of samples). Labels are not needed. May import evidence,
channels, calls, values.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.calls import Call, Watch
from prunelab.channels import ChannelGraph, Layer
from prunelab.errors import BadData, InvalidValue
from prunelab.evidence.measure import checked, guarded
from prunelab.evidence.moments import cross_moment, patch_moments
from prunelab.tracing import undisturbed
from prunelab.values import Progress

KINDS = ("lstsq", "bn")
WIDEST = 8192  # patch entries whose second moment is kept: 0.5 GB in float64


def repairing(
    small: nn.Module,
    graph: ChannelGraph,
    source: nn.Module,
    source_graph: ChannelGraph,
    target: nn.Module,
    target_graph: ChannelGraph,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    kind: str,
) -> Generator[Progress, None, None]:
    """Repair `small` in place; yields Progress.

    `small` was cut from `source`, and every layer that lost inputs by that is solved anew: it
    reads what `source` reads, of the channels that `small` still has, and aims at what the same
    layer of `target` gives, the network from before any cut. So errors of earlier moves are made
    good too (the accumulated error of Channel Pruning, section 3.1.2: inputs from the pruned
    network, targets from the original). `kind` is "lstsq" (that, then BatchNorm) or "bn"
    (BatchNorm statistics only). Each graph describes the network before it.
    """
    if kind not in KINDS:
        raise InvalidValue(f"repair is 'lstsq', 'bn' or None, not {kind!r}.")
    if kind == "lstsq":
        tasks = {
            task.weight: task
            for task in (
                _task(small, graph, layer, target_graph) for layer in source_graph.layers
            )
            if task is not None
        }
        yield from _meet(tasks, source, target, batches, forward)
        for task in tasks.values():
            task.solve(small)
    yield from recalibrating(small, batches(), forward)


@dataclass(slots=True, eq=False)
class _Task:
    """One layer to be solved: min ||(P, 1) W' - Y||^2 over the patches P that it still reads.

    `inputs` are the positions of source's input channels that stay, `outputs` those of target's
    outputs. `moment` is (P, 1)'(P, 1) and `cross` (P, 1)'Y, added up over batches in float64.
    """

    weight: str
    constant: bool  # whether there is a bias or a BatchNorm to put the constant into
    inputs: Tensor
    outputs: Tensor
    moment: Tensor | None = None
    cross: Tensor | None = None

    def add(self, call: Call, y: Tensor) -> None:
        """Take in one batch: the layer's call in source, and the outputs of target."""
        kernel = tuple(call.weight.shape[2:])
        x = call.x.index_select(1, self.inputs.to(call.x.device))
        y = y.index_select(1, self.outputs.to(y.device))
        moment = patch_moments(x, kernel, call.conv).moment
        cross = cross_moment(x, y, kernel, call.conv)
        self.moment = moment if self.moment is None else self.moment + moment
        self.cross = cross if self.cross is None else self.cross + cross

    def solve(self, small: nn.Module) -> None:
        """Put the least-squares weights into `small`.

        The change from the present weights W solves (M + ridge) X = C - M W'; the ridge pulls
        towards them, and is as small as lets rank-deficient patches be solved at all.
        """
        if self.moment is None or self.cross is None:
            return  # the layer was not called
        parameters = dict(small.named_parameters())
        weight = parameters[self.weight]
        bias = parameters.get(self.weight.removesuffix("weight") + "bias")
        old = weight.detach().double().reshape(len(weight), -1)
        offset = torch.zeros(len(weight), 1, dtype=torch.float64, device=old.device)
        if bias is not None:
            offset = bias.detach().double()[:, None]
        old = torch.cat([old, offset], dim=1).T
        size = len(self.moment) if self.constant else len(self.moment) - 1
        moment, cross, old = self.moment[:size, :size], self.cross[:size], old[:size]
        ridge = 1e-6 * moment.diagonal().mean()
        eye = torch.eye(size, dtype=torch.float64, device=moment.device)
        change = torch.linalg.solve(moment + ridge * eye, cross - moment @ old)
        entries = old.shape[0] - self.constant
        with torch.no_grad():
            weight += change[:entries].T.reshape(weight.shape).to(weight.dtype)
            if bias is not None:
                bias += change[-1].to(bias.dtype)


def _task(
    small: nn.Module, graph: ChannelGraph, layer: Layer, target_graph: ChannelGraph
) -> _Task | None:
    """What is to be solved of a layer of `source`; None where it lost nothing or cannot be."""
    now = graph.layer(layer.name)
    entries = len(now.in_units) * prod(layer.kernel)
    if not layer.dense or layer.transposed or len(now.in_units) == len(layer.in_units):
        return None
    if entries > WIDEST:
        return None
    there = {unit: place for place, unit in enumerate(target_graph.layer(layer.name).out_units)}
    has_bias = layer.weight.removesuffix("weight") + "bias" in dict(small.named_parameters())
    return _Task(
        weight=layer.weight,
        constant=has_bias or layer.norm is not None,
        inputs=torch.from_numpy(np.flatnonzero(np.isin(layer.in_units, now.in_units))),
        outputs=torch.tensor([there[unit] for unit in now.out_units.tolist()]),
    )


class _Outputs(Watch):
    """Keeps what the wanted layers give, call by call."""

    def __init__(self, model: nn.Module, tasks: Mapping[str, _Task]) -> None:
        super().__init__(model)
        self.tasks = tasks
        self.found: dict[str, list[Tensor]] = {name: [] for name in tasks}

    def on_call(self, call: Call, out: Tensor) -> None:
        if call.name in self.tasks:
            self.found[call.name].append(out)


class _Inputs(Watch):
    """Hands each call of a wanted layer to its task, with what `target` gave there."""

    def __init__(
        self, model: nn.Module, tasks: Mapping[str, _Task], targets: dict[str, list[Tensor]]
    ) -> None:
        super().__init__(model)
        self.tasks = tasks
        self.targets = targets

    def on_call(self, call: Call, out: Tensor) -> None:
        if call.name in self.tasks and out.numel():
            self.tasks[call.name].add(call, self.targets[call.name].pop(0))


def _meet(
    tasks: Mapping[str, _Task],
    source: nn.Module,
    target: nn.Module,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
) -> Generator[Progress, None, None]:
    """Run both networks over the batches and fill the tasks."""
    if not tasks:
        return
    count = 0
    with undisturbed(source), undisturbed(target), torch.no_grad():
        source.eval()
        target.eval()
        for batch in guarded(batches()):
            with _Outputs(target, tasks) as outputs:
                checked(forward, target, batch)
            with _Inputs(source, tasks, outputs.found):
                checked(forward, source, batch)
            count += 1
            yield Progress(count, count, "solving for the lost signal")
    if not count:
        raise BadData("There are no batches to repair on; give at least one.")


def recalibrating(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    total: int = 0,
) -> Generator[Progress, None, None]:
    """Measure the BatchNorm statistics of `model` anew, in place: plain means over batches."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return
    flags = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    counted = [norm.num_batches_tracked.clone() for norm in norms]  # type: ignore[union-attr]
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
        count = 0
        with torch.no_grad():
            for batch in guarded(batches):
                checked(forward, model, batch)
                count += 1
                yield Progress(count, max(total, count), "recalibrating BatchNorm")
        if not count:
            raise BadData("There are no batches to recalibrate BatchNorm on; give at least one.")
    finally:
        for norm, momentum, tracked in zip(norms, momenta, counted, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(tracked)  # type: ignore[union-attr]
        for module, training in flags:
            module.training = training


