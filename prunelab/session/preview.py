"""Foresight: what a move would do, from the evidence at hand and without running anything."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunelab.cost.allocate import AllocationProblem
from prunelab.cost.counting import cost
from prunelab.data.private_random import privately
from prunelab.errors import WrongState
from prunelab.evidence import ContributionGram, Evidence, damage_curve
from prunelab.ledger.state import State
from prunelab.methods import Method
from prunelab.methods.base import found, measures, parameters, spares_residuals
from prunelab.session.context import macs_of, search_context
from prunelab.session.evaluator import Evaluator
from prunelab.session.history import History
from prunelab.session.measurements import CONTRIBUTION, Request
from prunelab.values import Cost, FrozenMap, Move, Progress, Units, WidthPlan, many, si, units_of

FEW = 8  # groups: so many can trade widths within a live answer
Drop = dict[str, Units]
NEAR = 0.002  # of the MACs: how close a live budget comes to its limit before it is filled up


@dataclass(frozen=True, slots=True)
class AtHand:
    """The evidence at hand, and when it was measured.

    `moves` counts the approved moves that the measured network had; `stale` says that the network
    is another one by now.
    """

    evidence: Evidence
    moves: int
    stale: bool

    def __str__(self) -> str:
        when = f"after move {self.moves}" if self.moves else "before the first move"
        since = "; the network has changed since" if self.stale else ""
        return f"measured {when} on {many(self.evidence.images, 'training image')}{since}"


@dataclass(frozen=True, slots=True)
class Selection:
    """Units of one group, and the share of its consumers' signal that goes with them."""

    units: Units
    damage: float


@dataclass(frozen=True, slots=True)
class Foresight:
    """What a move would do: `before` it and `after` it, with nothing run and nothing changed.

    `move` is what `adjust` or `propose` would make pending (None: the method finds nothing), and
    `plan` the widths it leaves. `seen` are the rungs or scores of the search that leads there,
    for every group searched; nothing for a selection by hand or a budget. `best` gives for each
    group touched the best selection of that very size that is known: ThiNet's greedy one, or the
    given one where that is better. `seconds` estimates one run before and after, by
    `LayerTimes.scaled`; None where nothing was timed yet.
    """

    move: Move | None
    plan: WidthPlan
    before: Cost
    after: Cost
    seen: tuple[Any, ...]
    best: FrozenMap
    seconds: tuple[float, float] | None

    @property
    def damage(self) -> FrozenMap:
        """The share of its consumers' signal that each group touched would lose."""
        return self.move.damage if self.move else FrozenMap()

    @property
    def widths(self) -> dict[str, int]:
        """Units that each group would have."""
        return self.plan.widths

    def __str__(self) -> str:
        if self.move is None:
            return "Foresight(nothing to drop)"
        text = (
            f"drop {many(self.move.units, 'unit')} in {many(len(self.move.drop), 'group')}, "
            f"MACs {si(self.before.macs)} -> {si(self.after.macs)}"
        )
        if self.seconds is not None:
            before, after = (1e3 * seconds for seconds in self.seconds)
            text += f", about {before:.3g} -> {after:.3g} ms"
        return f"Foresight({text})"


