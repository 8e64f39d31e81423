"""Guesses, locked before what they are about comes out.

Metrics come out with the next step, after the repair that comes with an approve; units, MACs and
parameters with the next proposal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prunelab.errors import InvalidValue, UnknownName, WrongState
from prunelab.values import Cost, FrozenMap, Move

PROPOSED = ("units", "macs", "params")  # come out with a proposal
SHARES = ("accuracy", "macs", "params")  # of the images, or of the original network


@dataclass(frozen=True, slots=True)
class Prediction:
    """What somebody guessed `name` would be, and what it turned out to be.

    `guess` was locked by event `seq`; event `settled` brought the `result`. Both are None while
    the prediction is open, and for good once it was `withdrawn`: its move was declined or undone.
    `known` when the same result had come out before the guess, as after an undo.
    """

    seq: int
    name: str
    guess: float
    result: float | None = None
    settled: int | None = None
    withdrawn: bool = False
    known: bool = False

    @property
    def open(self) -> bool:
        """Whether the result is still to come."""
        return self.settled is None and not self.withdrawn

    @property
    def error(self) -> float | None:
        """Guess minus result; None without a result."""
        return None if self.result is None else self.guess - self.result


Predictions = tuple[Prediction, ...]


def checked(given: Mapping[str, Any], metrics: Iterable[str], pending: Move | None) -> FrozenMap:
    """The guesses in `given` as numbers.

    Raises `UnknownName` for what cannot be predicted, `InvalidValue` for what is no guess of it,
    `WrongState` for what the `pending` move says already.
    """
    known = [*metrics, *PROPOSED]
    if not given:
        raise InvalidValue(f"Predict something: predict({known[0]}=...); known: {', '.join(known)}")
    found = {}
    for name, value in given.items():
        if name not in known:
            raise UnknownName("quantity to predict", name, known)
        if name in PROPOSED and pending is not None:
            raise WrongState(f"The pending move says its {name} already; predict it before propose")
        try:
            guess = math.nan if isinstance(value, bool | str) else float(value)
        except (TypeError, ValueError, OverflowError):
            guess = math.nan
        least = 0.0 if name in SHARES or name in PROPOSED else -math.inf
        if not (math.isfinite(guess) and least <= guess <= (1.0 if name in SHARES else guess)):
            kind = "a share between 0 and 1, as 0.91" if name in SHARES else "a number"
            raise InvalidValue(f"A prediction of {name} is {kind}; not {value!r}.")
        found[name] = guess
    return FrozenMap(found)


def locked(predictions: Predictions, seq: int, guesses: Mapping[str, float]) -> Predictions:
    """With `guesses`, made by event `seq`; an open one of the same name gives way to the new."""
    kept = [p for p in predictions if not (p.open and p.name in guesses)]
    return (*kept, *(Prediction(seq, name, guess) for name, guess in guesses.items()))


def settled(
    predictions: Predictions, seq: int, results: Mapping[str, float], known: bool, instead: int = -1
) -> Predictions:
    """With the `results` that event `seq` brought, `known` or new.

    They also stand in the place of those that event `instead` brought.
    """
    return tuple(
        replace(p, result=results[p.name], settled=seq, known=known or (not p.open and p.known))
        if (p.open or p.settled == instead) and p.name in results
        else p
        for p in predictions
    )


def withdrawn(predictions: Predictions) -> Predictions:
    """With none open: what they were about will not come."""
    return tuple(replace(p, withdrawn=True) if p.open else p for p in predictions)


def proposal(move: Move | None, now: Cost, base: Cost) -> dict[str, float]:
    """What a proposal brings out; no move leaves everything as it is `now`."""
    after = now if move is None else move.after
    return {
        "units": 0.0 if move is None else float(move.units),
        "macs": after.macs / base.macs,
        "params": after.params / base.params,
    }
