"""Collects G, its sums and patch moments, call by call, while a network runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.errors import NotFinite
from prunelab.evidence.few_positions import CreateAccumulator
from prunelab.evidence.gram_accumulators import GramAccumulator, LayerAccumulators
from prunelab.evidence.patch_moments import PatchMoments, patch_moments
from prunelab.graph.channels.channel_graph import FIXED, Layer
from prunelab.graph.labels.layer_calls import Call, Watch


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """The sums of a layer's contributions over `rows` samples and positions [units, out]."""

    sums: np.ndarray
    rows: int

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.sums + other.sums, self.rows + other.rows)


class GramCollector(Watch):
    """Sums G and patch moments of target layers over the calls of a network's forward passes.

    Parameters
    ----------
    model
        The network that will run.
    targets
        The layers to measure, by the names of their weights.
    kinds
        "contribution" for G, "patches" for patch moments; others are ignored.
    at
        "conv" measures the layers' own outputs, "bn" behind a BatchNorm that follows.
    create
        Makes an empty accumulator for a layer's first call.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, Layer],
        kinds: Sequence[str],
        at: str,
        create: CreateAccumulator,
    ) -> None:
        super().__init__(model)
        self.targets = targets
        self.kinds = kinds
        self.create = create
        self.moments: dict[str, PatchMoments] = {}
        self.grams: dict[str, LayerAccumulators] = {}
        self.columns = {key: columns_of(layer) for key, layer in targets.items()}
        self.scales = {key: _scale(model, layer, at) for key, layer in targets.items()}

    def on_call(self, call: Call, out: Tensor) -> None:
        """Add a call of a target layer."""
        layer = self.targets.get(call.name)
        if layer is None or not out.numel():
            return
        if "contribution" in self.kinds:
            self.grams.setdefault(call.name, LayerAccumulators(self._empty)).add(call)
        if "patches" in self.kinds:
            before = self.moments.get(call.name)
            self.moments[call.name] = patch_moments(call.x, layer.kernel, call.conv, before)

    def _empty(self, call: Call) -> GramAccumulator:
        return self.create(call, *self.columns[call.name], self.scales[call.name])

    def check(self) -> None:
        """Raise `NotFinite` for the first layer whose signal has NaN or infinity."""
        finite = {name: found.finite for name, found in self.grams.items()}
        for name, moments in self.moments.items():
            finite[name] = finite.get(name, True) and moments.finite
        for name in (name for name, is_finite in finite.items() if not is_finite):
            raise NotFinite(
                f"NaN or infinity reaches {name.removesuffix('.weight')}: its signal cannot "
                "be measured. Look for NaN in the weights before it, or in the images."
            )


def distinct_units(layer: Layer) -> np.ndarray:
    """The graph-wide numbers of the units that a layer reads, in ascending order."""
    units = np.unique(layer.in_units)
    return units[units != FIXED]


def columns_of(layer: Layer) -> tuple[Tensor, int]:
    """The row in G of each of a layer's inputs, and how many rows G has.

    Rows follow `distinct_units`; inputs that belong to no unit share one more, the last.
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
