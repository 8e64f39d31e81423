"""ThiNet: filter level pruning by the next layer's statistics (Luo, Wu, Lin; ICCV 2017).

A layer's channels are chosen by what the next layer reads: those go whose contributions to its
output, summed, are smallest. Layer by layer from the front, on the network as it is by then, with
fine-tuning in between. What the released code does next, one least-squares factor for each
channel kept, is the session's `repair="rescale"`; "lstsq" refits the whole kernel instead.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from prunelab.data.batches import take
from prunelab.errors import InvalidValue
from prunelab.evidence import ContributionGram, damage_curve
from prunelab.evidence.measure import measuring
from prunelab.evidence.sampling import stratified
from prunelab.graph.channels.channel_graph import ChannelGroup
from prunelab.methods.base import Context, Search
from prunelab.methods.layerwise import carry_of, checked_ratio, next_layer
from prunelab.values import Importance, units_of

Array = np.ndarray
FREE = 1e-10  # of the largest: what is left of a column that others already span


@dataclass(frozen=True, slots=True)
class ThiNet:
    """One layer a move, front to back: the channels that the next layer misses least.

    `pruning_ratio` is the share of each layer's original width that goes, one number or one for
    each group (groups not named stay as they are). `schedule="conv"` spares the layers of the
    last resolution, as ThiNet-Conv and, on a network whose head is a global average pool,
    ThiNet-GAP do for VGG-16. Towards a MAC target the ratios are scaled to reach it.
    `selection="greedy"` removes the set with the smallest summed contribution (released code:
    ThiNet_ICCV); "omp" keeps the channels that best explain the output after a refit (orthogonal
    matching pursuit, ThiNet_TPAMI), which sees duplicates. Of residual blocks only the inner
    layers are pruned, unless `groups="all"` (ours).

    Contributions are measured exactly, over all outputs on `images` training images. The released
    code samples them: `per_class` images of every class, `positions` outputs an image (10 and
    10); None takes `images` of them, all outputs.
    """

    name: ClassVar[str] = "thinet"

    pruning_ratio: float | Mapping[str, float] = 0.5
    schedule: Literal["uniform", "conv"] = "uniform"
    selection: Literal["greedy", "omp"] = "greedy"
    groups: Literal["internal", "all"] = "internal"
    images: int = 512
    per_class: int | None = None
    positions: int | None = None

    def __post_init__(self) -> None:
        ratio = checked_ratio(self.pruning_ratio, self.schedule, ("uniform", "conv"))
        object.__setattr__(self, "pruning_ratio", ratio)
        if self.selection not in ("greedy", "omp"):
            raise InvalidValue(f"selection is 'greedy' or 'omp', not {self.selection!r}.")
        if self.groups not in ("internal", "all"):
            raise InvalidValue(f"groups is 'internal' or 'all', not {self.groups!r}.")
        for name in ("images", "per_class", "positions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidValue(f"{name} must be at least 1, not {value}.")

    def search(self, context: Context) -> Search:
        """One move: the next layer, and the channels of it that go."""
        found = next_layer(self, context)
        if found is None:
            return None
        group, keep = found
        gram = yield from self._measured(context, group)
        ranked, importance = greedily(gram) if self.selection == "greedy" else by_pursuit(gram)
        yield importance
        drop = {group.name: units_of(ranked[: len(ranked) - keep])}
        drop = context.trimmed(drop, {(group.name, unit): i for i, unit in enumerate(ranked)})
        damage = {name: gram.damage(units) for name, units in drop.items()}
        return context.move(self, drop, damage, carry_of(self, group))

    def _measured(
        self, context: Context, group: ChannelGroup
    ) -> Generator[Any, None, ContributionGram]:
        if self.per_class is None and self.positions is None:
            return (yield from context.measure(images=self.images))[group.name]
        images = context.training_batches(context.seed)
        evidence = yield from measuring(
            context.model,
            context.graph,
            stratified(images, self.per_class) if self.per_class else take(images, self.images),
            layers=group.consumers,
            scalars=self.positions,
            seed=context.seed,
            forward=context.forward,
        )
        return evidence[group.name]


def greedily(gram: ContributionGram) -> tuple[list[int], Importance]:
    """The units in the order they go, each with the damage done once it goes in its turn."""
    curve = damage_curve(gram)
    # Cancelling contributions may make a larger set less harmful; the order must still show.
    values = np.maximum.accumulate(curve.damages)
    what = "signal lost once it goes in its turn (greedy), share"
    return list(curve.order), _importance(gram, curve.order, values, what)


def by_pursuit(gram: ContributionGram) -> tuple[list[int], Importance]:
    """The units in the order they go, the last one chosen by matching pursuit first.

    Each with the share of the signal that was unexplained before it was chosen.
    """
    order, left = pursuit(gram.gram)
    units = [gram.units[index] for index in order]
    values = left / gram.energy if gram.energy > 0 else left
    what = "signal unexplained before it was chosen (pursuit), share"
    return units[::-1], _importance(gram, units, values, what)


def _importance(
    gram: ContributionGram, order: Sequence[int], values: Array, what: str
) -> Importance:
    value = dict(zip(order, values.tolist(), strict=True))
    return Importance(gram.group, gram.units, tuple(value[unit] for unit in gram.units), what)


def pursuit(gram: Array) -> tuple[list[int], Array]:
    """Orthogonal matching pursuit of y = sum_i z_i on the z_i: all indices in order of choice.

    Beside it ||y - its best fit by those chosen before||^2 [n]. Each step takes the largest
    <z_j, residual>^2 / ||z_j||^2 (released code: ThiNet_TPAMI) and refits, here by one step of a
    Cholesky factorisation, O(n^2). Dead columns and those that the chosen ones span explain
    nothing; they come last, the largest first.
    """
    own = np.diagonal(gram).copy()
    cross = gram.sum(1)  # <z_j, residual>
    rest = gram.copy()  # what of each column the chosen ones do not span
    energy = float(cross.sum())
    chosen: list[int] = []
    left = np.zeros(len(gram))
    open_ = own > FREE * own.max(initial=0.0)
    while open_.any():
        scores = np.where(open_, cross**2 / np.where(open_, own, 1.0), -1.0)
        index = int(np.argmax(scores))
        left[len(chosen)] = max(0.0, energy)
        chosen.append(index)
        column = rest[:, index] / np.sqrt(rest[index, index])
        gain = cross[index] / np.sqrt(rest[index, index])
        rest = rest - np.outer(column, column)
        cross = cross - gain * column
        energy -= gain**2
        open_[index] = False
        open_ &= np.diagonal(rest) > FREE * own
    free = sorted(set(range(len(gram))) - set(chosen), key=lambda i: (-own[i], i))
    left[len(chosen) :] = max(0.0, energy) if len(chosen) else 0.0
    return [*chosen, *free], left
