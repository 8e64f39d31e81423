"""Integer attributes that hold a width: which of them to rewrite in a cut network.

A group whose width the network's code hard-codes is cut alone, in the one module that makes and
reads its channels, with attributes rewritten that equal a number of its channels. Those are kept
without which the cut module would differ from the masked one. A wrong choice does no harm: the
caller tries the cuts of all groups together, in the whole network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, islice
from typing import Any

import numpy as np
import torch
from torch import nn

from prunelab.data.private_random import private_random
from prunelab.data.tensors import tensors_of
from prunelab.graph.channels.channel_graph import ChannelGraph, ChannelGroup
from prunelab.graph.kept_state import own
from prunelab.graph.labels.axis_parts import FIXED_PART, UNEQUAL
from prunelab.graph.local_cuts import homes, inside
from prunelab.graph.modules.integers import integers
from prunelab.graph.modules.walk import walk
from prunelab.graph.probe import HARD_CODED
from prunelab.graph.probe_cuts import thinned_units
from prunelab.graph.probe_runs import MaskedRun, Recorder, close, in_double
from prunelab.graph.surgery.editing import copy_with, cut_to

Run = Callable[[nn.Module], Any]
Counts = Mapping[str, np.ndarray]  # the units that an attribute counts, by its name
Candidates = Mapping[str, list[np.ndarray]]  # the units that it may count
Checked = Callable[[ChannelGraph, int], ChannelGraph]
MANY = 24  # choices of attributes that are tried for one group
PLANS = 3  # cuts of the whole network, with the attributes rewritten
CAN_BE_HELD = {HARD_CODED, FIXED_PART, UNEQUAL}  # reasons that an attribute may do away with


def edited(
    model: nn.Module, graph: ChannelGraph, run: Run, checked: Checked, deadline: float | None
) -> ChannelGraph:
    """`graph` as `checked` leaves it, with the attributes to rewrite in cut networks.

    Parameters
    ----------
    model, graph
        The network, a copy to which the caller has applied `stir`, and its graph.
    run
        Runs a network in evaluation mode.
    checked
        Freezes the groups of a graph that cannot be cut correctly; its second argument chooses the
        units that it cuts.
    deadline
        Time of `time.monotonic` after which no further group is tried.

    Parts of an axis that code takes by numbers stay, unless attributes are found that hold these.
    """
    first = checked(_without_parts(graph), 0)
    found: dict[str, np.ndarray] = {}
    clashes: set[str] = set()
    freed: set[str] = set()
    stays = {g.name: g.why for g in first.groups if g.why and graph[g.name].prunable}
    hard = [name for name, why in stays.items() if why in CAN_BE_HELD]
    if not hard:
        return first
    search = _Search(model, graph, run)
    for name in hard:
        if deadline is not None and time.monotonic() > deadline:
            break
        chosen = search.chosen(graph[name])
        if chosen is not None:
            freed.add(name)
            clashes |= {
                key
                for key, units in chosen.items()
                if not np.array_equal(found.setdefault(key, units), units)
            }
    if not freed:
        return first
    left = {name: why for name, why in stays.items() if name not in freed}
    graph = replace(graph.freeze(left), parts=())
    graph = replace(graph, edits={k: units for k, units in found.items() if k not in clashes})
    for seed in range(PLANS):
        graph = checked(graph, seed)
    return _of_use(graph)


def _without_parts(graph: ChannelGraph) -> ChannelGraph:
    """`graph` with the parts of an axis frozen that code takes by numbers."""
    reasons = {
        group.name: why
        for units, why in reversed(graph.parts)
        for group in graph.groups
        if np.isin(np.arange(group.first, group.span.stop), units).any()
    }
    return replace(graph.freeze(reasons), parts=())


def _of_use(graph: ChannelGraph) -> ChannelGraph:
    """`graph` with those attributes only that count a unit which may be dropped."""
    free = np.zeros(graph.units + 1, dtype=bool)
    for group in graph.groups:
        free[group.span] = group.prunable
    return replace(graph, edits={k: units for k, units in graph.edits.items() if free[units].any()})


@dataclass(slots=True)
class _Search:
    """Finds the attributes to rewrite where one group of a network is cut alone."""

    model: nn.Module
    graph: ChannelGraph
    run: Run
    alive: np.ndarray = field(init=False)
    homes: dict[str, str] = field(init=False)
    _given: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    _read: set[str] = field(default_factory=set)
    _inside: dict[str, ChannelGraph] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.alive, self.homes = thinned_units(self.graph), homes(self.graph)
        self._watch()

    def _watch(self) -> None:
        """Note the first inputs of every module in one run, and the attributes that code reads."""
        model, given = copy_with(self.model, {}), self._given
        for name, module in walk(model):
            if isinstance(module, torch.jit.ScriptModule):
                continue
            module.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: (
                    given.setdefault(name, own((args, kwargs))) and None
                ),
                with_kwargs=True,
            )
            _note_reads(module, f"{name}." if name else "", self._read)
        with suppress(Exception), torch.no_grad(), private_random():
            self.run(model)

    def chosen(self, group: ChannelGroup) -> Counts | None:
        """The attributes without which `group` cannot be cut alone; None if that does not help."""
        if group.inexact:
            return None  # its cuts cannot be compared
        home = self._home(group)
        if self._works(group, home, {}):
            return {}
        near = self._candidates(group, home, near=True)
        for candidates in (near, self._candidates(group, home, near=False)):
            for counts in _choices(candidates):
                if self._works(group, home, counts):
                    return self._needed(group, home, counts)
        return None

    def _needed(self, group: ChannelGroup, home: str, counts: Counts) -> Counts:
        """Those of the attributes without any of which `group` cannot be cut alone."""
        for key in [*counts]:
            fewer = {other: units for other, units in counts.items() if other != key}
            if self._works(group, home, fewer):
                counts = fewer
        return counts

    def _home(self, group: ChannelGroup) -> str:
        """The innermost module that makes and reads the group and has run; "" is the network."""
        home = self.homes.get(group.name, "")
        while home and home not in self._given:
            home = home.rpartition(".")[0]
        return home

    def _candidates(self, group: ChannelGroup, home: str, near: bool) -> Candidates:
        """Attributes in `home` that equal a number of the group's channels; what they may count.

        They are those that code reads; with `near`, of the modules that hold a parameter with an
        axis of these channels, and of modules without parameters beside them.
        """
        axes, start = self._axes(group), f"{home}." if home else ""
        holders = {""} | {
            ".".join(path[:depth])
            for name, _ in axes
            for path in [name.split(".")]
            for depth in range(len(path))
        }
        found = {}
        for path, module in walk(self.model):
            bare = path.rpartition(".")[0] in holders and not any(True for _ in module.parameters())
            if near and not (path in holders or bare):
                continue
            for key, value in integers(module) if f"{path}.".startswith(start) else ():
                name = f"{path}.{key}".removeprefix(".")
                if name.partition("[")[0] not in self._read:
                    continue
                fits = [
                    (not axis.startswith(f"{path}."), units)
                    for axis, units in axes
                    if len(units) == value
                ]
                counted: list[np.ndarray] = []
                for _, units in sorted(fits, key=lambda fit: fit[0]):
                    if not any(np.array_equal(np.sort(units), np.sort(one)) for one in counted):
                        counted.append(units)
                if counted:
                    found[name] = counted
        return found

    def _axes(self, group: ChannelGroup) -> list[tuple[str, np.ndarray]]:
        """What can be counted where the group is cut: itself, parts, and axes of parameters."""
        units = np.arange(group.first, group.span.stop)
        named = [(name, axis) for (name, _), axis in self.graph.slots.items()]
        held = [(name, axis) for name, axis in named if np.isin(axis, units).any()]
        parts = [part for part, _ in self.graph.parts if np.isin(part, units).any()]
        return [*held, *(("", one) for one in [units, *parts])]

    def _works(self, group: ChannelGroup, home: str, counts: Counts) -> bool:
        """Whether `home` gives the same, in float64, as where the group is masked in it."""
        alive = np.ones_like(self.alive)
        alive[group.span] = self.alive[group.span]
        if home not in self._inside:
            self._inside[home] = inside(self.graph, home)
        start = f"{home}." if home else ""
        if not all(key.startswith(start) for key in counts):
            return False
        graph = replace(
            self._inside[home],
            edits={key.removeprefix(start): units for key, units in counts.items()},
        )
        module = self.model.get_submodule(home)
        layers = {layer.weight: layer for layer in graph.layers}
        run = self.run if not home else partial(self._call, home)
        try:
            small = cut_to(module, graph, alive).double()
            whole = copy_with(module, {}).double()
            with torch.no_grad(), private_random(), Recorder(small, layers, alive):
                made = in_double(run, small)
            with torch.no_grad(), private_random(), MaskedRun(whole, layers, alive, None, None):
                due = in_double(run, whole)
        except Exception:  # any error of a cut module is due to the cut
            return False
        pairs = [tensors_of(made), tensors_of(due)]
        return len(pairs[0]) == len(pairs[1]) and all(
            close(a, b, 1e-7) for a, b in zip(*pairs, strict=True)
        )

    def _call(self, home: str, module: nn.Module) -> Any:
        args, kwargs = own(self._given[home])
        return module(*args, **kwargs)


def _choices(candidates: Candidates) -> Iterator[Counts]:
    """Attributes to rewrite, in the order in which they are tried: all of them first."""
    likely = {key: counted[0] for key, counted in candidates.items()}
    sizes = [len(likely), *(n for n in (1, len(likely) - 1, 2) if 0 < n < len(likely))]
    for some in islice((some for n in sizes for some in combinations(likely, n)), MANY):
        if some:
            yield {key: likely[key] for key in some}
    for key, counted in candidates.items():
        for units in counted[1:]:
            yield {**likely, key: units}


def _note_reads(module: nn.Module, path: str, read: set[str]) -> None:
    """Add to `read` the full names of the attributes of `module` that are read from now on."""
    kind = type(module)

    def noted(self: nn.Module, key: str) -> Any:
        read.add(f"{path}{key}")
        return kind.__getattribute__(self, key)

    module.__class__ = type(kind.__name__, (kind,), {"__getattribute__": noted})
