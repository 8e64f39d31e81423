"""The surgeon: removes the unit, of any layer, that the loss can best do without.

Backward elimination with refit over the whole network. It is the optimal brain surgeon (Hassibi,
Stork; NIPS 1992) for whole channels, with the Kronecker-factored curvature of EigenDamage (Wang,
Grosse, Fidler, Zhang; ICML 2019). Widths and units come out of one search.

Input: a network and the share of its multiply-adds that a move removes.
In one move:                                                          `Surgeon.search`
  1. For every layer measure the second moment of the patches that it
     reads and the curvature C of the loss at its outputs.            `refit.measuring_apart`
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
from operator import add
from typing import ClassVar, Literal

import numpy as np

from prunelab.cost.counting import savings
from prunelab.errors import InvalidValue
from prunelab.evidence import Evidence
from prunelab.evidence.output_fisher import Root
from prunelab.graph.channels.channel_graph import ChannelGroup, Layer
from prunelab.methods.base import Context, Search
from prunelab.methods.refit import RefitProblem, measuring_apart, refit_problem, refittable
from prunelab.methods.settings import check_counts, check_groups, selects
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
        check_groups(self)
        check_counts(self, "images")

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
        evidence = yield from measuring_apart(
            context, self.images, ("patches", "curvature"), tuple(layers)
        )
        state = RefitState(context, groups)
        yield from state.building(list(layers.values()), *evidence)
        whole = context.cost(WidthPlan.full(context.plan.graph)).macs
        steps = (1 - context.cost(context.plan).macs / whole) / self.step
        goal = whole * (1 - self.step * (floor(steps + 1e-9) + 1))
        drop = yield from state.removing(max(goal, context.target_macs or 0))
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
        for group in self.groups:
            self._update_rises(group)

    def removing(self, goal: float) -> Generator[Progress, None, dict[str, Units]]:
        """Step 3: remove units until the network has at most `goal` MACs; returns the drop."""
        context, graph = self.context, self.context.graph
        start = context.cost(context.plan).macs
        order: dict[tuple[str, int], float] = {}
        removed: dict[str, list[int]] = {}
        drop: dict[str, Units] = {}
        while (now := context.cost(plan := context.plan.drop(drop)).macs) > goal:
            yield Progress(start - now, ceil(start - goal), f"{many(len(order), 'unit')} out")
            candidates = self._candidates()
            rates = self.rises / np.maximum(savings(graph, plan)[0], 1.0)
            number = int(np.argmin(np.where(candidates, rates, np.inf)))
            if not candidates[number]:
                break
            group = next(g for g in self.groups if g.first <= number < g.span.stop)
            unit = number - group.first
            order[group.name, unit] = len(order)
            removed.setdefault(group.name, []).append(unit)
            for changed in self._remove(group, unit):
                self._update_rises(changed)
            drop = graph.rounded(context.plan, removed, order)
        return drop

    def _candidates(self) -> Array:
        """Which units of the graph may be removed: every group keeps its minimum width."""
        candidates = self.alive.copy()
        for group in self.groups:
            if candidates[group.span].sum() <= group.narrowest:
                candidates[group.span] = False
        return candidates

    def _remove(self, group: ChannelGroup, unit: int) -> list[ChannelGroup]:
        """Remove a unit from every problem; returns the groups whose rises this changes."""
        number = group.first + unit
        self.alive[number] = False
        touched = set(group.consumers)
        for name, problem in self.problems.items():
            if number in problem.entries:
                problem.remove(number)
            if number in problem.outputs:
                problem.remove_outputs(number)
                touched.add(name)
        return [other for other in self.groups if touched & set(other.consumers)]

    def _update_rises(self, group: ChannelGroup) -> None:
        """Predict the rise of the loss for every remaining unit of a group."""
        numbers = (group.first + np.flatnonzero(self.alive[group.span])).tolist()
        self.rises[numbers] = sum(self.problems[name].costs(numbers) for name in group.consumers)


def _mean(parts: Sequence[Array | Root], scale: float) -> Array | Root:
    """The sum of curvatures, times `scale`."""
    whole = reduce(add, parts)
    return Root(whole.rows * scale**0.5) if isinstance(whole, Root) else whole * scale
