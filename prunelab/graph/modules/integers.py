"""Integers that modules hold as attributes, alone or in lists and tuples, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn


def integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """The integers of one module: ("heads", 4), ("sizes[0]", 16).

    Those of PyTorch's own layers are left out that follow from the shapes of their tensors.
    """
    synced = _synced(module)
    for key, value in vars(module).items():
        if key in synced:
            continue
        if type(value) is int:
            yield key, value
        elif isinstance(value, list | tuple) and {*map(type, value)} == {int}:
            yield from ((f"{key}[{place}]", item) for place, item in enumerate(value))


def _synced(module: nn.Module) -> set[str]:
    if all(tensor is None for tensor in (*module._parameters.values(), *module._buffers.values())):
        return set()
    kinds = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.")]
    return {name for kind in kinds for name in vars(kind).get("__constants__", ())}


def set_integers(model: nn.Module, values: Mapping[str, int]) -> None:
    """Set integers by their full names, such as "blocks.0.heads" and "mixer.sizes[0]".

    A list or tuple is replaced, so that other modules that hold it keep theirs. Raises
    `AttributeError`, `KeyError` or `IndexError` for a name of none.
    """
    for name, value in values.items():
        path, _, key = name.rpartition(".")
        own = vars(model.get_submodule(path))
        key, _, place = key.partition("[")
        held = own[key]
        own[key] = _with(held, int(place[:-1]), value) if place else value


def _with(held: Any, place: int, value: int) -> Any:
    """A list or tuple with another integer at this place."""
    items = [*held]
    items[place] = value
    made = getattr(held, "_make", type(held))  # of a named tuple
    return made(items)
