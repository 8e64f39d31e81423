"""`measure`: one streaming pass over batches; what it finds adds up over passes and machines."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.calls import Call, Watch
from prunelab.channels import FIXED, ChannelGraph, Layer
from prunelab.errors import BadData, InvalidValue, NotFinite, StaleEvidence, UnknownName
from prunelab.evidence.ablation import Ablation, LossSums
from prunelab.evidence.batch import (
    Loss,
    batch_size,
    checked,
    cross_entropy,
    finish,
    guarded,
    run_batch,
)
from prunelab.evidence.contribution import ConsumerGram, ContributionGram, call_gram
from prunelab.evidence.gradient import (
    BatchNorm,
    MaskGradients,
    Masks,
    MaskWatch,
    differentiable,
)
from prunelab.evidence.moments import PatchMoments, patch_moments
from prunelab.fingerprint import fingerprint
from prunelab.tracing import undisturbed
from prunelab.values import Progress

KINDS = ("contribution", "patches", "gradient", "ablation")
AT = ("conv", "bn")


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What one pass measured; `evidence[group]` answers for a channel group.

    `grams` maps a layer to G over the distinct units that it reads (the last row and column
    stand for all that belongs to none). `gradients` [3, units + 1] holds the sums of mask
    gradients (signed, absolute, squared) over the graph's units, `ablated` [units + 1] those of
    the loss without each unit, and without none in the last place. `images` is how many inputs
    were seen; `fingerprint` names the network that was measured. `at`, `masks` and `bn` are what
    `measure` was asked for. Evidence of the same network adds up with +.
    """

    graph: ChannelGraph
    fingerprint: str
    images: int
    at: str
    grams: Mapping[str, np.ndarray] = field(default_factory=dict)
    moments: Mapping[str, PatchMoments] = field(default_factory=dict)
    gradients: np.ndarray | None = None
    ablated: np.ndarray | None = None
    masks: Masks = "readers"
    bn: BatchNorm = "running"

    def __getitem__(self, name: str) -> ContributionGram:
        group = self.graph[name]
        wanted = group.first + np.asarray(group.units, dtype=np.int64)
        consumers = {}
        for layer in self.graph.consumers(group):
            if layer.name not in self.grams:
                continue
            gram = self.grams[layer.name]
            rows = np.searchsorted(distinct_units(layer), wanted)
            consumers[layer.name] = ConsumerGram(
                name=layer.name,
                units=group.units,
                gram=gram[np.ix_(rows, rows)],
                cross=gram[rows].sum(1),
                energy=float(gram.sum()),
            )
        if not consumers and group.consumers:
            raise UnknownName("measured group", name, self.groups)
        return ContributionGram(group.name, group.units, consumers)

    def gradient(self, name: str) -> MaskGradients:
        """The mask gradients of a group; raises `UnknownName` where none were measured."""
        sums = self._of(name, self.gradients, "gradient")
        return MaskGradients(self.graph[name].name, self.graph[name].units, self.images, *sums)

    def ablation(self, name: str) -> Ablation:
        """The loss without each unit of a group; raises `UnknownName` where none was measured."""
        losses = self._of(name, self.ablated, "ablation") / self.images
        base = float(self.ablated[FIXED]) / self.images  # type: ignore[index]
        group = self.graph[name]
        return Ablation(group.name, group.units, self.images, losses, base)

    def _of(self, name: str, sums: np.ndarray | None, kind: str) -> np.ndarray:
        """The columns of `sums` that belong to a group's units."""
        group = self.graph[name]
        if sums is None or not group.prunable:
            known = [g.name for g in self.graph.groups if g.prunable] if sums is not None else []
            raise UnknownName(f"group measured with kinds=({kind!r},)", name, known)
        found: np.ndarray = sums[..., group.first + np.asarray(group.units, dtype=np.int64)]
        return found

    @property
    def groups(self) -> list[str]:
        """The prunable groups that were measured."""
        return [
            group.name
            for group in self.graph.groups
            if group.prunable and any(name in self.grams for name in group.consumers)
        ]

    def __add__(self, other: Evidence) -> Evidence:
        if self._measured() != other._measured():
            raise StaleEvidence(
                "Only evidence of the very same network, measured in the same way, adds up; "
                f"these are {self._measured()} and {other._measured()}. Measure again."
            )
        return Evidence(
            self.graph,
            self.fingerprint,
            self.images + other.images,
            self.at,
            {name: self.grams[name] + other.grams[name] for name in self.grams},
            {name: self.moments[name] + other.moments[name] for name in self.moments},
            None if self.gradients is None else self.gradients + other.gradients,
            None if self.ablated is None else self.ablated + other.ablated,
            self.masks,
            self.bn,
        )

    def _measured(self) -> tuple[object, ...]:
        """On which network, how, and of which kinds."""
        kinds = (self.grams, self.moments, self.gradients is not None, self.ablated is not None)
        found = [kind for kind, have in zip(KINDS, kinds, strict=True) if have]
        return (self.fingerprint, self.at, self.masks, self.bn, *found)

    def __repr__(self) -> str:
        return f"<Evidence on {self.images} images of network {self.fingerprint}, at {self.at!r}>"


