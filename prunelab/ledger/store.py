"""Stores of a session: in a file, or in a temporary database (see `rows.py`)."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

from prunelab.errors import SessionFileError
from prunelab.ledger.rows import APPLICATION, EVENTS, FORMAT, SCHEMA, WEIGHTS, RowStore

MAGIC = b"SQLite format 3\0"
PATIENCE = 10.0  # seconds to wait for another program's transaction

# Errors of the machine's present state, not of the file.
PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}


class FileStore(RowStore):
    """A `ledger.Store` in the file `path`, for use from any thread.

    `FileStore.create` makes a new file and `FileStore.open` opens an existing one. Once `append`
    has returned, its data is on the disk, even if the process is killed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(path)
        self._place = self.path.absolute()  # wherever the process goes afterwards

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Self:
        """A new, empty session file.

        Raises `SessionFileError` if the path exists or cannot be written.
        """
        store = cls(path)
        cls._claim(store.path)
        try:
            with store._transaction() as database:
                for statement in EVENTS + WEIGHTS:
                    database.execute(statement)
        except BaseException:
            store._place.unlink(missing_ok=True)
            raise
        return store

    @staticmethod
    def check_free(path: str | os.PathLike[str]) -> None:
        """Raise `SessionFileError` where `create` would; creates no file."""
        FileStore._claim(Path(path))
        Path(path).unlink()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """The session in the file `path`, fully checked.

        Raises `SessionFileError` for a file that is missing, damaged, of a newer format, or not a
        session.
        """
        store = cls(path)
        store._recognise()
        with store._connection() as database:
            if (found := database.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                raise store._damaged(str(found).splitlines()[-1])
            pages = database.execute("PRAGMA page_count").fetchone()[0]
            size = database.execute("PRAGMA page_size").fetchone()[0]
            if (
                store._place.stat().st_size < pages * size
            ):  # SQLite would fill up an incomplete last page
                raise store._damaged("its end is missing")
        store.events()
        return store

    def __repr__(self) -> str:
        return f"FileStore({str(self.path)!r})"

    def __str__(self) -> str:
        return str(self.path)

    @staticmethod
    def _claim(path: Path) -> None:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            raise SessionFileError(
                f"{path} exists already, and is not overwritten. Resume it with "
                "Session.open(...), or choose another path."
            ) from None
        except OSError as error:
            raise SessionFileError(
                f"{path} cannot be created: {error.strerror}. Choose a path in a folder that "
                "exists and that you may write to."
            ) from None

    def _recognise(self) -> None:
        """Raise for a file that is not a session of a known format."""
        try:
            with self._place.open("rb") as file:
                start = file.read(len(MAGIC))
        except FileNotFoundError:
            raise SessionFileError(
                f"There is no file {self.path}. Begin one with Session(..., path=...)."
            ) from None
        except OSError as error:
            raise SessionFileError(f"{self.path} cannot be read: {error.strerror}.") from None
        if not start:
            raise SessionFileError(
                f"{self.path} is empty: no session was ever written to it. Delete it and start "
                "again."
            )
        if not MAGIC.startswith(start):
            raise SessionFileError(
                f"{self.path} is not a session file: it begins with {start[:8]!r}. Session files "
                "are written by Session(..., path=...)."
            )
        with self._connection() as database:
            made = {sql for (sql,) in database.execute("SELECT sql FROM sqlite_master") if sql}
            mark = database.execute("PRAGMA application_id").fetchone()[0]
            version = database.execute("PRAGMA user_version").fetchone()[0]
        if mark != APPLICATION:
            raise SessionFileError(
                f"{self.path} is an SQLite database of another program; it is "
                "not changed. Session files are written by Session(..., path=...)."
            )
        if version <= FORMAT and (odd := sorted(made - SCHEMA, key=repr)):
            # A view or a trigger is a program, which would run when it is read or written.
            raise self._damaged(f"it holds {odd[0]!r:.80}, which no session writes")
        if version > FORMAT:
            raise SessionFileError(
                f"{self.path} has format {version}; this prunelab knows formats up to {FORMAT}. "
                "Open it with a newer prunelab."
            )

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A new connection for every use, so that any thread can use the store."""
        uri = self._place.as_uri() + "?mode=rw"
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
        except UnicodeDecodeError:  # from an SQLite error message
            raise self._damaged("its tables have odd names") from None

    def _damaged(self, found: str) -> SessionFileError:
        return SessionFileError(
            f"{self.path} is damaged: {found}. Take a copy of it from a backup; a session that is "
            "still open in memory can be exported."
        )


class TemporaryStore(RowStore):
    """A `ledger.Store` for sessions without a file, which exists as long as the object.

    It uses a temporary SQLite database: two megabytes are kept in memory, the rest in an unnamed
    file, in the folder that SQLITE_TMPDIR or TMPDIR names or the system's default. The file is
    deleted with the store or when the process ends. So the points of a session need no memory,
    however many and large they are.
    """

    def __init__(self) -> None:
        super().__init__()
        # A second connection would open another database, so threads share this one in turn.
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._turn = threading.Lock()
        weakref.finalize(self, self._database.close)
        with self._transaction() as database:
            for statement in EVENTS + WEIGHTS:
                database.execute(statement)

    def __str__(self) -> str:
        return "This session's temporary file"

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._turn:
            try:
                yield self._database
            except sqlite3.Error as error:
                raise self._damaged(str(error)) from error

    def _damaged(self, found: str) -> SessionFileError:
        return SessionFileError(
            f"{self} cannot be used: {found}. Is the disk for temporary files full? Nothing was "
            "changed, and the session can still be exported. Make room, or begin one with "
            "Session(..., path=...) on another disk."
        )
