"""The oracle: the increase of the loss without a unit, measured by running the network.

The exact answer that other methods approximate, at the price of one run for every unit. It says
what the loss is now, not what it is after fine-tuning (Feng, Tao, Wang, "Is Oracle Pruning the
True Oracle?", arXiv 2412.00143, find the two hardly correlated).

Input: a network with loss L(m) under a mask m of its units, and how many units to remove.
Plain, in one move:                                                     `Oracle.search`
  1. O_i = L(1 - e_i) - L(1) for every unit i.                          `Oracle.scores`
  2. Remove the units with the lowest O_i, or |O_i|.                    `one_shot.lowest`
Greedy, in one move:                                                    `Oracle._search_greedily`
  1. O_i(R) = L(1 - e_R - e_i) - L(1 - e_R), given the removed set R.   `Oracle._measuring_without`
  2. Add the unit with the lowest O_i(R), or |O_i(R)|, to R; repeat.    `Oracle._search_greedily`
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from prunelab.evidence.ablation import ablating
from prunelab.graph.surgery.editing import masked
from prunelab.methods.base import Context, Search
from prunelab.methods.one_shot import OneShot, Scope, Scores, importances, quota
from prunelab.methods.settings import check_counts
from prunelab.values import Units, units_of
from prunelab.values.given import as_annotated


@as_annotated
@dataclass(frozen=True, slots=True)
class Oracle(OneShot):
    """Removes the units without which the loss is lowest.

    Parameters
    ----------
    pruning_ratio, scope
        As in `OneShot`. The plain oracle ranks units by single losses, which do not add up.
    greedy
        Removes one unit, measures all others again without it, and so on: n + (n-1) + ... runs for
        n units, so use a small network, or a mapping of few groups as `pruning_ratio`.
    signed
        Whether a unit whose removal lowers the loss goes first; False ranks by the absolute change.
    images
        How many training images are measured.
    """

    name: ClassVar[str] = "oracle"
    kinds: ClassVar[tuple[str, ...]] = ("ablation",)

    scope: Scope = "global"
    greedy: bool = False
    signed: bool = True
    images: int = 256

    def __post_init__(self) -> None:
        OneShot.__post_init__(self)
        check_counts(self, "images")

    @property
    def meaning(self) -> str:
        """What the scores are."""
        return f"how much the loss {'grows' if self.signed else 'changes'} without the channel"

    def scores(self, context: Context, evidence: Any) -> Scores:
        """Step 1, plain: the loss oracle of every unit alone."""
        found = {group.name: evidence.ablation(group.name) for group in context.prunable}
        return {n: one.signed if self.signed else one.absolute for n, one in found.items()}

    def search(self, context: Context) -> Search:
        """One move: plain or greedy."""
        if not self.greedy:
            return (yield from OneShot.search(self, context))
        return (yield from self._search_greedily(context))

    def _search_greedily(self, context: Context) -> Search:
        """One unit after another, each the one with the lowest conditional oracle."""
        allowed = quota(self, context, [group.name for group in context.prunable])
        drop: dict[str, Units] = {}
        order: dict[tuple[str, int], float] = {}
        scores = {g.name: np.full(len(g.units), np.nan) for g in context.prunable}
        for _ in range(allowed.total):
            left = [
                (name, unit)
                for name, limit in allowed.each.items()
                if len(drop.get(name, ())) < limit
                for unit in context.graph[name].units
                if unit not in drop.get(name, ())
            ]
            rounded = context.graph.rounded(context.plan, drop, order)
            if not left or _reached(context, rounded):
                break
            rises = yield from self._measuring_without(context, drop, left)
            for (name, unit), value in zip(left, rises, strict=True):
                scores[name][context.graph[name].units.index(unit)] = value
            name, unit = left[int(np.argmin(rises))]
            order[name, unit] = len(order)
            drop[name] = units_of([*drop.get(name, ()), unit])
        drop = context.graph.rounded(context.plan, drop, order)
        found = {name: values for name, values in scores.items() if not np.isnan(values).any()}
        yield from importances(context, found, f"{self.meaning}, last value before its removal")
        return context.move(self, drop) if drop else None

    def _measuring_without(
        self, context: Context, gone: dict[str, Units], units: list[tuple[str, int]]
    ) -> Generator[Any, None, np.ndarray]:
        """Step 1, greedy: the conditional oracle of each of `units`, with `gone` masked."""
        network = masked(context.model, context.graph, context.plan.drop(gone))
        drops = [{}, *({name: (unit,)} for name, unit in units)]
        images = context.images(self.images)
        losses = yield from ablating(
            network, context.graph, images, drops, context.loss, self.images
        )
        rises: np.ndarray = losses[1:] - losses[0]
        return rises if self.signed else np.abs(rises)


def _reached(context: Context, drop: dict[str, Units]) -> bool:
    target = context.target_macs
    return target is not None and context.cost(context.plan.drop(drop)).macs <= target
