"""What can go wrong, in words: what was given, what is allowed, what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class PruneLabError(Exception):
    """The root of every error that prunelab raises on purpose."""


class UnknownName(PruneLabError, KeyError):
    """A name that nothing answers to; the message lists what does."""

    def __init__(self, kind: str, given: object, known: Iterable[str]) -> None:
        names = list(known)
        near = get_close_matches(str(given), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
        super().__init__(f"There is no {kind} {given!r}.{hint} Known: {shown or 'none'}.")

    def __str__(self) -> str:  # KeyError would print the message in quotes
        return str(self.args[0])


class InvalidValue(PruneLabError, ValueError):
    """A parameter outside of what it may be."""


class IllegalPlan(PruneLabError, ValueError):
    """A plan or a move that asks for units that cannot be dropped."""


class BadModel(PruneLabError):
    """A network that cannot be worked on: on the meta device, or with NaN in its weights."""


class BadData(PruneLabError):
    """Batches that cannot be used: none at all, of the wrong shape, or with impossible labels."""


class TraceError(PruneLabError):
    """The network did not run on the example inputs."""


class NotFinite(PruneLabError):
    """NaN or infinity came up while measuring or training."""


class WrongState(PruneLabError):
    """A verb that cannot be said now."""


class SessionBusy(WrongState):
    """Another verb is at work; only Stop passes it."""


class StaleEvidence(WrongState):
    """The network has changed since the move was measured."""


class Stopped(PruneLabError):
    """The person asked to stop; nothing was changed by what was stopped."""


class SessionFileError(PruneLabError):
    """A session file that is not ours, of a newer format, damaged, or of another network."""


class HandInError(PruneLabError):
    """A hand-in that cannot be read: not ours, damaged, or larger than its network can be."""


class MissingPackage(PruneLabError, ImportError):
    """An optional package is needed for this."""


class AtChance(PruneLabError):
    """What was pruned without a person answers at chance; `result` is what came out."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class BudgetUnreachable(PruneLabError):
    """The target is not met: no legal move is left, or the next would ruin the network.

    `plan` is the best so far.
    """

    def __init__(self, message: str, plan: Any) -> None:
        super().__init__(message)
        self.plan = plan
