"""Immutable mappings, and registered dataclasses as JSON data and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, TypeVar

from prunelab.values.fields import misfit

V = TypeVar("V", covariant=True)


class FrozenMap(Mapping[str, V]):
    """An immutable, hashable mapping; nested lists become tuples, nested mappings FrozenMaps."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        self._items: dict[str, V] = {key: _freeze(value) for key, value in dict(items).items()}

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


PLAIN = frozenset({int, float, str, bool, type(None)})


def _freeze(value: Any) -> Any:
    if type(value) is tuple and PLAIN.issuperset(map(type, value)):
        return value  # often thousands of units, frozen at each move of a slider
    if isinstance(value, Mapping):
        return FrozenMap(value)
    if isinstance(value, (list, tuple)):
        if PLAIN.issuperset(map(type, value)):  # such as the units of a wide group
            return tuple(value)
        return tuple(_freeze(item) for item in value)
    return value


class Codec:
    """Turns registered frozen dataclasses into plain JSON data and back.

    A class lists in `retired` fields of older files that it no longer has.
    """

    known: ClassVar[dict[str, type]] = {}

    @classmethod
    def register(cls, *kinds: type) -> None:
        """Let `encode` and `decode` handle these dataclasses."""
        cls.known.update({kind.__name__: kind for kind in kinds})


PAIRS = "pairs"  # marks a mapping that has a key `is` itself


def thaw(value: Any) -> Any:
    """A value as JSON data: dicts, lists and scalars; registered dataclasses carry `is`."""
    if is_dataclass(value) and not isinstance(value, type):
        data = {f.name: thaw(getattr(value, f.name)) for f in fields(value) if f.init}
        return {"is": type(value).__name__, **data}
    if isinstance(value, Mapping):
        data = {str(key): thaw(item) for key, item in value.items()}
        return {"is": PAIRS, PAIRS: [*data.items()]} if "is" in data else data
    if isinstance(value, (tuple, list)):
        return [thaw(item) for item in value]
    return value


def revive(data: Any) -> Any:
    """The inverse of `thaw`; raises KeyError, TypeError or ValueError for other data."""
    if isinstance(data, dict):
        if data.get("is") == PAIRS:
            return FrozenMap({key: revive(item) for key, item in data[PAIRS]})
        if "is" in data:
            kind = Codec.known[data["is"]]
            skipped = {"is", *getattr(kind, "retired", ())}
            given = {key: revive(item) for key, item in data.items() if key not in skipped}
            if (wrong := misfit(kind, given)) is not None:
                raise TypeError(f"{kind.__name__} with {wrong}={given[wrong]!r:.60}")
            return kind(**given)
        return FrozenMap({key: revive(item) for key, item in data.items()})
    if isinstance(data, list):
        return tuple(revive(item) for item in data)
    return data
