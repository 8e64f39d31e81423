"""Predictions of what a move would do, from existing evidence, without running the network."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from prunelab.cost.allocate import AllocationProblem
from prunelab.cost.counting import cost
from prunelab.data.private_random import privately
from prunelab.errors import WrongState
from prunelab.evidence import ContributionGram, Evidence, damage_curve
from prunelab.evidence.best_set import exchanged
from prunelab.graph.trace import copy_of
from prunelab.ledger.state import State
from prunelab.methods import Method
from prunelab.methods.base import found, measures, parameters, spares
from prunelab.session.context import macs_of, search_context
from prunelab.session.evaluator import Evaluator
from prunelab.session.history import History
from prunelab.session.measurements import CONTRIBUTION, Request
from prunelab.values import Cost, FrozenMap, Move, Progress, Units, WidthPlan, many, si, units_of

FEW = 8  # groups: up to this many, widths and units can be exchanged within a live answer
Drop = dict[str, Units]
NEAR = 0.002  # of the MACs: how close a live budget comes to its limit before it is filled up


@dataclass(frozen=True, slots=True)
class AtHand:
    """The latest evidence, and when it was measured.

    `moves` is the number of approved moves at the measurement; `stale` says that the network has
    changed since.
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
    """Units of one group, and the share of its consumers' signal that they carry."""

    units: Units
    damage: float


@dataclass(frozen=True, slots=True)
class Foresight:
    """The predicted effect of a move: its costs `before` and `after`.

    `move` is what `adjust` or `propose` would make pending (None: the method finds none), and
    `plan` the widths that it leaves. `seen` holds the rungs or scores of the search for every
    group; it is empty for a selection by hand or a budget. `best` holds, for each group in the
    move, the best known selection of the same size: ThiNet's greedy one, or the given one where
    that is better; in a move of few groups also after swaps of one unit for another. `seconds`
    estimates one run before and after, by `LayerTimes.scaled`; None where nothing was timed yet.
    """

    move: Move | None
    plan: WidthPlan
    before: Cost
    after: Cost
    seen: tuple[Any, ...]
    best: FrozenMap[Selection]
    seconds: tuple[float, float] | None

    @property
    def damage(self) -> FrozenMap[float]:
        """The share of its consumers' signal that each group in the move would lose."""
        return self.move.damage if self.move else FrozenMap()

    @property
    def widths(self) -> dict[str, int]:
        """The number of units that each group would have."""
        return self.plan.widths

    def __str__(self) -> str:
        if self.move is None:
            return "Foresight(nothing to drop)"
        text = (
            f"{self.move.splits}drop {many(self.move.units, 'unit')} in "
            f"{many(len(self.move.drop), 'group')}, "
            f"MACs {si(self.before.macs)} -> {si(self.after.macs)}"
        )
        if self.seconds is not None:
            before, after = (1e3 * seconds for seconds in self.seconds)
            text += f", about {before:.3g} -> {after:.3g} ms"
        return f"Foresight({text})"


