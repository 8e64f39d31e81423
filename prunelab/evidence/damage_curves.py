"""Damage curves: an order in which to remove a group's units, with the damage after each.

What a width allocator and a slider need: the widths of a group, and what each width costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunelab.evidence.contribution import ContributionGram
from prunelab.evidence.weak_cache import weak_cache
from prunelab.values import Units, units_of


@dataclass(frozen=True, slots=True)
class Curve:
    """`damages[k]` is the damage of removing `order[:k + 1]` together; all units are listed.

    `order` holds original unit numbers, `damages` shares of the consumers' signal.
    """

    group: str
    order: tuple[int, ...]
    damages: tuple[float, ...]

    def first(self, count: int) -> Units:
        """The first `count` units of the order."""
        return units_of(self.order[:count])


@weak_cache
def damage_curve(gram: ContributionGram) -> Curve:
    """A group's units, each step the one that adds least to the damage, with exact damages.

    This is the order of ThiNet's greedy selection, in O(n^2): with t = G 1_T for the removed set
    T, removing j as well adds G_jj + 2 t_j to ||sum of all removed||^2.
    """
    own, size = np.diagonal(gram.gram), len(gram.gram)
    cross = np.zeros(size)  # G 1_T
    left = np.ones(size, dtype=bool)
    order: list[int] = []
    lost = np.zeros(size)
    total = 0.0
    for step in range(size):
        index = int(np.argmin(np.where(left, own + 2 * cross, np.inf)))
        total += own[index] + 2 * cross[index]
        lost[step] = max(0.0, total)
        cross += gram.gram[index]
        left[index] = False
        order.append(index)
    shares = lost / gram.energy if gram.energy > 0 else np.zeros(size)
    return Curve(gram.group, tuple(gram.units[i] for i in order), tuple(shares.tolist()))
