"""G estimated from a few output positions of every image, instead of all of them.

The positions are drawn at random, with replacement, and all output channels are used at each. On
resnet50 this takes half the time of the exact G (`measure(positions=)`).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from prunelab.errors import InvalidValue
from prunelab.evidence.gram_accumulators import ByContribution, GramAccumulator, accumulator_of
from prunelab.evidence.patch_correlation import correlations_of
from prunelab.evidence.unit_sums import by_units, summed
from prunelab.graph.labels.layer_calls import Call, Conv

CreateAccumulator = Callable[[Call, Tensor, int, Tensor | None], GramAccumulator]


def few_positions(number: int, seed: int) -> CreateAccumulator:
    """What creates accumulators that look at `number` positions of every image, drawn from `seed`.

    Their sums are scaled to estimate those over all positions. Where the exact accumulator costs
    no more, that one is created. Raises `InvalidValue` for fewer than one position.
    """
    if number < 1:
        raise InvalidValue(f"positions must be at least 1, not {number!r}; None measures all.")
    generator = torch.Generator().manual_seed(seed)

    def create(call: Call, columns: Tensor, count: int, scale: Tensor | None) -> GramAccumulator:
        exact = accumulator_of(call, columns, count, scale)
        if isinstance(exact, ByContribution):
            return exact
        kernel = tuple(exact.weight.shape[2:])
        blocks = prod(kernel) * (prod(kernel) + 1) // 2  # of products, for every patch
        plan = correlations_of(tuple(call.x.shape[2:]), kernel, call.conv)
        if plan.products <= blocks * number:
            return exact
        return AtPositions(call, columns, count, scale, number, generator)

    return create


class AtPositions(GramAccumulator):
    """The second moment of the patches at `number` positions of every image, drawn at random.

    The other parameters are those of `GramAccumulator`.
    """

    def __init__(
        self,
        call: Call,
        columns: Tensor,
        count: int,
        scale: Tensor | None,
        number: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(call, columns, count, scale)
        self.number = number
        self.generator = generator
        self.kernel = tuple(self.weight.shape[2:])
        entries = prod(self.kernel)
        self._pairs = torch.triu_indices(entries, entries)  # of kernel entries, a <= b
        channels = self.weight.shape[1]
        self._blocks = self.weight.new_zeros(self._pairs.shape[1], channels, channels)
        self._entries = self.weight.new_zeros(channels, entries)

    def add(self, x: Tensor) -> None:
        """Add one call."""
        positions = positions_per_image(x, self.weight, self.conv)
        at = torch.randint(positions, (len(x), self.number), generator=self.generator)
        found = patches_at(x.to(self.weight.dtype), self.kernel, self.conv, at)
        share = self.number / positions
        found = found.permute(3, 1, 0, 2).flatten(2)  # [k, c, patches]
        self._entries += found.sum(2).T / share
        a, b = (found[index] for index in self._pairs.to(x.device))
        self._blocks.baddbmm_(a, b.transpose(1, 2), alpha=1 / share)
        self.rows += len(x) * positions

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
        """The sums of contributions, estimated."""
        return summed(self._entries.double(), self.weight, self.columns, self.count)

    @property
    def finite(self) -> bool:
        """Whether the diagonal is finite."""
        return bool(torch.isfinite(self._blocks.diagonal(dim1=1, dim2=2)).all())


def positions_per_image(x: Tensor, weight: Tensor, conv: Conv | None) -> int:
    """How many output positions a layer has for one input; parameters as in `contributions`."""
    return correlations_of(tuple(x.shape[2:]), tuple(weight.shape[2:]), conv).outputs


def patches_at(x: Tensor, kernel: tuple[int, ...], conv: Conv | None, at: Tensor) -> Tensor:
    """The patches that a layer reads at some positions of every image [N, c, n, k].

    Parameters
    ----------
    x
        The layer's input [N, c, *space], or [N, c] of a linear layer.
    kernel
        The kernel's shape; k is the number of its entries.
    conv
        How the convolution is applied; None for a linear layer.
    at
        Flat indices of n output positions of each image [N, n].
    """
    if conv is None:
        return x[:, :, None, None].expand(-1, -1, at.shape[1], -1)
    axes = [*zip(x.shape[2:], kernel, conv.stride, conv.padding, conv.dilation, strict=True)]
    counts = [(h + 2 * pad - d * (k - 1) - 1) // stride + 1 for h, k, stride, pad, d in axes]
    where = torch.zeros(*at.shape, 1, dtype=torch.int64)  # in the flattened image
    inside = torch.ones(*at.shape, 1, dtype=torch.bool)
    outputs = torch.unravel_index(at, counts)
    for (size, taps, stride, pad, dilation), output in zip(axes, outputs, strict=True):
        reads = (output * stride - pad)[..., None] + torch.arange(taps) * dilation
        here = (reads >= 0) & (reads < size)
        where = (where[..., None] * size + reads.clamp(0, size - 1)[..., None, :]).flatten(2)
        inside = (inside[..., None] & here[..., None, :]).flatten(2)
    index = where.flatten(1)[:, None].expand(-1, x.shape[1], -1)
    found = x.flatten(2).gather(2, index.to(x.device)).view(*x.shape[:2], *where.shape[1:])
    return found * inside[:, None].to(x)
