"""Repair without training: least squares for the layers that lost inputs, then BatchNorm.

A consumer that lost input channels gets the weights that best reproduce what it computed before,
from the channels it still has (the reconstruction of Channel Pruning, He et al., ICCV 2017,
section 3.1, solved from patch moments instead of samples). Labels are not needed. May import
evidence, channels, surgery, values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.channels import ChannelGraph, Layer
from prunelab.errors import BadData, InvalidValue
from prunelab.evidence.measure import checked, guarded, measuring
from prunelab.values import Progress, WidthPlan

KINDS = ("lstsq", "bn")
WIDEST = 8192  # patch entries whose second moment is kept: 0.5 GB in float64


def repairing(
    small: nn.Module,
    before: nn.Module,
    graph: ChannelGraph,
    plan: WidthPlan,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    kind: str,
    total: int = 0,
) -> Iterator[Progress]:
    """Repair `small` in place; yields Progress, returns the names of the layers solved anew.

    `small` is `before` cut to `plan`, and `graph` describes `before`. `kind` is "lstsq" (least
    squares, then BatchNorm) or "bn" (BatchNorm statistics only).
    """
    if kind not in KINDS:
        raise InvalidValue(f"repair is 'lstsq', 'bn' or None, not {kind!r}.")
    solved: list[str] = []
    if kind == "lstsq":
        layers = [layer for layer in _lost_inputs(graph, plan) if _entries(layer) <= WIDEST]
        names = [layer.name for layer in layers]
        if names:
            evidence = yield from measuring(
                before, graph, batches(), ("patches",), layers=names, forward=forward, total=total
            )
            for layer in layers:
                if layer.name in evidence.moments:
                    solve(small, before, layer, graph, plan, evidence.moments[layer.name].moment)
                    solved.append(layer.name)
    yield from recalibrating(small, batches(), forward, total)
    return solved


def _lost_inputs(graph: ChannelGraph, plan: WidthPlan) -> list[Layer]:
    alive = graph.alive(plan)
    return [
        layer
        for layer in graph.layers
        if layer.dense and not layer.transposed and not alive[layer.in_units].all()
    ]


def _entries(layer: Layer) -> int:
    return len(layer.in_units) * prod(layer.kernel)


def solve(
    small: nn.Module,
    before: nn.Module,
    layer: Layer,
    graph: ChannelGraph,
    plan: WidthPlan,
    moment: Tensor,
) -> None:
    """Least squares for one consumer, in place in `small`.

    With p = (patch, 1), kept entries K and lost entries D, the weights change by the solution of
    (M_KK + ridge) X = M_KD W_D': zero ridge is the exact minimiser; the ridge pulls towards the
    old weights, and is as small as float64 needs. The constant takes part where the layer has a
    bias or a BatchNorm to put it into.
    """
    alive = graph.alive(plan)
    entries = prod(layer.kernel)
    stays = np.repeat(alive[layer.in_units], entries)
    outs = torch.from_numpy(np.flatnonzero(alive[layer.out_units]))
    kept = torch.from_numpy(np.flatnonzero(stays))
    lost = torch.from_numpy(np.flatnonzero(~stays))
    with torch.no_grad():
        parameters = dict(small.named_parameters())
        weight = parameters[layer.weight]
        device = weight.device
        bias = parameters.get(layer.weight.removesuffix("weight") + "bias")
        constant = bias is not None or layer.norm is not None
        rows = torch.cat([kept, torch.tensor([len(stays)])]) if constant else kept
        moment = moment.cpu()
        old = dict(before.named_parameters())[layer.weight].detach().double().cpu()
        old = old.reshape(len(layer.out_units), -1)[outs]
        among = moment[rows[:, None], rows[None, :]]
        target = moment[rows[:, None], lost[None, :]] @ old[:, lost].T
        ridge = 1e-6 * float(among.diagonal().mean())
        among = among + ridge * torch.eye(len(rows), dtype=torch.float64)
        change = torch.linalg.solve(among, target)
        weight += change[: len(kept)].T.reshape(weight.shape).to(device, weight.dtype)
        if bias is not None:
            bias += change[-1].to(device, bias.dtype)


def recalibrating(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    total: int = 0,
) -> Iterator[Progress]:
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


