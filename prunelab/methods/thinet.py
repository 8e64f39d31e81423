"""ThiNet: filter pruning by the statistics of the next layer (Luo, Wu, Lin; ICCV 2017).

Input: a network, and for each layer i the number of its C channels to keep.
For each layer i, front to back, one move:                                     `ThiNet.search`
  1. Collect samples y of layer i+1's output before the activation, each split
     into the contributions of its input channels, y = sum_c x_c.              `ThiNet._measuring`
  2. T <- {}; until |T| is the number to remove, add to T the channel that
     keeps sum over samples (sum_{c in T} x_c)^2 smallest.                     `greedy_removal`
     Or, as in ThiNet_TPAMI, find the channels to keep by orthogonal matching
     pursuit of y on the x_c.                                                  `matching_pursuit`
     Ours: exchange a channel of T for a kept one while that lowers the sum.   `exchanged`
  3. Remove the channels T: the filters of layer i, the inputs of layer i+1.   approving the move
  4. Scale each kept channel c by w_c, w = argmin sum (y - sum_c w_c x_c)^2.   repair="rescale"
  5. Fine-tune.                                                                `Session.tune`

Released code: Roll920/ThiNet_Code, `compress_model.py`. Steps 1 and 2 need only the products
G_cd = sum x_c x_d. By default they are summed over all outputs instead of samples.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from prunelab.data.batches import take
from prunelab.evidence import ContributionGram
from prunelab.evidence.best_set import exchanged
from prunelab.evidence.few_positions import CreateAccumulator
from prunelab.evidence.gram_accumulators import accumulator_of
from prunelab.evidence.measure import measuring
from prunelab.graph.channels.channel_graph import ChannelGroup
from prunelab.methods.base import Context, Search
from prunelab.methods.layerwise import carry_of, check_layerwise, next_layer
from prunelab.methods.settings import check_choice, check_counts
from prunelab.methods.thinet_samples import iter_stratified, scalar_samples
from prunelab.values import Importance, Units, units_of
from prunelab.values.given import as_annotated

Array = np.ndarray
DEPENDENT = 1e-10  # of its own energy: what is left of a column that the chosen ones span


@as_annotated
@dataclass(frozen=True, slots=True)
class ThiNet:
    """One layer a move, front to back: removes the channels that the next layer misses least.

    Parameters
    ----------
    pruning_ratio
        The share of each layer's original width to remove: one number, or a mapping from groups
        to numbers (other groups stay whole). With a MAC target the ratios are scaled to meet it.
    schedule
        "uniform", or "conv": the layers of the last resolution stay whole, as in ThiNet-Conv and,
        where the head is a global average pool, ThiNet-GAP for VGG-16.
    selection
        "greedy" removes the set with the smallest summed contribution (released code:
        ThiNet_ICCV). "omp" keeps the channels that best explain the output after a refit
        (orthogonal matching pursuit; ThiNet_TPAMI), which recognises duplicates. "swaps" is
        "greedy" and then exchanges of one removed channel for a kept one, while the summed
        contribution falls (an extension).
    groups
        "internal" prunes only the inner layers of residual blocks, "all" residual streams too
        (an extension).
    images
        How many training images are measured.
    per_class, positions
        The sampling of the released code: `per_class` images of every class, `positions` scalars
        of the output for each image (10 and 10). With None, `images` images and all outputs.
    """

    name: ClassVar[str] = "thinet"
    repair: ClassVar[str] = "rescale"

    pruning_ratio: float | Mapping[str, float] = 0.5
    schedule: Literal["uniform", "conv"] = "uniform"
    selection: Literal["greedy", "omp", "swaps"] = "greedy"
    groups: Literal["internal", "all"] = "internal"
    images: int = 512
    per_class: int | None = None
    positions: int | None = None

    def __post_init__(self) -> None:
        check_layerwise(self, "uniform", "conv")
        check_choice(self, "selection", "greedy", "omp", "swaps")
        optional = ("per_class", "positions")
        check_counts(self, *(name for name in optional if getattr(self, name) is not None))

    def search(self, context: Context) -> Search:
        """One move: the next layer, and the channels of it to remove."""
        found = next_layer(self, context)
        if found is None:
            return None
        group, keep = found
        gram = yield from self._measuring(context, group)
        if self.selection == "omp":
            ranked, importance = by_omp(gram)
        else:
            ranked, importance = by_greedy(gram)
        if self.selection == "swaps":
            ranked, importance = by_greedy(
                gram, exchanged(gram, tuple(ranked[: len(ranked) - keep]))
            )
        yield importance
        drop = {group.name: units_of(ranked[: len(ranked) - keep])}
        drop = context.trimmed(drop, {(group.name, unit): i for i, unit in enumerate(ranked)})
        damage = {name: gram.damage(units) for name, units in drop.items()}
        return context.move(self, drop, damage, carry_of(self, group))

    def _measuring(
        self, context: Context, group: ChannelGroup
    ) -> Generator[Any, None, ContributionGram]:
        """Step 1: the products of the channels' contributions to the next layer's output."""
        if self.per_class is None and self.positions is None:
            return (yield from context.measure(images=self.images))[group.name]
        batches = context.training_batches(context.seed)
        if self.per_class is not None:
            batches = iter_stratified(batches, self.per_class)
        else:
            batches = take(batches, self.images)
        create: CreateAccumulator = accumulator_of
        if self.positions is not None:
            create = scalar_samples(self.positions, context.seed)
        evidence = yield from measuring(
            context.model,
            context.graph,
            batches,
            layers=group.consumers,
            create=create,
            seed=context.seed,
            forward=context.forward,
        )
        return evidence[group.name]


# ---------------------------------------------------------------- step 2, ICCV


def greedy_removal(gram: Array, first: Sequence[int] = ()) -> tuple[list[int], Array]:
    """Step 2: indices in the order of removal, and 1_T' G 1_T after each [n].

    Each step adds to T the index that keeps ||x_T||^2 smallest, where x_T is the sum of the
    removed contributions. With t = G 1_T that is the smallest G_jj + 2 t_j, so all steps together
    take O(n^2). Optimal for one index or uncorrelated contributions, otherwise a heuristic. The
    indices `first` go before all others.
    """
    own = np.diagonal(gram)
    cross = np.zeros(len(gram))  # t = G 1_T
    candidate = np.ones(len(gram), dtype=bool)
    early = np.zeros(len(gram), dtype=bool)
    early[list(first)] = True
    removed: list[int] = []
    values = np.zeros(len(gram))
    value = 0.0
    for step in range(len(gram)):
        increase = own + 2 * cross
        now = candidate & early if step < len(first) else candidate
        index = int(np.argmin(np.where(now, increase, np.inf)))
        value += increase[index]
        values[step] = max(0.0, value)
        cross += gram[index]
        candidate[index] = False
        removed.append(index)
    return removed, values


def by_greedy(gram: ContributionGram, first: Units = ()) -> tuple[list[int], Importance]:
    """The units in the order of removal, each with the share of the signal lost by then.

    The units `first` go before all others.
    """
    order, values = greedy_removal(gram.gram, [gram.units.index(unit) for unit in first])
    shares = values / gram.energy if gram.energy > 0 else np.zeros_like(values)
    units = [gram.units[index] for index in order]
    # Contributions that cancel can make a larger set less harmful; the order must still show.
    shares = np.maximum.accumulate(shares)
    what = "share of the signal lost once it is removed in turn (greedy)"
    return units, _importance(gram, units, shares, what)


# ---------------------------------------------------------------- step 2, TPAMI


def matching_pursuit(gram: Array) -> tuple[list[int], Array]:
    """Step 2 as in ThiNet_TPAMI: orthogonal matching pursuit of y = sum_i x_i on the x_i.

    Each step chooses the largest <x_j, residual>^2 / ||x_j||^2 and refits, here by one step of a
    Cholesky factorisation, O(n^2). Zero columns and those that the chosen ones span explain
    nothing; they come last, the largest first.

    Returns
    -------
    tuple of list and array
        All indices in the order of choice, and the squared residual before each was chosen [n].
    """
    own = np.diagonal(gram).copy()
    cross = gram.sum(1)  # <x_j, residual>
    rest = gram.copy()  # of the columns' components orthogonal to the chosen ones
    energy = float(cross.sum())
    chosen: list[int] = []
    residuals = np.zeros(len(gram))
    candidate = own > DEPENDENT * own.max(initial=0.0)
    while candidate.any():
        scores = np.where(candidate, cross**2 / np.where(candidate, own, 1.0), -1.0)
        index = int(np.argmax(scores))
        residuals[len(chosen)] = max(0.0, energy)
        chosen.append(index)
        column = rest[:, index] / np.sqrt(rest[index, index])
        gain = cross[index] / np.sqrt(rest[index, index])
        rest = rest - np.outer(column, column)
        cross = cross - gain * column
        energy -= gain**2
        candidate[index] = False
        candidate &= np.diagonal(rest) > DEPENDENT * own
    last = sorted(set(range(len(gram))) - set(chosen), key=lambda i: (-own[i], i))
    residuals[len(chosen) :] = max(0.0, energy) if len(chosen) else 0.0
    return [*chosen, *last], residuals


def by_omp(gram: ContributionGram) -> tuple[list[int], Importance]:
    """The units in the order of removal: the last chosen by matching pursuit goes first.

    Each with the share of the signal that was unexplained before it was chosen.
    """
    order, residuals = matching_pursuit(gram.gram)
    units = [gram.units[index] for index in order]
    shares = residuals / gram.energy if gram.energy > 0 else residuals
    what = "share of the signal unexplained before it was chosen (pursuit)"
    return units[::-1], _importance(gram, units, shares, what)


def _importance(
    gram: ContributionGram, order: Sequence[int], values: Array, what: str
) -> Importance:
    value = dict(zip(order, values.tolist(), strict=True))
    return Importance(gram.group, gram.units, tuple(value[unit] for unit in gram.units), what)
