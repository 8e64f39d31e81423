"""Latency tables: seconds of each layer, measured over pairs of widths, for any plan.

A layer's time is no product of its widths: kernels are chosen by shape and work in blocks of
channels. So every kind and shape of layer is timed alone at pairs (in, out), and other widths are
interpolated. Times are stored for each machine and version, see `Store`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.cost.counting import layer_costs
from prunelab.cost.kernel_times import Kernel, Store, onnx_latency, seconds
from prunelab.cost.savings import OfLengths, Savings
from prunelab.cost.timing import layer_times
from prunelab.errors import InvalidValue
from prunelab.graph.channels.channel_graph import ChannelGraph, Layer
from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.graph.trace import copy_of, runner
from prunelab.values import WidthPlan
from prunelab.values.given import as_annotated

Array = np.ndarray
Backend = Literal["torch", "onnxruntime"]
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of a layer's widths, at which it is timed
BLOCK = 8  # channels: widths that are timed are multiples of it, as hardware likes them


@dataclass(frozen=True, slots=True, eq=False)
class WidthTimes:
    """Seconds of a layer at pairs of widths [ins, outs]; other widths are interpolated."""

    ins: Array
    outs: Array
    seconds: Array

    def at(self, into: Any, out: Any) -> Any:
        """Seconds at these widths, numbers or arrays of the same shape."""
        (row, right), (column, below) = _place(self.ins, into), _place(self.outs, out)
        top = self._between(row, column, below)
        if len(self.ins) == 1:
            return top
        return top + right * (self._between(row + 1, column, below) - top)

    def _between(self, row: Array, column: Array, share: Array) -> Array:
        found: Array = self.seconds[row, column]
        if len(self.outs) == 1:
            return found
        return found + share * (self.seconds[row, column + 1] - found)


def _place(grid: Array, value: Any) -> tuple[Array, Array]:
    """The grid's interval that holds a value, and how far into it; the ends go on beyond."""
    if len(grid) == 1:
        return np.zeros(np.shape(value), dtype=int), np.zeros(np.shape(value))
    index = np.clip(np.searchsorted(grid, value) - 1, 0, len(grid) - 2)
    share = (value - grid[index]) / (grid[index + 1] - grid[index])
    return index, np.maximum(share, 0)


@dataclass(frozen=True, slots=True, eq=False)
class LatencyTable:
    """Estimated seconds of one run of a network for any plan: `table(plan)`.

    Attributes
    ----------
    graph
        Of the original network.
    backend
        "torch" or "onnxruntime".
    layers
        By layer, its times at pairs of widths, as many as it has kinds of calls.
    rest
        Seconds of everything else, which scales with the activations.
    overhead
        By layer, what it takes in the network over its time alone, taken for constant: calls, and
        weights that are not in the caches.
    """

    graph: ChannelGraph
    backend: str
    layers: Mapping[str, tuple[WidthTimes, ...]]
    rest: float
    overhead: Mapping[str, float]
    _activations: list[float] = field(default_factory=list, init=False, repr=False)

    def __call__(self, plan: WidthPlan) -> float:
        """Seconds of one run with `plan`."""
        return sum(self.by_layer(plan).values())

    def by_layer(self, plan: WidthPlan) -> dict[str, float]:
        """Seconds of each layer with `plan`; "" is the rest."""
        alive = self.graph.alive(plan)
        found = {
            name: self.overhead[name]
            + sum(
                float(times.at(alive[layer.in_units].sum(), alive[layer.out_units].sum()))
                for times in self.layers[name]
            )
            for name, layer in ((layer.name, layer) for layer in self.graph.layers)
            if name in self.layers
        }
        found[""] = self.rest * self._size(plan) / self.whole_activations
        return found

    def _size(self, plan: WidthPlan) -> float:
        return sum(cost.activation_bytes for cost in layer_costs(self.graph, plan).values())

    @property
    def whole_activations(self) -> float:
        """Bytes of activations of the uncut network."""
        if not self._activations:
            self._activations.append(max(1.0, self._size(WidthPlan.full(self.graph))))
        return self._activations[0]

    def of_layer(self, layer: Layer) -> OfLengths:
        """Seconds of a layer with axes of these lengths [axes, n]: outputs first, inputs last."""
        times = self.layers.get(layer.name, ())
        return lambda lengths: sum(
            (one.at(lengths[-1], lengths[0]) for one in times), np.zeros(lengths.shape[1])
        )

    def realised(self, plan: WidthPlan) -> float:
        """The realised share: the part of the time saved over the part of the MACs saved."""
        full = WidthPlan.full(self.graph)
        whole, left = (
            sum(cost.macs for cost in layer_costs(self.graph, one).values()) for one in (full, plan)
        )
        return (1 - self(plan) / self(full)) / (1 - left / whole) if left < whole else 1.0


