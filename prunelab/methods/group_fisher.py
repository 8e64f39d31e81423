"""Group Fisher (Liu, Zhang, Kuang, Zhou, Xue, Wang, Chen, Yang, Liao, Zhang; ICML 2021).

A unit's importance is the sum over images of (dL_n/dm)^2, where the gradients of all layers that
share its mask are added up before the square, divided by the memory that dropping it saves. The
network trains meanwhile; after every few batches the unit with the lowest score is masked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from prunelab.cost.counting import savings
from prunelab.data.batches import batch_size
from prunelab.data.private_random import private_random
from prunelab.errors import InvalidValue
from prunelab.evidence.mask_gradients import Masks, MaskWatch, differentiable
from prunelab.graph.surgery.editing import silence
from prunelab.graph.trace import copy_of
from prunelab.loops.training import descend, forever
from prunelab.methods.base import Context, Found, Search
from prunelab.methods.one_shot import importances
from prunelab.values import Progress, Units, WidthPlan, units_of

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class GroupFisher:
    """Drops the units with the least Fisher information for what they cost.

    `normalise` divides by the bytes of activations that all producers of the unit save
    ("memory", section 3.3), by the multiply-adds that producers and consumers save at their
    present widths ("macs"), or by nothing (None). A private copy trains by SGD at the constant
    rate `lr`; squares are summed over `interval` batches (published: 25 for classification, 10
    for detection), then `units_per_step` units go (published: 1) and the sums restart. A move
    ends when it has removed `share` of the original MACs, or meets the target; approve adopts
    the trained weights.

    `training=False` looks without training: squares are summed once, over `images` images in
    evaluation mode. `masks`: where masks stand, see `MaskWatch`. Unlike the released code, masked
    units are left out of the search, units without any gradient are dropped first (there their
    groups are skipped), and one unit of a group always stays.
    """

    name: ClassVar[str] = "group_fisher"

    normalise: Literal["memory", "macs"] | None = "memory"
    training: bool = True
    interval: int = 10
    units_per_step: int = 1
    share: float = 1 / 32
    lr: float = 0.004
    images: int = 512
    masks: Masks = "readers"

    def __post_init__(self) -> None:
        if self.normalise not in ("memory", "macs", None):
            raise InvalidValue(f"normalise is 'memory', 'macs' or None, not {self.normalise!r}.")
        if self.masks not in ("readers", "consumers"):
            raise InvalidValue(f"masks is 'readers' or 'consumers', not {self.masks!r}.")
        for name in ("interval", "units_per_step", "images"):
            if getattr(self, name) < 1:
                raise InvalidValue(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 <= self.share <= 1:
            raise InvalidValue(f"share is a share of the MACs, from 0 to 1; not {self.share!r}.")
        if not self.lr > 0:
            raise InvalidValue(f"lr is a learning rate above 0, not {self.lr}.")

    @property
    def meaning(self) -> str:
        """What the scores are."""
        per = {"memory": " per kB of activations saved", "macs": " per 1000 MACs saved"}
        return "mean squared mask gradient" + per.get(self.normalise or "", "")

    def search(self, context: Context) -> Search:
        """One move: units one after another, while a copy trains or on the network as it is."""
        if not context.prunable:
            return None
        choice = _Choice(self, context)
        if self.training:
            return (yield from self._search_training(context, choice))
        evidence = yield from context.measure(("gradient",), images=self.images, masks=self.masks)
        assert evidence.gradients is not None
        fisher = evidence.gradients[2, :-1] / evidence.images
        while not choice.done:
            choice.drop_from(fisher)
        yield from importances(context, choice.scores(), self.meaning)
        return context.move(self, choice.drop)

    def _search_training(self, context: Context, choice: _Choice) -> Search:
        network = copy_of(context.model).train()
        optimiser = replace(context.train, lr=self.lr).optimiser(network)
        watch = MaskWatch(network, context.graph, self.masks)
        stream = forever(lambda epoch: context.training_batches(context.seed + epoch))
        step = 0
        with differentiable(network):
            while not choice.done:
                watch.restart()
                for _ in range(self.interval):
                    batch = next(stream)
                    with private_random(context.seed + step):
                        descend(network, batch, context.loss, optimiser, watch=watch)
                    silence(network, context.graph, choice.drop)  # SGD moves the masked columns
                    watch.add(batch_size(batch))
                    step += 1
                    yield Progress(*choice.progress, f"Group Fisher trains, batch {step}")
                choice.drop_from(watch.sums[2, :-1].numpy() / watch.images)
                silence(network, context.graph, choice.drop)
        network.zero_grad(set_to_none=True)
        yield from importances(context, choice.scores(), self.meaning)
        move = context.move(self, choice.drop, carry={"batches": step})
        return Found(move, network.eval())


class _Choice:
    """The units dropped so far in a move, and when it is done."""

    def __init__(self, method: GroupFisher, context: Context) -> None:
        self.drop: dict[str, Units] = {}
        self._method = method
        self._context = context
        self._latest = np.zeros(context.graph.units)  # each unit's score when it was last asked
        now, whole = context.cost(context.plan).macs, context.cost(WidthPlan.full(context.graph))
        self._from = self._now = now
        self._aim = max(now - method.share * whole.macs, context.target_macs or 0)

    @property
    def done(self) -> bool:
        """Whether the move has removed its share, or no group has a unit to give."""
        return (bool(self.drop) and self._now <= self._aim) or not self._open().any()

    @property
    def progress(self) -> tuple[int, int]:
        """MACs removed, and to be removed."""
        whole = max(1, int(self._from - self._aim))
        return min(whole, self._from - self._now), whole

    def drop_from(self, fisher: Array) -> None:
        """Drop the units with the lowest score; `fisher` [units of the graph] is the latest."""
        context, method = self._context, self._method
        for _ in range(method.units_per_step):
            macs, memory = savings(context.graph, context.plan.drop(self.drop))
            saved = {"memory": memory / 1e3, "macs": macs / 1e3}.get(method.normalise or "")
            open_ = self._open()
            there = self._there()
            scores = fisher if saved is None else fisher / np.where(saved > 0, saved, np.inf)
            self._latest[there] = scores[there]
            unit = int(np.argmin(np.where(open_, scores, np.inf)))
            group = next(g for g in context.prunable if g.first <= unit < g.span.stop)
            self.drop[group.name] = units_of([*self.drop.get(group.name, ()), unit - group.first])
            self._now = context.cost(context.plan.drop(self.drop)).macs
            if self._now <= (context.target_macs or 0) or not self._open().any():
                return

    def scores(self) -> dict[str, Array]:
        """Each unit's score when it was last asked, or dropped."""
        found = {}
        for group in self._context.prunable:
            found[group.name] = self._latest[group.first + np.asarray(group.units)]
        return found

    def _there(self) -> Array:
        """Which units of the graph are not masked [units]."""
        there = np.zeros(self._context.graph.units, dtype=bool)
        for group in self._context.prunable:
            there[group.first + np.asarray(group.units)] = True
            there[group.first + np.asarray(self.drop.get(group.name, ()), dtype=np.int64)] = False
        return there

    def _open(self) -> Array:
        """Which of them may go: one of a group stays."""
        there = self._there()
        for group in self._context.prunable:
            if there[group.span].sum() < 2:
                there[group.span] = False
        return there
