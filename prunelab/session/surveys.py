"""Surveys before a decision: sensitivity, the best sets of a size, the frontier of a method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from numbers import Real
from typing import Any

from torch import nn

from prunelab.errors import BudgetUnreachable, InvalidValue, WrongState
from prunelab.evidence import damage_curve
from prunelab.evidence.ablation import ablating
from prunelab.evidence.best_set import BestSet, searching_best
from prunelab.graph.channels.channel_graph import ChannelGroup
from prunelab.ledger.state import Point
from prunelab.methods import make_method
from prunelab.session.comparing import check_images
from prunelab.session.context import measuring
from prunelab.session.parts import Parts
from prunelab.session.preview import wanted
from prunelab.session.run import run
from prunelab.session.runner import Work
from prunelab.session.verbs import fresh, go
from prunelab.values import Units
from prunelab.values.sensitivity import Frontier, FrontierPoint, GroupSensitivity, Sensitivity


def sensitivity(parts: Parts, shares: Sequence[float], images: int) -> Work[Sensitivity]:
    """Remove more and more units of each group alone, and measure what the network loses.

    See `Session.sensitivity`.
    """
    check_images(images)
    _check_shares(shares)
    evaluator, history = parts.evaluator, parts.history
    evidence = yield from measuring(evaluator, history, wanted(parts.method))
    groups = [g for g in history.graph.groups if g.prunable and g.name in evidence.groups]
    curves = {group.name: damage_curve(evidence[group.name]) for group in groups}
    counts = {group.name: _counts(group, shares) for group in groups}
    asked = [(name, count) for name, some in counts.items() for count in some]
    drops = [{}, *({name: curves[name].first(count)} for name, count in asked)]
    batches = evaluator.splits.validation(images)
    network, graph, loss = history.network, history.graph, evaluator.settings.loss
    losses = yield from ablating(network, graph, batches, drops, loss, images)
    at = dict(zip(asked, losses[1:].tolist(), strict=True))
    return Sensitivity(
        tuple(
            GroupSensitivity(
                group=group.name,
                width=len(group.units),
                removed=counts[group.name],
                damages=tuple(curves[group.name].damages[k - 1] for k in counts[group.name]),
                losses=tuple(at[group.name, count] for count in counts[group.name]),
            )
            for group in groups
        ),
        float(losses[0]),
        images,
    )


def certify(
    parts: Parts, drop: Mapping[str, Iterable[int]] | None, nodes: int
) -> Work[dict[str, BestSet]]:
    """The best sets of the sizes that a move drops, with a bound; see `Session.certify`."""
    history, preview = parts.history, parts.preview
    if drop is None:
        asked: Mapping[str, Units] = fresh(parts, "certify").drop
    else:
        asked = preview.asked(history.state, drop)[0]
    evidence = yield from measuring(parts.evaluator, history, wanted(parts.method))
    found = {}
    for name, units in asked.items():
        if name in evidence.groups:
            found[name] = yield from searching_best(evidence[name], len(units), nodes)
    return found


def frontier(parts: Parts, shares: Sequence[float], method: Any, repair: bool) -> Work[Frontier]:
    """Run a method from share to share of the MACs, and return to where it began.

    See `Session.frontier`.
    """
    history = parts.history
    _check_shares(shares)
    if any(first <= second for first, second in pairwise(shares)):
        raise InvalidValue(f"shares must fall from one to the next, not {list(shares)}.")
    if history.state.pending is not None:
        raise WrongState("A move is pending; approve or reject it before a frontier is run.")
    mine, why = parts.method, ""
    points = [history.state.now]
    parts.method = searcher = make_method(method)
    try:
        for share in shares:
            yield from run(parts, share, None, None, repair)
            if history.state.now != points[-1]:
                points.append(history.state.now)
    except BudgetUnreachable as error:
        why = str(error)
    finally:
        parts.method = mine
    found = yield from _timed(parts, points)
    with suppress(InvalidValue):  # no move was made: it is there already
        yield from go(parts, points[0].seq)
    return Frontier(searcher.name, history.state.base.cost, found, why)


def _timed(parts: Parts, points: Sequence[Point]) -> Work[tuple[FrontierPoint, ...]]:
    """The points with the time of their networks, all of which are run in turn."""
    networks: dict[str | None, nn.Module] = {
        point.event.fingerprint: parts.history.network_at(point) for point in points
    }
    took = yield from parts.evaluator.measurements.time_runs(networks)
    return tuple(
        FrontierPoint(point.seq, point.cost, point.metrics, took[point.event.fingerprint].median)
        for point in points
    )


def _counts(group: ChannelGroup, shares: Sequence[float]) -> tuple[int, ...]:
    """How many units each share removes: at least one, and no more than may be removed."""
    width, most = len(group.units), len(group.units) - group.narrowest
    return tuple(sorted({min(most, max(1, round(share * width))) for share in shares} - {0}))


def _check_shares(shares: Sequence[float]) -> None:
    good = [isinstance(s, Real) and not isinstance(s, bool) and 0 < s < 1 for s in shares]
    if not good or not all(good):
        raise InvalidValue(f"shares are numbers between 0 and 1, at least one, not {shares!r}.")
