"""The cost of a network as a sum of products of widths, evaluated without making a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from prunelab.evidence import Curve
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.values import WidthPlan

Array = np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One term of the cost: `factor` times the number of kept channels along each of its axes.

    An axis has `alive` channels at the start, and loses `lost[group][k]` of them with the first k
    units of a group's order.
    """

    factor: float
    axes: tuple[tuple[int, Mapping[int, Array]], ...]

    def at(self, removed: Sequence[Any]) -> Any:
        """Its value when the first `removed[g]` units of each group g are dropped."""
        return self.factor * prod(
            alive - sum(lost[removed[group]] for group, lost in by_group.items())
            for alive, by_group in self.axes
        )


class IncrementalCost:
    """The sum of `terms` at widths that change group by group; only the change is recomputed.

    A choice of widths is a list of positions in `removed`, the allowed numbers of units to drop
    from each group. The latest choice is stored, so only one thread at a time may use an instance.
    """

    def __init__(self, terms: Sequence[Term], removed: Sequence[Array]) -> None:
        self._choice = [0] * len(removed)
        self._alive: list[int] = []
        self._terms: list[tuple[float, list[int]]] = []
        self._lost: list[dict[int, list[int]]] = [{} for _ in removed]  # by group, by axis
        self._parts: list[list[tuple[float, list[tuple[int, Array | None]]]]] = [
            [] for _ in removed
        ]
        for term in terms:
            first = len(self._alive)
            groups = {group for _, lost in term.axes for group in lost}
            places: dict[int, dict[int, Array]] = {group: {} for group in groups}
            for axis, (alive, lost) in enumerate(term.axes, start=first):
                self._alive.append(alive)
                for group, counts in lost.items():
                    places[group][axis] = counts[removed[group]]
                    self._lost[group][axis] = places[group][axis].tolist()
            axes = list(range(first, len(self._alive)))
            self._terms.append((term.factor, axes))
            for group, read in places.items():
                self._parts[group].append((term.factor, [(axis, read.get(axis)) for axis in axes]))

    def total(self, choice: Sequence[int]) -> float:
        """The cost of `choice`."""
        self._stand(choice)
        return float(sum(f * prod(self._alive[axis] for axis in axes) for f, axes in self._terms))

    def along(self, group: int, choice: Sequence[int], places: int) -> Array:
        """The part of the cost that depends on `group`, at its first `places` positions."""
        self._stand(choice)
        at = choice[group]
        whole = np.zeros(places)
        for factor, axes in self._parts[group]:
            value: Any = factor
            for axis, lost in axes:
                alive = self._alive[axis]
                value = value * (alive if lost is None else alive + lost[at] - lost)
            whole += value
        return whole

    def _stand(self, choice: Sequence[int]) -> None:
        if self._choice == choice:
            return
        for group, (was, now) in enumerate(zip(self._choice, choice, strict=True)):
            if was != now:
                for axis, lost in self._lost[group].items():
                    self._alive[axis] += lost[was] - lost[now]
                self._choice[group] = now


def terms_of(
    graph: ChannelGraph, start: WidthPlan, curves: Sequence[Curve], kind: str
) -> list[Term]:
    """The cost as a sum of products, equal to that of `cost(graph, plan)`.

    Parameters
    ----------
    graph, start
        The graph, and the plan from which units are dropped.
    curves
        The order in which the units of each group are dropped.
    kind
        A field of `Cost`: "macs", "params" or "activation_bytes".
    """
    alive = graph.alive(start)

    def axis(units: Array) -> tuple[int, dict[int, Array]]:
        lost = {}
        for index, curve in enumerate(curves):
            first = graph[curve.group].first
            times = np.bincount(units[units >= 0], minlength=graph.units)[first:]
            if any(each := times[np.asarray(curve.order)].tolist()):
                lost[index] = np.concatenate([[0], np.cumsum(each)])
        return int(alive[units].sum()), lost

    if kind == "params":
        axes: dict[str, list[tuple[str, int]]] = {name: [] for name in graph.sizes}
        for name, place in graph.slots:
            if name in axes:
                axes[name].append((name, place))
        return [
            Term(
                graph.sizes[name] / prod(len(graph.slots[key]) for key in keys),
                tuple(axis(graph.slots[key]) for key in keys),
            )
            for name, keys in axes.items()
        ]
    terms = []
    for layer in graph.layers:
        wide = [axis(layer.out_units), *([] if layer.rows is None else [axis(layer.rows)])]
        if kind == "activation_bytes":
            itemsize = graph.activation_itemsize
            terms.append(Term(layer.positions * itemsize, tuple(wide)))
            terms.append(Term(layer.other[1] * itemsize, ()))
            continue
        factor = layer.applied * prod(layer.kernel)
        if layer.dense:
            wide.append(axis(layer.in_units))
        else:
            factor *= len(layer.in_units) // layer.conv_groups
        terms.append(Term(factor, tuple(wide)))
        terms.append(Term(layer.other[0], ()))
    return terms
