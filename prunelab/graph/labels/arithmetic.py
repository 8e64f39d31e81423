"""Label rules of arithmetic: elementwise operations, sums, products, attention, normalisation.

Elementwise operations couple the channels of their inputs. Sums over channels freeze them: without
one channel the sum has another value, and no consumer's column corresponds to that channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunelab.graph.labels.label_store import FROZEN, LabelStore
from prunelab.graph.labels.layout import (
    along,
    argument,
    axes_of,
    reduced,
    tensors_in,
    varying_axes,
    widened,
)
from prunelab.graph.labels.op_tables import STATISTICS, aten
from prunelab.graph.labels.provenance import Origin

Finder = Callable[[Any], Origin | None]


def elementwise(store: LabelStore, find: Finder, tensors: list[Tensor], out: Any, why: str) -> None:
    """Couple the channels of `tensors` element by element; parameter entries belong to them."""
    made = out[0] if isinstance(out, (tuple, list)) else out
    result: Tensor | None = None
    others = []
    for tensor in tensors:
        if tensor in store:
            labels = widened(store.labels(tensor), made.ndim)
            result = labels if result is None else combine(store, result, labels, why)
        elif tensor.ndim:
            others.append(tensor)
    if result is None:
        return
    for tensor in others:
        origin = find(tensor)
        if origin is not None:
            _with_parameters(store, tensor, origin, result, why)
        elif store.uniform(tensor):
            store.settle(tensor, result)
            result = combine(store, result, widened(store.labels(tensor), made.ndim), why)
        else:
            more = made.ndim - tensor.ndim
            wide = [axis - more for axis in varying_axes(result) if axis >= more]
            # an expanded axis holds one value, whatever its length
            if any(tensor.shape[axis] > 1 and tensor.stride(axis) for axis in wide):
                store.freeze(result, f"it is combined with a tensor of fixed width by {why}")
    store.put(made, result)


def combine(store: LabelStore, a: Tensor, b: Tensor, why: str) -> Tensor:
    """The labels of an elementwise result, for inputs with labels `a` and `b` of the same rank.

    An input that is constant where the other varies is broadcast along the channels. It couples
    nothing, but it is frozen, because all of these channels depend on it.
    """
    a_wide = any(x > 1 and y == 1 for x, y in zip(a.shape, b.shape, strict=True))
    b_wide = any(y > 1 and x == 1 for x, y in zip(a.shape, b.shape, strict=True))
    if a_wide or b_wide:
        if a_wide and b_wide:  # each is broadcast over the other: keep those along the usual axis
            a_wide = (a.ndim > 1 and a.shape[1] > 1, a.numel()) > (b.shape[1] > 1, b.numel())
        wide, narrow = (a, b) if a_wide else (b, a)
        store.freeze(narrow, f"it is broadcast over other channels at {why}")
        return wide
    store.unite(a, b, why)
    return torch.where(a == FROZEN, b, a)


def _with_parameters(
    store: LabelStore, tensor: Tensor, origin: Origin, labels: Tensor, why: str
) -> None:
    rank = labels.ndim
    wide = {key: widened(index, rank) for key, index in origin.axes.items()}
    shape = (1,) * (rank - tensor.ndim) + tuple(tensor.shape)
    for axis in varying_axes(labels):
        if shape[axis] > 1 and not any(index.shape[axis] > 1 for index in wide.values()):
            store.freeze(labels, f"it is combined with a part of {origin.name} by {why}")
            return
    store.index(Origin(origin.name, wide, origin.mixed, norms=origin.norms), labels, why)


# ---------------------------------------------------------------- sums and products


def reduce(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
    """Sums, means, maxima over some axes."""
    x, labels = args[0], store.labels(args[0])
    axes = axes_of(argument(func, args, kwargs, "dim"), x.ndim)
    if any(labels.shape[axis] > 1 for axis in axes):
        packet, why = (
            func.overloadpacket,
            f"{func.overloadpacket.__name__} is taken over its channels",
        )
        if packet not in STATISTICS or len(axes) == x.ndim:
            store.freeze(labels, why)
            return
        if not store.bend(labels, why):
            return
        if packet in (aten.max, aten.min):
            store.note_places(out[1], labels)
        labels = labels.clone()
        for axis in axes:
            if labels.shape[axis] > 1:
                labels = torch.full_like(labels.narrow(axis, 0, 1), FROZEN)
    for made in out if isinstance(out, (tuple, list)) else (out,):
        if made.ndim == x.ndim or len(axes) < x.ndim:
            store.put(made, reduced(labels, axes, made.ndim))
        else:
            store.freeze(labels, "it is summed over all axes")


def product(
    store: LabelStore, find: Finder, packet: str, args: tuple[Any, ...], out: Tensor
) -> None:
    """Matrix products: elementwise products, summed over the inner axis."""
    bias, a, b = args[:3] if packet in ("addmm", "baddbmm", "addmv") else (None, *args[:2])
    for tensor, inner in ((a, a.ndim - 1), (b, max(0, b.ndim - 2))):
        if store.labels(tensor).shape[inner] > 1:
            why = "its channels are summed in a matrix product outside a layer"
            store.freeze(store.labels(tensor), why)
            store.put(tensor, torch.full((1,) * tensor.ndim, FROZEN))
    left, right = store.labels(a), store.labels(b)
    if b.ndim == 1 or a.ndim == 1:
        result = left.reshape(left.shape[:1] if a.ndim == 2 else ())
    elif a not in store or b not in store:
        wide, narrow = (left, b) if a in store else (right, a)
        axis = b.ndim - 1 if a not in store else a.ndim - 2
        batch = [x for x in varying_axes(wide) if x != axis and narrow.shape[x] > 1]
        if batch and not store.uniform(narrow):
            store.freeze(wide, "its channels are the batches of a product with a fixed tensor")
        result = wide
    else:
        result = combine(store, left, right, "a product of matrices")
    if bias is not None and bias in store:
        result = combine(
            store, result, widened(store.labels(bias), out.ndim), "a product of matrices"
        )
    elif bias is not None and bias.ndim:
        origin = find(bias)
        if origin is not None:
            _with_parameters(store, bias, origin, result, "a product of matrices")
        elif varying_axes(result):
            store.freeze(
                result, "it is combined with a tensor of fixed width by a product of matrices"
            )
    store.put(out, result)


def attend(store: LabelStore, args: tuple[Any, ...], out: Any) -> None:
    """Attention: queries and keys are summed over their channels; values keep theirs."""
    query, key, value = args[:3]
    for tensor, name in ((query, "a query"), (key, "a key")):
        store.freeze(
            store.labels(tensor), f"it is {name} of an attention, summed over its channels"
        )
    labels = store.labels(value)
    if any(axis != value.ndim - 1 for axis in varying_axes(labels)):
        store.freeze(labels, "it is a value of an attention, laid out over tokens or heads")
        return
    store.put(out[0] if isinstance(out, (tuple, list)) else out, labels)


# ---------------------------------------------------------------- over space, along axes


def resize(store: LabelStore, x: Tensor, out: Any, planes: int, why: str) -> None:
    """Pooling and resizing, plane by plane; `planes` is the number of trailing axes they span."""
    labels = store.labels(x)
    over = [axis for axis in varying_axes(labels) if axis >= x.ndim - planes]
    if over:
        mixes = f"{why} mixes channels laid out over space"
        inside = _inside(labels, over, out) if isinstance(out, Tensor) else None
        if inside is None:
            store.freeze(labels, mixes)
            return
        if not store.bend(labels, mixes):
            return
        labels = inside
    for made in out if isinstance(out, (tuple, list)) else (out,):
        store.put(made, labels)


def run_along(store: LabelStore, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
    """Operations along one axis: softmax, cumulative sums."""
    labels = store.labels(args[0])
    name = func.overloadpacket.__name__.strip("_").replace("safe_", "")
    if labels.shape[argument(func, args, kwargs, "dim", -1) % labels.ndim] > 1:
        store.freeze(labels, f"{name} is taken over its channels")
        return
    for made in out if isinstance(out, (tuple, list)) else (out,):
        store.put(made, labels)


def _inside(labels: Tensor, axes: list[int], out: Tensor) -> Tensor | None:
    """The labels without their padding along an axis, where as many positions come out of it."""
    if len(axes) != 1:
        return None
    (axis,) = axes
    places = torch.nonzero((labels != FROZEN).transpose(0, axis).flatten(1).any(1)).flatten()
    return labels.index_select(axis, places) if len(places) == out.shape[axis] else None


def unpool(
    store: LabelStore, find: Finder, args: tuple[Any, ...], out: Tensor, planes: int, why: str
) -> None:
    """The inverse of max pooling: the indices of a plane place the values of a plane."""
    x, indices = args[:2]
    if any(a >= x.ndim - planes for t in (x, indices) for a in varying_axes(store.labels(t))):
        for tensor in (x, indices):
            store.freeze(store.labels(tensor), f"{why} mixes channels laid out over space")
        return
    elementwise(store, find, [x, indices], out, f"the {why}")


def place(
    store: LabelStore, find: Finder, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor
) -> None:
    """Elements taken or written at given positions along `dim`; the other axes meet by element."""
    tensors = tensors_in(*args, kwargs)
    axis = argument(func, args, kwargs, "dim") % max(1, args[0].ndim)
    labels = [store.labels(tensor) for tensor in tensors]
    if any(axis in varying_axes(found) for found in labels):
        why = "its channels are selected by index"
    elif any(
        tensor.shape[a] != args[0].shape[a]
        for found in labels
        for a in varying_axes(found)
        for tensor in tensors
    ):
        why = "a part of its channels is selected by index"
    else:
        name = func.overloadpacket.__name__.strip("_")
        elementwise(store, find, tensors, out, f"the {name}")
        return
    for found in labels:
        store.freeze(found, why)


# ---------------------------------------------------------------- normalisation


def normalise_batch(store: LabelStore, find: Finder, args: tuple[Any, ...], out: Any) -> None:
    """BatchNorm: statistics are per channel; parameters and buffers belong to their channel."""
    x = args[0]
    if x not in store:
        return
    labels = store.labels(x)
    if any(axis > 1 for axis in varying_axes(labels)):
        store.freeze(labels, "batch normalisation mixes channels laid out over space")
        return
    labels = store.collapse(labels, [0], "batch normalisation")
    wide = along(labels, 1, x.shape[1])
    for parameter in args[1:5]:
        if isinstance(parameter, Tensor):
            _own(store, find, parameter, wide.reshape(-1), "a shared batch normalisation")
    store.put(out[0], labels)


def normalise_groups(store: LabelStore, find: Finder, args: tuple[Any, ...], out: Any) -> None:
    """GroupNorm: the channels of a norm group are coupled, so that its statistics stay exact."""
    x, weight, bias, groups = args[0], args[1], args[2], args[6]
    labels = store.labels(x)
    if any(axis != 1 for axis in varying_axes(labels)):
        store.freeze(labels, "GroupNorm reads channels from an unsupported axis layout")
        return
    wide = along(labels, 1, x.shape[1]).reshape(-1)
    why = "GroupNorm's statistics would change within one of its groups"
    if groups == 1 and store.inexact:
        store.bend(labels, why)
    elif x.shape[1] > groups:
        store.collapse(wide.view(groups, -1), [1], why)
    for parameter in (weight, bias):
        if isinstance(parameter, Tensor):
            _own(store, find, parameter, wide, "a shared GroupNorm")
    store.put(out[0], labels)


def normalise_layer(store: LabelStore, find: Finder, args: tuple[Any, ...], out: Any) -> None:
    """LayerNorm: exact only where it does not span channels."""
    x, axes = args[0], len(args[1])
    labels = store.labels(x)
    spanned = [axis for axis in varying_axes(labels) if axis >= x.ndim - axes]
    if spanned and not store.bend(labels, "LayerNorm's statistics would change with its width"):
        return
    for parameter in args[2:4]:
        if isinstance(parameter, Tensor) and spanned:
            origin = find(parameter)
            if origin is None:
                store.freeze(labels, "LayerNorm's parameters are computed")
            else:
                _with_parameters(store, parameter, origin, labels, "a shared LayerNorm")
    store.put(out[0], labels)


def _own(store: LabelStore, find: Finder, parameter: Tensor, labels: Tensor, why: str) -> None:
    """Assign the entries of a parameter vector to `labels`, one each."""
    origin = find(parameter)
    if origin is not None:
        _with_parameters(store, parameter, origin, labels, why)
    elif not store.uniform(parameter):
        store.freeze(labels, "the parameters of its normalisation are computed")