def measure(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    kinds: Sequence[str] = ("contribution",),
    *,
    at: str = "conv",
    layers: Sequence[str] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    loss: Loss = cross_entropy,
    masks: Masks = "readers",
    bn: BatchNorm = "running",
) -> Evidence:
    """Go once over `batches` and measure; memory does not grow with their number.

    `kinds` are "contribution" (G of every consumer of prunable channels), "patches" (patch
    moments of `layers`), "gradient" (each image's mask gradients) and "ablation" (the loss
    without each unit: a run of the network for every one). `at="bn"` measures contributions
    behind an evaluation-mode BatchNorm where one follows the consumer. A batch is an input, or a
    tuple whose first entry is; or whatever `forward(model, batch)` takes.

    The last two kinds need `loss(model, batch)`, a mean over the batch. `masks`: see `MaskWatch`.
    With `bn="batch"` gradients go through training-mode BatchNorm: images are then coupled, and
    dL_n/dm is how the whole batch's summed loss answers to a mask on image n, as in the released
    code; "running" gives the image's own loss.

    The network is left bitwise as it was. Raises `BadData` for no batches or batches that the
    network does not take, `NotFinite` for NaN in the signal.
    """
    return finish(
        measuring(
            model, graph, batches, kinds, at=at, layers=layers, forward=forward, loss=loss,
            masks=masks, bn=bn,
        )
    )  # fmt: skip


def measuring(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    kinds: Sequence[str] = ("contribution",),
    *,
    at: str = "conv",
    layers: Sequence[str] | None = None,
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
    read = {name for group in graph.groups if group.prunable for name in group.consumers}
    targets = {
        layer.weight: layer
        for layer in graph.layers
        if layer.dense and (layer.name in read if layers is None else layer.name in layers)
    }
    forward = forward or run_batch
    meter = _Meter(model, targets, kinds, at) if {"contribution", "patches"} & set(kinds) else None
    watch = MaskWatch(model, graph, masks) if "gradient" in kinds else None
    losses = LossSums(model, graph, loss) if "ablation" in kinds else None
    images = 0
    mark = fingerprint(model)
    with undisturbed(model), torch.no_grad():
        model.eval()
        for batch in guarded(batches):
            if meter is not None:
                with meter:
                    checked(forward, model, batch)
                meter.check()
            if watch is not None:
                with differentiable(model, bn):
                    watch.measure(model, batch, loss)
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
        {names[key]: value.cpu().numpy() for key, value in meter.grams.items()} if meter else {},
        {names[key]: value for key, value in meter.moments.items()} if meter else {},
        watch.sums.numpy() if watch is not None else None,
        losses.sums if losses is not None else None,
        masks,
        bn,
    )


class _Meter(Watch):
    """Adds up G and patch moments of the target layers, call by call."""

    def __init__(
        self, model: nn.Module, targets: Mapping[str, Layer], kinds: Sequence[str], at: str
    ) -> None:
        super().__init__(model)
        self.targets = targets
        self.kinds = kinds
        self.grams: dict[str, Tensor] = {}
        self.moments: dict[str, PatchMoments] = {}
        self.columns = {key: columns_of(layer) for key, layer in targets.items()}
        self.scales = {key: _scale(model, layer, at) for key, layer in targets.items()}

    def on_call(self, call: Call, out: Tensor) -> None:
        layer = self.targets.get(call.name)
        if layer is None or not out.numel():
            return
        if "contribution" in self.kinds:
            columns, count = self.columns[call.name]
            gram = call_gram(call, columns.to(out.device), count, self.scales[call.name])
            have = self.grams.get(call.name)
            self.grams[call.name] = gram if have is None else have + gram
        if "patches" in self.kinds:
            found = patch_moments(call.x, layer.kernel, call.conv)
            before = self.moments.get(call.name)
            self.moments[call.name] = found if before is None else before + found

    def check(self) -> None:
        """Raise `NotFinite` for the first layer whose signal is not a number."""
        found = [*self.grams.items(), *((k, m.moment) for k, m in self.moments.items())]
        for name, value in found:
            if not torch.isfinite(value).all():
                raise NotFinite(
                    f"NaN or infinity reaches {name.removesuffix('.weight')}: its signal cannot "
                    "be measured. Look for NaN in the weights before it, or in the images."
                )


def distinct_units(layer: Layer) -> np.ndarray:
    """The graph-wide numbers of the units that a layer reads, ascending."""
    units = np.unique(layer.in_units)
    return units[units != FIXED]


def columns_of(layer: Layer) -> tuple[Tensor, int]:
    """For each input position of a layer its row in G, and how many rows G has.

    Rows follow `distinct_units`; one more stands for positions that belong to no unit.
    """
    distinct = distinct_units(layer)
    fixed = layer.in_units == FIXED
    rows = np.where(fixed, len(distinct), np.searchsorted(distinct, layer.in_units))
    return torch.from_numpy(rows), len(distinct) + bool(fixed.any())


def _scale(model: nn.Module, layer: Layer, at: str) -> Tensor | None:
    if at == "conv" or layer.norm is None:
        return None
    norm = model.get_submodule(layer.norm)
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_var is None:
        return None
    gamma = norm.weight.detach() if norm.weight is not None else torch.ones_like(norm.running_var)
    return gamma / torch.sqrt(norm.running_var + norm.eps)
