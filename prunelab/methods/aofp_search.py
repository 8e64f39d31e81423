"""AOFP's binary search in one layer: halve the search set until a half may go."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prunelab.evidence import ContributionGram
from prunelab.evidence.weak_cache import once
from prunelab.values import Rung, Units, units_of, verdict_of

Array = np.ndarray


def ladder(gram: ContributionGram, theta: float) -> Iterator[Rung]:
    """The whole binary search of one group in closed form, rung by rung.

    Any theta is answered from the same measurement: it decides where to stop, nothing else.
    """
    for rung in _descent(gram):
        judged = rung.at(theta)
        yield judged
        if judged.verdict == "take":
            return


@once
def _descent(gram: ContributionGram) -> tuple[Rung, ...]:
    """All halvings of one group, down to the last unit: what a theta of 0 would see."""
    energy = gram.energy
    search, part = gram.units, gram.gram
    rungs: list[Rung] = []
    while len(search) > 1:
        damages = expected_damages(part)
        damages = damages / energy if energy > 0 else np.zeros_like(damages)
        rungs.append(judge(gram.group, len(rungs), search, damages, theta=0.0))
        rows = np.searchsorted(search, rungs[-1].candidates)
        search, part = rungs[-1].candidates, part[np.ix_(rows, rows)]
    return tuple(rungs)


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
    worst = float(f"{damages[best].max():.6g}")  # what is shown is what is judged
    return Rung(
        group=group,
        halving=halving,
        search=search,
        damages=tuple(float(f"{damage:.6g}") for damage in damages),
        candidates=units_of(search[index] for index in best),
        worst=worst,
        theta=theta,
        verdict=verdict_of(worst, g, theta),
        batches=batches,
    )
