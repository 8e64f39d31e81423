"""The graph of a network with factorised layers, derived from that of the network before.

A trace of the factorised network finds the same; deriving it keeps the names, the unit numbers and
what was frozen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.errors import IllegalPlan
from prunelab.graph.channels.channel_graph import ChannelGraph, ChannelGroup, Layer
from prunelab.graph.surgery.factorisation import (
    Factors,
    Kind,
    composed,
    factorised,
    factors_like,
    plain_factors,
)
from prunelab.values import FrozenMap, WidthPlan, parts_of


def factorised_graph(
    graph: ChannelGraph,
    model: nn.Module,
    layers: Mapping[str, Kind],
    run: Callable[[nn.Module], object],
) -> tuple[nn.Module, ChannelGraph]:
    """`model` with `plain_factors` of these layers, and its graph, derived from that of `model`.

    Groups keep their names and unit numbers. Behind each factorised layer "conv" stands the new
    group "conv.0", whose width is the full rank.

    Parameters
    ----------
    graph, model
        A network and its graph; both stay as they are.
    layers
        As for `factorised`.
    run
        Runs a network on an input, once, for the number of positions between the convolutions.

    Raises
    ------
    IllegalPlan
        For a layer that cannot be factorised.
    """
    for name in layers:
        known = [layer for layer in graph.layers if layer.name == name]
        if not all(map(is_plain, known)):
            raise IllegalPlan(f"{name} cannot be factorised: its weight is used in other ways too.")
    made = factorised(model, layers, lambda name, w: plain_factors(w, layers[name]), share=True)
    order = sorted(layers, key=len)  # a layer before its parts
    names = [f"{name}.{part}" for name in order for part in (0, 1)]
    try:
        seen = _positions(made, names, run)
    except Exception as error:
        raise IllegalPlan(
            f"{', '.join(order)} cannot be factorised: the network does not run with an "
            f"nn.Sequential in the place of each ({type(error).__name__}: {error})."
        ) from error
    for name in order:
        if not seen[f"{name}.0"]:
            raise IllegalPlan(f"{name} cannot be factorised: it is not called as a module.")
        ratio = seen[f"{name}.0"] / seen[f"{name}.1"]
        graph = _split(graph, name, layers[name], ratio)
    return made, replace(graph, network=weakref.ref(made))


class Forms:
    """A network with any of its layers factorised, at full rank, and its graph; each made once.

    Parameters
    ----------
    model, graph
        The network and its graph.
    run
        As for `factorised_graph`.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, run: Callable[[nn.Module], object]
    ) -> None:
        self._run = run
        self._made: dict[tuple[tuple[str, Any], ...], tuple[nn.Module, ChannelGraph]]
        self._made = {(): (model, graph)}

    def of(self, factors: Mapping[str, Any]) -> tuple[nn.Module, ChannelGraph]:
        """The network with these layers factorised, and its graph.

        Raises `IllegalPlan` for a layer that cannot be factorised.
        """
        key = tuple(sorted(factors.items()))
        if key not in self._made:
            model, graph = self._made[()]
            self._made[key] = factorised_graph(graph, model, factors, self._run)
        return self._made[key]

    def graph(self, factors: Mapping[str, Any]) -> ChannelGraph:
        """The graph of the network with these layers factorised."""
        return self.of(factors)[1]


def factorised_like(
    model: nn.Module, graph: ChannelGraph, like: nn.Module, like_graph: ChannelGraph
) -> nn.Module:
    """A copy of `model` whose layers are factorised as in `like`, which was pruned from it.

    What stands between two parts means the same in both networks, see `factors_like`.

    Parameters
    ----------
    model
        The network; it stays as it is.
    graph
        That of the result.
    like, like_graph
        A network with more factorised layers, and its graph.
    """
    kinds: Mapping[str, Any] = graph.factors
    there = dict(model.named_modules())
    more = {name: kind for name, kind in kinds.items() if f"{name}.0" not in there}

    def make(name: str, weight: Tensor) -> Factors:
        ours, theirs = (_inside(g, f"{name}.1")[-1].out_units for g in (graph, like_graph))
        outputs = torch.from_numpy(np.flatnonzero(np.isin(ours, theirs)))
        units = torch.tensor(like_graph[f"{name}.0"].units)
        second = composed(like, f"{name}.1", like_graph.factors)
        return factors_like(weight, more[name], second, outputs, units)

    return factorised(model, more, make)


def is_plain(layer: Layer) -> bool:
    """Whether a layer's weight is used as that of a convolution over an image's channels only."""
    return layer.rows is None and layer.other == (0, 0) and not layer.computed


