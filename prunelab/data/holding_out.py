"""Which samples are held out to judge a fit by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunelab.data.batches import batch_size, divisible, selected

HOLD = 4  # one of this many samples is held out


def held_out(start: int, size: int) -> Tensor:
    """Mask of the samples that are held out to judge a fit [size]; the first is number `start`."""
    return torch.arange(start, start + size) % HOLD == HOLD - 1


def part(batches: Iterable[Any], held: bool) -> Iterator[Any]:
    """The batches without the held-out samples or, with `held`, those samples alone."""
    return (some.batch for some in apart(batches) if some.held == held)


class Part(NamedTuple):
    """The held-out samples of a batch, or the others.

    The batch holds the samples from `start` up to, but not including, `stop`.
    """

    start: int
    stop: int
    batch: Any
    held: bool


def apart(batches: Iterable[Any], hold: bool = True) -> Iterator[Part]:
    """Yield, for each batch, the samples that are not held out and those that are.

    Without `hold` none are. Of indivisible batches, one in HOLD is held out as a whole.
    """
    start = undivided = 0
    for batch in batches:
        stop = start + batch_size(batch)
        held = held_out(start, stop - start) & hold
        if not divisible(batch):
            held[:] = bool(held_out(undivided, 1)) and hold
            undivided += 1
        for judges in (False, True):
            wanted = held == judges
            if bool(wanted.any()):
                some = batch if bool(wanted.all()) else selected(batch, wanted)
                yield Part(start, stop, some, judges)
        start = stop
