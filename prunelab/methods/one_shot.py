"""One-shot methods: score every unit once, remove the lowest, in one move over the network.

Input: a network, and a share of its units to remove, or a MAC target.
In one move:                                                    `OneShot.search`
  1. Measure what the scores are computed from.                 `OneShot.kinds`
  2. Score every unit.                                          `OneShot.scores`, of a subclass
  3. Find how many units may go, of each group and in all.      `shares`, `quota`
  4. Remove the units with the lowest scores.                   `lowest`

A method of this kind, a user's own too, is a name and `scores`; the rest is here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from math import floor
from typing import Any, ClassVar, Literal

import numpy as np

from prunelab.errors import IllegalPlan
from prunelab.methods.base import Context, Search
from prunelab.methods.settings import check_choice, check_counts, freeze_ratio
from prunelab.values import Importance, Units, units_of

Array = np.ndarray
Scores = Mapping[str, Array]
Scope = Literal["uniform", "global"]


@dataclass(frozen=True, slots=True)
class OneShot:
    """Removes the units with the lowest scores: the base of the methods that need no more.

    A subclass has a `name`, says what its scores mean, and computes them. Evidence of the `kinds`
    that it names is measured on `images` training images (512, if it has no such field).

    Parameters
    ----------
    pruning_ratio
        The share of the original units that is gone after the move: one number, or a mapping from
        groups to numbers (other groups stay whole). With a MAC target (`run`, `prune`) the target
        decides how many go.
    scope
        "uniform" takes the share from every group; with a target all groups lose the same share,
        or shares in proportion to the mapping's numbers. "global" ranks the units of all groups
        together.

    Examples
    --------
    A complete method of your own:

    >>> from dataclasses import dataclass
    >>> from typing import ClassVar
    >>> import prunelab as pl
    >>> @dataclass(frozen=True)
    ... class Quietest(pl.OneShot):
    ...     '''Drops the channels that carry least of what the next layer reads.'''
    ...
    ...     name: ClassVar[str] = "quietest"
    ...     kinds: ClassVar[tuple[str, ...]] = ("contribution",)
    ...     images: int = 128
    ...     meaning = "share of the next layer's signal"
    ...
    ...     def scores(self, context, evidence):
    ...         return {g.name: evidence[g.name].alone() for g in context.prunable}

    It can be used like any other, with a ratio, towards a target and in `compare`:

    >>> model, data = pl.zoo.load("vgg8"), pl.data.load("fashion", subset=True)
    >>> print(pl.Session(model, data, Quietest({"conv7": 0.25})).propose())
    Move(quietest: drop 32 units in 1 group, MACs 36.4 M -> 34.5 M)
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ()  # of evidence that `scores` asks for

    pruning_ratio: float | Mapping[str, float] = 0.5
    scope: Scope = "uniform"

    def __post_init__(self) -> None:
        freeze_ratio(self)
        check_choice(self, "scope", "uniform", "global")
        if hasattr(self, "images"):
            check_counts(self, "images")

    @property
    def meaning(self) -> str:
        """What the scores are, with their unit, in plain words."""
        return "score"

    def scores(self, context: Context, evidence: Any) -> Scores:
        """A score for each remaining unit, by group; the lowest are removed first.

        Groups left out stay whole. `evidence` is of the kinds named, or None if there are none.
        """
        raise NotImplementedError

    def measuring(self, context: Context) -> Generator[Any, None, Any]:
        """What `scores` is given: evidence of the kinds named, or None if there are none."""
        if not self.kinds:
            return None
        return (yield from context.measure(self.kinds, images=getattr(self, "images", 512)))

    def search(self, context: Context) -> Search:
        """Score all units, show the scores, and remove the lowest."""
        evidence = yield from self.measuring(context)
        scores = self.scores(context, evidence)
        yield from importances(context, scores, self.meaning)
        drop = lowest(self, context, scores)
        return context.move(self, drop) if drop else None


