"""Group Fisher pruning (Liu, Zhang, Kuang, Zhou, Xue, Wang, Chen, Yang, Liao, Zhang; ICML 2021).

Input: a network, and the multiply-adds to remove.
Find the layers that share a mask: those that read the same coupled
channels (Algorithm 1).                                         `trace`, `MaskWatch`
Repeat, while a copy of the network trains:                     `GroupFisher._search_training`
  1. Forward and backward one batch; every layer x that reads
     unit i gives dL_n/dm_i^x for each image n.                 `MaskWatch`
  2. Sum over the coupled layers, for each image:
     g_ni = sum_x dL_n/dm_i^x.                                  `MaskWatch.gradients`
  3. Square, then sum over the images of `interval` batches:
     s_i = sum_n g_ni^2 (equation 4).                           `squared_sum`
  4. Divide by what removing the unit saves: the memory of its
     activations, or multiply-adds (section 3.3).               `normalised`
  5. Mask the unit with the lowest score, restart the sums.     `_Removal.remove_lowest`
Until the multiply-adds are removed. Cut the masked units.      approving the move
Fine-tune.                                                      `Session.tune`

Released code: jshilong/FisherPruning, `fisher_pruning.py`. Squaring before the sum over layers
(swapping steps 2 and 3) ignores that one mask acts in all of them, and ranks differently.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from prunelab.cost.savings import savings
from prunelab.data.batches import batch_size
from prunelab.data.private_random import private_random
from prunelab.errors import InvalidValue
from prunelab.evidence.mask_gradients import Masks, MaskWatch, differentiable
from prunelab.graph.channels.channel_graph import ChannelGraph, ChannelGroup
from prunelab.graph.surgery.editing import zero_columns
from prunelab.graph.trace import copy_of
from prunelab.loops.modes import in_training
from prunelab.loops.ranks import summed
from prunelab.loops.training import descend, forever, momentum_of
from prunelab.methods.base import Context, Found, Search, spares
from prunelab.methods.one_shot import importances
from prunelab.methods.settings import check_choice, check_counts, check_groups, check_lr
from prunelab.values import FrozenMap, Progress, Units, WidthPlan
from prunelab.values.given import as_annotated

Array = np.ndarray
Normalise = Literal["memory", "macs"] | None


@as_annotated
@dataclass(frozen=True, slots=True)
class GroupFisher:
    """Removes the units with the least Fisher information for what removing them saves.

    Unlike in the released code, masked units are excluded from the search, units without any
    gradient are removed first (there, their groups are skipped), and every group keeps a unit.
    Approving a move adopts the weights that were trained meanwhile; the next search goes on with
    their momentum. `GroupFisher(**GroupFisher.CLASSIFICATION)` and `.DETECTION` have the published
    interval and learning rate (for batches of 32 images, and of 2).

    Parameters
    ----------
    normalise
        What scores are divided by: "memory", the bytes of activations of all producers of the
        unit; "macs", the multiply-adds of its producers and consumers at their present widths;
        None, nothing (section 3.3).
    training
        Whether a private copy trains by SGD meanwhile. Without, squares are summed once, over
        `images` images, in evaluation mode.
    interval
        Batches between two removals (published: 25 for classification, 10 for detection).
    units_per_step
        Units to remove at a time (published: 1).
    share
        The share of the original MACs that a move removes, unless it meets the target before.
    lr
        The constant learning rate.
    images
        How many training images are measured without training.
    masks
        Where masks stand, see `MaskWatch`.
    groups
        "all" (published), or "internal" to leave residual streams whole: the paper's ablation
        without coupled channels.
    """

    name: ClassVar[str] = "group_fisher"
    repair: ClassVar[str | None] = None

    CLASSIFICATION: ClassVar[FrozenMap[Any]] = FrozenMap({"interval": 25, "lr": 0.004})
    DETECTION: ClassVar[FrozenMap[Any]] = FrozenMap({"interval": 10, "lr": 0.002})

    normalise: Normalise = "memory"
    training: bool = True
    interval: int = 10
    units_per_step: int = 1
    share: float = 1 / 32
    lr: float = 0.004
    images: int = 512
    masks: Masks = "readers"
    groups: Literal["all", "internal"] = "all"

    def __post_init__(self) -> None:
        check_choice(self, "normalise", "memory", "macs", None)
        check_choice(self, "masks", "readers", "consumers")
        check_groups(self)
        check_counts(self, "interval", "units_per_step", "images")
        if not 0 <= self.share <= 1:
            raise InvalidValue(f"share is a share of the MACs, from 0 to 1; not {self.share!r}.")
        check_lr(self)

    @property
    def meaning(self) -> str:
        """What the scores are."""
        per = {"memory": " per kB of activations saved", "macs": " per 1000 MACs saved"}
        return "mean squared mask gradient" + per.get(self.normalise or "", "")

    def targets(self, context: Context) -> list[ChannelGroup]:
        """The groups whose units are removed."""
        return [g for g in context.prunable if not spares(self, g)]

    def search(self, context: Context) -> Search:
        """One move: removes units one after another until its share of the MACs is gone."""
        if not self.targets(context):
            return None
        removal = _Removal(self, context)
        if self.training:
            return (yield from self._search_training(context, removal))
        evidence = yield from context.measure(("gradient",), images=self.images, masks=self.masks)
        assert evidence.gradients is not None
        fisher = evidence.gradients[2, :-1] / evidence.images  # steps 1 to 3, without training
        while not removal.done:
            removal.remove_lowest(fisher)
        yield from importances(context, removal.scores(), self.meaning)
        return context.move(self, removal.drop)

    def _search_training(self, context: Context, removal: _Removal) -> Search:
        """Steps 1 to 5, repeated, on a copy of the network that trains by SGD."""
        network = copy_of(context.model)
        training = replace(context.train, lr=self.lr)
        optimiser = training.optimiser(network, momentum=context.momentum())
        watch = MaskWatch(network, context.graph, self.masks)
        stream = forever(lambda epoch: context.training_batches(context.seed + epoch))
        step = 0
        with in_training(network, context.frozen), differentiable(network):
            while not removal.done:
                total, images = torch.zeros(context.graph.units + 1, dtype=torch.float64), 0
                for _ in range(self.interval):
                    batch = next(stream)
                    now = watch.on(batch)
                    with private_random(context.seed + step):
                        descend(network, batch, context.loss, optimiser, watch=now)
                    zero_columns(
                        network, context.graph, removal.drop
                    )  # SGD moves the masked columns
                    total += squared_sum(watch.gradients())
                    images += batch_size(batch)
                    step += 1
                    yield Progress(*removal.progress, f"Group Fisher trains, batch {step}")
                every = summed({"fisher": total[:-1].numpy(), "images": images})
                removal.remove_lowest(every["fisher"] / every["images"])
                zero_columns(network, context.graph, removal.drop)
        network.zero_grad(set_to_none=True)
        yield from importances(context, removal.scores(), self.meaning)
        move = context.move(self, removal.drop, carry={"batches": step})
        return Found(move, network, momentum_of(optimiser, network))


def squared_sum(gradients: Tensor) -> Tensor:
    """Step 3: the sum over images of squares [units] of each image's gradients [images, units]."""
    return gradients.square().sum(0).cpu()


