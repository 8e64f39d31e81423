"""Parts of a pass over batches: together they are the pass, and each reads its own images only."""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import prunelab as pl
from prunelab.data.shuffling import part_of, shuffled
from prunelab.data.splits import Splits


class Numbers(Dataset[Any]):
    """Remembers which were read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 22

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        self.read.append(place)
        return torch.full((1,), float(place)), place


def labels(batches: Any) -> list[list[int]]:
    return [batch[1].tolist() for batch in batches]


@pytest.mark.parametrize("parts", [1, 2, 3, 9])
@pytest.mark.parametrize("seed", [None, 5])
def test_parts_are_the_pass_and_read_their_own(parts: int, seed: int | None) -> None:
    numbers = Numbers()
    loader = DataLoader(numbers, batch_size=4)

    def part(i: int, n: int) -> list[list[int]]:
        found = part_of(loader, i, n) if seed is None else shuffled(loader, seed, i, n)
        return labels(found)

    whole = part(0, 1)
    each = []
    for i in range(parts):
        numbers.read.clear()
        each.append(part(i, parts))
        assert sorted(numbers.read) == sorted(chain.from_iterable(each[-1]))
    rows = zip_longest(*each)
    assert [batch for row in rows for batch in row if batch is not None] == whole
    assert sorted(chain.from_iterable(whole)) == list(range(22))


@pytest.mark.parametrize(
    "own", [lambda n: DataLoader(n, 4, shuffle=True), lambda n: [*DataLoader(n, 4)]]
)
def test_batches_in_an_order_of_their_own_keep_it(own: Any) -> None:
    batches = own(Numbers())
    torch.manual_seed(3)
    whole = labels(batches)
    torch.manual_seed(3)
    assert labels(part_of(batches, 1, 2)) == whole[1::2]


def test_a_session_reads_its_part() -> None:
    numbers = Numbers()
    loader = DataLoader(numbers, batch_size=4)
    splits = Splits(pl.Data(loader, loader), seed=0)
    whole = labels(splits.shuffled(7))
    numbers.read.clear()
    assert labels(splits.shuffled(7).part(1, 2)) == whole[1::2]
    assert len(numbers.read) == len(list(chain.from_iterable(whole[1::2])))
    assert labels(splits.drawn(loader).part(0, 3)) == labels(loader)[::3]


def test_a_shuffle_of_your_own_is_asked_as_before() -> None:
    class Own(pl.Data):
        def shuffled(self, seed: int) -> Any:  # type: ignore[override]
            return iter([(torch.zeros(1), torch.tensor([seed + place])) for place in range(4)])

    splits = Splits(Own([(torch.zeros(1, 1), torch.tensor([0]))], [(torch.zeros(1, 1), 0)]), 0)
    assert labels(splits.shuffled(5).part(1, 2)) == [[6], [8]]
