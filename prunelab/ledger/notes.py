"""Notes, predictions and answers of the user, validated: the fields of `Noted`."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any

from prunelab.errors import InvalidValue
from prunelab.ledger import predictions
from prunelab.ledger.state import State
from prunelab.ledger.words import SAID, quantity
from prunelab.values import revive, thaw

KINDS = ("note", "reason", *SAID)  # SAID: used only by scripts that replay a session
LONGEST = 10_000  # characters of one note or answer
DEEPEST = 20  # of lists and dicts in an answer: what reads them again calls itself for each


def note(text: str, kind: str) -> dict[str, Any]:
    """A note or a reason."""
    if kind not in KINDS:
        raise InvalidValue(
            f"kind is 'note' or 'reason', not {kind!r}; predictions and answers have verbs of "
            "their own: predict(accuracy=...), answer(exercise, value)."
        )
    return {"text": _short(text, kind), "kind": kind}


def prediction(state: State, given: Mapping[str, Any]) -> dict[str, Any]:
    """Predictions; see `Session.predict`."""
    guesses = predictions.checked(given, state.base.metrics, state.pending)
    text = ", ".join(f"{name} {quantity(name, guess)}" for name, guess in guesses.items())
    return {"text": text, "kind": "prediction", "value": guesses}


def answer(exercise: str, value: Any) -> dict[str, Any]:
    """An answer: a number, a text, true or false, or a list or mapping of such."""
    name = str(exercise).strip()
    if not name:
        raise InvalidValue(
            "answer(exercise, value) needs the exercise's name as its first argument."
        )
    try:
        plain = thaw(value.tolist() if hasattr(value, "tolist") else value)
        text = plain if isinstance(plain, str) else json.dumps(plain, allow_nan=False)
        value = revive(json.loads(json.dumps(plain)))  # as a file gives it back
        if _depth(plain) > DEEPEST:
            raise ValueError
    except (TypeError, ValueError, RecursionError):
        raise InvalidValue(
            f"An answer is a finite number, a text, True or False, or a list or dict of such, at "
            f"most {DEEPEST} within each other; not {reprlib.repr(value)}."
        ) from None
    return {
        "text": _short(f"{name}: {text}", "answer"),
        "kind": "answer",
        "about": name,
        "value": value,
    }


def _depth(plain: Any) -> int:
    """How many lists and dicts are within each other."""
    inner = plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else ()
    return int(isinstance(plain, dict | list)) + max(map(_depth, inner), default=0)


def _short(text: str, kind: str) -> str:
    text = str(text)
    if len(text) > LONGEST:
        raise InvalidValue(f"A {kind} has at most {LONGEST:,} characters; this has {len(text):,}.")
    return text
