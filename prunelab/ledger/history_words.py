"""The wording of the history: what each event was, who decided it, and why."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from prunelab.ledger.events import (
    Adjusted,
    Approved,
    Began,
    Event,
    Noted,
    Proposed,
    Rejected,
    Repaired,
    Returned,
    Step,
    Tuned,
    Undone,
)
from prunelab.ledger.state import State
from prunelab.ledger.words import (
    SAID,
    as_at,
    method,
    plural,
    refitted,
    share,
    undone,
)
from prunelab.values import Move, as_text, si


def history(state: State, events: Sequence[Event]) -> str:
    """All events, newest first, as an HTML table; undone steps are struck through."""
    on_path = {point.seq for point in state.path}
    repaired = {p.parent for p in state.points if getattr(p.event, "automatic", False)}
    base = state.base
    rows = []
    for event in reversed(events):
        cells = [str(event.seq), type(event).__name__, by(event), told(event, state), why(event)]
        cells += ["", ""]
        if isinstance(event, (Began, Step)):
            cells[5] = f"{event.cost.macs / base.cost.macs:.1%}"
            cells[6] = ", ".join(f"{n} {as_text(n, v)}" for n, v in event.metrics.items())
            if event.seq not in repaired and (alarm := state.alarm(event.seq)):
                cells[3] += f"; {alarm.mark}" if cells[3] else alarm.mark
        gone = isinstance(event, Step) and event.seq not in on_path
        cell = "<td><s>{}</s></td>" if gone else "<td>{}</td>"
        rows.append("<tr>" + "".join(cell.format(escape(text)) for text in cells) + "</tr>")
    heads = ("#", "event", "decided by", "what", "why", "MACs", "validation")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<table class="prunelab-history"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def by(event: Event) -> str:
    """Who decided an event: a method, a run, the session itself, or the user."""
    match event:
        case Approved(run=float() | int() as target):
            aim = f"{100 * target:.4g}% of the MACs" if target <= 1 else f"{si(target)} MACs"
            return f"a run to {aim}"
        case Proposed():
            return method(event.method)
        case Noted(kind="run"):
            return "a run"
        case Noted(kind="data" | "tune" | "outcome"):
            return "session"
        case Repaired(automatic=True):
            return "session"
        case Began():
            return ""
        case _:
            return "you"


def why(event: Event) -> str:
    """The reason for an event: the largest damage of a move in a group, or the reason given."""
    match event:
        case Proposed(move=Move() as move) | Adjusted(move=move) if move.damage:
            theta = move.parameters.get("theta") if isinstance(event, Proposed) else None
            limit = f" (theta {theta:g})" if isinstance(theta, float) else ""
            return f"removes at most {share(max(move.damage.values()))} of a layer's signal{limit}"
        case Rejected():
            return event.reason
        case _:
            return ""


def told(event: Event, state: State | None = None) -> str:
    """The details of one event; `state` names the points in it, otherwise their events do."""
    match event:
        case Began():
            return f"{event.network}, seed {event.seed}"
        case Proposed(move=None):
            return f"{method(event.method)}: no further moves{event.why and ', '}{event.why}"
        case Proposed(move=Move() as move):
            return f"{method(move.method)}: {dropped(move)}"
        case Adjusted():
            return f"by hand: {dropped(event.move)}"
        case Rejected():
            return "the proposal"
        case Approved():
            return ""
        case Repaired():
            return refitted(event)
        case Tuned():
            return plural(event.steps, "step")
        case Noted():
            return (
                event.text
                if event.kind in ("note", "data", *SAID)
                else f"{event.kind}: {event.text}"
            )
        case Returned():
            return f"event {event.to}" if state is None else as_at(state, event.to)
        case Undone():
            if state is not None:
                return undone(state, event)
            parts = ["the proposal"] * event.proposal
            parts += [f"event {event.step}"] * (event.step is not None)
            return " and ".join(parts)
        case _:
            return ""


def dropped(move: Move) -> str:
    """What a move drops, group by group; the rank that is left, where it factorises."""
    names = [
        f"{name.removesuffix('.0')} in two, rank {move.adds[name] - len(units)}"
        if name in move.adds
        else f"{name} -{len(units)}"
        for name, units in move.drop.items()
    ]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
