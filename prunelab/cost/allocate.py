"""Width allocation: from a budget of MACs, parameters, memory or a measured cost to widths.

The evidence gives the damage of each layer at each width, the graph the cost of each width. The
widths of neighbouring layers multiply in the cost, so the cost of a layer is evaluated at the
current widths of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import lcm
from typing import Any, Literal

import numpy as np

from prunelab.cost.latency_table import BLOCK, LatencyTable
from prunelab.cost.pricing import IncrementalCost, terms_of
from prunelab.errors import BudgetUnreachable, InvalidValue
from prunelab.evidence import Curve, Evidence, damage_curve
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.values import Units, WidthPlan, si
from prunelab.values.given import as_annotated

Array = np.ndarray
KINDS = ("macs", "params", "activation_bytes")
WAYS = ("marginal", "convex", "uniform")
HIGHEST = 1e18  # a price at which cost outweighs any damage
WORTHWHILE = 1e-3  # a trade must reduce the sum of damages by at least this share


@as_annotated
def allocate(
    graph: ChannelGraph,
    evidence: Evidence,
    budget: float = 0.5,
    *,
    of: Literal["macs", "params", "activation_bytes"]
    | LatencyTable
    | Callable[[WidthPlan], float] = "macs",
    by: Literal["marginal", "convex", "uniform"] | Mapping[str, float] = "marginal",
    plan: WidthPlan | None = None,
    groups: Iterable[str] | None = None,
    min_width: int = 1,
    round_to: int = 1,
) -> WidthPlan:
    """The plan with the smallest sum of damages found that meets `budget`.

    The sum of damages compares plans of one network; it is not an accuracy. Raises
    `BudgetUnreachable`, with the narrowest plan, where even that costs more; `InvalidValue` for
    an invalid budget or rule.

    Parameters
    ----------
    graph
        Of the original network.
    evidence
        Of the present network; within a group units are dropped in ThiNet's greedy order.
    budget
        A share of the original cost when at most 1, else a number in units of `of`.
    of
        The cost that is limited: a field of `Cost`; a `LatencyTable`, for which `budget` is a
        share of the original's seconds, and widths are multiples of its `BLOCK`; or a function of
        a plan, for which it is an absolute number. Both are assumed to grow with MACs.
    by
        "marginal" drops, unit by unit, where the damage per cost saved is least, each group on
        the convex hull of its damages. "convex" gives every group the width that minimises
        damage + price x cost, in turn until nothing changes, and searches for the price (exact up
        to the duality gap where costs do not interact). Both then restore units that still fit
        and trade widths between groups while that helps. "uniform" drops the same share of every
        group, a mapping the given shares (nothing from groups that it does not name), scaled to
        the budget.
    plan
        The starting point (None: every unit kept).
    groups
        The groups that may shrink (None: all that were measured).
    min_width, round_to
        Every group that shrinks keeps at least `min_width` units, and a multiple of `round_to`;
        and what the graph was traced with.
    """
    _check(budget, of, by, min_width, round_to)
    if isinstance(of, LatencyTable):
        budget, round_to = budget * of(WidthPlan.full(graph)), lcm(round_to, BLOCK)
    start = WidthPlan.full(graph) if plan is None else plan
    names = evidence.groups if groups is None else [graph[name].name for name in groups]
    names = [name for name in names if groups is not None or graph[name].prunable]
    curves = [damage_curve(evidence[name]) for name in names]
    shares = {graph[n].name: s for n, s in by.items()} if isinstance(by, Mapping) else None
    problem = AllocationProblem(
        graph, start, curves, "macs" if callable(of) else of, min_width, round_to
    )

    def widths(limit: float) -> list[int]:
        if by not in ("marginal", "convex"):
            found = problem.scaled(shares or dict.fromkeys(names, 1.0), limit)
        else:
            way = problem.marginal if by == "marginal" else problem.convex
            found = way(limit)
            found = None if found is None else problem.polished(found, limit)
        return problem.refuse(limit) if found is None else found

    whole = problem.cost_of(WidthPlan.full(graph))
    if not callable(of):
        return problem.plan(widths(budget * whole if budget <= 1 else budget))
    low = problem.cost([len(legal) - 1 for legal in problem.removed])
    high = problem.cost([0] * len(curves))
    if of(problem.plan([0] * len(curves))) <= budget:
        return start
    if of(problem.plan(widths(low))) > budget:
        problem.refuse(budget)
    while (
        high - low > whole / 256
    ):  # bisect on MACs, which are cheap to compute, and evaluate `of` at each step
        middle = (low + high) / 2
        low, high = (middle, high) if of(problem.plan(widths(middle))) <= budget else (low, middle)
    return problem.plan(widths(low))


class AllocationProblem:
    """The choice of a width for each group: damages, costs, and algorithms.

    A choice is a list of positions in `removed`, the allowed numbers of units to remove from each
    group, ascending from 0; `damages` and their lower convex hulls `hulls` align with it.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        start: WidthPlan,
        curves: Sequence[Curve],
        kind: str,
        min_width: int,
        round_to: int,
    ) -> None:
        self.start = start
        self.curves = curves
        limits = [(graph[c.group].min_width, graph[c.group].step) for c in curves]
        self.removed = [
            _legal(len(curve.order), max(min_width, least), lcm(round_to, step))
            for curve, (least, step) in zip(curves, limits, strict=True)
        ]
        self.damages = [
            np.array([0.0, *curve.damages])[legal]
            for curve, legal in zip(curves, self.removed, strict=True)
        ]
        pairs = zip(self.removed, self.damages, strict=True)
        self.hulls = [_hull(legal, damage) for legal, damage in pairs]
        self.kind = kind
        self.graph = graph
        terms = terms_of(graph, start, curves, kind)
        self.totals = IncrementalCost(terms, self.removed)
        near: list[set[int]] = [{index} for index in range(len(curves))]
        for term in terms:
            groups = {group for _, lost in term.axes for group in lost}
            for index in groups:
                near[index] |= groups
        self.neighbours = [sorted(groups) for groups in near]

    def cost(self, choice: Sequence[int]) -> float:
        """The cost of `choice`."""
        return self.totals.total(choice)

    def cost_of(self, plan: WidthPlan) -> float:
        """The cost of a plan."""
        return float(sum(term.at(()) for term in terms_of(self.graph, plan, (), self.kind)))

    def costs(self, index: int, choice: Sequence[int]) -> Array:
        """The part of the cost that depends on group `index`, at each of its widths."""
        return self.totals.along(index, choice, len(self.removed[index]))

    def damage(self, choice: Sequence[int]) -> float:
        """The sum of the groups' damages."""
        return float(sum(d[c] for d, c in zip(self.damages, choice, strict=True)))

    def plan(self, choice: Sequence[int]) -> WidthPlan:
        """The plan of `choice`."""
        return self.start.drop(self.drop(choice))

    def drop(self, choice: Sequence[int]) -> dict[str, Units]:
        """The units that `choice` drops."""
        chosen = zip(self.curves, self.removed, choice, strict=True)
        return {c.group: c.first(int(legal[at])) for c, legal, at in chosen if at}

    def refuse(self, budget: float) -> list[int]:
        """Raise `BudgetUnreachable` with the narrowest plan."""
        raise BudgetUnreachable(
            f"The budget of {si(budget)} is out of reach: the narrowest legal widths cost more. "
            "Give a larger budget, more groups, or a smaller min_width.",
            self.plan([len(legal) - 1 for legal in self.removed]),
        )

    # ------------------------------------------------------------ algorithms

    def marginal(
        self, limit: float, choice: Sequence[int] | None = None, but: int = -1
    ) -> list[int] | None:
        """Drop units in order of damage per cost saved until the cost is within `limit`.

        Parameters
        ----------
        limit
            The largest allowed cost.
        choice
            The starting point (None: every unit kept).
        but
            A group that must not change; None is returned where the others cannot save enough.
        """
        now = [0] * len(self.curves) if choice is None else list(choice)
        cost = self.cost(now)
        steps: dict[int, tuple[float, int, float]] = {}  # (rate, group, cost saved) by group
        changed: Iterable[int] = range(len(now))
        while cost > limit:
            for index in changed:
                at = now[index]
                steps.pop(index, None)
                if at + 1 < len(self.removed[index]) and index != but:
                    before, after = self.costs(index, now)[at : at + 2]
                    harm = self.hulls[index][at + 1] - self.hulls[index][at]
                    rate = harm / (before - after) if before > after else np.inf
                    steps[index] = (rate, index, before - after)
            if not steps:
                return None
            _, best, saved = min(steps.values())
            now[best] += 1
            cost -= saved
            changed = self.neighbours[best]
        return now

    def sketched(self, limit: float, near: float) -> list[int] | None:
        """A fast approximation: `convex` with tolerance `near`, then units restored that fit."""
        found = self.convex(limit, near)
        return None if found is None else self._widened(found, limit)

    def convex(self, limit: float, near: float = 0.0) -> list[int] | None:
        """The widths that minimise damage + price x cost, at the price that meets `limit`.

        The search for the price ends once the cost is within the share `near` of the full cost.
        """
        low, high = 0.0, 1.0
        found = [0] * len(self.curves)
        whole = self.cost(found)
        while self.cost(found := self._priced(high / whole, found)) > limit:
            high *= 4
            if high > HIGHEST:
                return None
        for _ in range(40):
            if limit - self.cost(found) <= near * whole:
                break
            middle = (low + high) / 2
            tried = self._priced(middle / whole, found)
            if self.cost(tried) <= limit:
                high, found = middle, tried
            else:
                low = middle
        return found

    def _priced(self, price: float, choice: Sequence[int]) -> list[int]:
        """Each group's best width at this price with the others fixed, in turn."""
        now = list(choice)
        for _ in range(20):
            before = list(now)
            for index in range(len(now)):
                total = self.damages[index] + price * self.costs(index, now)
                now[index] = int(np.argmin(total))
            if now == before:
                break
        return now

    def scaled(self, shares: Mapping[str, float], limit: float) -> list[int] | None:
        """The choice that drops the shares, scaled so that the cost just meets `limit`."""
        given = [shares.get(curve.group, 0.0) for curve in self.curves]

        def at(scale: float) -> list[int]:
            choice = []
            for legal, share in zip(self.removed, given, strict=True):
                width = legal[-1] + 1
                goal = min(1.0, scale * share) * width
                choice.append(min(int(np.searchsorted(legal, goal - 1e-9)), len(legal) - 1))
            return choice

        high = 1 / min((share for share in given if share > 0), default=1.0)
        if self.cost(at(high)) > limit:
            return None
        low = 0.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self.cost(at(middle)) <= limit else (middle, high)
        return at(high)

    def polished(self, choice: Sequence[int], limit: float) -> list[int]:
        """Restore units that fit, then trade: change one group and refit the others."""
        best = self._widened(choice, limit)
        trading = True
        while trading:
            trading = False
            for index, legal in enumerate(self.removed):
                steps = {max(1, len(legal) >> halvings) for halvings in range(1, 6)}
                for step in (sign * step for step in sorted(steps) for sign in (1, -1)):
                    if not 0 <= best[index] + step < len(legal):
                        continue
                    tried = list(best)
                    tried[index] += step
                    fitted = self.marginal(limit, tried, index)
                    if fitted is None:
                        continue
                    fitted = self._widened(fitted, limit, index)
                    if self.damage(fitted) < self.damage(best) * (1 - WORTHWHILE):
                        best, trading = fitted, True
        return best

    def _widened(self, choice: Sequence[int], limit: float, but: int = -1) -> list[int]:
        """Restore the units that reduce damage most and still fit, not in group `but`."""
        now = list(choice)
        spare = limit - self.cost(now)
        extra: dict[int, Array] = {}  # by group, the additional cost of its wider widths
        changed: Iterable[int] = range(len(now))
        while True:
            for index in changed:
                costs = self.costs(index, now)[: now[index] + 1]
                extra[index] = costs - costs[-1]
            steps = []
            for index, more in extra.items():
                fits = np.flatnonzero(more[:-1] <= spare)
                if not len(fits) or index == but:
                    continue
                damages = self.damages[index]
                to = int(fits[np.argmin(damages[fits])])
                if damages[to] < damages[now[index]]:
                    steps.append((damages[now[index]] - damages[to], index, to))
            if not steps:
                return now
            _, index, to = max(steps)
            spare -= extra[index][to]
            now[index], changed = to, self.neighbours[index]


