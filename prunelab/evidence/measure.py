"""`measure`: one streaming pass over batches, for evidence of every kind."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from prunelab.data.batches import batch_size
from prunelab.data.private_random import private_steps
from prunelab.errors import BadData, InvalidValue
from prunelab.evidence.ablation import LossSums
from prunelab.evidence.evidence import KINDS, Evidence
from prunelab.evidence.few_positions import CreateAccumulator, few_positions
from prunelab.evidence.fingerprint import fingerprint
from prunelab.evidence.gram_accumulators import accumulator_of
from prunelab.evidence.gram_collector import GramCollector, Sums, columns_of
from prunelab.evidence.mask_gradients import BatchNorm, Masks, MaskWatch, differentiable
from prunelab.evidence.output_fisher import RANK, WIDE, OutputFisherWatch, fisher_loss
from prunelab.graph.channels.channel_graph import ChannelGraph, Layer
from prunelab.graph.surgery.editing import check_fit
from prunelab.graph.trace import copy_of
from prunelab.loops.batch import (
    Loss,
    checked,
    cross_entropy,
    finish,
    guarded,
    run_batch,
)
from prunelab.loops.own import loss_of
from prunelab.loops.ranks import ranks
from prunelab.values import Progress
from prunelab.values.given import as_annotated

AT = ("conv", "bn")


@as_annotated
def measure(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    kinds: Sequence[str] = ("contribution",),
    *,
    at: str = "conv",
    layers: Sequence[str] | None = None,
    positions: int | None = None,
    seed: int = 0,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    loss: Loss = cross_entropy,
    masks: Masks = "readers",
    bn: BatchNorm = "running",
) -> Evidence:
    """Measure a network in one pass over `batches`; memory does not grow with their number.

    The network is left bitwise as it was: parameters, buffers and modes.

    Parameters
    ----------
    model, graph
        The network, and the graph that `trace` made of it.
    batches
        Inputs, or tuples whose first entry is the input; or whatever `forward` and `loss` take.
    kinds
        Any of "contribution" (G of every layer that reads prunable channels), "patches" (second
        moments of the patches that `layers` read), "gradient" (each image's mask gradients),
        "ablation" (the loss without each unit, one run of the network for every unit) and
        "curvature" (the Fisher information of the loss with respect to the outputs of `layers`).
    at
        "conv" measures contributions to a layer's own output, "bn" to the output of an
        evaluation-mode BatchNorm that follows it.
    layers
        Names of the layers to measure (None: all that read prunable channels).
    positions
        Output positions to draw from every image, with all output channels at each: faster, and
        the damages are estimates. None measures all positions exactly.
    seed
        Where random positions, and the random directions of "curvature", come from.
    forward
        `forward(model, batch)` runs the network (None: on the batch's first entry).
    loss
        `loss(model, batch)`, or of (outputs, targets) as for `Session`, a mean over the batch, for
        the last three kinds. With the default
        loss "curvature" needs no labels: it uses the network's own predictions.
    masks
        Where the masks of "gradient" stand, see `MaskWatch`.
    bn
        "running" evaluates BatchNorm with its running statistics, so that a mask gradient is that
        of the image's own loss. "batch" normalises by the batch as the released code of Group
        Fisher does; then it is the gradient of the batch's summed loss with respect to a mask on
        that image. For "gradient" alone.

    Raises
    ------
    InvalidValue
        For arguments that are not among these.
    BadData
        For no batches, or batches on which the network or the loss fails.
    NotFinite
        For NaN or infinity in what is measured.
    """
    check_fit(model, graph)
    if not kinds:
        raise InvalidValue(f"kinds is empty: name one or more of {', '.join(KINDS)}.")
    for layer in layers or ():
        graph.layer(layer)
    return finish(
        measuring(
            model, graph, batches, kinds, at=at, layers=layers,
            create=accumulator_of if positions is None else few_positions(positions, seed),
            seed=seed, forward=forward, loss=loss, masks=masks, bn=bn,
        )
    )  # fmt: skip


def measured_layers(graph: ChannelGraph, layers: Sequence[str] | None) -> list[Layer]:
    """The dense layers of these names, or all that read prunable channels."""
    read = {name for group in graph.groups if group.prunable for name in group.consumers}
    wanted = read if layers is None else layers
    return [layer for layer in graph.layers if layer.dense and layer.name in wanted]


def evidence_bytes(layers: Iterable[Layer], kinds: Sequence[str], images: int) -> float:
    """The memory of evidence of these layers, from an upper bound of the rows that it keeps.

    While G is measured it is there twice in float64, and the weight products of each pair of
    kernel entries in float32; patches and gradients are rows while there are few (`PatchMoments`,
    `Root`).
    """
    found = 0.0
    for layer in layers:
        rows = images * layer.positions * layer.row_count
        inputs, outputs = len(layer.in_units), len(layer.out_units)
        entries = inputs * prod(layer.kernel)
        if "contribution" in kinds:
            flattened = not layer.kernel and columns_of(layer)[1] < inputs
            units = columns_of(layer)[1] if flattened else inputs
            pairs = prod(layer.kernel) * (prod(layer.kernel) + 1) // 2
            found += (16 + 4 * pairs) * units**2 + 8 * units * outputs
        if "patches" in kinds:
            found += 4 * rows * entries if 2 * rows <= entries else 8 * (entries + 1) ** 2
        if "curvature" in kinds:
            found += 8 * outputs * (min(RANK, rows) if outputs > WIDE else outputs)
    return found


@private_steps
@torch.no_grad()
def measuring(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    kinds: Sequence[str] = ("contribution",),
    *,
    at: str = "conv",
    layers: Sequence[str] | None = None,
    create: CreateAccumulator = accumulator_of,
    seed: int = 0,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    loss: Loss = cross_entropy,
    masks: Masks = "readers",
    bn: BatchNorm = "running",
    expected: int = 0,
    mark: str | None = None,
) -> Generator[Progress, None, Evidence]:
    """`measure` as a generator: yields Progress in images, of `expected`; returns the Evidence.

    `create` makes each layer's empty accumulator of G, `mark` is the network's fingerprint where
    that is known; the other parameters are those of `measure`, which raises what this does.
    """
    if unknown := set(kinds) - set(KINDS):
        raise InvalidValue(f"kinds can be {', '.join(KINDS)}; not {', '.join(sorted(unknown))}.")
    if at not in AT:
        raise InvalidValue(f"at can be {' or '.join(map(repr, AT))}, not {at!r}.")
    if bn not in ("running", "batch") or (bn == "batch" and set(kinds) != {"gradient"}):
        raise InvalidValue(
            "bn is 'running', or 'batch' where kinds=('gradient',) alone is measured; not "
            f"{bn!r} with kinds={tuple(kinds)}."
        )
    targets = {layer.weight: layer for layer in measured_layers(graph, layers)}
    forward = forward or run_batch
    loss = loss_of(loss, forward)
    model = copy_of(model).eval()
    mark = mark or fingerprint(model)
    collector = GramCollector(model, targets, kinds, at, create)
    signals = bool({"contribution", "patches"} & set(kinds))
    watch = MaskWatch(model, graph, masks) if "gradient" in kinds else None
    losses = LossSums(model, graph, loss) if "ablation" in kinds else None
    curvature = OutputFisherWatch(model, targets, seed) if "curvature" in kinds else None
    predicted = fisher_loss(torch.Generator().manual_seed(seed))
    images = 0
    for batch in guarded(batches):
        if signals:
            with collector:
                checked(forward, model, batch)
            collector.check()
        if watch is not None:
            with differentiable(model, bn):
                watch.measure(model, batch, loss)
        if curvature is not None:
            with differentiable(model):
                curvature.measure(model, batch, predicted if loss is cross_entropy else loss)
            curvature.check()
        if losses is not None:
            yield from losses.measuring(batch, expected)
        images += batch_size(batch)
        if losses is None:  # it yields Progress for every run
            yield Progress(images, max(expected, images), "measuring on training images")
    if not images and ranks() == 1:  # other ranks may have some
        raise BadData("There are no batches to measure on; give at least one.")
    names = {layer.weight: layer.name for layer in targets.values()}
    return Evidence(
        graph,
        mark,
        images,
        at,
        {names[key]: found.gram for key, found in collector.grams.items()},
        {names[key]: value for key, value in collector.moments.items()},
        {names[key]: Sums(found.sums, found.rows) for key, found in collector.grams.items()},
        watch.sums.numpy() if watch is not None else None,
        losses.sums if losses is not None else None,
        masks,
        bn,
        {names[key]: value for key, value in curvature.sums.items()}
        if curvature is not None
        else {},
    )
