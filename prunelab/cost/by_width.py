"""The cost of a network as a polynomial of the numbers of units that groups lose.

A layer's multiply-adds are its inputs times its outputs, times a constant: so the cost of a network
is a polynomial of second degree, whose coefficients are differences of the costs of a few plans. A
page without Python can evaluate it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from prunelab.cost.counting import cost
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.values import WidthPlan

Costs = tuple[float, float]  # multiply-adds, parameters
MOST = 3000  # pairs of groups that share a layer; more are not worked out


@dataclass(frozen=True, slots=True)
class CostByWidth:
    """Multiply-adds and parameters of a network from which groups lose units.

    With r units lost by each group they are `start` plus `linear` r of each group plus `pairs` r r'
    of each pair of groups, of which one may stand twice.
    """

    start: Costs
    linear: Mapping[str, Costs]
    pairs: Mapping[tuple[str, str], Costs]

    def at(self, lost: Mapping[str, int]) -> Costs:
        """The multiply-adds and parameters once each group has lost so many units."""
        found = np.array(self.start)
        for name, each in self.linear.items():
            found += lost.get(name, 0) * np.array(each)
        for (one, other), each in self.pairs.items():
            found += lost.get(one, 0) * lost.get(other, 0) * np.array(each)
        return float(found[0]), float(found[1])


def cost_by_width(graph: ChannelGraph, plan: WidthPlan) -> CostByWidth | None:
    """The cost of the network that `plan` leaves as a polynomial; None for too many pairs.

    Parameters
    ----------
    graph
        The graph of the uncut network.
    plan
        What is kept now.
    """
    now = graph.after(plan)
    room = {
        g.name: (g.step, len(g.units) - g.narrowest)
        for g in now.groups
        if g.prunable and len(g.units) - g.narrowest >= g.step
    }
    together = _sharing_layers(now, set(room))
    if len(together) > MOST:
        return None

    def at(lost: Mapping[str, int]) -> np.ndarray:
        drop = {name: now[name].units[:count] for name, count in lost.items()}
        found = cost(graph, plan.drop(drop))
        return np.array([found.macs, found.params], dtype=float)

    start = at({})
    linear: dict[str, Costs] = {}
    pairs: dict[tuple[str, str], Costs] = {}
    first = {}
    for name, (step, most) in room.items():
        first[name] = at({name: step}) - start
        square = np.zeros(2)
        if most >= 2 * step:
            square = (at({name: 2 * step}) - start - 2 * first[name]) / (2 * step**2)
        linear[name] = _pair(first[name] / step - square * step)
        if square.any():
            pairs[name, name] = _pair(square)
    for one, other in together:
        steps = {one: room[one][0], other: room[other][0]}
        both = at(steps) - start - first[one] - first[other]
        if both.any():
            pairs[one, other] = _pair(both / (steps[one] * steps[other]))
    return CostByWidth(_pair(start), linear, pairs)


def _pair(found: np.ndarray) -> Costs:
    return float(found[0]), float(found[1])


def _sharing_layers(graph: ChannelGraph, names: set[str]) -> set[tuple[str, str]]:
    """The pairs of groups, in the graph's order, that one layer reads or makes."""
    owner = np.full(graph.units, -1)
    for place, group in enumerate(graph.groups):
        if group.name in names:
            owner[group.span] = place
    found: set[tuple[int, int]] = set()
    for layer in graph.layers:
        units = np.concatenate([layer.in_units, layer.out_units])
        places = np.unique(owner[units[units >= 0]])
        found.update(combinations(places[places >= 0].tolist(), 2))
    return {(graph.groups[a].name, graph.groups[b].name) for a, b in found}
