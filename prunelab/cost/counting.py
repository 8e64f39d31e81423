"""The cost of a network: multiply-adds, parameters, activation memory, and measured latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunelab.data.private_random import private_random
from prunelab.errors import InvalidValue
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph
from prunelab.graph.labels.layer_calls import Call
from prunelab.graph.modules.channel_selector import selector_buffers
from prunelab.graph.survey import Survey, checked_size, inputs_of, told, unknown
from prunelab.graph.trace import copy_of, runner
from prunelab.loops.batch import device_of
from prunelab.values import Cost, WidthPlan


@overload
def cost(subject: nn.Module, example_inputs: Any, *, batch_size: int | None = None) -> Cost: ...
@overload
def cost(
    subject: ChannelGraph,
    plan: WidthPlan,
    example_inputs: Any = None,
    *,
    batch_size: int | None = None,
) -> Cost: ...


def cost(subject: Any, *given: Any, **named: Any) -> Cost:
    """The cost of one input: `cost(model, example_inputs)` or `cost(graph, plan)`.

    The cost of a plan is computed without cutting, for `example_inputs` or for the size that was
    traced; `Cost.at` says which. Convolutions and linear layers are counted; `Cost.left_out` says
    what else the network multiplies. `batch_size` is how many inputs `example_inputs` holds; None
    takes what a run shows, see `inputs_of`, and raises `InvalidValue` where that cannot be known.
    """
    if isinstance(subject, ChannelGraph):
        return _of_plan(subject, *given, **named)
    return _of_model(subject, *given, **named)


def _of_model(model: nn.Module, example_inputs: Any, *, batch_size: int | None = None) -> Cost:
    counter = _counted(model, example_inputs, batch_size)
    return Cost(
        macs=sum(counter.macs.values()),
        params=sum(parameter.numel() for parameter in model.parameters()),
        activation_bytes=counter.bytes,
        at=_shape_text(_shapes(example_inputs), counter.inputs),
        left_out=counter.left_out,
    )


def _of_plan(
    graph: ChannelGraph,
    plan: WidthPlan,
    example_inputs: Any = None,
    *,
    batch_size: int | None = None,
) -> Cost:
    if not isinstance(plan, WidthPlan):
        raise InvalidValue(f"cost(graph, plan) takes a WidthPlan, not {type(plan).__name__}.")
    alive = graph.alive(plan)
    positions = applied = None
    if example_inputs is None:
        if graph.inputs is None:
            raise unknown(graph.input_shapes, "trace(model, example_inputs, batch_size=...)")
        at, left_out = _shape_text(graph.input_shapes, graph.inputs), graph.left_out
    else:
        network = graph.network()
        if network is None:
            raise InvalidValue(
                "The traced network is gone, so its cost cannot be computed for another input "
                "size. Trace it again, or leave example_inputs out."
            )
        counter = _counted(network, example_inputs, batch_size)
        positions, applied = counter.positions, counter.applied
        at, left_out = _shape_text(_shapes(example_inputs), counter.inputs), counter.left_out
    sizes = _kept_sizes(graph, alive)
    each = _layer_costs(graph, alive, sizes, positions, applied).values()
    return Cost(
        sum(cost.macs for cost in each),
        sum(sizes.values()),
        sum(cost.activation_bytes for cost in each),
        at,
        left_out,
    )


def layer_costs(graph: ChannelGraph, plan: WidthPlan) -> dict[str, Cost]:
    """The cost of each convolution and linear layer at the widths of `plan`, by name.

    For the traced size. A layer's parameters are its weight and bias, and those of the BatchNorm
    that follows it; parameters of no layer are counted only in the `cost` of the network.
    """
    alive = graph.alive(plan)
    return _layer_costs(graph, alive, _kept_sizes(graph, alive))


def _layer_costs(
    graph: ChannelGraph,
    alive: np.ndarray,
    sizes: Mapping[str, int],
    positions: Mapping[str, int] | None = None,
    applied: Mapping[str, int] | None = None,
) -> dict[str, Cost]:
    found = {}
    for layer in graph.layers:
        outs, ins = _count(alive, layer.out_units), _count(alive, layer.in_units)
        per_output = ins if layer.dense else len(layer.in_units) // layer.conv_groups
        times = layer.applied if applied is None else applied[layer.weight]
        seen = layer.positions if positions is None else positions[layer.weight]
        own = {layer.weight, f"{layer.name}.bias", f"{layer.norm}.weight", f"{layer.norm}.bias"}
        found[layer.name] = Cost(
            times * outs * per_output * prod(layer.kernel),
            sum(sizes.get(name, 0) for name in own),
            seen * outs * graph.activation_itemsize,
        )
    return found


def _count(alive: np.ndarray, units: np.ndarray) -> int:
    """How many positions of an axis belong to a kept unit."""
    return int(np.count_nonzero(alive[units]))


def _kept_sizes(graph: ChannelGraph, alive: np.ndarray) -> dict[str, int]:
    """The size of each parameter when only the units in `alive` are kept."""
    shares: dict[str, float] = {}
    for (name, _), units in graph.slots.items():
        if name in graph.sizes:
            shares[name] = shares.get(name, 1.0) * _count(alive, units) / len(units)
    return {name: round(size * shares.get(name, 1.0)) for name, size in graph.sizes.items()}


def savings(graph: ChannelGraph, plan: WidthPlan) -> tuple[np.ndarray, np.ndarray]:
    """The multiply-adds and activation bytes that dropping each unit alone saves [units].

    By graph-wide unit number; zero for units that `plan` has dropped. These are exactly the
    differences of `cost(graph, plan)`.
    """
    alive = graph.alive(plan)
    macs, activations = np.zeros(graph.units), np.zeros(graph.units)
    for layer in graph.layers:
        outs, ins = layer.out_units[alive[layer.out_units]], layer.in_units[alive[layer.in_units]]
        made = np.bincount(outs[outs != FIXED], minlength=graph.units)
        each = layer.positions * prod(layer.kernel)
        if layer.dense:
            read = np.bincount(ins[ins != FIXED], minlength=graph.units)
            macs += each * (made * len(ins) + read * len(outs) - made * read)
        else:
            macs += each * made * (len(layer.in_units) // layer.conv_groups)
        activations += layer.positions * made
    return macs, activations * graph.activation_itemsize


def _shapes(inputs: Any) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in tree_leaves(inputs) if isinstance(x, Tensor)]


def _shape_text(shapes: Sequence[tuple[int, ...]], count: int) -> str:
    """The size of one input: of the first tensor with axes, without its axis of `count` inputs."""
    first = next((shape for shape in shapes if shape), ())
    return "x".join(str(size) for size in (first[1:] if first[:1] == (count,) else first))


class _Counter(Survey):
    """Counts the multiply-adds of every layer; `divide` makes the counts those of one input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._selectors = set(selector_buffers(model))
        self._calls: list[tuple[str, int, int, Tensor]] = []  # name, applied, kernel, output
        self.inputs = 1
        self.left_out = ""
        self.macs: dict[str, int] = {}
        self.positions: dict[str, int] = {}
        self.applied: dict[str, int] = {}
        self.bytes = 0

    def on_call(self, call: Call, out: Tensor) -> None:
        super().on_call(call, out)
        self._calls.append((call.name, call.applied(out), call.weight.numel(), out.to("meta")))

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Count a channel selector, which copies the channels that it selects."""
        super().on_operation(func, args, kwargs, out)
        if func.overloadpacket is torch.ops.aten.index_select:
            origin = self.origin(args[2])
            if origin is not None and origin.name in self._selectors:
                self._calls.append((origin.name, 0, 0, out.to("meta")))

    def divide(self, count: int) -> None:
        """Sum the calls, each that of one of `count` inputs."""
        self.inputs, self.left_out = count, told(self.left, count)
        for name, applied, kernel, out in self._calls:
            self.macs[name] = self.macs.get(name, 0) + applied // count * kernel
            self.applied[name] = self.applied.get(name, 0) + applied // count
            seen = out.numel() // max(1, out.shape[1] * count)
            self.positions[name] = self.positions.get(name, 0) + seen
            self.bytes += out.numel() // count * out.element_size()


def _counted(model: nn.Module, inputs: Any, batch_size: int | None) -> _Counter:
    if not _shapes(inputs):
        raise InvalidValue("cost(model, example_inputs) needs at least one input tensor.")
    model = copy_of(model).eval()
    count, counter = checked_size(batch_size), _Counter(model)
    with private_random(), torch.no_grad(), counter:
        outputs = runner(inputs)(model)
    count = count or inputs_of(inputs, outputs, counter.first)
    if count is None:
        raise unknown(_shapes(inputs), "cost(..., batch_size=...)")
    counter.divide(count)
    return counter


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds for one call on the given inputs: the median, and the quartiles `low` and `high`.

    `inputs` is the number of inputs of one call; None where it is not known.
    """

    median: float
    low: float
    high: float
    runs: int
    device: str
    inputs: int | None = None

    def __str__(self) -> str:
        return (
            f"{self.median * 1e3:.2f} ms (middle half {self.low * 1e3:.2f} to "
            f"{self.high * 1e3:.2f}, {self.runs} runs, {self.device})"
        )


