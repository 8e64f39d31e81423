"""From labels to groups: components of coupled labels, grouped by the layers that issued them."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph, ChannelGroup, Layer
from prunelab.graph.channels.couplings import GATE, distinct, find_couplings
from prunelab.graph.labels.axis_parts import PARTS
from prunelab.graph.labels.label_mode import FROZEN, LayerTrace, Trace, layer_name

ALONE = "squeeze() would remove the axis of its channels if no other were left"


def build_graph(
    model: nn.Module, trace: Trace, input_shapes: tuple[tuple[int, ...], ...], itemsize: int
) -> ChannelGraph:
    """The channel graph of a trace: components of labels, grouped by their sets of producers.

    `input_shapes` are those of the traced inputs, `itemsize` the bytes of an activation.
    """
    component = _components(trace)
    layers = sorted(trace.layers.values(), key=lambda layer: layer.order)
    reasons = _reasons(trace, component)
    bent = set(np.unique(component[_joined(trace.inexact)]).tolist())
    makers, maker = _makers(component, layers)
    _keep_two(trace, component, makers, maker, reasons)
    _apart(trace, component, makers, maker)
    joined = _joining(trace, layers, {GATE})
    summed = _joining(trace, layers, {GATE, PARTS})
    readers = _readers(component, maker, layers)
    single = {layer_name(x.name) for x in layers if not x.kernel and x.positions == 1}

    number = np.full(trace.count, FIXED, dtype=np.int64)  # root -> graph-wide unit
    groups: list[ChannelGroup] = []
    sums: set[ChannelGroup] = set()
    taken: dict[str, int] = {}
    first = 0
    # Roots are in the order of the layers and of their channels.
    order, starts = np.unique(maker, return_index=True)
    for made in order[np.argsort(starts)].tolist():
        if not makers[made]:
            continue
        names, roots = makers[made], np.flatnonzero(maker == made)
        taken[names[0]] = taken.get(names[0], 0) + 1
        suffix = f"#{taken[names[0]]}" if taken[names[0]] > 1 else ""
        number[roots] = np.arange(first, first + len(roots))
        why = next((reasons[root] for root in roots.tolist() if root in reasons), "")
        if not why and len(roots) == 1:
            why = "it has one unit, and at least one must be kept"
        groups.append(
            ChannelGroup(
                name=names[0] + suffix,
                width=len(roots),
                units=tuple(range(len(roots))),
                producers=names,
                consumers=tuple(readers.get(made, ())),
                why=why,
                first=first,
                residual=not joined.isdisjoint(roots.tolist()),
                inexact=not bent.isdisjoint(roots.tolist()),
                fully_connected=set(names) <= single,
            )
        )
        if not summed.isdisjoint(roots.tolist()):
            sums.add(groups[-1])
        first += len(roots)
    inputs = _block_inputs(groups, sums)
    groups = [replace(group, residual=group.residual or group in inputs) for group in groups]

    unit = number[component]  # label -> graph-wide unit
    unit[FROZEN] = FIXED
    slots = {key: unit[labels.numpy()] for key, labels in trace.slots.items()}
    built = [
        Layer(
            name=layer_name(layer.name),
            weight=layer.name,
            out_units=unit[layer.out.numpy()],
            in_units=unit[layer.into.numpy()],
            kernel=layer.kernel,
            conv_groups=layer.groups,
            in_axis=layer.in_axis,
            positions=layer.positions,
            applied=layer.applied,
            norm=layer.norm,
            calls=layer.calls,
            computed=layer.computed,
            rows=None if layer.rows is None else unit[layer.rows.numpy()],
            other=layer.other,
            added=tuple(sorted(layer.added)),
        )
        for layer in layers
    ]
    seen = {layer.name for layer in built}
    unseen = tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and name not in seen
    )
    return ChannelGraph(
        tuple(groups),
        tuple(built),
        slots,
        unseen,
        input_shapes,
        itemsize,
        {name: parameter.numel() for name, parameter in model.named_parameters()},
        tuple(sorted(trace.norms)),
        {name: unit[labels.numpy()] for name, labels in trace.bare.items()},
        parts=tuple((unit[labels.numpy()], why) for labels, why in trace.parts),
        network=weakref.ref(model),
        couplings=find_couplings(trace, unit, [(group.name, group.first) for group in groups]),
    )


def _components(trace: Trace, without: Collection[str] = ()) -> np.ndarray:
    """The component of each label [count], identified by its smallest label.

    Couplings by the operations `without` do not join.
    """
    from scipy.sparse import coo_array  # imported here because it is slow to import
    from scipy.sparse.csgraph import connected_components

    edges = [edge for edge in trace.edges if edge.why not in without]
    if not edges:
        return np.arange(trace.count)
    a = np.concatenate([edge.a.numpy() for edge in edges])
    b = np.concatenate([edge.b.numpy() for edge in edges])
    links = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(trace.count, trace.count))
    _, raw = connected_components(links, directed=False)
    smallest = np.full(raw.max() + 1, trace.count)
    np.minimum.at(smallest, raw, np.arange(trace.count))
    return smallest[raw]


def _joined(labels: Sequence[Tensor]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=np.int64), *(some.numpy() for some in labels)])


def _reasons(trace: Trace, component: np.ndarray) -> dict[int, str]:
    """The first reason found for each component that must stay."""
    which = np.repeat(np.arange(len(trace.frozen)), [len(some) for some, _ in trace.frozen])
    roots, first = np.unique(
        component[_joined([some for some, _ in trace.frozen])], return_index=True
    )
    said = which[first].tolist()
    return {root: trace.frozen[at][1] for root, at in zip(roots.tolist(), said, strict=True)}


def _makers(
    component: np.ndarray, layers: Sequence[LayerTrace]
) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """The sets of producers, and for each component [count] its set."""
    sets: list[tuple[str, ...]] = [()]
    maker = np.zeros(len(component), dtype=np.int64)
    for layer in layers:
        roots = _issued(layer, component)
        before, which = np.unique(maker[roots], return_inverse=True)
        maker[roots] = len(sets) + which
        sets += [(*sets[old], layer_name(layer.name)) for old in before.tolist()]
    return sets, maker


def _keep_two(
    trace: Trace,
    component: np.ndarray,
    makers: list[tuple[str, ...]],
    maker: np.ndarray,
    reasons: dict[int, str],
) -> None:
    """Keep two positions of the axes in `trace.several`, by keeping one unit in a set of its own.

    At least one unit stays of every set, so the last unit of an axis of one set gets another.
    """
    for labels in trace.several:
        roots, counts = np.unique(component[labels[:, 0].numpy()], return_counts=True)
        sets = np.unique(maker[roots])
        held = any(root in reasons for root in np.flatnonzero(np.isin(maker, sets)).tolist())
        if held or len(sets) > 1 or counts.min() > 1 or FROZEN in roots:
            continue
        if len(roots) == np.count_nonzero(maker == sets[0]):
            makers.append(makers[sets[0]])
            maker[roots[-1]] = len(makers) - 1
        reasons[int(roots[-1])] = ALONE


def _apart(
    trace: Trace, component: np.ndarray, makers: list[tuple[str, ...]], maker: np.ndarray
) -> None:
    """Give each part that is taken by numbers sets of its own: one unit at least stays of it."""
    for labels, _ in trace.parts:
        roots = np.unique(component[labels[labels != FROZEN].numpy()])
        for made in np.unique(maker[roots]).tolist():
            inside = roots[maker[roots] == made]
            if made and len(inside) < np.count_nonzero(maker == made):
                makers.append(makers[made])
                maker[inside] = len(makers) - 1


def _joining(trace: Trace, layers: Sequence[LayerTrace], without: Collection[str]) -> set[int]:
    """The components in which several dense layers meet, other than by the operations `without`.

    Squeeze-and-excitation multiplies: its gate is no second addend. Nor does a split into equal
    parts, as in a channel shuffle, add anything. Layers that read the same channels, such as the
    parallel kernels of RepVGG, count as one.
    """
    component, parts = _components(trace), _components(trace, without)
    issued: dict[bytes, list[np.ndarray]] = {}
    for layer in layers:
        if layer.groups == 1:
            source = distinct(component[layer.into.numpy()]).tobytes()
            issued.setdefault(source, []).append(_issued(layer, parts))
    dense = np.zeros(trace.count, dtype=np.int64)
    for roots in issued.values():
        dense[distinct(np.concatenate(roots))] += 1
    return set(component[dense > 1].tolist())


def _issued(layer: LayerTrace, component: np.ndarray) -> np.ndarray:
    return distinct(component[layer.out[layer.out != FROZEN].numpy()])


def _block_inputs(
    groups: Sequence[ChannelGroup], sums: Collection[ChannelGroup]
) -> set[ChannelGroup]:
    """The groups that a block adds to itself through a projection, as ResNet-50 does its stem's.

    One layer that reads them issues the sum, and whatever else reads them leads to it.
    """
    made: dict[str, list[ChannelGroup]] = {}
    for group in groups:
        for producer in group.producers:
            made.setdefault(producer, []).append(group)

    def leads_there(readers: list[str], there: ChannelGroup, start: ChannelGroup) -> bool:
        reached, met = False, {start}
        while readers:
            issued = made.get(readers.pop(), [])
            if not issued:
                return False
            for group in issued:
                if group is there:
                    reached = True
                elif group not in met:
                    if not group.consumers:
                        return False
                    met.add(group)
                    readers.extend(group.consumers)
        return reached

    return {
        group
        for group in groups
        for projection in group.consumers
        for stream in made.get(projection, [])
        if stream in sums and stream is not group
        if leads_there([r for r in group.consumers if r not in stream.producers], stream, group)
    }


def _readers(
    component: np.ndarray, maker: np.ndarray, layers: Sequence[LayerTrace]
) -> dict[int, list[str]]:
    """For each set of producers, the dense layers that read its channels."""
    read: dict[int, list[str]] = {}
    for layer in layers:
        if layer.groups == 1:
            roots = component[layer.into[layer.into != FROZEN].numpy()]
            for made in distinct(maker[roots]).tolist():
                read.setdefault(made, []).append(layer_name(layer.name))
    return read
