"""What a method is: a frozen dataclass with one generator, `search(context)`.

It yields what it sees (`Rung`, `Importance`, `Progress`) and returns one Move, or None when it
has nothing more. All that a session reads of a method is read by the functions of this module.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Protocol

from torch import nn

from prunelab.cost.latency_table import LatencyTable
from prunelab.errors import InvalidValue
from prunelab.evidence import AimedGram, Evidence
from prunelab.graph.channels.channel_graph import ChannelGraph, ChannelGroup
from prunelab.loops.training import Training
from prunelab.values import Cost, FrozenMap, Move, Units, WidthPlan, thaw
from prunelab.values.machine import Memory


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A move, and the trained network that it is to be cut from (None: the network as it is).

    `momentum`, see `loops.training.momentum_of`, is handed back to the next search.
    """

    move: Move | None
    weights: nn.Module | None = None
    momentum: nn.Module | None = None


Search = Generator[Any, None, Move | Found | None]


class Method(Protocol):
    """What a session asks of a method; a user's own needs no more than this.

    `search` may measure (`yield from context.measure(...)`), yields what there is to see, and
    returns one move; a method that trains a copy of the network returns `Found(move, copy)`.
    Towards a target the session asks again until it is met, or the method returns None. A frozen
    dataclass has its fields recorded and replayed; a class that ranks units once is shorter as a
    `OneShot`.

    A method may have more, which the session reads where it is there: `relaxed()` gives a method
    that finds more, or None, and is called where a run finds nothing; `at` ("conv" or "bn") and
    `images` say how contributions are measured for `foresee`; `groups = "internal"` that residual
    streams stay, and with `only_convolutions` fully connected layers too; `theta` that
    `foresee(theta=)` may set it; `factorises` that its moves factorise layers.

    >>> import prunelab as pl
    >>> class WidestFirst:
    ...     '''Move by move, the widest layer loses the quarter that the next layer misses least.'''
    ...
    ...     name = "widest_first"
    ...
    ...     def search(self, context):
    ...         evidence = yield from context.measure(("contribution",), images=128)
    ...         if not context.prunable:
    ...             return None
    ...         group = max(context.prunable, key=lambda group: len(group.units))
    ...         damage = dict(zip(group.units, evidence[group.name].alone(), strict=True))
    ...         scores = tuple(float(damage[unit]) for unit in group.units)
    ...         yield pl.Importance(group.name, group.units, scores, "share of the signal")
    ...         least = sorted(damage, key=damage.get)[: max(1, len(damage) // 4)]
    ...         drop = context.trimmed(
    ...             {group.name: least}, {(group.name, unit): damage[unit] for unit in least}
    ...         )
    ...         lost = {group.name: evidence[group.name].damage(drop.get(group.name, ()))}
    ...         return context.move(self, drop, lost)
    >>> model, data = pl.zoo.load("vgg8"), pl.data.load("fashion", subset=True)
    >>> session = pl.Session(model, data, WidestFirst())
    >>> print(session.propose())
    Move(widest_first: drop 32 units in 1 group, MACs 36.4 M -> 33.6 M)
    """

    name: ClassVar[str]

    def search(self, context: Context) -> Search:
        """Look for one move on the network as it is now."""
        ...


