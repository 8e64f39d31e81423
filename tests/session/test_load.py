"""Long sessions stay quick and small: many events, moves and branches.

Screens are opened and closed in notebook/test_what_if.py.
"""

from __future__ import annotations

import gc
import itertools
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import WIRE, opened, seen, session, sound

import prunelab as pl
from prunelab.ledger.events import Noted
from prunelab.ledger.store import FileStore

VERBS: dict[str, Callable[[pl.Session], Any]] = {
    "note": lambda s: s.note("x"),
    "propose": lambda s: s.propose(drop={"conv1": [s.graph["conv1"].units[0]]}),
    "reject": lambda s: s.reject(),
    "evaluate": lambda s: s.evaluate("val"),
}


@pytest.fixture(autouse=True)
def _disarmed() -> None:
    WIRE.disarm()


def padded(path: Path, events: int) -> None:
    """Fill a session's file up with notes, in one transaction."""
    store = FileStore.open(path)
    first = len(store.events())
    store.extend([Noted(seq=seq, text=f"note {seq}") for seq in range(first, events)], {})


def seconds(made: pl.Session, times: int = 7) -> dict[str, float]:
    """The median CPU seconds of each verb."""
    took: dict[str, list[float]] = {name: [] for name in VERBS}
    for _ in range(times):
        for name, verb in VERBS.items():
            began = time.process_time()
            verb(made)
            took[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in took.items()}


def many_events(folder: Path, events: int) -> dict[str, Any]:
    """CPU seconds to open a session of 100 events and of so many, and of verbs in both."""
    found: dict[str, Any] = {}
    for count in (100, events):
        path = folder / f"{count}.prunelab"
        session(path, own=False)
        padded(path, count)
        began = time.process_time()
        made = opened(path, False)
        found[f"open, {count}"] = time.process_time() - began
        found[f"verbs, {count}"] = seconds(made)
        sound(made)
    return found


def many_moves(path: Path, moves: int) -> list[tuple[int, int, int]]:
    """Moves with undo and branches: (moves, bytes of the file, KiB of peak memory) on the way."""
    made = session(path, own=False)
    found = []
    for move in range(1, moves + 1):
        group = made.graph["conv1"]
        made.propose(drop={"conv1": [group.units[move % len(group.units)]]})
        made.approve(repair=False)
        match move % 4:
            case 0:
                made.undo()
                made.undo()
            case 1:
                made.tune(1)
            case 2 if move % 8 == 2:
                made.go(made.state.points[move // 2].seq)
            case _:
                made.undo()
        if len(made.graph["conv1"].units) < 6:
            made.go(0)
        if move % (moves // 6) == 0:
            gc.collect()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found.append((move, path.stat().st_size, peak))
    sound(made)
    assert seen(opened(path, False, made.method)) == seen(made)
    return found


def test_ten_thousand_events_open_at_once_and_slow_no_verb_down(tmp_path: Path) -> None:
    found = many_events(tmp_path, 10_000)
    assert found["open, 10000"] < 2
    few, many = found["verbs, 100"], found["verbs, 10000"]
    assert {name: many[name] < few[name] + 0.02 for name in VERBS} == dict.fromkeys(VERBS, True)


def test_a_file_grows_by_the_same_with_every_move_and_memory_stays(tmp_path: Path) -> None:
    found = many_moves(tmp_path / "run.prunelab", 36)
    sizes = [size for _, size, _ in found]
    grown = [b - a for a, b in itertools.pairwise(sizes)]
    assert max(grown[1:]) < 2 * max(grown[0], 4096)
    assert found[-1][2] - found[1][2] < 20 << 10


@pytest.mark.slow
def test_three_hundred_moves_with_branches(tmp_path: Path) -> None:
    found = many_moves(tmp_path / "run.prunelab", 300)
    print(found)
    sizes = [size for _, size, _ in found]
    grown = [b - a for a, b in itertools.pairwise(sizes)]
    assert max(grown[1:]) < 2 * grown[0]
    assert found[-1][2] - found[1][2] < 40 << 10
