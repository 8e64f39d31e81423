"""`prune`: the whole job without a person, through the same `Session`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from prunelab.errors import AtChance, BudgetUnreachable, InvalidValue
from prunelab.ledger.ledger import Ledger
from prunelab.ledger.state import Point
from prunelab.ledger.words import at_chance, stopped
from prunelab.session.session import Session
from prunelab.values import WidthPlan
from prunelab.values.given import as_annotated


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """The result: the small network, its plan, the ledger, and the points in order."""

    model: nn.Module
    plan: WidthPlan
    ledger: Ledger
    trajectory: tuple[Point, ...]


@as_annotated
def prune(
    model: nn.Module,
    data: Any,
    method: Any = "aofp",
    *,
    target_macs: float = 0.5,
    min_accuracy: float | Literal["auto"] | None = "auto",
    repair: str | None = "lstsq",
    tune: int | None = 0,
    **session: Any,
) -> Pruned:
    """Prune `model` to `target_macs` (a share when at most 1), then tune.

    Parameters
    ----------
    model, data, method, repair
        As for `Session`.
    target_macs
        As for `Session.run`.
    min_accuracy
        As for `Session.run`: a number, "auto", or None for no floor. Where a number ends the run
        early, the network at that point is tuned and returned.
    tune
        Batches of tuning: 0 for none, None for the default of `Session.tune`.
    session
        Other keywords of `Session`.

    Raises
    ------
    InvalidValue
        For a negative `tune`, and as `Session` and `run`.
    BudgetUnreachable
        When the method cannot reach the target, or not above the floor of "auto"; it holds the
        best plan so far.
    AtChance
        When a network that was over 5 points above chance ends within 2 points of it on the
        validation images, whatever the floor; it holds the result.
    """
    if tune is not None and tune < 0:
        raise InvalidValue(f"tune counts batches: 0 for none, None for the default; not {tune}.")
    work = Session(model, data, method, repair=repair, **session)
    work.run(target_macs=target_macs, min_accuracy=min_accuracy)
    if min_accuracy == "auto" and (why := stopped(work.ledger[-1])):
        raise BudgetUnreachable(why, work.plan)
    if tune != 0:
        work.tune(**({} if tune is None else {"steps": tune}))
    result = Pruned(work.model, work.plan, work.ledger, work.state.path)
    if why := at_chance(work.state):
        raise AtChance(f"{why} The error's result holds the network.", result)
    return result
