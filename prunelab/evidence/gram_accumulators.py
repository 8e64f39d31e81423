"""Accumulators: G of one layer and the sums of its contributions, added up call by call.

The memory of an accumulator does not grow with the images. Products within a batch are summed in
the network's precision and batches in float64, so G is as exact as the product of one batch (a
relative error of 1e-7 in float32).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from prunelab.evidence.patch_correlation import (
    Correlations,
    Term,
    correlations_of,
    symmetric_product,
)
from prunelab.evidence.unit_sums import by_units, contributions, summed
from prunelab.graph.labels.layer_calls import Call

Array = np.ndarray
ENTRIES = 2**24  # of the contributions computed at once: 64 MB in float32


class GramAccumulator(ABC):
    """Sums the contributions of the units that a layer reads, and their products.

    Parameters
    ----------
    call
        The first call of the layer; later calls must use the same weights, see `continues`.
    columns
        For each input channel or feature, the row of its unit in G [in].
    count
        How many rows G has.
    scale
        Multiplies the outputs, as a BatchNorm's gamma / sigma does [out]; None: nothing does.

    Attributes
    ----------
    rows
        Samples times output positions so far.
    """

    def __init__(self, call: Call, columns: Tensor, count: int, scale: Tensor | None) -> None:
        self.conv = call.conv
        self.columns, self.count, self.scale = columns.to(call.x.device), count, scale
        self.rows = 0
        self._given = call.weight.detach()
        self._version = _version(call.weight)
        weight = self._given.to(torch.promote_types(call.weight.dtype, torch.float32))
        if scale is not None:
            axis = 1 if call.conv is not None and call.conv.transposed else 0
            weight = weight * scale.view([-1 if i == axis else 1 for i in range(weight.ndim)])
        self.weight = weight

    def continues(self, call: Call) -> bool:
        """Whether a call uses the same weights in the same way, so that it can be added here."""
        if call.conv != self.conv or call.weight.shape != self._given.shape:
            return False
        mine, other = self._given, call.weight.detach()
        same = mine.data_ptr() == other.data_ptr() and mine.stride() == other.stride()
        if same and self._version == _version(call.weight):
            return True
        return torch.equal(mine, other)

    @abstractmethod
    def add(self, x: Tensor) -> None:
        """Add one call, given the layer's input."""

    @property
    @abstractmethod
    def gram(self) -> Tensor:
        """G in float64 [count, count]."""

    @property
    @abstractmethod
    def sums(self) -> Tensor:
        """Contributions summed over samples and positions, in float64 [count, out]."""

    @property
    @abstractmethod
    def finite(self) -> bool:
        """Whether there was no NaN or infinity so far."""


def _version(weight: Tensor) -> int:
    """How often a tensor was written to; -1 in inference mode, which does not count."""
    return -1 if weight.is_inference() else weight._version


class ByCorrelation(GramAccumulator):
    """G from correlations of the input with itself, for convolutions and linear layers.

    G = sum over kernel entries a, b of (W_a' W_b) o M_ab, where M_ab, a block of the patches'
    second moment, is a signed sum of a few correlations. The weight products that each
    correlation is multiplied by are summed once, in a table.
    """

    def __init__(self, call: Call, columns: Tensor, count: int, scale: Tensor | None) -> None:
        super().__init__(call, columns, count, scale)
        out, channels = self.weight.shape[:2]
        self.kernel = tuple(self.weight.shape[2:])
        self.by_entry = self.weight.reshape(out, channels, -1).permute(2, 0, 1).contiguous()
        self._tables: dict[tuple[int, ...], tuple[Correlations, dict[Term, Tensor]]] = {}
        zeros = self.weight.new_zeros(channels, channels, dtype=torch.float64)
        self._half = zeros  # G by channel is this plus its transpose
        self._entries = zeros.new_zeros(channels, *self.kernel)

    def add(self, x: Tensor) -> None:
        """Add one call."""
        plan, tables = self._table(tuple(x.shape[2:]))
        x = x.to(self.weight.dtype)
        half = torch.zeros_like(self._half, dtype=x.dtype)
        for term, correlation in plan.correlate(x):
            half.addcmul_(tables[term], correlation)
        self._half += half
        self._entries += plan.entry_sums(x)
        self.rows += len(x) * plan.outputs

    def _table(self, size: tuple[int, ...]) -> tuple[Correlations, dict[Term, Tensor]]:
        """The correlations of images of this size, and the weight products of each."""
        if size not in self._tables:
            plan = correlations_of(size if self.conv is not None else (), self.kernel, self.conv)
            self._tables[size] = plan, self._weight_products(plan)
        return self._tables[size]

    def _weight_products(self, plan: Correlations) -> dict[Term, Tensor]:
        tables = {
            term: torch.zeros_like(self._half, dtype=self.weight.dtype) for term in plan.terms
        }
        uses: dict[tuple[int, int], list[tuple[Term, int, bool]]] = {}
        for term, blocks in plan.terms.items():
            for sign, (a, b) in blocks:
                uses.setdefault((min(a, b), max(a, b)), []).append((term, sign, a > b))
        for (a, b), found in uses.items():
            ours, theirs = self.by_entry[a].T, self.by_entry[b].T
            part = symmetric_product(ours) / 2 if a == b else ours @ theirs.T
            for term, sign, swapped in found:
                tables[term].add_(part.T if swapped else part, alpha=sign)
        return tables

    @property
    def gram(self) -> Tensor:
        """G."""
        return by_units(self._half, self.columns, self.count)

    @property
    def sums(self) -> Tensor:
        """The sums of contributions."""
        return summed(self._entries, self.weight, self.columns, self.count)

    @property
    def finite(self) -> bool:
        """Whether the diagonal is finite: no other entry is larger."""
        return bool(torch.isfinite(self._half.diagonal()).all())


