"""What the person looks at and chooses, before Adjust and Approve make it so. No Jupyter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from prunelab.figures.board import BoardInfo, board_info
from prunelab.figures.importance import ImportanceInfo, importance_info
from prunelab.ledger import Event
from prunelab.methods import METHODS, make_method
from prunelab.notebook import text
from prunelab.notebook.parameters import THETA, foreseen, slid, with_parameter
from prunelab.notebook.view import Aims, Busy, View
from prunelab.values import Importance, Move, PathPoint, Rung, Units, units_of


class Choice:
    """The layer looked at, the channels chosen, the aims; the session only predicts.

    `seen` is the evidence of a search under way.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self.aims = Aims(repair=session.state.began.settings.get("repair") is not None)
        self.seen: list[Importance | Rung | PathPoint] = []
        self.last: Event | None = next(reversed(list(session.ledger)), None)
        groups = [group for group in session.graph.groups if group.prunable]
        self.layers = {group.name: tuple(group.producers) for group in groups}
        self.group = next(iter(self.layers))
        self._drop: dict[str, Units] = {}
        self.move: Move | None = None
        self._known: dict[str, Any] = {}  # the methods there were, with their parameters
        self._start(session.state.pending)

    @property
    def drop(self) -> dict[str, Units]:
        """The units to drop of each group."""
        return dict(self._drop)

    # ------------------------------------------------------------ what the session tells

    def follow(self, event: Event) -> None:
        """Start over from what is proposed now."""
        self.last = event
        self._start(self._session.state.pending)

    def _start(self, pending: Move | None) -> None:
        self._drop = dict(pending.drop) if pending else {}
        self.move = None
        if self._drop and self.group not in self._drop:  # look at the one that loses most
            self.group = max(self._drop, key=lambda name: len(self._drop[name]))

    # ------------------------------------------------------------ what the person does

    def change(self, do: str, arg: Any, value: Any, live: bool) -> None:
        """One change by the person; raises what is wrong with it, and then changes nothing."""
        match do:
            case "group":
                self.look(str(arg or value))
            case "flip":
                self.flip(self.group, int(value))
            case "width":
                self.keep(str(arg), int(value))
            case "units":
                self.choose(self.group, text.parse_units(str(value)))
            case "aim":
                self.aims = self.aims.with_typed(str(arg), value)
            case "method":
                self._session.method = self._known.get(value) or make_method(value)
            case "parameter":
                self._session.method = with_parameter(self._session.method, str(arg), value)
            case "theta":
                theta = slid(value)
                if not live:
                    self._session.method = replace(self._session.method, **{THETA: theta})

    def look(self, group: str) -> None:
        """Look at `group`."""
        if group in self.layers:
            self.group = group

    def choose(self, group: str, units: Iterable[int]) -> None:
        """Drop just these units of `group`; on an illegal choice raises and changes nothing."""
        chosen = {**self._drop, group: units_of(units)}
        chosen = {name: gone for name, gone in chosen.items() if gone}
        self.move = self._session.what_if(chosen)
        self._drop = chosen

    def flip(self, group: str, unit: int) -> None:
        """Keep `unit` where it would be dropped, drop it where it would be kept."""
        self.choose(group, set(self._drop.get(group, ())) ^ {unit})

    def keep(self, group: str, width: int) -> None:
        """Keep `width` channels of `group`: the least important ones go."""
        self.look(group)
        shown = self._importance(group)
        pairs = zip(shown.units, shown.fates, strict=True)
        alive = [unit for unit, fate in pairs if fate != "gone"]
        self.choose(group, alive[: max(len(alive) - width, 0)])

    def _importance(self, group: str) -> ImportanceInfo:
        state = self._session.state
        return importance_info(state, group, self.seen or None)

    # ------------------------------------------------------------ verbs

    def call(self, verb: str) -> None:
        """Say `verb` to the session with what is chosen and aimed at."""
        session, aims = self._session, self.aims
        match verb:
            case "adjust":
                session.adjust(drop=self.drop)
            case "approve":
                session.approve(repair=aims.repair)
            case "reject":
                session.reject(aims.reason)
            case "tune":
                session.tune(steps=aims.steps)
            case "run":
                first = next(iter(session.metrics.values()), None)
                higher = first is None or first.higher_is_better
                session.run(
                    target_macs=aims.macs / 100,
                    min_accuracy=aims.floor(session.state, higher),
                    moves=aims.moves,
                    repair=aims.repair,
                )
            case _:
                getattr(session, verb)()

    # ------------------------------------------------------------ what is shown

    def info(self, group: str | None = None) -> BoardInfo:
        """What to draw of `group` (None: the one looked at), as if the choice were proposed."""
        state = self._session.state
        if self.move:
            state = replace(state, pending=self.move)
        seen = self.seen or foreseen(state, self._session.method)
        return board_info(state, group or self.group, layers=self.layers, seen=seen)

    def view(self, *, at_work: tuple[str, ...] = (), busy: Busy | None = None, error: str = "",
             opened: frozenset[str] = frozenset()) -> View:  # fmt: skip
        """The moment as plain values."""
        session = self._session
        self._known[session.method.name] = session.method
        return View(
            state=session.state,
            group=session.graph[self.group],
            layers=self.layers,
            info=self.info(),
            aims=self.aims,
            method=session.method,
            known=tuple(sorted({*METHODS, *self._known})),
            last=self.last,
            chosen=self.move,
            drop=self.drop,
            at_work=at_work,
            busy=busy,
            error=error,
            opened=opened,
        )

    def reason(self) -> str:
        """Why, and at what price, in a sentence."""
        group = self._session.graph[self.group]
        return text.reason(self._session.state, self.last, self.move, group)
