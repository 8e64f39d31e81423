"""Why a method found no move, in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prunelab.methods.base import Context, Method, spares
from prunelab.values import Rung


def why_none(method: Method, context: Context, seen: Iterable[Any]) -> str:
    """The reason why `method` found nothing to drop, as far as it can be known; else empty.

    Parameters
    ----------
    method, context
        The method and what it searched.
    seen
        The evidence that the search yielded.
    """
    graph, target = context.graph, context.target_macs
    if target is not None and context.cost(context.plan).macs <= target:
        return "the network is within the target already"
    prunable = [group for group in graph.groups if group.prunable]
    mine = [group for group in prunable if not spares(method, group)]
    if prunable and not mine:
        return "groups='internal' leaves all that is left, residual streams; groups='all' does not"
    if all(len(group.units) <= group.narrowest for group in mine):
        return "every layer that it may prune is at its smallest width"
    failed = [one.worst for one in seen if isinstance(one, Rung) and one.verdict == "fail"]
    theta = getattr(method, "theta", None)
    if failed and theta is not None:
        return f"no layer passes theta={theta:g}; the least damage found is {min(failed):.3g}"
    if target is None and hasattr(method, "pruning_ratio"):
        return f"every layer has had its pruning_ratio={method.pruning_ratio}"
    step = f"what it finds is less than a step of round_to={graph.round_to} channels"
    return step if graph.round_to > 1 else ""
