"""Steps 1 to 4 of AOFP in one layer: the binary search, with the mean damages in closed form.

1. S <- the channels alive; g <- floor(|S| / 2).                   `_halvings`
2. t_j <- the expected damage of a random M in S, |M| = g, given
that M holds j.                                                 `expected_damages`
3. P <- the g channels of S with the lowest t; q <- max of t in P. `judge`
4. If q < theta: remove P. Else if g > 1: S <- P, go to 2. Else:
nothing is removed.                                             `iter_rungs`
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prunelab.evidence import ContributionGram
from prunelab.evidence.weak_cache import weak_cache
from prunelab.values import Rung, Units, units_of, verdict_of

Array = np.ndarray


def iter_rungs(gram: ContributionGram, theta: float) -> Iterator[Rung]:
    """Yield the halvings of one group's search, up to the first that theta accepts.

    Theta only decides where to stop, so one measurement serves every theta.
    """
    for rung in _halvings(gram):
        judged = rung.at(theta)
        yield judged
        if judged.verdict == "take":
            return


@weak_cache
def _halvings(gram: ContributionGram) -> tuple[Rung, ...]:
    """All halvings of one group, down to a single unit, as with a theta of 0."""
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
    """E[1_M' G 1_M | i in M] for each i [n], over uniform masks M of half the units.

    `gram` [n, n] is restricted to the search set, n >= 2. With g = n // 2, p = (g-1)/(n-1) is the
    probability that another unit is masked as well, and q = p (g-2)/(n-2) that two given others
    are.
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
    """Decide one halving: the better half, its worst mean damage, and the verdict.

    Parameters
    ----------
    group, halving
        The group's name, and how many halvings came before.
    search
        The units of the search set S.
    damages
        The mean damage t_j of each [units].
    theta
        The half is taken if its worst mean damage is below.
    batches
        How many batches the means are over; 0 for expectations.
    """
    g = len(search) // 2
    best = np.argsort(damages, kind="stable")[:g]
    worst = float(f"{damages[best].max():.6g}")  # judge the value that is shown
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
