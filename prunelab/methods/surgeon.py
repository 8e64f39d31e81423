"""The surgeon: removes the unit, of any layer, that the loss can best do without.

Backward elimination with refit over the whole network. It is the optimal brain surgeon (Hassibi,
Stork; NIPS 1992) for whole channels, with the Kronecker-factored curvature of EigenDamage (Wang,
Grosse, Fidler, Zhang; ICML 2019). Widths and units come out of one search.

Input: a network and the share of its multiply-adds that a move removes.
In one move:                                                          `Surgeon.search`
  1. For every layer measure the second moment of the patches that it
     reads and the curvature C of the loss at its outputs.            `Context.apart`
  2. Build the least-squares state of all layers, errors e weighted by
     e' C e / 2, so that errors of different layers compare.          `RefitState.building`
  3. Until the multiply-adds are removed:                             `RefitState.removing`
     a. predict each unit's rise of the loss after a refit of all
        layers that read it;                                          `RefitState._update_rises`
     b. remove the unit with the least rise for each multiply-add
        saved; refit its consumers, and drop its outputs from the
        objective of its producers.                                   `RefitState._remove`
  4. Refit the network.                                               repair="lstsq"
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import ceil, floor
from typing import ClassVar, Literal

import numpy as np

from prunelab.cost.latency_table import SecondsSaved
from prunelab.cost.savings import Savings
from prunelab.errors import InvalidValue
from prunelab.evidence import Evidence
from prunelab.evidence.measure import evidence_bytes
from prunelab.evidence.output_fisher import Curvature, Root, added
from prunelab.graph.channels.channel_graph import ChannelGroup, Layer
from prunelab.methods.base import Context, Search
from prunelab.methods.refit import RefitProblem, problem_bytes, refit_problem, refittable
from prunelab.methods.settings import check_choice, check_counts, check_groups, selects
from prunelab.values import Importance, Progress, Units, WidthPlan, many
from prunelab.values.given import as_annotated

Array = np.ndarray

MEANING = "predicted rise of the loss after a refit, once it is removed in turn"


@as_annotated
@dataclass(frozen=True, slots=True)
class Surgeon:
    """One step a move, over the whole network: removes units one by one, the cheapest of any layer.

    The predicted rise of the loss is of second order and takes layers for independent: it compares
    units, it does not forecast the loss.

    Parameters
    ----------
    step
        A move ends at the next multiple of this share of the original multiply-adds, so on the
        way to a target the network is repaired and measured anew after each.
    groups
        "all", or "internal" to leave residual streams whole.
    images
        How many training images are measured.
    per
        What a rise of the loss is set against: the "macs" that a unit saves, or its "latency", by
        a `LatencyTable` measured on this machine.
    """

    name: ClassVar[str] = "surgeon"

    step: float = 0.1
    groups: Literal["internal", "all"] = "all"
    images: int = 1024
    per: Literal["macs", "latency"] = "macs"

    def __post_init__(self) -> None:
        if isinstance(self.step, bool) or not 0 < self.step <= 1:
            raise InvalidValue(
                f"step is a share of the original multiply-adds, above 0 and at most 1; not "
                f"{self.step!r}."
            )
        check_groups(self)
        check_counts(self, "images")
        check_choice(self, "per", "macs", "latency")

    def search(self, context: Context) -> Search:
        """One move: the units with the least rise of the loss, until the step is done."""
        groups = [
            group
            for group in context.prunable
            if selects(self.groups, group)
            and all(refittable(layer) for layer in context.graph.consumers(group))
        ]
        layers = {layer.name: layer for group in groups for layer in context.graph.consumers(group)}
        if not groups:
            return None
        kinds = ("patches", "curvature")
        context.memory.ask(
            2 * evidence_bytes(layers.values(), kinds, self.images)
            + sum(problem_bytes(layer, self.images) for layer in layers.values()),
            f"The surgeon's least squares of {many(len(layers), 'layer')}",
            'use "elimination", which solves one layer at a time, or groups="internal".',
        )
        evidence = yield from context.apart(kinds, self.images, tuple(layers))
        state = RefitState(context, groups)
        yield from state.building(list(layers.values()), *evidence)
        whole = context.cost(WidthPlan.full(context.plan.graph)).macs
        steps = (1 - context.cost(context.plan).macs / whole) / self.step
        goal = whole * (1 - self.step * (floor(steps + 1e-9) + 1))
        timed = self.per == "latency"
        saved = SecondsSaved(context.latency_table(), context.plan) if timed else None
        drop = yield from state.removing(max(goal, context.target_macs or 0), saved)
        for group in groups:
            rises = state.rises[group.first + np.asarray(group.units)]
            yield Importance(group.name, group.units, tuple(rises.tolist()), MEANING)
        return context.move(self, drop) if drop else None


class RefitState:
    """The least-squares state of all layers, and each unit's predicted rise of the loss.

    `rises` [units of the graph]: of a removed unit, as it was when it was removed; of the others,
    if it were the next.
    """

    def __init__(self, context: Context, groups: Sequence[ChannelGroup]) -> None:
        self.context = context
        self.groups = groups
        self.problems: dict[str, RefitProblem] = {}
        self._makers: dict[int, list[str]] = {}  # the problems whose outputs a unit is
        self.rises = np.zeros(context.graph.units)
        self.alive = np.zeros(context.graph.units, dtype=bool)
        for group in groups:
            self.alive[group.first + np.asarray(group.units)] = True

    def building(
        self, layers: Sequence[Layer], solved: Evidence, held: Evidence | None
    ) -> Generator[Progress, None, None]:
        """Step 2: build the problem of every layer, and the rises of every unit.

        Parameters
        ----------
        layers
            The layers that read the groups.
        solved, held
            Evidence with patch moments and curvature, see `refit_problem`.

        Yields
        ------
        Progress
            Progress in layers.
        """
        parts = [solved] if held is None else [solved, held]
        images = sum(one.images for one in parts)
        for done, layer in enumerate(layers):
            yield Progress(done, len(layers), f"solving the least squares of {layer.name}")
            rows = sum(one.moments[layer.name].rows for one in parts if layer.name in one.moments)
            found = [one.curvature[layer.name] for one in parts if layer.name in one.curvature]
            scale = 1 / (2 * max(1, rows) * images)
            metric = _mean(found, scale) if found else np.zeros((len(layer.out_units),) * 2)
            problem = refit_problem(self.context.model, layer, solved, held, metric)
            self.problems[layer.name] = problem
            for one in parts:
                one.release(layer.name)
            for number in np.unique(layer.out_units).tolist():
                self._makers.setdefault(number, []).append(layer.name)
        for group in self.groups:
            self._update_rises(group)

    def removing(
        self, goal: float, seconds: SecondsSaved | None = None
    ) -> Generator[Progress, None, dict[str, Units]]:
        """Step 3: remove units until the network has at most `goal` MACs; returns the drop.

        The least rise goes first for each MAC saved or, where they are given, the `seconds`.
        """
        context, graph = self.context, self.context.graph
        start = context.cost(context.plan).macs
        wanted = Savings(graph, context.plan, "macs")  # after `drop`
        order: dict[tuple[str, int], float] = {}
        removed: dict[str, list[int]] = {}
        drop: dict[str, Units] = {}
        while start - wanted.dropped > goal:
            done = int(wanted.dropped)
            yield Progress(done, ceil(start - goal), f"{many(len(order), 'unit')} out")
            candidates = self._candidates()
            saved = np.maximum(wanted.each, 1.0) if seconds is None else seconds.each
            rates = self.rises / saved
            number = int(np.argmin(np.where(candidates, rates, np.inf)))
            if not candidates[number]:
                break
            group = next(g for g in self.groups if g.first <= number < g.span.stop)
            order[group.name, number - group.first] = len(order)
            removed.setdefault(group.name, []).append(number - group.first)
            self._remove(group, number)
            legal = graph.rounded(context.plan, {group.name: removed[group.name]}, order)
            for unit in set(legal.get(group.name, ())) - set(drop.get(group.name, ())):
                wanted.drop(group.first + unit)
                if seconds is not None:
                    seconds.drop(group.first + unit)
            drop |= legal
        return drop

    def _candidates(self) -> Array:
        """Which units of the graph may be removed: every group keeps its minimum width."""
        candidates = self.alive.copy()
        for group in self.groups:
            if candidates[group.span].sum() <= group.narrowest:
                candidates[group.span] = False
        return candidates

    def _remove(self, group: ChannelGroup, number: int) -> None:
        """Remove a unit from every problem; only prices that this changes are computed anew."""
        self.alive[number] = False
        touched = set(group.consumers)
        for name in group.consumers:
            self.problems[name].remove(number)
        for name in self._makers.get(number, ()):
            self.problems[name].remove_outputs(number)
            touched.add(name)
        for other in self.groups:
            if touched & set(other.consumers):
                self._update_rises(other)

    def _update_rises(self, group: ChannelGroup) -> None:
        """Predict the rise of the loss for every remaining unit of a group."""
        numbers = group.first + np.flatnonzero(self.alive[group.span])
        self.rises[numbers] = np.sum(
            [self.problems[name].costs(numbers) for name in group.consumers], axis=0
        )


def _mean(parts: Sequence[Curvature], scale: float) -> Curvature:
    """The sum of curvatures, times `scale`."""
    whole = reduce(added, parts)
    return Root(whole.rows * scale**0.5) if isinstance(whole, Root) else whole * scale