class StoredGram(GramAccumulator):
    """Stores G itself [count, count], and the sums [count, `out`]."""

    def __init__(
        self, call: Call, columns: Tensor, count: int, scale: Tensor | None, out: int
    ) -> None:
        super().__init__(call, columns, count, scale)
        self._gram = self.weight.new_zeros(count, count, dtype=torch.float64)
        self._sums = self._gram.new_zeros(count, out)

    @property
    def gram(self) -> Tensor:
        """G."""
        return self._gram

    @property
    def sums(self) -> Tensor:
        """The sums of contributions."""
        return self._sums

    @property
    def finite(self) -> bool:
        """Whether the diagonal is finite."""
        return bool(torch.isfinite(self._gram.diagonal()).all())


class ByContribution(StoredGram):
    """G from the contributions themselves, by definition.

    For transposed convolutions, and for linear layers after a flatten, where a unit has so many
    columns that this is cheaper.
    """

    def __init__(self, call: Call, columns: Tensor, count: int, scale: Tensor | None) -> None:
        out = call.weight.shape[0 if call.conv is None else 1]
        super().__init__(call, columns, count, scale, out)

    def add(self, x: Tensor) -> None:
        """Add one call."""
        x = x.to(self.weight.dtype)
        z = contributions(x[:1], self.weight, self.conv, self.columns, self.count)
        step = max(1, ENTRIES // max(1, z.numel()))
        for part in x.split(step):
            z = contributions(part, self.weight, self.conv, self.columns, self.count)
            self._gram += symmetric_product(z.flatten(1))
            self._sums += z.sum((1, 3), dtype=torch.float64)
            self.rows += z.shape[1] * z.shape[3]


def accumulator_of(
    call: Call, columns: Tensor, count: int, scale: Tensor | None
) -> GramAccumulator:
    """An empty exact accumulator for calls like this one, of the cheaper kind.

    The parameters are those of `GramAccumulator`.
    """
    flattened = call.conv is None and count < call.weight.shape[1]
    transposed = call.conv is not None and call.conv.transposed
    kind = ByContribution if flattened or transposed else ByCorrelation
    return kind(call, columns, count, scale)


class LayerAccumulators:
    """One layer's accumulators: one for each weight, and way of using it, that it was called with.

    `create(call)` makes an empty one.
    """

    def __init__(self, create: Callable[[Call], GramAccumulator]) -> None:
        self.create = create
        self.all: list[GramAccumulator] = []

    def add(self, call: Call) -> GramAccumulator:
        """Add a call; returns the accumulator that it was added to."""
        found = next((one for one in self.all if one.continues(call)), None)
        if found is None:
            self.all.append(found := self.create(call))
        found.add(call.x)
        return found

    @property
    def gram(self) -> Array:
        """G [count, count]."""
        return reduce(np.add, (one.gram.cpu().numpy() for one in self.all))

    @property
    def sums(self) -> Array:
        """The sums of the contributions [count, out]."""
        return reduce(np.add, (one.sums.cpu().numpy() for one in self.all))

    @property
    def rows(self) -> int:
        """Samples times output positions."""
        return sum(one.rows for one in self.all)

    @property
    def finite(self) -> bool:
        """Whether there was no NaN or infinity so far."""
        return all(one.finite for one in self.all)
