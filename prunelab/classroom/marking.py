"""The checks of a rubric, as pure functions of the measurements and of an audited ledger.

There is one function for each kind of check.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunelab.classroom.rubric import Check
from prunelab.ledger.events import Event, Noted, Repaired
from prunelab.ledger.state import State
from prunelab.values import FrozenMap, listed, many, thaw

LONGEST = 300  # characters of a student's text that a grade repeats
LARGEST = 1e300  # largest absolute value of a numeric answer


@dataclass(frozen=True, slots=True)
class Mark:
    """The points of one check of the rubric, out of how many, and why."""

    name: str
    points: float
    of: float
    why: str


Given = Mapping[str, Any]
Result = tuple[float, str]  # the share of the points, and why


def mark(
    check: Check, measured: FrozenMap[Any], state: State | None, events: Sequence[Event]
) -> Mark:
    """The mark for one check.

    Parameters
    ----------
    check
        The check.
    measured
        The measurements; empty where the network could not be built.
    state
        The audited state; None where the ledger cannot be trusted.
    events
        The events of the ledger.
    """
    share = 0.0
    if check.kind in MEASURED:
        why = "the network could not be built from the hand-in"
        if measured:
            share, why = MEASURED[check.kind](check.settings, measured)
    elif state is None:
        why = "not counted: the ledger cannot be trusted"
    else:
        share, why = REPORTED[check.kind](check.settings, state, events)
    return Mark(check.name, round(check.points * share, 2), check.points, short(why))


def short(text: str) -> str:
    """A student's text, shortened to fit a table."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _saved(name: str) -> Callable[[Given, FrozenMap[Any]], Result]:
    def judge(asked: Given, measured: FrozenMap[Any]) -> Result:
        value, most = measured[f"{name}_share"], asked["at_most"]
        share = _linear(value, most, asked.get("none_at", most))
        return share, f"{value:.1%} of the original; asked: at most {most:.1%}"

    return judge


def _accurate(asked: Given, measured: FrozenMap[Any]) -> Result:
    value, least = measured["accuracy"], asked["at_least"]
    share = _linear(-value, -least, -asked.get("none_at", least))
    return share, f"{value:.2%}; asked: at least {least:.2%}"


def _linear(value: float, full: float, none: float) -> float:
    """1 up to `full`, 0 from `none` on, linear in between."""
    if value <= full:
        return 1.0
    return max(0.0, (none - value) / (none - full)) if none > full else 0.0


def said(events: Iterable[Event]) -> Counter[str]:
    """How often each verb was called; automatic repairs after an approve do not count."""
    verbs: Counter[str] = Counter()
    for event in events:
        if isinstance(event, Noted):
            verbs["predict" if event.kind == "prediction" else event.kind] += 1
        elif not (isinstance(event, Repaired) and event.automatic):
            verbs[event.verb] += 1
    return verbs


def _verbs(asked: Given, _: State, events: Sequence[Event]) -> Result:
    verbs = said(events)
    got = [min(1.0, verbs[verb] / least) for verb, least in asked["least"].items()]
    short = [f"{v} {verbs[v]} of {n}" for v, n in asked["least"].items() if verbs[v] < n]
    return sum(got) / len(got), "missing: " + ", ".join(short) if short else "all used"


def _predictions(asked: Given, state: State, _: Sequence[Event]) -> Result:
    wanted, within = asked.get("count", 1), asked.get("within", math.inf)
    about = [p for p in state.predictions if asked.get("of", p.name) == p.name]
    good = [p for p in about if p.error is not None and not p.known and abs(p.error) <= within]
    why = f"{many(len(good), 'prediction')} made before the result was known"
    why += f" and within {within:g}" if within < math.inf else ""
    known = sum(p.known for p in about)
    why += f", {known} after the result was shown" if known else ""
    return min(1.0, len(good) / wanted), f"{why}; asked: {wanted}"


def _reasons(asked: Given, _: State, events: Sequence[Event]) -> Result:
    wanted = asked.get("count", 1)
    given = [e.text for e in events if isinstance(e, Noted) and e.kind == "reason"]
    given = [text for text in given if text.strip()]
    texts = f" ({listed(given, 3)})" if given else ""
    return min(1.0, len(given) / wanted), f"{len(given)} given, {wanted} asked{texts}"


def _answered(asked: Given, state: State, _: Sequence[Event]) -> Result:
    if asked["exercise"] not in state.answers:
        return 0.0, "no answer"
    given = state.answers[asked["exercise"]]
    right = _same(given, asked["value"], asked.get("within", 0.0))
    return float(right), f"{'right' if right else 'wrong'}: {thaw(given)!r}"


def _same(given: Any, wanted: Any, within: float) -> bool:
    """Compare texts without case and surrounding spaces, numbers within 1e-9 or `within`."""
    if isinstance(wanted, tuple):
        fits = isinstance(given, tuple) and len(given) == len(wanted)
        return fits and all(_same(a, b, within) for a, b in zip(given, wanted, strict=True))
    if isinstance(wanted, str) or isinstance(given, str):
        both = isinstance(wanted, str) and isinstance(given, str)
        return both and given.strip().casefold() == wanted.strip().casefold()
    if isinstance(wanted, bool) or isinstance(given, bool):
        return given is wanted
    if not isinstance(given, int | float) or abs(given) > LARGEST:
        return False
    return math.isclose(given, wanted, rel_tol=1e-9) or abs(given - wanted) <= within


MEASURED: dict[str, Callable[[Given, FrozenMap[Any]], Result]] = {
    "macs": _saved("macs"),
    "params": _saved("params"),
    "accuracy": _accurate,
}
REPORTED: dict[str, Callable[[Given, State, Sequence[Event]], Result]] = {
    "verbs": _verbs,
    "predictions": _predictions,
    "reasons": _reasons,
    "answer": _answered,
}
