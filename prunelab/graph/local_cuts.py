"""Cuts of single groups, each tried in the one module that makes and reads its channels.

Running that module on the inputs that it has in the whole network takes a small part of the time
of the network, and shows whether its code fails where this group alone is narrower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from prunelab.data.private_random import private_random
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph
from prunelab.graph.surgery.editing import copy_with, cut_to


class LocalCuts:
    """Tries cuts of single groups of a network.

    Parameters
    ----------
    model, graph
        The network and its graph.
    alive
        The units that stay in a cut group [units + 1].
    run
        Runs the network.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        alive: np.ndarray,
        run: Callable[[nn.Module], Any],
    ) -> None:
        self.graph, self.alive, self.run = graph, alive, run
        self.model = copy_with(model, {}, share=True)
        self.homes = homes(graph)
        self._given: dict[str, tuple[Any, Any]] = {}  # a module -> its first inputs
        self._inside: dict[str, ChannelGraph] = {}
        self._works: dict[str, bool] = {}  # whether a module runs on them without a cut
        self._tried: set[str] = set()

    def failing(self, suspects: Iterable[str], names: Iterable[str]) -> list[str]:
        """Those of the groups `names` with which their module fails, though it runs without a cut.

        Code that hard-codes a width does so wherever it is used: where some of the suspects fail,
        all the groups in modules of the same classes are tried, and else none.
        """
        first = self._failing(name for name in suspects if name in self.homes)
        kinds = {self._kind(name) for name in first}
        return first + self._failing(
            name for name in names if name in self.homes and self._kind(name) in kinds
        )

    def _failing(self, names: Iterable[str]) -> list[str]:
        new = [name for name in names if name not in self._tried]
        self._tried |= {*new}
        self._watch({self.homes[name] for name in new} - {*self._given})
        return [name for name in new if self._fails(name)]

    def _kind(self, name: str) -> type:
        return type(self.model.get_submodule(self.homes[name]))

    def _watch(self, homes: set[str]) -> None:
        """Keep the inputs of these modules in one run of the network."""
        if not homes:
            return
        hooks = [
            self.model.get_submodule(home).register_forward_pre_hook(
                lambda _, args, kwargs, home=home: (
                    self._given.setdefault(home, (args, kwargs)) and None
                ),
                with_kwargs=True,
            )
            for home in homes
        ]
        try:
            with suppress(Exception), torch.no_grad(), private_random():
                self.run(self.model)
        finally:
            for hook in hooks:
                hook.remove()

    def _fails(self, name: str) -> bool:
        home, group = self.homes[name], self.graph[name]
        if home not in self._given:
            return False
        own = slice(group.first, group.first + group.width)
        alive = np.ones_like(self.alive)
        alive[own] = self.alive[own]
        module = self.model.get_submodule(home)
        if home not in self._inside:
            self._inside[home] = inside(self.graph, home)
        part = self._inside[home]
        if self._runs(home, lambda: cut_to(module, part, alive, share=True)):
            return False
        if home not in self._works:
            self._works[home] = self._runs(home, lambda: copy_with(module, {}, share=True))
        return self._works[home]

    def _runs(self, home: str, made: Callable[[], nn.Module]) -> bool:
        args, kwargs = self._given[home]
        try:
            with torch.no_grad(), private_random():
                made()(*args, **kwargs)
        except Exception:  # any error of a cut module is due to the cut
            return False
        return True


def inside(graph: ChannelGraph, home: str) -> ChannelGraph:
    """The part of a graph that lies in the module `home`, with the names that it has there."""
    start = f"{home}." if home else ""

    def own(name: str) -> str:
        return name.removeprefix(start)

    return replace(
        graph,
        layers=tuple(
            replace(layer, weight=own(layer.weight))
            for layer in graph.layers
            if layer.weight.startswith(start)
        ),
        slots={(own(n), axis): u for (n, axis), u in graph.slots.items() if n.startswith(start)},
        norms=tuple((own(a), own(b), axis) for a, b, axis in graph.norms if a.startswith(start)),
        bare={own(name): units for name, units in graph.bare.items() if name.startswith(start)},
        edits={own(name): units for name, units in graph.edits.items() if name.startswith(start)},
    )


def homes(graph: ChannelGraph) -> dict[str, str]:
    """The innermost module that holds all that makes or reads the channels of each group.

    Groups for which that is the whole network are left out.
    """
    groups = [group for group in graph.groups if group.prunable]
    which = np.full(graph.units + 1, FIXED)
    for number, group in enumerate(groups):
        which[group.first : group.first + group.width] = number
    found: dict[int, list[str]] = {}
    for name, units in _named_units(graph):
        path = name.split(".")[:-1]
        for number in np.unique(which[units]).tolist():
            found[number] = _shared(found.get(number, path), path)
    return {
        groups[number].name: ".".join(path)
        for number, path in found.items()
        if number != FIXED and path
    }


def _named_units(graph: ChannelGraph) -> Iterator[tuple[str, np.ndarray]]:
    """Each parameter, or normalisation without any, with the units that it has or reads."""
    for (name, _), units in graph.slots.items():
        yield name, units
    for name, units in graph.bare.items():
        yield f"{name}.", units
    for layer in graph.layers:
        yield layer.weight, np.concatenate([layer.in_units, layer.out_units])
        if layer.rows is not None:
            yield layer.weight, layer.rows


def _shared(a: list[str], b: list[str]) -> list[str]:
    """The parts with which both paths begin."""
    count = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    return a[: min(len(a), len(b)) if count is None else count]
