"""The oracle: how much the loss grows without a unit, measured by running the network.

The exact answer that other methods approximate, at the price of a run for every unit. It is the
oracle of the loss now, not of what training afterwards can mend (Feng, Tao & Wang, "Is Oracle
Pruning the True Oracle?", arXiv 2412.00143, find the two hardly correlated).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunelab.errors import InvalidValue
from prunelab.evidence.ablation import ablating
from prunelab.graph.surgery.editing import masked
from prunelab.methods.base import Context, Search
from prunelab.methods.one_shot import OneShot, Scope, Scores, importances, quota
from prunelab.values import Units, units_of


@dataclass(frozen=True, slots=True)
class Oracle(OneShot):
    """Drops the units without which the loss is lowest; `signed=False`: changes least.

    Every unit is masked alone, on `images` training images. `greedy` drops one unit, measures all
    others anew without it, and so on: n + (n-1) + ... runs for n units, so keep to few groups by
    a mapping as `pruning_ratio`, or to small networks. A move of the plain oracle ranks units by
    single losses, which do not add up.
    """

    name: ClassVar[str] = "oracle"
    kinds: ClassVar[tuple[str, ...]] = ("ablation",)

    scope: Scope = "global"
    greedy: bool = False
    signed: bool = True
    images: int = 256

    def __post_init__(self) -> None:
        OneShot.__post_init__(self)
        if self.images < 1:
            raise InvalidValue(f"images must be at least 1, not {self.images}.")

    @property
    def meaning(self) -> str:
        """What the scores are."""
        return f"how much the loss {'grows' if self.signed else 'changes'} without the channel"

    def scores(self, context: Context, evidence: Any) -> Scores:
        """The loss oracle of every unit, alone."""
        found = {group.name: evidence.ablation(group.name) for group in context.prunable}
        return {n: one.signed if self.signed else one.absolute for n, one in found.items()}

    def search(self, context: Context) -> Search:
        """One move: single losses, or one unit after another."""
        if not self.greedy:
            return (yield from OneShot.search(self, context))
        return (yield from self._search_greedily(context))

    def _search_greedily(self, context: Context) -> Search:
        allowed = quota(self, context, [group.name for group in context.prunable])
        drop: dict[str, Units] = {}
        scores = {g.name: np.full(len(g.units), np.nan) for g in context.prunable}
        for _ in range(allowed.total):
            left = [
                (name, unit)
                for name, limit in allowed.each.items()
                if len(drop.get(name, ())) < limit
                for unit in context.graph[name].units
                if unit not in drop.get(name, ())
            ]
            if not left or _reached(context, drop):
                break
            grown = yield from self._without(context, drop, left)
            for (name, unit), value in zip(left, grown, strict=True):
                scores[name][context.graph[name].units.index(unit)] = value
            name, unit = left[int(np.argmin(grown))]
            drop[name] = units_of([*drop.get(name, ()), unit])
        found = {name: values for name, values in scores.items() if not np.isnan(values).any()}
        yield from importances(context, found, f"{self.meaning}, when it was last asked")
        return context.move(self, drop) if drop else None

    def _without(
        self, context: Context, gone: dict[str, Units], units: list[tuple[str, int]]
    ) -> Generator[Any, None, np.ndarray]:
        """The conditional oracle of each of `units`, given that `gone` are masked."""
        network = masked(context.model, context.graph, context.plan.drop(gone))
        drops = [{}, *({name: (unit,)} for name, unit in units)]
        images = context.images(self.images)
        losses = yield from ablating(
            network, context.graph, images, drops, context.loss, self.images
        )
        grown: np.ndarray = losses[1:] - losses[0]
        return grown if self.signed else np.abs(grown)


def _reached(context: Context, drop: dict[str, Units]) -> bool:
    target = context.target_macs
    return target is not None and context.cost(context.plan.drop(drop)).macs <= target
