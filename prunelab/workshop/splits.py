"""The splits of a session's data, drawn so that every call gives the same batches.

Users' loaders draw from random generators of their own; nothing here touches the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.errors import BadData, InvalidValue
from prunelab.evidence.batch import batch_size, device_of


class Splits:
    """`data` with its splits, `seed` for what they draw, and the network `base` that they feed."""

    data: Any
    seed: int
    base: nn.Module

    def sample(self) -> Any:
        """The first training batch."""
        for batch in self.images(1):
            return batch
        raise BadData("data.train has no batches; give at least one.")

    def inputs_of(self, batch: Any) -> Any:
        """One input of a batch, as the network takes it."""
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        return x[:1].to(device_of(self.base)) if isinstance(x, Tensor) else x

    def images(self, images: int) -> Iterator[Any]:
        """Training batches up to `images` images, the same ones at every call."""
        return _privately(lambda: _take(self.data.train, images), self.seed)

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

    def shuffled(self, seed: int) -> Iterator[Any]:
        """One epoch of training batches, shuffled by `seed`."""
        shuffled = getattr(self.data, "shuffled", lambda _: iter(self.data.train))
        return _privately(lambda: shuffled(seed), seed)

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


@contextmanager
def private_rng(seed: int) -> Iterator[None]:
    """The user's loaders and functions draw from here; the caller's generators stay untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _privately(make: Callable[[], Iterable[Any]], seed: int) -> Iterator[Any]:
    """The items of `make()`, each drawn under a generator of our own."""
    with private_rng(seed):
        inside = torch.get_rng_state()
    iterator: Iterator[Any] | None = None
    while True:
        outside = torch.get_rng_state()
        torch.set_rng_state(inside)
        try:
            if iterator is None:
                iterator = iter(make())
            item = next(iterator)
        except StopIteration:
            return
        finally:
            inside = torch.get_rng_state()
            torch.set_rng_state(outside)
        yield item
