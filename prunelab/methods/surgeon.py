"""The surgeon: of all layers at once, the unit goes that the loss can best do without.

Backward elimination with refit over the whole network. What a unit's removal leaves of its
consumers' errors, after least squares has solved their kernels anew, is weighted by the curvature
of the loss there, so errors of different layers compare; the unit with the least predicted rise of
the loss for each multiply-add that it saves goes next. So widths and choice come out of one
search. It is the optimal brain surgeon (Hassibi & Stork, NIPS 1992) for whole channels, with the
Kronecker-factored curvature of EigenDamage (Wang, Grosse, Fidler, Zhang; ICML 2019).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import ClassVar, Literal

import numpy as np

from prunelab.cost.counting import savings
from prunelab.errors import InvalidValue
from prunelab.evidence import Evidence
from prunelab.graph.channels.channel_graph import ChannelGroup, Layer
from prunelab.methods.base import Context, Search
from prunelab.methods.elimination import Problem, measured_apart, problem_of, solvable
from prunelab.values import Importance, Progress, Units, WidthPlan, many

Array = np.ndarray

MEANING = "rise of the loss predicted once it goes in its turn, after a refit"


@dataclass(frozen=True, slots=True)
class Surgeon:
    """A step a move, over the whole network: units go one by one, the cheapest of any layer.

    A move goes to the next whole `step`, a share of the original multiply-adds: so on the way to
    a target the network is repaired and measured anew every so often. `groups`: "all", or
    "internal" to leave residual streams alone. `images` training images are measured.

    The prediction is a second-order one that takes layers for independent: a comparison of
    units, not a forecast.
    """

    name: ClassVar[str] = "surgeon"

    step: float = 0.1
    groups: Literal["internal", "all"] = "all"
    images: int = 1024

    def __post_init__(self) -> None:
        if isinstance(self.step, bool) or not 0 < self.step <= 1:
            raise InvalidValue(
                f"step is a share of the original multiply-adds, above 0 and at most 1; not "
                f"{self.step!r}."
            )
        if self.groups not in ("internal", "all"):
            raise InvalidValue(f"groups is 'internal' or 'all', not {self.groups!r}.")
        if self.images < 1:
            raise InvalidValue(f"images must be at least 1, not {self.images}.")

    def search(self, context: Context) -> Search:
        """One move: the units whose loss costs least, until the step is taken."""
        groups = [
            group
            for group in context.prunable
            if group.consumers
            and (self.groups == "all" or not group.residual)
            and all(solvable(layer) for layer in context.graph.consumers(group))
        ]
        layers = {layer.name: layer for group in groups for layer in context.graph.consumers(group)}
        if not groups:
            return None
        evidence = yield from measured_apart(
            context, self.images, ("patches", "curvature"), tuple(layers)
        )
        table = Table(context, groups)
        yield from table.laid(list(layers.values()), *evidence)
        whole = context.cost(WidthPlan.full(context.plan.graph)).macs
        steps = (1 - context.cost(context.plan).macs / whole) / self.step
        goal = whole * (1 - self.step * (floor(steps + 1e-9) + 1))
        drop = yield from table.removed(max(goal, context.target_macs or 0))
        for group in groups:
            prices = table.prices[group.first + np.asarray(group.units)]
            yield Importance(group.name, group.units, tuple(prices.tolist()), MEANING)
        return context.move(self, drop) if drop else None


class Table:
    """The operating table: every layer's least squares, and the price of every unit.

    `prices` [units of the graph] are predicted rises of the loss: of a unit that is gone, as it
    was in its turn; of the others, were they the next.
    """

    def __init__(self, context: Context, groups: Sequence[ChannelGroup]) -> None:
        self.context = context
        self.groups = groups
        self.problems: dict[str, Problem] = {}
        self.prices = np.zeros(context.graph.units)
        self.there = np.zeros(context.graph.units, dtype=bool)
        for group in groups:
            self.there[group.first + np.asarray(group.units)] = True

    def laid(
        self, layers: Sequence[Layer], solved: Evidence, held: Evidence | None
    ) -> Iterator[Progress]:
        """Lay it: solve every layer's least squares, and price every unit."""
        parts = [solved] if held is None else [solved, held]
        images = sum(one.images for one in parts)
        for done, layer in enumerate(layers):
            yield Progress(done, len(layers), f"solving the least squares of {layer.name}")
            rows = sum(one.moments[layer.name].rows for one in parts if layer.name in one.moments)
            curvature = np.zeros((len(layer.out_units),) * 2)
            for one in parts:
                curvature += one.curvature.get(layer.name, 0.0)
            curvature /= 2 * max(1, rows) * images
            problem = problem_of(self.context.model, layer, solved, held, curvature)
            self.problems[layer.name] = problem
        for group in self.groups:
            self._price(group)

    def removed(self, goal: float) -> Generator[Progress, None, dict[str, Units]]:
        """Remove units until the network costs at most `goal` multiply-adds; gives the drop."""
        context, graph = self.context, self.context.graph
        start = context.cost(context.plan).macs
        order: dict[tuple[str, int], float] = {}
        asked: dict[str, list[int]] = {}
        drop: dict[str, Units] = {}
        while (now := context.cost(plan := context.plan.drop(drop)).macs) > goal:
            yield Progress(start - now, ceil(start - goal), f"{many(len(order), 'unit')} out")
            open_ = self._open()
            rates = self.prices / np.maximum(savings(graph, plan)[0], 1.0)
            number = int(np.argmin(np.where(open_, rates, np.inf)))
            if not open_[number]:
                break
            group = next(g for g in self.groups if g.first <= number < g.span.stop)
            unit = number - group.first
            order[group.name, unit] = len(order)
            asked.setdefault(group.name, []).append(unit)
            for changed in self._remove(group, unit):
                self._price(changed)
            drop = graph.rounded(context.plan, asked, order)
        return drop

    def _open(self) -> Array:
        """Which units may go: every group keeps its least [units of the graph]."""
        open_ = self.there.copy()
        for group in self.groups:
            if open_[group.span].sum() <= _least(group):
                open_[group.span] = False
        return open_

    def _remove(self, group: ChannelGroup, unit: int) -> list[ChannelGroup]:
        """Take a unit out of every least squares; gives the groups whose prices this changes."""
        number = group.first + unit
        self.there[number] = False
        touched = set(group.consumers)
        for name, problem in self.problems.items():
            if number in problem.entries:
                problem.remove(number)
            if number in problem.outputs:
                problem.forget(number)
                touched.add(name)
        return [other for other in self.groups if touched & set(other.consumers)]

    def _price(self, group: ChannelGroup) -> None:
        """The price of every unit of a group that is left."""
        numbers = (group.first + np.flatnonzero(self.there[group.span])).tolist()
        self.prices[numbers] = sum(self.problems[name].prices(numbers) for name in group.consumers)


def _least(group: ChannelGroup) -> int:
    """The narrowest that a group may become."""
    return -(-group.min_width // group.step) * group.step
