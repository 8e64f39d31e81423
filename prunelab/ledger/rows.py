"""A session as rows of an SQLite database: events (JSON), and each distinct tensor once.

The weights of a point are stored as a list: the names of the tensors and the hashes of their
content (`content.py`). Tensors that a move does not change are shared with earlier points, so a
point needs only the space of what it changed. Nothing read is ever unpickled.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from prunelab.errors import InvalidValue, SessionFileError
from prunelab.ledger.content import content_hash, raw, tensor_of
from prunelab.ledger.events import Event
from prunelab.values import revive, thaw

if TYPE_CHECKING:
    from torch import Tensor

APPLICATION = 0x7072756E  # "prun", as SQLite's application id
FORMAT = 3
PIECE = 1 << 20  # bytes of a tensor per row: SQLite copies rows, and limits them to 1 GB

MARK = f"PRAGMA user_version = {FORMAT}"
EVENTS = (
    MARK,
    f"PRAGMA application_id = {APPLICATION}",
    "CREATE TABLE event (seq INTEGER PRIMARY KEY, json TEXT NOT NULL, crc INTEGER NOT NULL)",
)
# Files of format 2 have weights without an entry for what is no tensor; those of format 1 have a
# table `blob` instead, which holds whole networks as safetensors.
WEIGHTS = (
    "CREATE TABLE weights (key TEXT PRIMARY KEY, json TEXT NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE piece (tensor TEXT, place INTEGER, bytes BLOB NOT NULL, "
    "PRIMARY KEY (tensor, place))",
)
# Read as bytes, because a damaged text may not be UTF-8.
EVENT = "SELECT seq, CAST(json AS BLOB), crc FROM event ORDER BY seq"
LAST = "SELECT seq, crc FROM event ORDER BY seq DESC LIMIT 1"
# By the rows themselves: in a damaged file the index may lead to another key's weights.
LIST = "SELECT CAST(json AS BLOB), crc FROM weights NOT INDEXED WHERE key = ?"
PIECES = "SELECT CAST(bytes AS BLOB) FROM piece WHERE tensor = ? ORDER BY place"
WHOLE = "SELECT CAST(bytes AS BLOB), crc FROM blob NOT INDEXED WHERE key = ?"
OLD = "CREATE TABLE blob (key TEXT PRIMARY KEY, bytes BLOB NOT NULL, crc INTEGER NOT NULL)"
SCHEMA = {statement for statement in (*EVENTS, *WEIGHTS, OLD) if statement.startswith("CREATE")}


class RowStore(ABC):
    """A `ledger.Store` on an SQLite database; subclasses provide the connection."""

    def __init__(self) -> None:
        self._sums: dict[int, int] = {}  # of the events read and written, by number

    def append(self, event: Event, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Store `event` and `weights`: everything or nothing."""
        self.extend([event], weights)

    def extend(self, events: Sequence[Event], weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Store `events` and `weights`: everything or nothing."""
        rows = [(event.seq, text := _text(event), zlib.crc32(text.encode())) for event in events]
        with self._transaction() as database:
            last = database.execute(LAST).fetchone() or (-1, None)
            if last[0] != rows[0][0] - 1 or self._sums.get(last[0], last[1]) != last[1]:
                raise SessionFileError(
                    f"{self} does not end with the event before {rows[0][0]}: another program "
                    "writes to the same session, or another file has taken its place. Nothing was "
                    "written. Close one of them, then resume with Session.open(...)."
                )
            database.executemany("INSERT INTO event VALUES (?, ?, ?)", rows)
            if weights:
                database.execute(MARK)
                if "weights" not in _tables(database):
                    for statement in WEIGHTS:
                        database.execute(statement)
            for key, tensors in weights.items():
                listed = {name: _keep(database, tensor) for name, tensor in tensors.items()}
                text = json.dumps(listed)
                database.execute(
                    "INSERT OR REPLACE INTO weights VALUES (?, ?, ?)",
                    (key, text, zlib.crc32(text.encode())),
                )
        self._sums |= {seq: crc for seq, _, crc in rows}

    def events(self) -> list[Event]:
        """All events so far, in order."""
        with self._connection() as database:
            rows = database.execute(EVENT).fetchall()
        self._sums = {seq: crc for seq, _, crc in rows}
        return [self._event(place, *row) for place, row in enumerate(rows)]

    def weights(self, key: str) -> dict[str, Tensor]:
        """The weights stored under `key`, in new memory."""
        with self._connection() as database:
            tables = _tables(database)
            for table, select, read in (
                ("weights", LIST, self._listed),
                ("blob", WHOLE, self._whole),
            ):
                rows = database.execute(select, (key,)).fetchall() if table in tables else []
                if not rows:
                    continue
                if len(rows) > 1 or zlib.crc32(rows[0][0]) != rows[0][1]:
                    raise self._damaged(f"the weights {key!r} are not what was written")
                try:
                    return read(database, rows[0][0])
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    raise self._damaged(f"the weights {key!r}: {error}") from None
        raise self._damaged(f"it holds no weights {key!r}")

    @staticmethod
    def _listed(database: sqlite3.Connection, text: bytes) -> dict[str, Tensor]:
        weights = {}
        for name, (tensor, kind, shape) in dict(json.loads(text)).items():
            data = bytearray()
            for (piece,) in database.execute(PIECES, (tensor,)):
                data += piece
            if content_hash(kind, shape, data) != tensor:
                raise ValueError(f"{name} is corrupted")
            weights[name] = tensor_of(kind, shape, data)
        return weights

    @staticmethod
    def _whole(database: sqlite3.Connection, data: bytes) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return {name: tensor.clone() for name, tensor in load(data).items()}
        except SafetensorError as error:
            raise ValueError(str(error)) from None

    def _event(self, place: int, seq: int, text: bytes, crc: int) -> Event:
        if seq != place:
            raise self._damaged(f"event {place} is missing")
        if zlib.crc32(text) != crc:
            raise self._damaged(f"event {seq} is corrupted")
        try:
            event = revive(json.loads(text))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise SessionFileError(
                f"{self}: event {seq} cannot be understood ({error!r}); a newer prunelab may "
                "have written it. Open it with that version."
            ) from None
        if not isinstance(event, Event):
            raise self._damaged(f"row {seq} is not an event")
        return event

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as database:
            database.execute("PRAGMA synchronous = EXTRA")
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")

    @abstractmethod
    def _connection(self) -> AbstractContextManager[sqlite3.Connection]:
        """A connection for one use by one thread; errors are raised as `SessionFileError`."""

    @abstractmethod
    def _damaged(self, found: str) -> SessionFileError:
        """The error for damage: `found` describes it."""


def _text(event: Event) -> str:
    """The text of an event that can be read again."""
    try:
        text = json.dumps(thaw(event))
        revive(json.loads(text))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidValue(
            f"The event {type(event).__name__} holds what no session file can: {error}. Parameters "
            "and carry of a method are numbers, texts, and lists and mappings of them."
        ) from None
    return text


def _tables(database: sqlite3.Connection) -> set[str]:
    return {name for (name,) in database.execute("SELECT name FROM sqlite_master")}


def _keep(database: sqlite3.Connection, tensor: Tensor) -> tuple[str, str, list[int]]:
    """Store a tensor unless it is already stored; returns its name, type and shape."""
    kind, shape, data = raw(tensor)
    name = content_hash(kind, shape, data)
    if database.execute("SELECT 1 FROM piece WHERE tensor = ?", (name,)).fetchone() is None:
        database.executemany(
            "INSERT INTO piece VALUES (?, ?, ?)",
            # one empty piece for a tensor without elements
            ((name, at, data[at : at + PIECE]) for at in range(0, max(len(data), 1), PIECE)),
        )
    return name, kind, shape