def importances(context: Context, scores: Scores, meaning: str) -> list[Importance]:
    """The scores as values to show, to six digits.

    Parameters
    ----------
    context
        What gives the groups and their order.
    scores
        A score for each remaining unit, by group.
    meaning
        What the scores are, with their unit.
    """
    return [
        Importance(
            group.name,
            group.units,
            tuple(float(f"{score:.6g}") for score in scores[group.name]),
            meaning,
        )
        for group in context.prunable
        if group.name in scores
    ]


@dataclass(frozen=True, slots=True)
class Quota:
    """How many units may be removed, of each group and in total."""

    each: Mapping[str, int]
    total: int


def shares(method: OneShot, context: Context, scored: Iterable[str]) -> dict[str, float]:
    """Step 3: the pruning ratio of every scored group that has one and is wider than one unit.

    Parameters
    ----------
    method, context
        The method, for its `pruning_ratio`, and what it searches.
    scored
        Names of the groups that have scores.

    Raises
    ------
    IllegalPlan
        For a group named in the ratio that cannot be pruned.
    """
    ratio = method.pruning_ratio
    if isinstance(ratio, Mapping):
        asked = {context.graph[name].name: float(share) for name, share in ratio.items()}
        for group in (context.graph[name] for name, share in asked.items() if share > 0):
            if not group.prunable:
                raise IllegalPlan(
                    f"{group.name} cannot be pruned: {group.why}. Leave it out of pruning_ratio."
                )
    else:
        asked = dict.fromkeys(scored, float(ratio))
    mine = [group.name for group in context.prunable if group.name in set(scored)]
    return {name: asked[name] for name in mine if asked.get(name, 0) > 0}


def quota(method: OneShot, context: Context, scored: Iterable[str]) -> Quota:
    """Step 3: how many units the pruning ratio allows; with a MAC target, down to the narrowest.

    The parameters are those of `shares`.
    """
    share = shares(method, context, scored)
    groups = [context.graph[name] for name in share]
    if context.target_macs is not None:
        each = {group.name: len(group.units) - group.narrowest for group in groups}
        return Quota(each, sum(each.values()))

    def whole(units: float) -> int:
        return floor(units + 1e-9)  # 0.3 of 10 units is 3

    if method.scope == "uniform" or isinstance(method.pruning_ratio, Mapping):
        aim = {g.name: g.width - whole(share[g.name] * g.width) for g in groups}
        each = {g.name: max(0, len(g.units) - max(g.narrowest, aim[g.name])) for g in groups}
        return Quota(each, sum(each.values()))
    used_up = [g for g in context.graph.groups if g.prunable and len(g.units) == 1]
    every = [*groups, *used_up]
    total = whole(method.pruning_ratio * sum(group.width for group in every))
    gone = sum(group.width - len(group.units) for group in every)
    each = {group.name: len(group.units) - group.narrowest for group in groups}
    return Quota(each, max(0, total - gone))


def lowest(method: OneShot, context: Context, scores: Scores) -> dict[str, Units]:
    """Step 4: the units to remove, as many as the MAC target needs or else the ratio says.

    Parameters
    ----------
    method, context
        The method, for its `pruning_ratio` and `scope`, and what it searches.
    scores
        A score for each remaining unit, by group; the lowest are removed first.
    """
    share, allowed = shares(method, context, scores), quota(method, context, scores)
    order: dict[tuple[str, int], float] = {}
    for name, values in scores.items():
        group = context.graph[name]
        gone = group.width - len(group.units)
        ranked = np.argsort(values, kind="stable")[: allowed.each.get(name, 0)]
        for place, index in enumerate(ranked.tolist()):
            portion = (gone + place + 1) / (share[name] * group.width)
            score = float(values[index])
            order[name, group.units[index]] = portion if method.scope == "uniform" else score
    if context.target_macs is not None:
        return context.trimmed(_by_group(order), order)
    drop = _by_group(sorted(order, key=lambda unit: order[unit])[: allowed.total])
    return context.graph.rounded(context.plan, drop, order)


def _by_group(units: Iterable[tuple[str, int]]) -> dict[str, Units]:
    found: dict[str, list[int]] = {}
    for name, unit in units:
        found.setdefault(name, []).append(unit)
    return {name: units_of(some) for name, some in found.items()}