class Preview:
    """Predicts the effect of a move.

    It takes no lock of the session: it reads the ledger's state and immutable evidence, so it
    answers while a verb is running.
    """

    def __init__(self, evaluator: Evaluator, history: History) -> None:
        self._evaluator = evaluator
        self._history = history
        self._budget = threading.Lock()  # held for milliseconds, while widths are allocated
        self._problem: tuple[tuple[str, Evidence, list[str]], AllocationProblem] | None = (
            None  # the last one
        )
        self._lent: tuple[nn.Module, nn.Module] | None = None  # the network, and a copy to lend

    def at_hand(self) -> AtHand | None:
        """The contributions measured last, of the current network or an earlier one."""
        evidence = self._evaluator.measurements.latest(CONTRIBUTION)
        if evidence is None:
            return None
        state = self._history.state
        marks = {point.event.fingerprint: point.seq for point in state.points}
        moves = state.moves_at(marks[evidence.fingerprint])
        return AtHand(evidence, moves, evidence.fingerprint != state.now.event.fingerprint)

    # ------------------------------------------------------------ a move by hand

    def asked(self, state: State, drop: Mapping[str, Iterable[int]]) -> tuple[Drop, WidthPlan]:
        """The units of each group in `drop`, and the plan that remains.

        Raises `UnknownName` for a group, `IllegalPlan` for units that cannot be dropped.
        """
        plan = self._history.plan_under(state, None if state.stale else state.pending)
        graph = plan.graph
        wanted = {graph[name].name: units_of(units) for name, units in drop.items()}
        wanted = {name: units for name, units in wanted.items() if units}
        return wanted, plan.drop(wanted)

    def move(
        self, state: State, method: Method, asked: tuple[Drop, WidthPlan], evidence: Evidence
    ) -> Move:
        """The move that drops the units in `asked`: the pending one changed, or a new one."""
        drop, after = asked
        pending = None if state.stale else state.pending
        return Move(
            drop=FrozenMap(drop),
            method=pending.method if pending else method.name,
            parameters=pending.parameters if pending else parameters(method),
            seed=pending.seed if pending else self._evaluator.splits.seed_of(state.events),
            damage=FrozenMap(
                {
                    name: evidence[name].damage(units)
                    for name, units in drop.items()
                    if name in evidence.groups
                }
            ),
            before=state.now.cost,
            after=cost(self._evaluator.graph_of(after), after),
            fingerprint=state.now.event.fingerprint,
            carry=pending.carry if pending else FrozenMap(),
            factors=pending.factors if pending else FrozenMap(),
            adds=pending.adds if pending else FrozenMap(),
        )

    # ------------------------------------------------------------ what-if

    def foresee(
        self, method: Method, drop: Mapping[str, Iterable[int]] | None, target: float | None
    ) -> Foresight:
        """The effect of dropping `drop`, of a budget of `target` MACs, or of `method`'s move."""
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
            # a verb has changed the network meanwhile: the answer would mix two networks

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
        before = self._history.plan_at(state.now)
        plan = self._history.plan_under(state, move).drop(move.drop) if move else before
        best = {}
        if move is not None and evidence is not None:
            few = len(move.drop) <= FEW
            best = {
                name: _best(evidence[name], units, move.damage.get(name), swaps=few)
                for name, units in move.drop.items()
                if name in evidence.groups
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
        """Evidence from the cache; raises `WrongState` where there is none."""
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
        times, of = self._evaluator.measurements.layer_times, self._evaluator.graph_of
        return None if times is None else (times.at(of(before), before), times.at(of(after), after))

    def _lent_copy(self) -> nn.Module:
        """A copy of the current network for methods, the same one until it changes."""
        network, lent = self._history.network, self._lent
        if lent is None or lent[0] is not network:
            self._lent = lent = network, copy_of(network)
        return lent[1]

    def _searched(self, state: State, method: Method) -> tuple[Move | None, tuple[Any, ...]]:
        """The move and evidence of the method's search, if existing evidence is enough for it."""

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
            search_context(self._evaluator, self._history, state, None, self._lent_copy()),
            measure=remembered,
            apart=refused,
            aimed=refused,
            images=refused,
            training_batches=refused,
            loss=refused,
            forward=refused,
            latency_table=refused,
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
        """The units to drop so that the network has at most `limit` multiply-adds."""
        evidence = self._remembered(state, wanted(method))
        plan = self._history.plan_at(state.now)
        names = [name for name in evidence.groups if not spares(method, evidence.graph[name])]
        key = (evidence.fingerprint, evidence, names)
        if self._problem is None or self._problem[0] != key:
            curves = [damage_curve(evidence[name]) for name in names]
            graph = self._evaluator.graph_of(plan)
            self._problem = key, AllocationProblem(graph, plan, curves, "macs", 1, 1)
        problem = self._problem[1]
        with self._budget:  # the problem caches the widths of its last answer
            choice = problem.sketched(limit, NEAR)
            if choice is not None and len(problem.curves) <= FEW:
                choice = problem.polished(choice, limit)
        if choice is None:
            problem.refuse(limit)
            return {}
        return evidence.graph.rounded(plan, problem.drop(choice))


def wanted(method: Method) -> Request:
    """The request for contributions that fits `method`."""
    at, images = measures(method)
    return Request(at=at, images=images)


def _best(gram: ContributionGram, units: Units, damage: float | None, swaps: bool) -> Selection:
    """The best known selection of this many units; `damage` is that of `units`."""
    curve = damage_curve(gram)
    greedy = Selection(curve.first(len(units)), curve.damages[len(units) - 1])
    given = Selection(units, gram.damage(units) if damage is None else damage)
    known = min(given, greedy, key=lambda selection: selection.damage)
    if not swaps:
        return known
    better = exchanged(gram, known.units)
    return known if better == known.units else Selection(better, gram.damage(better))
