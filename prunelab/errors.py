"""Exceptions. Each message says what was given, what is allowed and what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class PruneLabError(Exception):
    """The base class of all errors that prunelab raises."""


class UnknownName(PruneLabError, KeyError):
    """An unknown name; the message lists the known ones."""

    def __init__(self, kind: str, given: object, known: Iterable[str]) -> None:
        names = list(known)
        near = get_close_matches(str(given), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
        super().__init__(f"There is no {kind} {given!r}.{hint} Known: {shown or 'none'}.")

    def __str__(self) -> str:  # KeyError would print the message in quotes
        return str(self.args[0])


class InvalidValue(PruneLabError, ValueError):
    """A parameter with a value that is not allowed."""


class IllegalPlan(PruneLabError, ValueError):
    """A plan or move with units that cannot be dropped."""


class BadModel(PruneLabError):
    """A network that cannot be used: on the meta device, or with NaN in its weights."""


class BadData(PruneLabError):
    """Batches that cannot be used: empty, of the wrong shape, or with impossible labels."""


class TraceError(PruneLabError):
    """The network did not run on the example inputs."""


class NotFinite(PruneLabError):
    """NaN or infinity occurred in measuring or training."""


class WrongState(PruneLabError):
    """The call is not valid in the session's current state."""


class SessionBusy(WrongState):
    """Another verb is running; only `stop` is allowed."""


class StaleEvidence(WrongState):
    """The network has changed since the move was measured."""


class Stopped(PruneLabError):
    """A verb was stopped; it changed nothing."""


class SessionFileError(PruneLabError):
    """A session file that is damaged, foreign, of a newer format, or of another network."""


class HandInError(PruneLabError):
    """A hand-in that cannot be read: damaged, foreign, or larger than its network can be."""


class RankLost(PruneLabError):
    """One of several processes that prune together has ended, or does not answer."""


class MissingPackage(PruneLabError, ImportError):
    """An optional package is missing."""


class AtChance(PruneLabError):
    """The network that `prune` made is at chance; `result` holds it."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class OverBudget(PruneLabError):
    """Something needs more memory than the budget of the session allows."""


class BudgetUnreachable(PruneLabError):
    """The target cannot be met: no legal move is left, or the next would break the floor.

    `plan` is the best plan so far.
    """

    def __init__(self, message: str, plan: Any) -> None:
        super().__init__(message)
        self.plan = plan
