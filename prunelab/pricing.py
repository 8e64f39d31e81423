"""A network's cost as a sum of products of widths: looked up at any widths without a plan.

May import channels, evidence, values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from prunelab.channels import ChannelGraph
from prunelab.evidence import Curve
from prunelab.values import WidthPlan

Array = np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A part of the cost: `factor` times the channels alive along each of its axes.

    An axis has `alive` channels at the start, and loses `lost[group][k]` of them with the first k
    units of a group's order.
    """

    factor: float
    axes: tuple[tuple[int, Mapping[int, Array]], ...]

    def at(self, removed: Sequence[Any]) -> Any:
        """Its cost when the first `removed[g]` units of each group g are gone."""
        return self.factor * prod(
            alive - sum(lost[removed[group]] for group, lost in by_group.items())
            for alive, by_group in self.axes
        )


def terms_of(
    graph: ChannelGraph, start: WidthPlan, curves: Sequence[Curve], kind: str
) -> list[Term]:
    """The cost as a sum of products; the same account as `cost(graph, plan)` gives."""
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
        outs = axis(layer.out_units)
        if kind == "activation_bytes":
            terms.append(Term(layer.positions * graph.activation_itemsize, (outs,)))
        elif layer.dense:
            factor = layer.positions * prod(layer.kernel)
            terms.append(Term(factor, (outs, axis(layer.in_units))))
        else:
            each = len(layer.in_units) // layer.conv_groups
            terms.append(Term(layer.positions * prod(layer.kernel) * each, (outs,)))
    return terms
