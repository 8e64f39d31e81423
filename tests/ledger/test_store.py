"""The session file: durable, a single file, and damage is always detected."""

from __future__ import annotations

import json
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from prunelab.errors import SessionFileError
from prunelab.ledger.events import Approved, Began, Event, Noted, Proposed, Undone
from prunelab.ledger.ledger import Ledger
from prunelab.ledger.rows import APPLICATION, FORMAT, RowStore
from prunelab.ledger.store import FileStore, TemporaryStore
from prunelab.values import Cost, FrozenMap, Importance, Move, Rung

WEIGHTS = {
    "base": {"conv1": torch.arange(4096.0).reshape(64, 64), "count": torch.tensor(7)},
    "after": {"conv1": torch.arange(2048.0).reshape(64, 32), "count": torch.tensor(7)},
}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    """The same names in the same order, and bitwise the same numbers."""
    return list(found) == list(wanted) and all(
        a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(found.values(), wanted.values(), strict=True)
    )


def holds_weights(store: RowStore) -> bool:
    return all(same(store.weights(key), weights) for key, weights in WEIGHTS.items())


def story() -> list[Event]:
    """One event of most kinds, with every value that an event can hold."""
    cost = Cost(macs=1000, params=100, activation_bytes=10)
    less = Cost(macs=700, params=80, activation_bytes=9)
    move = Move(
        drop=FrozenMap({"conv1": (1, 2)}),
        method="aofp",
        parameters=FrozenMap({"theta": 0.01, "nested": {"deep": [1, 2]}}),
        seed=3,
        damage=FrozenMap({"conv1": 0.004}),
        before=cost,
        after=less,
        fingerprint="f0",
        carry=FrozenMap({"failed": {"conv2": 2}}),
    )
    rung = Rung("conv1", 0, (0, 1, 2, 3), (0.1, 0.002, 0.003, 0.2), (1, 2), 0.003, 0.01, "take")
    importance = Importance("conv1", (0, 1), (0.5, float("inf")), "share of the signal")
    return [
        Began(
            seq=0,
            at="2026-01-01T00:00:00Z",
            network="VGG8",
            fingerprint="f0",
            seed=0,
            method="aofp",
            parameters=FrozenMap({"theta": 0.01}),
            settings=FrozenMap({"repair": None}),
            widths=FrozenMap({"conv1": 4}),
            metrics=FrozenMap({"accuracy": 0.9}),
            cost=cost,
            weights="base",
        ),
        Noted(seq=1, text="größer, 大, 🙂, \u2028 and \0"),
        Proposed(
            seq=2,
            method="aofp",
            parameters=FrozenMap(),
            move=move,
            seen=(rung, importance),
        ),
        Approved(
            seq=3,
            kept=FrozenMap({"conv1": (0, 3)}),
            metrics=FrozenMap({"accuracy": 0.89}),
            cost=less,
            fingerprint="f1",
            weights="after",
        ),
        Undone(seq=4, step=3, proposal=False),
    ]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A session file that holds the story."""
    path = tmp_path / "run.prunelab"
    store = FileStore.create(path)
    for event in story():
        store.append(event, WEIGHTS if event.seq == 0 else {})
    return path


def test_a_file_gives_back_what_was_stored(file: Path) -> None:
    store = FileStore.open(file)
    assert store.events() == story()
    assert [event.at for event in store.events()] == [event.at for event in story()]
    assert holds_weights(store)


def test_a_file_from_before_it_was_known_who_decided_is_read(file: Path) -> None:
    with sqlite3.connect(file) as database:
        (text,) = database.execute("SELECT json FROM event WHERE seq = 3").fetchone()
        old = json.dumps({key: value for key, value in json.loads(text).items() if key != "run"})
        assert old != text
        change = "UPDATE event SET json = ?, crc = ? WHERE seq = 3"
        database.execute(change, (old, zlib.crc32(old.encode())))
    assert FileStore.open(file).events() == story()


def test_who_decided_is_read_back(tmp_path: Path) -> None:
    store = FileStore.create(tmp_path / "run.prunelab")
    began, *_, approved, _ = story()
    for seq, event in enumerate([began, replace(approved, seq=1, run=0.5)]):
        assert event.seq == seq
        store.append(event, {})
    assert FileStore.open(store.path).events()[1].run == 0.5


def test_a_file_and_no_file_make_the_same_ledger(file: Path) -> None:
    without = Ledger(TemporaryStore())
    for event in story():
        without.append(event, WEIGHTS if event.seq == 0 else {})
    ledger = Ledger(FileStore.open(file))
    assert list(ledger) == list(without)
    assert ledger.state == without.state
    assert all(same(ledger.weights(key), without.weights(key)) for key in WEIGHTS)


def test_one_session_is_one_file(file: Path) -> None:
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_odd_file_names_work(tmp_path: Path) -> None:
    path = tmp_path / "a b?c#d%20é'.prunelab"
    FileStore.create(path).append(Noted(seq=0, text="here"), {})
    assert len(FileStore.open(path).events()) == 1
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["file", "no file"])
def test_an_event_and_its_weights_are_stored_together_or_not_at_all(file: Path, kind: str) -> None:
    store: RowStore = FileStore.open(file)
    if kind == "no file":
        store = TemporaryStore()
        for event in story():
            store.append(event, {})
    bad: dict[str, dict[str, Tensor]] = {"good": {"a": torch.ones(9)}, "bad": {"b": object()}}  # type: ignore[dict-item]
    with pytest.raises(AttributeError):
        store.append(Noted(seq=5, text="x"), bad)
    assert store.events() == story()
    with pytest.raises(SessionFileError, match="no weights 'good'"):
        store.weights("good")
    store.append(Noted(seq=5, text="x"), {"good": bad["good"]})
    assert same(store.weights("good"), bad["good"])


def test_a_killed_process_loses_nothing_that_append_returned_from(tmp_path: Path) -> None:
    path = tmp_path / "run.prunelab"
    program = f"""
