"""The engine: what every verb of a session does, step by step.

Verbs are generators that compute first and commit last, so whatever ends them on the way leaves
ledger and network as they were.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from math import inf
from numbers import Real
from typing import Any

import torch
from torch import nn

from prunelab.cost.counting import cost
from prunelab.data.private_random import privately
from prunelab.errors import (
    BudgetUnreachable,
    InvalidValue,
    StaleEvidence,
    UnknownName,
    WrongState,
)
from prunelab.evidence.fingerprint import fingerprint
from prunelab.graph.surgery.editing import cut
from prunelab.graph.trace import copy_of
from prunelab.ledger import guard, words
from prunelab.ledger.events import (
    Adjusted,
    Approved,
    Began,
    Noted,
    Proposed,
    Refit,
    Rejected,
    Repaired,
    Returned,
    Tuned,
    Undone,
)
from prunelab.loops.batch import finish
from prunelab.loops.training import Training
from prunelab.methods.base import parameters
from prunelab.session.evaluator import Judgement
from prunelab.session.preview import Foresees
from prunelab.session.runner import Work, uninterrupted
from prunelab.values import FrozenMap, Move, Progress, WidthPlan
from prunelab.values.paired_comparison import Answers, Trial


class Engine(Foresees):
    """The work of the verbs upon a desk."""

    def begin(self) -> None:
        """Judge the original network and commit the first event."""
        bench = self.bench
        measured, answers = finish(bench.judged(bench.base))
        mark = fingerprint(bench.base)
        began = Began(
            **self.header(),
            network=type(bench.base).__name__,
            fingerprint=mark,
            seed=bench.seed,
            method=self.method.name,
            parameters=parameters(self.method),
            settings=FrozenMap(self._settings(answers)),
            widths=FrozenMap({group.name: group.width for group in bench.graph.groups}),
            metrics=FrozenMap(measured),
            cost=cost(bench.graph, WidthPlan.full(bench.graph)),
            weights=mark,
            versions=FrozenMap(_versions()),
        )
        self.commit(began, self.network, weights=bench.base, answers=answers)

    def _settings(self, answers: Answers | None) -> dict[str, Any]:
        first = next(iter(self.bench.metrics.values()))
        chance = {} if answers is None else {"chance": guard.commonest(answers.labels)}
        return {
            "repair": self.bench.repair,
            "repair_images": self.bench.repair_images,
            "higher_is_better": first.higher_is_better,
            **chance,
        }

    # ------------------------------------------------------------ the verbs

    def propose(self, target: float | None = None) -> Generator[Any, None, Move | None]:
        """Search for one move, and commit what was seen and found."""
        state = self.state
        goal = None if target is None else self.goal(target)
        if state.pending is not None and not state.stale:
            raise WrongState(
                f"{state.pending} is pending; approve, adjust or reject it before the next."
            )
        context = self.context(state, goal)
        seen = []
        search = privately(self.method.search(context), context.seed)
        while True:
            try:
                item = next(search)
            except StopIteration as end:
                move: Move | None = end.value
                break
            if not isinstance(item, Progress):
                seen.append(item)
            yield item
        if move is not None and not move.drop:
            move = None
        brought = context.weights if move is not None else None
        self._tell_unusable()
        event = Proposed(
            **self.header(),
            method=self.method.name,
            parameters=parameters(self.method),
            move=move,
            seen=tuple(seen),
            target=target,
            weights=fingerprint(brought) if brought is not None else None,
        )
        self.commit(event, weights=brought, brought=brought)
        return move

    def measure(self) -> Work:
        """Measure what `foresee` answers from, and what can be worked out of it beforehand."""
        yield from self.measured(**self._wanted())
        self.bench.clock(self.network, self.plan)
        with suppress(WrongState):
            self.foresee(None, None, None)
            self.foresee(None, None, self.state.now.cost.macs)

    def trying(
        self, drop: Mapping[str, Iterable[int]] | None, images: int, repair: bool
    ) -> Generator[Progress, None, Trial]:
        """The network without these units, as approve would make it, against the one now."""
        if isinstance(images, bool) or not isinstance(images, int) or images < 1:
            raise InvalidValue(f"images must be a whole number of at least 1, not {images!r}.")
        if drop is None:
            drop = self._fresh("try").drop
        plan = self.plan.drop(drop)
        small = cut(self._source, self.graph, plan)
        if repair and self.bench.repair is not None:
            small = (yield from self._repaired(small, plan, self.bench.repair))[0]
        mark = self.state.now.event.fingerprint
        return (yield from self.bench.tried(small, self.network, mark, self.answers, images))

    def comparing(
        self, a: int | WidthPlan, b: int | WidthPlan, images: int, repair: bool
    ) -> Generator[Progress, None, Trial]:
        """The network at `b` against that at `a`, each a point or a plan."""
        first = yield from self._network_of(a, repair)
        second = yield from self._network_of(b, repair)
        return (yield from self.bench.tried(second, first, fingerprint(first), None, images))

    def _network_of(self, which: int | WidthPlan, repair: bool) -> Generator[Any, None, nn.Module]:
        bench = self.bench
        if not isinstance(which, WidthPlan):
            points = {point.seq: point for point in self.state.points}
            if which not in points:
                raise UnknownName("point of the trajectory", which, map(str, points))
            return self.network_at(points[which])
        network = cut(bench.base, bench.graph, which)
        if repair and bench.repair is not None:
            full = WidthPlan.full(bench.graph)
            yield from bench.mended(network, which, bench.repair, (bench.base, full))
        return network

    def adjust(self, drop: Mapping[str, Iterable[int]]) -> Generator[Any, None, Move]:
        """Make the pending move drop exactly these units."""
        self._fresh("adjust")
        move = yield from self.imagined(drop)
        self.commit(Adjusted(**self.header(), drop=move.drop, move=move))
        return move

    def approve(
        self, floor: float | None = None, *, repair: bool = True, run: float | None = None
    ) -> Generator[Any, None, bool]:
        """Cut, and repair if the bench says so; False where that would break the floor.

        `run` is the target of the run that decides it; None: the person does.
        """
        move, bench = self._fresh("approve"), self.bench
        plan = self.plan.drop(move.drop)
        small = cut(self._source, self.graph, plan)
        as_cut = yield from bench.judged(small)
        steps: list[tuple[type[Any], dict[str, Any], nn.Module, Any, Any]]
        steps = [(Approved, {"run": run}, small, *as_cut)]
        if repair and bench.repair is not None:
            fixed, extra, judged = yield from self._repaired(small, plan, bench.repair, as_cut)
            steps.append((Repaired, {**extra, "automatic": True}, fixed, *judged))
        if floor is not None and self._breaks(steps[-1][3], floor):
            self._say_stopped(steps[-1][3], floor)
            return False
        self._tell_unusable()
        with uninterrupted():
            for kind, extra, network, measured, answers in steps:
                self.commit_step(kind, network, plan, extra, measured, answers)
        return True

    @property
    def _source(self) -> nn.Module:
        """What a move is cut from: the network now, or the trained one that the move brings."""
        return self.brought if self.brought is not None else self.network

    def _repaired(
        self, small: nn.Module, plan: WidthPlan, kind: str, as_cut: Judgement | None = None
    ) -> Generator[Any, None, tuple[nn.Module, dict[str, Any], Judgement]]:
        """The network `small`, just cut to `plan`, repaired as does it good on validation images.

        Least squares is judged layer by layer on training images. Those may be of one class or
        otherwise unlike what the network is for; so where it costs something on the validation
        images, BatchNorm alone and the network as cut (`as_cut`, if it was judged) are tried as
        well, and the best is taken.
        """
        fixed = copy_of(small)
        refits = yield from self._mended(fixed, plan, kind)
        judged = yield from self.bench.judged(fixed)
        found = {kind: (fixed, refits, judged)}
        before = self.state.now.metrics
        costs = guard.alarm(self.state.began, before, judged[0], guard.NOTICEABLE)
        if kind == "bn" or not costs:
            return fixed, {"kind": kind, "refits": refits}, judged
        alone = copy_of(small)
        yield from self._mended(alone, plan, "bn")
        found["bn"] = (alone, (), (yield from self.bench.judged(alone)))
        found["none"] = (small, (), as_cut or (yield from self.bench.judged(small)))
        name, metric = next(iter(self.bench.metrics.items()))
        tried = {kind: judged[0][name] for kind, (_, _, judged) in found.items()}

        def rank(kind: str) -> float:
            value = tried[kind] if metric.higher_is_better else -tried[kind]
            return value if value == value else -inf

        best = max(found, key=rank)
        fixed, refits, judged = found[best]
        extra = {"kind": best, "refits": refits}
        return fixed, extra if best == kind else {**extra, "tried": FrozenMap(tried)}, judged

    def _mended(
        self, small: nn.Module, plan: WidthPlan, kind: str
    ) -> Generator[Any, None, tuple[Refit, ...]]:
        """Repair `small`, in place, which was just cut to `plan`."""
        source = (self._source, self.plan)
        target = source if self.brought is not None else self.trained()
        return (yield from self.bench.mended(small, plan, kind, target, source))

    def reject(self, reason: str) -> None:
        """Decline the pending move."""
        self._pending("reject")
        self.commit(Rejected(**self.header(), reason=reason))

    def _tell_unusable(self) -> None:
        """Write down which training images are left out, whenever more of them are known."""
        unusable = self.bench.unusable
        known = [e.text for e in self.ledger if isinstance(e, Noted) and e.kind == "data"]
        if unusable and str(unusable) not in known:
            self.commit(Noted(**self.header(), kind="data", text=str(unusable)))

    def note(self, fields: Mapping[str, Any]) -> None:
        """Write something down."""
        self.commit(Noted(**self.header(), **fields))

    def undo(self) -> Generator[Any, None, None]:
        """Drop the pending move and take back the latest step."""
        state = self.state
        if not state.undoable:
            raise WrongState("There is nothing to undo: no move was approved, none is pending.")
        step, head = state.undo_target()
        event = Undone(**self.header(), step=step, proposal=state.pending is not None)
        if step is None:
            self.commit(event)
            return
        network = self.network_at(state.point(head))
        _, answers = yield from self.bench.judged(network)
        self.commit(event, network, answers=answers)

    def go(self, seq: int) -> Generator[Any, None, None]:
        """Take up the network as it was after event `seq`."""
        state = self.state
        known = [point.seq for point in state.points if point.seq != state.head]
        if seq not in known:
            raise InvalidValue(
                f"There is no other network at event {seq!r} to go to; there is one at "
                f"{', '.join(map(str, known)) or 'none yet'}."
            )
        network = self.network_at(state.point(seq))
        _, answers = yield from self.bench.judged(network)
        self.commit(Returned(**self.header(), to=seq), network, answers=answers)

    def repair(self, kind: str) -> Generator[Any, None, None]:
        """Repair the network front to back, and commit that."""
        small = copy_of(self.network)
        refits = yield from self.bench.mended(small, self.plan, kind, self.trained())
        extra = {"kind": kind, "automatic": False, "refits": refits}
        yield from self.step(Repaired, small, self.plan, extra)

    def tune(self, steps: int, enough: Callable[[], bool]) -> Generator[Any, None, None]:
        """Train a copy of the network until it is `enough`, and commit that."""
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InvalidValue(f"steps must be a whole number of at least 1, not {steps!r}.")
        network = copy_of(self.network)
        seed = self.bench.seed_of(len(self.ledger))
        done, by, replayable = yield from self.bench.tuned(network, steps, seed, enough)
        measured, answers = yield from self.bench.judged(network)
        state = self.state
        own = isinstance(self.bench.train, Training)
        if own and guard.alarm(state.began, state.now.metrics, measured, guard.NOTICEABLE):
            after = next(iter(measured.values()))
            self.note({"text": words.worse(state, done, after), "kind": "tune"})
            return
        extra = {"steps": done, "by": by, "replayable": replayable}
        self.commit_step(Tuned, network, self.plan, extra, measured, answers)

    def pace(self) -> Generator[Any, None, float | None]:
        """Seconds that one step of tuning takes, tried on a copy; None of a trainer of your own."""
        if not isinstance(self.bench.train, Training):
            return None
        work = self.bench.tuned(copy_of(self.network), 3, self.bench.seed, lambda: False)
        times = [time.perf_counter()]
        for progress in work:
            times.append(time.perf_counter())
            yield progress
        return min(after - before for before, after in itertools.pairwise(times))

    def run(
        self, target: float, least: float | str | None, moves: int | None, repair: bool
    ) -> Work:
        """Propose and approve until the target is met, or a move breaks the floor."""
        goal, floor = self.goal(target), self._floor(least)
        if moves is not None and (isinstance(moves, bool) or not isinstance(moves, int)):
            raise InvalidValue(f"moves is a whole number or None, not {moves!r}.")
        if moves is not None and moves < 0:
            raise InvalidValue(f"moves is how many to make at most, from 0 up, not {moves}.")
        last = None if moves is None else self.state.moves + moves
        while self.state.now.cost.macs > goal and self.state.moves != last:
            if self.state.pending is None or self.state.stale:
                move = yield from self.propose(target)
                if move is None:
                    self._relax(goal)
                    continue
            if not (yield from self.approve(floor, repair=repair, run=target)):
                return

    def _relax(self, goal: int) -> None:
        relaxed = getattr(self.method, "relaxed", lambda: None)()
        if relaxed is None:
            base, now = self.state.base.cost.macs, self.state.now.cost.macs
            raise BudgetUnreachable(
                f"{self.method.name} has nothing more to propose at {now / base:.0%} of the "
                f"MACs; {goal / base:.0%} was asked for. Allow more damage (max_theta), more "
                "groups, or a larger target.",
                self.plan,
            )
        self.method = relaxed

    def _floor(self, least: float | str | None) -> float | None:
        """The worst value that a run may leave: `least`, or what "auto" stands for."""
        name, metric = next(iter(self.bench.metrics.items()))
        if isinstance(least, str) and least == "auto":
            chance = None if self.answers is None else guard.commonest(self.answers.labels)
            return guard.floor(self.state.base.metrics[name], metric.higher_is_better, chance)
        if least is None:
            return None
        if isinstance(least, Real) and not isinstance(least, bool) and least == least:
            return float(least)
        raise InvalidValue(
            f"min_accuracy is a value of {name}, not {least!r}; or 'auto', or None for no floor."
        )

    def _say_stopped(self, measured: Mapping[str, float], floor: float) -> None:
        name, metric = next(iter(self.bench.metrics.items()))
        text = words.stopping(self.state, measured[name], floor, metric.higher_is_better)
        self.note({"text": text, "kind": "run"})

    def _breaks(self, measured: Mapping[str, float], floor: float) -> bool:
        name, metric = next(iter(self.bench.metrics.items()))
        value = measured[name]
        return not (value >= floor if metric.higher_is_better else value <= floor)  # NaN, too

    def _pending(self, verb: str) -> Move:
        if self.state.pending is None:
            raise WrongState(f"There is nothing to {verb}: no move is pending. Propose first.")
        return self.state.pending

    def _fresh(self, verb: str) -> Move:
        move = self._pending(verb)
        if self.state.stale:
            raise StaleEvidence(
                "The network has changed since this move was measured; propose again."
            )
        return move


def _versions() -> dict[str, str]:
    from prunelab import __version__

    return {"prunelab": __version__, "torch": torch.__version__}
