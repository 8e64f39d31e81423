"""Damage curves: in which order a group's units are best removed, and what is lost by then."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunelab.evidence.contribution import ContributionGram
from prunelab.evidence.weak_cache import once
from prunelab.values import Units, units_of

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Curve:
    """`damages[k]` is the damage of removing `order[:k + 1]` together; all units are listed.

    `order` holds original unit numbers, `damages` shares of the consumers' signal.
    """

    group: str
    order: tuple[int, ...]
    damages: tuple[float, ...]

    def first(self, count: int) -> Units:
        """The `count` units that go first."""
        return units_of(self.order[:count])


@once
def damage_curve(gram: ContributionGram) -> Curve:
    """The greedy order of removal of a group's units, with exact damages along it."""
    order, lost = removal(gram.gram)
    energy = gram.energy
    shares = lost / energy if energy > 0 else np.zeros_like(lost)
    return Curve(gram.group, tuple(gram.units[i] for i in order), tuple(shares.tolist()))


def removal(gram: Array) -> tuple[list[int], Array]:
    """ThiNet's greedy removal: indices in the order they go, and 1_T' G 1_T after each [n].

    Each step takes the index that makes ||sum of all removed||^2 smallest (Luo, Wu, Lin; ICCV
    2017; released code: `compress_model.py`). With t = G 1_T that is the smallest G_jj + 2 t_j,
    so all steps together cost O(n^2). Optimal for one index or uncorrelated contributions, else a
    heuristic.
    """
    size = len(gram)
    own = np.diagonal(gram)
    shared = np.zeros(size)  # G 1_T
    left = np.ones(size, dtype=bool)
    order: list[int] = []
    lost = np.zeros(size)
    total = 0.0
    for step in range(size):
        index = int(np.argmin(np.where(left, own + 2 * shared, np.inf)))
        total += own[index] + 2 * shared[index]
        lost[step] = max(0.0, total)
        shared += gram[index]
        left[index] = False
        order.append(index)
    return order, lost
