"""Running a network on labels: which channel every element of every tensor comes from.

Every output channel of every convolution and linear layer gets a number, its label. Beside each
tensor goes an integer tensor, broadcastable to its shape, that names for every element the
channel it came from; operations that only move data are run on the labels themselves. Where
elementwise operations make labels meet, the two channels are coupled. An operation without a
rule freezes what it touches: unknown fails safe. May import calls, places and errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from prunelab.calls import VIEWS, Call, Conv, Watch, aten
from prunelab.places import Places

FROZEN = 0  # the label of everything that is no layer's output: inputs and constants

MOVES = {
    aten.view, aten._unsafe_view, aten.reshape, aten.permute, aten.transpose, aten.t,
    aten.expand, aten.slice, aten.select, aten.squeeze, aten.unsqueeze, aten.cat, aten.stack,
    aten.split, aten.split_with_sizes, aten.unbind, aten.constant_pad_nd, aten.pixel_shuffle,
    aten.pixel_unshuffle, aten.channel_shuffle, aten.roll, aten.flip, aten.repeat, aten.index,
    aten.index_select, aten.alias,
}  # fmt: skip
KEEPS = {  # one input, and an output of the same shape and channels
    aten._to_copy, aten.detach, aten.clone, aten.contiguous, aten.lift_fresh,
    aten.native_dropout, aten.empty_like, aten.zeros_like, aten.ones_like, aten.rand_like,
    aten.randn_like, aten.full_like, aten.bernoulli, aten.bernoulli_,
    aten.uniform_, aten.normal_, aten.hardswish, aten.hardswish_, aten.log_sigmoid_forward,
    aten.zero_,
}  # fmt: skip
ELEMENTWISE = {aten._prelu_kernel}  # pointwise, though not tagged so
RESIZES = {  # act on each channel's plane: axes 0 and 1 stay
    aten.max_pool2d_with_indices, aten.max_pool3d_with_indices, aten.avg_pool1d,
    aten.avg_pool2d, aten.avg_pool3d, aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d,
    aten.adaptive_max_pool2d, aten.adaptive_max_pool3d, aten.upsample_nearest1d,
    aten.upsample_nearest2d, aten.upsample_nearest3d, aten._upsample_nearest_exact2d,
    aten.upsample_linear1d, aten.upsample_bilinear2d, aten._upsample_bilinear2d_aa,
    aten.upsample_bicubic2d, aten.upsample_trilinear3d, aten.reflection_pad1d,
    aten.reflection_pad2d, aten.replication_pad2d,
}  # fmt: skip
REDUCES = {aten.mean, aten.sum, aten.amax, aten.amin, aten.var, aten.std, aten.linalg_vector_norm}
NORMALISES_BATCH = {
    aten.native_batch_norm, aten._native_batch_norm_legit, aten.cudnn_batch_norm,
    aten._native_batch_norm_legit_no_training, aten._batch_norm_with_update,
    aten.miopen_batch_norm,
}  # fmt: skip
SOFTMAX = {aten._softmax, aten._log_softmax}
NORMALISES_CHANNELS = {aten.native_layer_norm: "LayerNorm", aten.native_group_norm: "GroupNorm"}


@dataclass(frozen=True, slots=True)
class Edge:
    """Labels `a` and `b` (equal length) live and die together, pair by pair, because of `why`.

    `where` names the innermost module that was running; "" is the network itself.
    """

    a: Tensor
    b: Tensor
    why: str
    where: str = ""


@dataclass(slots=True)
class LayerTrace:
    """What was seen of one layer: the labels of its axes and where it stands.

    `out` [out channels] and `into` [in channels] are labels; `positions` sums over its calls
    the output positions of one input, `applied` how often its kernel is applied to it; `norm`
    names the BatchNorm that follows.
    """

    name: str
    out: Tensor
    into: Tensor
    conv: Conv | None
    order: int
    positions: int = 0
    applied: int = 0
    calls: int = 0
    norm: str | None = None


@dataclass(slots=True)
class Trace:
    """All that running on labels found out. `slots` gives the labels along a tensor's axis."""

    count: int = 1
    edges: list[Edge] = field(default_factory=list)
    frozen: list[tuple[Tensor, str]] = field(default_factory=list)
    slots: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    layers: dict[str, LayerTrace] = field(default_factory=dict)


