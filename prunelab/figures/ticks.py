"""The ticks of an axis."""

from __future__ import annotations

import math


def round_numbers(low: float, high: float, room: float) -> list[float]:
    """Round numbers from `low` to `high`, about `room` of them and at most seven."""
    step = (high - low) / max(2.0, min(room, 7.0))
    if step <= 0:
        return [low]
    size = 10.0 ** math.floor(math.log10(step))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= step * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


def decades(low: float, high: float, room: float) -> list[float]:
    """Round numbers between 10^low and 10^high, about `room` of them."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        values = [f * 10.0**d for d in powers for f in factors]
        values = [value for value in values if low <= math.log10(value) <= high]
        if len(values) >= min(3, room):
            break
    every = -(-len(values) // max(2, int(room)))
    return values[:: max(1, every)]
