"""Every word the screen shows. May import values, ledger and figures only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from prunelab.errors import InvalidValue
from prunelab.figures.style import COUPLED, DROP, GHOST, KEEP, TARGET
from prunelab.figures.widths import DIAMOND, Row
from prunelab.ledger import (
    Adjusted,
    Approved,
    Began,
    Event,
    Noted,
    Point,
    Proposed,
    Rejected,
    Repaired,
    State,
    Step,
    Tuned,
    Undone,
    show,
)
from prunelab.values import Move, Units, si, units_of

VERBS: dict[str, str] = {
    "propose": "Ask the method what to drop next (key p)",
    "approve": "Carry out the proposal: the network gets smaller (key a)",
    "adjust": "Take over the channels you chose below (key e)",
    "reject": "Decline the proposal; nothing changes (key r)",
    "undo": "Take back the proposal and the latest step (key u)",
    "repair": "Fit the remaining weights to the lost signal, without training",
    "tune": "Train for the number of steps given below",
    "run": "Propose and approve by itself until the target below is reached",
    "stop": "Stop what is at work; what it did not finish changes nothing",
}

METHODS = {
    "aofp": "AOFP",
    "thinet": "ThiNet",
    "group_fisher": "Group Fisher",
    "channel_pruning": "Channel Pruning",
    "batchnorm_scale": "BatchNorm Scale",
    "first_k": "First K",
}

GROUP = "Group"
COUNT = "Drop"
UNITS = "Channels"
REASON = "Reason"
TARGET_MACS = "Target MACs %"
GUARD = "Min accuracy %"
STEPS = "Tune steps"
HISTORY = "History"
COUNT_TIP = "How many channels of this group to drop, least important first"
UNITS_TIP = "Which channels of this group to drop, for example 3, 7, 10-12"
REASON_TIP = "Why you decline; Reject writes it down"
TARGET_TIP = "Run stops at this share of the original MACs"
GUARD_TIP = "Run stops before validation accuracy falls below; 0: no limit"
HINT = "Click bars to keep or drop, or use the boxes; Adjust takes it over."
WELCOME = "Press Propose to see what the method would drop first."
STOPPING = "stopping ..."
LEGEND = " &emsp; ".join(
    f'<span style="white-space:nowrap"><span style="color:{colour}">{sign}</span> {words}</span>'
    for sign, colour, words in (
        ("■", KEEP, "kept"),
        ("▨", DROP, "proposed to drop"),
        ("■", GHOST, "dropped before"),
        ("┅", TARGET, "theta"),
        ("●", GHOST, "undone"),
        ("<b>?</b>", "inherit", "where the proposal leads"),
        (DIAMOND, COUPLED, "coupled layers"),
    )
)


def label(verb: str) -> str:
    """A button's text: the verb itself."""
    return verb.capitalize()


def method(name: str) -> str:
    """A method's name as papers write it."""
    return METHODS.get(name, name.replace("_", " ").title())


def plural(count: int, noun: str) -> str:
    """`count` things."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def listed(names: Sequence[str]) -> str:
    """One or two names, or the first and how many more."""
    if len(names) <= 2:
        return " and ".join(names)
    return f"{names[0]} and {len(names) - 1} more layers"


def share(value: float) -> str:
    """A share as a percentage with two digits that count: 1.8%, 0.042%."""
    return f"{float(f'{100 * value:.2g}'):g}%"


# ---------------------------------------------------------------- sentences


def sentence(state: State, last: Event | None, chosen: Move | None, group: Any) -> str:
    """What the screen says: of the person's choice, the proposal, or what happened last."""
    if state.pending is None:
        return outcome(state, last)
    if chosen is not None:
        return f"Your choice: {loss(chosen, group, state)}. {macs(state, chosen)}"
    who = None if isinstance(last, Adjusted) else method(state.pending.method)
    return proposal(state, state.pending, group, who)


def loss(move: Move, group: Any, state: State) -> str:
    """What `move` drops in one group, and what that removes."""
    alive = plural(state.widths()[group.name], "channel")
    text = f"drop {len(move.drop.get(group.name, ()))} of {alive}"
    text += f" in {group.name}"
    if group.name in move.damage and group.consumers:
        text += (
            f": removes {share(move.damage[group.name])} of the signal entering "
            f"{listed(group.consumers)}"
        )
    return text


def option(row: Row) -> str:
    """A group in the list of groups: its channels now, and after the proposal."""
    text = f"{row.name} · {row.now} of {row.original}"
    if row.proposed != row.now:
        text += f" → {row.proposed}"
    return text + f" {DIAMOND}" * row.coupled


def proposal(state: State, move: Move, group: Any, who: str | None) -> str:
    """What `who` (None: the person) proposes, in `group` and elsewhere."""
    text = f"{who} proposes to " if who else "You propose to "
    more = len(move.drop) - 1
    if group.name in move.drop:
        text += loss(move, group, state)
        text += f" ... and {plural(more, 'more group')}" if more else ""
    else:
        text += f"drop {plural(move.units, 'channel')} in {plural(more + 1, 'group')}, "
        text += f"none in {group.name}"
    text += f". {macs(state, move)}"
    if len(group.producers) > 1 and group.name in move.drop:
        text += f" Coupled: {len(group.producers)} layers lose the same channels."
    return text


