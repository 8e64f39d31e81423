"""The audit of a ledger: every event is checked against the events before it and the graph.

Widths and costs, which follow from the graph, are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prunelab.cost.counting import cost
from prunelab.errors import PruneLabError
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.surgery.factorised_graph import extended
from prunelab.ledger.events import (
    Adjusted,
    Approved,
    Began,
    Event,
    Noted,
    Proposed,
    Rejected,
    Returned,
    Step,
    Undone,
)
from prunelab.ledger.predictions import checked
from prunelab.ledger.state import State, advance, fold
from prunelab.values import Cost, Move, WidthPlan

Graphs = Callable[[Mapping[str, Any]], ChannelGraph]  # by the layers that are factorised, and how


class Contradiction(PruneLabError):
    """An entry of a ledger that no session can have written; the message names the event."""


def audit(events: Sequence[Event], graphs: Graphs) -> State:
    """The state after `events`, each of which must be possible after the events before it.

    Raises `Contradiction` at the first that is not, `PruneLabError` for a plan that is impossible
    for the network.
    """
    graph = graphs({})
    if not events or not isinstance(events[0], Began):
        raise Contradiction("the ledger must start with a Began event")
    began = events[0]
    widths = {group.name: group.width for group in graph.groups}
    if dict(began.widths) != widths:
        raise _impossible(began, "the session began with a network of other widths")
    _same_cost(began, began.cost, cost(graph, WidthPlan.full(graph)))
    _check_metrics(began)
    state = fold(events[:1])
    for event in events[1:]:
        _check(state, event, graphs)
        state = advance(state, event)
    return state


def plan_of(state: State, graphs: Graphs) -> WidthPlan:
    """The units kept now, checked against the graph."""
    full = WidthPlan.full(graphs(state.now.factors))
    kept = state.now.kept
    if kept is None:
        return full
    gone = {name: set(full.kept[name]) - set(kept.get(name, ())) for name in full.kept}
    plan = full.drop(gone)
    if plan.kept != kept:
        raise Contradiction(f"event {state.head}: it keeps units that the network does not have")
    return plan


def _check(state: State, event: Event, graphs: Graphs) -> None:
    """Raise if `event` cannot come next; its fields may even have wrong types."""
    move = state.pending
    match event:
        case Began():
            raise _impossible(event, "the ledger has a second Began event")
        case Proposed():
            if move is not None and not state.stale:
                raise _impossible(event, "proposed while a move was pending")
            if event.move is not None:
                _check_move(state, event, event.move, graphs)
        case Adjusted():
            if move is None or state.stale:
                raise _impossible(event, "adjusted though no move was pending")
            _check_move(state, event, event.move, graphs)
        case Rejected():
            if move is None:
                raise _impossible(event, "rejected though no move was pending")
        case Step():
            plan = plan_of(state, graphs)
            if isinstance(event, Approved):
                if move is None or state.stale:
                    raise _impossible(event, "approved though no move was pending")
                if event.run is not None and type(event.run) not in (int, float):
                    raise _impossible(
                        event, "the target of the run that approved it is not a number"
                    )
                plan = _factorised(plan, move, graphs).drop(move.drop)
            if event.kept != plan.kept:
                raise _impossible(event, "it keeps other units than the moves leave")
            _same_cost(event, event.cost, _cost(plan, graphs))
            _check_metrics(event)
        case Undone():
            undone = (state.undo_target()[0], move is not None)
            only_proposal = event.step is None and event.proposal and move is not None
            undoes = only_proposal or (event.step, event.proposal) == undone
            if not state.undoable or not undoes:
                raise _impossible(event, "undo without an undoable step")
        case Returned():
            if event.to == state.head or event.to not in {point.seq for point in state.points}:
                raise _impossible(event, "it returns to an unknown point")
        case Noted():
            if {type(event.text), type(event.kind), type(event.about)} != {str}:
                raise _impossible(event, "its text is not a string")
            if event.kind == "prediction":
                try:
                    checked(event.value, state.base.metrics, move)
                except PruneLabError as error:
                    raise _impossible(event, str(error)) from None


def _check_move(state: State, event: Event, move: Move, graphs: Graphs) -> None:
    if move.fingerprint != state.now.event.fingerprint:
        raise _impossible(event, "the move is of another network")
    plan = plan_of(state, graphs)
    _same_cost(event, move.before, _cost(plan, graphs))
    whole = _factorised(plan, move, graphs)
    if dict(move.adds) != {name: len(whole.kept[name]) for name in whole.kept.keys() - plan.kept}:
        raise _impossible(event, "the move adds other units than its factorised layers have")
    _same_cost(event, move.after, _cost(whole.drop(move.drop), graphs))


def _cost(plan: WidthPlan, graphs: Graphs) -> Cost:
    return cost(graphs(plan.graph.factors), plan)


def _factorised(plan: WidthPlan, move: Move, graphs: Graphs) -> WidthPlan:
    """The plan that a move drops units from: layers that it factorises are two, at full rank."""
    return extended(plan, graphs({**plan.graph.factors, **move.factors}))


def _check_metrics(event: Began | Step) -> None:
    if any(type(value) is not float for value in event.metrics.values()):
        raise _impossible(event, "a metric is not a number")


def _same_cost(event: Event, said: Cost, found: Cost) -> None:
    if (said.macs, said.params) != (found.macs, found.params):
        raise _impossible(
            event,
            f"it says {said.macs:,} MACs and {said.params:,} parameters; recomputed, there are "
            f"{found.macs:,} and {found.params:,}",
        )


def _impossible(event: Event, why: str) -> Contradiction:
    return Contradiction(f"event {event.seq}: {why}")
