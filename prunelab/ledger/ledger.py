"""The ledger: the events of a session in a store, and the state computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING, Protocol

from prunelab.errors import PruneLabError, SessionFileError
from prunelab.ledger.events import Event
from prunelab.ledger.state import State, advance, fold

if TYPE_CHECKING:
    from torch import Tensor


class Store(Protocol):
    """Storage of events and weights, in a file or temporary (`store.py`)."""

    def extend(self, events: Sequence[Event], weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Store `events` and `weights`, by key and name: everything or nothing."""
        ...

    def events(self) -> list[Event]:
        """All events so far, in order."""
        ...

    def weights(self, key: str) -> dict[str, Tensor]:
        """The weights stored under `key`, in new memory."""
        ...


@contextmanager
def understood(source: object) -> Iterator[None]:
    """Raise `SessionFileError` where what was read from `source` is no session's, though whole.

    Sums are right in a file that somebody has written for a purpose, too.
    """
    try:
        yield
    except PruneLabError:
        raise
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        raise SessionFileError(
            f"{source} holds what no session can have written: {type(error).__name__}: "
            f"{error!s:.200}. Take a copy of it from a backup."
        ) from error


class Ledger:
    """The events of a session, in order; `extend` is the only way to change it.

    Events given together, and their weights, are stored together or not at all.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._events = store.events()
        with understood(store):
            self._state = fold(self._events)

    @property
    def state(self) -> State:
        """The fold over all events."""
        return self._state

    def append(
        self, event: Event, weights: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> Event:
        """Store `event` with its `weights`, by key, and update the state."""
        self.extend([event], weights or {})
        return event

    def extend(self, events: Sequence[Event], weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Store `events` with their `weights`, by key, and update the state."""
        state, all_events = reduce(advance, events, self._state), [*self._events, *events]
        self._store.extend(events, weights)
        self._events, self._state = all_events, state  # nothing here can fail

    def __str__(self) -> str:
        return str(self._store)

    def weights(self, key: str) -> dict[str, Tensor]:
        """The weights stored under `key`, by name, in new memory."""
        return self._store.weights(key)

    def __iter__(self) -> Iterator[Event]:
        return iter(tuple(self._events))

    def __len__(self) -> int:
        return len(self._events)

    def __getitem__(self, index: int) -> Event:
        return self._events[index]
