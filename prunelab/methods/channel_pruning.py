"""Channel Pruning: LASSO selects, least squares reconstructs (He, Zhang, Sun; ICCV 2017).

A layer's channels are chosen by a LASSO of the next layer's output on what each contributes to
it, layer by layer from the front. The second half of the method, least squares for the next
layer's whole kernel with inputs from the pruned network and outputs of the original, is the
session's `repair="lstsq"`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from prunelab.errors import InvalidValue
from prunelab.evidence import Evidence
from prunelab.evidence.reconstruction_target import by_layer
from prunelab.graph.channels.channel_graph import ChannelGroup
from prunelab.methods.base import Context, Search
from prunelab.methods.lasso import Solution, bisect, lars, ranked
from prunelab.methods.layerwise import carry_of, checked_ratio, next_layer
from prunelab.values import Importance, PathPoint, units_of

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class ChannelPruning:
    """One layer a move, front to back: the channels that LASSO needs for the next layer's output.

    `pruning_ratio` is the share of each layer's original width that goes, one number or one for
    each group (groups not named stay as they are); exactly so many go. With `schedule="shallow"`
    it is that of the shallow layers: those of the last resolution but one keep 1.5 times as
    much, those of the last keep all (the authors' VGG-16). Towards a MAC target the ratios are
    scaled to reach it. `solver="lars"` follows the exact path; "bisect" searches the penalty as
    the released code does. `intercept` lets every output shift by a constant, which a bias or a
    BatchNorm makes good (released: one constant for all outputs). Of residual blocks only the
    inner layers are pruned, unless `groups="all"` (ours). Contributions are measured exactly, on
    `images` training images.

    The LASSO aims at the outputs of the network last trained, and at Y2 + Y1 - Y1' in the last
    layer of a residual branch. For a branch's first layer to read fewer channels than its shortcut
    carries it needs an index sampler, as in the released networks: prune
    `pl.sampled(model, graph)`, which has one before each. A sampler costs a copy at every call,
    and saves less time than multiply-adds.
    """

    name: ClassVar[str] = "channel_pruning"

    pruning_ratio: float | Mapping[str, float] = 0.5
    schedule: Literal["uniform", "shallow"] = "uniform"
    solver: Literal["lars", "bisect"] = "lars"
    intercept: bool = True
    groups: Literal["internal", "all"] = "internal"
    images: int = 512

    def __post_init__(self) -> None:
        ratio = checked_ratio(self.pruning_ratio, self.schedule, ("uniform", "shallow"))
        object.__setattr__(self, "pruning_ratio", ratio)
        if self.solver not in ("lars", "bisect"):
            raise InvalidValue(f"solver is 'lars' or 'bisect', not {self.solver!r}.")
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
        measured: Evidence = yield from context.measure(images=self.images)
        gram, cross, energy = yield from self._problem(context, measured, group)
        bisected = self.solver == "bisect"
        path = bisect(gram, cross, keep, context.seed) if bisected else lars(gram, cross)
        for solution in path:
            yield _point(group.name, solution, gram, cross, energy, keep)
        yield _importance(group, path, bisected)
        order = [group.units[index] for index in ranked(gram, path, keep)]
        drop = {group.name: units_of(order[: len(order) - keep])}
        drop = context.trimmed(drop, {(group.name, unit): i for i, unit in enumerate(order)})
        damage = {name: measured[name].damage(units) for name, units in drop.items()}
        return context.move(self, drop, damage, carry_of(self, group))

    def _problem(
        self, context: Context, measured: Evidence, group: ChannelGroup
    ) -> Generator[Any, None, tuple[Array, Array, float]]:
        """<z_i, z_j>, <z_i, y> and ||y||^2 of the group and what its consumers should give."""
        aims = yield from context.aimed(group.consumers, self.images)
        if self.intercept:
            aims = {name: one.centred for name, one in aims.items()}
        gram, cross = by_layer(aims, group)
        return gram, cross, sum(one.energy for one in aims.values())


def _point(
    group: str, solution: Solution, gram: Array, cross: Array, energy: float, wanted: int
) -> PathPoint:
    beta = solution.coefficients
    missed = energy - 2 * float(beta @ cross) + float(beta @ gram @ beta)
    return PathPoint(
        group,
        penalty=float(f"{solution.penalty:.6g}"),
        kept=solution.kept,
        unexplained=float(f"{max(0.0, missed) / energy if energy > 0 else 0.0:.6g}"),
        wanted=wanted,
    )


def _importance(group: ChannelGroup, path: list[Solution], bisected: bool) -> Importance:
    """The penalty below which each channel is kept; of a bisection, the largest tried that did."""
    largest = np.zeros(len(group.units))
    for before, solution in zip(path if bisected else [*path[:1], *path], path, strict=False):
        # A channel comes in at a knot, and has its first coefficient at the next.
        largest = np.maximum(largest, before.penalty * (solution.coefficients != 0))
    what = "largest penalty of the LASSO that keeps it, share of the one that keeps none"
    return Importance(group.name, group.units, tuple(largest.tolist()), what)
