"""Running a network on labels: which channel every element of every tensor comes from.

Every output channel of every convolution and linear layer gets a number, its label. Beside each
tensor goes an integer tensor, broadcastable to its shape, that names for every element the
channel it came from; operations that only move data are run on the labels themselves. Where
elementwise operations make labels meet, the two channels are coupled. An operation without a
rule freezes what it touches: unknown fails safe.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from prunelab.errors import TraceError
from prunelab.graph.labels import arithmetic
from prunelab.graph.labels.data_movement import REGIONS, rearrange
from prunelab.graph.labels.label_store import FROZEN, Book, Edge, LayerTrace, Trace
from prunelab.graph.labels.layer_calls import Call, Conv, Watch
from prunelab.graph.labels.layout import tensors_in, varying, widened
from prunelab.graph.labels.module_stack import Places
from prunelab.graph.labels.op_tables import (
    ALONG,
    ATTENTION,
    DRAWS,
    ELEMENTWISE,
    KEEPS,
    NORMALISES_BATCH,
    PRODUCTS,
    REDUCES,
    RESIZES,
    UNIFORM,
    VIEWS,
    aten,
)
from prunelab.graph.labels.provenance import Origin
from prunelab.graph.labels.shape_run import LooksAtNumbers, looks, sketched
from prunelab.graph.labels.views import Views, index_put
from prunelab.graph.modules.channel_selector import samplers
from prunelab.graph.modules.module_attributes import is_bare_norm

__all__ = ["FROZEN", "Edge", "LabelMode", "LayerTrace", "Trace", "layer_name", "run_on_labels"]


class LabelMode(Watch):
    """Runs a network and fills a `Trace`. Use under `torch.no_grad()`.

    `batch` is how many inputs it takes at once; `counting` says whether calls and positions of
    layers are counted; `used` names the parameters and buffers that took part. Without `numbers`
    heavy operations give zeros, and where it is `careful`, code that looks at them ends with
    `LooksAtNumbers`. Past `deadline` (of `time.monotonic`) it
    raises `TraceError`.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        inexact: bool = False,
        deadline: float | None = None,
    ) -> None:
        super().__init__(model)
        self.places = Places()
        self.places.passing = self._pass
        self.book = Book(self.places)
        self.numbers, self.careful, self.counting = True, True, True
        self.used: set[str] = set()
        self._batch = max(1, batch)
        self._inexact = inexact
        self._deadline = deadline
        self._views = Views(self.book)
        self._samplers = set(samplers(model))
        self._from_layer = WeakTensorKeyDictionary()  # a layer's very output -> its name

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run an operation, and note which parameters and buffers it uses."""
        for tensor in tensors_in(*args, kwargs):
            origin = self.origin(tensor)
            if origin is not None:
                self.used.add(origin.name)
        if self.numbers:
            return func(*args, **kwargs)
        if self.careful and looks(func, args):
            raise LooksAtNumbers
        return sketched(func, args, kwargs)

    # ------------------------------------------------------------ layers

    def on_call(self, call: Call, out: Tensor) -> None:
        """A layer consumes its input's labels and issues its own."""
        book, name = self.book, layer_name(call.name)
        self._in_time(name)
        book.settle(call.x)
        labels, rows = book.labels(call.x), False
        if call.conv is not None and any(axis > 1 for axis in varying(labels)):
            book.freeze(labels, f"{name} convolves over channels laid out over space")
            layer = self._layer(call, out, None)
        elif labels.shape[1] == 1 and labels.shape[0] > 1:  # rows are channels: it maps space
            layer, rows = self._layer(call, out, None), True
        else:
            into = book.column(call.x, 1, name)
            layer = self._layer(call, out, into)
            if layer.cuttable:
                self._reads(call, layer, into)
        if self.counting:
            layer.calls += 1
            layer.positions += out.numel() // max(1, out.shape[1] * self._batch)
            layer.applied += call.applied(out) // self._batch
        if layer.cuttable:
            shape = [1] * out.ndim
            shape[1] = -1
            book.put(out, layer.out.reshape(shape))
            self._from_layer[out] = call.name
        elif rows:
            book.put(out, labels)

    def _layer(self, call: Call, out: Tensor, into: Tensor | None) -> LayerTrace:
        """The layer of this call; `into` is None when it reads no channels as channels."""
        book, conv, width, key = self.book, call.conv, out.shape[1], call.name
        transposed, groups = (conv.transposed, conv.groups) if conv is not None else (False, 1)
        in_axis = _axis_in(call, 0 if transposed else 1)
        cuttable = into is not None and in_axis is not None
        layer = book.trace.layers.get(key)
        if layer is None:
            layer = LayerTrace(
                name=key,
                out=book.issue(width) if cuttable else torch.full((width,), FROZEN),
                into=into if cuttable and into is not None else torch.full((call.x.shape[1],), 0),
                kernel=tuple(call.weight.shape[2:]),
                groups=groups,
                transposed=transposed,
                in_axis=in_axis or 0,
                order=len(book.trace.layers),
                computed=not call.origin.plain,
                cuttable=cuttable,
            )
            book.trace.layers[key] = layer
        same = (layer.cuttable, layer.in_axis, len(layer.out), layer.groups)
        if same != (cuttable, in_axis or 0, width, groups):
            why = f"the weight of {layer_name(key)} is used in two ways"
            layer.cuttable = False
            book.freeze(layer.out, why)
            book.freeze(layer.into, why)
            cuttable = False
        if not cuttable and into is not None:
            book.freeze(into, f"the weight of {layer_name(key)} cannot be cut where it is used")
        return layer

    def _reads(self, call: Call, layer: LayerTrace, into: Tensor) -> None:
        book, name, rank = self.book, layer_name(call.name), call.weight.ndim
        out_axis, in_axis = (1, 0) if layer.transposed else (0, 1)

        def shaped(labels: Tensor, axis: int) -> Tensor:
            return labels.reshape([-1 if i == axis else 1 for i in range(rank)])

        if layer.groups == 1:
            if not call.origin.scaled:
                book.freeze(into, f"the weight of {name} is computed from all of its inputs")
            book.unite(layer.into, into, f"the shared layer {name}")
            book.index(call.origin, shaped(into, in_axis), f"the shared layer {name}")
            book.index(call.origin, shaped(layer.out, out_axis), name)
        else:  # a conv-group lives and dies as one
            kind = "depth-wise" if layer.groups == len(into) else "grouped"
            why = f"the {kind} convolution {name}"
            book.unite(layer.into, into, why)
            ins, outs = into.view(layer.groups, -1), layer.out.view(layer.groups, -1)
            book.unite(ins[:, :1], outs, why)
            book.unite(ins[:, :1], ins, why)
            book.index(call.origin, shaped(into if layer.transposed else layer.out, 0), why)
        bias = call.bias
        if bias is not None:
            origin = self.origin(bias)
            if origin is not None:
                book.index(origin, layer.out, name)
            else:
                book.freeze(layer.out, f"the bias of {name} is computed")

    # ------------------------------------------------------------ everything else

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Labels of what any other operation gives."""
        packet, book = func.overloadpacket, self.book
        tensors = tensors_in(*args, kwargs)
        if packet is aten.index_select and self._samples(args[0], self.origin(args[2]), out):
            return
        if packet in VIEWS:
            for made in tree_leaves(out):
                self._views.note(made, func, args, kwargs)
        if packet in UNIFORM:
            book.make_uniform(out, next(iter(tensors), None))
        elif any(x in book for x in tensors):
            self._in_time(packet.__name__)
            written = func._schema.is_mutable and args and out is args[0]
            before = book.labels(out) if written else None
            self._rule(func, args, kwargs, out, tensors)
            if written and before is not None:
                self._views.written(out, before)
        elif isinstance(out, Tensor) and self._is_uniform(packet, tensors):
            if out not in self._views or not func._schema.is_mutable:
                book.make_uniform(out)
            else:  # a part of a tensor is not what the rest of it is
                self._views.written_fixed(out)
        elif isinstance(out, Tensor) and func._schema.is_mutable:
            self._views.written_fixed(out)

    def _samples(self, x: Tensor, origin: Origin | None, out: Tensor) -> bool:
        """Whether a convolution samples its input here: it then issues channels of its own."""
        if origin is None or origin.name not in self._samplers:
            return False
        book, name, width = self.book, origin.name, out.shape[1]
        book.freeze(book.labels(x), f"{name} picks from it by number")
        layer = book.trace.layers.get(name)
        if layer is None:
            layer = book.trace.layers[name] = LayerTrace(
                name=name, out=book.issue(width), into=torch.empty(0, dtype=torch.long),
                kernel=(1,) * (out.ndim - 2), groups=1, transposed=False, in_axis=1,
                order=len(book.trace.layers), computed=False, cuttable=True,
            )  # fmt: skip
            book.index(origin, layer.out, name)
        if self.counting:
            layer.calls += 1
            layer.positions += out.numel() // max(1, width * self._batch)
        book.put(out, layer.out.reshape([1, -1, *[1] * (out.ndim - 2)]))
        return True

    def _is_uniform(self, packet: Any, tensors: list[Tensor]) -> bool:
        """Whether what an operation gives is alike for every channel, as what it takes."""
        sized = [x for x in tensors if x.ndim]
        pointwise = torch.Tag.pointwise in getattr(packet, packet.overloads()[0]).tags
        known = pointwise or packet in KEEPS or packet in VIEWS or packet in DRAWS
        return known and bool(sized) and all(self.book.uniform(x) for x in sized)

    def _rule(
        self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any, tensors: list[Tensor]
    ) -> None:
        packet, book = func.overloadpacket, self.book
        if packet is aten.copy_:
            self._copy(args[0], args[1])
        elif packet in (aten.index_put_, aten.index_put, aten._unsafe_index_put):
            index_put(book, args, out)
        elif rearrange(book, func, args, kwargs, out):
            pass
        elif packet in KEEPS:
            book.copy(out[0] if isinstance(out, tuple) else out, tensors[0])
        elif packet in RESIZES:
            name = packet.__name__.strip("_")
            if packet.__name__.startswith("grid_sampler"):
                book.freeze(book.labels(args[1]), "it says where an image is sampled")
            arithmetic.resize(book, args[0], out, RESIZES[packet], name)
        elif packet in NORMALISES_BATCH:
            arithmetic.normalise_batch(book, self.origin, args, out)
            self._name_norm(args)
        elif packet is aten.native_group_norm:
            arithmetic.normalise_groups(book, self.origin, args, out)
        elif packet is aten.native_layer_norm:
            arithmetic.normalise_layer(book, self.origin, args, out, self._inexact)
        elif packet in PRODUCTS:
            arithmetic.product(book, self.origin, packet.__name__, args, out)
        elif packet in ATTENTION:
            arithmetic.attend(book, args, out)
        elif packet in ALONG:
            arithmetic.run_along(book, func, args, kwargs, out)
        elif torch.Tag.pointwise in func.tags or packet in ELEMENTWISE:
            why = f"the {packet.__name__.strip('_')}"
            arithmetic.elementwise(book, self.origin, tensors, out, why)
        elif packet in REDUCES:
            arithmetic.reduce(book, func, args, kwargs, out)
        else:
            self._unknown(func, args, kwargs, out, tensors)

    def _unknown(
        self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any, tensors: list[Tensor]
    ) -> None:
        name = func.overloadpacket._qualified_op_name
        if name in REGIONS:
            REGIONS[name](self.book, func, args, kwargs, out)
            return
        if name == "torchvision::deform_conv2d":
            self._deformed(args, out)
            return
        why = f"the operation {func.overloadpacket.__name__} has no rule"
        if func.overloadpacket is aten.convolution:
            why = "a convolution has a weight that is computed from data"
        for tensor in tensors:
            self.book.freeze(self.book.labels(tensor), why)

    def _deformed(self, args: tuple[Any, ...], out: Tensor) -> None:
        """A deformable convolution: its outputs are channels like any; what it reads must stay.

        Its inputs could be cut, but nobody could say what they contribute.
        """
        x, weight, offset, mask, bias = args[:5]
        origin = self.origin(weight)
        for tensor, why in (
            (x, "a deformable convolution reads it"),
            (offset, "it says where a deformable convolution reads"),
            (mask, "it says how much a deformable convolution reads"),
        ):
            self.book.freeze(self.book.labels(tensor), why)
        if origin is not None and origin.plain and args[11] == 1:
            conv = Conv((), (), (), False, 1)
            call = Call(origin.name, x, weight, bias, conv, replace(origin, scaled=True))
            labels = self.book.labels(x)
            self.book.put(x, torch.full((1,) * x.ndim, FROZEN))  # read as something fixed
            self.on_call(call, out)
            self.book.put(x, labels)

    def _name_norm(self, args: tuple[Any, ...]) -> None:
        layer, weight = self._from_layer.get(args[0]), self.origin(args[1])
        if layer is not None and weight is not None and weight.plain:
            self.book.trace.layers[layer].norm = weight.name.removesuffix(".weight")

    def on_bare_norm(self, name: str, x: Tensor) -> None:
        """A normalisation module without parameters, which knows its width, reads `x`."""
        with self.aside():
            labels = self.book.column(x, 1, name)
            if name in self.book.trace.bare:
                self.book.unite(self.book.trace.bare[name], labels, f"the shared {name}")
            self.book.trace.bare[name] = labels

    def _pass(self, given: Any) -> None:
        if self.book.guarded:
            with self.aside():
                self.book.guard(given)

    def _in_time(self, where: str) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TraceError(
                f"The time limit was reached while tracing, at {where}. Give a smaller example "
                "input, or a larger time_limit."
            )

    def _copy(self, target: Tensor, source: Tensor) -> None:
        """`target` takes over what `source` holds, broadcast."""
        labels = widened(self.book.labels(source), target.ndim)
        self.book.put(target, labels)
        origin = self.origin(target)
        if origin is not None:
            self.book.index(origin, labels, "a write into a buffer")


def layer_name(weight: str) -> str:
    """The name of the layer whose weight is called `weight`."""
    name = weight.split(".parametrizations.")[0]
    for ending in (".weight", ".weight_v", ".weight_orig"):
        name = name.removesuffix(ending)
    return name


def _axis_in(call: Call, axis: int) -> int | None:
    """The axis of the weight's parameter that reads channels, found along `axis` of the weight."""
    for (name, own), index in call.origin.axes.items():
        if name == call.name and index.shape[axis] > 1:
            return own if varying(index) == [axis] else None
    inner = call.weight.shape[axis]
    return axis if inner == 1 and len(call.origin.axes) >= 2 else None


def run_on_labels(
    mode: LabelMode, model: nn.Module, run: Callable[[nn.Module], Any], outputs: str
) -> None:
    """Run `run(model)` on labels. The network's outputs are frozen, and `outputs` says why.

    The network's state is the caller's to protect.
    """
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: mode.on_bare_norm(name, args[0])
        )
        for name, module in model.named_modules()
        if is_bare_norm(module)
    ]
    try:
        with torch.no_grad(), mode.places.of(model), mode:
            out = run(model)
    finally:
        for hook in hooks:
            hook.remove()
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            mode.book.freeze(mode.book.labels(leaf), outputs)
