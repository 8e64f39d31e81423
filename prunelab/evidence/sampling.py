"""Samples of contributions, where all positions of every image are more than is needed.

At a few positions of every image with all outputs there; or as ThiNet does, a few images of every
class and a few scalars of each. A scalar is one output channel at one position, both drawn at
random, so it is the sum of one number per input channel (Luo, Wu, Lin; ICCV 2017; released code: 10
images a class, 10 scalars an image).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from prunelab.errors import BadData
from prunelab.evidence.gram_accumulators import (
    Account,
    ByContribution,
    Held,
    account_of,
    by_unit,
    by_units,
    contributions,
    summed,
)
from prunelab.evidence.patch_correlation import lags_of, mirrored
from prunelab.graph.labels.layer_calls import Call, Conv


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """How many positions, or `scalars`, of each image's output are drawn, and from what."""

    number: int
    generator: torch.Generator
    scalars: bool = False


def sampled_account(
    call: Call, columns: Tensor, count: int, scale: Tensor | None, sample: Sample
) -> Account:
    """An empty account for calls like this one that looks at a sample.

    What it gives is scaled to estimate the sums over everything. An exact account where that is
    no more work.
    """
    if sample.scalars:
        return OfScalars(call, columns, count, scale, sample)
    exact = account_of(call, columns, count, scale)
    if isinstance(exact, ByContribution):
        return exact
    kernel = tuple(exact.weight.shape[2:])
    blocks = prod(kernel) * (prod(kernel) + 1) // 2  # of every patch's products
    if lags_of(tuple(call.x.shape[2:]), kernel, call.conv).products <= blocks * sample.number:
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
        entries = prod(self.kernel)
        self._pairs = torch.triu_indices(entries, entries)  # of kernel entries, a <= b
        channels = self.weight.shape[1]
        self._blocks = self.weight.new_zeros(self._pairs.shape[1], channels, channels)
        self._entries = self.weight.new_zeros(channels, entries)

    def add(self, x: Tensor) -> None:
        """Take in one call."""
        places = _places(x, self.weight, self.conv)
        _, place = _drawn(len(x), places, self.sample.number, self.sample.generator)
        found = patches_at(x.to(self.weight.dtype), self.kernel, self.conv, place.view(len(x), -1))
        share = self.sample.number / places
        found = found.permute(3, 1, 0, 2).flatten(2)  # [k, c, patches]
        self._entries += found.sum(2).T / share
        a, b = (found[index] for index in self._pairs.to(x.device))
        self._blocks.baddbmm_(a, b.transpose(1, 2), alpha=1 / share)
        self.rows += len(x) * places

    @property
    def gram(self) -> Tensor:
        """G, estimated."""
        by_entry = self.weight.flatten(2) if self.kernel else self.weight[..., None]
        by_entry = by_entry.permute(2, 1, 0).contiguous()  # [k, c, out]
        half = torch.zeros_like(self._blocks[0])
        for (a, b), block in zip(self._pairs.T.tolist(), self._blocks, strict=True):
            half.addcmul_(by_entry[a] @ by_entry[b].T, block, value=0.5 if a == b else 1)
        return by_units(half.double(), self.columns, self.count)

    @property
    def sums(self) -> Tensor:
        """The sums, estimated."""
        return summed(self._entries.double(), self.weight, self.columns, self.count)

    @property
    def sound(self) -> bool:
        """Whether all that was drawn was a number."""
        return bool(torch.isfinite(self._blocks.diagonal(dim1=1, dim2=2)).all())


class OfScalars(Held):
    """What each unit contributes to a few scalars of every image's output; sums [count, 1]."""

    def __init__(
        self, call: Call, columns: Tensor, count: int, scale: Tensor | None, sample: Sample
    ) -> None:
        super().__init__(call, columns, count, scale, out=1)
        self.sample = sample

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
    axes = [*zip(x.shape[2:], kernel, conv.stride, conv.padding, conv.dilation, strict=True)]
    counts = [(h + 2 * pad - d * (k - 1) - 1) // stride + 1 for h, k, stride, pad, d in axes]
    where = torch.zeros(*place.shape, 1, dtype=torch.int64)  # in the flattened image
    inside = torch.ones(*place.shape, 1, dtype=torch.bool)
    outputs = torch.unravel_index(place, counts)
    for (size, taps, stride, pad, dilation), output in zip(axes, outputs, strict=True):
        reads = (output * stride - pad)[..., None] + torch.arange(taps) * dilation
        here = (reads >= 0) & (reads < size)
        where = (where[..., None] * size + reads.clamp(0, size - 1)[..., None, :]).flatten(2)
        inside = (inside[..., None] & here[..., None, :]).flatten(2)
    index = where.flatten(1)[:, None].expand(-1, x.shape[1], -1)
    found = x.flatten(2).gather(2, index.to(x.device)).view(*x.shape[:2], *where.shape[1:])
    return found * inside[:, None].to(x)


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
