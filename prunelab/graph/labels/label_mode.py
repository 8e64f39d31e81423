"""Running a network on labels: the channel that every element of every tensor comes from.

Every output channel of every convolution and linear layer gets a number, its label. Each tensor
has an integer tensor, broadcastable to its shape, that gives for every element the channel it
came from; operations that only move data are run on the labels themselves. Where an elementwise
operation combines two labels, the two channels are coupled. An operation without a rule freezes
its inputs, so that an unknown operation never leads to a wrong cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from prunelab.data.tensors import tensors_of
from prunelab.errors import TraceError
from prunelab.graph.labels import arithmetic
from prunelab.graph.labels.channels_and_space import REGIONS
from prunelab.graph.labels.data_movement import rearrange
from prunelab.graph.labels.derived_sizes import Derived
from prunelab.graph.labels.label_store import FROZEN, Edge, LabelStore, LayerTrace, Trace
from prunelab.graph.labels.layer_calls import Call, Conv, Watch
from prunelab.graph.labels.layout import argument, tensors_in, varying_axes, widened
from prunelab.graph.labels.leaving import Leaving
from prunelab.graph.labels.module_stack import ModuleStack
from prunelab.graph.labels.op_tables import (
    ALONG,
    ATTENTION,
    DRAWS,
    ELEMENTWISE,
    KEEPS,
    NORMALISES_BATCH,
    PLACES,
    PRODUCTS,
    REDUCES,
    RESIZES,
    UNIFORM,
    UNPOOLS,
    VIEWS,
    aten,
)
from prunelab.graph.labels.provenance import Origin
from prunelab.graph.labels.shape_run import NeedsValues, needs_values, shapes_only
from prunelab.graph.labels.views import Views, index_put
from prunelab.graph.modules.channel_selector import selector_buffers
from prunelab.graph.modules.module_attributes import is_bare_norm
from prunelab.graph.modules.walk import walk

__all__ = ["FROZEN", "Edge", "LabelMode", "LayerTrace", "Trace", "layer_name", "run_on_labels"]


class LabelMode(Watch):
    """Follows labels while a network runs, and fills a `Trace`. Use under `torch.no_grad()`.

    `batch` is the number of inputs. With `counting`, the calls and positions of layers are
    counted; `used` holds the names of the parameters and buffers that were used. Without
    `numbers`, heavy operations return zeros; with `careful`, `NeedsValues` is then raised where
    code depends on values. `wrote` says that code wrote into parameters; `keeps` names the
    attributes that it changed. After `deadline` (of `time.monotonic`) it raises `TraceError`.
    `inexact`, `edit` and `derived` are those of `LabelStore`.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        inexact: bool = False,
        deadline: float | None = None,
        edit: bool = False,
        derived: Derived | None = None,
    ) -> None:
        super().__init__(model)
        self.stack = ModuleStack()
        self.stack.on_pass = self._pass
        self.store = LabelStore(self.stack, inexact, edit, derived)
        self.numbers, self.careful, self.counting = True, True, True
        self.used: set[str] = set()
        self.wrote = False
        self.keeps: list[str] = []
        self._memory = {_address(parameter) for parameter in model.parameters()}
        self._batch = max(1, batch)
        self._deadline = deadline
        self._views = Views(self.store)
        self._selectors = set(selector_buffers(model))
        self._from_layer = WeakTensorKeyDictionary()  # the output tensor of a layer -> its name
        self._unfused = Leaving(self._leave)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run an operation, and record which parameters and buffers it uses."""
        for tensor in tensors_in(*args, kwargs):
            origin = self.origin(tensor)
            if origin is not None:
                self.used.add(origin.name)
        if func._schema.is_mutable and _address(args[0]) in self._memory:
            self.wrote = True
        if self.numbers:
            return func(*args, **kwargs)
        if self.careful and needs_values(func, args):
            raise NeedsValues
        return shapes_only(func, args, kwargs)

    # ------------------------------------------------------------ layers

    def on_call(self, call: Call, out: Tensor) -> None:
        """A layer consumes the labels of its input and issues new ones."""
        store, name = self.store, layer_name(call.name)
        self._in_time(name)
        store.settle(call.x)
        store.fill(call.x)
        labels, rows = store.labels(call.x), False
        if call.conv is not None and any(axis > 1 for axis in varying_axes(labels)):
            why = f"{name} convolves over channels laid out over space"
            if store.bend(labels, why) and out.shape == call.x.shape and labels.shape[1] == 1:
                store.put(out, labels)
            else:
                store.freeze(labels, why)
            layer = self._layer(call, out, None)
        elif (
            labels.shape[1] == 1 and labels.shape[0] > 1
        ):  # the rows are channels: the layer maps space
            layer, rows = self._layer(call, out, None), True
        else:
            into = store.column(call.x, 1, name)
            layer = self._layer(call, out, into)
            if layer.cuttable:
                self._reads(call, layer, into)
        if self.counting:
            self._count(layer, call, out, labels[:, 0].reshape(-1) if rows else None)
        if layer.cuttable:
            shape = [1] * out.ndim
            shape[1] = -1
            store.put(out, layer.out.reshape(shape))
            self._from_layer[out] = call.name
        elif rows:
            store.put(out, labels)

    def _layer(self, call: Call, out: Tensor, into: Tensor | None) -> LayerTrace:
        """The layer of this call; `into` is None where its input axis holds no channels."""
        store, conv, width, key = self.store, call.conv, out.shape[1], call.name
        transposed, groups = (conv.transposed, conv.groups) if conv is not None else (False, 1)
        in_axis = _axis_in(call, 0 if transposed else 1)
        followed = groups > 1 or _followed(call, 1 if transposed else 0)
        cuttable = into is not None and in_axis is not None and followed
        layer = store.trace.layers.get(key)
        if layer is None:
            layer = LayerTrace(
                name=key,
                out=store.issue(width) if cuttable else torch.full((width,), FROZEN),
                into=into if cuttable and into is not None else torch.full((call.x.shape[1],), 0),
                kernel=tuple(call.weight.shape[2:]),
                groups=groups,
                transposed=transposed,
                in_axis=in_axis or 0,
                order=len(store.trace.layers),
                computed=not call.origin.plain,
                cuttable=cuttable,
            )
            store.trace.layers[key] = layer
        same = (layer.cuttable, layer.in_axis, len(layer.out), layer.groups)
        if same != (cuttable, in_axis or 0, width, groups):
            why = f"the weight of {layer_name(key)} is used in two ways"
            layer.cuttable = False
            store.freeze(layer.out, why)
            store.freeze(layer.into, why)
            cuttable = False
        if not cuttable and into is not None:
            store.freeze(into, f"the weight of {layer_name(key)} cannot be cut where it is used")
        return layer

    def _count(self, layer: LayerTrace, call: Call, out: Tensor, rows: Tensor | None) -> None:
        """Count a call; `rows` are the labels of the rows of its input, if these are channels."""
        layer.calls += 1
        positions = out.numel() // max(1, out.shape[1] * self._batch)
        applied = call.applied(out) // self._batch
        each = len(layer.into) // layer.groups * prod(layer.kernel)
        first = not layer.positions and layer.other == (0, 0)
        usual = call.weight.numel() == len(layer.out) * each and out.shape[1] == len(layer.out)
        if usual and rows is not None and first and not len(rows) % self._batch:
            layer.rows = rows[: len(rows) // self._batch]
            layer.positions, layer.applied = (
                positions // len(layer.rows),
                applied // len(layer.rows),
            )
        elif usual and rows is None and layer.rows is None:
            layer.positions += positions
            layer.applied += applied
        else:
            macs, elements = layer.other
            more = positions * out.shape[1]
            layer.other = (macs + applied * call.weight.numel(), elements + more)

    def _reads(self, call: Call, layer: LayerTrace, into: Tensor) -> None:
        store, name, rank = self.store, layer_name(call.name), call.weight.ndim
        out_axis, in_axis = (1, 0) if layer.transposed else (0, 1)

        def shaped(labels: Tensor, axis: int) -> Tensor:
            return labels.reshape([-1 if i == axis else 1 for i in range(rank)])

        if layer.groups == 1:
            zeroed = call.origin.zeroed(in_axis)
            if call.weight.shape[in_axis] > 1 and not zeroed:
                store.bend(into, f"the weight of {name} is computed from all of its inputs")
            layer.added |= {key for key in zeroed if key[0] != call.name}
            store.unite(layer.into, into, f"the shared layer {name}")
            store.index(call.origin, shaped(into, in_axis), f"the shared layer {name}")
            store.index(call.origin, shaped(layer.out, out_axis), name)
        else:  # the channels of a conv-group are coupled
            kind = "depth-wise" if layer.groups == len(into) else "grouped"
            why = f"the {kind} convolution {name}"
            store.unite(layer.into, into, why)
            ins, outs = into.view(layer.groups, -1), layer.out.view(layer.groups, -1)
            store.unite(ins[:, :1], outs, why)
            store.unite(ins[:, :1], ins, why)
            store.index(call.origin, shaped(into if layer.transposed else layer.out, 0), why)
        bias = call.bias
        if bias is not None:
            origin = self.origin(bias)
            if origin is not None:
                store.index(origin, layer.out, name)
            else:
                store.freeze(layer.out, f"the bias of {name} is computed")

    # ------------------------------------------------------------ everything else

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Label the outputs of any other operation."""
        packet, store = func.overloadpacket, self.store
        tensors = tensors_in(*args, kwargs)
        store.used(tensors)
        if packet is aten.embedding and args[1] not in store:
            self._looked_up(args[0], out)
            return
        labelled = any(x in store for x in tensors)
        pointwise = torch.Tag.pointwise in func.tags or packet in ELEMENTWISE
        if packet in VIEWS:
            if labelled and store.uniform(args[0]):
                store.make_uniform(out)
        elif labelled:
            for x in tensors:
                if not (func._schema.is_mutable and x is args[0]):
                    store.fill(x)
        if pointwise and not labelled and any(x.ndim and self.origin(x) is None for x in tensors):
            for x in tensors:
                self._lend(x)
        elif packet is aten.cat and labelled:
            beside = {axis for x in tensors for axis in varying_axes(store.labels(x))}
            for x in tensors:
                self._lend(x, beside - {argument(func, args, kwargs, "dim", 0) % out.ndim})
        if packet is aten.index_select and self._selects(args[0], self.origin(args[2]), out):
            return
        if packet in VIEWS:
            for made in tree_leaves(out):
                self._views.note(made, func, args, kwargs)
        if packet in UNIFORM:
            store.make_uniform(out, next(iter(tensors), None))
        elif any(x in store for x in tensors):
            self._in_time(packet.__name__)
            written = func._schema.is_mutable and args and out is args[0]
            before = store.labels(out) if written else None
            self._rule(func, args, kwargs, out, tensors)
            if written and before is not None:
                self._views.written(out, before)
        elif isinstance(out, Tensor) and self._is_uniform(packet, tensors):
            if out not in self._views or not func._schema.is_mutable:
                store.make_uniform(out)
            else:  # a view of a tensor: the rest of the tensor may differ
                self._views.written_fixed(out)
        elif isinstance(out, Tensor) and func._schema.is_mutable:
            self._views.written_fixed(out)

    def _lend(self, tensor: Tensor, among: Set[int] | None = None) -> None:
        """Give a parameter that meets data labels of its own, which no layer issues.

        It needs one axis with several entries, not counting expanded ones, or one of those `among`.
        """
        origin = self.origin(tensor)
        if origin is None or tensor in self.store:
            return
        axes = [
            axis
            for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
            if size > 1 and stride
        ]
        if among is not None:
            axes = [axis for axis in axes if axis in among]
        if len(axes) == 1 and origin.axes:
            shape = [-1 if axis == axes[0] else 1 for axis in range(tensor.ndim)]
            labels = self.store.issue(tensor.shape[axes[0]]).reshape(shape)
            self.store.index(origin, labels, "a parameter")
            self.store.put(tensor, labels)

    def _looked_up(self, table: Tensor, out: Tensor) -> None:
        """Rows of a table: each entry of a row is a channel that no layer issues."""
        origin, store = self.origin(table), self.store
        if origin is None or not origin.plain:
            return
        labels = store.trace.slots.get((origin.name, 1))
        if labels is None:
            labels = store.issue(table.shape[1])
            store.slot((origin.name, 1), labels, "a table")
        store.put(out, labels.reshape([*[1] * (out.ndim - 1), -1]))

    def _selects(self, x: Tensor, origin: Origin | None, out: Tensor) -> bool:
        """Whether a convolution selects channels here; it then issues channels of its own."""
        if origin is None or origin.name not in self._selectors:
            return False
        store, name, width = self.store, origin.name, out.shape[1]
        store.freeze(store.labels(x), f"{name} selects from it by index")
        layer = store.trace.layers.get(name)
        if layer is None:
            layer = store.trace.layers[name] = LayerTrace(
                name=name, out=store.issue(width), into=torch.empty(0, dtype=torch.long),
                kernel=(1,) * (out.ndim - 2), groups=1, transposed=False, in_axis=1,
                order=len(store.trace.layers), computed=False, cuttable=True,
            )  # fmt: skip
            store.index(origin, layer.out, name)
        if self.counting:
            layer.calls += 1
            layer.positions += out.numel() // max(1, width * self._batch)
        store.put(out, layer.out.reshape([1, -1, *[1] * (out.ndim - 2)]))
        return True

    def _is_uniform(self, packet: Any, tensors: list[Tensor]) -> bool:
        """Whether the result is uniform over channels, as the inputs are."""
        sized = [x for x in tensors if x.ndim]
        pointwise = torch.Tag.pointwise in getattr(packet, packet.overloads()[0]).tags
        known = pointwise or packet in KEEPS or packet in VIEWS or packet in DRAWS
        return known and bool(sized) and all(self.store.uniform(x) for x in sized)

    def _rule(
        self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any, tensors: list[Tensor]
    ) -> None:
        packet, store = func.overloadpacket, self.store
        if packet is aten.copy_:
            self._copy(args[0], args[1])
        elif packet in (aten.index_put_, aten.index_put, aten._unsafe_index_put):
            index_put(store, args, out)
        elif rearrange(store, func, args, kwargs, out):
            pass
        elif packet is aten._is_all_true and bool(out):
            pass  # what holds for all channels holds for fewer
        elif packet in KEEPS:
            store.copy(out[0] if isinstance(out, tuple) else out, tensors[0])
        elif packet in RESIZES:
            name = packet.__name__.strip("_")
            if packet.__name__.startswith("grid_sampler"):
                store.freeze(store.labels(args[1]), "it holds coordinates for resampling an image")
            arithmetic.resize(store, args[0], out, RESIZES[packet], name)
        elif packet in UNPOOLS:
            arithmetic.unpool(store, self.origin, args, out, UNPOOLS[packet], packet.__name__)
        elif packet in PLACES:
            arithmetic.place(store, self.origin, func, args, kwargs, out)
        elif packet in NORMALISES_BATCH:
            arithmetic.normalise_batch(store, self.origin, args, out)
            self._name_norm(args)
        elif packet is aten.native_group_norm:
            arithmetic.normalise_groups(store, self.origin, args, out)
        elif packet is aten.native_layer_norm:
            arithmetic.normalise_layer(store, self.origin, args, out)
        elif packet in PRODUCTS:
            arithmetic.product(store, self.origin, packet.__name__, args, out)
        elif packet in ATTENTION:
            arithmetic.attend(store, args, out)
        elif packet in ALONG:
            arithmetic.run_along(store, func, args, kwargs, out)
        elif torch.Tag.pointwise in func.tags or packet in ELEMENTWISE:
            why = f"the {packet.__name__.strip('_')}"
            arithmetic.elementwise(store, self.origin, tensors, out, why)
        elif packet in REDUCES:
            arithmetic.reduce(store, func, args, kwargs, out)
        else:
            self._unknown(func, args, kwargs, out, tensors)

    def _unknown(
        self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any, tensors: list[Tensor]
    ) -> None:
        name = func.overloadpacket._qualified_op_name
        if name in REGIONS:
            REGIONS[name](self.store, func, args, kwargs, out)
            return
        if name == "torchvision::deform_conv2d":
            self._deformed(args, out)
            return
        why = f"the operation {func.overloadpacket.__name__} has no rule"
        if func.overloadpacket is aten.convolution:
            why = "a convolution has a weight that is computed from data"
        for tensor in tensors:
            self.store.freeze(self.store.labels(tensor), why)

    def _deformed(self, args: tuple[Any, ...], out: Tensor) -> None:
        """A deformable convolution: it issues channels, and its inputs are frozen.

        Its inputs could be cut, but their contributions cannot be measured.
        """
        x, weight, offset, mask, bias = args[:5]
        origin = self.origin(weight)
        for tensor, why in (
            (x, "a deformable convolution reads it"),
            (offset, "it holds offsets for a deformable convolution"),
            (mask, "it holds weights for the positions of a deformable convolution"),
        ):
            self.store.freeze(self.store.labels(tensor), why)
        if origin is not None and origin.plain:
            conv = Conv((), (), (), False, args[11])
            call = Call(origin.name, x, weight, bias, conv, origin)
            labels = self.store.labels(x)
            self.store.put(x, torch.full((1,) * x.ndim, FROZEN))  # read as if it held no channels
            self.on_call(call, out)
            self.store.put(x, labels)

    def _name_norm(self, args: tuple[Any, ...]) -> None:
        layer, weight = self._from_layer.get(args[0]), self.origin(args[1])
        if layer is not None and weight is not None and weight.plain:
            self.store.trace.layers[layer].norm = weight.name.removesuffix(".weight")

    def on_bare_norm(self, name: str, x: Tensor) -> None:
        """A normalisation module without parameters, but with a fixed width, reads `x`."""
        with self.suspended():
            labels = self.store.column(x, 1, name)
            if name in self.store.trace.bare:
                self.store.unite(self.store.trace.bare[name], labels, f"the shared {name}")
            self.store.trace.bare[name] = labels

    def _leave(self, tensor: Tensor) -> None:
        if not self.numbers and self.careful:
            raise NeedsValues
        self.give(tensor, "its values are read outside PyTorch")

    def give(self, out: Any, why: str) -> None:
        """Freeze the tensors in `out`, which leave the network, whatever they are held by."""
        with self.suspended():
            for tensor in (given := tensors_of(out)):
                self.store.freeze(self.store.labels(tensor), why)
            self.store.used(given)

    def _pass(self, given: Any) -> None:
        if self.store.guarded or self.store.met is not None:
            with self.suspended():
                self.store.guard(given)

    def _in_time(self, where: str) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TraceError(
                f"The time limit was reached while tracing, at {where}. Give a smaller example "
                "input, or a larger time_limit."
            )

    def _copy(self, target: Tensor, source: Tensor) -> None:
        """`source` is copied into `target`, broadcast."""
        labels = widened(self.store.labels(source), target.ndim)
        self.store.put(target, labels)
        origin = self.origin(target)
        if origin is not None:
            self.store.index(origin, labels, "a write into a buffer")


