"""The small immutable values that methods, ledger, figures and people exchange.

Everything here prints on one line, compares by content, hashes, and goes to JSON and back.
May import numpy at most: a value must be readable where no torch is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

from prunelab.errors import IllegalPlan


class FrozenMap(Mapping[str, Any]):
    """An immutable, hashable mapping; nested lists become tuples, nested mappings FrozenMaps."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        self._items = {key: _freeze(value) for key, value in dict(items).items()}

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


PLAIN = {int, float, str, bool, type(None)}


def _freeze(value: Any) -> Any:
    if type(value) is tuple and PLAIN.issuperset(map(type, value)):
        return value  # most often thousands of units, and asked for while a slider moves
    if isinstance(value, Mapping):
        return FrozenMap(value)
    if isinstance(value, (list, tuple)):
        if _PLAIN.issuperset(map(type, value)):  # the units of a wide group, say
            return tuple(value)
        return tuple(_freeze(item) for item in value)
    return value


_PLAIN = frozenset({int, float, str, bool, type(None)})

Units = tuple[int, ...]
"""Units of one channel group, ascending, in the network's *original* numbers."""


def units_of(given: Iterable[int]) -> Units:
    """`given` as ascending Python ints without repeats."""
    return tuple(sorted({int(unit) for unit in given}))


class Group(Protocol):
    """What a `WidthPlan` asks of a channel group; `channels.ChannelGroup` is one."""

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


class Graph(Protocol):
    """What a `WidthPlan` asks of a graph; `channels.ChannelGraph` is one."""

    @property
    def groups(self) -> Sequence[Group]:
        """All groups, in execution order."""
        ...

    def __getitem__(self, name: str, /) -> Group:
        """The group of this name; raises `UnknownName`."""
        ...


