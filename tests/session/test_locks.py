"""Verbs from several threads: one at a time, in any order, with Stop at any time; no deadlock.

A watchdog prints every thread's stack and ends the process where nothing moves for two minutes.
"""

from __future__ import annotations

import faulthandler
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from faults import WIRE, session, sound

import prunelab as pl
from prunelab.ledger.events import Approved, Event, Repaired
from prunelab.ledger.store import TemporaryStore
from prunelab.values import Ended

UNITS = {"conv1": [3, 4]}
FOREGROUND: tuple[Callable[[pl.Session], Any], ...] = (
    lambda s: s.propose(),
    lambda s: s.propose(drop=UNITS),
    lambda s: s.adjust(UNITS),
    lambda s: s.approve(),
    lambda s: s.reject(),
    lambda s: s.undo(),
    lambda s: s.tune(1),
    lambda s: s.repair("bn"),
    lambda s: s.note("x"),
    lambda s: s.predict(accuracy=0.5),
    lambda s: s.evaluate("val"),
    lambda s: [item for item, _ in zip(s.proposing(), range(2), strict=False)],
)
BACKGROUND: tuple[Callable[[pl.Session], Any], ...] = (
    lambda s: s.measure(background=True),
    lambda s: s.step_time(background=True),
    lambda s: s.compare(0, 0, images=32, background=True),
    lambda s: s.sensitivity((0.5,), images=32, background=True),
)
READERS: tuple[Callable[[pl.Session], Any], ...] = (
    lambda s: s.foresee(UNITS),
    lambda s: s.foresee(target_macs=0.8),
    lambda s: (s.state.line(), s.busy, s.aside, s.latencies, s.evidence),
    lambda s: s.model.state_dict(),
    lambda s: s.costs(),
)


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    WIRE.disarm()
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


class Checked:
    """A lock that knows its place in the order, and what each thread holds."""

    held: ClassVar = threading.local()
    faults: ClassVar[list[str]] = []
    taken: ClassVar[Counter[str]] = Counter()

    def __init__(self, name: str, place: int, lock: Any) -> None:
        self.name, self.place, self.lock = name, place, lock

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        mine = getattr(self.held, "locks", [])
        if any(other.place >= self.place and other is not self for other in mine):
            self.faults.append(f"{self.name} taken with {[other.name for other in mine]} held")
        if not self.lock.acquire(blocking, timeout):
            return False
        self.held.locks = [*mine, self]
        self.taken[self.name] += 1
        return True

    def release(self) -> None:
        locks = self.held.locks
        place = max(i for i, lock in enumerate(locks) if lock is self)
        self.held.locks = locks[:place] + locks[place + 1 :]
        self.lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _is_owned(self) -> bool:
        return self in getattr(self.held, "locks", [])


def checked(made: pl.Session) -> None:
    """Give a session locks that check the order that `runner` has written down."""
    runner, store = made._runner, made.ledger._store
    Checked.faults.clear()
    Checked.taken.clear()
    assert isinstance(store, TemporaryStore)
    # Nothing is taken, told or waited for while the gate is held: so it comes last.
    runner._gate = Checked("gate", 9, threading.RLock())  # type: ignore[assignment]
    runner._freed = threading.Condition(runner._gate)
    store._turn = Checked("store", 2, threading.Lock())  # type: ignore[assignment]
    made._preview._budget = Checked("budget", 3, threading.Lock())  # type: ignore[assignment]

    def listener(_item: Any) -> None:
        if held := getattr(Checked.held, "locks", []):
            Checked.faults.append(f"a listener is called with {[one.name for one in held]} held")

    made.listen(listener)


def worked(seed: int, turns: int) -> Counter[str]:
    """Two threads with verbs, one with background verbs, one that reads, one that stops."""
    made = session(None, own=False)
    made.measure()
    checked(made)
    heard: list[Any] = []
    made.listen(lambda item: heard.append((threading.get_ident(), item)))
    over, odd, done = threading.Event(), [], Counter[str]()

    def work(kind: str, verbs: Any, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(turns):
            try:
                rng.choice(verbs)(made)
                done[kind] += 1
            except pl.SessionBusy:
                time.sleep(rng.random() * 0.01)
            except pl.PruneLabError:
                done["refused"] += 1
            except BaseException as error:
                odd.append(error)

    def stop() -> None:
        rng = random.Random(seed)
        while not over.is_set():
            time.sleep(rng.random() * 0.02)
            made.stop(keep=rng.random() < 0.3)
            made.preempt()

    kinds = [("a", FOREGROUND), ("b", FOREGROUND), ("aside", BACKGROUND), ("reads", READERS)]
    threads = [
        threading.Thread(target=work, args=(kind, verbs, seed + i))
        for i, (kind, verbs) in enumerate(kinds)
    ]
    stopper = threading.Thread(target=stop)
    for thread in (*threads, stopper):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    stopper.join()
    assert odd == []
    assert Checked.faults == []
    assert min(Checked.taken[name] for name in ("gate", "store", "budget")) > 0
    sound(made)
    alone(heard)
    events = list(made.ledger)
    for event, after in itertools.pairwise(events):
        if isinstance(event, Approved):
            assert isinstance(after, Repaired) and after.automatic
    return done


def alone(heard: list[tuple[int, Any]]) -> None:
    """What listeners heard of two verbs is never mixed: one thread speaks from first to last."""
    ended: set[int] = set()
    speaker = None
    for thread, item in heard:
        if isinstance(item, Ended):  # told when the session is free: another may have begun
            if speaker == thread:
                speaker = None
            ended.add(thread)
        elif speaker is None:
            speaker = thread
        elif speaker != thread:
            assert not isinstance(item, Event) or speaker in ended
            speaker = thread


def test_verbs_of_several_threads_do_not_mix_and_none_waits_for_ever() -> None:
    assert sum(worked(seed=1, turns=25).values()) > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_verbs_of_several_threads_do_not_mix_for_long(seed: int) -> None:
    worked(seed, turns=200)


def test_a_stop_at_any_item_of_any_verb_leaves_the_session_free() -> None:
    made = session(None, own=False)
    checked(made)
    for verb in FOREGROUND:
        for at in (1, 2, 4):
            left = [at]

            def stop(item: Any, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] == 0:
                    thread = threading.Thread(target=made.stop)
                    thread.start()
                    thread.join()

            end = made.listen(stop)
            with suppress(pl.PruneLabError):
                verb(made)
            end()
            sound(made)
    assert Checked.faults == []


def test_a_listener_that_fails_and_has_left_breaks_no_verb() -> None:
    made = session(None, own=False)

    def leaves(_item: Any) -> None:
        end()
        raise RuntimeError("a broken view")

    end = made.listen(leaves)
    with pytest.warns(UserWarning, match="A listener failed"):
        made.note("x")
    made.note("y")
    assert len(made.ledger) == 3
