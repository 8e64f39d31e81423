"""The meter: adds up G, its sums and patch moments, call by call, while a network runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.calls import Call, Watch
from prunelab.channels import FIXED, Layer
from prunelab.errors import NotFinite
from prunelab.evidence.contribution import call_gram, call_sums
from prunelab.evidence.moments import PatchMoments, patch_moments
from prunelab.evidence.sampling import sampled_rows


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """The sums of a layer's contributions over `rows` samples and positions [units, out]."""

    sums: np.ndarray
    rows: int

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.sums + other.sums, self.rows + other.rows)


class Meter(Watch):
    """Adds up G and patch moments of the target layers, call by call."""

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, Layer],
        kinds: Sequence[str],
        at: str,
        sample: tuple[int, torch.Generator] | None,
    ) -> None:
        super().__init__(model)
        self.targets = targets
        self.kinds = kinds
        self.sample = sample
        self.sums: dict[str, Sums] = {}
        self.grams: dict[str, Tensor] = {}
        self.moments: dict[str, PatchMoments] = {}
        self.columns = {key: columns_of(layer) for key, layer in targets.items()}
        self.scales = {key: _scale(model, layer, at) for key, layer in targets.items()}

    def on_call(self, call: Call, out: Tensor) -> None:
        """Take in a call of a target layer."""
        layer = self.targets.get(call.name)
        if layer is None or not out.numel():
            return
        if "contribution" in self.kinds:
            gram, sums = self._contributions(call, out.device)
            have = self.grams.get(call.name)
            self.grams[call.name] = gram if have is None else have + gram
            so_far = self.sums.get(call.name)
            self.sums[call.name] = sums if so_far is None else so_far + sums
        if "patches" in self.kinds:
            found = patch_moments(call.x, layer.kernel, call.conv)
            before = self.moments.get(call.name)
            self.moments[call.name] = found if before is None else before + found

    def _contributions(self, call: Call, device: torch.device) -> tuple[Tensor, Sums]:
        """G of one call, and the sums of its contributions."""
        columns, count = self.columns[call.name]
        columns, scale = columns.to(device), self.scales[call.name]
        if self.sample is not None:
            rows = sampled_rows(call, columns, count, scale, *self.sample)
            return rows.T @ rows, Sums(rows.sum(0)[:, None].cpu().numpy(), len(rows))
        sums, number = call_sums(call, columns, count, scale)
        return call_gram(call, columns, count, scale), Sums(sums.cpu().numpy(), number)

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


# ---------------------------------------------------------------- batches