def latency(
    model: nn.Module,
    example_inputs: Any,
    runs: int = 30,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Latency:
    """Measured seconds of `model(example_inputs)` in evaluation mode, median and spread.

    Parameters
    ----------
    model
        The network; it stays as it is.
    example_inputs
        A tensor, a tuple of arguments or a dict of them.
    runs
        Timed calls, after three calls that warm up.
    forward
        Times `forward(model, example_inputs)` instead.

    Compare networks in one process on an idle machine; on a busy one the spread is larger. Raises
    `InvalidValue` for less than one run.
    """
    if runs < 1:
        raise InvalidValue(f"latency needs at least 1 run, not {runs}.")
    return summed_up(model, list(timing(model, example_inputs, runs, forward)))


def timing(
    model: nn.Module,
    example_inputs: Any,
    runs: int,
    forward: Callable[[nn.Module, Any], Any] | None,
) -> Iterator[float]:
    """Yield the seconds of each run, after a few runs that warm up; arguments as in `latency`."""
    run = runner(example_inputs, forward)
    model = copy_of(model).eval()
    device = device_of(model)
    for index in range(runs + 3):
        with private_random(), torch.inference_mode():
            started = time.perf_counter()
            run(model)
            wait(device)
            took = time.perf_counter() - started
        if index >= 3:
            yield took


def wait(device: torch.device) -> None:
    """Return once `device` has done all that it was given: an accelerator works asynchronously."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def summed_up(model: nn.Module, seconds: Sequence[float]) -> Latency:
    """The `Latency` of `model` from the seconds that `timing` yielded."""
    ordered = sorted(seconds)
    quarter = len(ordered) // 4
    return Latency(
        statistics.median(ordered),
        ordered[quarter],
        ordered[-1 - quarter],
        len(ordered),
        str(device_of(model)),
    )
