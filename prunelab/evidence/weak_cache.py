"""Work done once for what it is asked about, and kept for as long as that is."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


def once(work: Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
    """`work` that remembers its answer for every object alive; for immutable objects only."""
    known: WeakKeyDictionary[Asked, Answer] = WeakKeyDictionary()

    @wraps(work)
    def answered(asked: Asked) -> Answer:
        if asked not in known:
            known[asked] = work(asked)
        return known[asked]

    return answered
