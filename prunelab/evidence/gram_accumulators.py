"""Accounts: G of one layer and the sums of its contributions, added up call after call.

What an account keeps does not grow with the images. It adds products of one batch in the network's
precision and batches in float64, so G is as exact as one batch's product (a relative 1e-7 in
float32).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import reduce

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prunelab.evidence.patch_correlation import Lags, Term, lags_of, mirrored
from prunelab.graph.labels.layer_calls import Call, Conv

Array = np.ndarray
ENTRIES = 2**24  # of contributions that are made at once: 64 MB in float32


class Account(ABC):
    """Adds up what the units that a layer reads contribute to its output.

    `columns` [in channels or features] gives for each input its unit's row in G, of `count` rows;
    `scale` [out] multiplies the outputs (a BatchNorm's gamma / sigma). `rows` counts samples and
    positions.
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
        """Whether a call is of the same layer with the same weights, so that it adds up here."""
        if call.conv != self.conv or call.weight.shape != self._given.shape:
            return False
        mine, other = self._given, call.weight.detach()
        same = mine.data_ptr() == other.data_ptr() and mine.stride() == other.stride()
        if same and self._version == _version(call.weight):
            return True
        return torch.equal(mine, other)

    @abstractmethod
    def add(self, x: Tensor) -> None:
        """Take in the layer's input of one call."""

    @property
    @abstractmethod
    def gram(self) -> Tensor:
        """G in float64 [count, count]."""

    @property
    @abstractmethod
    def sums(self) -> Tensor:
        """The contributions added up over samples and positions, in float64 [count, out]."""

    @property
    @abstractmethod
    def sound(self) -> bool:
        """Whether everything so far was a number."""


def _version(weight: Tensor) -> int:
    """How often a tensor was written to; inference mode does not count."""
    return -1 if weight.is_inference() else weight._version


class ByLags(Account):
    """From the second moment of the patches, by correlations: for convolutions and linear layers.

    G = sum over kernel entries a, b of (W_a' W_b) o M_ab, where every block M_ab is a signed sum
    of a few correlations. Each correlation is multiplied, as soon as it is made, by all that it
    has to do with: the weights' part is computed once.
    """

    def __init__(self, call: Call, columns: Tensor, count: int, scale: Tensor | None) -> None:
        super().__init__(call, columns, count, scale)
        out, channels = self.weight.shape[:2]
        self.kernel = tuple(self.weight.shape[2:])
        self.by_entry = self.weight.reshape(out, channels, -1).permute(2, 0, 1).contiguous()
        self._tables: dict[tuple[int, ...], tuple[Lags, dict[Term, Tensor]]] = {}
        zeros = self.weight.new_zeros(channels, channels, dtype=torch.float64)
        self._half = zeros  # G by channel is this and its transpose
        self._entries = zeros.new_zeros(channels, *self.kernel)

    def add(self, x: Tensor) -> None:
        """Take in one call."""
        lags, tables = self._table(tuple(x.shape[2:]))
        x = x.to(self.weight.dtype)
        half = torch.zeros_like(self._half, dtype=x.dtype)
        for term, correlation in lags.correlations(x):
            half.addcmul_(tables[term], correlation)
        self._half += half
        self._entries += lags.entry_sums(x)
        self.rows += len(x) * lags.outputs

    def _table(self, size: tuple[int, ...]) -> tuple[Lags, dict[Term, Tensor]]:
        """The correlations of images of this size, and what each is multiplied by."""
        if size not in self._tables:
            lags = lags_of(size if self.conv is not None else (), self.kernel, self.conv)
            self._tables[size] = lags, self._weighing(lags)
        return self._tables[size]

    def _weighing(self, lags: Lags) -> dict[Term, Tensor]:
        tables = {
            term: torch.zeros_like(self._half, dtype=self.weight.dtype) for term in lags.terms
        }
        uses: dict[tuple[int, int], list[tuple[Term, int, bool]]] = {}
        for term, blocks in lags.terms.items():
            for sign, (a, b) in blocks:
                uses.setdefault((min(a, b), max(a, b)), []).append((term, sign, a > b))
        for (a, b), found in uses.items():
            ours, theirs = self.by_entry[a].T, self.by_entry[b].T
            part = mirrored(ours) / 2 if a == b else ours @ theirs.T
            for term, sign, turned in found:
                tables[term].add_(part.T if turned else part, alpha=sign)
        return tables

    @property
    def gram(self) -> Tensor:
        """G."""
        return by_units(self._half, self.columns, self.count)

    @property
    def sums(self) -> Tensor:
        """The sums."""
        return summed(self._entries, self.weight, self.columns, self.count)

    @property
    def sound(self) -> bool:
        """Whether the channels' own energies are numbers: no other entry is larger than they."""
        return bool(torch.isfinite(self._half.diagonal()).all())


def by_unit(by_channel: Tensor, columns: Tensor, count: int) -> Tensor:
    """The rows of the channels added up to those of the units [count, ...]."""
    if count == len(columns) and torch.equal(columns, torch.arange(count, device=columns.device)):
        return by_channel
    found = by_channel.new_zeros(count, *by_channel.shape[1:])
    return found.index_add_(0, columns, by_channel)


def by_units(half: Tensor, columns: Tensor, count: int) -> Tensor:
    """G [count, count] from what, with its transpose, is G by channels."""
    by_row = by_unit(half, columns, count)
    both = by_unit(by_row.T, columns, count)
    return both + both.T


def summed(entries: Tensor, weight: Tensor, columns: Tensor, count: int) -> Tensor:
    """What the units contribute to the sum of outputs, from the sum of patches [c, ...]."""
    flat = weight.reshape(weight.shape[0], *entries.shape[:1], -1)
    each = torch.einsum("ck,ock->co", entries.reshape(len(entries), -1), flat.double())
    return by_unit(each, columns, count)


class Held(Account):
    """Holds G [count, count] and the sums [count, `out`] as such."""

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
        """The sums."""
        return self._sums

    @property
    def sound(self) -> bool:
        """Whether the units' own energies are numbers."""
        return bool(torch.isfinite(self._gram.diagonal()).all())


class ByContribution(Held):
    """From the contributions themselves, the definition.

    For transposed convolutions, and for linear layers behind a flatten, where a unit has so many
    columns that it is cheaper.
    """

    def __init__(self, call: Call, columns: Tensor, count: int, scale: Tensor | None) -> None:
        out = call.weight.shape[0 if call.conv is None else 1]
        super().__init__(call, columns, count, scale, out)

    def add(self, x: Tensor) -> None:
        """Take in one call."""
        x = x.to(self.weight.dtype)
        z = contributions(x[:1], self.weight, self.conv, self.columns, self.count)
        step = max(1, ENTRIES // max(1, z.numel()))
        for part in x.split(step):
            z = contributions(part, self.weight, self.conv, self.columns, self.count)
            self._gram += mirrored(z.flatten(1))
            self._sums += z.sum((1, 3), dtype=torch.float64)
            self.rows += z.shape[1] * z.shape[3]


def contributions(
    x: Tensor, weight: Tensor, conv: Conv | None, columns: Tensor, count: int
) -> Tensor:
    """The definition: what every unit contributes to every output [count, N, out, positions].

    Of a linear layer, x [N, in] and weight [out, in]; or of a dense transposed convolution.
    """
    if conv is None:
        order = torch.argsort(columns, stable=True)
        sizes = torch.bincount(columns, minlength=count).tolist()
        xs, ws = (a[:, order].split(sizes, dim=1) for a in (x, weight))
        return torch.stack([a @ w.T for a, w in zip(xs, ws, strict=True)])[..., None]
    deconvolve = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
    apply = deconvolve[weight.ndim - 2]
    channels, out = weight.shape[:2]
    each = apply(  # every channel is its own conv-group
        x, weight, None, conv.stride, conv.padding, 0, channels, conv.dilation
    )
    return by_unit(each.view(len(x), channels, out, -1).transpose(0, 1), columns, count)


def account_of(call: Call, columns: Tensor, count: int, scale: Tensor | None) -> Account:
    """An empty account for calls like this one, of the kind that is the cheaper."""
    flattened = call.conv is None and count < call.weight.shape[1]
    transposed = call.conv is not None and call.conv.transposed
    kind = ByContribution if flattened or transposed else ByLags
    return kind(call, columns, count, scale)


class Accounts:
    """One layer's accounts: one for every weight and way that it was called with."""

    def __init__(self, opened: Callable[[Call], Account]) -> None:
        self.opened = opened
        self.all: list[Account] = []

    def add(self, call: Call) -> Account:
        """Take in a call; gives the account that it went to."""
        found = next((account for account in self.all if account.continues(call)), None)
        if found is None:
            self.all.append(found := self.opened(call))
        found.add(call.x)
        return found

    @property
    def gram(self) -> Array:
        """G [count, count]."""
        return reduce(np.add, (account.gram.cpu().numpy() for account in self.all))

    @property
    def sums(self) -> Array:
        """The sums of the contributions [count, out]."""
        return reduce(np.add, (account.sums.cpu().numpy() for account in self.all))

    @property
    def rows(self) -> int:
        """How many samples and positions there were."""
        return sum(account.rows for account in self.all)

    @property
    def sound(self) -> bool:
        """Whether everything so far was a number."""
        return all(account.sound for account in self.all)
