"""The splits of a session's data, drawn so that every call gives the same batches.

Users' loaders draw from random generators of their own; nothing here touches the caller's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from prunelab.data.batches import batch_size, usable
from prunelab.data.private_random import privately
from prunelab.errors import BadData, InvalidValue, NotFinite


@dataclass(frozen=True, slots=True)
class Unusable:
    """Of `seen` training images how many hold NaN or infinity, and how many are all one colour."""

    seen: int = 0
    broken: int = 0
    blank: int = 0

    def __bool__(self) -> bool:
        return self.broken + self.blank > 0

    def __str__(self) -> str:
        parts = [f"{self.broken} hold NaN or infinity"] * (self.broken > 0)
        parts += [f"{self.blank} are blank"] * (self.blank > 0)
        return (
            f"Of {self.seen:,} training images {' and '.join(parts)}: they are left out of all "
            "that is measured, solved and trained on."
        )


class Splits:
    """`data` with its splits, and `seed` for what they draw.

    `unusable` are the images that were left out of the longest look at the training images so far.
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

        In an order drawn from `seed` where the data have none of their own: the first of a folder
        of images are often all of one class.
        """
        return self._usable(_privately(lambda: _take(self._epoch(self.seed), images), self.seed))

    def validation(self, images: int) -> Iterator[Any]:
        """Validation batches up to `images` images, the same ones at every call."""
        return _privately(lambda: _take(self.data.val, images), self.seed)

    def pictures(self, places: Collection[int]) -> dict[int, np.ndarray]:
        """The validation images at these places."""
        found: dict[int, np.ndarray] = {}
        start = 0
        for batch in _privately(lambda: self.data.val, self.seed):
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(x, Tensor) or x.ndim != 4:
                raise InvalidValue(
                    "pictures are read from batches of images [N, channels, height, width] or "
                    "(images, ...); the validation batches hold something else."
                )
            for place in places:
                if start <= place < start + len(x):
                    found[place] = x[place - start].detach().cpu().numpy()
            start += len(x)
            if len(found) == len(places):
                break
        return found

    def drawn(self, batches: Iterable[Any]) -> Iterator[Any]:
        """What `batches` gives, the same at every call."""
        return _privately(lambda: batches, self.seed)

    def shuffled(self, seed: int) -> Iterator[Any]:
        """One epoch of training batches, shuffled by `seed`."""
        return self._usable(_privately(lambda: self._epoch(seed), seed))

    def _epoch(self, seed: int) -> Iterator[Any]:
        shuffled = getattr(self.data, "shuffled", lambda _: iter(self.data.train))
        return iter(shuffled(seed))

    def _usable(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches without images that nothing can be learnt from; `unusable` counts them."""
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
                f"All {seen:,} training images looked at hold NaN or infinity; nothing can be "
                "learnt from them. Look for the fault in how they are read and normalised."
            )

    def seed_of(self, event: int) -> int:
        """The seed of whatever event number `event` draws at random."""
        return (self.seed * 1_000_003 + event) % 2**63


def _take(batches: Iterable[Any], images: int) -> Iterator[Any]:
    """Whole batches until `images` images have come."""
    count = 0
    for batch in batches:
        yield batch
        count += batch_size(batch)
        if count >= images:
            return


def _privately(make: Callable[[], Iterable[Any]], seed: int) -> Iterator[Any]:
    """The items of `make()`, each drawn from a generator of our own."""

    def items() -> Generator[Any, None, None]:
        yield from make()

    return privately(items(), seed)
