"""The state of a session: a fold over its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prunelab.errors import UnknownName
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
    Tuned,
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
    factors: FrozenMap[str] = field(default_factory=FrozenMap)  # layers that became two, and how
    added: FrozenMap[int] = field(default_factory=FrozenMap)  # the groups between, with full ranks
    # the stored momentum of the latest search, and the units of the network that it belongs to
    momentum: tuple[str, FrozenMap[Units] | None] | None = None

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
        """The point made by event `seq`; raises `UnknownName` where it made none."""
        for point in self.points:
            if point.seq == seq:
                return point
        raise UnknownName("point of the trajectory", seq, [str(p.seq) for p in self.points])

    def group(self, name: str) -> str:
        """`name`, if it is that of a channel group; raises `UnknownName`."""
        if name not in self.full_widths:
            raise UnknownName("channel group", name, self.full_widths)
        return name

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

    @property
    def full_widths(self) -> dict[str, int]:
        """The number of units of each group before any was dropped.

        The ranks of factorised layers are among them, also of those that the pending move would
        factorise.
        """
        added = {**self.now.added, **(self.pending.adds if self.pending else {})}
        found: dict[str, int] = {}
        for name, width in self.began.widths.items():
            found |= {g: rank for g, rank in added.items() if g.startswith(f"{name}.")}
            found[name] = width
        return found | added

    def widths(self) -> dict[str, int]:
        """The number of units of each group, now."""
        kept: Mapping[str, Units] = self.now.kept or {}
        return {name: len(kept.get(name, range(full))) for name, full in self.full_widths.items()}

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
            f"MACs {si(now.cost.macs)} ({now.cost.macs / base.cost.macs:.0%} of the original"
            + (f"; without {base.cost.left_out})" if base.cost.left_out else ")"),
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
                f"proposed: {self.pending.splits}drop {many(self.pending.units, 'unit')} in "
                f"{many(len(self.pending.drop), 'group')} (to {share:.0%} of the MACs)"
                + (", measured before the network changed: propose again" if self.stale else "")
            )
        elif self.exhausted:
            why = self.proposed.why if self.proposed else ""
            parts.append(f"the method has no further moves{why and ': '}{why}")
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
            point = _after(state, event)
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


def _after(state: State, event: Step) -> Point:
    """The point that a step leads to. A tune trains with an optimiser of its own."""
    now = state.now
    point = replace(now, seq=event.seq, parent=state.head, event=event, kept=event.kept)
    if isinstance(event, Approved) and state.pending is not None and state.proposed is not None:
        key = state.proposed.momentum
        momentum = None if key is None else (key, now.kept)
        return replace(
            point,
            carry=state.pending.carry,
            momentum=None if state.pending.factors else momentum,
            factors=FrozenMap({**now.factors, **state.pending.factors}),
            added=FrozenMap({**now.added, **state.pending.adds}),
        )
    return replace(point, momentum=None) if isinstance(event, Tuned) else point


def _revealed(
    state: State, event: Event, mark: Any, results: Mapping[str, float], instead: int = -1
) -> State:
    """The state after `event` showed these results of the network or move `mark`."""
    known = mark in state.revealed
    predictions = settled(state.predictions, event.seq, results, known, instead)
    return replace(state, predictions=predictions, revealed=state.revealed | {mark})
