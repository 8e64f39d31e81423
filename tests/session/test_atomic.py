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
from torch import Tensor, nn
from toys import batches

import prunelab as pl
from prunelab.ledger.events import Noted
from prunelab.values import FrozenMap

# Python itself ignores an interrupt that comes while it closes a generator that is let go.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


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
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Sessions,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True,
            suppress_health_check=quiet, database=None, print_blob=False,
        ),
    )  # fmt: skip


@pytest.mark.long
def test_whatever_fails_in_a_verb_the_session_is_as_before_or_as_after() -> None:
    TALLY.clear()
    drawn(30, 20)
    assert TALLY["verbs"] > 200
    assert TALLY["before"] > 50
    print(dict(TALLY))


@pytest.mark.slow
def test_whatever_fails_in_a_verb_the_session_is_as_before_or_as_after_often() -> None:
    drawn(EXAMPLES, 25)
    print(dict(TALLY))


# ---------------------------------------------------------------- what the machine found first


@pytest.mark.parametrize("verb", ["note", "evaluate", "propose"])
def test_an_interrupt_while_a_verb_begins_or_ends_leaves_the_session_free(verb: str) -> None:
    WIRE.disarm()
    made = session(None, own=False)
    made.measure()
    with Bomb(-1, KeyboardInterrupt) as calls:
        VERBS[verb](made)
    last, ends = calls.calls, set()
    for at in (*range(1, 60), *range(max(60, last - 60), last)):
        if made.state.pending is not None:
            made.reject()
        before = len(made.ledger)
        with Bomb(at, KeyboardInterrupt):
            raised = faulty(lambda: VERBS[verb](made))
        assert made.busy is None
        ends.add((raised is None, len(made.ledger) > before))
        made.note("free")
    sound(made)
    writes = verb != "evaluate"
    assert {(False, False), (False, True)} <= ends or not writes


@pytest.mark.parametrize("error", [None, *ERRORS])
def test_a_method_that_writes_into_its_network_changes_no_session(error: Any) -> None:
    WIRE.disarm()
    made = session(None, own=False)
    made.method = Careless(METHODS[0])
    before = seen(made)
    if error is not None:
        WIRE.arm("method", 2, error)
        assert isinstance(faulty(made.propose), error)
        assert seen(made) == before
    move = made.propose()
    made.foresee(theta=None, method=Careless(METHODS[3]))
    sound(made)
    made.reject()
    made.method = METHODS[0]
    assert made.propose().drop == move.drop


def test_a_trained_proposal_that_a_repair_leaves_pending_keeps_its_network(tmp_path: Path) -> None:
    WIRE.disarm()
    made = session(tmp_path / "run.prunelab", own=False)
    made.method = SAMPLED
    made.propose()
    brought = made._history.brought
    made.repair("bn")
    assert made.state.pending is not None
    assert made._history.brought is brought is not None
    assert seen(opened(tmp_path / "run.prunelab", False, SAMPLED)) == seen(made)


class Is(nn.Module):
    """A network whose layer has the name that marks what is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("is", nn.Conv2d(1, 8, 3))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.get_submodule("is")(x).relu().mean((2, 3)))


def test_names_that_mark_what_is_stored_are_stored_as_names(tmp_path: Path) -> None:
    path, data = tmp_path / "run.prunelab", pl.Data(train=batches(32, 1), val=batches(32, 2))
    metrics = {"is": lambda model, loader: 0.5}
    made = pl.Session(Is().eval(), data, "magnitude", metrics=metrics, path=path)
    made.propose()
    made.approve(repair=False)
    for number, value in enumerate(({"is": "x"}, {"is": "Move"}, [{"is": {"is": 1}}], (1, [2]))):
        made.answer(str(number), value)
    again = pl.Session.open(path, model=Is(), data=data, metrics=metrics)
    assert list(again.ledger) == list(made.ledger)
    assert again.state == made.state
    assert again.state.answers["0"] == FrozenMap({"is": "x"})


class Carries:
    """A method whose move carries what no file holds."""

    name = "carries"

    def search(self, context: Any) -> Any:
        yield from ()
        return context.move(self, {"conv1": (0,)}, carry={"what": torch.ones(2)})


def test_a_move_that_no_file_can_hold_is_refused_before_anything_changes() -> None:
    WIRE.disarm()
    made = session(None, own=False)
    before = seen(made)
    made.method = Carries()
    with pytest.raises(pl.InvalidValue, match="Proposed holds what no session file can"):
        made.propose()
    assert seen(made) == before
