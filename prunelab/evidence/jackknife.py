"""How sure a damage is: the jackknife over chunks of images.

Evidence is additive, so that of all images without one chunk is a subtraction. With m chunks, D the
damage on all images and D_(j) that without chunk j, the variance of D is estimated by
(m - 1)/m sum_j (D_(j) - mean)^2 (Efron and Stein, Annals of Statistics 9, 1981), and a 95%
interval is D plus and minus the t quantile of m - 1 degrees of freedom times its root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from math import gcd
from operator import add
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import t as student
from torch import nn

from prunelab.data.batches import batch_size, divisible, selected
from prunelab.errors import BadData, InvalidValue
from prunelab.evidence.evidence import Evidence
from prunelab.evidence.fingerprint import fingerprint
from prunelab.evidence.measure import measuring
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.loops.batch import finish
from prunelab.values import Units
from prunelab.values.given import as_annotated

Array = np.ndarray
CHUNKS = 16


@dataclass(frozen=True, slots=True)
class Interval:
    """A damage, and its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2%} ({self.low:.2%} to {self.high:.2%})"


@dataclass(frozen=True, slots=True, eq=False)
class Jackknife:
    """Evidence of chunks of images; `evidence` is that of all of them.

    Damages are those of `ContributionGram`: shares of the consumers' signal.
    """

    chunks: tuple[Evidence, ...]
    evidence: Evidence

    def damage(self, group: str, units: Iterable[int]) -> Interval:
        """The damage of removing `units` of a group together, with its interval."""
        units = tuple(units)
        value = self.evidence[group].damage(units)
        lost = [self._lost(chunk, group, units) for chunk in self.chunks]
        margin = float(self._margins(self._without(group, np.array(lost)[:, None]))[0])
        return Interval(value, max(0.0, value - margin), value + margin)

    def alone(self, group: str) -> tuple[Interval, ...]:
        """The damage of removing each unit alone, in the order of the group's units."""
        margins = self.margins(group)
        values = self.evidence[group].alone()
        return tuple(
            Interval(float(value), max(0.0, float(value - margin)), float(value + margin))
            for value, margin in zip(values, margins, strict=True)
        )

    def margins(self, group: str) -> Array:
        """Half the width of the interval of each unit alone [units]."""
        return self._margins(self._alone(group))

    def ranks(self, group: str) -> tuple[tuple[int, int], ...]:
        """The ranks that each unit alone may have, from the least damage, 1, to the greatest.

        A unit ranks surely behind another where the 95% interval of their difference, image chunk
        by image chunk, lies above zero.
        """
        behind = self._behind(group)
        size = len(behind)
        least, most = 1 + behind.sum(axis=1), size - behind.sum(axis=0)
        return tuple(zip(least.tolist(), most.tolist(), strict=True))

    def undecided(self, group: str, count: int) -> Units:
        """The units that more images might exchange, where the `count` least damaging are removed.

        They are a tie: each removed one is not surely ahead of some unit that stays, or the other
        way round. Empty: the decision is settled. Raises `InvalidValue` for a count that is not
        from 1 to the group's units less 1.
        """
        units = self.evidence[group].units
        if not 0 < count < len(units):
            raise InvalidValue(
                f"count is a whole number from 1 to {len(units) - 1}, as {group} has {len(units)} "
                f"units; not {count}."
            )
        order = np.argsort(self.evidence[group].alone(), kind="stable")
        gone, stay = order[:count], order[count:]
        open_ = ~self._behind(group)[np.ix_(stay, gone)]
        found = [*gone[open_.any(axis=0)].tolist(), *stay[open_.any(axis=1)].tolist()]
        return tuple(sorted(units[index] for index in found))

    def _behind(self, group: str) -> Array:
        """Whether unit i surely has a greater damage alone than unit j [units, units]."""
        without = self._alone(group)
        centred = without - without.mean(axis=0)
        shared = centred.T @ centred
        own = np.diagonal(shared)
        spread = np.maximum(0, own[:, None] + own[None] - 2 * shared)
        margin = self._quantile * np.sqrt(spread * (len(without) - 1) / len(without))
        alone = self.evidence[group].alone()
        behind: Array = alone[:, None] - alone[None] > margin
        return behind

    def _alone(self, group: str) -> Array:
        """The damage of each unit alone without each chunk [chunks, units]."""
        lost = [np.diagonal(chunk[group].gram) for chunk in self.chunks]
        return self._without(group, np.array(lost))

    def _without(self, group: str, lost: Array) -> Array:
        """Damages without each chunk, of the energies lost in each [chunks, damages]."""
        energy = np.array([chunk[group].energy for chunk in self.chunks])[:, None]
        left = energy.sum() - energy
        gone: Array = np.maximum(0, lost.sum(axis=0) - lost) / np.where(left > 0, left, 1)
        return gone

    def _margins(self, without: Array) -> Array:
        """Half the widths of the intervals, of the damages without each chunk."""
        count = len(without)
        variance = ((without - without.mean(axis=0)) ** 2).sum(axis=0) * (count - 1) / count
        margins: Array = self._quantile * np.sqrt(variance)
        return margins

    @property
    def _quantile(self) -> float:
        return float(student.ppf(0.975, len(self.chunks) - 1))

    def _lost(self, evidence: Evidence, group: str, units: Units) -> float:
        gram = evidence[group]
        return gram.damage(units) * gram.energy


@as_annotated
def jackknife(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    *,
    at: Literal["conv", "bn"] = "conv",
    chunks: int = CHUNKS,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Jackknife:
    """Measure contributions chunk by chunk, so that every damage has a 95% interval.

    Whole batches are dealt out to the chunks where their number is a multiple of `chunks`, else
    equal pieces of each; batches of your own classes are never split. The evidence of every chunk
    is kept: G of every layer in float64, `chunks` times.

    Parameters
    ----------
    model, graph, batches, at, forward
        As for `measure`; the batches are read once.
    chunks
        At least 2, and no more than there are images.

    Raises
    ------
    InvalidValue
        For fewer than 2 chunks.
    BadData
        For fewer images than chunks, and as `measure`.
    """
    if chunks < 2:
        raise InvalidValue(f"chunks is a whole number of at least 2, not {chunks}.")
    parts = _dealt(batches, chunks)
    if not all(parts):
        raise BadData(
            f"The batches fill {sum(map(bool, parts))} of {chunks} chunks. Give more images, or a "
            "smaller chunks=."
        )
    mark = fingerprint(model)
    found = tuple(
        finish(measuring(model, graph, part, at=at, forward=forward, mark=mark)) for part in parts
    )
    return Jackknife(found, reduce(add, found))


def _dealt(batches: Iterable[Any], chunks: int) -> list[list[Any]]:
    """The batches dealt out to chunks, each in as few pieces as make the chunks equal."""
    whole = list(batches)
    pieces = chunks // gcd(chunks, len(whole))
    parts: list[list[Any]] = [[] for _ in range(chunks)]
    dealt = 0
    for batch in whole:
        places = torch.arange(batch_size(batch)) % pieces
        for piece in range(pieces) if divisible(batch) else (0,):
            if bool((places == piece).any()):
                parts[dealt % chunks].append(selected(batch, places == piece))
            dealt += 1
    return parts
