"""AOFP's move towards a MAC target (ours, not the paper's): the loss chooses among what passes.

The isolated damage says how much of its consumers' signal a layer loses, not how much the loss
depends on that signal. So towards a target the search proposes, and the loss decides what waits:

For theta, twice theta, and so on up to `max_theta`:
  1. u_i <- what the search finds in layer i, at most `MOST` of its
     consumers' signal.                                               `bearable`
  2. r_i <- the rise of the loss with u_i alone masked; s_i <- the
     multiply-adds that dropping u_i alone saves.                     `LossRises.measuring`
  3. Take layers in the order of r_i / s_i, as long as their rises
     add up to at most half of the sum of all; the others wait.       `_cheaper_half`
  4. Stop where what is taken saves a `STEP`.                         `searching`
Where no theta does that, the smallest at which all layers together save a step: layers are taken
in the same order until a step is saved.                              `_step_of`
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunelab.errors import BadData
from prunelab.evidence import ContributionGram
from prunelab.evidence.ablation import ablating
from prunelab.methods.aofp_search import iter_rungs
from prunelab.methods.base import Context
from prunelab.values import Rung, Units, WidthPlan, units_of

if TYPE_CHECKING:
    from prunelab.methods.aofp import AOFP

STEP = 1 / 32  # of the original MACs: what a move should remove
MOST = 1 / 8  # of its consumers' signal: what one move may take from a group
IMAGES = 128  # of training: enough to tell apart rises of the loss, all on the same images
Drop = dict[str, Units]
Grams = Mapping[str, ContributionGram]


@dataclass(frozen=True, slots=True)
class Choice:
    """What is taken with one theta: the units, and the search that found them."""

    method: AOFP
    rungs: list[list[Rung]]
    drop: Drop


def searching(method: AOFP, context: Context, grams: Grams) -> Generator[Any, None, Choice]:
    """Choose theta and layers; yields Progress while the network runs.

    Where even with `max_theta` too little passes for a step, all of it is taken.
    """
    rises, step = LossRises(context, grams), _step(context)
    fallback: Choice | None = None
    relaxed: AOFP | None = method
    while relaxed is not None:
        method = relaxed
        rungs = [list(iter_rungs(gram, method.theta)) for gram in grams.values()]
        steps = {name: context.graph[name].step for name in grams}
        found = taken(rungs).items()
        drop = {name: bearable(grams[name], units, steps[name]) for name, units in found}
        drop = context.graph.rounded(context.plan, drop, orders(grams))
        if _saved(context, drop) >= step:
            rise = yield from rises.measuring(drop)
            order = _by_price(context, drop, rise)
            choice = Choice(method, rungs, _cheaper_half(order, rise))
            if _saved(context, choice.drop) >= step:
                return choice
            fallback = fallback or Choice(method, rungs, _step_of(context, order, step))
        relaxed = method.relaxed()
    return fallback or Choice(method, rungs, drop)


def _by_price(context: Context, drop: Drop, rise: Mapping[str, float]) -> Drop:
    """The layers of `drop`, that which costs least loss for what it saves first."""
    price = {name: rise[name] / max(1, _saved(context, {name: drop[name]})) for name in drop}
    return {name: drop[name] for name in sorted(drop, key=lambda name: price[name])}


def _cheaper_half(order: Drop, rise: Mapping[str, float]) -> Drop:
    """The first layers that cost together at most half of the loss that all cost."""
    most, spent = sum(rise.values()) / 2, 0.0
    chosen: Drop = {}
    for name, units in order.items():
        spent += rise[name]
        if spent > most:
            break
        chosen[name] = units
    return chosen


def _step_of(context: Context, order: Drop, step: float) -> Drop:
    """The first layers that save a step together."""
    chosen: Drop = {}
    for name, units in order.items():
        chosen[name] = units
        if _saved(context, chosen) >= step:
            break
    return chosen


def taken(rungs: list[list[Rung]]) -> Drop:
    """What the search takes of each layer."""
    last = [search[-1] for search in rungs if search]
    return {rung.group: rung.candidates for rung in last if rung.verdict == "take"}


def orders(grams: Grams) -> dict[tuple[str, int], float]:
    """The damage of each unit alone, by group and unit: the lowest are removed first."""
    return {
        (name, unit): damage
        for name, gram in grams.items()
        for unit, damage in zip(gram.units, gram.alone().tolist(), strict=True)
    }


def bearable(gram: ContributionGram, units: Units, step: int = 1) -> Units:
    """As many of `units`, the least damaging first, as take at most `MOST` of the signal.

    At least one or, where widths are rounded, one `step`.

    Theta may have been doubled until half of every layer passes. Smaller moves, each repaired, do
    less damage.
    """
    if gram.damage(units) <= MOST:
        return units
    alone = dict(zip(gram.units, gram.alone().tolist(), strict=True))
    ordered = sorted(units, key=lambda unit: (alone[unit], unit))
    low, high = min(step, len(ordered)), len(ordered)
    while low < high:  # the damage grows, nearly always, with every unit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if gram.damage(ordered[:middle]) <= MOST else (low, middle - 1)
    return units_of(ordered[:low])


class LossRises:
    """The rise of the loss with units masked, measured once for each set of units.

    One run of the network for each set, on `IMAGES` training images; what comes before the masked
    layer is run once for all. Batches without labels, for which no loss was given, have none: the
    damage stands for its rise then.
    """

    def __init__(self, context: Context, grams: Grams) -> None:
        self._context = context
        self._grams = grams
        self._known: dict[tuple[str, Units], float] = {}

    def measuring(self, drop: Drop) -> Generator[Any, None, dict[str, float]]:
        """The rise without the units of each group alone; a fall counts as none."""
        new = [(name, units) for name, units in drop.items() if (name, units) not in self._known]
        if new:
            rises = yield from self._measuring(new)
            self._known |= zip(new, (max(0.0, rise) for rise in rises), strict=True)
        return {name: self._known[name, units] for name, units in drop.items()}

    def _measuring(self, new: list[tuple[str, Units]]) -> Generator[Any, None, list[float]]:
        context, sets = self._context, [{}, *({name: units} for name, units in new)]
        try:
            losses = yield from ablating(
                context.model, context.graph, context.images(IMAGES), sets, context.loss, IMAGES
            )
        except BadData:
            return [self._grams[name].damage(units) for name, units in new]
        rises: list[float] = (losses[1:] - losses[0]).tolist()
        return rises


def _saved(context: Context, drop: Drop) -> int:
    """The multiply-adds that `drop` saves."""
    return context.cost(context.plan).macs - context.cost(context.plan.drop(drop)).macs


def _step(context: Context) -> float:
    """The multiply-adds that a move should save: a `STEP`, or what the target still needs."""
    assert context.target_macs is not None
    missing = context.cost(context.plan).macs - context.target_macs
    return min(missing, STEP * context.cost(WidthPlan.full(context.graph)).macs)