class LabelMode(Watch):
    """Runs a network and fills a `Trace`. Use under `torch.no_grad()`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.trace = Trace()
        self.places = Places(model)
        self._labels = WeakTensorKeyDictionary()
        self._bases = WeakTensorKeyDictionary()  # of a view: (base tensor, func, args, kwargs)
        self._from_layer = WeakTensorKeyDictionary()  # a layer's very output -> its name
        self._batch = 1

    # ------------------------------------------------------------ labels of tensors

    def labels(self, tensor: Tensor) -> Tensor:
        """The label of every element, broadcastable to `tensor`'s shape."""
        found = self._labels.get(tensor)
        if found is None:
            return torch.full((1,) * tensor.ndim, FROZEN)
        return found

    def put(self, tensor: Tensor, labels: Tensor) -> None:
        """Note `labels` for `tensor`, stored small."""
        self._labels[tensor] = _compress(labels)

    def freeze(self, labels: Tensor, why: str) -> None:
        """These channels must stay."""
        some = torch.unique(labels)
        some = some[some != FROZEN]
        if len(some):
            self.trace.frozen.append((some, why))

    def unite(self, a: Tensor, b: Tensor, why: str) -> None:
        """Couple `a` and `b` element by element; one that meets FROZEN is frozen."""
        a, b = torch.broadcast_tensors(a, b)
        different = a != b
        a, b = a[different], b[different]
        if not len(a):
            return
        pairs = torch.unique(torch.stack([torch.minimum(a, b), torch.maximum(a, b)]), dim=1)
        low, high = pairs
        fixed = low == FROZEN
        self.freeze(high[fixed], f"it meets a tensor of fixed width at {why}")
        if (~fixed).any():
            self.trace.edges.append(Edge(low[~fixed], high[~fixed], why, self.places.now))

    def slot(self, name: str, axis: int, labels: Tensor, why: str) -> None:
        """Axis `axis` of parameter or buffer `name` is indexed by the channels `labels`."""
        key = (name, axis)
        if key in self.trace.slots:
            self.unite(self.trace.slots[key], labels, why)
        else:
            self.trace.slots[key] = labels.clone()

    def along(self, tensor: Tensor, axis: int, why: str) -> Tensor:
        """The labels along `axis`; what varies over other axes too is frozen."""
        labels = self.labels(tensor)
        axis %= tensor.ndim
        if any(size > 1 for i, size in enumerate(labels.shape) if i != axis):
            self.freeze(labels, f"{why} meets channels laid out in an unusual way")
            return torch.full((tensor.shape[axis],), FROZEN)
        return labels.reshape(-1).expand(tensor.shape[axis]).clone()

    # ------------------------------------------------------------ layers

    def on_call(self, call: Call, out: Tensor) -> None:
        """A layer consumes its input's labels and issues its own."""
        conv = call.conv
        transposed = conv is not None and conv.transposed
        groups = conv.groups if conv is not None else 1
        out_axis, in_axis = (1, 0) if transposed else (0, 1)
        layer_name = call.name.removesuffix(".weight")
        into = self.along(call.x, 1, layer_name)
        width = call.weight.shape[out_axis] * (groups if transposed else 1)
        layer = self.trace.layers.get(call.name)
        if layer is None:
            issued = torch.arange(self.trace.count, self.trace.count + width)
            self.trace.count += width
            order = len(self.trace.layers)
            layer = LayerTrace(call.name, issued, into, conv, order)
            self.trace.layers[call.name] = layer
        layer.calls += 1
        layer.positions += out.numel() // max(1, width * self._batch)
        layer.applied += call.applied(out) // self._batch
        if groups == 1:
            self.slot(call.name, in_axis, into, f"the shared layer {layer_name}")
        else:  # a conv-group lives and dies as one
            kind = "depth-wise" if groups == len(into) else "grouped"
            why = f"the {kind} convolution {layer_name}"
            self.unite(layer.into, into, why)
            ins, outs = into.view(groups, -1), layer.out.view(groups, -1)
            self.unite(ins[:, :1], outs, why)
            self.unite(ins[:, :1], ins, why)
            if transposed:
                self.slot(call.name, 0, into, why)
        if groups == 1 or not transposed:
            self.slot(call.name, out_axis, layer.out, layer_name)
        if call.bias is not None:
            origin = self.origin(call.bias)
            if origin is not None and origin.plain:
                self.slot(origin.name, 0, layer.out, layer_name)
            else:
                self.freeze(layer.out, f"the bias of {layer_name} is computed")
        shape = [1] * out.ndim
        shape[1] = width
        self.put(out, layer.out.view(shape))
        self._from_layer[out] = call.name

    # ------------------------------------------------------------ everything else

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Labels of what any other operation gives."""
        packet = func.overloadpacket
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if packet in NORMALISES_BATCH:
            self._batch_norm(args, out)
        elif not any(x in self._labels for x in tensors):
            return  # nothing of any layer is in it: the output is a constant
        elif packet is aten.copy_:
            self._write(args[0], self._copied(args[1], args[0]))
        elif packet in MOVES:
            self._move(func, args, kwargs, out)
        elif packet in KEEPS:
            made = out[0] if isinstance(out, tuple) else out
            self.put(made, self.labels(tensors[0]))
            if packet in VIEWS:
                self._bases[made] = (tensors[0], func, args[1:], kwargs)
        elif packet in SOFTMAX:
            labels = self.labels(args[0])
            if labels.shape[args[1]] > 1:
                self.freeze(labels, "softmax is taken over its channels")
            self.put(out, labels)
        elif packet in RESIZES:
            self._resize(args[0], out[0] if isinstance(out, tuple) else out, str(packet))
        elif packet in REDUCES:
            self._reduce(args, kwargs, out, str(packet))
        elif packet in NORMALISES_CHANNELS:
            kind = NORMALISES_CHANNELS[packet]
            self.freeze(self.labels(args[0]), f"{kind} statistics would change with its width")
        elif torch.Tag.pointwise in func.tags or packet in ELEMENTWISE:
            self._elementwise(tensors, out, f"the {packet.__name__.strip('_')}")
        else:
            for tensor in tensors:
                self.freeze(self.labels(tensor), f"the operation {packet.__name__} has no rule")

    def _batch_norm(self, args: tuple[Any, ...], out: Any) -> None:
        x, parameters = args[0], args[1:5]
        labels = self.along(x, 1, "batch normalisation")
        for parameter in parameters:
            if not isinstance(parameter, Tensor):
                continue
            origin = self.origin(parameter)
            if origin is not None and origin.plain:
                self.slot(origin.name, 0, labels, "a shared batch normalisation")
            else:
                self.freeze(labels, "a batch normalisation's parameters are computed")
        if x in self._labels:
            self.put(out[0], self.labels(x))
        layer = self._from_layer.get(x)
        weight = self.origin(args[1])
        if layer is not None and weight is not None:
            self.trace.layers[layer].norm = weight.name.removesuffix(".weight")

    def _move(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        packet = func.overloadpacket
        moved = tree_map(lambda x: self._full(x) if isinstance(x, Tensor) else x, (args, kwargs))
        if packet in (aten.view, aten._unsafe_view):
            result = torch.reshape(moved[0][0], [max(1, s) if s == 0 else s for s in args[1]])
        else:
            result = func(*moved[0], **moved[1])
        for made, labels in zip(tree_leaves(out), tree_leaves(result), strict=True):
            self.put(made, labels)
            if packet in VIEWS:
                self._bases[made] = (args[0], func, args[1:], kwargs)

    def _full(self, tensor: Tensor) -> Tensor:
        """Labels at full size; an empty axis counts as one, so that channels survive it."""
        if tensor.dtype in (torch.int64, torch.int32, torch.bool) and tensor not in self._labels:
            return tensor  # an index
        return self.labels(tensor).expand([max(1, size) for size in tensor.shape])

    def _copied(self, source: Tensor, target: Tensor) -> Tensor:
        return (
            self.labels(source)
            .expand([max(1, s) for s in source.shape])
            .broadcast_to([max(1, s) for s in target.shape])
        )

    def _write(self, target: Tensor, labels: Tensor) -> None:
        """Data was written into `target`: what it is a view of changes too."""
        chain = []
        base = target
        while base in self._bases:
            parent, func, args, kwargs = self._bases[base]
            if not isinstance(parent, Tensor):
                break
            chain.append((func, args, kwargs))
            base = parent
        if not chain:
            self.put(target, labels)
            return
        whole = self._full(base).clone()
        window = whole
        for func, args, kwargs in reversed(chain):
            window = func(window, *args, **kwargs)
            if not isinstance(window, Tensor):
                self.freeze(labels, "a write into a part of a split tensor")
                self.freeze(whole, "a write into a part of a split tensor")
                return
        window.copy_(labels)
        self.put(base, whole)
        self.put(target, labels)

    def _resize(self, x: Tensor, out: Tensor, why: str) -> None:
        labels = self.labels(x)
        axes = 2 if x.ndim == out.ndim and x.ndim > 2 else 1
        if any(size > 1 for size in labels.shape[axes:]):
            self.freeze(labels, f"{why} mixes channels laid out over space")
            return
        self.put(out, labels)

    def _reduce(self, args: tuple[Any, ...], kwargs: Any, out: Any, why: str) -> None:
        x = args[0]
        labels = self.labels(x)
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        if packet_without_dims := (dims is None or dims == []):
            dims = list(range(x.ndim))
        dims = [dims] if isinstance(dims, int) else list(dims)
        dims = [dim % max(1, x.ndim) for dim in dims]
        if any(labels.shape[dim] > 1 for dim in dims):
            self.freeze(labels, f"{why.split('.')[-1]} is taken over its channels")
            return
        if packet_without_dims or not isinstance(out, Tensor):
            return
        keeps = out.ndim == x.ndim
        if not keeps:
            for dim in sorted(dims, reverse=True):
                labels = labels.squeeze(dim)
        self.put(out, labels)

    def _elementwise(self, tensors: list[Tensor], out: Any, why: str) -> None:
        made = out[0] if isinstance(out, (tuple, list)) else out
        rank = made.ndim
        result: Tensor | None = None
        parameters = []
        constants = []
        for tensor in tensors:
            if tensor.ndim == 0:
                continue
            if tensor in self._labels:
                labels = self.labels(tensor)
                labels = labels.reshape((1,) * (rank - labels.ndim) + tuple(labels.shape))
                result = labels if result is None else self._meet(result, labels, why)
            elif self.origin(tensor) is not None:
                parameters.append(tensor)
            else:
                constants.append(tensor)
        if result is None:
            return
        for tensor in parameters:
            self._meet_parameter(tensor, result, rank, why)
        for tensor in constants:
            shape = (1,) * (rank - tensor.ndim) + tuple(tensor.shape)
            if any(r > 1 and s > 1 for r, s in zip(result.shape, shape, strict=True)):
                self.freeze(result, f"it meets a tensor of fixed width at {why}")
        self.put(made, result)

    def _meet(self, a: Tensor, b: Tensor, why: str) -> Tensor:
        """Labels of an elementwise result.

        What is constant where the other varies is broadcast along the channels, and couples
        nothing.
        """
        a_wide = any(x > 1 and y == 1 for x, y in zip(a.shape, b.shape, strict=True))
        b_wide = any(y > 1 and x == 1 for x, y in zip(a.shape, b.shape, strict=True))
        if a_wide and b_wide:
            self.freeze(a, f"channels are laid out along two axes at {why}")
            self.freeze(b, f"channels are laid out along two axes at {why}")
            return torch.full((1,) * a.ndim, FROZEN)
        if a_wide:
            if (b == FROZEN).all() and b.numel() > 1:
                self.unite(a, b, why)
            return a
        if b_wide:
            return b
        self.unite(a, b, why)
        return a

    def _meet_parameter(self, tensor: Tensor, labels: Tensor, rank: int, why: str) -> None:
        """A parameter or buffer meets channels elementwise: its entries belong to them."""
        origin = self.origin(tensor)
        assert origin is not None
        shape = (1,) * (rank - tensor.ndim) + tuple(tensor.shape)
        axes = [i for i in range(rank) if labels.shape[i] > 1]
        met = [i for i in axes if shape[i] > 1]
        if not met:
            return
        axis = met[0] - (rank - tensor.ndim)
        if len(axes) > 1 or (sum(size > 1 for size in shape) > 1 and not origin.plain):
            self.freeze(labels, f"it meets {origin.name} in an unusual layout at {why}")
            return
        if not origin.plain:  # a view such as gamma[:, None, None]: one axis is left of it
            ours = list(origin.steps)
            if any(
                step[0].overloadpacket
                not in (aten.view, aten.unsqueeze, aten._unsafe_view, aten.reshape, aten.alias)
                for step in ours
            ):
                self.freeze(labels, f"it meets a part of {origin.name} at {why}")
                return
            axis = 0
        self.slot(origin.name, axis, labels.reshape(-1), why)


def _compress(labels: Tensor) -> Tensor:
    """The same labels with every axis over which they are constant made one long."""
    for axis in range(labels.ndim):
        if labels.shape[axis] > 1:
            first = labels.narrow(axis, 0, 1)
            if labels.stride(axis) == 0 or bool((labels == first).all()):
                labels = first
    return labels.clone()


def run_on_labels(model: nn.Module, run: Any, batch: int) -> Trace:
    """Run `run(model)` on labels; `batch` is how many inputs it takes at once.

    The network's outputs are frozen. The network's state is the caller's to protect.
    """
    mode = LabelMode(model)
    mode._batch = max(1, batch)
    with torch.no_grad(), mode.places, mode:
        out = run(model)
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            mode.freeze(mode.labels(leaf), "it is an output of the network")
    return mode.trace
