"""Backward elimination with a refit: the channel goes that the next layer can best do without.

What a channel's loss costs is counted after the next layer's whole kernel has been solved anew by
least squares, so it is the very error that `repair="lstsq"` will leave. The optimal brain surgeon
for whole channels of a layerwise problem; prior art: OSSCAR and OBSPA.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from math import prod
from operator import add
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from prunelab.data.batches import HOLD, part, take
from prunelab.errors import BadData, InvalidValue
from prunelab.evidence import Evidence, PatchMoments
from prunelab.evidence.gram_collector import distinct_units
from prunelab.evidence.measure import measuring
from prunelab.graph.channels.channel_graph import Layer
from prunelab.methods.base import Context, Search
from prunelab.methods.layerwise import carry_of, checked_ratio, next_layer
from prunelab.repair.fit import loaded, ridge_without
from prunelab.values import Importance, units_of

Array = np.ndarray
WIDEST = 8192  # patch entries whose second moment is inverted


@dataclass(frozen=True, slots=True)
class Elimination:
    """One layer a move, front to back: channels go one by one, each the cheapest after a refit.

    `pruning_ratio`, `groups`, `images` and what happens towards a MAC target are as in `ThiNet`.
    """

    name: ClassVar[str] = "elimination"

    pruning_ratio: float | Mapping[str, float] = 0.5
    schedule: Literal["uniform"] = "uniform"
    groups: Literal["internal", "all"] = "internal"
    images: int = 512

    def __post_init__(self) -> None:
        ratio = checked_ratio(self.pruning_ratio, self.schedule, ("uniform",))
        object.__setattr__(self, "pruning_ratio", ratio)
        if self.groups not in ("internal", "all"):
            raise InvalidValue(f"groups is 'internal' or 'all', not {self.groups!r}.")
        if self.images < 1:
            raise InvalidValue(f"images must be at least 1, not {self.images}.")

    def search(self, context: Context) -> Search:
        """One move: the next layer, and the channels of it that go."""
        found = next_layer(self, context)
        if found is None:
            return None
        group, keep = found
        solved, held = yield from measured_apart(
            context, self.images, ("contribution", "patches"), group.consumers
        )
        evidence = solved if held is None else solved + held
        problems = [
            problem_of(context.model, layer, solved, held)
            for layer in context.graph.consumers(group)
        ]
        numbers = [group.first + unit for unit in group.units]
        ranked, errors = eliminated(problems, numbers, len(group.units) - keep)
        energy = sum(problem.energy for problem in problems)
        shares = errors / energy if energy > 0 else errors
        yield Importance(
            group.name,
            group.units,
            tuple(shares.tolist()),
            "signal missed after a refit once it goes in its turn, share",
        )
        order = [number - group.first for number in ranked]
        drop = {group.name: units_of(order[: len(order) - keep])}
        drop = context.trimmed(drop, {(group.name, unit): i for i, unit in enumerate(order)})
        damage = {name: evidence[name].damage(units) for name, units in drop.items()}
        return context.move(self, drop, damage, carry_of(self, group))


class Problem:
    """One layer's least squares: `inverse` [n, n] of its patches' second moment, and its kernel.

    `kernel` [out, n] is the one that makes the outputs now. `entries` lists for each unit read, by
    its number in the graph, the patch entries that go with it, and `outputs` [out] the units made.
    `energy` is the squared norm of the outputs. Errors e of the outputs count as e' `metric` e
    ([out, out]), summed over the patches; None: as their squares. `inverse` is changed in place.
    """

    def __init__(
        self,
        inverse: Array,
        kernel: Array,
        entries: dict[int, Array],
        outputs: Array,
        energy: float,
        metric: Array | None = None,
    ) -> None:
        self.inverse = inverse
        self.entries = entries
        self.outputs = outputs
        self.energy = energy
        self._metric = np.eye(len(kernel)) if metric is None else metric
        # By patch entry [n, out], and beside it times the metric: both are kept up to date.
        self._kernel = kernel.T.copy()
        self._weighed = self._kernel @ self._metric

    @property
    def kernel(self) -> Array:
        """What reproduces the outputs as well as the entries left allow [out, n]."""
        return self._kernel.T

    def prices(self, units: Sequence[int]) -> Array:
        """By how much the error grows when one of `units` goes and the rest is solved anew."""
        found = np.zeros(len(units))
        sizes = np.array([len(self.entries[unit]) for unit in units])
        for size in np.unique(sizes):  # one size, but where a unit is read twice
            same = np.flatnonzero(sizes == size)
            own = np.stack([self.entries[units[index]] for index in same.tolist()])
            blocks = np.linalg.inv(self.inverse[own[:, :, None], own[:, None, :]])
            losses = self._kernel[own] @ self._weighed[own].transpose(0, 2, 1)
            found[same] = np.sum(blocks * losses, axis=(1, 2))
        return found

    def remove(self, unit: int) -> None:
        """Take a unit's entries out: block elimination of the inverse, refit of the kernel."""
        own = self.entries.pop(unit)
        rows = self.inverse[own]
        gain = np.linalg.solve(rows[:, own], rows)
        self._weighed -= gain.T @ self._weighed[own]
        self._kernel -= gain.T @ self._kernel[own]
        self.inverse -= rows.T @ gain

    def forget(self, unit: int) -> None:
        """Take a unit's outputs out: nobody minds any more what becomes of them."""
        keep, gone = self.outputs != unit, self.outputs == unit
        share = self._kernel[:, gone] @ self._metric[np.ix_(gone, keep)]
        self._weighed = self._weighed[:, keep] - share
        self._kernel = self._kernel[:, keep]
        self._metric = self._metric[np.ix_(keep, keep)]
        self.outputs = self.outputs[keep]


