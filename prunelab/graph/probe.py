"""The probe: cut a network, run it and the masked one, and compare layer by layer.

Channels cannot be cut where network code stores their number as an integer, and a trace does not
show such code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from prunelab.data.private_random import private_random
from prunelab.data.tensors import tensors_of
from prunelab.errors import PruneLabError, TraceError
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph, Layer
from prunelab.graph.labels.shape_run import ShapeRun
from prunelab.graph.local_cuts import LocalCuts
from prunelab.graph.probe_cuts import single_units, thinned_units
from prunelab.graph.probe_runs import (
    Differs,
    MaskedRun,
    Recorder,
    close,
    in_double,
)
from prunelab.graph.surgery.editing import copy_with, cut_to

Run = Callable[[nn.Module], Any]
EVERYWHERE = -2  # the failure cannot be located; sorts before every call
NEAR = 3  # layer calls before a failure, whose groups are tried alone
HARD_CODED = "the network's code hard-codes its width"
COMPUTED_WITH = "the network's code computes with its width as a number"


def probed(
    model: nn.Module,
    graph: ChannelGraph,
    run: Run,
    calls: Sequence[str],
    train: Run | None = None,
    deadline: float | None = None,
    *,
    private: bool = False,
    writes: bool = False,
    why: str = "",
    seed: int = 0,
) -> ChannelGraph:
    """`graph` with those groups frozen that cannot be cut correctly.

    Parameters
    ----------
    model, graph
        The network, a copy to which the caller has applied `stir`, and its graph.
    run
        Runs a network in evaluation mode.
    calls
        The layers in the order of their calls in that run.
    train
        Runs a network in training mode; there the cut network only has to run without an error.
    deadline
        Time of `time.monotonic` after which `TraceError` is raised.
    private
        A run changes what the network keeps, so each has a copy with attributes and buffers of its
        own.
    writes
        A run writes into parameters, so each has a copy that shares nothing.
    why
        The reason to give instead of the one found.
    seed
        Chooses the units that are cut.

    The call at which the cut network first differs determines which groups are suspected; where
    it cannot be located, the groups are bisected.
    """
    thinned = thinned_units(graph, seed)
    single = single_units(graph, thinned)
    probe = _Probe(model, graph, run, calls, train, deadline, private, writes, thinned, single)
    good = [group.name for group in graph.groups if group.prunable]
    reasons: dict[str, str] = {}
    for probe.further in (False, True):
        good, found = _located(probe, good)
        reasons |= found
    return graph.freeze(dict.fromkeys(reasons, why) if why else reasons)


def _located(probe: _Probe, good: list[str]) -> tuple[list[str], dict[str, str]]:
    """Those of the groups `good` that can be cut together, and why the others cannot."""
    doubtful: dict[str, _Difference] = {}
    alone: dict[str, list[str]] = {}  # the only suspect of a failure -> the groups cut there
    certain: set[str] = set()
    last = -1
    while (failure := probe.failure(good)) is not None:
        place, suspects = failure.place, probe.suspects(failure.place)
        found = [name for name in good if name in suspects]
        lost = place <= last or not found
        if sure := probe.failing_alone(good, failure) or (
            probe.failing_alone(good, failure, good) if lost else []
        ):
            certain |= {*sure}
            good = [name for name in good if name not in certain]
            continue
        if lost:
            good, guilty = probe.bisected(good)
            doubtful |= dict.fromkeys(guilty, failure)
            break
        last = place
        if len(found) == 1:
            alone[found[0]] = good
        good = [name for name in good if name not in found]
        doubtful |= dict.fromkeys(found, failure)
    reasons = dict.fromkeys(sorted(certain), HARD_CODED)
    for name, first in doubtful.items():
        now = [*good, name]
        known = name in alone and probe.alike(alone[name], now, first.place)
        only = len(doubtful) == 1 and not certain
        again = first if known or only else probe.failure(now)
        if again is None:
            good.append(name)
        else:
            reasons[name] = COMPUTED_WITH if again.rounding else HARD_CODED
    return good, reasons


@dataclass(slots=True)
class _Probe:
    """Cuts some groups of a network and locates a failure."""

    model: nn.Module
    graph: ChannelGraph
    evaluate: Run
    calls: Sequence[str]
    train: Run | None
    deadline: float | None
    private: bool
    writes: bool
    thinned: np.ndarray
    single: np.ndarray
    further: bool = False
    first: tuple[bytes, nn.Module] | None = None  # the latest first cut, and what it keeps
    local: LocalCuts | None = None

    def failure(self, names: Sequence[str]) -> _Difference | None:
        """Where the network cut in these groups differs from the masked one, if it does.

        A first cut is compared with the whole network. With `further`, a cut to one unit of each
        group is compared with the first one instead: that is cheap. `EVERYWHERE` in training mode.
        """
        if not names:
            return None
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise TraceError(
                "The time limit was reached while cuts were tried out. Give a smaller example "
                "input, a larger time_limit, or freeze= what need not be pruned."
            )
        try:
            return self._tried(names)
        except _Uncut:
            return _Difference(EVERYWHERE)

    def _tried(self, names: Sequence[str]) -> _Difference | None:
        alive = self._left(self.thinned, names)
        exact = not any(self.graph[name].inexact for name in names)
        if not self.further:
            small = self._cut(alive)
            self.first = (alive.tobytes(), small)
            whole = self._for_a_run(self.model)
            found = self._compared(whole, small, np.ones_like(alive), alive, exact)
            if found is None and self.train is not None and not self._trains(small):
                found = _Difference(EVERYWHERE)
            return found
        if self.private or self.first is None or self.first[0] != alive.tobytes():
            small = self._cut(alive)
        else:
            small = self.first[1]
        single = self._left(self.single, names)
        smallest = self._cut(single)
        found = self._compared(small, smallest, alive, single, exact)
        if found is None or self._alike(small, smallest, alive, single):
            return None
        return found

    def _for_a_run(self, net: nn.Module) -> nn.Module:
        """`net`, or a copy with as much of its own as a run may change."""
        return _with_own_state(net, self.writes) if self.private else net

    def _cut(self, alive: np.ndarray) -> nn.Module:
        try:
            return cut_to(self._for_a_run(self.model), self.graph, alive, share=True)
        except PruneLabError:
            raise
        except Exception as error:  # a parametrization that computes a weight of another width
            raise _Uncut from error

    def _compared(
        self,
        whole: nn.Module,
        small: nn.Module,
        present: np.ndarray,
        alive: np.ndarray,
        exact: bool,
    ) -> _Difference | None:
        """`_difference` in float32 and, where rounding could explain what is found, in float64."""
        found = self._difference(whole, small, present, alive, exact, double=False)
        if found is not None and found.rounding:
            # deep random networks amplify float32 rounding
            whole, small = (copy_with(net, {}).double() for net in (whole, small))
            with suppress(_Unable):
                found = self._difference(whole, small, present, alive, exact, double=True)
        return found

    def _alike(
        self, whole: nn.Module, small: nn.Module, present: np.ndarray, alive: np.ndarray
    ) -> bool:
        """Whether the outputs are the same in float64, whichever layers were called on the way.

        With a single channel left, PyTorch computes some products and their biases in other steps.
        """
        whole, small = (copy_with(net, {}).double() for net in (whole, small))
        layers = {layer.weight: _present(layer, present) for layer in self.graph.layers}
        try:
            with torch.no_grad(), private_random():
                made = in_double(self.evaluate, small)
            with torch.no_grad(), private_random(), MaskedRun(whole, layers, alive, None, None):
                due = in_double(self.evaluate, whole)
        except Exception:  # any error of a cut network is due to the cut
            return False
        pairs = [tensors_of(made), tensors_of(due)]
        return len(pairs[0]) == len(pairs[1]) and all(
            close(a, b, 1e-7) for a, b in zip(*pairs, strict=True)
        )

    def _trains(self, small: nn.Module) -> bool:
        """Whether a cut network runs in training mode; its outputs are not compared."""
        assert self.train is not None
        small = _with_own_state(small, self.writes)  # training writes into buffers
        for watch in (ShapeRun(), nullcontext()):  # code may branch on zeros
            with suppress(Exception):  # any error of the forward pass is due to the cut
                with torch.no_grad(), private_random(), watch:
                    self.train(small)
                return True
        return False

    def bisected(self, names: list[str]) -> tuple[list[str], list[str]]:
        """The groups that can be cut together, and the others."""
        if self.failure(names) is None:
            return names, []
        if len(names) == 1:
            return [], names
        half = len(names) // 2
        good, bad = [], []
        for part in (names[:half], names[half:]):
            fine, failing = self.bisected(part)
            good += fine
            bad += failing
        return (good, bad) if self.failure(good) is None else self._added(good, bad)

    def _added(self, names: list[str], bad: list[str]) -> tuple[list[str], list[str]]:
        """As `bisected`, for groups that fail only in combination: they are added one by one."""
        good: list[str] = []
        for name in names:
            (good if self.failure([*good, name]) is None else bad).append(name)
        return good, bad

    def alike(self, some: Sequence[str], others: Sequence[str], place: int) -> bool:
        """Whether the networks cut in these groups are the same up to the call `place`.

        The groups in which they differ are then first made behind it.
        """
        odd = [self.graph[name] for name in {*some} ^ {*others}]
        layers = {layer.weight: layer for layer in self.graph.layers}
        before = [layers[name] for name in self.calls[: place + 1] if name in layers]
        met = np.zeros(self.graph.units + 1, dtype=bool)
        for layer in before:
            met[layer.in_units] = met[layer.out_units] = True
        return not any(met[group.first : group.first + group.width].any() for group in odd)

    def _left(self, every: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """The units that stay where only these groups are cut, as `every` cuts them."""
        alive = np.ones_like(every)
        for group in (self.graph[name] for name in names):
            own = slice(group.first, group.first + group.width)
            alive[own] = every[own]
        return alive

    def _difference(
        self,
        whole: nn.Module,
        small: nn.Module,
        present: np.ndarray,
        alive: np.ndarray,
        exact: bool,
        double: bool,
    ) -> _Difference | None:
        """Where the cut network first differs from the masked one; None where it does not.

        `whole` has the units in `present`, `small` those in `alive`.
        """
        layers = {layer.weight: _present(layer, present) for layer in self.graph.layers}
        tolerance = 1e-7 if double else 1e-4
        run = partial(in_double, self.evaluate) if double else self.evaluate
        got = Recorder(small, layers, alive)
        try:
            with torch.no_grad(), private_random(), got:
                made = run(small)
        except Exception as error:
            if double:
                raise _Unable from error
            return _Difference(len(got.calls))  # any error of a cut network is due to the cut
        wanted = MaskedRun(whole, layers, alive, got.seen, tolerance if exact else None)
        try:
            with torch.no_grad(), private_random(), wanted:
                due = run(whole)
        except Differs as difference:
            return _Difference(len(wanted.calls), difference.rounding)
        except Exception as error:
            raise _Unable from error
        pairs = [tensors_of(made), tensors_of(due)]
        alike = [x.shape for x in pairs[0]] == [x.shape for x in pairs[1]]
        alike = alike and len(got.calls) == len(wanted.calls)
        same = (close(a, b, tolerance) for a, b in zip(*pairs, strict=True))
        if alike and (not exact or all(same)):
            return None
        return _Difference(len(wanted.calls), alike)

    def failing_alone(
        self, names: Sequence[str], failure: _Difference, first: Sequence[str] = ()
    ) -> list[str]:
        """Those of the groups `names` that fail alone, as some of these `first` ones do.

        Without any, these are the latest ones before the failure.
        """
        if self.further or self.private or failure.rounding or failure.place < 0:
            return []
        if self.local is None:
            self.local = LocalCuts(self.model, self.graph, self.thinned, self.evaluate)
        layers = {layer.weight: layer for layer in self.graph.layers}
        before = self.calls[max(0, failure.place - NEAR) : failure.place + 1]
        met = [x for n in before if n in layers for x in (layers[n].in_units, layers[n].out_units)]
        near = first or self._groups(met)
        return self.local.failing([name for name in names if name in near], names)

    def suspects(self, place: int) -> set[str]:
        """The groups that the failing call reads, or that the call before it issues."""
        calls = self.calls
        layers = {layer.weight: layer for layer in self.graph.layers}
        met = [layers[name].in_units for name in calls[place : place + 1] if name in layers]
        if place >= len(calls) or not (np.concatenate([[FIXED], *met]) != FIXED).any():
            met += [layers[name].out_units for name in calls[place - 1 : place] if name in layers]
        return self._groups(met)

    def _groups(self, met: Sequence[np.ndarray]) -> set[str]:
        """The groups of these units."""
        units = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *met]))
        return {
            group.name
            for group in self.graph.groups
            if ((units >= group.first) & (units < group.first + group.width)).any()
        }


def _with_own_state(net: nn.Module, writes: bool) -> nn.Module:
    """A copy that shares the parameters of `net`, or nothing with `writes`."""
    own = {} if writes else {name: buffer.clone() for name, buffer in net.named_buffers()}
    return copy_with(net, own, share=not writes)


def _present(layer: Layer, present: np.ndarray) -> Layer:
    """The layer in a network that has only the units in `present`."""
    outs, ins = (units[present[units]] for units in (layer.out_units, layer.in_units))
    return replace(layer, out_units=outs, in_units=ins)


@dataclass(frozen=True, slots=True)
class _Difference:
    """The index of a layer call; `rounding` says that only values differ, no shapes."""

    place: int
    rounding: bool = False


class _Uncut(Exception):
    """The network cannot be cut in these groups."""


class _Unable(Exception):
    """The network does not run in float64."""
