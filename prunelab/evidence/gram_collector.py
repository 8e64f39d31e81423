"""The meter: adds up G, its sums and patch moments, call by call, while a network runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.errors import NotFinite
from prunelab.evidence.gram_accumulators import Account, Accounts, account_of
from prunelab.evidence.patch_moments import PatchMoments, patch_moments
from prunelab.evidence.sampling import Sample, sampled_account
from prunelab.graph.channels.channel_graph import FIXED, Layer
from prunelab.graph.labels.layer_calls import Call, Watch


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
        sample: Sample | None,
    ) -> None:
        super().__init__(model)
        self.targets = targets
        self.kinds = kinds
        self.sample = sample
        self.moments: dict[str, PatchMoments] = {}
        self.accounts: dict[str, Accounts] = {}
        self.columns = {key: columns_of(layer) for key, layer in targets.items()}
        self.scales = {key: _scale(model, layer, at) for key, layer in targets.items()}

    def on_call(self, call: Call, out: Tensor) -> None:
        """Take in a call of a target layer."""
        layer = self.targets.get(call.name)
        if layer is None or not out.numel():
            return
        if "contribution" in self.kinds:
            self.accounts.setdefault(call.name, Accounts(self._opened)).add(call)
        if "patches" in self.kinds:
            found = patch_moments(call.x, layer.kernel, call.conv)
            before = self.moments.get(call.name)
            self.moments[call.name] = found if before is None else before + found

    def _opened(self, call: Call) -> Account:
        given = (*self.columns[call.name], self.scales[call.name])
        if self.sample is None:
            return account_of(call, *given)
        return sampled_account(call, *given, self.sample)

    def check(self) -> None:
        """Raise `NotFinite` for the first layer whose signal is not a number."""
        sound = {name: found.sound for name, found in self.accounts.items()}
        for name, moments in self.moments.items():
            diagonal = moments.moment.diagonal()  # no other entry is larger
            sound[name] = sound.get(name, True) and bool(torch.isfinite(diagonal).all())
        for name in (name for name, is_sound in sound.items() if not is_sound):
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
