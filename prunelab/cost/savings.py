"""What dropping each unit alone saves: multiply-adds, activations, or seconds of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph, Layer
from prunelab.values import WidthPlan

OfLengths = Callable[[np.ndarray], np.ndarray]


def savings(graph: ChannelGraph, plan: WidthPlan) -> tuple[np.ndarray, np.ndarray]:
    """The multiply-adds and activation bytes that dropping each unit alone saves [units].

    By graph-wide unit number; zero for units that `plan` has dropped. These are exactly the
    differences of `cost(graph, plan)`.
    """
    macs = Savings(graph, plan, "macs")
    return macs.each, Savings(graph, plan, "activation_bytes").each


class Savings:
    """What dropping each unit alone saves, while units are dropped one by one.

    `each` [units] are the multiply-adds, or activation bytes, that a unit saves next, by
    graph-wide unit number; zero for units that are gone. `dropped` is what all of them saved.
    `kind` may also give, for a layer, the cost of it with axes of these lengths [axes, n].
    """

    def __init__(
        self,
        graph: ChannelGraph,
        plan: WidthPlan,
        kind: Literal["macs", "activation_bytes"] | Callable[[Layer], OfLengths],
    ) -> None:
        alive = graph.alive(plan)
        self.each = np.zeros(graph.units)
        self.dropped = 0.0
        self._terms: list[_Term] = []
        self._of_unit: dict[int, list[int]] = {}
        for layer in graph.layers:
            axes = [layer.out_units, *([] if layer.rows is None else [layer.rows])]
            each = layer.positions * graph.activation_itemsize
            if kind != "activation_bytes":
                each = layer.applied * prod(layer.kernel)
                if layer.dense:
                    axes.append(layer.in_units)
                else:
                    each *= len(layer.in_units) // layer.conv_groups
            cost = kind(layer) if callable(kind) else _product(each)
            term = _Term.of(cost, [units[alive[units]] for units in axes])
            for unit in term.units.tolist():
                self._of_unit.setdefault(unit, []).append(len(self._terms))
            self._terms.append(term)
            self.each[term.units] += term.saved

    def drop(self, unit: int) -> None:
        """Drop a unit, by its graph-wide number."""
        self.dropped += float(self.each[unit])
        for index in self._of_unit.pop(unit, ()):
            term = self._terms[index]
            self.each[term.units] -= term.saved
            term.drop(unit)
            self.each[term.units] += term.saved


def _product(factor: int) -> OfLengths:
    return lambda lengths: factor * np.prod(lengths, axis=0)


@dataclass(slots=True, eq=False)
class _Term:
    """One layer's part of a cost, a function of the lengths of its axes.

    `units` [n] are its distinct units, `times` [axes, n] how often each is on an axis.
    """

    cost: OfLengths
    lengths: np.ndarray
    units: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, cost: OfLengths, axes: Sequence[np.ndarray]) -> _Term:
        """The term of axes, given by the unit of each position."""
        units = np.unique(np.concatenate(axes))
        units = units[units != FIXED]
        times = np.zeros((len(axes), len(units)))
        for row, axis in zip(times, axes, strict=True):
            np.add.at(row, np.searchsorted(units, axis[axis != FIXED]), 1)
        return cls(cost, np.array([float(len(axis)) for axis in axes]), units, times)

    @property
    def saved(self) -> np.ndarray:
        """By how much it falls with each unit [n]; of products exact, below 2^53."""
        whole = self.lengths[:, None]
        return self.cost(whole) - self.cost(whole - self.times)

    def drop(self, unit: int) -> None:
        """Shorten the axes by a unit."""
        place = np.searchsorted(self.units, unit)
        self.lengths -= self.times[:, place]
        self.times[:, place] = 0
