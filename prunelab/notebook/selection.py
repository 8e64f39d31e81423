"""The user's selection, before Adjust and Approve apply it. No Jupyter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunelab.errors import BudgetUnreachable, IllegalPlan, PruneLabError, Stopped, WrongState
from prunelab.figures.board import BoardInfo, board_info
from prunelab.figures.choice_words import ALONE
from prunelab.figures.importance import ImportanceInfo, importance_info
from prunelab.ledger import words
from prunelab.ledger.events import Event
from prunelab.ledger.state import State
from prunelab.methods import METHODS, make_method
from prunelab.methods.base import with_theta
from prunelab.notebook import text
from prunelab.notebook.parameters import THETA, retuned, slid, with_parameter
from prunelab.notebook.view import Aims, Chosen, End, Table, View
from prunelab.session.session import Session
from prunelab.values import (
    Importance,
    Move,
    PathPoint,
    Progress,
    Rung,
    Units,
    WidthPlan,
    units_of,
)


class Choice:
    """The inspected layer and channel, the selected units and the aims; changes no session state.

    `seen` is the evidence of a running search; `made` is the selection, None where it is the
    proposal itself.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.aims = Aims.of(session.state)
        self.seen: list[Importance | Rung | PathPoint] = []
        self.last: Event | None = next(reversed(list(session.ledger)), None)
        self.group = next(iter(self.layers))
        self.unit: int | None = None  # the inspected channel of that group
        self.compared: tuple[End, End] | None = None  # None: the original and the current network
        self.plans: dict[str, WidthPlan] = {}  # plans read for comparison, by path
        self.written = ""  # a message about the last exported file
        self.failed = ""  # why it was not written
        self.hint = ""  # the answer to an action that selected nothing
        self.progress: Progress | None = None  # of the running verb
        self.revealed = 0  # how often the comparison was asked for in the figure
        self.table = Table()
        self._awaited: float | None = None  # a budget that waits for evidence
        self._drop: dict[str, Units] = {}
        self.made: Chosen | None = None
        self._known: dict[str, Any] = {}  # methods used so far, with their parameters
        self._start(session.state.pending)

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """The prunable groups with their layers, those of a proposed factorisation among them."""
        groups = self._session.proposal_graph.groups
        return {group.name: tuple(group.producers) for group in groups if group.prunable}

    @property
    def drop(self) -> dict[str, Units]:
        """The units to drop of each group."""
        return dict(self._drop)

    @property
    def move(self) -> Move | None:
        """The selected move, or the proposal."""
        return self.made.move if self.made else self._session.state.pending

    @property
    def repairs(self) -> bool:
        """Whether Approve would repair the network."""
        return self.aims.repair and self._session.state.began.settings.get("repair") is not None

    @property
    def ends(self) -> tuple[End, End]:
        """The two networks to compare; by default the original and the current one."""
        state = self._session.state
        return self.compared or (state.base.seq, state.head)

    # ------------------------------------------------------------ events of the session

    def follow(self, event: Event) -> None:
        """Reset the selection to the current proposal."""
        self.last = event
        self._start(self._session.state.pending)
        if event.changes_network:
            self.compared = None

    def _start(self, pending: Move | None) -> None:
        self._drop = dict(pending.drop) if pending else {}
        self.made = None
        self._look_where_it_matters()

    def _look_where_it_matters(self) -> None:
        if self.group not in self.layers:
            self.group, self.unit = next(iter(self.layers)), None
        if self._drop and self.group not in self._drop:  # at the group that loses most
            self.look(max(self._drop, key=lambda name: len(self._drop[name])))

    # ------------------------------------------------------------ actions of the user

    def change(self, do: str, arg: Any, value: Any, live: bool) -> None:
        """Apply an action of the user; an invalid one raises and changes nothing."""
        state = self._session.state
        self.hint, self._awaited = "", None
        match do:
            case "group":
                self.look(str(arg or value))
            case "unit":
                self.unit = int(value) if value else None
            case "compare":
                end = str(value) if str(value) in self.plans else int(value)
                first, second = self.ends
                self.compared = (first, end) if int(arg) else (end, second)
            case "plan":
                self.compared = self.ends[0], self._read(str(value))
            case "point":
                self.compared = state.head, int(value)
                self.revealed += 1
            case "flip":
                self.unit = int(value)
                self.flip(self.group, int(value))
            case "width" | "typed":
                self.keep(str(arg), int(value))
            case "several":
                widths = state.widths()
                self.keep_all(
                    {n: text.parse_width(str(value), widths[n]) for n in self.table.ticked}
                )
            case "multiples":
                self.table = replace(self.table, multiples=bool(value))
                if self.table.multiples and self._drop:
                    widths = state.widths()
                    self.keep_all({n: widths[n] - len(gone) for n, gone in self._drop.items()})
            case "tick":
                self.table = self.table.ticking(str(arg), bool(value))
            case "sort":
                self.table = self.table.sorting(str(arg))
            case "best":
                assert self.made is not None
                self.choose(str(arg), self.made.best[str(arg)].units)
            case "units":
                self.choose(self.group, text.parse_units(str(value)))
            case "back":
                self._back()
            case "aim":
                self.aims = self.aims.with_typed(str(arg), value)
                if arg == "macs":
                    self.spread(self.aims.macs / 100, live)
            case "method":
                self._session.method = self._known.get(value) or make_method(value)
                self._start(self._session.state.pending)
            case "parameter":
                method = with_parameter(self._session.method, str(arg), value)
                if arg == THETA:
                    self.theta(getattr(method, THETA))
                else:
                    self._session.method = method
                    self._start(self._session.state.pending)
            case "theta":
                self.theta(slid(value), live)

    def look(self, group: str) -> None:
        """Inspect `group`."""
        if group in self.layers and group != self.group:
            self.group, self.unit = group, None

    def choose(self, group: str, units: Iterable[int]) -> None:
        """Select exactly these units of `group`; an illegal choice raises and changes nothing."""
        self._choose({group: units})
        self.look(group)

    def _choose(self, drop: Mapping[str, Iterable[int]]) -> None:
        chosen = self._drop | {name: units_of(units) for name, units in drop.items()}
        chosen = {name: gone for name, gone in chosen.items() if gone}
        self.made = self._imagined(chosen)
        self._drop = chosen

    def flip(self, group: str, unit: int) -> None:
        """Toggle whether `unit` is dropped."""
        self.choose(group, set(self._drop.get(group, ())) ^ {unit})

    def keep(self, group: str, width: int) -> None:
        """Keep `width` channels of `group`: the least important ones are dropped."""
        self.keep_all({group: width})
        self.look(group)

    def keep_all(self, widths: Mapping[str, int]) -> None:
        """Keep so many channels of each group; without scores, the best known selection."""
        drop: dict[str, Units] = {}
        for group, width in widths.items():
            alive = self._ranked(group)
            drop[group] = tuple(alive[: max(len(alive) - self.table.rounded(width, len(alive)), 0)])
        unscored = {name: gone for name, gone in drop.items() if gone and not self._scored(name)}
        if unscored:
            best = self._imagined(unscored).best
            drop |= {name: best[name].units for name in unscored if name in best}
        self._choose(drop)

    def _scored(self, group: str) -> bool:
        return bool(importance_info(self._session.state, group, self.seen or None).units)

    def _ranked(self, group: str) -> list[int]:
        """The remaining units of `group`, least important first where scores exist."""
        shown = importance_info(self._session.state, group, self.seen or None)
        kept = self._session.plan.kept
        alive = set(kept[group] if group in kept else self._session.proposal_graph[group].units)
        ranked = [unit for unit in shown.units if unit in alive]
        return ranked + sorted(alive.difference(ranked))

    def _imagined(self, drop: dict[str, Units]) -> Chosen:
        """The effect of `drop`, from existing evidence, or measured where there is none."""
        try:
            found = self._session.foresee(drop)
        except WrongState:
            self._session.measure()
            found = self._session.foresee(drop)
        return Chosen("person", found.move, (), found.best, found.seconds)

    def spread(self, target: float, live: bool = False) -> None:
        """Select the widths that spread a budget over the layers, or say why there are none."""
        state = self._session.state
        try:
            found = self._session.foresee(target_macs=target)
        except WrongState:  # the answer comes with the evidence
            self._awaited, self.hint = target, text.AWAITED
            return
        except BudgetUnreachable:
            if live:  # half a number
                return
            raise
        if not self.ahead:
            self.hint = text.met(state, target)
        self._drop = dict(found.move.drop) if found.move else {}
        self.made = None
        if found.move is not None and found.move.drop:
            self.made = Chosen("budget", found.move, (), found.best, found.seconds)
        self._look_where_it_matters()

    def catch_up(self) -> None:
        """Answer an aim that was typed before evidence was ready."""
        if self._awaited is not None:
            target, self._awaited, self.hint = self._awaited, None, ""
            self.spread(target)

    @property
    def ahead(self) -> bool:
        """Whether the aim still lies ahead."""
        state = self._session.state
        return state.now.cost.macs > int(self.aims.macs / 100 * state.base.cost.macs)

    def theta(self, theta: float, live: bool = False) -> None:
        """Show what the method would propose with this theta; set it if not `live`.

        While a proposal is pending, another one is an offer.
        """
        session = self._session
        if not live:
            session.method = with_theta(session.method, theta)
        pending = session.state.pending
        try:
            found = session.foresee(theta=theta)
        except WrongState:
            self._start(pending)
            return
        if pending is not None and found.move is not None and found.move.drop == pending.drop:
            self._start(pending)
            return
        self.made = Chosen("theta", found.move, found.seen, found.best, found.seconds, theta)
        self._drop = dict(found.move.drop) if found.move else {}

    def _back(self) -> None:
        """Discard the selection, and with that of another theta also that theta."""
        session, made = self._session, self.made
        if made is not None and made.by == "theta" and session.state.pending is not None:
            theta = session.state.pending.parameters.get(THETA)
            if isinstance(theta, float):
                session.method = with_theta(session.method, theta)
        self._start(session.state.pending)

    def _read(self, given: str) -> str:
        """Read a plan written by `export`; returns its key in `plans`."""
        path = Path(given.strip()).expanduser()
        try:
            plan = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise IllegalPlan(text.NO_PLAN.format(given, error)) from None
        self.plans[str(path)] = WidthPlan.from_json(plan, self._session.plan.graph)
        return str(path)

    # ------------------------------------------------------------ verbs

    def call(self, verb: str, arg: Any = None) -> None:
        """Call `verb` of the session with the selection and aims, or with `arg`.

        One that was stopped says so in the history.
        """
        self.progress = None
        self.hint = self.failed = ""
        try:
            self._call(verb, arg)
        except Stopped:
            self._session.note(text.stopped(verb, self.progress), kind="outcome")

    def _call(self, verb: str, arg: Any) -> None:
        session, aims, state = self._session, self.aims, self._session.state
        match verb:
            case "propose":
                self._propose()
            case "instead":
                assert self.made is not None
                session.reject(text.INSTEAD.format(text.two_digits(self.made.theta or 0)))
                self._propose()
            case "adjust":
                drop = self.drop
                if state.pending is None:
                    session.propose()
                session.adjust(drop=drop)
            case "undo" if state.pending is not None:
                session.undo(only_proposal=True)
            case "approve":
                session.approve(repair=aims.repair)
            case "reject":
                session.reject(aims.reason)
            case "export":
                self.written = ""
                try:
                    path = session.export(Path(str(arg).strip()).expanduser())
                except Stopped:
                    raise
                except Exception as error:
                    self.failed = text.trouble(error, isinstance(error, PruneLabError))
                else:
                    self.written = text.written(path)
            case "tune":
                session.tune(steps=aims.steps)
            case "run":
                self._run()
            case _:
                getattr(session, verb)(*([] if arg is None else [arg]))

    def _propose(self) -> None:
        """Propose, and again within the aim what goes beyond it.

        A method with a theta searches in another way towards a target: one that cannot be
        foreseen while theta is dragged.
        """
        session, target = self._session, self.aims.macs / 100
        if not self.ahead:
            self.hint = text.met(session.state, target)
            session.propose()
        elif not hasattr(session.method, THETA):
            session.propose(target)
        else:
            move, goal = session.propose(), int(target * session.state.base.cost.macs)
            if move is not None and move.after.macs < goal:
                session.reject(text.BEYOND.format(100 * target))
                session.propose(target)

    def _run(self) -> None:
        """Run to the aim, and say in the history how it ended, unless the run does so itself."""
        session, aims, before = self._session, self.aims, self._session.state
        why = ""
        try:
            session.run(
                target_macs=aims.macs / 100,
                min_accuracy=aims.floor(before),
                moves=aims.moves,
                repair=aims.repair,
            )
        except Stopped:
            why = text.RUN_STOPPED
        except BudgetUnreachable as error:
            why = str(error)
        if why or not words.stopped(session.ledger[-1]):
            session.note(text.ran(before, session.state, aims, why), kind="outcome")

    # ------------------------------------------------------------ contents of the screen

    def _retuned(self, state: State) -> Sequence[Any]:
        """The evidence of the latest search as judged with the method's current theta.

        Empty where theta is unchanged, or where a new search is needed.
        """
        if state.pending is not None or not retuned(state, self._session.method):
            return ()  # a proposal is drawn as it was made
        try:
            return self._session.foresee().seen
        except WrongState:
            return ()

    def info(self, group: str | None = None) -> BoardInfo:
        """What to draw of `group` (None: the inspected one), as if the selection were proposed."""
        state, made = self._session.state, self.made
        if made is not None:
            state = replace(state, pending=made.move)
        seen = self.seen or (made.seen if made else ()) or self._retuned(state)
        found = board_info(
            state, group or self.group, layers=self.layers, seen=seen or None,
            latencies=self._session.latencies,
        )  # fmt: skip
        if found.importance.units:
            return found
        return replace(found, importance=self._measured(state, group or self.group))

    def _measured(self, state: State, group: str) -> ImportanceInfo:
        """What each channel of `group` carries alone, where no method has scored it."""
        at_hand = self._session.evidence
        if at_hand is None or at_hand.stale or group not in at_hand.evidence.groups:
            return ImportanceInfo(group)
        gram = at_hand.evidence[group]
        alone = Importance(group, gram.units, tuple(gram.alone().tolist()), ALONE)
        return importance_info(state, group, (alone,))

    def view(self, **more: Any) -> View:
        """The current contents as plain values; `more` are the fields set by the screen."""
        session = self._session
        self._known[session.method.name] = session.method
        listed = "layers" in more.get("opened", ())
        return View(
            state=session.state,
            group=session.proposal_graph[self.group],
            unit=self.unit,
            layers=self.layers,
            info=self.info(),
            aims=self.aims,
            repairs=self.repairs,
            method=session.method,
            known=tuple(sorted({*METHODS, *self._known})),
            last=self.last,
            chosen=self.made,
            drop=self.drop,
            at_hand=session.evidence,
            latencies=session.latencies,
            layer_costs=session.costs() if listed else {},
            seconds=session.seconds() if listed else None,
            table=self.table,
            alone=self._alone(),
            compared=self.ends,
            plans=dict(self.plans),
            written=self.written,
            failed=self.failed,
            hint=self.hint,
            revealed=self.revealed,
            classes=tuple(map(str, getattr(getattr(session, "data", None), "classes", None) or ())),
            **more,
        )

    def _alone(self) -> float | None:
        """The share of the signal that the inspected channel carries by itself, if known."""
        if self.unit is None:
            return None
        try:
            return float(self._session.foresee({self.group: [self.unit]}).damage[self.group])
        except PruneLabError:
            return None
