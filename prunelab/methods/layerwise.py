"""How much each layer gives when a network is pruned layer by layer, and which layer is next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import floor, inf
from typing import Any, Protocol

from prunelab.errors import InvalidValue
from prunelab.graph.channels.channel_graph import ChannelGraph, ChannelGroup
from prunelab.methods.base import Context
from prunelab.values import FrozenMap, WidthPlan

DEEP = 1.5  # Channel Pruning keeps this many times more in deep layers than in shallow ones


class Layerwise(Protocol):
    """What the methods that go from layer to layer have in common."""

    @property
    def pruning_ratio(self) -> float | Mapping[str, float]:
        """The share of its width that a layer gives."""
        ...

    @property
    def schedule(self) -> str:
        """Which layers give it."""
        ...

    @property
    def groups(self) -> str:
        """Whether residual streams are pruned too: "internal" or "all"."""
        ...


def checked_ratio(given: Any, schedule: str, allowed: tuple[str, ...]) -> Any:
    """A pruning ratio, a mapping of them frozen; raises `InvalidValue` for anything else."""
    if schedule not in allowed:
        names = ", ".join(map(repr, allowed))
        raise InvalidValue(f"schedule is one of {names}, not {schedule!r}.")
    ratios = given.values() if isinstance(given, Mapping) else [given]
    for ratio in ratios:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
            raise InvalidValue(
                f"pruning_ratio is the share of a layer that goes, from 0 to below 1, not {ratio!r}"
                "; give one number, or one for each group."
            )
    if isinstance(given, Mapping):
        if schedule != "uniform":
            raise InvalidValue(
                f"pruning_ratio={{...}} says itself what each layer gives; it does not go with "
                f"schedule={schedule!r}."
            )
        return FrozenMap(given)
    return given


def targets(method: Layerwise, context: Context) -> list[ChannelGroup]:
    """The groups that are pruned, front to back: in a residual block only those inside it."""
    return [
        group
        for group in context.graph.groups
        if group.prunable and group.consumers and (method.groups == "all" or not group.residual)
    ]


def next_layer(method: Layerwise, context: Context) -> tuple[ChannelGroup, int] | None:
    """The next group front to back that has units to give, and how many it should keep.

    Without a MAC target every group is visited once, after the one that the last move left in
    its carry. Towards a target the schedule is scaled so that the widths reach it, and the visits
    start over until they do. None when there is nothing left to give, or the target is out of
    reach.
    """
    groups = targets(method, context)
    goals = _goals(method, context, groups)
    if goals is None:
        return None
    names = [group.name for group in context.graph.groups]
    after = names.index(context.carry["after"]) if _continues(method, context) else -1
    ahead = [group for group in groups if names.index(group.name) > after]
    behind = [] if context.target_macs is None else [g for g in groups if g not in ahead]
    for group in [*ahead, *behind]:
        if goals[group.name] < len(group.units):
            return group, goals[group.name]
    return None


def carry_of(method: Layerwise, group: ChannelGroup) -> dict[str, Any]:
    """What the next search is told: where this one was, on which schedule."""
    return {
        "after": group.name,
        "pruning_ratio": method.pruning_ratio,
        "schedule": method.schedule,
    }


def _continues(method: Layerwise, context: Context) -> bool:
    told = carry_of(method, context.graph.groups[0])
    return "after" in context.carry and all(
        context.carry.get(key) == told[key] for key in ("pruning_ratio", "schedule")
    )


def _goals(
    method: Layerwise, context: Context, groups: list[ChannelGroup]
) -> dict[str, int] | None:
    """Units to keep of each group; None when no scale of the schedule reaches the MAC target."""
    given, shares, most = _family(method, context, groups)

    def widths(scale: float) -> dict[str, int]:
        removed = shares(scale)
        return {
            group.name: min(
                len(group.units), max(1, floor(group.width * (1 - removed[group.name]) + 1e-9))
            )
            for group in groups
        }

    goal = context.target_macs
    if goal is None:
        return widths(given)

    def reaches(scale: float) -> bool:
        kept = widths(scale)
        drop = {group.name: group.units[kept[group.name] :] for group in groups}
        return _macs(context, drop) <= goal

    if not reaches(most):
        return None
    low, high = 0.0, most
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return widths(high)


def _macs(context: Context, drop: Mapping[str, Any]) -> int:
    plan: WidthPlan = context.plan.drop(drop)
    return context.cost(plan).macs


def _family(
    method: Layerwise, context: Context, groups: list[ChannelGroup]
) -> tuple[float, Callable[[float], dict[str, float]], float]:
    """The schedule's own scale, the share that each group gives at a scale, the largest scale."""
    ratio = method.pruning_ratio
    if isinstance(ratio, Mapping):
        asked = {context.graph[name].name: float(share) for name, share in ratio.items()}
        ratios = {group.name: asked.get(group.name, 0.0) for group in groups}
        least = min((share for share in ratios.values() if share > 0), default=1.0)
        return 1.0, lambda t: {n: min(1.0, t * share) for n, share in ratios.items()}, 1 / least
    keeps = spared(method.schedule, context.graph, groups)

    def given(scale: float) -> dict[str, float]:
        return {n: 0.0 if k == inf else 1 - min(1.0, k * (1 - scale)) for n, k in keeps.items()}

    return ratio, given, 1.0


def spared(schedule: str, graph: ChannelGraph, groups: list[ChannelGroup]) -> dict[str, float]:
    """How many times more each group keeps than the schedule's ratio says (infinite: all)."""
    if schedule == "uniform":
        return dict.fromkeys((group.name for group in groups), 1.0)
    sizes = {layer.name: layer.positions // layer.calls for layer in graph.layers if layer.kernel}
    stages = sorted(set(sizes.values()))  # the smallest maps come last
    if len(stages) < 2:
        raise InvalidValue(
            f"schedule={schedule!r} leaves the last resolution alone, and this network has only "
            "one; use schedule='uniform'."
        )

    def keeps(group: ChannelGroup) -> float:
        size = sizes.get(group.producers[0], stages[0])  # linear layers are left alone too
        if size == stages[0]:
            return inf
        return DEEP if schedule == "shallow" and size == stages[1] else 1.0

    return {group.name: keeps(group) for group in groups}
