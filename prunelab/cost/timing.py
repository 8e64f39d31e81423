"""Layer times: the time of one run layer by layer, and estimates for other widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.cost.counting import layer_costs, wait
from prunelab.cost.kernel_times import clock_of
from prunelab.data.private_random import private_random
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.graph.surgery.network_state import state_preserved
from prunelab.loops.batch import device_of
from prunelab.values import Cost, FrozenMap, WidthPlan, parts_of


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Measured seconds of one run of a network that keeps `plan`.

    `layers` are the seconds of every convolution and linear layer, `rest` those of everything
    else; `costs` are the costs of the layers at these widths.
    """

    plan: WidthPlan
    costs: FrozenMap[Cost]
    layers: FrozenMap[float]
    rest: float
    device: str

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return sum(self.layers.values()) + self.rest

    def scaled(self, graph: ChannelGraph, plan: WidthPlan) -> dict[str, float]:
        """An estimate of the seconds of each layer at other widths; "" is the rest.

        The time of a layer is taken to be proportional to its multiply-adds, the rest to the size
        of the activations. Narrow layers use a processor less efficiently, so a cut network is
        often slower than this. `graph` is that of the original network; a layer that has become
        two there counts as one.
        """
        before, after = self.costs, layer_costs(graph, plan)
        found = {
            name: seconds * _macs(after, name) / max(1, before[name].macs)
            for name, seconds in self.layers.items()
        }
        sizes = [sum(cost.activation_bytes for cost in costs.values()) for costs in (before, after)]
        found[""] = self.rest * sizes[1] / max(1, sizes[0])
        return found

    def at(self, graph: ChannelGraph, plan: WidthPlan) -> float:
        """An estimate of the seconds of the whole run at other widths; see `scaled`."""
        return sum(self.scaled(graph, plan).values())


def _macs(costs: Mapping[str, Cost], layer: str) -> int:
    """The multiply-adds of a layer, or of the layers that it has become."""
    return sum(costs[part].macs for part in parts_of(costs, layer))


def layer_times(
    model: nn.Module, graph: ChannelGraph, plan: WidthPlan, run: Callable[[], Any], runs: int = 10
) -> LayerTimes:
    """Measure the seconds of each layer in evaluation mode.

    Parameters
    ----------
    model
        The network, of the widths in `plan`.
    graph
        Of the original network.
    plan
        The units that `model` keeps.
    run
        Runs `model` once.
    runs
        How often; the minimum counts, because other load on the machine only adds time.

    Layers are timed one by one, in runs of their own; with the rest they are scaled to add up to a
    run without the timers.
    """
    names = {layer.weight: layer.name for layer in graph.layers}
    found: dict[str, list[float]] = {name: [] for name in names.values()}
    whole = []
    device = device_of(model)
    clock = clock_of(device.type)
    with state_preserved(model), private_random(), torch.no_grad():
        model.eval()
        for index in range(runs + 1):
            started = clock()
            run()
            wait(device)
            took = clock() - started
            with _Clock(model, device) as each:
                run()
            if index:  # the first run warms up
                whole.append(took)
                for weight, name in names.items():
                    found[name].append(each.seconds.get(weight, 0.0))
    layers = {name: min(seconds) for name, seconds in found.items()}
    total = min(whole)
    spent = sum(layers.values())
    if spent > total:  # the timers themselves take time
        layers = {name: seconds * total / spent for name, seconds in layers.items()}
    costs: FrozenMap[Cost] = FrozenMap(layer_costs(graph, plan))
    return LayerTimes(plan, costs, FrozenMap(layers), max(0.0, total - spent), str(device))


class _Clock(Watch):
    """Sums the seconds of the calls of every layer, by the name of its weight."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__(model)
        self.device = device
        self.clock = clock_of(device.type)
        self.seconds: dict[str, float] = {}
        self._took = 0.0

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        wait(self.device)
        started = self.clock()
        out = func(*args, **kwargs)
        wait(self.device)
        self._took = self.clock() - started
        return out

    def on_call(self, call: Call, out: Tensor) -> None:
        self.seconds[call.name] = self.seconds.get(call.name, 0.0) + self._took
