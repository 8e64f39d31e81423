"""How far the channels of a group in a move are from the best set of their size, in a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from prunelab.evidence.best_set import BestSet
from prunelab.session.session import Session
from prunelab.values import Units

EQUAL = 1e-3  # shares nearer than this to one another are told as one


@dataclass(frozen=True, slots=True)
class Certificate:
    """The `damage` of a set of units, and the best set of as many; both are before a repair."""

    best: BestSet
    damage: float

    def __str__(self) -> str:
        size = len(self.best.units)
        some = f"{size} channels" if size > 1 else "channel"
        if self.best.excess(self.damage) <= EQUAL:
            return f"No other {some} of this layer would cost less of the signal (proved)."
        better = self.best.excess(self.damage) - self.best.excess()
        found = f", and ones are known that cost {self.best.damage:.2%}" if better > EQUAL else ""
        other = f"any {some}" if size > 1 else "any other channel"
        return (
            f"Before a repair these cost {self.damage:.2%} of the signal: at most "
            f"{self.best.excess(self.damage):.1%} more than {other} of this layer (proved){found}."
        )


def certificate(session: Session, group: str, units: Units) -> Certificate | None:
    """Bound a set of units, in the background; None where the group is not measured."""
    best = session.certify({group: units}, background=True).get(group)
    if best is None:
        return None
    return Certificate(best, session.foresee({group: units}).damage[group])