@dataclass(frozen=True, slots=True)
class WidthPlan:
    """The kept units of every channel group of `graph`, in original numbers.

    Make one with `WidthPlan.full(graph)`; `drop` gives a new plan and leaves this one alone.
    Plans are equal when they keep the same units.
    """

    kept: FrozenMap
    graph: Graph = field(compare=False, repr=False)

    @classmethod
    def full(cls, graph: Graph) -> WidthPlan:
        """The plan that keeps every unit of every group of `graph`."""
        return cls(FrozenMap({g.name: tuple(range(g.width)) for g in graph.groups}), graph)

    @property
    def widths(self) -> dict[str, int]:
        """Units kept of each group."""
        return {name: len(units) for name, units in self.kept.items()}

    @property
    def dropped(self) -> FrozenMap:
        """Units removed so far, of the groups where any is."""
        gone = {
            g.name: units_of(set(range(g.width)) - set(self.kept[g.name]))
            for g in self.graph.groups
        }
        return FrozenMap({name: units for name, units in gone.items() if units})

    def drop(self, drop: Mapping[str, Iterable[int]]) -> WidthPlan:
        """A plan without these units; dropping nothing is legal.

        Raises `UnknownName` for a group that is not there, `IllegalPlan` for a unit that is not
        there, a frozen group, or a group left with nothing.
        """
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
        return json.dumps({"format": 1, "kept": thaw(self.kept)})

    @classmethod
    def from_json(cls, text: str, graph: Graph) -> WidthPlan:
        """The plan in `text`, checked against `graph`.

        Raises `IllegalPlan` when the text is no plan or speaks of another network.
        """
        full = cls.full(graph)
        try:
            kept = json.loads(text)["kept"]
            asked = {str(name): units_of(units) for name, units in kept.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise IllegalPlan(f"This text is not a width plan in JSON: {error}.") from None
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


# ---------------------------------------------------------------- what things cost


@dataclass(frozen=True, slots=True)
class Cost:
    """What one input costs: multiply-adds, parameters of the network, bytes of activations.

    `macs` counts convolutions and linear layers; a paper's "FLOPs" are often 2 x MACs.
    `activation_bytes` is the sum of their outputs; `at` is the size of the input, as 1x28x28.
    """

    macs: int
    params: int
    activation_bytes: int
    at: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{si(self.macs)} MACs, {si(self.params)} parameters"


def si(number: float) -> str:
    """`number` with three digits and a prefix: 31.4 M."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g}"


def many(count: int, thing: str) -> str:
    """`count` things in words: 1 unit, 2 units."""
    return f"{count} {thing}{'s' * (count != 1)}"


def listed(names: Iterable[str], most: int) -> str:
    """The first `most` names, and how many more there are: a, b and 3 more."""
    every = list(names)
    shown = ", ".join(every[:most])
    return shown if len(every) <= most else f"{shown} and {len(every) - most} more"


# ---------------------------------------------------------------- what a method shows


@dataclass(frozen=True, slots=True)
class Importance:
    """One score per unit of a group: the lower, the safer to drop.

    `values` align with `units`; `meaning` names the score and its unit in plain words.
    """

    group: str
    units: Units
    values: tuple[float, ...]
    meaning: str

    def __str__(self) -> str:
        return f"Importance({self.group}: {len(self.units)} units, {self.meaning})"


Verdict = Literal["take", "halve", "fail"]


def verdict_of(worst: float, candidates: int, theta: float) -> Verdict:
    """What a halving whose worst mean damage is `worst` decides about its `candidates`."""
    return "take" if worst < theta else "halve" if candidates > 1 else "fail"


@dataclass(frozen=True, slots=True)
class Rung:
    """One halving of AOFP's binary search in one group (Ding et al., ICML 2019).

    `search` is the set under search, `damages` aligned with it: the mean share of the consumer's
    signal lost while a random half that holds the unit is masked. `candidates` are the half with
    the smallest means, `worst` the largest mean among them. The verdict is "take" when
    `worst < theta`, else "halve" (search on in the candidates) or "fail" (nothing left to halve).
    `batches` is 0 where the means are exact expectations.
    """

    group: str
    halving: int
    search: Units
    damages: tuple[float, ...]
    candidates: Units
    worst: float
    theta: float
    verdict: Verdict
    batches: int = 0

    def at(self, theta: float) -> Rung:
        """The same measurement, judged with another theta."""
        verdict = verdict_of(self.worst, len(self.candidates), theta)
        return replace(self, theta=theta, verdict=verdict)

    def __str__(self) -> str:
        return (
            f"Rung({self.group}: {len(self.search)} -> {len(self.candidates)}, "
            f"worst {self.worst:.4f} against theta {self.theta:g}: {self.verdict})"
        )


@dataclass(frozen=True, slots=True)
class PathPoint:
    """One penalty of Channel Pruning's LASSO in one group (He, Zhang, Sun; ICCV 2017).

    `penalty` is lambda as a share of the smallest that keeps nothing; `kept` counts the channels
    with a coefficient at it, `unexplained` is the share of the consumers' signal that their
    weighted sum misses, before any refit. The search wants `wanted` channels.
    """

    group: str
    penalty: float
    kept: int
    unexplained: float
    wanted: int

    def __str__(self) -> str:
        return (
            f"PathPoint({self.group}: lambda {self.penalty:.3g} keeps {self.kept}, "
            f"{self.wanted} wanted)"
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a piece of work has come: `done` of `total` steps, and what it is."""

    done: int
    total: int
    what: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A verb is over, done, stopped or failed, and the session is free for the next."""

    verb: str


@dataclass(frozen=True, slots=True)
class Move:
    """The units to drop of each group it touches, proposed by one method; it changes nothing.

    `damage` predicts, per group, the share of the consumers' signal that is lost (0 = none);
    `fingerprint` names the very network that it was measured on. `carry` is what the method's
    next search wants to know of this one.
    """

    drop: FrozenMap
    method: str
    parameters: FrozenMap
    seed: int
    damage: FrozenMap
    before: Cost
    after: Cost
    fingerprint: str
    carry: FrozenMap = field(default_factory=FrozenMap)

    @property
    def units(self) -> int:
        """How many units it drops in all."""
        return sum(len(units) for units in self.drop.values())

    def __str__(self) -> str:
        return (
            f"Move({self.method}: drop {many(self.units, 'unit')} in "
            f"{many(len(self.drop), 'group')}, MACs {si(self.before.macs)} -> "
            f"{si(self.after.macs)})"
        )


# ---------------------------------------------------------------- to JSON and back


class Codec:
    """Turns registered frozen dataclasses into plain JSON data and back."""

    known: ClassVar[dict[str, type]] = {}

    @classmethod
    def register(cls, *kinds: type) -> None:
        """Let `encode` and `decode` handle these dataclasses."""
        cls.known.update({kind.__name__: kind for kind in kinds})


def thaw(value: Any) -> Any:
    """A value as JSON data: dicts, lists and scalars; registered dataclasses carry `is`."""
    if is_dataclass(value) and not isinstance(value, type):
        data = {f.name: thaw(getattr(value, f.name)) for f in fields(value) if f.init}
        return {"is": type(value).__name__, **data}
    if isinstance(value, Mapping):
        return {str(key): thaw(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [thaw(item) for item in value]
    return value


def revive(data: Any) -> Any:
    """What `thaw` made, as the value it was; raises KeyError or TypeError for anything else."""
    if isinstance(data, dict):
        if "is" in data:
            kind = Codec.known[data["is"]]
            return kind(**{key: revive(item) for key, item in data.items() if key != "is"})
        return FrozenMap({key: revive(item) for key, item in data.items()})
    if isinstance(data, list):
        return tuple(revive(item) for item in data)
    return data


Codec.register(Cost, Importance, PathPoint, Rung, Move)
