"""The probe: cut a network, run it beside the masked one, and compare layer by layer.

Network code that stores channel counts as integers cannot be cut there, and looks like any other
in a trace. May import calls, channels, surgery.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from prunelab.calls import Call, Watch
from prunelab.channels import FIXED, ChannelGraph, Layer
from prunelab.coupling.operations import aten
from prunelab.surgery import copy_with, cut_to

Run = Callable[[nn.Module], Any]
HARD_CODED = "the network's code hard-codes its width"


def probed(
    model: nn.Module, graph: ChannelGraph, run: Run, train: Run | None = None
) -> ChannelGraph:
    """`graph` with the groups frozen that cannot be cut as they should be.

    `run` runs a network in evaluation mode, `train`, where given, in training mode: there the cut
    network has only to run. A failure is bisected down to single groups.
    """
    reasons: dict[str, str] = {}
    pending = [[group.name for group in graph.groups if group.prunable]]
    while pending:
        some = pending.pop()
        if not some or _survives(model, graph, some, run, train):
            continue
        if len(some) == 1:
            reasons[some[0]] = HARD_CODED
        else:
            half = len(some) // 2
            pending += [some[:half], some[half:]]
    frozen = graph.freeze(reasons)
    if reasons and not _survives(
        model, frozen, [group.name for group in frozen.groups if group.prunable], run, train
    ):  # groups that fail only together
        return _shrunk(model, frozen, run, train)
    return frozen


def _shrunk(model: nn.Module, graph: ChannelGraph, run: Run, train: Run | None) -> ChannelGraph:
    """Groups added one after the other, and frozen where the cut fails with those before."""
    good: list[str] = []
    for group in graph.groups:
        if group.prunable:
            if _survives(model, graph, [*good, group.name], run, train):
                good.append(group.name)
            else:
                graph = graph.freeze({group.name: HARD_CODED})
    return graph


def _thinned(graph: ChannelGraph, names: Sequence[str]) -> np.ndarray:
    """A third of the units of these groups dropped, at random, in odd and even counts.

    As `ChannelGraph.alive` gives it.
    """
    rng = np.random.default_rng(0)
    alive = np.ones(graph.units + 1, dtype=bool)
    for group in (graph[name] for name in names):
        count = min(group.width - 1, max(1, int(group.width * rng.uniform(0.2, 0.45))))
        alive[group.first + rng.choice(group.width, size=count, replace=False)] = False
    return alive


def _survives(
    model: nn.Module, graph: ChannelGraph, names: Sequence[str], run: Run, train: Run | None
) -> bool:
    alive = _thinned(graph, names)
    exact = not any(graph[name].inexact for name in names)
    try:
        small = cut_to(model, graph, alive, share=True)
        for double in (False, True):
            # float32 rounding is amplified by deep random networks: doubt is settled in float64
            if double:
                doubled = cut_to(model, graph, alive).double()
            if _agree(model, doubled if double else small, graph, alive, run, double, exact):
                break
        else:
            return False
        if train is not None:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                train(small)
    except Exception:  # whatever its forward raises, it is the cut that made it
        return False
    return True


def _agree(
    model: nn.Module,
    small: nn.Module,
    graph: ChannelGraph,
    alive: np.ndarray,
    run: Run,
    double: bool,
    exact: bool,
) -> bool:
    """Whether every layer and output of the cut network is that of the masked one."""
    layers = {layer.weight: layer for layer in graph.layers}
    whole = copy_with(model, {}).double() if double else model
    marks = []
    for net, masks in ((whole, alive), (small, None)):
        watch = _Masked(net, layers, alive, masks is not None)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), watch:
            out = in_double(run, net) if double else run(net)
        leaves = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        marks.append((leaves, watch.seen))
    (want, wanted), (got, gotten) = marks
    if [x.shape for x in got] != [x.shape for x in want] or len(wanted) != len(gotten):
        return False
    if not exact:
        return True
    tolerance = 1e-7 if double else 1e-4
    return all(
        a[0] == b[0] and close(a[1], b[1], tolerance) for a, b in zip(gotten, wanted, strict=True)
    ) and all(close(a, b, tolerance) for a, b in zip(got, want, strict=True))


class _Masked(Watch):
    """Notes what each layer gives, channel by channel; with `masks`, zeroes what was dropped.

    Masking inputs as they are read, rather than columns of weights, is the definition itself.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, Layer], alive: np.ndarray, masks: bool
    ) -> None:
        super().__init__(model)
        self.layers, self.alive, self.masks = layers, alive, masks
        self.seen: list[tuple[str, Tensor]] = []

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Zero the dropped inputs of a dense layer."""
        call = self.read(func, args) if self.masks else None
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
        """Note the sums of what comes out, and of its squares, for each channel that stays."""
        layer = self.layers.get(call.name)
        if layer is None or (layer.in_units == FIXED).all() and (layer.out_units == FIXED).all():
            return  # it may work on the rows of channels that are gone
        if self.masks and out.shape[1] == len(layer.out_units):
            stays = torch.from_numpy(np.flatnonzero(self.alive[layer.out_units]))
            out = out.index_select(1, stays.to(out.device))
        axes = [axis for axis in range(out.ndim) if axis != 1]
        self.seen.append((call.name, torch.stack([out.sum(axes), out.square().sum(axes)])))


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


