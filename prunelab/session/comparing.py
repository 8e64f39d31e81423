"""Paired comparisons of networks that are not committed: a pending move, points, plans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from prunelab.errors import InvalidValue
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
    check_images(images)
    evaluator, history = parts.evaluator, parts.history
    if drop is None:
        drop = fresh(parts, "try").drop
    plan = history.source_plan.drop(drop)
    small = cut(history.source, history.source_graph, plan)
    kind = evaluator.settings.repair_after(parts.method)
    if repair and kind is not None:
        as_cut = yield from evaluator.judge(small)
        small = (yield from best_repair(evaluator, history, (small, plan), kind, as_cut))[0]
    mark = history.state.now.event.fingerprint
    return (yield from evaluator.compare(small, history.network, mark, history.answers, images))


def compare(
    parts: Parts, a: int | WidthPlan, b: int | WidthPlan, images: int, repair: bool
) -> Work[PairedComparison]:
    """Compare the network at `b` with that at `a`, each a point or a plan."""
    check_images(images)
    first = yield from _network_of(parts, a, repair)
    second = yield from _network_of(parts, b, repair)
    return (yield from parts.evaluator.compare(second, first, fingerprint(first), None, images))


def check_images(images: int) -> None:
    """Raise `InvalidValue` for less than one image."""
    if images < 1:
        raise InvalidValue(f"images must be a whole number of at least 1, not {images!r}.")


def _network_of(parts: Parts, which: int | WidthPlan, repair: bool) -> Work[nn.Module]:
    evaluator, history = parts.evaluator, parts.history
    if not isinstance(which, WidthPlan):
        return history.network_at(history.state.point(which))
    network = evaluator.cut_to(which)
    kind = evaluator.settings.repair_after(parts.method)
    if repair and kind is not None:
        full = evaluator.base, WidthPlan.full(evaluator.graph)
        yield from repair_towards(evaluator, (network, which), kind, full)
    return network
