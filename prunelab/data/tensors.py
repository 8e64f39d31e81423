"""What any object holds: a network may return a dataclass, an object, a set or a closure."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

OPAQUE = (type, ModuleType, nn.Module)  # what they hold is no part of a value


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors that `value` holds, each once and in an order of its own; see `reachable`."""
    return [item for item in reachable(value) if isinstance(item, Tensor)]


def reachable(value: Any) -> Iterator[Any]:
    """`value` and all that it holds, however deep, each object once.

    Contents are found as the garbage collector finds them: in containers, attributes and slots, in
    the variables of closures and generators. Classes, modules and networks are not looked into.
    """
    met: dict[int, Any] = {}  # holds on to temporary objects, so that no id is used twice
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if id(item) not in met:
            met[id(item)] = item
            yield item
            if not isinstance(item, OPAQUE):
                waiting.extend(reversed(_contents(item)))


def _contents(item: Any) -> list[Any]:
    """The objects that `item` itself holds; of a function, not those of its module."""
    if isinstance(item, Tensor):
        return list(vars(item).values())
    if isinstance(item, FunctionType):
        return [item.__closure__, item.__defaults__, item.__kwdefaults__, vars(item)]
    if isinstance(item, set | frozenset):
        return sorted(item, key=_rank)  # its own order differs from run to run
    held: list[Any] = gc.get_referents(item)
    return held[::-1] if isinstance(item, list | tuple) else held


def _rank(item: Any) -> list[tuple[tuple[int, ...], float]]:
    """By the shapes and the values of its tensors."""
    return [
        (tuple(tensor.shape), float(torch.nan_to_num(tensor.detach().double().abs()).sum()))
        for tensor in tensors_of(item)
    ]
