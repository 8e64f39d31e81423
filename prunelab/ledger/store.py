"""A session in one file: an SQLite database of events (JSON) and weights (safetensors bytes).

Nothing read from it is ever unpickled. May import values.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

from prunelab.errors import SessionFileError
from prunelab.ledger.events import Event
from prunelab.values import revive, thaw

APPLICATION = 0x7072756E  # "prun", where SQLite keeps an application's mark
FORMAT = 1
MAGIC = b"SQLite format 3\0"
PATIENCE = 10.0  # seconds to wait for another program's transaction

# What is wrong with the machine at the moment, not with the file.
PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}

SCHEMA = f"""
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT};
CREATE TABLE event (seq INTEGER PRIMARY KEY, json TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE blob (key TEXT PRIMARY KEY, bytes BLOB NOT NULL, crc INTEGER NOT NULL);
"""
# As bytes: a damaged text need not be UTF-8.
READ = "SELECT seq, CAST(json AS BLOB), crc FROM event ORDER BY seq"


class FileStore:
    """Keeps events and weights in the file `path`: a `ledger.Store` for any thread.

    `FileStore.create` makes a new file and `FileStore.open` takes one that is there. What
    `append` has returned from is on the disk: a killed process finds it again.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Self:
        """A new, empty session file.

        Raises `SessionFileError` when something is there already, or nothing can be written.
        """
        store = cls(path)
        cls._claim(store.path)
        with store._transaction() as database:
            for statement in SCHEMA.strip().splitlines():
                database.execute(statement)
        return store

    @staticmethod
    def check_free(path: str | os.PathLike[str]) -> None:
        """Raise `SessionFileError` where `create` would, and leave nothing behind."""
        FileStore._claim(Path(path))
        Path(path).unlink()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """The session in the file `path`, checked from end to end.

        Raises `SessionFileError` for a file that is missing, not ours, newer or damaged.
        """
        store = cls(path)
        store._recognise()
        with store._connection() as database:
            if (found := database.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                raise store._damaged(str(found).splitlines()[-1])
        store.events()
        return store

    def append(self, event: Event, blobs: dict[str, bytes]) -> None:
        """Store `event` and `blobs`, all of it or nothing, and wait until the disk has it."""
        text = json.dumps(thaw(event))
        with self._transaction() as database:
            try:
                database.execute(
                    "INSERT INTO event VALUES (?, ?, ?)",
                    (event.seq, text, zlib.crc32(text.encode())),
                )
            except sqlite3.IntegrityError:
                raise SessionFileError(
                    f"{self.path} has an event {event.seq} already: another program writes to "
                    "the same session. Close one of them, then resume with Session.open(...)."
                ) from None
            database.executemany(
                "INSERT OR REPLACE INTO blob VALUES (?, ?, ?)",
                ((key, value, zlib.crc32(value)) for key, value in blobs.items()),
            )

    def events(self) -> list[Event]:
        """All events so far, in order."""
        with self._connection() as database:
            rows = database.execute(READ).fetchall()
        return [self._event(place, *row) for place, row in enumerate(rows)]

    def blob(self, key: str) -> bytes:
        """The bytes stored under `key`."""
        with self._connection() as database:
            row = database.execute("SELECT bytes, crc FROM blob WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise self._damaged(f"it holds no weights {key!r}")
        if zlib.crc32(row[0]) != row[1]:
            raise self._damaged(f"the weights {key!r} are not what was written")
        return bytes(row[0])

    def __repr__(self) -> str:
        return f"FileStore({str(self.path)!r})"

    @staticmethod
    def _claim(path: Path) -> None:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            raise SessionFileError(
                f"{path} exists already, and is left alone. Resume it with "
                "Session.open(...), or choose another path."
            ) from None
        except OSError as error:
            raise SessionFileError(
                f"{path} cannot be created: {error.strerror}. Choose a path in a folder that "
                "exists and that you may write to."
            ) from None

    def _event(self, place: int, seq: int, text: bytes, crc: int) -> Event:
        if seq != place:
            raise self._damaged(f"event {place} is missing")
        if zlib.crc32(text) != crc:
            raise self._damaged(f"event {seq} is not what was written")
        try:
            event = revive(json.loads(text))
        except (KeyError, TypeError, ValueError) as error:
            raise SessionFileError(
                f"{self.path}: event {seq} cannot be understood ({error!r}); a newer prunelab may "
                "have written it. Open it with that version."
            ) from None
        if not isinstance(event, Event):
            raise self._damaged(f"row {seq} is no event")
        return event

    def _recognise(self) -> None:
        """Raise for a file that is not a session of a format that is known here."""
        try:
            with self.path.open("rb") as file:
                start = file.read(len(MAGIC))
        except FileNotFoundError:
            raise SessionFileError(
                f"There is no file {self.path}. Begin one with Session(..., path=...)."
            ) from None
        except OSError as error:
            raise SessionFileError(f"{self.path} cannot be read: {error.strerror}.") from None
        if not start:
            raise SessionFileError(
                f"{self.path} is empty: no session was ever written to it. Delete it and begin "
                "anew."
            )
        if not MAGIC.startswith(start):
            raise SessionFileError(
                f"{self.path} is not a session file: it begins with {start[:8]!r}. Session files "
                "are written by Session(..., path=...)."
            )
        with self._connection() as database:
            mark = database.execute("PRAGMA application_id").fetchone()[0]
            version = database.execute("PRAGMA user_version").fetchone()[0]
        if mark != APPLICATION:
            raise SessionFileError(
                f"{self.path} is an SQLite database of another program; prunelab leaves it "
                "alone. Session files are written by Session(..., path=...)."
            )
        if version > FORMAT:
            raise SessionFileError(
                f"{self.path} has format {version}; this prunelab knows formats up to {FORMAT}. "
                "Open it with a newer prunelab."
            )

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own for every use, which is what makes threads safe."""
        uri = self.path.absolute().as_uri() + "?mode=rw"
        try:
            with closing(
                sqlite3.connect(uri, uri=True, timeout=PATIENCE, isolation_level=None)
            ) as database:
                yield database
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING:
                raise SessionFileError(
                    f"{self.path} cannot be used now: {error}. Is the disk full, the folder "
                    "read-only, or another program in the middle of writing? Nothing was changed."
                ) from error
            raise self._damaged(str(error)) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as database:
            database.execute("PRAGMA synchronous = EXTRA")
            database.execute("BEGIN IMMEDIATE")
            yield database  # an error leaves here without COMMIT, and closing rolls back
            database.execute("COMMIT")

    def _damaged(self, found: str) -> SessionFileError:
        return SessionFileError(
            f"{self.path} is damaged: {found}. Take a copy of it from a backup; a session that is "
            "still open in memory can be exported."
        )
