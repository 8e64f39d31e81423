"""How far the channels of a group in a move are from the best set of their size, in a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from prunelab.evidence.best_set import BestSet
from prunelab.ledger.words import share
from prunelab.session.session import Session
from prunelab.values import Units, many

WIDEST = 64  # units: the bound of a wider group takes seconds in which nothing can stop it
EQUAL = 1e-3  # shares nearer than this to one another are told as one


@dataclass(frozen=True, slots=True)
class Certificate:
    """The `damage` of a set of units, and the best set of as many; both are before a repair."""

    best: BestSet
    damage: float

    def __str__(self) -> str:
        some = many(len(self.best.units), "channel")
        excess = self.best.excess(self.damage)
        near = f"within {share(excess)} of " if excess > EQUAL else ""
        return f"Proved: {near}the best {some}."

    @property
    def tip(self) -> str:
        """What is best, in figures."""
        return (
            f"By the share of the signal that is lost before a repair: these lose "
            f"{self.damage:.3%}, no other {many(len(self.best.units), 'channel')} of this layer "
            f"less than {min(self.best.bound, self.damage):.3%}."
        )


def certificate(session: Session, group: str, units: Units) -> Certificate | None:
    """Bound a set of units, in the background; None where the group is wide or not measured."""
    if len(session.graph[group].units) > WIDEST:
        return None
    best = session.certify({group: units}, background=True).get(group)
    if best is None:
        return None
    return Certificate(best, session.foresee({group: units}).damage[group])
