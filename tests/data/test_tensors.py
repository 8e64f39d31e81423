"""Tensors are found in any object, in an order that does not change from run to run."""

from __future__ import annotations

import functools
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunelab.data.tensors import tensors_of

A, B = torch.zeros(2), torch.ones(3)


@dataclass(slots=True)
class Answer:
    logits: Tensor
    more: dict[str, list[Tensor]]


class Box(dict[str, Any]):
    pass


def paused() -> Iterator[Tensor]:
    one, two = A.view(2), B.view(3)
    yield from (one, two)


HOLDERS: dict[str, Callable[[], Any]] = {
    "tuple": lambda: (A, (B, 1, None)),
    "dataclass": lambda: Answer(A, {"b": [B]}),
    "dict subclass": lambda: Box(a=A, b=[B]),
    "user dict": lambda: UserDict(a=A, b=B),
    "ordered": lambda: OrderedDict(a=A, b=deque([B])),
    "object": lambda: SimpleNamespace(a=[A], b=SimpleNamespace(c=B)),
    "partial": lambda: functools.partial(print, A, b=B),
    "closure": lambda a=A, b=B: lambda: (a, b),
    "iterator": lambda: map(str, [A, B]),
    "set": lambda: {B, A},
    "set of tuples": lambda: frozenset([(B, 1), (A, 2)]),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_holder_gives_its_tensors_in_order(holder: str) -> None:
    found = tensors_of(HOLDERS[holder]())
    assert [id(tensor) for tensor in found] == [id(A), id(B)]


def test_the_variables_of_a_generator_are_found() -> None:
    started = paused()
    next(started)
    assert {len(tensor) for tensor in tensors_of(started)} == {2, 3}


def test_an_attribute_of_a_tensor_is_found() -> None:
    tensor = torch.zeros(4)
    tensor.parts = [B]  # type: ignore[attr-defined]
    assert [len(found) for found in tensors_of(tensor)] == [4, 3]


def test_a_circle_ends_and_each_tensor_is_given_once() -> None:
    holder: list[Any] = [A, A]
    holder.append(holder)
    assert len(tensors_of(holder)) == 1


def test_networks_classes_and_modules_are_not_looked_into() -> None:
    layer = nn.Linear(2, 3)
    assert tensors_of([layer, layer.forward, nn.Linear, torch, tensors_of]) == []
