"""Orders of batches: drawn from a seed, and in parts that several processes share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from prunelab.values.given import as_annotated


@as_annotated
def shuffled(batches: Iterable[Any], seed: int, part: int = 0, parts: int = 1) -> Iterator[Any]:
    """One pass over `batches` in an order drawn from `seed`, or over one of several parts of it.

    A DataLoader in sequential or random order is shuffled by a private generator. A custom sampler,
    an iterable dataset, and batches that are not a DataLoader's keep their own order.
    """
    return part_of(batches, part, parts, torch.Generator().manual_seed(seed))


def part_of(
    batches: Iterable[Any], part: int, parts: int, generator: torch.Generator | None = None
) -> Iterator[Any]:
    """Every batch whose number leaves `part` when divided by `parts`.

    Of a DataLoader in an order of its own or, with a `generator`, a random one, no others are read.
    """
    if not (isinstance(batches, DataLoader) and _reorderable(batches)):
        return islice(batches, part, None, parts)
    order, dataset = batches.sampler, batches.dataset
    if generator is not None:
        order = RandomSampler(dataset, generator=generator)  # type: ignore[arg-type]
    elif type(order) is not SequentialSampler:
        return islice(batches, part, None, parts)
    every = BatchSampler(order, batches.batch_size or 1, batches.drop_last)
    return iter(
        DataLoader(
            batches.dataset,
            batch_sampler=_Part(every, part, parts),
            num_workers=batches.num_workers,
            collate_fn=batches.collate_fn,
            pin_memory=batches.pin_memory,
            timeout=batches.timeout,
            worker_init_fn=batches.worker_init_fn,
            multiprocessing_context=batches.multiprocessing_context,
            generator=generator or batches.generator,
        )
    )


@dataclass(frozen=True)
class _Part(Sampler[list[int]]):
    """Every so many of a sampler's batches, in its order."""

    every: BatchSampler
    part: int
    parts: int

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self.every, self.part, None, self.parts)

    def __len__(self) -> int:
        return len(range(self.part, len(self.every), self.parts))


def _reorderable(loader: DataLoader[Any]) -> bool:
    """Whether its samples may be put in another order."""
    sampler = loader.sampler
    plain = type(sampler) is SequentialSampler
    drawn = type(sampler) is RandomSampler and not sampler.replacement and _all_of(sampler)
    return (
        not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
        and (plain or drawn)
    )


def _all_of(sampler: RandomSampler) -> bool:
    return sampler.num_samples == len(sampler.data_source)
