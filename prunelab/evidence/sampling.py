"""Samples of contributions, where all positions of every image are more than is needed.

At a few positions of every image with all outputs there; or as ThiNet does, a few images of every
class and a few scalars of each. A scalar is one output channel at one position, both drawn at
random, so it is the sum of one number per input channel (Luo, Wu, Lin; ICCV 2017; released code: 10
images a class, 10 scalars an image). May import calls, errors, accounts, lags.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.calls import Call, Conv
from prunelab.errors import BadData
from prunelab.evidence.accounts import (
    Account,
    ByContribution,
    account_of,
    by_unit,
    contributions,
    summed,
)
from prunelab.evidence.lags import BLOCK, lags_of, mirrored


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """How many positions, or `scalars`, of each image's output are drawn, and from what."""

    number: int
    generator: torch.Generator
    scalars: bool = False


def sampled_account(
    call: Call, columns: Tensor, count: int, scale: Tensor | None, sample: Sample
) -> Account:
    """An empty account for calls like this one that looks at a sample; exact if that is no more.

    What it gives is scaled to estimate the sums over everything.
    """
    if sample.scalars:
        return OfScalars(call, columns, count, scale, sample)
    exact = account_of(call, columns, count, scale)
    few = _places(call.x, exact.weight, call.conv) <= sample.number
    if few or isinstance(exact, ByContribution):
        return exact
    return AtPositions(call, columns, count, scale, sample)


