"""The ledger: the events of a session in a store, and the state computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from prunelab.ledger.events import Event
from prunelab.ledger.state import State, advance, fold

if TYPE_CHECKING:
    from torch import Tensor


class Store(Protocol):
    """Storage of events and weights, in a file or temporary (`store.py`)."""

    def append(self, event: Event, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Store `event` and `weights`, by key and name: everything or nothing."""
        ...

    def events(self) -> list[Event]:
        """All events so far, in order."""
        ...

    def weights(self, key: str) -> dict[str, Tensor]:
        """The weights stored under `key`, in new memory."""
        ...


class Ledger:
    """The events of a session, in order; `append` is the only way to change it.

    An event and its weights are stored together or not at all.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._events = store.events()
        self._state = fold(self._events)

    @property
    def state(self) -> State:
        """The fold over all events."""
        return self._state

    def append(
        self, event: Event, weights: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> Event:
        """Store `event` with its `weights`, by key, and update the state."""
        state = advance(self._state, event)
        self._store.append(event, weights or {})
        self._events.append(event)
        self._state = state
        return event

    def weights(self, key: str) -> dict[str, Tensor]:
        """The weights stored under `key`, by name, in new memory."""
        return self._store.weights(key)

    def __iter__(self) -> Iterator[Event]:
        return iter(tuple(self._events))

    def __len__(self) -> int:
        return len(self._events)

    def __getitem__(self, index: int) -> Event:
        return self._events[index]
