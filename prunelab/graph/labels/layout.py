"""Label tensors: compact integer tensors that are moved as the data of their tensor is moved.

A label tensor has as many axes as its tensor; an axis over which it is constant has length one.
The functions here do not depend on the meaning of labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Shape = Sequence[int]


def spread(labels: Tensor, shape: Shape) -> Tensor:
    """`labels` expanded to `shape`, without copying; an empty axis gets length one."""
    return labels.expand([max(1, size) for size in shape])


def compact(labels: Tensor) -> Tensor:
    """The same labels, with length one along every axis over which they are constant."""
    for axis, stride in enumerate(labels.stride()):
        if stride == 0:
            labels = labels.narrow(axis, 0, min(1, labels.shape[axis]))
    for axis in varying_axes(labels):
        first = labels.narrow(axis, 0, 1)
        if bool((labels == first).all()):
            labels = first
    return labels.clone()


def varying_axes(labels: Tensor) -> list[int]:
    """The axes along which compact `labels` vary."""
    return [axis for axis, size in enumerate(labels.shape) if size > 1]


def widened(labels: Tensor, rank: int) -> Tensor:
    """`labels` with leading axes of length one, as broadcasting adds them."""
    return labels.reshape((1,) * (rank - labels.ndim) + tuple(labels.shape))


def along(labels: Tensor, axis: int, size: int) -> Tensor:
    """`labels` expanded to `size` along `axis` only."""
    shape = list(labels.shape)
    shape[axis] = max(1, size)
    return labels.expand(shape)


def moved(func: Any, labels: Tensor, shape: Shape, args: tuple[Any, ...], kwargs: Any) -> list[Any]:
    """The labels of the outputs of `func`, an operation that only moves the data of its input."""
    return [compact(made) for made in tree_leaves(func(spread(labels, shape), *args, **kwargs))]


def blocks(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]] | None:
    """How a view regroups axes: the shortest runs of old and new axes with equal products."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = [i][: len(old) - i], [j][: len(new) - j]
        a, b = prod(old[k] for k in before), prod(new[k] for k in after)
        i, j = i + len(before), j + len(after)
        while a != b:
            if a < b and i < len(old):
                a, i = a * old[i], i + 1
                before.append(i - 1)
            elif a > b and j < len(new):
                b, j = b * new[j], j + 1
                after.append(j - 1)
            else:
                return None
        found.append((before, after))
    return found


def viewed(labels: Tensor, old: Shape, new: Shape) -> tuple[Tensor, list[list[int]]] | None:
    """Labels of a tensor of shape `old` viewed as `new`, and the new axes of each split axis.

    None where the shapes are incompatible. Only the axes along which labels vary are expanded, so
    that a flattened image needs no more memory than its channels.
    """
    old, new = [max(1, size) for size in old], [max(1, size) for size in new]
    runs = blocks(old, new)
    if runs is None:
        return None
    whole, parts = [1] * len(old), [1] * len(new)
    for before, after in runs:
        if any(labels.shape[axis] > 1 for axis in before):
            for axis in before:
                whole[axis] = old[axis]
            for axis in after:
                parts[axis] = new[axis]
    result = compact(labels.expand(whole).reshape(parts))
    splits = [[axis for axis in after if result.shape[axis] > 1] for _, after in runs]
    return result, [axes for axes in splits if len(axes) > 1]


def axes_of(dims: Any, rank: int) -> list[int]:
    """The axes of a reduction's `dim`; all axes for None or an empty list."""
    if dims is None or dims == []:
        return list(range(rank))
    given = [dims] if isinstance(dims, int) else list(dims)
    return [dim % max(1, rank) for dim in given]


def argument(func: Any, args: tuple[Any, ...], kwargs: Any, name: str, default: Any = None) -> Any:
    """The argument of an operation for the parameter `name` of its schema."""
    for place, parameter in enumerate(func._schema.arguments):
        if parameter.name == name:
            if place < len(args):
                return args[place]
            return kwargs.get(name, parameter.default_value if default is None else default)
    return default


def reduced(labels: Tensor, axes: list[int], rank: int) -> Tensor:
    """The labels of a tensor after a reduction over `axes`, over which they are constant."""
    if rank == labels.ndim:
        return labels
    return labels.reshape([size for axis, size in enumerate(labels.shape) if axis not in axes])


def tensors_in(*given: Any) -> list[Tensor]:
    """The tensors among the arguments of an operation; lists are searched one level deep."""
    found = []
    for argument in given:
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, dict):
            found += tensors_in(*argument.values())
        elif isinstance(argument, (list, tuple)):
            found += [item for item in argument if isinstance(item, Tensor)]
    return found


@lru_cache(maxsize=4096)
def arange(size: int, rank: int, axis: int) -> Tensor:
    """0 .. size-1 along `axis` of `rank` axes; shared between calls, so do not write to it."""
    shape = [1] * rank
    shape[axis] = size
    return torch.arange(size).reshape(shape)