def _positions(
    model: nn.Module, names: list[str], run: Callable[[nn.Module], object]
) -> dict[str, int]:
    """How many output positions each of these modules has in one run."""
    seen = dict.fromkeys(names, 0)
    handles = []
    for name in names:

        def count(_: nn.Module, __: object, out: Tensor, name: str = name) -> None:
            seen[name] += out.numel() // out.shape[1]

        handles.append(model.get_submodule(name).register_forward_hook(count))
    try:
        run(model)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _split(graph: ChannelGraph, name: str, kind: Kind, positions: float) -> ChannelGraph:
    """The graph in which a layer is two; the first has `positions` times as many positions."""
    whole = graph.layer(name)
    first, second = f"{name}.0", f"{name}.1"
    height, width = whole.kernel
    kernels = ((height, 1), (1, width)) if kind == "spatial" else (whole.kernel, (1, 1))
    entries = [len(whole.in_units) * prod(kernels[0]), len(whole.out_units) * prod(kernels[1])]
    between = graph.units + np.arange(min(entries))
    layers = []
    for layer in graph.layers:
        if layer is not whole:
            layers.append(layer)
            continue
        seen, applied = round(positions * layer.positions), round(positions * layer.applied)
        layers += [
            replace(
                layer, name=first, weight=f"{first}.weight", out_units=between, norm=None,
                kernel=kernels[0], positions=seen, applied=applied,
            ),
            replace(
                layer, name=second, weight=f"{second}.weight", in_units=between, kernel=kernels[1]
            ),
        ]  # fmt: skip
    own = {f"{name}.weight", f"{name}.bias"}
    slots = {key: units for key, units in graph.slots.items() if key[0] not in own}
    for old, new in (
        ((f"{name}.weight", 1), (f"{first}.weight", 1)),
        ((f"{name}.weight", 0), (f"{second}.weight", 0)),
        ((f"{name}.bias", 0), (f"{second}.bias", 0)),
    ):
        if old in graph.slots:
            slots[new] = graph.slots[old]
    slots |= {(f"{first}.weight", 0): between, (f"{second}.weight", 1): between}
    sizes = {key: size for key, size in graph.sizes.items() if key not in own}
    sizes |= {
        f"{part}.weight": len(between) * size
        for part, size in zip((first, second), entries, strict=True)
    }
    if f"{name}.bias" in graph.sizes:
        sizes[f"{second}.bias"] = graph.sizes[f"{name}.bias"]
    return replace(
        graph,
        groups=_groups(graph, name, len(between)),
        layers=tuple(layers),
        slots=slots,
        sizes=sizes,
        couplings=tuple(
            replace(c, a=second if c.a == name else c.a, b=second if c.b == name else c.b)
            for c in graph.couplings
        ),
        factors={**graph.factors, name: kind},
    )


def _groups(graph: ChannelGraph, name: str, rank: int) -> tuple[ChannelGroup, ...]:
    """The groups once layer `name` is two, the new one just before those that it makes."""
    first, second = f"{name}.0", f"{name}.1"
    new = ChannelGroup(
        first, rank, tuple(range(rank)), (first,), (second,), "", graph.units, residual=False,
        step=graph.round_to,
    )  # fmt: skip
    groups: list[ChannelGroup] = []
    for group in graph.groups:
        if name in group.producers and new not in groups:
            groups.append(new)
        groups.append(
            replace(
                group,
                producers=tuple(second if p == name else p for p in group.producers),
                consumers=tuple(first if c == name else c for c in group.consumers),
            )
        )
    return tuple(groups if new in groups else [*groups, new])


def extended(plan: WidthPlan, graph: ChannelGraph) -> WidthPlan:
    """The same plan for the `graph` of the network with more factorised layers, at full rank.

    At the widths of `plan`: the kernel of a layer that lost channels has a lower rank.
    """
    new = sorted((g.name for g in graph.groups if g.name not in plan.kept), key=len)
    kept = {group.name: plan.kept.get(group.name, group.units) for group in graph.groups}
    for name in new:  # a layer before its parts
        alive = graph.alive(WidthPlan(FrozenMap(kept), graph))
        above = name.removesuffix(".0")
        first, second = _inside(graph, name), _inside(graph, f"{above}.1")
        into = alive[first[0].in_units].sum() * prod(prod(layer.kernel) for layer in first)
        out = alive[second[-1].out_units].sum() * prod(prod(layer.kernel) for layer in second)
        kept[name] = kept[name][: min(into, out)]
    return WidthPlan(FrozenMap(kept), graph)


def _inside(graph: ChannelGraph, name: str) -> list[Layer]:
    """The layer `name`, or the layers that it has become."""
    return [graph.layer(part) for part in parts_of((x.name for x in graph.layers), name)]
