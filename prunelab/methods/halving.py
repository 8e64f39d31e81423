"""AOFP's binary search in one layer: halve the search set until a half may go.

May import evidence and values.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prunelab.evidence import ContributionGram
from prunelab.values import Rung, Units, Verdict, units_of

Array = np.ndarray


def ladder(gram: ContributionGram, theta: float) -> Iterator[Rung]:
    """The whole binary search of one group in closed form, rung by rung.

    Any theta is answered from the same measurement: it decides where to stop, nothing else.
    """
    energy = gram.energy
    search, part = gram.units, gram.gram
    halving = 0
    while len(search) > 1:
        damages = expected_damages(part)
        damages = damages / energy if energy > 0 else np.zeros_like(damages)
        rung = judge(gram.group, halving, search, damages, theta)
        yield rung
        if rung.verdict != "halve":
            return
        rows = np.searchsorted(search, rung.candidates)
        search, part = rung.candidates, part[np.ix_(rows, rows)]
        halving += 1


def expected_damages(gram: Array) -> Array:
    """E[1_S' G 1_S | i in S] for each i, over uniform S of half the size [n].

    `gram` [n, n] is restricted to the search set, n >= 2. With g = n // 2, p = (g-1)/(n-1) is
    the chance that another unit is masked too, and q = p (g-2)/(n-2) that two given others are.
    """
    n = len(gram)
    g = n // 2
    p = (g - 1) / (n - 1)
    q = p * (g - 2) / (n - 2) if n > 2 else 0.0
    own = np.diagonal(gram)
    cross = gram.sum(1) - own
    others = own.sum() - own
    pairs = cross.sum() - 2 * cross
    expected: Array = own + 2 * p * cross + p * others + q * pairs
    return np.maximum(expected, 0.0)


def judge(
    group: str, halving: int, search: Units, damages: Array, theta: float, batches: int = 0
) -> Rung:
    """One halving decided: the better half, its worst mean damage, and what follows."""
    g = len(search) // 2
    best = np.argsort(damages, kind="stable")[:g]
    worst = float(damages[best].max())
    verdict: Verdict = "take" if worst < theta else "halve" if g > 1 else "fail"
    return Rung(
        group=group,
        halving=halving,
        search=search,
        damages=tuple(float(f"{damage:.6g}") for damage in damages),
        candidates=units_of(search[index] for index in best),
        worst=float(f"{worst:.6g}"),
        theta=theta,
        verdict=verdict,
        batches=batches,
    )
