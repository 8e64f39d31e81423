"""What a run of a network may change besides its output: inputs, attributes, random states."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from prunelab.data.tensors import tensors_of
from prunelab.graph.modules.walk import walk


def own(inputs: Any) -> Any:
    """A copy of `inputs` for one run, which may write into them or take them apart."""
    memo: dict[int, Any] = {
        id(tensor): tensor.detach().clone().requires_grad_(tensor.requires_grad)
        for tensor in tensors_of(inputs)
    }
    try:
        return copy.deepcopy(inputs, memo)
    except Exception:  # a file, a generator: it cannot be copied
        return inputs


@contextmanager
def python_random_kept() -> Iterator[None]:
    """Restore the random state of Python and NumPy, if the code inside draws from it."""
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        if random.getstate() != state:
            random.setstate(state)
        if not _same_numpy(np.random.get_state(), numpy_state):  # noqa: NPY002
            np.random.set_state(numpy_state)  # noqa: NPY002


def _same_numpy(a: Any, b: Any) -> bool:
    return a[2:] == b[2:] and np.array_equal(a[1], b[1])


def kept_state(model: nn.Module) -> dict[str, Any]:
    """Everything that the modules of `model` keep beside submodules and hooks, by name."""
    found = {}
    for name, module in walk(model):
        for part in (vars(module), module._parameters, module._buffers):
            for key in part.keys() - INTERNAL:
                found[f"{name}.{key}".removeprefix(".")] = _form(part[key])
    return found


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names under which something else is kept now."""
    return [name for name, form in after.items() if name not in before or before[name] != form]


INTERNAL = vars(nn.Module()).keys()
PLAIN = {bool, int, float, str}


def _form(value: Any) -> Any:
    """A value that is equal as long as `value` holds the same objects."""
    if value is None or type(value) in PLAIN:
        return value
    if isinstance(value, dict):
        return [(key, _form(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, set)):
        return [*map(_form, value)]
    return _Same(value)


class _Same:
    """Equal to another one of the same object; it keeps that object alive."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value