def _address(given: Any) -> int | None:
    """Where the data of a tensor is stored."""
    return given.untyped_storage().data_ptr() if isinstance(given, Tensor) else None


def layer_name(weight: str) -> str:
    """The name of the layer whose weight is called `weight`."""
    name = weight.split(".parametrizations.")[0]
    for ending in (".weight", ".weight_v", ".weight_orig"):
        name = name.removesuffix(ending)
    return name


def _axis_in(call: Call, axis: int) -> int | None:
    """The axis of the parameter that corresponds to `axis` of the weight, which reads channels."""
    for (name, own), index in call.origin.axes.items():
        if name == call.name and index.shape[axis] > 1:
            return own if varying_axes(index) == [axis] else None
    inner = call.weight.shape[axis]
    return axis if inner == 1 and len(call.origin.axes) >= 2 else None


def _followed(call: Call, axis: int) -> bool:
    """Whether the rows of the weight are entries of a parameter, so that they can be removed."""
    rows = [index for index in call.origin.axes.values() if varying_axes(index) == [axis]]
    return call.weight.shape[axis] == 1 or bool(rows)


def run_on_labels(
    mode: LabelMode, model: nn.Module, run: Callable[[nn.Module], Any], outputs: str
) -> None:
    """Run `run(model)` on labels.

    Parameters
    ----------
    mode
        Where labels and couplings are recorded.
    model
        The network; the caller restores its state.
    run
        Runs the network on the example inputs.
    outputs
        The reason for which the network's outputs are frozen.
    """
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: mode.on_bare_norm(name, args[0])
        )
        for name, module in walk(model)
        if is_bare_norm(module)
    ]
    hooks.append(model.register_forward_hook(lambda _, args, out: mode.give(out, outputs)))
    try:
        with torch.no_grad(), mode.stack.of(model), mode:
            mode.give(run(model), outputs)
    finally:
        for hook in hooks:
            hook.remove()
