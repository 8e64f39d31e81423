"""Cache a function of one object, held weakly."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

Key = TypeVar("Key")
Result = TypeVar("Result")


def weak_cache(function: Callable[[Key], Result]) -> Callable[[Key], Result]:
    """Cache `function` for each object that is alive; for immutable objects only."""
    known: WeakKeyDictionary[Key, Result] = WeakKeyDictionary()

    @wraps(function)
    def cached(key: Key) -> Result:
        if key not in known:
            known[key] = function(key)
        return known[key]

    return cached