def solvable(layer: Layer) -> bool:
    """Whether a layer's least squares can be solved here."""
    return not layer.transposed and len(layer.in_units) * prod(layer.kernel) <= WIDEST


def measured_apart(
    context: Context, images: int, kinds: Sequence[str], layers: Sequence[str]
) -> Generator[Any, None, tuple[Evidence, Evidence | None]]:
    """Evidence on most of `images` training images, and on those held out (None: there are none).

    So that what is worked out from the first can be judged by the second.
    """
    found: list[Evidence | None] = []
    for held in (False, True):
        batches = part(take(context.training_batches(context.seed), images), held)
        first = next(batches, None)
        if first is None and held:
            found.append(None)
            continue
        found.append(
            (
                yield from measuring(
                    context.model,
                    context.graph,
                    () if first is None else chain([first], batches),
                    kinds,
                    layers=layers,
                    seed=context.seed,
                    forward=context.forward,
                    loss=context.loss,
                    expected=images // HOLD if held else images - images // HOLD,
                )
            )
        )
    solved, apart = found
    assert solved is not None
    return solved, apart


def problem_of(
    model: nn.Module,
    layer: Layer,
    solved: Evidence,
    held: Evidence | None,
    metric: Array | None = None,
) -> Problem:
    """The least squares of a layer, with an intercept where it has one.

    On all images; how much it is shrunk, those that are `held` out tell.
    """
    if not solvable(layer):
        raise InvalidValue(
            f"{layer.name} cannot be refitted: elimination takes convolutions that are not "
            f"transposed, with at most {WIDEST} inputs times kernel entries. Use ThiNet for what "
            "it reads, or leave that out of pruning_ratio={...}."
        )
    parameters = dict(model.named_parameters())
    weight = parameters[layer.weight].detach().double().cpu()
    kernel = weight.reshape(len(weight), -1)
    shifts = layer.norm is not None or layer.weight.removesuffix("weight") + "bias" in parameters
    places = np.repeat(layer.in_units, prod(layer.kernel))
    units = distinct_units(layer)
    parts = [one.moments[layer.name] for one in (solved, held) if one and layer.name in one.moments]
    if not parts:
        raise BadData(
            f"{layer.name} did not run on these images, so nothing is known of what it reads. Give "
            "other images, or leave that out of pruning_ratio={...}."
        )
    seconds = [one.moment.cpu() for one in parts]
    ridge = ridge_without(
        torch.from_numpy(np.isin(places, units[1::2])),
        kernel.T,
        seconds[0],
        seconds[1] if len(seconds) > 1 else None,
        constant=shifts,
    )
    moment = _second_moment(reduce(add, parts), shifts)
    return Problem(
        inverse=np.linalg.inv(loaded(torch.from_numpy(moment), ridge).numpy()),
        kernel=kernel.numpy(),
        entries={unit: np.flatnonzero(places == unit) for unit in units.tolist()},
        outputs=layer.out_units,
        energy=float(np.sum((kernel.numpy() @ moment) * kernel.numpy())),
        metric=metric,
    )


def _second_moment(moments: PatchMoments, shifts: bool) -> Array:
    moment: Array = moments.moment.cpu().numpy()
    inner = moment[:-1, :-1]
    if shifts:
        inner = inner - np.outer(moment[-1, :-1], moment[-1, :-1]) / max(1, moments.rows)
    return inner


def eliminated(
    problems: list[Problem], units: Sequence[int], count: int
) -> tuple[list[int], Array]:
    """All of `units`, the `count` that go first, in order; and each one's squared error.

    That is the error once it goes in its turn; for those that stay, were it the next to go. The
    errors align with `units`; the problems are used up. Greedy: each step is exact, all together
    are a heuristic.
    """
    alive = list(units)
    place = {unit: index for index, unit in enumerate(units)}
    errors = np.zeros(len(alive))
    gone: list[int] = []
    error = 0.0
    while True:
        each = np.sum([problem.prices(alive) for problem in problems], axis=0).tolist()
        prices = dict(zip(alive, each, strict=True))
        if len(gone) == count:
            break
        unit = min(alive, key=lambda i: (prices[i], i))
        error = errors[place[unit]] = error + prices[unit]
        for problem in problems:
            problem.remove(unit)
        alive.remove(unit)
        gone.append(unit)
    for unit in alive:
        errors[place[unit]] = error + prices[unit]
    return [*gone, *sorted(alive, key=lambda i: (prices[i], i))], errors
