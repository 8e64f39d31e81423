"""`fidelity`: how well scores agree with the oracle, layer by layer and over the network.

Fidelity to the oracle does not determine the final accuracy: training afterwards can recover what
the oracle counts as lost (Feng, Tao & Wang, arXiv 2412.00143).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from typing import Any

import numpy as np

from prunelab.errors import InvalidValue, UnknownName
from prunelab.values import Units, table
from prunelab.values.given import as_annotated

Array = np.ndarray
Scored = Mapping[str, Any] | Iterable[Any]
Drops = Sequence[Mapping[str, Units]]
Unit = tuple[str, int]
SHARES = (0.05, 0.1, 0.25, 0.5)  # and one unit
EPS = 1e-9  # below this, the oracle's rise of the loss is not used as a denominator


@dataclass(frozen=True, slots=True)
class Bottom:
    """The `k` units with the lowest scores, compared with the `k` lowest of the oracle.

    `overlap` is the share that the two sets have in common, `lift` its ratio to the expectation
    for a random set (k / n). Where losses were measured, `regret` is the loss without the scores' k
    minus the loss without the oracle's, and `ratio` the quotient of the two rises of the loss, NaN
    where the oracle's is not positive. The oracle's k are not the best set of k, so a regret may be
    negative.
    """

    k: int
    overlap: float
    lift: float
    regret: float = nan
    ratio: float = nan


@dataclass(frozen=True, slots=True)
class Agreement:
    """Scores against the oracle in one group, or of all units as one list.

    `spearman` uses average ranks, `kendall` is tau-b; NaN where either side is constant.
    `ceiling` is Spearman's rho between two halves of the oracle's images, the noise ceiling.
    """

    name: str
    units: int
    spearman: float
    kendall: float
    bottoms: tuple[Bottom, ...]
    ceiling: float = nan

    def bottom(self, share: float) -> Bottom:
        """The lowest `share` of the units, one of 0 (one unit), 0.05, 0.1, 0.25 and 0.5."""
        found = [bottom for bottom in self.bottoms if bottom.k == _count(share, self.units)]
        if not found:
            raise InvalidValue(f"share is 0, {', '.join(map(str, SHARES))}; not {share!r}.")
        return found[0]


@dataclass(frozen=True, slots=True, repr=False)
class Fidelity:
    """How well scores agree with an oracle; prints as a table.

    `groups` has an Agreement for each group; `everywhere` is that of all units as one ranking.
    """

    groups: tuple[Agreement, ...]
    everywhere: Agreement

    def __getitem__(self, name: str) -> Agreement:
        for group in self.groups:
            if group.name == name:
                return group
        raise UnknownName("compared group", name, [group.name for group in self.groups])

    @property
    def spearman(self) -> float:
        """The mean of rho over the groups where it is defined; NaN if it is defined in none."""
        return _mean(group.spearman for group in self.groups)

    @property
    def kendall(self) -> float:
        """The mean of tau-b over the groups where it is defined."""
        return _mean(group.kendall for group in self.groups)

    @property
    def ceiling(self) -> float:
        """The mean noise ceiling over the groups where it is defined."""
        return _mean(group.ceiling for group in self.groups)

    def __repr__(self) -> str:
        def row(name: str, units: int, of: Any, bottom: Bottom | None) -> tuple[str, ...]:
            lowest = ("", "", "") if bottom is None else (
                f"{bottom.overlap:.0%}", f"{bottom.lift:.1f}x", _text(bottom.regret, "+.4f"),
            )  # fmt: skip
            numbers = (_text(value) for value in (of.spearman, of.kendall, of.ceiling))
            return (name, str(units), *numbers, *lowest)

        units = self.everywhere.units
        rows = [
            ("", "units", "rho", "tau", "ceiling", "lowest quarter", "lift", "regret"),
            *(row(g.name, g.units, g, g.bottom(0.25)) for g in self.groups),
            row("mean of groups", units, self, None),
            row("one ranking", units, self.everywhere, self.everywhere.bottom(0.25)),
        ]
        return table(rows)


@as_annotated
def fidelity(
    scores: Scored,
    oracle: Scored,
    *,
    halves: tuple[Scored, Scored] | None = None,
    losses: Callable[[Drops], Sequence[float]] | None = None,
) -> Fidelity:
    """Compare `scores` with `oracle`, group by group, and all units as one ranking.

    Parameters
    ----------
    scores, oracle
        Each a mapping from groups to scores in the order of the units, or an iterable of
        Importance (a proposal's `seen`) or Ablation values; units with lower scores are dropped
        first. The groups that both have are compared.
    halves
        The oracle measured on two halves of its images, for the noise ceiling.
    losses
        `losses(drops)` gives the loss without each of several sets, for the regret:
        `lambda drops: pl.ablate(model, graph, batches, drops)`.

    Raises `InvalidValue` where no group is in both, or the units of a group differ.
    """
    mine, wanted = _read(scores), _read(oracle)
    names = [name for name in wanted if name in mine]
    if not names:
        raise InvalidValue(
            f"scores are of {list(mine)[:4]} and the oracle of {list(wanted)[:4]}: no group is in "
            "both, so there is nothing to compare."
        )
    first, second = [_read(half) for half in halves] if halves else (wanted, {})
    agreements = []
    chosen: list[tuple[list[Unit], list[Unit]]] = []
    for name, parts in [*((name, [name]) for name in names), ("one ranking", names)]:
        units, a, b = _aligned(mine, wanted, parts)
        agreement = _agreement(name, a, b)
        if second:
            _, c, d = _aligned(first, second, parts)
            agreement = replace(agreement, ceiling=_rho(c, d))
        agreements.append(agreement)
        for bottom in agreement.bottoms:
            chosen.append((_first(units, a, bottom.k), _first(units, b, bottom.k)))
    if losses is not None:
        agreements = list(_with_regret(agreements, chosen, losses))
    return Fidelity(tuple(agreements[:-1]), agreements[-1])


def _read(given: Scored) -> dict[str, dict[int, float]]:
    """Scores by group and unit; where a group has several, the last counts."""
    found: dict[str, dict[int, float]] = {}
    if isinstance(given, Mapping):
        for name, values in given.items():
            found[name] = dict(enumerate(np.asarray(values, dtype=float).tolist()))
        return found
    items: Iterable[Any] = given
    for item in items:
        values = getattr(item, "values", getattr(item, "signed", None))
        if values is not None:  # a Rung has no scores
            found[item.group] = dict(zip(item.units, map(float, values), strict=True))
    return found


def _aligned(
    one: Mapping[str, Mapping[int, float]], two: Mapping[str, Mapping[int, float]], names: list[str]
) -> tuple[list[Unit], Array, Array]:
    """The units of these groups, and both scores of each."""
    for name in names:
        if set(one.get(name, ())) != set(two.get(name, ())):
            raise InvalidValue(
                f"{name} has {len(one.get(name, ()))} scores here and {len(two.get(name, ()))} "
                "there, or of other units; measure both on the same network."
            )
    units = [(name, unit) for name in names for unit in sorted(two[name])]
    scores = [np.array([side[name][unit] for name, unit in units]) for side in (one, two)]
    return units, scores[0], scores[1]


def _agreement(name: str, scores: Array, oracle: Array) -> Agreement:
    n = len(scores)
    bottoms = []
    for k in sorted({_count(share, n) for share in (0, *SHARES)}):
        lowest = [set(np.argsort(side, kind="stable")[:k].tolist()) for side in (scores, oracle)]
        overlap = len(lowest[0] & lowest[1]) / k
        bottoms.append(Bottom(k, overlap, overlap * n / k))
    return Agreement(name, n, _rho(scores, oracle), _tau(scores, oracle), tuple(bottoms))


def _rho(a: Array, b: Array) -> float:
    from scipy.stats import spearmanr  # as slow to import as torch

    return nan if _constant(a, b) else float(spearmanr(a, b).statistic)


def _tau(a: Array, b: Array) -> float:
    from scipy.stats import kendalltau

    return nan if _constant(a, b) else float(kendalltau(a, b).statistic)


def _constant(*sides: Array) -> bool:
    return any(len(side) < 2 or bool((side == side[0]).all()) for side in sides)


def _count(share: float, units: int) -> int:
    return max(1, round(share * units))


def _first(units: list[Unit], scores: Array, k: int) -> list[Unit]:
    return [units[index] for index in np.argsort(scores, kind="stable")[:k].tolist()]


def _with_regret(
    agreements: list[Agreement],
    chosen: list[tuple[list[Unit], list[Unit]]],
    losses: Callable[[Drops], Sequence[float]],
) -> Iterator[Agreement]:
    """Add regret and ratio; all sets are measured in one call, so that runs can share work."""
    sets = [_drop(units) for pair in chosen for units in pair]
    base, *found = (float(loss) for loss in losses([{}, *sets]))
    measured = iter(zip(found[::2], found[1::2], strict=True))
    for agreement in agreements:
        bottoms = []
        for bottom in agreement.bottoms:
            ours, best = next(measured)
            ratio = (ours - base) / (best - base) if best - base > EPS else nan
            bottoms.append(replace(bottom, regret=ours - best, ratio=ratio))
        yield replace(agreement, bottoms=tuple(bottoms))


def _drop(units: list[Unit]) -> dict[str, Units]:
    drop: dict[str, list[int]] = {}
    for name, unit in units:
        drop.setdefault(name, []).append(unit)
    return {name: tuple(sorted(some)) for name, some in drop.items()}


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not isnan(value)]
    return sum(known) / len(known) if known else nan


def _text(value: float, form: str = ".2f") -> str:
    return "-" if isnan(value) else format(value, form)
