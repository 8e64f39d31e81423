"""The splits of a session's data, read so that every call yields the same batches.

Users' loaders draw from private random generators; the global ones are not touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from prunelab.data.batches import batch_size
from prunelab.data.data import Data
from prunelab.data.private_random import privately
from prunelab.data.shuffling import part_of
from prunelab.data.unusable import usable
from prunelab.errors import BadData, InvalidValue, NotFinite


@dataclass(frozen=True, slots=True)
class Unusable:
    """How many of `seen` training images hold NaN or infinity, and how many are blank."""

    seen: int = 0
    broken: int = 0
    blank: int = 0

    def __bool__(self) -> bool:
        return self.broken + self.blank > 0

    def __str__(self) -> str:
        parts = [f"{self.broken} hold NaN or infinity"] * (self.broken > 0)
        parts += [f"{self.blank} are blank"] * (self.blank > 0)
        return (
            f"Of {self.seen:,} training images {' and '.join(parts)}: they are excluded from "
            "measuring, solving and training."
        )


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over batches; `part(i, n)` gives the i-th of every n of them, and reads no others.

    That is, where their loader allows it.
    """

    part: Callable[[int, int], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.part(0, 1)


class Splits:
    """`data` with its splits, and the `seed` of all random draws in them.

    `unusable` counts the images excluded in the longest pass over the training images so far.
    """

    def __init__(self, data: Any, seed: int) -> None:
        self.data = data
        self.seed = seed
        self.unusable = Unusable()

    def sample(self) -> Any:
        """The first training batch."""
        for batch in _privately(lambda: self._epoch(self.seed), self.seed):
            return batch
        raise BadData("data.train has no batches; give at least one.")

    def images(self, images: int) -> Iterator[Any]:
        """Training batches up to `images` images, the same ones at every call.

        Their order is drawn from `seed` unless the data fixes it: the first images of a folder are
        often all of one class.
        """
        return self._usable(self.samples(images))

    def samples(self, images: int) -> Iterator[Any]:
        """The same batches, with unusable images."""
        return _privately(lambda: _take(self._epoch(self.seed), images), self.seed)

    def validation(self, images: int) -> Iterator[Any]:
        """Validation batches up to `images` images, the same ones at every call."""
        return _privately(lambda: _take(self.data.val, images), self.seed)

    def pictures(self, places: Collection[int]) -> dict[int, np.ndarray]:
        """The validation images at these indices."""
        found: dict[int, np.ndarray] = {}
        start = 0
        for batch in _privately(lambda: self.data.val, self.seed):
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(x, Tensor) or x.ndim != 4:
                raise InvalidValue(
                    "pictures needs batches of images [N, channels, height, width] or "
                    "(images, ...); the validation batches are of another kind."
                )
            for place in places:
                if start <= place < start + len(x):
                    found[place] = x[place - start].detach().cpu().numpy()
            start += len(x)
            if len(found) == len(places):
                break
        if missing := sorted(set(places) - set(found)):
            raise InvalidValue(
                f"There is no validation image {missing[0]}: they are numbered 0 to {start - 1}."
            )
        return found

    def drawn(self, batches: Iterable[Any]) -> Pass:
        """The items of `batches`, the same at every call."""

        def part(i: int, n: int) -> Iterator[Any]:
            return _privately(lambda: batches if n == 1 else part_of(batches, i, n), self.seed)

        return Pass(part)

    def shuffled(self, seed: int) -> Pass:
        """One epoch of training batches, shuffled by `seed`."""
        return Pass(lambda i, n: self._usable(_privately(lambda: self._epoch(seed, i, n), seed)))

    def _epoch(self, seed: int, part: int = 0, parts: int = 1) -> Iterator[Any]:
        if getattr(type(self.data), "shuffled", None) is Data.shuffled:
            return self.data.shuffled(seed, part, parts)
        shuffled = getattr(self.data, "shuffled", lambda _: iter(self.data.train))
        return islice(shuffled(seed), part, None, parts)

    def _usable(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches without unusable images, which `unusable` counts."""
        seen, found, some = 0, Counter[str](), False
        for batch in batches:
            left, faults = usable(batch)
            some = some or left is not None
            seen += batch_size(batch)
            found += faults
            if seen >= self.unusable.seen:
                self.unusable = Unusable(seen, found["nan"], found["blank"])
            if left is not None:
                yield left
        if seen and not some:
            raise NotFinite(
                f"All {seen:,} training images read hold NaN or infinity, so they are unusable. "
                "Check how they are read and normalised."
            )

    def seed_of(self, event: int) -> int:
        """The seed of all random draws of event number `event`."""
        return (self.seed * 1_000_003 + event) % 2**63


def _take(batches: Iterable[Any], images: int) -> Iterator[Any]:
    """Whole batches until `images` images are reached."""
    count = 0
    for batch in batches:
        yield batch
        count += batch_size(batch)
        if count >= images:
            return


def _privately(make: Callable[[], Iterable[Any]], seed: int) -> Iterator[Any]:
    """The items of `make()`, with random numbers from a private generator."""

    def items() -> Generator[Any, None, None]:
        yield from make()

    return privately(items(), seed)
