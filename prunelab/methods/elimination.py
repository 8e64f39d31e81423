"""Backward elimination with refit: removes the channel that the next layer can best do without.

The error of a removal is counted after the next layer's whole kernel has been solved anew by
least squares, so it is the error that repair="lstsq" leaves. Prior art: OSSCAR and OBSPA.

Input: a network, and for each layer the number of its channels to keep.
For each layer, front to back, one move:                            `Elimination.search`
  1. Measure the second moment of the patches that the next layer
     reads, on most images and on those held out.                   `Context.apart`
  2. Invert it, with the ridge that the held-out images prefer.     `refit.refit_problem`
  3. Until enough channels are removed:                             `eliminate`
     a. the error that removing channel c leaves, after a refit:    `RefitProblem.costs`
        tr(W_c' (H_cc)^-1 W_c), H the inverse;
     b. remove the channel with the smallest error, update H and W. `RefitProblem.remove`
  4. Exchange a removed channel for a kept one while that lowers
     the error.                                                     `exchanged`
  5. Refit the network.                                             repair="lstsq"
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from prunelab.methods.base import Context, Search
from prunelab.methods.exchanges import exchanged
from prunelab.methods.layerwise import carry_of, check_layerwise, next_layer
from prunelab.methods.refit import RefitProblem, refit_problem
from prunelab.values import Importance, units_of
from prunelab.values.given import as_annotated

Array = np.ndarray


@as_annotated
@dataclass(frozen=True, slots=True)
class Elimination:
    """One layer a move, front to back: removes channels one by one, the cheapest after a refit.

    `pruning_ratio`, `groups`, `images` and what happens with a MAC target are as in `ThiNet`.
    """

    name: ClassVar[str] = "elimination"

    pruning_ratio: float | Mapping[str, float] = 0.5
    schedule: Literal["uniform"] = "uniform"
    groups: Literal["internal", "all"] = "internal"
    images: int = 512

    def __post_init__(self) -> None:
        check_layerwise(self, "uniform")

    def search(self, context: Context) -> Search:
        """One move: the next layer, and the channels of it to remove."""
        found = next_layer(self, context)
        if found is None:
            return None
        group, keep = found
        solved, held = yield from context.apart(
            ("contribution", "patches"), self.images, group.consumers
        )
        evidence = solved if held is None else solved + held

        def problems() -> list[RefitProblem]:
            layers = context.graph.consumers(group)
            return [refit_problem(context.model, layer, solved, held) for layer in layers]

        numbers = [group.first + unit for unit in group.units]
        ranked, errors = eliminated(problems, numbers, len(group.units) - keep)
        energy = sum(problem.energy for problem in problems())
        shares = errors / energy if energy > 0 else errors
        yield Importance(
            group.name,
            group.units,
            tuple(shares.tolist()),
            "share of the signal missing after a refit, once it is removed in turn",
        )
        order = [number - group.first for number in ranked]
        drop = {group.name: units_of(order[: len(order) - keep])}
        drop = context.trimmed(drop, {(group.name, unit): i for i, unit in enumerate(order)})
        damage = {name: evidence[name].damage(units) for name, units in drop.items()}
        return context.move(self, drop, damage, carry_of(self, group))


def eliminated(
    problems: Callable[[], list[RefitProblem]], units: Sequence[int], count: int
) -> tuple[list[int], Array]:
    """Steps 3 and 4: the units in the order of removal, and their errors, as `eliminate`.

    `problems` makes the least squares of the layers that read the units. Where exchanges change
    the set, the order is that in which elimination removes the units of the new set.
    """
    ranked, errors = eliminate(problems(), units, count)
    better = exchanged(problems, units, ranked[:count])
    if set(better) == set(ranked[:count]):
        return ranked, errors
    return eliminate(problems(), units, count, better)


def eliminate(
    problems: list[RefitProblem],
    units: Sequence[int],
    count: int,
    among: Collection[int] | None = None,
) -> tuple[list[int], Array]:
    """Step 3: remove `count` of `units`, always the one with the smallest error after a refit.

    Each step is exact; the set of all removed units is that of a greedy heuristic.

    Parameters
    ----------
    problems
        The least squares of the layers that read the units; used up.
    units
        Their numbers in the graph.
    count
        How many to remove.
    among
        Only these may be removed, at least `count`; None: any.

    Returns
    -------
    tuple of list and array
        All of `units` in the order of removal, and each one's squared error, aligned with `units`:
        the error once it is removed in turn or, of those that stay, if it were the next.
    """
    alive = list(units)
    allowed = set(alive if among is None else among)
    index = {unit: place for place, unit in enumerate(units)}
    errors = np.zeros(len(alive))
    gone: list[int] = []
    error = 0.0
    while True:
        each = np.sum([problem.costs(alive) for problem in problems], axis=0).tolist()
        costs = dict(zip(alive, each, strict=True))
        if len(gone) == count:
            break
        unit = min((unit for unit in alive if unit in allowed), key=lambda i: (costs[i], i))
        error = errors[index[unit]] = error + costs[unit]
        for problem in problems:
            problem.remove(unit)
        alive.remove(unit)
        gone.append(unit)
    for unit in alive:
        errors[index[unit]] = error + costs[unit]
    return [*gone, *sorted(alive, key=lambda i: (costs[i], i))], errors
