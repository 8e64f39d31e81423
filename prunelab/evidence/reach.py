"""Which layers images reach: a head that runs in training only is measured by none of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunelab.data.private_random import private_random
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.labels.layer_calls import Watch
from prunelab.graph.trace import state_preserved
from prunelab.loops.batch import checked

UNREACHED = "no training image reaches what reads it, so it cannot be measured"


def reached(
    model: nn.Module, graph: ChannelGraph, forward: Callable[[nn.Module, Any], Any], batch: Any
) -> frozenset[str]:
    """The layers of `graph` that run on a batch, in evaluation mode."""
    watch = Watch(model)
    with state_preserved(model), private_random(), torch.no_grad():
        model.eval()
        with watch:
            checked(forward, model, batch)
    return frozenset(layer.name for layer in graph.layers if layer.weight in watch.calls)


def where_reached(graph: ChannelGraph, layers: Collection[str]) -> ChannelGraph:
    """`graph` with consumers among `layers` alone; a group without any left is frozen."""
    groups = []
    for group in graph.groups:
        consumers = tuple(name for name in group.consumers if name in layers)
        lost = bool(group.consumers) and not consumers
        why = group.why or (UNREACHED if lost else "")
        groups.append(replace(group, consumers=consumers, why=why))
    return replace(graph, groups=tuple(groups))