class Preview:
    """Says what a move would do.

    Nothing here holds the session: it reads the ledger's state and evidence that nobody changes,
    so it answers while a verb is at work.
    """

    def __init__(self, evaluator: Evaluator, history: History) -> None:
        self._evaluator = evaluator
        self._history = history
        self._budget = threading.Lock()  # held for milliseconds, while widths are allocated
        self._problem: tuple[tuple[str, Evidence, bool], AllocationProblem] | None = (
            None  # the last one
        )

    def at_hand(self) -> AtHand | None:
        """The contributions measured last, of the network now or of an earlier one."""
        evidence = self._evaluator.measurements.latest(CONTRIBUTION)
        if evidence is None:
            return None
        state = self._history.state
        marks = {point.event.fingerprint: point.seq for point in state.points}
        moves = state.moves_at(marks[evidence.fingerprint])
        return AtHand(evidence, moves, evidence.fingerprint != state.now.event.fingerprint)

    # ------------------------------------------------------------ a move by hand

    def asked(self, state: State, drop: Mapping[str, Iterable[int]]) -> tuple[Drop, WidthPlan]:
        """The units of each group that `drop` names, and the plan that it leaves.

        Raises `UnknownName` for a group, `IllegalPlan` for units that cannot be dropped.
        """
        graph = self._evaluator.graph
        wanted = {graph[name].name: units_of(units) for name, units in drop.items()}
        wanted = {name: units for name, units in wanted.items() if units}
        return wanted, self._evaluator.plan(state.now.kept).drop(wanted)

    def move(
        self, state: State, method: Method, asked: tuple[Drop, WidthPlan], evidence: Evidence
    ) -> Move:
        """The move that drops what was `asked`: the pending one changed, or one of `method`."""
        drop, after = asked
        pending = None if state.stale else state.pending
        return Move(
            drop=FrozenMap(drop),
            method=pending.method if pending else method.name,
            parameters=pending.parameters if pending else parameters(method),
            seed=pending.seed if pending else self._evaluator.splits.seed_of(state.events),
            damage=FrozenMap({name: evidence[name].damage(u) for name, u in drop.items()}),
            before=state.now.cost,
            after=cost(self._evaluator.graph, after),
            fingerprint=state.now.event.fingerprint,
            carry=pending.carry if pending else FrozenMap(),
        )

    # ------------------------------------------------------------ what would be

    def foresee(
        self, method: Method, drop: Mapping[str, Iterable[int]] | None, target: float | None
    ) -> Foresight:
        """What dropping `drop` does, or a budget of `target` MACs, or what `method` proposes."""
        while True:
            state = self._history.state
            mark = state.now.event.fingerprint
            try:
                found = self._foreseen(state, method, drop, target)
            except Exception:
                if self._history.state.now.event.fingerprint == mark:
                    raise
            else:
                if self._history.state.now.event.fingerprint == mark:
                    return found
            # a verb has changed the network meanwhile: what was seen is of two networks

    def _foreseen(
        self,
        state: State,
        method: Method,
        drop: Mapping[str, Iterable[int]] | None,
        target: float | None,
    ) -> Foresight:
        seen: tuple[Any, ...] = ()
        if target is not None:
            drop = self._allocated(state, method, macs_of(state, target))
        if drop is not None:
            measured = self._remembered(state, wanted(method))
            evidence: Evidence | None = measured
            move: Move | None = self.move(state, method, self.asked(state, drop), measured)
        else:
            move, seen = self._searched(state, method)
            evidence = self._evaluator.measurements.latest(CONTRIBUTION)
            if evidence is not None and evidence.fingerprint != state.now.event.fingerprint:
                evidence = None
        before = self._evaluator.plan(state.now.kept)
        plan = before.drop(move.drop) if move else before
        best = {}
        if move is not None and evidence is not None:
            best = {
                name: _best(evidence[name], units, move.damage.get(name))
                for name, units in move.drop.items()
            }
        return Foresight(
            move,
            plan,
            state.now.cost,
            move.after if move else state.now.cost,
            seen,
            FrozenMap(best),
            self._seconds(before, plan),
        )

    def _remembered(self, state: State, request: Request) -> Evidence:
        """Evidence that is at hand; raises `WrongState` where it is not."""
        evidence = self._evaluator.measurements.known(state.now.event.fingerprint, request)
        if evidence is None:
            old = self.at_hand()
            told = f" (it was {old})" if old is not None and old.stale else ""
            raise WrongState(
                f"Nothing was measured yet on the network as it is now{told}: call "
                "session.measure(), or propose, first."
            )
        return evidence

    def _seconds(self, before: WidthPlan, after: WidthPlan) -> tuple[float, float] | None:
        times, graph = self._evaluator.measurements.layer_times, self._evaluator.graph
        return None if times is None else (times.at(graph, before), times.at(graph, after))

    def _searched(self, state: State, method: Method) -> tuple[Move | None, tuple[Any, ...]]:
        """What the method's own search finds and shows, if it gets by with the evidence at hand."""

        def remembered(
            kinds: Sequence[str] = CONTRIBUTION, **how: Any
        ) -> Generator[Any, None, Evidence]:
            return self._remembered(state, Request(tuple(kinds), **how))
            yield

        def refused(*_: Any, **__: Any) -> Any:
            raise WrongState(
                f"{method.name} has to run the network to answer; let it propose instead."
            )

        context = replace(
            search_context(self._evaluator, self._history, state, None),
            measure=remembered,
            aimed=refused,
            images=refused,
            training_batches=refused,
            loss=refused,
            forward=refused,
        )
        seen: list[Any] = []
        search = privately(method.search(context), context.seed)
        while True:
            try:
                item = next(search)
            except StopIteration as end:
                return found(end.value).move, tuple(seen)
            if not isinstance(item, Progress):
                seen.append(item)

    def _allocated(self, state: State, method: Method, limit: int) -> dict[str, Units]:
        """What goes so that the network keeps to `limit` multiply-adds."""
        evidence = self._remembered(state, wanted(method))
        plan = self._evaluator.plan(state.now.kept)
        internal = spares_residuals(method)
        key = (evidence.fingerprint, evidence, internal)
        if self._problem is None or self._problem[0] != key:
            groups = (evidence.graph[name] for name in evidence.groups)
            names = [g.name for g in groups if not (internal and g.residual)]
            curves = [damage_curve(evidence[name]) for name in names]
            graph = self._evaluator.graph
            self._problem = key, AllocationProblem(graph, plan, curves, "macs", 1, graph.round_to)
        problem = self._problem[1]
        with self._budget:  # the problem remembers the widths it was asked for last
            choice = problem.sketched(limit, NEAR)
            if choice is not None and len(problem.curves) <= FEW:
                choice = problem.polished(choice, limit)
        if choice is None:
            problem.refuse(limit)
            return {}
        return evidence.graph.rounded(plan, problem.drop(choice))


def wanted(method: Method) -> Request:
    """How contributions are measured where the session's method does not ask itself."""
    at, images = measures(method)
    return Request(at=at, images=images)


def _best(gram: ContributionGram, units: Units, damage: float | None) -> Selection:
    """The best selection of as many units that is known; `units` themselves do `damage`."""
    curve = damage_curve(gram)
    greedy = Selection(curve.first(len(units)), curve.damages[len(units) - 1])
    given = Selection(units, gram.damage(units) if damage is None else damage)
    return min(given, greedy, key=lambda selection: selection.damage)
