"""The probe: cut a network, run it and the masked one, and compare layer by layer.

Channels cannot be cut where network code stores their number as an integer, and a trace does not
show such code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import nn

from prunelab.data.private_random import private_random
from prunelab.data.tensors import tensors_of
from prunelab.errors import PruneLabError, TraceError
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph
from prunelab.graph.labels.shape_run import ShapeRun
from prunelab.graph.probe_runs import (
    Differs,
    MaskedRun,
    Recorder,
    close,
    drawn_again,
    in_double,
)
from prunelab.graph.surgery.editing import copy_with, cut_to

Run = Callable[[nn.Module], Any]
EVERYWHERE = -2  # the failure cannot be located; sorts before every call
WIDE = 64  # units
HARD_CODED = "the network's code hard-codes its width"


def probed(
    model: nn.Module,
    graph: ChannelGraph,
    run: Run,
    calls: Sequence[str],
    train: Run | None = None,
    deadline: float | None = None,
) -> ChannelGraph:
    """`graph` with those groups frozen that cannot be cut correctly.

    Parameters
    ----------
    model, graph
        The network and its graph.
    run
        Runs a network in evaluation mode.
    calls
        The layers in the order of their calls in that run.
    train
        Runs a network in training mode; there the cut network only has to run without an error.
    deadline
        Time of `time.monotonic` after which `TraceError` is raised.

    The call at which the cut network first differs determines which groups are suspected; where
    it cannot be located, the groups are bisected.
    """
    probe = _Probe(model, graph, run, calls, train, deadline)
    good = [group.name for group in graph.groups if group.prunable]
    doubtful: list[str] = []
    last = -1
    while (failure := probe.failure(good)) is not None:
        place, suspects = failure
        found = [name for name in good if name in suspects]
        if place <= last or not found:
            good, guilty = probe.bisected(good)
            doubtful += guilty
            break
        last = place
        good = [name for name in good if name not in found]
        doubtful += found
    reasons = {}
    for name in doubtful:
        if len(doubtful) > 1 and probe.failure([*good, name]) is None:
            good.append(name)
        else:
            reasons[name] = HARD_CODED
    return graph.freeze(reasons)


@dataclass(slots=True)
class _Probe:
    """Cuts some groups of a network and locates a failure."""

    model: nn.Module
    graph: ChannelGraph
    evaluate: Run
    calls: Sequence[str]
    train: Run | None
    deadline: float | None

    def failure(self, names: Sequence[str]) -> tuple[int, set[str]] | None:
        """Where the network cut in these groups differs from the masked one, if it does.

        The number of the layer call, and the groups to suspect; `EVERYWHERE` in training mode.
        """
        if not names:
            return None
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise TraceError(
                "The time limit was reached while cuts were tried out. Give a smaller example "
                "input, a larger time_limit, or freeze= what need not be pruned."
            )
        graph, alive = self.graph, self._thinned(names)
        exact = not any(graph[name].inexact for name in names)
        try:
            small = cut_to(self.model, graph, alive, share=True)
        except PruneLabError:
            raise
        except Exception:  # a parametrization that computes a weight of another width
            return EVERYWHERE, set()
        found = self._difference(self.model, small, alive, exact, double=False)
        if found is not None and found.rounding:
            # deep random networks amplify float32 rounding: repeat the comparison in float64
            whole, doubled = copy_with(self.model, {}), cut_to(self.model, graph, alive)
            with suppress(_Unable):
                found = self._difference(whole.double(), doubled.double(), alive, exact, True)
        if found is not None:
            return found.place, self._suspects(found.place)
        return None if self.train is None or self._trains(small) else (EVERYWHERE, set())

    def _trains(self, small: nn.Module) -> bool:
        """Whether a cut network runs in training mode; its outputs are not compared."""
        assert self.train is not None
        buffers = {name: buffer.clone() for name, buffer in small.named_buffers()}
        small = copy_with(small, buffers, share=True)  # training writes into these buffers only
        for watch in (ShapeRun(), nullcontext()):  # code may branch on zeros
            with suppress(Exception):  # any error of the forward pass is due to the cut
                with torch.no_grad(), private_random(), drawn_again(), watch:
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

    def _thinned(self, names: Sequence[str]) -> np.ndarray:
        """Drop about a third of the units of these groups at random, and more of wide groups.

        The remaining width has no divisor in common with the original one, so that code that
        needs a multiple of something (heads, groups) fails. The cut copy of a large network,
        whose groups are wide, is small and fast. Returned as by `ChannelGraph.alive`.
        """
        rng = np.random.default_rng(0)
        alive = np.ones(self.graph.units + 1, dtype=bool)
        for group in (self.graph[name] for name in names):
            share = rng.uniform(0.2, 0.45) if group.width < WIDE else rng.uniform(0.6, 0.75)
            most = max(1, int(group.width * share))
            count = next(
                n
                for n in (*range(most, 0, -1), 1)
                if n == 1 or gcd(group.width - n, group.width) == 1
            )
            alive[group.first + rng.choice(group.width, size=count, replace=False)] = False
        return alive

    def _difference(
        self, whole: nn.Module, small: nn.Module, alive: np.ndarray, exact: bool, double: bool
    ) -> _Difference | None:
        """Where the cut network first differs from the masked one; None where it does not."""
        layers = {layer.weight: layer for layer in self.graph.layers}
        tolerance = 1e-7 if double else 1e-4
        run = partial(in_double, self.evaluate) if double else self.evaluate
        got = Recorder(small, layers, alive)
        try:
            with torch.no_grad(), private_random(), drawn_again(), got:
                made = run(small)
        except Exception as error:
            if double:
                raise _Unable from error
            return _Difference(len(got.calls))  # any error of a cut network is due to the cut
        wanted = MaskedRun(whole, layers, alive, got.seen, tolerance if exact else None)
        try:
            with torch.no_grad(), private_random(), drawn_again(), wanted:
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

    def _suspects(self, place: int) -> set[str]:
        """The groups that the failing call reads, or that the call before it issues."""
        calls = self.calls
        layers = {layer.weight: layer for layer in self.graph.layers}
        met = [layers[name].in_units for name in calls[place : place + 1] if name in layers]
        if place >= len(calls) or not (np.concatenate([[FIXED], *met]) != FIXED).any():
            met += [layers[name].out_units for name in calls[place - 1 : place] if name in layers]
        units = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *met]))
        return {
            group.name
            for group in self.graph.groups
            if ((units >= group.first) & (units < group.first + group.width)).any()
        }


@dataclass(frozen=True, slots=True)
class _Difference:
    """The index of a layer call; `rounding` says that rounding could explain the difference."""

    place: int
    rounding: bool = False


class _Unable(Exception):
    """The network does not run in float64."""
