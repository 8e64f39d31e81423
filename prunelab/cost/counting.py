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
from prunelab.graph.kept_state import own
from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.graph.modules.channel_selector import selector_buffers
from prunelab.graph.trace import called, runner, several, state_preserved
from prunelab.loops.batch import device_of
from prunelab.values import Cost, WidthPlan


@overload
def cost(subject: nn.Module, example_inputs: Any) -> Cost: ...
@overload
def cost(subject: ChannelGraph, plan: WidthPlan, example_inputs: Any = None) -> Cost: ...


def cost(subject: Any, *given: Any, **named: Any) -> Cost:
    """The cost of one input: `cost(model, example_inputs)` or `cost(graph, plan)`.

    The cost of a plan is computed without cutting, for `example_inputs` or for the size that was
    traced; `Cost.at` says which. Convolutions and linear layers are counted.
    """
    if isinstance(subject, ChannelGraph):
        return _of_plan(subject, *given, **named)
    return _of_model(subject, *given, **named)


def _of_model(model: nn.Module, example_inputs: Any) -> Cost:
    counter = _counted(model, example_inputs)
    return Cost(
        macs=sum(counter.macs.values()),
        params=sum(parameter.numel() for parameter in model.parameters()),
        activation_bytes=counter.bytes,
        at=_shape_text(example_inputs),
    )


def _of_plan(graph: ChannelGraph, plan: WidthPlan, example_inputs: Any = None) -> Cost:
    if not isinstance(plan, WidthPlan):
        raise InvalidValue(f"cost(graph, plan) takes a WidthPlan, not {type(plan).__name__}.")
    alive = graph.alive(plan)
    counted: _Counter | None = None
    at = "x".join(str(size) for size in graph.input_shapes[0][1:]) if graph.input_shapes else ""
    if example_inputs is not None:
        network = graph.network()
        if network is None:
            raise InvalidValue(
                "The traced network is gone, so its cost cannot be computed for another input "
                "size. Trace it again, or leave example_inputs out."
            )
        counted = _counted(network, example_inputs)
        at = _shape_text(example_inputs)
    sizes = _kept_sizes(graph, alive)
    each = _layer_costs(graph, alive, sizes, counted).values()
    return Cost(
        sum(cost.macs for cost in each),
        sum(sizes.values()),
        sum(cost.activation_bytes for cost in each),
        at,
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
    counted: _Counter | None = None,
) -> dict[str, Cost]:
    found = {}
    for layer in graph.layers:
        macs, elements = layer.macs, layer.elements
        if counted is not None:
            macs, elements = counted.macs[layer.weight], counted.elements[layer.weight]
        axes = [layer.out_units, *([] if layer.rows is None else [layer.rows])]
        wide = [*axes, *([layer.in_units] if layer.dense else [])]
        own = {layer.weight, f"{layer.norm}.weight", f"{layer.norm}.bias"}
        own |= {f"{layer.name}.bias", f"{layer.name}.bias_orig"}  # masked, where it is pruned
        found[layer.name] = Cost(
            _kept(macs, alive, wide),
            sum(sizes.get(name, 0) for name in own),
            _kept(elements, alive, axes) * graph.activation_itemsize,
        )
    return found


def _kept(total: int, alive: np.ndarray, axes: Sequence[np.ndarray]) -> int:
    """The part of `total`, a product over `axes`, that is left of the units in `alive`."""
    return total * prod(_count(alive, a) for a in axes) // max(1, prod(len(a) for a in axes))


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
        axes = [layer.out_units, *([] if layer.rows is None else [layer.rows])]
        activations += layer.positions * _lost(graph, alive, axes)
        each = layer.applied * prod(layer.kernel)
        if layer.dense:
            macs += each * _lost(graph, alive, [*axes, layer.in_units])
        else:
            macs += each * (len(layer.in_units) // layer.conv_groups) * _lost(graph, alive, axes)
    return macs, activations * graph.activation_itemsize


def _lost(graph: ChannelGraph, alive: np.ndarray, axes: Sequence[np.ndarray]) -> np.ndarray:
    """By how much the product of the kept lengths of `axes` falls with each unit [units]."""
    whole, left = 1, np.ones(graph.units)
    for units in axes:
        kept = units[alive[units]]
        whole *= len(kept)
        left = left * (len(kept) - np.bincount(kept[kept != FIXED], minlength=graph.units))
    return whole - left


def _shape_text(inputs: Any) -> str:
    first = next((x for x in tree_leaves(inputs) if isinstance(x, Tensor)), None)
    return "x".join(str(size) for size in first.shape[1:]) if first is not None else ""


class _Counter(Watch):
    """Counts the multiply-adds of every layer, per input."""

    def __init__(self, model: nn.Module, batch: int) -> None:
        super().__init__(model)
        self.batch = batch
        self._selectors = set(selector_buffers(model))
        self.macs: dict[str, int] = {}
        self.elements: dict[str, int] = {}  # of outputs
        self.bytes = 0

    def on_call(self, call: Call, out: Tensor) -> None:
        self._add(call.name, call.applied(out) // self.batch * call.weight.numel(), out)

    def _add(self, name: str, macs: int, out: Tensor) -> None:
        elements = out.numel() // self.batch
        self.macs[name] = self.macs.get(name, 0) + macs
        self.elements[name] = self.elements.get(name, 0) + elements
        self.bytes += elements * out.element_size()

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Count a deformable convolution, and a channel selector, which copies what it selects."""
        if func.overloadpacket is torch.ops.aten.index_select:
            origin = self.origin(args[2])
            if origin is not None and origin.name in self._selectors:
                self._add(origin.name, 0, out)
        elif func.overloadpacket._qualified_op_name == "torchvision::deform_conv2d":
            origin = self.origin(args[1])
            if origin is not None and origin.plain:
                positions = out.numel() // (out.shape[1] * self.batch)
                self._add(origin.name, positions * args[1].numel(), out)


def _counted(model: nn.Module, inputs: Any) -> _Counter:
    first = next((x for x in tree_leaves(inputs) if isinstance(x, Tensor)), None)
    if first is None:
        raise InvalidValue("cost(model, example_inputs) needs at least one input tensor.")
    counter = _Counter(model, max(1, first.shape[0]))
    with state_preserved(model), private_random(), torch.no_grad(), counter:
        model.eval()
        runner(inputs)(model)
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
    device = device_of(model)
    with state_preserved(model):
        model.eval()
        for index in range(runs + 3):
            inputs = several(own(example_inputs), forward)  # a network may write into them
            with private_random(), torch.inference_mode():
                started = time.perf_counter()
                for call in inputs:
                    called(model, call, forward)
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
