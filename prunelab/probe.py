"""The probe: cut a network, run it beside the masked one, and compare layer by layer.

Network code that stores channel counts as integers cannot be cut there, and looks like any other
in a trace. May import calls, channels, surgery.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from prunelab.calls import Call, Watch
from prunelab.channels import FIXED, ChannelGraph, Layer
from prunelab.coupling.operations import aten
from prunelab.errors import TraceError
from prunelab.surgery import copy_with, cut_to

Run = Callable[[nn.Module], Any]
EVERYWHERE = -2  # a place before any other
HARD_CODED = "the network's code hard-codes its width"


def probed(
    model: nn.Module,
    graph: ChannelGraph,
    run: Run,
    train: Run | None = None,
    deadline: float | None = None,
) -> ChannelGraph:
    """`graph` with the groups frozen that cannot be cut as they should be.

    `run` runs a network in evaluation mode, `train`, where given, in training mode: there the cut
    network has only to run. The place where the cut network first differs says which groups to
    suspect; where it does not, a failure is bisected. Raises `TraceError` past `deadline` (of
    `time.monotonic`).
    """
    probe = _Probe(model, graph, run, train, deadline)
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
    """Cuts some groups of a network and says where that fails."""

    model: nn.Module
    graph: ChannelGraph
    evaluate: Run
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
        small = cut_to(self.model, graph, alive, share=True)
        found = self._difference(self.model, small, alive, exact, double=False)
        if found is not None and found.rounding:
            # float32 rounding is amplified by deep random networks: doubt is settled in float64
            whole, doubled = copy_with(self.model, {}), cut_to(self.model, graph, alive)
            with suppress(_Unable):
                found = self._difference(whole.double(), doubled.double(), alive, exact, True)
        if found is not None:
            return found.place, self._suspects(found)
        if self.train is not None:
            try:
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    self.train(small)
            except Exception:  # whatever its forward raises, it is the cut that made it
                return EVERYWHERE, set()
        return None

    def bisected(self, names: list[str]) -> tuple[list[str], list[str]]:
        """Those of the groups that can be cut together, and the others."""
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
        """As `bisected`, for groups that fail only together: one is added after the other."""
        good: list[str] = []
        for name in names:
            (good if self.failure([*good, name]) is None else bad).append(name)
        return good, bad

    def _thinned(self, names: Sequence[str]) -> np.ndarray:
        """About a third of the units of these groups dropped, at random.

        What is left has no divisor in common with what there was: code that wants a multiple of
        something (heads, groups) does not get it. As `ChannelGraph.alive` gives it.
        """
        rng = np.random.default_rng(0)
        alive = np.ones(self.graph.units + 1, dtype=bool)
        for group in (self.graph[name] for name in names):
            most = max(1, int(group.width * rng.uniform(0.2, 0.45)))
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
        """Where the cut network first differs from the whole one, masked."""
        layers = {layer.weight: layer for layer in self.graph.layers}
        tolerance = 1e-7 if double else 1e-4
        outputs = []
        wanted = _Masked(whole, layers, alive)
        watches: tuple[_Masked | _Compared, ...] = (
            wanted,
            _Compared(small, layers, wanted.seen, tolerance if exact else None),
        )
        for net, watch in zip((whole, small), watches, strict=True):
            try:
                with torch.no_grad(), torch.random.fork_rng(devices=[]), watch:
                    out = in_double(self.evaluate, net) if double else self.evaluate(net)
            except Exception as error:
                if double and net is whole:
                    raise _Unable from error
                # whatever the forward of a cut network raises, it is the cut that made it
                rounding = isinstance(error, _Differs)
                return _Difference(len(watch.seen), [name for name, _ in wanted.seen], rounding)
            outputs.append([x for x in tree_leaves(out) if isinstance(x, Tensor)])
        want, got = outputs
        alike = [x.shape for x in want] == [x.shape for x in got]
        if alike and (
            not exact or all(close(a, b, tolerance) for a, b in zip(got, want, strict=True))
        ):
            return None
        return _Difference(len(wanted.seen), [name for name, _ in wanted.seen], alike)

    def _suspects(self, found: _Difference) -> set[str]:
        """The groups that the call where it fails reads, or the one before it makes."""
        calls, place = found.calls, found.place
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
    """The number of a layer call among all `calls`; `rounding` could be all there is to it."""

    place: int
    calls: list[str]
    rounding: bool


class _Unable(Exception):
    """The network does not run in float64."""


class _Differs(Exception):
    """A layer of the cut network gives other numbers than it should."""


class _Masked(Watch):
    """Zeroes what each layer reads of dropped units, and notes what it gives.

    Masking inputs as they are read, rather than columns of weights, is the definition itself.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer], alive: np.ndarray) -> None:
        super().__init__(model)
        self.layers, self.alive = layers, alive
        self.seen: list[tuple[str, Tensor]] = []

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Zero the dropped inputs of a dense layer."""
        call = self.read(func, args)
        layer = self.layers.get(call.name) if call is not None else None
        if call is not None and layer is not None and layer.dense:
            gone = np.flatnonzero(~self.alive[layer.in_units])
            if len(gone) and call.x.shape[1] == len(layer.in_units):
                at = torch.from_numpy(gone).to(call.x.device)
                x = call.x.index_fill(1, at, 0.0)
                place = 1 if func.overloadpacket is aten.addmm else 0
                args = (*args[:place], x, *args[place + 1 :])
        return func(*args, **kwargs)

    def on_call(self, call: Call, out: Tensor) -> None:
        """Note the sums of what comes out, for each channel that stays."""
        layer = self.layers.get(call.name)
        if layer is not None and out.shape[1] == len(layer.out_units):
            stays = torch.from_numpy(np.flatnonzero(self.alive[layer.out_units]))
            if len(stays) < out.shape[1]:
                out = out.index_select(1, stays.to(out.device))
        self.seen.append((call.name, _sums(out)))


class _Compared(Watch):
    """Compares what each layer gives with what is `wanted`, and ends at the first difference."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        wanted: list[tuple[str, Tensor]],
        tolerance: float | None,
    ) -> None:
        super().__init__(model)
        self.layers, self.wanted, self.tolerance = layers, wanted, tolerance
        self.seen: list[str] = []

    def on_call(self, call: Call, out: Tensor) -> None:
        """Raise at a difference."""
        name, sums = self.wanted[len(self.seen)]
        layer = self.layers.get(name)
        # a layer that works on the rows of channels gives fewer of them
        rows = layer is None or bool((layer.in_units == FIXED).all())
        rows = rows and bool(layer is None or (layer.out_units == FIXED).all())
        if name != call.name or (not rows and out.shape[1] != sums.shape[1]):
            raise LookupError(f"{call.name} is called instead of {name}, or in another width")
        if self.tolerance is not None and not rows and not close(_sums(out), sums, self.tolerance):
            raise _Differs
        self.seen.append(name)


def _sums(out: Tensor) -> Tensor:
    """The sum of each channel, and that of its squares [2, channels]."""
    axes = [axis for axis in range(out.ndim) if axis != 1]
    return torch.stack([out.sum(axes), out.square().sum(axes)])


def in_double(run: Run, net: nn.Module) -> Any:
    """Run a network of float64 on inputs made float64 on their way in, as are new tensors."""
    hook = net.register_forward_pre_hook(
        lambda _, args, kwargs: tree_map(
            lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x,
            (args, kwargs),
        ),
        with_kwargs=True,
    )
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return run(net)
    finally:
        torch.set_default_dtype(usual)
        hook.remove()


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two outputs are the same up to a relative error."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return True
    a, b = torch.nan_to_num(a.double()), torch.nan_to_num(b.double())
    return bool((a - b).norm() <= tolerance * max(1e-12, float(b.norm())))