def macs(state: State, move: Move) -> str:
    """How the MACs would change."""
    base = state.base.cost.macs
    return f"MACs {state.now.cost.macs / base:.1%} → {move.after.macs / base:.1%} of the original."


def outcome(state: State, last: Event | None) -> str:
    """What the latest event did, and what to do next."""
    if state.exhausted:
        who = method(state.proposed.method) if state.proposed else "The method"
        return f"{who} has nothing more to propose."
    if isinstance(last, Rejected):
        return "Rejected: nothing was changed."
    if isinstance(last, Undone):
        return f"Undone: the network is as it was at event {state.head}."
    if not isinstance(state.now.event, Step):
        return WELCOME
    return f"{done(state.now)}: {change(state)}"


def done(point: Point) -> str:
    """What made this point."""
    match point.event:
        case Tuned(steps=steps):
            return f"Tuned for {plural(steps, 'step')}"
        case Repaired(automatic=True):
            return "Approved and repaired"
        case event:
            return type(event).__name__


def change(state: State) -> str:
    """The metric before and after the latest step, and how many images it lost and gained."""
    now = state.now
    assert now.parent is not None
    before = state.point(now.parent)
    if isinstance(now.event, Repaired) and now.event.automatic and before.parent is not None:
        before = state.point(before.parent)
    name = next(iter(now.metrics), None)
    if name is None:
        return f"MACs {si(before.cost.macs)} → {si(now.cost.macs)}"
    text = f"validation {name} {show(name, before.metrics[name])} → {show(name, now.metrics[name])}"
    seen = now.event.compared if isinstance(now.event, Step) else {}
    if "images" in seen:
        text += f" on {plural(seen['images'], 'image')}"
    if "lost" in seen and "gained" in seen:
        text += f": {seen['lost']} lost, {seen['gained']} gained"
    return text


def remaining(done: int, total: int, elapsed: float) -> str:
    """How far work is and, after a second, how many seconds it may still take."""
    text = f"{done:,} of {total:,}"
    if elapsed > 1 and 0 < done < total:
        text += f", about {max(1, round(elapsed / done * (total - done)))} s left"
    return text


def trouble(error: Exception, ours: bool) -> str:
    """An error in one line; one that is not ours says what kind it is."""
    message = " ".join(str(error).split())
    return message if ours else f"{type(error).__name__}: {message}"


# ---------------------------------------------------------------- what is typed


def parse_units(text: str) -> Units:
    """Channels from a list such as "3, 7, 10-12"; raises InvalidValue with the odd part."""
    units: set[int] = set()
    for part in re.split(r"[,\s]+", text.strip()):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if part and not match:
            raise InvalidValue(f"{part!r} is no channel; write numbers such as 3, 7, 10-12.")
        if match:
            units.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return units_of(units)


# ---------------------------------------------------------------- the history


def history(state: State, events: Sequence[Event]) -> str:
    """Every event, newest first, as an HTML table; what was undone is struck through."""
    on_path = {point.seq for point in state.path}
    base = state.base
    rows = []
    for event in reversed(events):
        cells = [str(event.seq), type(event).__name__, told(event), "", ""]
        if isinstance(event, (Began, Step)):
            cells[3] = f"{event.cost.macs / base.cost.macs:.1%}"
            cells[4] = ", ".join(f"{n} {show(n, v)}" for n, v in event.metrics.items())
        gone = isinstance(event, Step) and event.seq not in on_path
        cell = "<td><s>{}</s></td>" if gone else "<td>{}</td>"
        rows.append("<tr>" + "".join(cell.format(escape(text)) for text in cells) + "</tr>")
    heads = ("#", "event", "what", "MACs", "validation")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<table class="prunelab-history"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def told(event: Event) -> str:
    """One event's particulars."""
    match event:
        case Began():
            return f"{event.network}, seed {event.seed}"
        case Proposed(move=None):
            return f"{method(event.method)}: nothing more"
        case Proposed(move=Move() as move) | Adjusted(move=move):
            return f"{method(move.method)}: {dropped(move.drop)}"
        case Rejected():
            return event.reason
        case Approved() | Repaired(automatic=True):
            return ""
        case Repaired():
            return event.kind
        case Tuned():
            return plural(event.steps, "step")
        case Noted():
            return event.text
        case Undone():
            parts = ["the proposal"] * event.proposal
            parts += [f"event {event.step}"] * (event.step is not None)
            return " and ".join(parts)
        case _:
            return ""


def dropped(drop: Mapping[str, Units]) -> str:
    """What a move drops, group by group."""
    names = [f"{name} -{len(units)}" for name, units in drop.items()]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