def _check(budget: Any, of: Any, by: Any, min_width: int, round_to: int) -> None:
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not budget > 0:
        raise InvalidValue(f"budget is a share of the cost or a number above 0, not {budget!r}.")
    if 1 < budget <= 100 and of in KINDS:
        raise InvalidValue(
            f"budget={budget:g} would be {budget:g} {of}. A share is at most 1: {budget / 100:g} "
            f"is {budget:g}%."
        )
    if of not in KINDS and not callable(of):
        raise InvalidValue(f"of is {', '.join(KINDS)} or a function of a plan, not {of!r}.")
    if by not in WAYS and not isinstance(by, Mapping):
        raise InvalidValue(f"by is {', '.join(WAYS)} or shares by group, not {by!r}.")
    if isinstance(by, Mapping) and any(share < 0 for share in by.values()):
        raise InvalidValue(f"by holds shares of groups, 0 or more, not {dict(by)}.")
    if min_width < 1 or round_to < 1:
        raise InvalidValue(f"min_width and round_to are at least 1, not {min_width}, {round_to}.")


def _legal(width: int, min_width: int, round_to: int) -> Array:
    """The allowed numbers of units to drop from `width`, ascending from 0."""
    kept = [k for k in range(width - 1, min_width - 1, -1) if k % round_to == 0 and k > 0]
    return np.array([0, *(width - k for k in kept)])


def _hull(places: Array, values: Array) -> Array:
    """The lower convex hull of `values` over `places`, evaluated at every place."""
    corners: list[int] = []
    for new in range(len(places)):
        while len(corners) > 1:
            a, b = corners[-2:]
            run, whole = places[b] - places[a], places[new] - places[a]
            if values[b] < values[a] + (values[new] - values[a]) * run / whole:
                break
            corners.pop()
        corners.append(new)
    return np.interp(places, places[corners], values[corners])
