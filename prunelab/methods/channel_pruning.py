"""Channel Pruning: LASSO selects, least squares reconstructs (He, Zhang, Sun; ICCV 2017).

Input: a network, and for each layer the number c' of its input channels to keep.
For each layer, front to back, one move:                                `ChannelPruning.search`
  1. Collect the layer's inputs X_i in the network as pruned so far and
     its outputs Y in the original network; after a residual branch
     Y = Y2 + Y1 - Y1', the branch's output plus the shortcut's drift.  `ChannelPruning._measuring`
  2. With W fixed, Z_i = X_i W_i': the normal equations <Z_i, Z_j> and
     <Z_i, Y> of the LASSO
     min over beta of 1/2 ||Y - sum_i beta_i Z_i||^2 + lambda ||beta||_1.  `by_layer` (in evidence)
     In the paper with ||W_i||_F = 1, in the released code not.          `_norms`
  3. Raise lambda until c' of the beta are not zero.                    `lasso.lars`, `lasso.bisect`
  4. Keep exactly c' channels and remove the others.                    `lasso.ranked`
  5. With beta fixed, reconstruct: the least-squares W of Y on the X_i
     kept, intercept included.                                          repair="lstsq"
     In the paper 2 to 5 in turn, with lambda rising; as released, once. `alternations`

Released code: ethanhe42/channel-pruning, `lib/decompose.py` (`dictionary`) and `lib/net.py`. The
products are summed over all outputs; the released code draws 10 positions an image.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from prunelab.evidence import Evidence
from prunelab.evidence.aimed_gram import by_layer
from prunelab.graph.channels.channel_graph import ChannelGroup
from prunelab.methods.base import Context, Search
from prunelab.methods.lasso import Solution, bisect, lars, ranked
from prunelab.methods.layerwise import carry_of, check_layerwise, next_layer
from prunelab.methods.settings import check_choice, check_counts
from prunelab.values import Importance, PathPoint, units_of
from prunelab.values.given import as_annotated

Array = np.ndarray


@as_annotated
@dataclass(frozen=True, slots=True)
class ChannelPruning:
    """One layer a move, front to back: keeps the channels that a LASSO of the next layer selects.

    The LASSO's target is the output of the network last trained, at the end of a residual branch
    Y2 + Y1 - Y1'. For the first layer of a branch to read fewer channels than its shortcut carries
    it needs a channel selector, as in the released networks: prune
    `pl.with_channel_selectors(model, graph)`, which has one before each. A selector copies its
    input at every call, so it saves a larger share of multiply-adds than of time.

    Parameters
    ----------
    pruning_ratio
        The share of each layer's original width to remove, exactly: one number, or a mapping from
        groups to numbers (other groups stay whole). With a MAC target the ratios are scaled to
        meet it.
    schedule
        "uniform", or "shallow" as for the authors' VGG-16: the ratio is that of the shallow
        layers, those of the last resolution but one keep 1.5 times as much, those of the last
        resolution stay whole.
    solver
        "lars" follows the exact path of the LASSO, "bisect" searches the penalty as the released
        code does.
    intercept
        Whether every output may shift by a constant, which a bias or a BatchNorm absorbs
        (released code: one constant for all outputs).
    normalise
        Whether ||W_i||_F = 1 before the LASSO, as the paper writes it: the penalty is then on
        beta_i ||W_i||_F (released code: no).
    alternations
        In how many moves a layer loses its channels. With repair="lstsq" after each, beta and W
        are solved in turn, as in the paper, until c' channels are left (released code: once).
    groups
        "internal" prunes only the inner layers of residual blocks, "all" residual streams too
        (an extension).
    images
        How many training images are measured, at all output positions.
    """

    name: ClassVar[str] = "channel_pruning"

    pruning_ratio: float | Mapping[str, float] = 0.5
    schedule: Literal["uniform", "shallow"] = "uniform"
    solver: Literal["lars", "bisect"] = "lars"
    intercept: bool = True
    normalise: bool = False
    alternations: int = 1
    groups: Literal["internal", "all"] = "internal"
    images: int = 512

    def __post_init__(self) -> None:
        check_layerwise(self, "uniform", "shallow")
        check_choice(self, "solver", "lars", "bisect")
        check_counts(self, "alternations")

    def search(self, context: Context) -> Search:
        """One move: the next layer, and the channels of it to remove."""
        found = next_layer(self, context)
        if found is None:
            return None
        group, goal = found
        left = self._alternations_left(context, group)
        keep = len(group.units) - -(-(len(group.units) - goal) // left)
        measured: Evidence = yield from context.measure(images=self.images)
        gram, cross, energy = yield from self._measuring(context, measured, group)
        bisected = self.solver == "bisect"
        path = bisect(gram, cross, keep, context.seed) if bisected else lars(gram, cross)
        for solution in path:
            yield _point(group.name, solution, gram, cross, energy, keep)
        yield _importance(group, path, bisected)
        order = [group.units[index] for index in ranked(gram, path, keep)]
        drop = {group.name: units_of(order[: len(order) - keep])}
        drop = context.trimmed(drop, {(group.name, unit): i for i, unit in enumerate(order)})
        damage = {name: measured[name].damage(units) for name, units in drop.items()}
        carry = carry_of(self, group)
        if keep > goal:  # the next move is of the same layer
            before = {key: context.carry[key] for key in ("after",) if key in context.carry}
            carry = {**carry, "left": [group.name, left - 1], "after": None} | before
        return context.move(self, drop, damage, carry)

    def _alternations_left(self, context: Context, group: ChannelGroup) -> int:
        """In how many moves the layer loses the rest of its channels."""
        name, left = context.carry.get("left", (None, 1))
        return int(left) if name == group.name else self.alternations

    def _measuring(
        self, context: Context, measured: Evidence, group: ChannelGroup
    ) -> Generator[Any, None, tuple[Array, Array, float]]:
        """Steps 1 and 2: <z_i, z_j>, <z_i, y> and ||y||^2 of the group and its targets y."""
        aims = yield from context.aimed(group.consumers, self.images)
        if self.intercept:
            aims = {name: one.centred for name, one in aims.items()}
        gram, cross = by_layer(aims, group)
        if self.normalise:
            norms = _norms(context, group)
            gram, cross = gram / np.outer(norms, norms), cross / norms
        return gram, cross, sum(one.energy for one in aims.values())


def _norms(context: Context, group: ChannelGroup) -> Array:
    """||W_i||_F of the weights that read each unit, 1 for one that is not read [units]."""
    parameters = dict(context.model.named_parameters())
    squares = np.zeros(context.graph.units + 1)
    for layer in context.graph.consumers(group):
        weight = parameters[layer.weight].detach().movedim(layer.in_axis, 0).flatten(1)
        np.add.at(squares, layer.in_units, weight.double().square().sum(1).cpu().numpy())
    norms = np.sqrt(squares[group.first + np.asarray(group.units)])
    return np.where(norms > 0, norms, 1.0)


def _point(
    group: str, solution: Solution, gram: Array, cross: Array, energy: float, wanted: int
) -> PathPoint:
    """A solution to show: its penalty, how many channels it keeps, what it leaves unexplained."""
    beta = solution.coefficients
    unexplained = energy - 2 * float(beta @ cross) + float(beta @ gram @ beta)
    return PathPoint(
        group,
        penalty=float(f"{solution.penalty:.6g}"),
        kept=solution.kept,
        unexplained=float(f"{max(0.0, unexplained) / energy if energy > 0 else 0.0:.6g}"),
        wanted=wanted,
    )


def _importance(group: ChannelGroup, path: list[Solution], bisected: bool) -> Importance:
    """The penalty below which each channel is kept; of a bisection, the largest tried that did."""
    largest = np.zeros(len(group.units))
    for before, solution in zip(path if bisected else [*path[:1], *path], path, strict=False):
        # A channel enters at a knot and has its first nonzero coefficient at the next.
        largest = np.maximum(largest, before.penalty * (solution.coefficients != 0))
    what = "largest LASSO penalty that keeps it, as a share of the smallest that keeps none"
    return Importance(group.name, group.units, tuple(largest.tolist()), what)