import torch
from prunelab.ledger.events import Noted
from prunelab.ledger.store import FileStore
store = FileStore.create({str(path)!r})
for seq in range(100000):
    store.append(Noted(seq=seq, text="x" * 1000), {{str(seq): {{"w": torch.randn(25000)}}}})
    print(seq, flush=True)
"""
    worker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    with worker.stdout:
        told = [int(next(worker.stdout)) for _ in range(20)][-1]
        worker.kill()
        rest = worker.stdout.read().split()
    assert worker.wait() == -signal.SIGKILL
    told = int(rest[-1]) if rest else told
    store = FileStore.open(path)
    assert told + 1 <= len(store.events()) <= told + 2
    assert all(len(store.weights(str(seq))["w"]) == 25000 for seq in range(len(store.events())))
    store.append(Noted(seq=len(store.events()), text="and on"), {})


@pytest.mark.parametrize("kind", ["file", "no file"])
def test_any_thread_may_append_and_read(file: Path, kind: str) -> None:
    store: RowStore = FileStore.open(file)
    if kind == "no file":
        store = TemporaryStore()
        for event in story():
            store.append(event, {})
    errors: list[BaseException] = []
    turn = threading.Condition()
    done = [5]

    def work(mine: range) -> None:
        try:
            for seq in mine:
                with turn:
                    turn.wait_for(lambda seq=seq: done[0] == seq)  # type: ignore[misc]
                    store.append(Noted(seq=seq, text="t"), {"w": {"w": torch.tensor(seq)}})
                    done[0] += 1
                    turn.notify_all()
                assert len(store.events()) > seq
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(range(5 + k, 25, 4),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(store.events()) == 25
    assert store.weights("w")["w"] == 24


def test_two_writers_of_one_session_are_told(file: Path) -> None:
    first, second = FileStore.open(file), FileStore.open(file)
    first.append(Noted(seq=5, text="mine"), {})
    with pytest.raises(SessionFileError, match="another program writes"):
        second.append(Noted(seq=5, text="mine"), {})


def test_a_locked_file_says_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunelab.ledger.store.PATIENCE", 0.05)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SessionFileError, match=r"cannot be used now.*locked"):
        FileStore(file).append(Noted(seq=5, text="x"), {})
    other.close()
    assert FileStore.open(file).events() == story()


def test_create_never_overwrites(file: Path, tmp_path: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(SessionFileError, match="exists already"):
        FileStore.create(file)
    with pytest.raises(SessionFileError, match="exists already"):
        FileStore.create(tmp_path)
    assert file.read_bytes() == before


def test_check_free_refuses_what_create_would_and_leaves_nothing(
    file: Path, tmp_path: Path
) -> None:
    with pytest.raises(SessionFileError, match="exists already"):
        FileStore.check_free(file)
    with pytest.raises(SessionFileError, match="cannot be created"):
        FileStore.check_free(tmp_path / "nowhere" / "run.prunelab")
    FileStore.check_free(tmp_path / "new.prunelab")
    assert not (tmp_path / "new.prunelab").exists()
    FileStore.create(tmp_path / "new.prunelab")


def test_create_says_when_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SessionFileError, match="cannot be created"):
        FileStore.create(tmp_path / "nowhere" / "run.prunelab")


def test_open_says_what_it_found_instead(tmp_path: Path) -> None:
    path = tmp_path / "thing"
    with pytest.raises(SessionFileError, match="There is no file"):
        FileStore.open(path)
    assert not path.exists()
    with pytest.raises(SessionFileError, match="cannot be read"):
        FileStore.open(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(SessionFileError, match="is empty"):
        FileStore.open(path)
    path.write_bytes(pickle.dumps({"weights": [1, 2]}))
    with pytest.raises(SessionFileError, match="not a session file"):
        FileStore.open(path)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE cookies (name TEXT)")
    other.close()
    with pytest.raises(SessionFileError, match="another program"):
        FileStore.open(path)


def test_a_newer_format_is_named(file: Path) -> None:
    with sqlite3.connect(file) as other:
        other.execute(f"PRAGMA user_version = {FORMAT + 1}")
    other.close()
    with pytest.raises(SessionFileError, match=f"format {FORMAT + 1}.*newer prunelab"):
        FileStore.open(file)


@pytest.mark.parametrize(
    "text",
    ['{"is": "Teleported", "seq": 5}', '{"is": "Noted", "seq": 5, "text": "x", "mood": 1}'],
    ids=["unknown event", "unknown field"],
)
def test_an_event_of_a_newer_prunelab_is_named(file: Path, text: str) -> None:
    with sqlite3.connect(file) as other:
        other.execute("INSERT INTO event VALUES (5, ?, ?)", (text, zlib.crc32(text.encode())))
    other.close()
    with pytest.raises(SessionFileError, match="newer prunelab"):
        FileStore.open(file)


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("DELETE FROM event WHERE seq = 2", "event 2 is missing"),
        ("UPDATE event SET json = replace(json, '0.9', '0.8')", "event 0 is corrupted"),
        ("UPDATE event SET json = CAST(X'FFFE00' AS TEXT)", "event 0 is corrupted"),
        ("DROP TABLE event", "no such table"),
    ],
)
def test_a_changed_file_is_called_damaged(file: Path, statement: str, found: str) -> None:
    with sqlite3.connect(file) as other:
        other.execute(statement)
    other.close()
    with pytest.raises(SessionFileError, match=f"damaged: {found}"):
        FileStore.open(file)


def test_json_that_is_no_event_is_called_damaged(file: Path) -> None:
    text = json.dumps([1, 2])
    with sqlite3.connect(file) as other:
        other.execute("INSERT INTO event VALUES (5, ?, ?)", (text, zlib.crc32(text.encode())))
    other.close()
    with pytest.raises(SessionFileError, match="row 5 is not an event"):
        FileStore.open(file)


def read_or_refuse(path: Path) -> bool:
    """True when the file gave the whole story; False when it was refused with a typed error."""
    try:
        store = FileStore.open(path)
        assert store.events() == story()
        assert holds_weights(store)
    except SessionFileError:
        return False
    return True


def test_a_truncated_file_is_always_refused(file: Path) -> None:
    whole = file.read_bytes()
    for length in (1, 15, 16, 50, 99, 100, 512, 4095, 4096, 4097, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert not read_or_refuse(file), f"truncated to {length} of {len(whole)} bytes"


def test_flipped_bytes_are_refused_or_harmless(file: Path) -> None:
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(whole), 150):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        refused += not read_or_refuse(file)
    assert refused > 75


def test_the_file_carries_its_mark(file: Path) -> None:
    assert int.from_bytes(file.read_bytes()[68:72], "big") == APPLICATION
