"""A plan: the kept units of each channel group."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Protocol, runtime_checkable

from prunelab.errors import IllegalPlan
from prunelab.values.frozen import FrozenMap, thaw
from prunelab.values.given import as_annotated

Units = tuple[int, ...]
"""Units of one channel group, ascending, in the network's *original* numbers."""


def units_of(given: Iterable[int]) -> Units:
    """`given` as ascending Python ints without repeats.

    Raises `IllegalPlan` for what is no list of whole numbers, such as a mask of booleans.
    """
    try:
        units = list(given)
        mask = bool in set(map(type, units)) or "bool" in str(getattr(given, "dtype", ""))
        if mask or isinstance(given, str):
            raise TypeError
        return tuple(sorted(set(map(index, units))))
    except TypeError:
        raise IllegalPlan(
            f"Units are a list of their numbers, such as [0, 3], not {given!r:.80}. Of a mask give "
            "the places where it is true."
        ) from None


def parts_of(names: Iterable[str], layer: str) -> list[str]:
    """Those of `names` that are the layer, or one that it has become, see `WidthPlan`."""
    return [name for name in names if f"{name}.".startswith(f"{layer}.")]


class Group(Protocol):
    """The attributes of a channel group that a `WidthPlan` uses; `ChannelGroup` has them."""

    @property
    def name(self) -> str:
        """Its first producer."""
        ...

    @property
    def width(self) -> int:
        """Units in the original network."""
        ...

    @property
    def prunable(self) -> bool:
        """Whether units may be dropped."""
        ...

    @property
    def why(self) -> str:
        """Why not, if not."""
        ...


@runtime_checkable
class Graph(Protocol):
    """The attributes of a graph that a `WidthPlan` uses; `ChannelGraph` has them."""

    @property
    def groups(self) -> Sequence[Group]:
        """All groups, in execution order."""
        ...

    @property
    def factors(self) -> Mapping[str, str]:
        """The layers that have become two, with the kind of factorisation."""
        ...

    def __getitem__(self, name: str, /) -> Group:
        """The group of this name; raises `UnknownName`."""
        ...


def plan_json(kept: Mapping[str, Units], factors: Mapping[str, str]) -> str:
    """A plan as JSON text: the units kept, and the layers that became two, if any."""
    told = {"format": 1, "kept": thaw(kept)}
    return json.dumps({**told, "factors": dict(factors)} if factors else told)


def factors_in(text: str) -> dict[str, str]:
    """The layers that became two, and how, in a plan as JSON text.

    Raises `IllegalPlan` when the text is not a plan.
    """
    try:
        factors = json.loads(text).get("factors", {})
        return {str(name): str(kind) for name, kind in factors.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise IllegalPlan(f"This text is not a width plan in JSON: {error}.") from None


@dataclass(frozen=True, slots=True)
class WidthPlan:
    """The kept units of every channel group of `graph`, in original numbers.

    Create one with `WidthPlan.full(graph)`; `drop` returns a new plan. Where a layer "conv" was
    factorised, the group "conv.0" has the channels between its two parts "conv.0" and "conv.1".
    Plans are equal when they keep the same units.
    """

    kept: FrozenMap[Units]
    graph: Graph = field(compare=False, repr=False)

    @classmethod
    @as_annotated
    def full(cls, graph: Graph) -> WidthPlan:
        """The plan that keeps every unit of every group of `graph`."""
        return cls(FrozenMap({g.name: tuple(range(g.width)) for g in graph.groups}), graph)

    @property
    def widths(self) -> dict[str, int]:
        """Units kept of each group."""
        return {name: len(units) for name, units in self.kept.items()}

    @property
    def dropped(self) -> FrozenMap[Units]:
        """The units removed so far, by group; groups without any are left out."""
        gone = {
            g.name: units_of(set(range(g.width)) - set(self.kept[g.name]))
            for g in self.graph.groups
        }
        return FrozenMap({name: units for name, units in gone.items() if units})

    def drop(self, drop: Mapping[str, Iterable[int]]) -> WidthPlan:
        """A plan without these units; dropping nothing is legal.

        Raises `UnknownName` for an unknown group, `IllegalPlan` for a unit that is not in the
        plan, a frozen group, or a group that would have no units left.
        """
        if not isinstance(drop, Mapping):
            raise IllegalPlan(f"drop is a dict of the units of each group, not {drop!r:.80}.")
        kept = dict(self.kept)
        for given, units in drop.items():
            group = self.graph[given]
            name, gone = group.name, set(units_of(units))
            if not gone:
                continue
            if not group.prunable:
                raise IllegalPlan(f"{name} cannot be pruned: {group.why}. Choose another group.")
            if missing := gone - set(kept[name]):
                raise IllegalPlan(
                    f"{name} does not have (any more) the units {sorted(missing)[:8]}; it has "
                    f"{len(kept[name])} of its {group.width} units left, numbered 0 to "
                    f"{group.width - 1} in the original network."
                )
            rest = tuple(unit for unit in kept[name] if unit not in gone)
            if not rest:
                raise IllegalPlan(
                    f"{name}: dropping {len(gone)} of {len(kept[name])} units leaves none; "
                    "one must stay. Drop fewer."
                )
            kept[name] = rest
        return WidthPlan(FrozenMap(kept), self.graph)

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` reads it back."""
        return plan_json(self.kept, self.graph.factors)

    @classmethod
    @as_annotated
    def from_json(cls, text: str, graph: Graph) -> WidthPlan:
        """The plan in `text`, checked against `graph`.

        Raises `IllegalPlan` when the text is not a plan, or is of another network.
        """
        full = cls.full(graph)
        try:
            data = json.loads(text)
            asked = {str(name): units_of(units) for name, units in data["kept"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise IllegalPlan(
                f"{text!r:.60} is not a width plan in JSON ({error}). Give what to_json() wrote."
            ) from None
        if data.get("format", 1) != 1:
            raise IllegalPlan(
                f"The plan has format {data['format']!r}; this prunelab reads 1. Upgrade it."
            )
        if set(asked) != set(full.kept):
            odd = sorted(set(asked) ^ set(full.kept))
            raise IllegalPlan(
                f"The plan is for another network: {len(odd)} groups differ, {odd[0]!r} first."
            )
        for name, units in asked.items():
            if not set(units) <= set(full.kept[name]):
                raise IllegalPlan(
                    f"The plan keeps units of {name} that it does not have (0 to "
                    f"{graph[name].width - 1}): it is for another network."
                )
        gone = {name: set(full.kept[name]) - set(units) for name, units in asked.items()}
        return full.drop(gone)

    def __str__(self) -> str:
        changed = [f"{n} {len(self.kept[n])}/{self.graph[n].width}" for n in self.dropped]
        return "WidthPlan(" + (", ".join(changed) or "every unit kept") + ")"
