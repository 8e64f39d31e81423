"""What the screen says of itself; what it says of the session stands in words.py.

May import values, ledger, words and figures only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prunelab import words
from prunelab.errors import InvalidValue
from prunelab.figures.widths import DIAMOND, Row
from prunelab.ledger import Event, State
from prunelab.values import Move, Units, units_of

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
METHOD = "method"
THETA_TIP = "The share of its signal that a layer may lose at a move"
OUTDATED = "The proposal was made with other parameters: Reject it, then Propose, to use these."
HINT = "Click bars to keep or drop, or use the boxes; Adjust takes it over."
WELCOME = "Press Propose to see what the method would drop first."
STOPPING = "stopping ..."


def label(verb: str) -> str:
    """A button's text: the verb itself."""
    return verb.capitalize()


# ---------------------------------------------------------------- the method's parameters


def parameter(name: str) -> str:
    """A parameter's name as it stands beside its box."""
    return name.replace("_", " ")


def choice(value: Any) -> str:
    """One of the values that a parameter may have."""
    return "default" if value is None else str(value)


def fold(name: str, values: Mapping[str, Any]) -> str:
    """The title of the method's fold: the method and its first parameter."""
    title = f"Method: {words.method(name)}"
    for key, value in [*values.items()][:1]:
        title += f" · {parameter(key)} {f'{value:g}' if isinstance(value, float) else value}"
    return title


def about(doc: str | None) -> str:
    """What a class says of itself in its first line; nothing where a dataclass wrote it."""
    first = (doc or "").strip().split("\n")[0]
    return "" if re.match(r"\w+\(", first) else first


def theta(value: float) -> str:
    """Theta in words."""
    percent = two_digits(100 * value)
    return f"{two_digits(value)} = stop where a layer would lose more than {percent}% of its signal"


def two_digits(value: float) -> str:
    """A number with at least two digits that count: 0.020, 0.125, 12."""
    short = f"{value:#.2g}".rstrip(".")
    return short if float(short) == value and "e" not in short else f"{value:.6g}"


# ---------------------------------------------------------------- sentences


def sentence(state: State, last: Event | None, chosen: Move | None, group: words.Group) -> str:
    """What the screen says: of the person's choice, the proposal, or what happened last."""
    if state.pending is not None and chosen is not None:
        return f"Your choice: {words.loss(chosen, group, state)}. {words.macs(state, chosen)}"
    return words.sentence(state, last, group) or WELCOME


def option(row: Row) -> str:
    """A group in the list of groups: its channels now, and after the proposal."""
    text = f"{row.name} · {row.now} of {row.original}"
    if row.proposed != row.now:
        text += f" → {row.proposed}"
    return text + f" {DIAMOND}" * row.coupled


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