class SecondsSaved:
    """As `Savings`, in seconds of a latency table."""

    def __init__(self, table: LatencyTable, plan: WidthPlan) -> None:
        self._layers = Savings(table.graph, plan, table.of_layer)
        self._activations = Savings(table.graph, plan, "activation_bytes")
        self._rate = table.rest / table.whole_activations

    @property
    def each(self) -> Array:
        """What dropping each unit alone saves [units]; where a cut does not show, next to none."""
        found = self._layers.each + self._rate * self._activations.each
        return np.maximum(found, 1e-6 * max(float(found.max()), 1e-12))

    def drop(self, unit: int) -> None:
        """Drop a unit, by its graph-wide number."""
        self._layers.drop(unit)
        self._activations.drop(unit)


@as_annotated
def latency_table(
    model: nn.Module,
    graph: ChannelGraph,
    example_inputs: Any,
    *,
    backend: Backend = "torch",
    store: Store | None = None,
) -> LatencyTable:
    """Measure a latency table of an uncut network, at the size of `example_inputs`.

    Parameters
    ----------
    model, graph
        The network, which stays as it is, and its graph.
    example_inputs
        A tensor, a tuple of arguments or a dict of them.
    backend
        What runs the network: "torch" or "onnxruntime" (CPU).
    store
        Where times are kept (None: `Store()`, in the user's cache).

    Raises
    ------
    InvalidValue
        For another backend.
    MissingPackage
        Where onnx or onnxruntime is not installed.
    """
    if backend not in ("torch", "onnxruntime"):
        raise InvalidValue(f"backend is 'torch' or 'onnxruntime', not {backend!r}.")
    store = store or Store()
    copy = copy_of(model).eval()
    with torch.no_grad(), (watch := _Kernels(copy)):
        runner(example_inputs)(copy)
    layers = {layer.weight: layer for layer in graph.layers}
    found: dict[str, list[WidthTimes]] = {}
    for weight, kernel in watch.found:
        if weight in layers and kernel is not None:
            times = _times(kernel, layers[weight], backend, store)
            found.setdefault(layers[weight].name, []).append(times)
    store.save()
    alone = {name: sum(float(t.seconds[-1, -1]) for t in times) for name, times in found.items()}
    if backend == "torch":
        inside = layer_times(
            copy, graph, WidthPlan.full(graph), lambda: runner(example_inputs)(copy)
        )
        over, rest = {n: max(0.0, inside.layers[n] - alone[n]) for n in found}, inside.rest
    else:
        over = dict.fromkeys(found, 0.0)
        rest = max(0.0, onnx_latency(model, example_inputs) - sum(alone.values()))
    return LatencyTable(
        graph, backend, {name: tuple(times) for name, times in found.items()}, rest, over
    )


class _Kernels(Watch):
    """The kernels that a network runs, by the name of their weight (None: not timed alone)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.found: list[tuple[str, Kernel | None]] = []

    def on_call(self, call: Call, out: Tensor) -> None:
        if call.conv is None or not call.conv.transposed:
            self.found.append((call.name, Kernel.of(call)))


def _times(kernel: Kernel, layer: Layer, backend: Backend, store: Store) -> WidthTimes:
    """Time a kernel at pairs of the widths that the layer may have."""
    into, out = len(layer.in_units), len(layer.out_units)

    def timed(widths: tuple[int, int]) -> float:
        key = f"{backend} {asdict(kernel)} {widths}"
        return store.get(key, lambda: seconds(kernel, *widths, backend))

    if kernel.each:  # both widths are as many channels a group in every cut
        counts = _widths(into // kernel.each)
        ins, outs = np.array([into]), counts * out * kernel.each // into
        pairs = zip(counts * kernel.each, outs, strict=True)
        grid = np.array([[timed((int(i), int(o))) for i, o in pairs]])
    else:
        ins, outs = _widths(into), _widths(out)
        grid = np.array([[timed((int(i), int(o))) for o in outs] for i in ins])
    # other load on the machine only adds time, and a wider layer is not faster
    grid = np.minimum.accumulate(grid[::-1], axis=0)[::-1]
    grid = np.minimum.accumulate(grid[:, ::-1], axis=1)[:, ::-1]
    return WidthTimes(ins, outs, grid)


def _widths(width: int) -> Array:
    """The widths at which a layer is timed, ascending to its own."""
    some = {max(1, round(width * share / BLOCK) * BLOCK) for share in SHARES[:-1]}
    return np.array(sorted({*(each for each in some if each < width), width}))
