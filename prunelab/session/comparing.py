"""Paired comparisons of networks that are not committed: a pending move, points, plans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from prunelab.errors import InvalidValue, UnknownName
from prunelab.evidence.fingerprint import fingerprint
from prunelab.graph.surgery.editing import cut
from prunelab.session.parts import Parts
from prunelab.session.repairing import best_repair, repair_towards
from prunelab.session.runner import Work
from prunelab.session.verbs import fresh
from prunelab.values import WidthPlan
from prunelab.values.paired_comparison import PairedComparison


def try_move(
    parts: Parts, drop: Mapping[str, Iterable[int]] | None, images: int, repair: bool
) -> Work[PairedComparison]:
    """Compare the network that approve would make, without these units, with the current one.

    Parameters
    ----------
    drop
        Units of each group; None: those of the pending move.
    images
        How many validation images.
    repair
        Whether it is repaired with the session's `repair`.
    """
    if isinstance(images, bool) or not isinstance(images, int) or images < 1:
        raise InvalidValue(f"images must be a whole number of at least 1, not {images!r}.")
    evaluator, history = parts.evaluator, parts.history
    if drop is None:
        drop = fresh(parts, "try").drop
    whole = history.source_plan
    plan = whole.drop(drop)
    small = cut(history.source, evaluator.graph_of(whole).after(whole), plan)
    kind = evaluator.settings.repair
    if repair and kind is not None:
        small = (yield from best_repair(evaluator, history, (small, plan), kind))[0]
    mark = history.state.now.event.fingerprint
    return (yield from evaluator.compare(small, history.network, mark, history.answers, images))


def compare(
    parts: Parts, a: int | WidthPlan, b: int | WidthPlan, images: int, repair: bool
) -> Work[PairedComparison]:
    """Compare the network at `b` with that at `a`, each a point or a plan."""
    first = yield from _network_of(parts, a, repair)
    second = yield from _network_of(parts, b, repair)
    return (yield from parts.evaluator.compare(second, first, fingerprint(first), None, images))


def _network_of(parts: Parts, which: int | WidthPlan, repair: bool) -> Work[nn.Module]:
    evaluator, history = parts.evaluator, parts.history
    if not isinstance(which, WidthPlan):
        points = {point.seq: point for point in history.state.points}
        if which not in points:
            raise UnknownName("point of the trajectory", which, map(str, points))
        return history.network_at(points[which])
    network = evaluator.cut_to(which)
    kind = evaluator.settings.repair
    if repair and kind is not None:
        full = evaluator.base, WidthPlan.full(evaluator.graph)
        yield from repair_towards(evaluator, (network, which), kind, full)
    return network
