"""The ledger: the events of a session in a store, and the state that follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prunelab.ledger.events import Event
from prunelab.ledger.state import State, advance, fold


class Store(Protocol):
    """Where a ledger keeps its events and weights: `MemoryStore`, or a file (`store.py`)."""

    def append(self, event: Event, blobs: dict[str, bytes]) -> None:
        """Keep `event` and `blobs`: all of it, or nothing."""
        ...

    def events(self) -> list[Event]:
        """All events so far, in order."""
        ...

    def blob(self, key: str) -> bytes:
        """The bytes kept under `key`."""
        ...


class Ledger:
    """The events of a session, in order; `append` is the only change.

    An event and the weights it brings are stored together or not at all.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._events = store.events()
        self._state = fold(self._events)

    @property
    def state(self) -> State:
        """The fold over all events."""
        return self._state

    def append(self, event: Event, blobs: dict[str, bytes] | None = None) -> Event:
        """Store `event` with the weights in `blobs`; the state follows."""
        state = advance(self._state, event)
        self._store.append(event, blobs or {})
        self._events.append(event)
        self._state = state
        return event

    def blob(self, key: str) -> bytes:
        """Stored weights (safetensors bytes)."""
        return self._store.blob(key)

    def __iter__(self) -> Iterator[Event]:
        return iter(tuple(self._events))

    def __len__(self) -> int:
        return len(self._events)

    def __getitem__(self, index: int) -> Event:
        return self._events[index]


class MemoryStore:
    """Keeps everything in memory: for sessions without a file."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._blobs: dict[str, bytes] = {}

    def append(self, event: Event, blobs: dict[str, bytes]) -> None:
        """Keep `event` and `blobs`."""
        self._events.append(event)
        self._blobs.update(blobs)

    def events(self) -> list[Event]:
        """All events so far."""
        return list(self._events)

    def blob(self, key: str) -> bytes:
        """The bytes stored under `key`."""
        return self._blobs[key]
