"""Verbs are atomic: whatever fails at whatever point, the session is as before the verb or after.

A machine draws sequences of verbs and faults; after each it asserts that ledger, state, plan,
graph and network agree, that cut and masked network do, and that nothing of the process changed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import (
    WIRE,
    Bomb,
    Careless,
    bits,
    faulty,
    opened,
    process,
    seen,
    session,
    sound,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

import prunelab as pl
from prunelab.ledger.events import Noted


def some_of(move: Any) -> dict[str, Any]:
    return {} if move is None else {name: units[:1] for name, units in move.drop.items()}


ERRORS = (RuntimeError, KeyboardInterrupt, MemoryError, torch.OutOfMemoryError)
SAMPLED = pl.AOFP(scoring="sampled", batches=4, warmup=0, theta=10.0)
METHODS = (pl.ThiNet(pruning_ratio=0.25, images=32), pl.AOFP(theta=0.05, images=32), SAMPLED,
           pl.Magnitude(), pl.SpatialFactorisation(ranks={"conv1": 4}, images=32))  # fmt: skip
UNITS = {"conv1": [3, 4]}
VERBS: dict[str, Callable[[pl.Session], Any]] = {
    "propose": lambda s: s.propose(),
    "propose given": lambda s: s.propose(drop=UNITS),
    "adjust": lambda s: s.adjust(UNITS),
    "adjust to less": lambda s: s.adjust(some_of(s.state.pending)),
    "approve": lambda s: s.approve(),
    "approve without repair": lambda s: s.approve(repair=False),
    "reject": lambda s: s.reject("no"),
    "undo": lambda s: s.undo(),
    "undo the proposal": lambda s: s.undo(only_proposal=True),
    "repair bn": lambda s: s.repair("bn"),
    "repair lstsq": lambda s: s.repair("lstsq"),
    "repair rescale": lambda s: s.repair("rescale"),
    "tune": lambda s: s.tune(2),
    "run": lambda s: s.run(0.6, None, moves=1),
    "note": lambda s: s.note("a thought"),
    "predict": lambda s: s.predict(accuracy=0.5),
    "answer": lambda s: s.answer("1", [1, 2]),
    "evaluate": lambda s: s.evaluate("val"),
    "measure": lambda s: s.measure(),
    "what_if": lambda s: s.what_if(UNITS),
    "foresee": lambda s: s.foresee(UNITS),
    "theta": lambda s: s.foresee(theta=0.1),
    "compare_move": lambda s: s.compare_move(images=32),
    "compare": lambda s: s.compare(0, s.state.head, images=32),
    "sensitivity": lambda s: s.sensitivity((0.5,), images=32),
    "certify": lambda s: s.certify(nodes=20),
    "latency": lambda s: s.latency(),
    "step_time": lambda s: s.step_time(),
}
WIRED = ("loader", "network", "loss", "metric", "trainer", "optimiser", "method", "view")


HARD = st.sampled_from((KeyboardInterrupt, MemoryError))
FAULTS = st.one_of(
    st.none(),
    st.tuples(st.just("calls"), st.integers(1, 5000), HARD),
    st.tuples(st.just("commit"), st.integers(1, 300), HARD),
    st.tuples(st.sampled_from(WIRED), st.integers(1, 9), st.sampled_from((*ERRORS, float("nan")))),
    st.tuples(st.just("stop"), st.integers(1, 6), st.none()),
)
# What each verb writes, besides notes: all of it or nothing.
WRITES = {
    "propose": {("Proposed",)}, "propose given": {("Proposed",)}, "adjust": {("Adjusted",)},
    "adjust to less": {("Adjusted",)}, "approve": {("Approved", "Repaired")},
    "approve without repair": {("Approved",)}, "reject": {("Rejected",)}, "undo": {("Undone",)},
    "undo the proposal": {("Undone",)}, "repair bn": {("Repaired",)},
    "repair lstsq": {("Repaired",)}, "repair rescale": {("Repaired",)}, "tune": {("Tuned",)},
    "go": {("Returned",)},
    "run": {("Proposed",), ("Approved", "Repaired"), ("Proposed", "Approved", "Repaired")},
}  # fmt: skip


def going(to: int) -> Callable[[pl.Session], Any]:
    """`go` to one of the other points."""

    def verb(session: pl.Session) -> Any:
        state = session.state
        others = [point.seq for point in state.points if point.seq != state.head]
        return session.go(others[to % len(others)]) if others else None

    return verb


class Stops:
    """A listener that stops the session at item number `at`."""

    def __init__(self, session: pl.Session, at: int) -> None:
        self.session, self.left = session, at

    def __call__(self, item: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.session.stop()


class Sessions(RuleBasedStateMachine):
    """Any verbs in any order, with faults."""

    @initialize(own=st.booleans())
    def begin(self, own: bool) -> None:
        WIRE.disarm()
        self.folder = Path(tempfile.mkdtemp(prefix="prunelab-"))
        self.path, self.own = self.folder / "run.prunelab", own
        self.session = session(self.path, own)
        self.first = bits(self.session.model)

    @rule(verb=st.sampled_from(sorted(VERBS)), fault=FAULTS)
    def act(self, verb: str, fault: Any) -> None:
        self.do(verb, VERBS[verb], fault)

    @rule(to=st.integers(0, 9), fault=FAULTS)
    def go(self, to: int, fault: Any) -> None:
        self.do("go", going(to), fault)

    @rule(method=st.sampled_from(METHODS), careless=st.booleans())
    def use(self, method: Any, careless: bool) -> None:
        self.session.method = Careless(method) if careless else method

    @rule(fault=FAULTS)
    def move(self, fault: Any) -> None:
        """A whole move, so that sequences get somewhere."""
        if self.session.state.pending is not None:
            self.session.reject()
        wide = [g for g in self.session.graph.groups if g.prunable and len(g.units) > 2]
        if wide:
            self.session.propose(drop={wide[0].name: wide[0].units[:1]})
            self.do("approve", VERBS["approve"], fault)

    @rule()
    def reopen(self) -> None:
        before = seen(self.session)
        self.session = opened(self.path, self.own, self.session.method)
        assert seen(self.session) == before

    def do(self, name: str, verb: Callable[[pl.Session], Any], fault: Any) -> None:
        before, around = seen(self.session), process()
        what, at, error = fault or ("", 0, None)
        bomb: Any = nullcontext()
        if what in ("calls", "commit"):
            bomb = Bomb(at, error, what == "commit")
        if what in WIRED:
            WIRE.arm(what, at, error)
        end = self.session.listen(Stops(self.session, at if what == "stop" else -1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a view that fails is dropped with a warning
            with bomb:
                raised = faulty(lambda: verb(self.session))
        end()
        WIRE.disarm()
        assert process() == around
        sound(self.session)
        after = seen(self.session)
        new = self.session.ledger[len(before[0]) :]
        wrote = tuple(type(e).__name__ for e in new if not isinstance(e, Noted))
        assert wrote == () or wrote in WRITES[name], (raised, new)
        if not new:
            assert after == before
        TALLY["verbs"] += 1
        if fault is not None and raised is not None:
            TALLY["after" if new else "before"] += 1

    def teardown(self) -> None:
        if hasattr(self, "session"):
            while self.session.state.undoable:
                self.session.undo()
            sound(self.session)
            assert bits(self.session.model) == self.first
            shutil.rmtree(self.folder)


EXAMPLES = int(os.environ.get("PRUNELAB_EXAMPLES", 600))  # of the slow test
TALLY: Counter[str] = Counter()


def drawn(examples: int, steps: int) -> None:
    """Run the machine; the same sequences every time."""
    QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Sessions,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True,
            suppress_health_check=QUIET, database=None, print_blob=False,
        ),
    )  # fmt: skip


def test_whatever_fails_in_a_verb_the_session_is_as_before_or_as_after() -> None:
    TALLY.clear()
    drawn(20, 12)
    assert TALLY["verbs"] > 100
    assert min(TALLY["before"], TALLY["after"]) > 0
    print(dict(TALLY))


@pytest.mark.slow
def test_whatever_fails_in_a_verb_the_session_is_as_before_or_as_after_often() -> None:
    drawn(EXAMPLES, 25)
    print(dict(TALLY))
