"""The cost of a network: multiply-adds, parameters, activation memory, and measured latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunelab.data.private_random import private_random
from prunelab.errors import InvalidValue
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.kept_state import own
from prunelab.graph.labels.layer_calls import Call
from prunelab.graph.modules.channel_selector import selector_buffers
from prunelab.graph.surgery.held_tensors import checked_network
from prunelab.graph.survey import Survey, checked_size, inputs_of, told, unknown
from prunelab.graph.trace import called, copy_of, runner, running_on, several
from prunelab.loops.batch import device_of
from prunelab.values import Cost, WidthPlan
from prunelab.values.given import as_annotated


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
    checked_network(subject)
    return _of_model(subject, *given, **named)


def _of_model(model: nn.Module, example_inputs: Any, *, batch_size: int | None = None) -> Cost:
    counter = _counted(model, example_inputs, batch_size)
    return Cost(
        macs=sum(counter.macs.values()),
        params=sum(parameter.numel() for parameter in model.parameters()),
        activation_bytes=counter.bytes,
        at=_shape_text(_shapes(example_inputs), counter.inputs),
        left_out=counter.left_out,
        weights=sum(p.numel() for name, p in model.named_parameters() if name in counter.macs),
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
    counted: _Counter | None = None
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
        counted = _counted(network, example_inputs, batch_size)
        at, left_out = _shape_text(_shapes(example_inputs), counted.inputs), counted.left_out
    sizes = _kept_sizes(graph, alive)
    each = _layer_costs(graph, alive, sizes, counted).values()
    return Cost(
        sum(cost.macs for cost in each),
        sum(sizes.values()),
        sum(cost.activation_bytes for cost in each),
        at,
        left_out,
        sum(sizes.get(name, 0) for name in {layer.weight for layer in graph.layers}),
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
            weights=sizes.get(layer.weight, 0),
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
        self.elements: dict[str, int] = {}  # of outputs
        self.bytes = 0

    def on_call(self, call: Call, out: Tensor) -> None:
        super().on_call(call, out)
        self._add(call.name, call.applied(out), call.weight.numel(), out)

    def _add(self, name: str, applied: int, kernel: int, out: Tensor) -> None:
        self._calls.append((name, applied, kernel, out.to("meta")))

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Count a deformable convolution, and a channel selector, which copies what it selects."""
        super().on_operation(func, args, kwargs, out)
        if func.overloadpacket is torch.ops.aten.index_select:
            origin = self.origin(args[2])
            if origin is not None and origin.name in self._selectors:
                self._add(origin.name, 0, 0, out)
        elif (name := self.deformable(func, args)) is not None:
            self._add(name, out.numel() // max(1, out.shape[1]), args[1].numel(), out)

    def divide(self, count: int) -> None:
        """Sum the calls, each that of one of `count` inputs."""
        self.inputs, self.left_out = count, told(self.left, count)
        for name, applied, kernel, out in self._calls:
            self.macs[name] = self.macs.get(name, 0) + applied // count * kernel
            self.elements[name] = self.elements.get(name, 0) + out.numel() // count
            self.bytes += out.numel() // count * out.element_size()


def _counted(model: nn.Module, inputs: Any, batch_size: int | None) -> _Counter:
    if not _shapes(inputs):
        raise InvalidValue("cost(model, example_inputs) needs at least one input tensor.")
    model = copy_of(model).eval()
    count, counter = checked_size(batch_size), _Counter(model)
    with running_on(inputs), private_random(), torch.no_grad(), counter:
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


@as_annotated
def latency(
    model: nn.Module,
    example_inputs: Any,
    runs: int = 30,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    backward: bool = False,
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
    backward
        Times a run forward and backward, from the sum of the outputs to the parameters that
        require gradients, as in a step of training.

    Compare networks in one process on an idle machine; on a busy one the spread is larger. Raises
    `InvalidValue` for less than one run.
    """
    if runs < 1:
        raise InvalidValue(f"latency needs at least 1 run, not {runs}.")
    checked_network(model)
    return summed_up(model, list(timing(model, example_inputs, runs, forward, backward)))


def timing(
    model: nn.Module,
    example_inputs: Any,
    runs: int,
    forward: Callable[[nn.Module, Any], Any] | None,
    backward: bool = False,
) -> Iterator[float]:
    """Yield the seconds of each run, after a few runs that warm up; arguments as in `latency`."""
    model = copy_of(model).eval()
    device = device_of(model)
    for index in range(runs + 3):
        inputs = several(own(example_inputs), forward)  # a network may write into them
        with private_random(), nullcontext() if backward else torch.inference_mode():
            started = time.perf_counter()
            with running_on(inputs):
                outs = [called(model, call, forward) for call in inputs]
            if backward:
                _backward(model, outs)
            wait(device)
            took = time.perf_counter() - started
        if index >= 3:
            yield took


def _backward(model: nn.Module, out: Any) -> None:
    """Compute the gradients of the sum of all outputs, and discard them."""
    leaves = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.requires_grad]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not leaves:
        raise InvalidValue(
            "backward=True needs an output that depends on a parameter which requires gradients; "
            "set requires_grad, or leave it out."
        )
    torch.autograd.grad([x.sum() for x in leaves], wanted, allow_unused=True)


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
