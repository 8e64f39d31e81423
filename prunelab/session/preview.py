"""Foresight: what a move would do, from the evidence at hand and without running anything."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunelab.cost.allocate import Problem
from prunelab.cost.counting import cost
from prunelab.data.private_random import privately
from prunelab.errors import WrongState
from prunelab.evidence import ContributionGram, Evidence, damage_curve
from prunelab.evidence.mask_gradients import Masks
from prunelab.ledger.state import State
from prunelab.methods import Method
from prunelab.methods.base import parameters
from prunelab.session.history import CONTRIBUTION, Desk
from prunelab.values import Cost, FrozenMap, Move, Progress, Units, WidthPlan, many, si, units_of

FEW = 8  # groups: so many can trade widths within a live answer
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


class Foresees(Desk):
    """A desk that says what a move would do.

    `foresee` takes no lock: it reads the ledger's state and evidence that nobody changes, so it
    answers while a verb is at work.
    """

    _problem: tuple[tuple[str, Evidence, bool], Problem] | None = None  # of the last budget
    _budgeting = threading.Lock()  # held for milliseconds, by foresights of a budget alone

    def at_hand(self) -> AtHand | None:
        """The contributions measured last, of the network now or of an earlier one."""
        evidence = self.bench.latest(CONTRIBUTION)
        if evidence is None:
            return None
        state = self.state
        marks = {point.event.fingerprint: point.seq for point in state.points}
        moves = state.moves_at(marks[evidence.fingerprint])
        return AtHand(evidence, moves, evidence.fingerprint != state.now.event.fingerprint)

    def _wanted(self) -> dict[str, Any]:
        """How contributions are measured where the session's method does not ask itself."""
        place = getattr(self.method, "at", None)
        images = getattr(self.method, "images", 512)
        return {"at": "bn" if place == "bn" else "conv", "images": images}

    def _remembered(
        self,
        kinds: Sequence[str] = CONTRIBUTION,
        *,
        at: str = "conv",
        images: int = 512,
        masks: Masks = "readers",
    ) -> Evidence:
        """`measured`, but only what is at hand; raises `WrongState` where it is not."""
        mark = self.state.now.event.fingerprint
        evidence = self.bench.known(mark, kinds, at, images, masks)
        if evidence is None:
            old = self.at_hand()
            told = f" (it was {old})" if old is not None and old.stale else ""
            raise WrongState(
                f"Nothing was measured yet on the network as it is now{told}: call "
                "session.measure(), or propose, first."
            )
        return evidence

    # ------------------------------------------------------------ what would be

    def moved(self, state: State, drop: Mapping[str, Iterable[int]], evidence: Evidence) -> Move:
        """The move that would drop these units; no event."""
        graph = self.bench.graph
        wanted = {graph[name].name: units_of(units) for name, units in drop.items()}
        wanted = {name: units for name, units in wanted.items() if units}
        after = self.bench.plan(state.now.kept).drop(wanted)
        pending = None if state.stale else state.pending
        return Move(
            drop=FrozenMap(wanted),
            method=pending.method if pending else self.method.name,
            parameters=pending.parameters if pending else parameters(self.method),
            seed=pending.seed if pending else self.bench.seed_of(state.events),
            damage=FrozenMap({name: evidence[name].damage(u) for name, u in wanted.items()}),
            before=state.now.cost,
            after=cost(graph, after),
            fingerprint=state.now.event.fingerprint,
            carry=pending.carry if pending else FrozenMap(),
        )

    def imagined(self, drop: Mapping[str, Iterable[int]]) -> Generator[Any, None, Move]:
        """The move that would drop these units, measured if need be."""
        self.plan.drop(drop)  # what is illegal is told before anything is measured
        evidence = yield from self.measured(**self._wanted())
        return self.moved(self.state, drop, evidence)

    def foresee(
        self,
        drop: Mapping[str, Iterable[int]] | None,
        method: Method | None,
        target: float | None,
    ) -> Foresight:
        """See `Session.foresee`; at most one of the three is given."""
        while True:
            state = self.state
            mark = state.now.event.fingerprint
            try:
                found = self._foreseen(state, drop, method, target)
            except Exception:
                if self.state.now.event.fingerprint == mark:
                    raise
            else:
                if self.state.now.event.fingerprint == mark:
                    return found
            # a verb has changed the network meanwhile: what was seen is of two networks

    def _foreseen(
        self,
        state: State,
        drop: Mapping[str, Iterable[int]] | None,
        method: Method | None,
        target: float | None,
    ) -> Foresight:
        seen: tuple[Any, ...] = ()
        if target is not None:
            drop = self._allocated(state, self.goal(target))
        if drop is not None:
            measured = self._remembered(**self._wanted())
            evidence: Evidence | None = measured
            move: Move | None = self.moved(state, drop, measured)
        else:
            move, seen = self._searched(state, method or self.method)
            evidence = self.bench.latest(CONTRIBUTION)
            if evidence is not None and evidence.fingerprint != state.now.event.fingerprint:
                evidence = None
        before = self.bench.plan(state.now.kept)
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

    def _seconds(self, before: WidthPlan, after: WidthPlan) -> tuple[float, float] | None:
        times, graph = self.bench.times, self.bench.graph
        return None if times is None else (times.at(graph, before), times.at(graph, after))

    def _searched(self, state: State, method: Method) -> tuple[Move | None, tuple[Any, ...]]:
        """What the method's own search finds and shows, if it gets by with the evidence at hand."""

        def remembered(*kinds: Any, **how: Any) -> Generator[Any, None, Evidence]:
            return self._remembered(*kinds, **how)
            yield

        def refused(*_: Any, **__: Any) -> Any:
            raise WrongState(
                f"{method.name} has to run the network to answer; let it propose instead."
            )

        context = replace(
            self.context(state, None),
            measure=remembered,
            aimed=refused,
            images=refused,
            training_batches=refused,
            loss=refused,
        )
        search = privately(method.search(context), context.seed)
        seen: list[Any] = []
        while True:
            try:
                item = next(search)
            except StopIteration as end:
                move = end.value
                return (move if move is not None and move.drop else None), tuple(seen)
            if not isinstance(item, Progress):
                seen.append(item)

    def _allocated(self, state: State, limit: int) -> dict[str, Units]:
        """What goes so that the network keeps to `limit` multiply-adds."""
        evidence = self._remembered(**self._wanted())
        plan = self.bench.plan(state.now.kept)
        internal = getattr(self.method, "groups", "all") == "internal"
        key = (evidence.fingerprint, evidence, internal)
        if self._problem is None or self._problem[0] != key:
            groups = (evidence.graph[name] for name in evidence.groups)
            names = [g.name for g in groups if not (internal and g.residual)]
            curves = [damage_curve(evidence[name]) for name in names]
            graph = self.bench.graph
            self._problem = key, Problem(graph, plan, curves, "macs", 1, graph.round_to)
        problem = self._problem[1]
        with self._budgeting:  # the problem remembers the widths it was asked for last
            choice = problem.sketched(limit, NEAR)
            if choice is not None and len(problem.curves) <= FEW:
                choice = problem.polished(choice, limit)
        if choice is None:
            problem.refuse(limit)
            return {}
        return evidence.graph.rounded(plan, problem.drop(choice))


def _best(gram: ContributionGram, units: Units, damage: float | None) -> Selection:
    """The best selection of as many units that is known; `units` themselves do `damage`."""
    curve = damage_curve(gram)
    greedy = Selection(curve.first(len(units)), curve.damages[len(units) - 1])
    given = Selection(units, gram.damage(units) if damage is None else damage)
    return min(given, greedy, key=lambda selection: selection.damage)
