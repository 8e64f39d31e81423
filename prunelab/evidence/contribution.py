"""Contributions: how much of a consumer's signal each channel, or any set of them, carries.

Let y = sum_i z_i be a layer's output before bias and BatchNorm, and z_i the contribution of input
channel i. With G_ij = <z_i, z_j>, summed over samples and positions, the damage of removing any
set S is exactly 1_S' G 1_S / ||y||^2, so after one pass every question is arithmetic on G.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from prunelab.errors import IllegalPlan
from prunelab.values import Units, units_of

Array = np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class ConsumerGram:
    """What a group's units contribute to one consumer.

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
        return _share(_lost(self.gram, _index(self.name, self.units, units)), self.energy)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ContributionGram:
    """What a group's units contribute to all of its consumers, summed over them.

    `units` are the remaining units of the group in original numbers, in the order of `gram`'s
    rows and columns.
    """

    group: str
    units: Units
    consumers: Mapping[str, ConsumerGram]
    _summed: list[Array] = field(default_factory=list, init=False, repr=False)

    @property
    def gram(self) -> Array:
        """<z_i, z_j> summed over the consumers [units, units]; do not write to it."""
        if not self._summed:
            size = len(self.units)
            parts = [consumer.gram for consumer in self.consumers.values()]
            self._summed.append(reduce(np.add, parts) if parts else np.zeros((size, size)))
        return self._summed[0]

    @property
    def energy(self) -> float:
        """||y||^2 summed over the consumers."""
        return sum(consumer.energy for consumer in self.consumers.values())

    def damage(self, units: Iterable[int]) -> float:
        """The share of the consumers' signal lost by removing `units` (0: nothing is lost).

        Exact before bias and BatchNorm; behind a ReLU the absolute change is bounded by it.
        Raises `IllegalPlan` for units that the group does not have.
        """
        return _share(_lost(self.gram, _index(self.group, self.units, units)), self.energy)

    def alone(self) -> Array:
        """The damage of removing each unit alone [units]: the isolated oracle."""
        total = np.diagonal(self.gram)
        return total / self.energy if self.energy > 0 else np.zeros_like(total)


def _lost(gram: Array, index: list[int]) -> float:
    """1_S' G 1_S."""
    chosen = np.zeros(len(gram))
    chosen[index] = 1
    return float(chosen @ gram @ chosen)


def _share(lost: float, energy: float) -> float:
    if energy > 0:
        return max(0.0, lost) / energy
    return 0.0  # a consumer without a signal loses nothing


def _index(name: str, have: Units, asked: Iterable[int]) -> list[int]:
    place = {unit: index for index, unit in enumerate(have)}
    units = units_of(asked)
    if missing := [unit for unit in units if unit not in place]:
        raise IllegalPlan(
            f"{name} was measured without the units {missing[:8]}; it had {len(have)}: "
            f"{list(have[:8])}{' ...' if len(have) > 8 else ''}."
        )
    return sorted({place[unit] for unit in units})
