"""How often each unit is zero where dense layers read it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.data.batches import batch_size
from prunelab.data.private_random import private_steps
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph
from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.graph.trace import copy_of
from prunelab.loops.batch import checked, guarded
from prunelab.values import Progress


@private_steps
@torch.no_grad()
def counting_zeros(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    expected: int,
) -> Generator[Progress, None, np.ndarray]:
    """The share of zeros among the values of each unit, in evaluation mode [units of the graph].

    Over images, positions, channels and the dense layers that read the unit; 0 where none does.
    """
    model = copy_of(model).eval()
    watch, images = _Zeros(model, graph), 0
    for batch in guarded(batches):
        with watch:
            checked(forward, model, batch)
        images += batch_size(batch)
        yield Progress(images, max(expected, images), "counting zeros")
    return watch.zeros / np.maximum(1, watch.values)


class _Zeros(Watch):
    """Counts zeros and values of each unit at the inputs of dense layers [units]."""

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        super().__init__(model)
        self.zeros, self.values = np.zeros(graph.units), np.zeros(graph.units)
        self._units = {layer.weight: layer.in_units for layer in graph.layers if layer.dense}

    def on_call(self, call: Call, out: Tensor) -> None:
        """Count one layer's input."""
        units = self._units.get(call.name)
        if units is None or not call.x.numel():
            return
        channels = (call.x == 0).movedim(1, 0).flatten(1)
        mine = units != FIXED
        zeros = channels.sum(1).cpu().numpy()[mine]
        self.zeros += np.bincount(units[mine], zeros, minlength=len(self.zeros))
        each = np.bincount(units[mine], minlength=len(self.values))
        self.values += channels.shape[1] * each