def normalised(fisher: Array, graph: ChannelGraph, plan: WidthPlan, by: Normalise) -> Array:
    """Step 4: the scores [units] for each kB of activations, or 1000 MACs, that a unit saves.

    Parameters
    ----------
    fisher
        The mean squared mask gradients [units of the graph].
    graph, plan
        The graph, and the units that are left.
    by
        "memory", "macs" or None, which leaves the scores as they are.
    """
    if by is None:
        return fisher
    macs, memory = savings(graph, plan)
    saved = (memory if by == "memory" else macs) / 1e3
    scores: Array = fisher / np.where(saved > 0, saved, np.inf)
    return scores


class _Removal:
    """The units removed so far in a move, and when it is done."""

    def __init__(self, method: GroupFisher, context: Context) -> None:
        self.drop: dict[str, Units] = {}  # of the units removed, as many as widths allow
        self._removed: dict[str, list[int]] = {}
        self._order: dict[tuple[str, int], float] = {}
        self._method = method
        self._context = context
        self._targets = method.targets(context)
        self._latest = np.zeros(context.graph.units)  # last score computed before removal
        now, whole = context.cost(context.plan).macs, context.cost(WidthPlan.full(context.graph))
        self._start = self._now = now
        self._goal = max(now - method.share * whole.macs, context.target_macs or 0)

    @property
    def done(self) -> bool:
        """Whether the move has removed its share, or every group is at its smallest width."""
        return (bool(self.drop) and self._now <= self._goal) or not self._candidates().any()

    @property
    def progress(self) -> tuple[int, int]:
        """MACs removed, and to be removed."""
        whole = max(1, int(self._start - self._goal))
        return min(whole, self._start - self._now), whole

    def remove_lowest(self, fisher: Array) -> None:
        """Step 5: remove the units with the lowest score, given the mean squares [units]."""
        context, method = self._context, self._method
        for _ in range(method.units_per_step):
            plan = context.plan.drop(self.drop)
            scores = normalised(fisher, context.graph, plan, method.normalise)
            alive = self._alive()
            self._latest[alive] = scores[alive]
            unit = int(np.argmin(np.where(self._candidates(), scores, np.inf)))
            group = next(g for g in self._targets if g.first <= unit < g.span.stop)
            self._removed.setdefault(group.name, []).append(unit - group.first)
            self._order[group.name, unit - group.first] = len(self._order)
            self.drop = context.graph.rounded(context.plan, self._removed, self._order)
            self._now = context.cost(context.plan.drop(self.drop)).macs
            if self._now <= (context.target_macs or 0) or not self._candidates().any():
                return

    def scores(self) -> dict[str, Array]:
        """Each unit's score: the last one computed, before its removal if it was removed."""
        return {
            group.name: self._latest[group.first + np.asarray(group.units)]
            for group in self._targets
        }

    def _alive(self) -> Array:
        """Which units of the graph are not masked [units]."""
        alive = np.zeros(self._context.graph.units, dtype=bool)
        for group in self._targets:
            alive[group.first + np.asarray(group.units)] = True
            gone = np.asarray(self._removed.get(group.name, ()), dtype=np.int64)
            alive[group.first + gone] = False
        return alive

    def _candidates(self) -> Array:
        """Which units may be masked: every group keeps its smallest width [units]."""
        alive = self._alive()
        for group in self._targets:
            if alive[group.span].sum() <= group.narrowest:
                alive[group.span] = False
        return alive
