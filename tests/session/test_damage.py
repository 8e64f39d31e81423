"""The file of a session: what no disk, clock, other program or flipped bit may take from it.

A damaged file is refused with a typed error, or gives the very session that was written: never
another network.
"""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import bits, opened, seen, session, sound

import prunelab as pl
from prunelab.errors import SessionFileError
from prunelab.ledger.events import Noted
from prunelab.ledger.store import FileStore

PAGE = 4096
SAMPLED = pl.AOFP(scoring="sampled", batches=4, warmup=0, theta=10.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.prunelab"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with branches, trained proposals, momentum, and weights of one form at many points."""
    path = tmp_path_factory.mktemp("written") / "run.prunelab"
    made = session(path, own=False)
    made.propose()
    made.approve()
    made.tune(2)
    made.method = SAMPLED
    made.propose()
    made.approve(repair=False)
    made.undo()
    made.repair("bn")
    made.answer("1", [1, {"is": "mine"}])
    made.propose()
    return path


def exact(found: pl.Session) -> tuple[Any, ...]:
    """The session, its network at every point, and the momentum: all that the file holds."""
    history = found._history
    momentum = history.momentum()
    networks = [bits(history.network_at(point)) for point in found.state.points]
    return seen(found), networks, None if momentum is None else bits(momentum)


def opens(path: Path, data: bytes, wanted: tuple[Any, ...]) -> str:
    """What becomes of a file with these bytes."""
    path.write_bytes(data)
    try:
        found = opened(path, False, SAMPLED)
        assert seen(found) == wanted[0], "another session"
    except SessionFileError:
        return "refused"
    try:
        assert exact(found) == wanted, "another network"
    except SessionFileError:
        return "opened, and a point refused"
    return "exact"


def damaged(written: Path, path: Path, flips: int, seed: int) -> Counter[str]:
    """Flip bits of every page, blank it, and cut the file there."""
    whole, rng = written.read_bytes(), np.random.default_rng(seed)
    wanted = exact(opened(written, False, SAMPLED))
    assert opens(path, whole, wanted) == "exact"
    found: Counter[str] = Counter()
    for start in range(0, len(whole), PAGE):
        for place in rng.integers(start, start + PAGE, flips):
            bit = bytes([whole[place] ^ 1 << int(rng.integers(8))])
            found[opens(path, whole[:place] + bit + whole[place + 1 :], wanted)] += 1
        head = start + int(rng.integers(100 if start else 0, 140 if start else 100))
        bit = bytes([whole[head] ^ 1 << int(rng.integers(8))])
        found[opens(path, whole[:head] + bit + whole[head + 1 :], wanted)] += 1
        assert opens(path, whole[:start], wanted) == "refused", f"cut at {start}"
    print(dict(found))
    return found


def test_a_flipped_bit_in_any_page_is_refused_or_harmless(written: Path, path: Path) -> None:
    found = damaged(written, path, 1, 0)
    assert found["refused"] > 10


@pytest.mark.slow
def test_flipped_bits_in_every_page_are_refused_or_harmless(written: Path, path: Path) -> None:
    damaged(written, path, 64, 1)


def test_an_index_that_leads_to_other_weights_gives_no_other_network(
    written: Path, path: Path
) -> None:
    wanted, whole = exact(opened(written, False, SAMPLED)), bytearray(written.read_bytes())
    with closing(sqlite3.connect(written)) as database:
        find = "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_weights_1'"
        (page,) = database.execute(find).fetchone()
        rows = dict(database.execute("SELECT key, rowid FROM weights WHERE length(key) = 1"))
    a, b = sorted(rows)[-2:]
    start = (page - 1) * PAGE
    places = [
        whole.index(b"\x03\x0f\x01" + f"{key}{chr(rows[key])}".encode(), start, start + PAGE) + 4
        for key in (a, b)
    ]
    whole[places[0]], whole[places[1]] = whole[places[1]], whole[places[0]]
    path.write_bytes(whole)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA quick_check").fetchone() == ("ok",)
    assert opens(path, bytes(whole), wanted) == "exact"


# ---------------------------------------------------------------- the disk


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("verb", ["propose", "approve", "tune", "undo", "note"])
def test_a_full_disk_changes_nothing_and_the_verb_works_when_there_is_room(
    path: Path, verb: str
) -> None:
    made = session(path, own=False)
    made.note("x" * 5000)
    made.propose()
    if verb in ("propose", "undo"):
        made.approve()
    given = {"tune": [2], "note": ["y" * 9000]}.get(verb, [])
    before, size = seen(made), path.stat().st_size
    # what is small finds room in the pages that are there
    rooms = (
        (-size + 100, 0, 1, 512, PAGE, 3 * PAGE) if verb in ("approve", "tune") else (-size + 100,)
    )
    for room in rooms:
        with at_most(size + room), pytest.raises(SessionFileError, match="full"):
            getattr(made, verb)(*given)
        assert seen(made) == before
        assert tuple(FileStore.open(path).events()) == before[0]
    getattr(made, verb)(*given)
    sound(made)
    assert seen(opened(path, False, made.method))[:4] == seen(made)[:4]


def test_a_session_that_finds_no_room_leaves_no_file(path: Path) -> None:
    for size in (0, 100, PAGE, 5 * PAGE):
        with at_most(size), pytest.raises(SessionFileError, match=r"full|cannot be created"):
            session(path, own=False)
        assert not path.exists()
    session(path, own=False)


def mounted(folder: Path, *options: str) -> bool:
    command = ["mount", *options, str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_really_full_disk_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or not mounted(disk, "-t", "tmpfs", "-o", "size=256k", "tmpfs"):
        pytest.skip("needs the right to mount")
    try:
        path = disk / "run.prunelab"
        made = session(path, own=False)
        made.propose()
        (disk / "other").write_bytes(b"\0" * PAGE)
        with pytest.raises(OSError, match="space"), (disk / "other").open("ab") as other:
            while True:
                other.write(b"\0" * PAGE)
                other.flush()
        before = seen(made)
        with pytest.raises(SessionFileError, match="full"):
            made.approve()
        assert seen(made) == before
        (disk / "other").unlink()
        assert mounted(disk, "-o", "remount,ro")
        with pytest.raises(SessionFileError, match="read-only"):
            made.approve()
        with pytest.raises(SessionFileError, match="cannot be created"):
            session(disk / "new.prunelab", own=False)
        again = opened(path, False)  # it can be looked at
        assert again.state == made.state
        assert seen(made) == before
        assert mounted(disk, "-o", "remount,rw")
        made.approve()
        sound(made)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_without_the_right_to_write_changes_nothing() -> None:
    folder = Path(tempfile.mkdtemp(prefix="prunelab-"))
    path, root = folder / "run.prunelab", os.geteuid() == 0
    try:
        made = session(path, own=False)
        before = seen(made)
        folder.chmod(0o555)
        path.chmod(0o444)
        if root:
            os.seteuid(65534)
        with pytest.raises(SessionFileError, match="read-only"):
            made.note("x")
        assert seen(made) == before
        assert opened(path, False).state == made.state
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        path.chmod(0o644)
    made.note("x")
    shutil.rmtree(folder)


# ---------------------------------------------------------------- others


OTHER = """
import sys, time, sqlite3
from prunelab.ledger.store import FileStore
from prunelab.ledger.events import Noted
store = FileStore.open(sys.argv[1])
with store._transaction() as database:
    print("held", flush=True)
    sys.stdin.readline()
if sys.argv[2] == "write":
    store.append(Noted(seq=len(store.events()), text="theirs"), {})
print("done", flush=True)
"""


@pytest.mark.parametrize("then", ["write", "leave"])
def test_another_process_at_the_file_is_told_and_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    made = session(path, own=False)
    before = seen(made)
    monkeypatch.setattr("prunelab.ledger.store.PATIENCE", 0.1)
    command = [sys.executable, "-c", OTHER, str(path), then]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin and other.stdout
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(SessionFileError, match=r"cannot be used now.*locked"):
            made.note("mine")
        assert seen(made) == before
        other.stdin.write(b"\n")
        other.stdin.flush()
        assert other.stdout.readline() == b"done\n"
    if then == "leave":
        made.note("mine")
        return
    with pytest.raises(SessionFileError, match="another program writes to the same session"):
        made.note("mine")
    assert seen(made) == before
    last = list(opened(path, False).ledger)[-1]
    assert isinstance(last, Noted) and last.text == "theirs"


def test_a_folder_that_is_moved_is_missed_and_taken_up_again(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    made = session(here / "run.prunelab", own=False)
    before = seen(made)
    here.rename(there)
    with pytest.raises(SessionFileError, match="cannot be used now"):
        made.note("lost?")
    assert seen(made) == before
    assert seen(opened(there / "run.prunelab", False, made.method)) == before
    there.rename(here)
    made.note("found")
    assert len(FileStore.open(here / "run.prunelab").events()) == 2


def test_a_relative_path_means_the_folder_in_which_the_session_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "b")
    other = session(Path("run.prunelab"), own=False)
    monkeypatch.chdir(tmp_path / "a")
    made = session(Path("run.prunelab"), own=False)
    monkeypatch.chdir(tmp_path / "b")
    made.note("in a")
    assert [len(FileStore.open(tmp_path / name / "run.prunelab").events()) for name in "ab"] == [
        2, 1,
    ]  # fmt: skip
    assert len(other.ledger) == 1


@pytest.mark.parametrize("longer", [False, True])
def test_another_session_in_the_place_of_the_file_is_left_alone(
    tmp_path: Path, longer: bool
) -> None:
    made = session(tmp_path / "a.prunelab", own=False)
    other = session(tmp_path / "b.prunelab", own=False, seed=1)
    (made if longer else other).note("one more")
    for each in (made, other) if longer else (made,):
        each.note("and more")
    (tmp_path / "b.prunelab").replace(tmp_path / "a.prunelab")
    content, before = (tmp_path / "a.prunelab").read_bytes(), seen(made)
    with pytest.raises(SessionFileError, match="another file has taken its place"):
        made.note("where?")
    assert (tmp_path / "a.prunelab").read_bytes() == content
    assert seen(made) == before


def test_a_clock_that_jumps_changes_no_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        days = iter((2040, 1970, 2026, 9999, 1, 2000))

        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime(next(cls.days, 1999), 1, 1, tzinfo=tz)

    monkeypatch.setattr("prunelab.session.history.datetime", Clock)
    made = session(path, own=False)
    for text in "abcd":
        made.note(text)
    made.propose()
    assert [event.seq for event in made.ledger] == list(range(6))
    assert seen(opened(path, False, made.method)) == seen(made)
    pl.figures.report(made.ledger)
