"""Layer-by-layer pruning: how many units each layer loses, and which layer comes next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import floor, inf
from typing import Any, Protocol

from prunelab.errors import InvalidValue
from prunelab.graph.channels.channel_graph import ChannelGraph, ChannelGroup
from prunelab.methods.base import Context
from prunelab.methods.settings import (
    check_choice,
    check_counts,
    check_groups,
    freeze_ratio,
    selects,
)
from prunelab.values import WidthPlan

DEEP = 1.5  # Channel Pruning keeps this many times more in deep layers than in shallow ones


class Layerwise(Protocol):
    """The parameters that layer-by-layer methods share."""

    @property
    def pruning_ratio(self) -> float | Mapping[str, float]:
        """The share of its original width that a layer loses."""
        ...

    @property
    def schedule(self) -> str:
        """Which layers lose it."""
        ...

    @property
    def groups(self) -> str:
        """Whether residual streams are pruned too: "internal" or "all"."""
        ...

    @property
    def images(self) -> int:
        """How many training images are measured."""
        ...


def check_layerwise(method: Layerwise, *schedules: str) -> None:
    """Check the parameters that layer-by-layer methods share and freeze `pruning_ratio`."""
    check_choice(method, "schedule", *schedules)
    freeze_ratio(method)
    if isinstance(method.pruning_ratio, Mapping) and method.schedule != "uniform":
        raise InvalidValue(
            "A mapping as pruning_ratio already says what each layer loses; it cannot be combined "
            f"with schedule={method.schedule!r}."
        )
    check_groups(method)
    check_counts(method, "images")


def targets(method: Layerwise, context: Context) -> list[ChannelGroup]:
    """The groups to prune, front to back; without residual streams unless `groups` is "all"."""
    groups = context.graph.groups
    return [group for group in groups if group.prunable and selects(method.groups, group)]


def next_layer(method: Layerwise, context: Context) -> tuple[ChannelGroup, int] | None:
    """The next group, front to back, that is wider than it should be, and how many units it keeps.

    Without a MAC target every group is visited once; the carry of the last move says where to
    continue. With a target the schedule is scaled until the widths meet it, and visits start over
    at the front until they do. None when no group is left, or no scale meets the target.
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
    """What the next search needs to continue: this layer, and the schedule that it belongs to."""
    return {
        "after": group.name,
        "pruning_ratio": method.pruning_ratio,
        "schedule": method.schedule,
    }


def _continues(method: Layerwise, context: Context) -> bool:
    now = carry_of(method, context.graph.groups[0])
    return context.carry.get("after") is not None and all(
        context.carry.get(key) == now[key] for key in ("pruning_ratio", "schedule")
    )


def _goals(
    method: Layerwise, context: Context, groups: list[ChannelGroup]
) -> dict[str, int] | None:
    """Units to keep in each group; None when no scale of the schedule meets the MAC target."""
    scale, shares, most = _scaled_shares(method, context, groups)

    def widths(scale: float) -> dict[str, int]:
        removed, kept = shares(scale), {}
        for group in groups:
            asked = floor(group.width * (1 - removed[group.name]) + 1e-9)
            steps = max(group.narrowest, -(-asked // group.step) * group.step)
            kept[group.name] = min(len(group.units), steps)
        return kept

    goal = context.target_macs
    if goal is None:
        return widths(scale)

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


def _scaled_shares(
    method: Layerwise, context: Context, groups: list[ChannelGroup]
) -> tuple[float, Callable[[float], dict[str, float]], float]:
    """The schedule's own scale, the share that each group loses at a scale, the largest scale."""
    ratio = method.pruning_ratio
    if isinstance(ratio, Mapping):
        asked = {context.graph[name].name: float(share) for name, share in ratio.items()}
        ratios = {group.name: asked.get(group.name, 0.0) for group in groups}
        least = min((share for share in ratios.values() if share > 0), default=1.0)
        return 1.0, lambda t: {n: min(1.0, t * share) for n, share in ratios.items()}, 1 / least
    keeps = keep_factors(method.schedule, context.graph, groups)

    def given(scale: float) -> dict[str, float]:
        return {n: 0.0 if k == inf else 1 - min(1.0, k * (1 - scale)) for n, k in keeps.items()}

    return ratio, given, 1.0


def keep_factors(
    schedule: str, graph: ChannelGraph, groups: list[ChannelGroup]
) -> dict[str, float]:
    """The factor by which each group keeps more than the schedule's ratio says (inf: all).

    Parameters
    ----------
    schedule
        "uniform"; "conv" keeps the last resolution whole; "shallow" also keeps `DEEP` times as
        much of the resolution before it.
    graph
        The network's graph, for the resolutions of its layers.
    groups
        The groups that are pruned.

    Raises
    ------
    InvalidValue
        For "conv" and "shallow" on a network of a single resolution.
    """
    if schedule == "uniform":
        return dict.fromkeys((group.name for group in groups), 1.0)
    sizes = {layer.name: layer.positions // layer.calls for layer in graph.layers if layer.kernel}
    stages = sorted(set(sizes.values()))  # the smallest maps come last
    if len(stages) < 2:
        raise InvalidValue(
            f"schedule={schedule!r} leaves the layers of the last resolution unpruned, and this "
            "network has only one resolution; use schedule='uniform'."
        )

    def keeps(group: ChannelGroup) -> float:
        size = sizes.get(group.producers[0], stages[0])  # linear layers are spared too
        if size == stages[0]:
            return inf
        return DEEP if schedule == "shallow" and size == stages[1] else 1.0

    return {group.name: keeps(group) for group in groups}
