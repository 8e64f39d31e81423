"""The state of a session: a fold over its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prunelab.ledger.events import (
    Adjusted,
    Approved,
    Began,
    Event,
    Noted,
    Proposed,
    Rejected,
    Repaired,
    Returned,
    Step,
    Undone,
)
from prunelab.ledger.guard import Alarm, alarm
from prunelab.ledger.predictions import Prediction, locked, proposal, settled, withdrawn
from prunelab.values import Cost, FrozenMap, Move, Units, as_text, listed, many, si


@dataclass(frozen=True, slots=True)
class Point:
    """The network after one step, a dot of the trajectory. `parent` is the seq of a point."""

    seq: int
    parent: int | None
    event: Began | Step
    kept: FrozenMap[Units] | None  # None: every unit
    carry: FrozenMap[Any] = field(default_factory=FrozenMap)  # passed to the method's next search

    @property
    def metrics(self) -> FrozenMap[float]:
        """Metric to value, on the validation images."""
        return self.event.metrics

    @property
    def cost(self) -> Cost:
        """The cost of the network at this point."""
        return self.event.cost


@dataclass(frozen=True, slots=True)
class State:
    """The state of a session, a pure function of its events."""

    points: tuple[Point, ...] = ()
    head: int = 0  # seq of the point where the network is now
    pending: Move | None = None
    proposed: Proposed | None = None  # the latest proposal, pending or not
    exhausted: bool = False  # the method has no more moves
    events: int = 0
    predictions: tuple[Prediction, ...] = ()  # open ones, and others with their results
    answers: FrozenMap[Any] = field(default_factory=FrozenMap)  # exercise to the latest answer
    revealed: frozenset[Any] = frozenset()  # networks and moves whose results were shown

    def point(self, seq: int) -> Point:
        """The point made by event `seq`."""
        return next(point for point in self.points if point.seq == seq)

    @property
    def now(self) -> Point:
        """The point where the network is."""
        return self.point(self.head)

    @property
    def began(self) -> Began:
        """The first event."""
        event = self.points[0].event
        assert isinstance(event, Began)
        return event

    @property
    def base(self) -> Point:
        """The point where the session began."""
        return self.points[0]

    @property
    def path(self) -> tuple[Point, ...]:
        """The points from the base to now, in order; all other points are on branches."""
        return self.path_to(self.head)

    def path_to(self, seq: int) -> tuple[Point, ...]:
        """The points from the base to the one made by event `seq`."""
        line = [self.point(seq)]
        while line[-1].parent is not None:
            line.append(self.point(line[-1].parent))
        return tuple(reversed(line))

    @property
    def stale(self) -> bool:
        """Whether the network has changed since the pending move was measured."""
        return self.pending is not None and self.pending.fingerprint != self.now.event.fingerprint

    @property
    def moves(self) -> int:
        """The number of approved moves in effect."""
        return self.moves_at(self.head)

    def moves_at(self, seq: int) -> int:
        """The number of approved moves in effect at the point made by event `seq`."""
        return sum(isinstance(point.event, Approved) for point in self.path_to(seq))

    @property
    def undoable(self) -> bool:
        """Whether there is something to undo."""
        return self.pending is not None or self.now.parent is not None

    def undo_target(self) -> tuple[int | None, int]:
        """What one undo removes: (seq of the step or None, seq of the head afterwards)."""
        point = self.now
        if point.parent is None:
            return None, self.head
        if isinstance(point.event, Repaired) and point.event.automatic:
            point = self.point(point.parent)
        assert point.parent is not None
        return point.seq, point.parent

    def before(self, seq: int) -> Point:
        """The point before the step of event `seq`.

        For an automatic repair this is the point before its approve.
        """
        point = self.point(seq)
        steps = 2 if isinstance(point.event, Repaired) and point.event.automatic else 1
        for _ in range(steps):
            point = point if point.parent is None else self.point(point.parent)
        return point

    def alarm(self, seq: int | None = None) -> Alarm | None:
        """The alarm if the step of event `seq` (None: the latest) cost too much."""
        point = self.now if seq is None else self.point(seq)
        return alarm(self.began, self.before(point.seq).metrics, point.metrics)

    def widths(self) -> dict[str, int]:
        """The number of units of each group, now."""
        kept = self.now.kept
        full = self.began.widths
        return {name: len(kept[name]) if kept is not None else full[name] for name in full}

    def proposed_widths(self) -> dict[str, int]:
        """The number of units of each group if the pending move were approved."""
        widths = self.widths()
        for name, units in (self.pending.drop if self.pending else FrozenMap()).items():
            widths[name] -= len(units)
        return widths

    def line(self) -> str:
        """The state in one line of text."""
        base, now = self.base, self.now
        parts = [
            f"move {self.moves}",
            f"MACs {si(now.cost.macs)} ({now.cost.macs / base.cost.macs:.0%} of the original)",
            f"parameters {si(now.cost.params)}",
        ]
        for name, value in [*now.metrics.items()][:1]:
            parts.append(f"validation {name} {as_text(name, value)}")
        if found := self.alarm():
            parts.append(found.mark)
        if self.began.unseen:
            parts.append(f"{listed(self.began.unseen, 2)} never ran")
        if self.pending is not None:
            share = self.pending.after.macs / base.cost.macs
            parts.append(
                f"proposed: drop {many(self.pending.units, 'unit')} in "
                f"{many(len(self.pending.drop), 'group')} (to {share:.0%} of the MACs)"
                + (", measured before the network changed: propose again" if self.stale else "")
            )
        elif self.exhausted:
            parts.append("the method has no further moves")
        else:
            parts.append("nothing proposed")
        return " · ".join(parts)


def fold(events: Iterable[Event]) -> State:
    """The state after `events`."""
    state = State()
    for event in events:
        state = advance(state, event)
    return state


def advance(state: State, event: Event) -> State:
    """The state after one more event."""
    return replace(_next(state, event), events=state.events + 1)


def _next(state: State, event: Event) -> State:
    match event:
        case Began():
            return replace(
                state,
                points=(Point(event.seq, None, event, None),),
                head=event.seq,
                revealed=frozenset({event.fingerprint}),
            )
        case Proposed():
            results = proposal(event.move, state.now.cost, state.base.cost)
            mark = (state.now.event.fingerprint, event.move and event.move.drop)
            return replace(
                _revealed(state, event, mark, results),
                pending=event.move,
                proposed=event,
                exhausted=event.move is None,
            )
        case Adjusted():
            return replace(state, pending=event.move)
        case Rejected():
            return replace(state, pending=None, predictions=withdrawn(state.predictions))
        case Step():
            approved = state.pending if isinstance(event, Approved) else None
            carry = state.now.carry if approved is None else approved.carry
            point = Point(event.seq, state.head, event, event.kept, carry)
            came_with = isinstance(event, Repaired) and event.automatic
            instead = state.head if came_with else -1
            return replace(
                _revealed(state, event, event.fingerprint, event.metrics, instead),
                points=(*state.points, point),
                head=event.seq,
                pending=state.pending if approved is None else None,
                exhausted=False,
            )
        case Undone():
            head = state.head
            if event.step is not None:
                parent = state.point(event.step).parent
                assert parent is not None
                head = parent
            open_no_more = withdrawn(state.predictions)
            return replace(
                state, head=head, pending=None, exhausted=False, predictions=open_no_more
            )
        case Returned():
            open_no_more = withdrawn(state.predictions)
            return replace(
                state, head=event.to, pending=None, exhausted=False, predictions=open_no_more
            )
        case Noted(kind="prediction"):
            return replace(state, predictions=locked(state.predictions, event.seq, event.value))
        case Noted(kind="answer"):
            return replace(state, answers=FrozenMap({**state.answers, event.about: event.value}))
        case _:
            return state


def _revealed(
    state: State, event: Event, mark: Any, results: Mapping[str, float], instead: int = -1
) -> State:
    """The state after `event` showed these results of the network or move `mark`."""
    known = mark in state.revealed
    predictions = settled(state.predictions, event.seq, results, known, instead)
    return replace(state, predictions=predictions, revealed=state.revealed | {mark})