class AtPositions(Account):
    """The second moment of the patches at a few positions of every image, drawn with replacement.

    Drawn once for all layers and outputs at a position, it knows G nine times better than as many
    scalars do (measured), for the work of one of them where kernels have one entry.
    """

    def __init__(
        self, call: Call, columns: Tensor, count: int, scale: Tensor | None, sample: Sample
    ) -> None:
        super().__init__(call, columns, count, scale)
        self.sample = sample
        self.kernel = tuple(self.weight.shape[2:])
        self._flat = self.weight.flatten(1)
        self._moment = self._flat.new_zeros(self._flat.shape[1], self._flat.shape[1])  # lower half
        self._entries = self._flat.new_zeros(self.weight.shape[1], prod(self.kernel))

    def add(self, x: Tensor) -> None:
        """Take in one call."""
        places = _places(x, self.weight, self.conv)
        _, place = _drawn(len(x), places, self.sample.number, self.sample.generator)
        found = patches_at(x.to(self.weight.dtype), self.kernel, self.conv, place.view(len(x), -1))
        share = self.sample.number / places
        flat = found.permute(1, 3, 0, 2).flatten(2) / share**0.5  # [c, k, patches]
        self._entries += flat.sum(2) / share**0.5
        flat = flat.flatten(0, 1)
        for start, stop in self._strips():
            self._moment[start:, start:stop].addmm_(flat[start:], flat[start:stop].T)
        self.rows += len(x) * places

    def _strips(self) -> Iterator[tuple[int, int]]:
        """The columns of the moment, in strips of whole channels."""
        step = max(1, BLOCK // prod(self.kernel)) * prod(self.kernel)
        for start in range(0, len(self._moment), step):
            yield start, min(start + step, len(self._moment))

    @property
    def gram(self) -> Tensor:
        """G, estimated."""
        entries = prod(self.kernel)
        channels = len(self._moment) // entries
        found = self.weight.new_zeros(channels, channels, dtype=torch.float64)
        for start, stop in self._strips():
            weights = self._flat[:, start:].T @ self._flat[:, start:stop]
            part = self._moment[start:, start:stop] * weights
            by_channel = part.view(-1, entries, (stop - start) // entries, entries).sum((1, 3))
            found[start // entries :, start // entries : stop // entries] = by_channel
        found = found.tril() + found.tril(-1).T
        return by_unit(by_unit(found, self.columns, self.count).T, self.columns, self.count)

    @property
    def sums(self) -> Tensor:
        """The sums, estimated."""
        return summed(self._entries.double(), self.weight, self.columns, self.count)

    @property
    def sound(self) -> bool:
        """Whether all that was drawn was a number."""
        return bool(torch.isfinite(self._moment.diagonal()).all())


class OfScalars(Account):
    """What each unit contributes to a few scalars of every image's output."""

    def __init__(
        self, call: Call, columns: Tensor, count: int, scale: Tensor | None, sample: Sample
    ) -> None:
        super().__init__(call, columns, count, scale)
        self.sample = sample
        self._gram = self.weight.new_zeros(count, count, dtype=torch.float64)
        self._sums = self._gram.new_zeros(count, 1)

    def add(self, x: Tensor) -> None:
        """Take in one call."""
        rows, scalars = sampled_rows(
            x.to(self.weight.dtype), self.weight, self.conv, self.columns, self.count,
            self.sample.number, self.sample.generator,
        )  # fmt: skip
        share = self.sample.number / scalars
        self._gram += mirrored(rows.T) / share
        self._sums += rows.sum(0, dtype=torch.float64)[:, None] / share
        self.rows += len(x) * scalars

    @property
    def gram(self) -> Tensor:
        """G, estimated."""
        return self._gram

    @property
    def sums(self) -> Tensor:
        """The sums over all outputs, estimated [count, 1]."""
        return self._sums

    @property
    def sound(self) -> bool:
        """Whether all that was drawn was a number."""
        return bool(torch.isfinite(self._gram.diagonal()).all())


def sampled_rows(
    x: Tensor,
    weight: Tensor,
    conv: Conv | None,
    columns: Tensor,
    count: int,
    number: int,
    generator: torch.Generator,
) -> tuple[Tensor, int]:
    """What each unit contributes to `number` scalars of every input's output [rows, count].

    And how many scalars an output has. `columns` and `count` are as in `Account`. Drawn with
    replacement, as released.
    """
    if conv is not None and conv.transposed:
        z = contributions(x, weight, conv, columns, count).flatten(2).permute(1, 2, 0)
        image, scalar = _drawn(len(z), z.shape[1], number, generator)
        return z[image, scalar], z.shape[1]
    scalars = _places(x, weight, conv) * len(weight)
    _, scalar = _drawn(len(x), scalars, number, generator)
    place, output = (a.view(len(x), -1) for a in (scalar // len(weight), scalar % len(weight)))
    found = patches_at(x, tuple(weight.shape[2:]), conv, place)
    kernels = weight.flatten(2) if weight.ndim > 2 else weight[..., None]
    by_channel = torch.einsum("ncpk,npck->cnp", found, kernels[output.to(x.device)])
    return by_unit(by_channel.flatten(1), columns, count).T, scalars


def _places(x: Tensor, weight: Tensor, conv: Conv | None) -> int:
    """How many positions a layer's output has for one input."""
    return lags_of(tuple(x.shape[2:]), tuple(weight.shape[2:]), conv).outputs


def patches_at(x: Tensor, kernel: tuple[int, ...], conv: Conv | None, place: Tensor) -> Tensor:
    """The patches of x [N, c, *space] that the outputs `place` [N, n] read [N, c, n, k]."""
    if conv is None:
        return x[:, :, None, None].expand(-1, -1, place.shape[1], -1)
    x = F.pad(x, [pad for size in reversed(conv.padding) for pad in (size, size)])
    counts, first, entries = [], torch.zeros_like(place), torch.zeros(1, dtype=torch.int64)
    axes = [*zip(x.shape[2:], kernel, conv.stride, conv.dilation, strict=True)]
    for size, taps, stride, dilation in axes:
        counts.append((size - dilation * (taps - 1) - 1) // stride + 1)
    for (size, taps, stride, dilation), output in zip(
        axes, torch.unravel_index(place, tuple(counts)), strict=True
    ):
        first = first * size + output * stride
        entries = (entries[:, None] * size + torch.arange(taps) * dilation).flatten()
    where = (first[..., None] + entries).flatten(1).to(x.device)
    found = x.flatten(2).gather(2, where[:, None].expand(-1, x.shape[1], -1))
    return found.view(*x.shape[:2], *place.shape[1:], -1)


def _drawn(
    images: int, scalars: int, number: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """For each of `images` inputs which of its `scalars`, `number` times."""
    drawn = torch.randint(scalars, (images * number,), generator=generator)
    return torch.arange(images).repeat_interleave(number), drawn


def stratified(batches: Iterable[Any], per_class: int) -> Iterator[Any]:
    """The first `per_class` images of every class that come, as batches of (images, labels).

    Reads `batches` to the end, as the classes are not known before. Raises `BadData` for batches
    without class indices.
    """
    seen: Counter[int] = Counter()
    for batch in batches:
        labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
        if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
            raise BadData(
                "Images can be counted by class only in batches of (images, class indices); "
                "leave per_class=None for other batches."
            )
        chosen = []
        for index, label in enumerate(labels.tolist()):
            if seen[label] < per_class:
                seen[label] += 1
                chosen.append(index)
        if chosen:
            yield batch[0][chosen], labels[chosen]
