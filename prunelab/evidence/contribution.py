"""Contributions: how much of a consumer's signal each channel, or any set of them, carries.

Let y = sum_i z_i be a layer's output before bias and BatchNorm, and z_i what input channel i
contributes. With G_ij = <z_i, z_j>, summed over samples and positions, the damage of removing any
set S is exactly 1_S' G 1_S / ||y||^2: after one pass every question is arithmetic on G.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.calls import Call
from prunelab.errors import IllegalPlan
from prunelab.evidence.moments import patches, second_moment
from prunelab.values import Units

Array = np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class ConsumerGram:
    """One consumer's account of a group's units.

    `gram` [units, units] holds <z_i, z_j>, `cross` [units] holds <z_i, y>, `energy` is ||y||^2;
    all are sums over samples, positions and the consumer's output channels.
    """

    name: str
    units: Units
    gram: Array
    cross: Array
    energy: float

    def damage(self, units: Iterable[int]) -> float:
        """||y - y without these units||^2 / ||y||^2."""
        index = _index(self.name, self.units, units)
        lost = float(self.gram[np.ix_(index, index)].sum())
        return _share(lost, self.energy)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ContributionGram:
    """What a channel group contributes to all of its consumers, the sum over them.

    `units` are the group's units alive, in original numbers; rows and columns of `gram` follow.
    """

    group: str
    units: Units
    consumers: Mapping[str, ConsumerGram]

    @property
    def gram(self) -> Array:
        """<z_i, z_j> summed over the consumers [units, units]."""
        size = len(self.units)
        return sum((c.gram for c in self.consumers.values()), start=np.zeros((size, size)))

    @property
    def energy(self) -> float:
        """||y||^2 summed over the consumers."""
        return sum(consumer.energy for consumer in self.consumers.values())

    def damage(self, units: Iterable[int]) -> float:
        """The share of the consumers' signal that goes with `units` (0 = nothing is lost).

        Exact before bias and BatchNorm; behind a ReLU it is an upper bound of the absolute
        change, not an identity. Raises `IllegalPlan` for units that the group does not have.
        """
        index = _index(self.group, self.units, units)
        lost = sum(float(c.gram[np.ix_(index, index)].sum()) for c in self.consumers.values())
        return _share(lost, self.energy)

    def alone(self) -> Array:
        """The damage of each unit when it alone is removed [units]: the isolated oracle."""
        total = np.zeros(len(self.units))
        for consumer in self.consumers.values():
            total += np.diagonal(consumer.gram)
        return total / self.energy if self.energy > 0 else np.zeros_like(total)


def _share(lost: float, energy: float) -> float:
    if energy > 0:
        return max(0.0, lost) / energy
    return 0.0  # a consumer without any signal loses nothing


def _index(name: str, have: Units, asked: Iterable[int]) -> list[int]:
    place = {unit: index for index, unit in enumerate(have)}
    units = [int(unit) for unit in asked]
    if missing := [unit for unit in units if unit not in place]:
        raise IllegalPlan(
            f"{name} was measured without the units {missing[:8]}; it had {len(have)}: "
            f"{list(have[:8])}{' ...' if len(have) > 8 else ''}."
        )
    return sorted({place[unit] for unit in units})


# ---------------------------------------------------------------- measuring one call


def call_gram(call: Call, columns: Tensor, count: int, scale: Tensor | None) -> Tensor:
    """G [count, count] in float64 of one call of a dense layer.

    `columns` [in channels or features] gives for each the row of G that it adds to; `scale`
    [out] multiplies the outputs (a BatchNorm's gamma / sigma).
    """
    weight = call.weight.detach()
    if call.conv is not None and call.conv.transposed:
        return _gram_by_contribution(call, columns, count, scale)
    if scale is not None:
        weight = weight * scale.view(-1, *([1] * (weight.ndim - 1)))
    width = weight.shape[1]
    if call.conv is None and count < width:
        return _gram_of_flattened(call.x, weight, columns, count)
    kernel = tuple(weight.shape[2:])
    flat = weight.reshape(weight.shape[0], -1)
    blocks = second_moment(call.x, kernel, call.conv) * (flat.T @ flat)
    entries = flat.shape[1] // width
    by_channel = blocks.view(width, entries, width, entries).sum((1, 3), dtype=torch.float64)
    if count == width:
        gram = torch.empty_like(by_channel)
        gram[columns[:, None], columns[None, :]] = by_channel
        return gram
    half = torch.zeros(count, width, dtype=torch.float64, device=weight.device)
    half.index_add_(0, columns, by_channel)
    gram = torch.zeros(count, count, dtype=torch.float64, device=weight.device)
    return gram.index_add_(1, columns, half)


def call_sums(call: Call, columns: Tensor, count: int, scale: Tensor | None) -> tuple[Tensor, int]:
    """The sums of the contributions over samples and positions [count, out], and how many."""
    weight = call.weight.detach()
    if call.conv is not None and call.conv.transposed:
        z = contributions(call, columns, count, scale)
        return z.double().sum((1, 3)), z.shape[1] * z.shape[3]
    flat = weight.reshape(weight.shape[0], -1)
    if scale is not None:
        flat = flat * scale[:, None]
    summed = patches(call.x.sum(0, keepdim=True), tuple(weight.shape[2:]), call.conv)
    rows = len(summed) * len(call.x)  # patches are linear in x
    by_entry = summed.sum(0, dtype=torch.float64)[:, None] * flat.T
    by_channel = by_entry.view(len(columns), -1, len(flat)).sum(1)
    sums = torch.zeros(count, len(flat), dtype=torch.float64, device=flat.device)
    return sums.index_add_(0, columns, by_channel), rows


def _gram_of_flattened(x: Tensor, weight: Tensor, columns: Tensor, count: int) -> Tensor:
    """A linear layer behind a flatten: a channel has many columns, so contributions are small."""
    order = torch.argsort(columns, stable=True)
    sizes = torch.bincount(columns, minlength=count).tolist()
    xs = x[:, order].split(sizes, dim=1)
    ws = weight[:, order].split(sizes, dim=1)
    gram = torch.zeros(count, count, dtype=torch.float64, device=x.device)
    step = max(1, 2**24 // (count * weight.shape[0]))  # keep contributions under 64 MB
    for start in range(0, len(x), step):
        parts = [a[start : start + step] @ w.T for a, w in zip(xs, ws, strict=True)]
        z = torch.stack(parts).reshape(count, -1)
        gram += z @ z.T
    return gram


def _gram_by_contribution(call: Call, columns: Tensor, count: int, scale: Tensor | None) -> Tensor:
    z = contributions(call, columns, count, scale).reshape(count, -1)
    return (z @ z.T).double()


def contributions(call: Call, columns: Tensor, count: int, scale: Tensor | None) -> Tensor:
    """The definition, unit by unit, for transposed convolutions [count, N, out, positions]."""
    conv = call.conv
    assert conv is not None
    deconvolve = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
    apply = deconvolve[call.weight.ndim - 2]
    z = []
    for unit in range(count):
        of_unit = (columns == unit).to(call.x.dtype).view(1, -1, *([1] * (call.x.ndim - 2)))
        out = apply(
            call.x * of_unit, call.weight.detach(), None, conv.stride, conv.padding, 0,
            conv.groups, conv.dilation,
        )  # fmt: skip
        if scale is not None:
            out = out * scale.view(1, -1, *([1] * (out.ndim - 2)))
        z.append(out.flatten(2))
    return torch.stack(z)
