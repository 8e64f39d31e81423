"""What the person chooses to drop before Adjust makes it the proposal. No Jupyter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prunelab.figures.importance import ImportanceInfo
from prunelab.values import Move, Units, units_of


class Draft:
    """A local copy of the pending drop, changed group by group; the session only predicts."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._drop: dict[str, Units] = {}
        self.move: Move | None = None

    @property
    def drop(self) -> dict[str, Units]:
        """The units to drop of each group."""
        return dict(self._drop)

    def follow(self, pending: Move | None) -> None:
        """Start over from what is proposed."""
        self._drop = dict(pending.drop) if pending else {}
        self.move = None

    def choose(self, group: str, units: Iterable[int]) -> None:
        """Drop just these units of `group`; on an illegal choice raises and changes nothing."""
        chosen = {**self._drop, group: units_of(units)}
        chosen = {name: gone for name, gone in chosen.items() if gone}
        self.move = self._session.what_if(chosen)
        self._drop = chosen

    def flip(self, group: str, unit: int) -> None:
        """Keep `unit` where it would be dropped, drop it where it would be kept."""
        self.choose(group, set(self._drop.get(group, ())) ^ {unit})

    def lowest(self, shown: ImportanceInfo, count: int) -> None:
        """Drop the `count` least important units of the group shown that are still there."""
        pairs = zip(shown.units, shown.fates, strict=True)
        alive = [unit for unit, fate in pairs if fate != "gone"]
        self.choose(shown.group, alive[:count])
