"""`prune`: the whole job without a person, by the very session that a person would use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from prunelab.ledger.ledger import Ledger
from prunelab.ledger.state import Point
from prunelab.session import Session
from prunelab.values import WidthPlan


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """What came out: the plain small network, its plan, the ledger, and the points in order."""

    model: nn.Module
    plan: WidthPlan
    ledger: Ledger
    trajectory: tuple[Point, ...]


def prune(
    model: nn.Module,
    data: Any,
    method: Any = "aofp",
    *,
    target_macs: float = 0.5,
    min_accuracy: float | None = None,
    repair: str | None = "lstsq",
    tune: int | None = 0,
    **session: Any,
) -> Pruned:
    """Prune `model` to `target_macs` (a share when at most 1), then tune.

    `tune` counts batches: 0 for none, None for the default of `Session.tune`. Other keywords are
    those of `Session`. Raises `BudgetUnreachable`, with the best plan so far, when the method
    cannot reach the target.
    """
    work = Session(model, data, method, repair=repair, **session)
    work.run(target_macs=target_macs, min_accuracy=min_accuracy)
    if tune != 0:
        work.tune(**({} if tune is None else {"steps": tune}))
    return Pruned(work.model, work.plan, work.ledger, work.state.path)
