"""Predictions, recorded before their result is known.

Results of metrics come with the next step, after the automatic repair of an approve; those of
units, MACs and parameters with the next proposal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prunelab.errors import InvalidValue, UnknownName, WrongState
from prunelab.values import Cost, FrozenMap, Move

PROPOSED = ("units", "macs", "params")  # decided by a proposal
SHARES = ("accuracy", "macs", "params")  # shares of the images, or of the original network


@dataclass(frozen=True, slots=True)
class Prediction:
    """A predicted value of `name`, and its result.

    `guess` was recorded by event `seq`; event `settled` gave the `result`. These two are None while
    the prediction is open, and stay None if it is `withdrawn` because its move was rejected or
    undone. `known` if the same result had been shown before the guess, as after an undo.
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
        """The guess minus the result; None without a result."""
        return None if self.result is None else self.guess - self.result


Predictions = tuple[Prediction, ...]


def checked(
    given: Mapping[str, Any], metrics: Iterable[str], pending: Move | None
) -> FrozenMap[Any]:
    """The guesses in `given`, validated, as numbers.

    Parameters
    ----------
    given
        Name to guess.
    metrics
        The names of the metrics.
    pending
        The pending move, if there is one.

    Raises `UnknownName` for a name that cannot be predicted, `InvalidValue` for an invalid guess,
    `WrongState` where the pending move already shows the result.
    """
    known = [*metrics, *PROPOSED]
    if not given:
        raise InvalidValue(
            f"Give at least one prediction: predict({known[0]}=...); known: {', '.join(known)}"
        )
    found = {}
    for name, value in given.items():
        if name not in known:
            raise UnknownName("quantity to predict", name, known)
        if name in PROPOSED and pending is not None:
            raise WrongState(
                f"The pending move already shows its {name}; predict it before propose"
            )
        try:
            guess = math.nan if isinstance(value, bool | str) else float(value)
        except (TypeError, ValueError, OverflowError):
            guess = math.nan
        least = 0.0 if name in SHARES or name in PROPOSED else -math.inf
        legal = math.isfinite(guess) and least <= guess <= (1.0 if name in SHARES else guess)
        if not legal or (name == "units" and guess % 1):
            kind = "a share between 0 and 1, as 0.91" if name in SHARES else "a number"
            kind = "a whole number from 0 up" if name == "units" else kind
            raise InvalidValue(f"A prediction of {name} is {kind}; not {value!r}.")
        found[name] = guess
    return FrozenMap(found)


def locked(predictions: Predictions, seq: int, guesses: Mapping[str, float]) -> Predictions:
    """Add `guesses`, made by event `seq`; they replace open predictions of the same names."""
    kept = [p for p in predictions if not (p.open and p.name in guesses)]
    return (*kept, *(Prediction(seq, name, guess) for name, guess in guesses.items()))


def settled(
    predictions: Predictions, seq: int, results: Mapping[str, float], known: bool, instead: int = -1
) -> Predictions:
    """Add the results of event `seq` to the predictions.

    Parameters
    ----------
    predictions
        All predictions.
    seq
        The event.
    results
        Name to result.
    known
        Whether these results had been shown before.
    instead
        Replace the results of this event, too.
    """
    return tuple(
        replace(p, result=results[p.name], settled=seq, known=known or (not p.open and p.known))
        if (p.open or p.settled == instead) and p.name in results
        else p
        for p in predictions
    )


def withdrawn(predictions: Predictions) -> Predictions:
    """Withdraw all open predictions, because their results will not come."""
    return tuple(replace(p, withdrawn=True) if p.open else p for p in predictions)


def proposal(move: Move | None, now: Cost, base: Cost) -> dict[str, float]:
    """The results that a proposal gives; without a move, those of the present network."""
    after = now if move is None else move.after
    return {
        "units": 0.0 if move is None else float(move.units),
        "macs": after.macs / base.macs,
        "params": after.params / base.params,
    }
