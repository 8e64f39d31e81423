"""Where the time of one run goes: layer by layer, and what that tells of other widths."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.cost.counting import layer_costs
from prunelab.data.private_random import private_random
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.graph.trace import undisturbed
from prunelab.loops.batch import device_of
from prunelab.values import FrozenMap, WidthPlan


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Measured seconds of one run of a network that keeps `plan`.

    `layers` are those of every convolution and linear layer, `rest` all else together; `costs`
    are what the layers cost there.
    """

    plan: WidthPlan
    costs: FrozenMap
    layers: FrozenMap
    rest: float
    device: str

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return sum(self.layers.values()) + self.rest

    def scaled(self, graph: ChannelGraph, plan: WidthPlan) -> dict[str, float]:
        """Seconds of each layer at other widths, an estimate; "" is the rest.

        A layer's time is taken to follow its multiply-adds, the rest the size of the activations.
        Narrow layers use a processor less well, so that a cut network is often slower than this.
        `graph` is that of the original network.
        """
        before, after = self.costs, layer_costs(graph, plan)
        found = {
            name: seconds * after[name].macs / max(1, before[name].macs)
            for name, seconds in self.layers.items()
        }
        sizes = [sum(cost.activation_bytes for cost in costs.values()) for costs in (before, after)]
        found[""] = self.rest * sizes[1] / max(1, sizes[0])
        return found

    def at(self, graph: ChannelGraph, plan: WidthPlan) -> float:
        """Seconds of the whole run at other widths, an estimate: see `scaled`."""
        return sum(self.scaled(graph, plan).values())


def layer_times(
    model: nn.Module, graph: ChannelGraph, plan: WidthPlan, run: Callable[[], Any], runs: int = 10
) -> LayerTimes:
    """Measure `run()`, which runs `model` of these widths: the least of `runs`, in evaluation mode.

    The least, for whatever else the machine does only adds to it. `graph` is that of the original
    network. The layers are timed one by one; with the rest they add up to a run that is not.
    """
    names = {layer.weight: layer.name for layer in graph.layers}
    found: dict[str, list[float]] = {name: [] for name in names.values()}
    whole = []
    device = device_of(model)
    with undisturbed(model), private_random(), torch.no_grad():
        model.eval()
        for index in range(runs + 1):
            started = time.perf_counter()
            run()
            _wait(device)
            took = time.perf_counter() - started
            with _Clock(model, device) as clock:
                run()
            if index:  # the first ones warm up
                whole.append(took)
                for weight, name in names.items():
                    found[name].append(clock.seconds.get(weight, 0.0))
    layers = {name: min(seconds) for name, seconds in found.items()}
    total = min(whole)
    spent = sum(layers.values())
    if spent > total:  # being looked at takes time, too
        layers = {name: seconds * total / spent for name, seconds in layers.items()}
    costs = FrozenMap(layer_costs(graph, plan))
    return LayerTimes(plan, costs, FrozenMap(layers), max(0.0, total - spent), str(device))


class _Clock(Watch):
    """Adds up the seconds of every layer's calls, by the name of its weight."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__(model)
        self.device = device
        self.seconds: dict[str, float] = {}
        self._took = 0.0

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        _wait(self.device)
        started = time.perf_counter()
        out = func(*args, **kwargs)
        _wait(self.device)
        self._took = time.perf_counter() - started
        return out

    def on_call(self, call: Call, out: Tensor) -> None:
        self.seconds[call.name] = self.seconds.get(call.name, 0.0) + self._took


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
