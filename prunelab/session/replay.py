"""The decisions that led to a session's network, and how another session repeats them.

A notebook decides on a few images; a script, on one machine or under `torchrun`, repeats that on
all of them. A decision is a verb of `Session` and its arguments; "use" sets the method.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from prunelab.errors import BadModel, InvalidValue, SessionFileError
from prunelab.graph.surgery.network_state import NetworkState, restore
from prunelab.graph.trace import copy_of
from prunelab.ledger.events import (
    Adjusted,
    Approved,
    Began,
    Event,
    Noted,
    Proposed,
    Repaired,
    Tuned,
)
from prunelab.ledger.ledger import Ledger, understood
from prunelab.methods import make_method
from prunelab.values import thaw

if TYPE_CHECKING:
    from prunelab.session.session import Session

Decision = tuple[str, dict[str, Any]]


def settings_of(began: Began) -> dict[str, Any]:
    """The keywords of `Session` that a session began with, its method aside."""
    usual = {"freeze": (), "round_to": 1}
    names = ("repair", "repair_images", "freeze", "round_to")
    kept = {name: began.settings[name] for name in names if name in began.settings}
    return {n: v for n, v in kept.items() if v != usual.get(n, ...)} | {"seed": began.seed}


def original_of(ledger: Ledger, model: nn.Module, path: str | Path) -> nn.Module:
    """A copy of `model` with the weights that the session in the file `path` began with.

    Raises `SessionFileError` where they are those of another architecture.
    """
    base, began = copy_of(model), ledger.state.began
    try:
        with understood(path):
            restore(base, NetworkState.unpacked(ledger.weights(began.weights)))
    except BadModel as error:
        raise SessionFileError(
            f"{path} is a session of a {began.network} whose weights do not fit the given "
            f"{type(model).__name__}: {error} Give a network of the same architecture."
        ) from None
    return base


def decisions(ledger: Ledger, redecide: bool = False) -> Iterator[Decision]:
    """The steps that lead to the present network, without what was undone.

    A move is given as the units that it drops, or with `redecide` searched again by its method
    towards its target, as a move always is that factorises layers or adds units.
    """
    path = {point.seq for point in ledger.state.path}
    events = list(ledger)
    proposed: Proposed | None = None
    move = None
    for event, after in zip(events, [*events[1:], None], strict=True):
        if isinstance(event, Proposed):
            proposed, move = event, event.move
        elif isinstance(event, Adjusted):
            move = event.move
        elif event.seq not in path:
            continue
        elif isinstance(event, Approved):
            assert proposed is not None and move is not None
            yield "use", {"method": proposed.method, **thaw(proposed.parameters)}
            if redecide or move.factors or move.adds:
                yield "propose", {} if proposed.target is None else {"target_macs": proposed.target}
            else:
                yield "propose", {"drop": {name: list(units) for name, units in move.drop.items()}}
            yield "approve", {} if getattr(after, "automatic", False) else {"repair": False}
        elif isinstance(event, Repaired) and not event.automatic:
            yield "repair", {"kind": event.kind}
        elif isinstance(event, Tuned):
            if not event.steps:
                raise InvalidValue(
                    f"Event {event.seq} is {event.unlike()}, in the script that export writes."
                )
            yield "tune", {"steps": event.steps}


def repeat(session: Session, wanted: Iterable[Decision]) -> Session:
    """Take these decisions in `session`; those that its ledger already holds are not taken again.

    So a run that was ended goes on where a session with `resume=True` stands.
    """
    done = [verb for verb in map(_verb, session.ledger) if verb]
    for verb, given in wanted:
        if verb == "use":
            session.method = make_method(**given)
        elif done:
            if done.pop(0) != verb:
                raise InvalidValue(
                    f"The session holds other steps than these, so it is not theirs: no {verb} "
                    "where they have one. Give another path for a new session."
                )
        else:
            getattr(session, verb)(**given)
    return session


def _verb(event: Event) -> str | None:
    """The verb that left an event, or None."""
    if isinstance(event, Noted):
        return "tune" if event.kind == "tune" else None
    if isinstance(event, Repaired) and event.automatic:
        return None
    return event.verb if isinstance(event, Proposed | Approved | Repaired | Tuned) else None
