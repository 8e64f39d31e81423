"""The history of a session: events, predictions and notes, their store, and their wording."""

from prunelab.ledger.events import (
    Adjusted,
    Approved,
    Began,
    Event,
    Noted,
    Proposed,
    Refit,
    Rejected,
    Repaired,
    Returned,
    Step,
    Tuned,
    Undone,
)
from prunelab.ledger.ledger import Ledger, Store
from prunelab.ledger.state import Point, State, fold
from prunelab.ledger.store import FileStore, TemporaryStore

__all__ = [
    "Adjusted",
    "Approved",
    "Began",
    "Event",
    "FileStore",
    "Ledger",
    "Noted",
    "Point",
    "Proposed",
    "Refit",
    "Rejected",
    "Repaired",
    "Returned",
    "State",
    "Step",
    "Store",
    "TemporaryStore",
    "Tuned",
    "Undone",
    "fold",
]
