"""Second moments of patches without forming the patches: correlations of an image with itself.

The second moment of a convolution's patches has one block for each pair of kernel entries a, b:
the sum over outputs o of x[s o + d a - p] x[s o + d b - p]'. Over the image, such a block depends
only on the lag between the two entries, apart from the border: the 81 blocks of a 3x3 kernel need
13 correlations up to transposition, less what an entry's window misses at the border. A strided
convolution reads several interleaved sub-images, called phases here. For a 3x3 kernel this takes a
quarter of the multiply-adds that patches take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations_with_replacement, product
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.graph.labels.layer_calls import Conv

BLOCK = 128  # rows of a symmetric product that are computed at once


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Positions start .. stop-1 of a phase along one axis, paired with another's at `lag` more."""

    phase: int
    other: int
    lag: int
    start: int
    stop: int

    @property
    def swapped(self) -> Span:
        """The same products with the two phases exchanged."""
        low, high = self.start + self.lag, self.stop + self.lag
        return Span(self.other, self.phase, -self.lag, low, high)


@dataclass(frozen=True, slots=True)
class Axis:
    """Where the kernel entries read along one axis of an image.

    For output o = 0 .. count-1, entry a reads position `o + moves[a]` of phase `phases[a]`, which
    is every `stride`-th pixel. `lengths` is how many positions of each phase are read; outside
    them is zero padding.
    """

    stride: int
    phases: tuple[int, ...]
    moves: tuple[int, ...]
    lengths: tuple[int, ...]
    count: int

    @classmethod
    def of(cls, size: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
        """The axis of a convolution's input."""
        count = max(0, (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
        places = [entry * dilation - padding for entry in range(kernel)]
        phases, moves = [p % stride for p in places], [p // stride for p in places]
        lengths = [0] * stride
        for phase, move in zip(phases, moves, strict=True):
            there = len(range(phase, size, stride))
            lengths[phase] = max(lengths[phase], min(there, move + count))
        return cls(stride, tuple(phases), tuple(moves), tuple(lengths), count)

    def window(self, entry: int) -> tuple[int, int]:
        """The range of positions that an entry reads in its phase, from and up to."""
        move = self.moves[entry]
        return max(0, move), min(self.lengths[self.phases[entry]], move + self.count)

    def whole(self, phase: int, other: int, lag: int) -> Span:
        """All positions at which both phases have a value."""
        start, stop = max(0, -lag), min(self.lengths[phase], self.lengths[other] - lag)
        return Span(phase, other, lag, start, stop)

    def spans(self, a: int, b: int) -> list[tuple[int, Span]]:
        """The products of entries a and b: all of their lag, minus the borders they miss."""
        lag = self.moves[b] - self.moves[a]
        whole = self.whole(self.phases[a], self.phases[b], lag)
        (low, high), (first, last) = self.window(a), self.window(b)
        start, stop = max(whole.start, low, first - lag), min(whole.stop, high, last - lag)
        if start >= stop:
            return []
        found = [(1, whole)]
        found += [(-1, replace(whole, stop=start))] if whole.start < start else []
        found += [(-1, replace(whole, start=stop))] if stop < whole.stop else []
        return found

    @property
    def reach(self) -> int:
        """The longest lag."""
        return max(self.moves) - min(self.moves)


Term = tuple[Span, ...]  # one correlation: a span for every axis
Block = tuple[int, int]  # of the second moment, by kernel entries


@dataclass(frozen=True, slots=True, eq=False)
class Correlations:
    """The correlations that make up the second moment of one convolution's patches.

    `terms` maps each correlation to the blocks (a, b) that contain it, with its sign there. Of
    (a, b) and (b, a) only one is listed; the other is its transpose.
    """

    axes: tuple[Axis, ...]
    terms: Mapping[Term, tuple[tuple[int, Block], ...]]

    @property
    def outputs(self) -> int:
        """How many patches one image has."""
        return prod(axis.count for axis in self.axes)

    @property
    def products(self) -> int:
        """How many products of two pixels one image takes, for each pair of channels."""
        return sum(prod(span.stop - span.start for span in term) for term in self.terms)

    def correlate(self, x: Tensor) -> Iterator[tuple[Term, Tensor]]:
        """Yield each term's sum of x x' over images and positions [c, c]; x [N, c, *space]."""
        phases: dict[tuple[int, ...], Tensor] = {}
        for term in self.terms:
            ours, theirs = (tuple(s.phase for s in term), tuple(s.other for s in term))
            for phase in (ours, theirs):
                if phase not in phases:
                    phases[phase] = self._phase(x, phase)
            if ours == theirs and not any(span.lag for span in term):
                yield term, symmetric_product(self._part(phases[ours], term, False))
            elif self._is_whole(term[1:]):
                yield term, self._shifted(phases[ours], phases[theirs], term)
            else:
                left, right = self._part(phases[ours], term, False), phases[theirs]
                yield term, left @ self._part(right, term, True).T

    def second_moment(self, x: Tensor) -> dict[Block, Tensor]:
        """The blocks (a, b), a <= b, of the patches' second moment, each [c, c]."""
        blocks: dict[Block, Tensor] = {}
        for term, correlation in self.correlate(x):
            for sign, (a, b) in self.terms[term]:
                part, block = (correlation, (a, b)) if a <= b else (correlation.T, (b, a))
                blocks[block] = blocks.get(block, 0) + sign * part
        return blocks

    def entry_sums(self, x: Tensor) -> Tensor:
        """The sum of all patches, in float64 [c, *kernel]; x [N, c, *space]."""
        summed = x.sum(0).double()
        for axis in self.axes:  # each is summed out in turn; its kernel axis is appended
            reads = summed.new_zeros(summed.shape[1], len(axis.moves))
            for entry, phase in enumerate(axis.phases):
                low, high = axis.window(entry)
                reads[phase :: axis.stride][low : max(low, high), entry] = 1
            summed = torch.tensordot(summed, reads, ([1], [0]))
        return summed

    def _is_whole(self, spans: Term) -> bool:
        """Whether these spans, of the last axes, cover all positions."""
        axes = reversed(self.axes)
        return all(
            span == axis.whole(span.phase, span.other, span.lag)
            for axis, span in zip(axes, reversed(spans), strict=False)
        )

    def _phase(self, x: Tensor, phase: tuple[int, ...]) -> Tensor:
        """One phase of x as [c, first axis, N, *other axes], zero-padded at the end of each axis.

        The padding is long enough that a shifted row never overlaps the next one's values.
        """
        cut = [slice(None), slice(None)]
        pads: list[int] = []
        for axis, offset in zip(self.axes, phase, strict=True):
            stop = offset + axis.stride * axis.lengths[offset]
            cut.append(slice(offset, stop, axis.stride))
            size = max(axis.lengths) + axis.reach
            pads = [0, size - axis.lengths[offset], *pads]
        part = x[tuple(cut)].permute(1, 2, 0, *range(3, x.ndim)) if self.axes else x.T[..., None]
        return F.pad(part, pads[:-2]) if any(pads[:-2]) else part.contiguous()

    def _part(self, phase: Tensor, term: Term, other: bool) -> Tensor:
        """The positions of a phase that a term uses [c, products]."""
        lags = [span.lag if other else 0 for span in term]
        cuts = [slice(s.start + lag, s.stop + lag) for s, lag in zip(term, lags, strict=True)]
        return phase[(slice(None), *cuts[:1], slice(None), *cuts[1:])].reshape(len(phase), -1)

    def _shifted(self, ours: Tensor, theirs: Tensor, term: Term) -> Tensor:
        """The product of two phases for a term that covers all axes but the first."""
        first, *rest = term
        lag, pitch = 0, 1
        for axis, span in zip(reversed(self.axes[1:]), reversed(rest), strict=True):
            lag += span.lag * pitch
            pitch *= max(axis.lengths) + axis.reach
        a = ours[:, first.start : first.stop].flatten(1)
        b = theirs[:, first.start + first.lag : first.stop + first.lag].flatten(1)
        length, late, early = a.shape[1], max(0, lag), max(0, -lag)
        return a[:, early : length - late] @ b[:, late : length - early].T


def symmetric_product(a: Tensor) -> Tensor:
    """A a' [rows, rows]; only the lower triangle of blocks is multiplied, the upper is copied."""
    if len(a) <= BLOCK:
        return a @ a.T
    found = a.new_empty(len(a), len(a))
    for start in range(0, len(a), BLOCK):
        strip = a[start:] @ a[start : start + BLOCK].T
        found[start:, start : start + BLOCK] = strip
        found[start : start + BLOCK, start:] = strip.T
    return found


@lru_cache(maxsize=256)
def correlations_of(
    size: tuple[int, ...], kernel: tuple[int, ...], conv: Conv | None
) -> Correlations:
    """The correlations of a convolution on images of this size; of a linear layer, a single one.

    Parameters
    ----------
    size, kernel
        The shapes of the input's space and of the kernel; () for a linear layer.
    conv
        How the convolution is applied; None for a linear layer.
    """
    if conv is None:
        return Correlations((), {(): ((1, (0, 0)),)})
    axes = tuple(
        Axis.of(*sizes)
        for sizes in zip(size, kernel, conv.stride, conv.padding, conv.dilation, strict=True)
    )
    terms: dict[Term, list[tuple[int, Block]]] = {}
    entries = list(enumerate(product(*map(range, kernel))))
    for (a, ours), (b, theirs) in combinations_with_replacement(entries, 2):
        for parts in product(*(x.spans(i, j) for x, i, j in zip(axes, ours, theirs, strict=True))):
            sign, term = prod(sign for sign, _ in parts), tuple(span for _, span in parts)
            swapped = tuple(span.swapped for span in term)
            block = (a, b)
            if swapped < term:
                term, block = swapped, (b, a)
            terms.setdefault(term, []).append((sign, block))
    return Correlations(axes, {term: tuple(blocks) for term, blocks in terms.items()})
