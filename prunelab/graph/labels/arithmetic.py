"""What computing does to labels: elementwise, sums, products, attention, normalisation.

Elementwise operations unite the channels that meet. Sums over channels freeze them: what is
left of the sum when one is gone is another number, and no consumer's column stands for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunelab.graph.labels.label_store import FROZEN, Book
from prunelab.graph.labels.layout import (
    along,
    argument,
    axes_of,
    reduced,
    varying,
    widened,
)
from prunelab.graph.labels.provenance import Origin

Finder = Callable[[Any], Origin | None]


def elementwise(book: Book, find: Finder, tensors: list[Tensor], out: Any, why: str) -> None:
    """The channels that meet live and die together; entries of parameters belong to them."""
    made = out[0] if isinstance(out, (tuple, list)) else out
    result: Tensor | None = None
    others = []
    for tensor in tensors:
        if tensor in book:
            labels = widened(book.labels(tensor), made.ndim)
            result = labels if result is None else meet(book, result, labels, why)
        elif tensor.ndim:
            others.append(tensor)
    if result is None:
        return
    for tensor in others:
        origin = find(tensor)
        if origin is not None:
            _with_parameters(book, tensor, origin, result, why)
        elif book.uniform(tensor):
            book.settle(tensor, result)
            result = meet(book, result, widened(book.labels(tensor), made.ndim), why)
        else:
            shape = (1,) * (made.ndim - tensor.ndim) + tuple(tensor.shape)
            if any(shape[axis] > 1 for axis in varying(result)):
                book.freeze(result, f"it meets a tensor of fixed width at {why}")
    book.put(made, result)


def meet(book: Book, a: Tensor, b: Tensor, why: str) -> Tensor:
    """Labels of an elementwise result of tensors with labels `a` and `b`, of the same rank.

    One that is constant where the other varies is broadcast along the channels. It couples
    nothing, but must stay: all of them depend on it.
    """
    a_wide = any(x > 1 and y == 1 for x, y in zip(a.shape, b.shape, strict=True))
    b_wide = any(y > 1 and x == 1 for x, y in zip(a.shape, b.shape, strict=True))
    if a_wide and b_wide:
        book.freeze(a, f"channels are laid out along two axes at {why}")
        book.freeze(b, f"channels are laid out along two axes at {why}")
        return torch.full((1,) * a.ndim, FROZEN)
    if a_wide or b_wide:
        wide, narrow = (a, b) if a_wide else (b, a)
        book.freeze(narrow, f"it is broadcast over other channels at {why}")
        return wide
    book.unite(a, b, why)
    return torch.where(a == FROZEN, b, a)


def _with_parameters(book: Book, tensor: Tensor, origin: Origin, labels: Tensor, why: str) -> None:
    rank = labels.ndim
    wide = {key: widened(index, rank) for key, index in origin.axes.items()}
    shape = (1,) * (rank - tensor.ndim) + tuple(tensor.shape)
    for axis in varying(labels):
        if shape[axis] > 1 and not any(index.shape[axis] > 1 for index in wide.values()):
            book.freeze(labels, f"it meets a part of {origin.name} at {why}")
            return
    book.index(Origin(origin.name, wide, origin.mixed, norms=origin.norms), labels, why)


# ---------------------------------------------------------------- sums and products


def reduce(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
    """Sums, means, maxima over some axes."""
    x, labels = args[0], book.labels(args[0])
    axes = axes_of(argument(func, args, kwargs, "dim"), x.ndim)
    if any(labels.shape[axis] > 1 for axis in axes):
        name = func.overloadpacket.__name__
        book.freeze(labels, f"{name} is taken over its channels")
        return
    for made in out if isinstance(out, (tuple, list)) else (out,):
        if made.ndim == x.ndim or len(axes) < x.ndim:
            book.put(made, reduced(labels, axes, made.ndim))
        else:
            book.freeze(labels, "it is summed up")


def product(book: Book, find: Finder, packet: str, args: tuple[Any, ...], out: Tensor) -> None:
    """A matrix product is an elementwise one, summed over the inner axis."""
    bias, a, b = args[:3] if packet in ("addmm", "baddbmm", "addmv") else (None, *args[:2])
    for tensor, inner in ((a, a.ndim - 1), (b, max(0, b.ndim - 2))):
        if book.labels(tensor).shape[inner] > 1:
            why = "its channels are summed up in a product that is no layer"
            book.freeze(book.labels(tensor), why)
            book.put(tensor, torch.full((1,) * tensor.ndim, FROZEN))
    left, right = book.labels(a), book.labels(b)
    if b.ndim == 1 or a.ndim == 1:
        result = left.reshape(left.shape[:1] if a.ndim == 2 else ())
    elif a not in book or b not in book:
        wide, narrow = (left, b) if a in book else (right, a)
        axis = b.ndim - 1 if a not in book else a.ndim - 2
        batch = [x for x in varying(wide) if x != axis and narrow.shape[x] > 1]
        if batch and not book.uniform(narrow):
            book.freeze(wide, "its channels are the batches of a product with a fixed tensor")
        result = wide
    else:
        result = meet(book, left, right, "a product of matrices")
    if bias is not None and bias in book:
        result = meet(book, result, widened(book.labels(bias), out.ndim), "a product of matrices")
    elif bias is not None and bias.ndim:
        origin = find(bias)
        if origin is not None:
            _with_parameters(book, bias, origin, result, "a product of matrices")
        elif varying(result):
            book.freeze(result, "it meets a tensor of fixed width at a product of matrices")
    book.put(out, result)


def attend(book: Book, args: tuple[Any, ...], out: Any) -> None:
    """Attention: queries and keys are summed over, values keep their channels."""
    query, key, value = args[:3]
    for tensor, name in ((query, "a query"), (key, "a key")):
        book.freeze(book.labels(tensor), f"it is {name} of an attention, summed over its channels")
    labels = book.labels(value)
    if any(axis != value.ndim - 1 for axis in varying(labels)):
        book.freeze(labels, "it is a value of an attention, laid out over tokens or heads")
        return
    book.put(out[0] if isinstance(out, (tuple, list)) else out, labels)


# ---------------------------------------------------------------- over space, along axes


def resize(book: Book, x: Tensor, out: Any, planes: int, why: str) -> None:
    """Pooling and the like, plane by plane; `planes` counts the last axes that they span."""
    labels = book.labels(x)
    if any(axis >= x.ndim - planes for axis in varying(labels)):
        book.freeze(labels, f"{why} mixes channels laid out over space")
        return
    for made in out if isinstance(out, (tuple, list)) else (out,):
        book.put(made, labels)


def run_along(book: Book, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
    """Softmax, cumulative sums: along one axis."""
    labels = book.labels(args[0])
    name = func.overloadpacket.__name__.strip("_").replace("safe_", "")
    if labels.shape[argument(func, args, kwargs, "dim", -1) % labels.ndim] > 1:
        book.freeze(labels, f"{name} is taken over its channels")
        return
    for made in out if isinstance(out, (tuple, list)) else (out,):
        book.put(made, labels)


# ---------------------------------------------------------------- normalisation


def normalise_batch(book: Book, find: Finder, args: tuple[Any, ...], out: Any) -> None:
    """Each channel by its own statistics: its parameters and buffers belong to the channel."""
    x = args[0]
    if x not in book:
        return
    labels = book.labels(x)
    if any(axis > 1 for axis in varying(labels)):
        book.freeze(labels, "batch normalisation mixes channels laid out over space")
        return
    labels = book.collapse(labels, [0], "batch normalisation")
    wide = along(labels, 1, x.shape[1])
    for parameter in args[1:5]:
        if isinstance(parameter, Tensor):
            _own(book, find, parameter, wide.reshape(-1), "a shared batch normalisation")
    book.put(out[0], labels)


def normalise_groups(book: Book, find: Finder, args: tuple[Any, ...], out: Any) -> None:
    """GroupNorm: the channels of one norm group live and die together, so statistics stay."""
    x, weight, bias, groups = args[0], args[1], args[2], args[6]
    labels = book.labels(x)
    if any(axis != 1 for axis in varying(labels)):
        book.freeze(labels, "GroupNorm meets channels laid out in an unusual way")
        return
    wide = along(labels, 1, x.shape[1]).reshape(-1)
    if x.shape[1] > groups:
        parts = wide.view(groups, -1)
        why = "GroupNorm's statistics would change within one of its groups"
        book.collapse(parts, [1], why)
    for parameter in (weight, bias):
        if isinstance(parameter, Tensor):
            _own(book, find, parameter, wide, "a shared GroupNorm")
    book.put(out[0], labels)


def normalise_layer(
    book: Book, find: Finder, args: tuple[Any, ...], out: Any, inexact: bool
) -> None:
    """LayerNorm: exact only where it does not span channels."""
    x, axes = args[0], len(args[1])
    labels = book.labels(x)
    spanned = [axis for axis in varying(labels) if axis >= x.ndim - axes]
    if spanned and not inexact:
        book.freeze(labels, "LayerNorm's statistics would change with its width")
        return
    if spanned:
        book.trace.inexact.append(torch.unique(labels))
    for parameter in args[2:4]:
        if isinstance(parameter, Tensor) and spanned:
            origin = find(parameter)
            if origin is None:
                book.freeze(labels, "LayerNorm's parameters are computed")
            else:
                _with_parameters(book, parameter, origin, labels, "a shared LayerNorm")
    book.put(out[0], labels)


def _own(book: Book, find: Finder, parameter: Tensor, labels: Tensor, why: str) -> None:
    """A vector with one entry for each of `labels`."""
    origin = find(parameter)
    if origin is not None:
        _with_parameters(book, parameter, origin, labels, why)
    elif not book.uniform(parameter):
        book.freeze(labels, "the parameters of its normalisation are computed")
