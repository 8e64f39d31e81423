"""`measure`: one streaming pass over batches, for evidence of every kind."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from prunelab.data.batches import batch_size
from prunelab.data.private_random import private_steps
from prunelab.errors import BadData, InvalidValue
from prunelab.evidence.ablation import LossSums
from prunelab.evidence.evidence import KINDS, Evidence
from prunelab.evidence.fingerprint import fingerprint
from prunelab.evidence.gram_collector import Meter, Sums
from prunelab.evidence.mask_gradients import BatchNorm, Masks, MaskWatch, differentiable
from prunelab.evidence.output_fisher import CurvatureWatch, own_answers
from prunelab.evidence.sampling import Sample
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.trace import undisturbed
from prunelab.loops.batch import (
    Loss,
    checked,
    cross_entropy,
    finish,
    guarded,
    run_batch,
)
from prunelab.values import Progress

AT = ("conv", "bn")


def measure(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    kinds: Sequence[str] = ("contribution",),
    *,
    at: str = "conv",
    layers: Sequence[str] | None = None,
    positions: int | None = None,
    scalars: int | None = None,
    seed: int = 0,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    loss: Loss = cross_entropy,
    masks: Masks = "readers",
    bn: BatchNorm = "running",
) -> Evidence:
    """Go once over `batches` and measure; memory does not grow with their number.

    `kinds` are "contribution" (G of every consumer of prunable channels), "patches" (patch
    moments of `layers`), "gradient" (each image's mask gradients), "ablation" (the loss
    without each unit: a run of the network for every one) and "curvature" (the second moment of
    the loss's gradients by the outputs of `layers`). `at="bn"` measures contributions
    behind an evaluation-mode BatchNorm where one follows the consumer. A batch is an input, or a
    tuple whose first entry is; or whatever `forward(model, batch)` takes.

    All of every consumer's output is looked at, exactly, unless `positions` says at how many
    positions of it an image, with all outputs there: quicker, and its damages are estimates.
    `scalars` draws as ThiNet does, that many single outputs an image. Both draw from `seed`.

    The last three kinds need `loss(model, batch)`, a mean over the batch; with the default loss,
    curvature is that of the network's own answers, drawn from `seed`, and needs no labels.
    `masks`: see `MaskWatch`.
    With `bn="batch"` gradients go through training-mode BatchNorm: images are then coupled, and
    dL_n/dm is how the whole batch's summed loss answers to a mask on image n, as in the released
    code; "running" gives the image's own loss.

    The network is left bitwise as it was. Raises `BadData` for no batches or batches that the
    network does not take, `NotFinite` for NaN in the signal.
    """
    return finish(
        measuring(
            model, graph, batches, kinds, at=at, layers=layers, positions=positions,
            scalars=scalars, seed=seed, forward=forward, loss=loss, masks=masks, bn=bn,
        )
    )  # fmt: skip


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
    positions: int | None = None,
    scalars: int | None = None,
    seed: int = 0,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    loss: Loss = cross_entropy,
    masks: Masks = "readers",
    bn: BatchNorm = "running",
    expected: int = 0,
) -> Generator[Progress, None, Evidence]:
    """`measure` as a generator: yields Progress in images, of `expected`; gives the Evidence."""
    if unknown := set(kinds) - set(KINDS):
        raise InvalidValue(f"kinds can be {', '.join(KINDS)}; not {', '.join(sorted(unknown))}.")
    if at not in AT:
        raise InvalidValue(f"at can be {' or '.join(map(repr, AT))}, not {at!r}.")
    if bn not in ("running", "batch") or (bn == "batch" and set(kinds) != {"gradient"}):
        raise InvalidValue(
            "bn is 'running', or 'batch' where kinds=('gradient',) alone is measured; not "
            f"{bn!r} with kinds={tuple(kinds)}."
        )
    drawn = positions if scalars is None else scalars
    if (drawn is not None and drawn < 1) or (positions is not None and scalars is not None):
        raise InvalidValue(
            "positions, or scalars, is a number to draw of each image, from 1 up, and the other is "
            f"None; not positions={positions!r}, scalars={scalars!r}."
        )
    read = {name for group in graph.groups if group.prunable for name in group.consumers}
    targets = {
        layer.weight: layer
        for layer in graph.layers
        if layer.dense and (layer.name in read if layers is None else layer.name in layers)
    }
    forward = forward or run_batch
    sample = None
    if drawn is not None:
        sample = Sample(drawn, torch.Generator().manual_seed(seed), scalars is not None)
    meter = Meter(model, targets, kinds, at, sample)
    signals = bool({"contribution", "patches"} & set(kinds))
    watch = MaskWatch(model, graph, masks) if "gradient" in kinds else None
    losses = LossSums(model, graph, loss) if "ablation" in kinds else None
    curvature = CurvatureWatch(model, targets) if "curvature" in kinds else None
    answers = own_answers(torch.Generator().manual_seed(seed))
    images = 0
    mark = fingerprint(model)
    with undisturbed(model):
        model.eval()
        for batch in guarded(batches):
            if signals:
                with meter:
                    checked(forward, model, batch)
                meter.check()
            if watch is not None:
                with differentiable(model, bn):
                    watch.measure(model, batch, loss)
            if curvature is not None:
                with differentiable(model):
                    curvature.measure(model, batch, answers if loss is cross_entropy else loss)
                curvature.check()
            if losses is not None:
                yield from losses.measuring(batch, expected)
            images += batch_size(batch)
            if losses is None:  # which tells of every run
                yield Progress(images, max(expected, images), "measuring on training images")
    if not images:
        raise BadData("There are no batches to measure on; give at least one.")
    names = {layer.weight: layer.name for layer in targets.values()}
    return Evidence(
        graph,
        mark,
        images,
        at,
        {names[key]: found.gram for key, found in meter.accounts.items()},
        {names[key]: value for key, value in meter.moments.items()},
        {names[key]: Sums(found.sums, found.rows) for key, found in meter.accounts.items()},
        watch.sums.numpy() if watch is not None else None,
        losses.sums if losses is not None else None,
        masks,
        bn,
        {names[key]: value.cpu().numpy() for key, value in curvature.sums.items()}
        if curvature is not None
        else {},
    )