@dataclass(slots=True)
class Context:
    """What a method may ask while it searches. Nothing here changes the session.

    `model` is a copy of the network now, in evaluation mode, and `graph` describes it; both are to
    be read only, and what is measured is not of this copy. `seed` follows from the session's seed
    and the event's number; all randomness of a search must come from it. `carry` is what the
    approved move before this one left, and `momentum()` what its `Found` brought, cut as the
    network was (None: nothing, or it was tuned). `measure(kinds, at=, images=)` gives Evidence on
    training images; `images(n)` gives the very batches that hold n of them; `apart(kinds, images,
    layers)` gives two Evidences, of most of n training images and of those held out to choose by
    (None: none are); `aimed(layers, images)` measures layers against the network last trained, an
    `AimedGram` for each. `forward(model, batch)` runs a network on a batch, `loss(model, batch)`
    gives its loss. `frozen` are the modules that training must leave in evaluation mode, see
    `in_training`. `form(factors)` is the graph of the uncut network with these layers factorised as
    well. `memory.ask(...)` is called before much is allocated. `latency_table()` estimates the
    seconds of a plan on this machine.
    """

    model: nn.Module
    graph: ChannelGraph
    plan: WidthPlan
    fingerprint: str
    seed: int
    carry: FrozenMap[Any]
    target_macs: int | None
    measure: Callable[..., Generator[Any, None, Evidence]]
    apart: Callable[..., Generator[Any, None, tuple[Evidence, Evidence | None]]]
    aimed: Callable[..., Generator[Any, None, Mapping[str, AimedGram]]]
    images: Callable[[int], Iterator[Any]]
    training_batches: Callable[[int], Iterable[Any]]
    loss: Callable[[nn.Module, Any], Any]
    forward: Callable[[nn.Module, Any], Any]
    cost: Callable[[WidthPlan], Cost]
    form: Callable[[Mapping[str, str]], ChannelGraph]
    train: Training
    memory: Memory
    latency_table: Callable[[], LatencyTable]
    momentum: Callable[[], nn.Module | None] = lambda: None
    frozen: Collection[str] = ()

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The groups that still have a unit to give."""
        return tuple(g for g in self.graph.groups if g.prunable and len(g.units) > 1)

    def move(
        self,
        method: Method,
        drop: Mapping[str, Units],
        damage: Mapping[str, float] | None = None,
        carry: Mapping[str, Any] | None = None,
    ) -> Move:
        """The move that drops these units, with its costs before and after.

        Units that would leave a width which the graph's `round_to` or `min_width` forbids stay.
        `damage` is for methods that measure it (share of the consumers' signal); a method with
        another score leaves it out and yields an Importance, so that neither passes for the other.
        """
        damage = damage or {}
        drop = self.graph.rounded(self.plan, drop)
        return Move(
            drop=FrozenMap(drop),
            method=method.name,
            parameters=parameters(method),
            seed=self.seed,
            damage=FrozenMap({name: float(damage[name]) for name in drop if name in damage}),
            before=self.cost(self.plan),
            after=self.cost(self.plan.drop(drop)),
            fingerprint=self.fingerprint,
            carry=FrozenMap(carry or {}),
        )

    def trimmed(
        self, drop: Mapping[str, Units], order: Mapping[tuple[str, int], float]
    ) -> dict[str, Units]:
        """As much of `drop` as the MAC target needs, the units with the lowest `order` first.

        All of it when the target is not reached even then, or when there is none; the result
        meets the target within one unit, or one step where the graph rounds widths.
        """
        if self.target_macs is None:
            return self.graph.rounded(self.plan, drop, order)
        units = sorted(((g, u) for g, us in drop.items() for u in us), key=lambda gu: order[gu])

        def first(count: int) -> dict[str, Units]:
            chosen: dict[str, list[int]] = {}
            for group, unit in units[:count]:
                chosen.setdefault(group, []).append(unit)
            return self.graph.rounded(self.plan, chosen, order)

        low, high = 0, len(units)  # costs fall with every unit, so halve the interval
        while low < high:
            middle = (low + high) // 2
            if self.cost(self.plan.drop(first(middle))).macs <= self.target_macs:
                high = middle
            else:
                low = middle + 1
        return first(low)


def found(result: Move | Found | None) -> Found:
    """What a search returned; a move that drops nothing is no move."""
    given = result if isinstance(result, Found) else Found(result)
    return given if given.move is not None and given.move.drop else Found(None)


def relaxed(method: Method) -> Method | None:
    """A method that finds more than `method` does, or None."""
    relax: Callable[[], Method | None] = getattr(method, "relaxed", lambda: None)
    return relax()


def with_theta(method: Method, theta: float) -> Method:
    """The same method with another theta; raises `InvalidValue` where it has none."""
    if not hasattr(method, "theta"):
        raise InvalidValue(f"{method.name} has no theta; give method=, or drop=.")
    made: Method = replace(method, theta=theta)  # type: ignore[type-var]
    return made


def measures(method: Method) -> tuple[str, int]:
    """At which place, and on how many images, contributions are measured for this method."""
    return "bn" if getattr(method, "at", None) == "bn" else "conv", getattr(method, "images", 512)


def spares(method: Method, group: ChannelGroup) -> bool:
    """Whether the method leaves the group alone: a residual stream, or a fully connected layer."""
    if getattr(method, "groups", "all") != "internal":
        return False
    convolutions = getattr(method, "only_convolutions", False)
    return group.residual or (convolutions and group.fully_connected)


def published_repair(method: Method) -> str | None:
    """The repair of the method's paper; least squares where it names none, None where it trains."""
    found: str | None = getattr(method, "repair", "lstsq")
    return found


def factorises(method: Method) -> bool:
    """Whether the method factorises layers, so that it does not depend on the groups there are."""
    return bool(getattr(method, "factorises", False))


def parameters(method: Method) -> FrozenMap[Any]:
    """A method's parameters, by name: the fields of its dataclass, none if it is not one.

    A value that is no plain data, such as a network, is there as the name of its type.
    """
    if not is_dataclass(method):
        return FrozenMap()
    return FrozenMap({f.name: _plain(getattr(method, f.name)) for f in fields(method)})


def _plain(value: Any) -> Any:
    try:
        json.dumps(thaw(value))
    except (TypeError, ValueError):
        return f"<{type(value).__name__}>"
    return value
