"""Which layers images reach: a head that runs in training only is measured by none of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunelab.data.private_random import private_random
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.labels.layer_calls import Watch
from prunelab.graph.trace import state_preserved
from prunelab.loops.batch import checked, guarded

UNREACHED = "no training image reaches what reads it, so it cannot be measured"


def reached(
    model: nn.Module,
    graph: ChannelGraph,
    forward: Callable[[nn.Module, Any], Any],
    batches: Iterable[Any],
) -> frozenset[str]:
    """The layers of `graph` that run on batches in evaluation mode.

    Further batches are read while layers are missing that ran in evaluation mode when the graph
    was traced: which layers run may depend on the images.
    """
    due = {layer.weight for layer in graph.layers if layer.calls}
    watch = Watch(model)
    with state_preserved(model), private_random(), torch.no_grad():
        model.eval()
        for batch in guarded(batches):
            with watch:
                checked(forward, model, batch)
            if due <= {*watch.calls}:
                break
    ran = {*watch.calls}
    return frozenset(layer.name for layer in graph.layers if layer.weight in ran)


def where_reached(graph: ChannelGraph, layers: Collection[str]) -> ChannelGraph:
    """`graph` with consumers among `layers` alone; a group without any left is frozen."""
    groups = []
    for group in graph.groups:
        consumers = tuple(name for name in group.consumers if name in layers)
        lost = bool(group.consumers) and not consumers
        why = group.why or (UNREACHED if lost else "")
        groups.append(replace(group, consumers=consumers, why=why))
    return replace(graph, groups=tuple(groups))
