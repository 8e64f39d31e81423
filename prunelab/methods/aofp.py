"""AOFP: approximated oracle filter pruning (Ding, Ding, Guo, Han, Yan; ICML 2019).

To score the channels of a layer, look only at its consumer: the damage of masking a set is how
much of the consumer's output changes, relative to all of it. Random halves of a search set are
masked; each channel's score is the mean damage of the masks that held it. If the worst score of
the better half stays below theta, that half is dropped at once; else it is searched in turn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar, Literal

from prunelab.errors import InvalidValue
from prunelab.evidence import ContributionGram
from prunelab.graph.channels.channel_graph import ChannelGroup
from prunelab.methods.aofp_sampled import search_sampled
from prunelab.methods.aofp_search import ladder
from prunelab.methods.base import Context, Search
from prunelab.values import Move, Rung, Units, WidthPlan, units_of


@dataclass(frozen=True, slots=True)
class AOFP:
    """Binary search per layer for the channels whose loss the next layer hardly notices.

    `theta`: a half is dropped when its worst mean damage is below this share of the consumer's
    signal (strictly, as in the released PyTorch code). `scoring="exact"` takes the expectation
    over all masks in closed form, on frozen weights; "sampled" draws masks on a scoring path
    while SGD trains a private copy of the network, as the released code does. On the way to a
    target (`run`, `prune`) theta is doubled, up to `max_theta`, while no layer passes or all that
    do would remove less than 1/32 of the original MACs; the move says which theta it took, and
    it takes at most an eighth of the signal that a group's consumers read (ours: at a theta of 0.64
    half of every layer would go at once).
    `groups`: "internal" leaves residual streams alone (the released code), "all" scores them by
    the sum over their consumers (ours).

    Exact: `images` training images are measured; `at` is "conv" or "bn" (behind the consumer's
    BatchNorm). Sampled: SGD at the constant rate `lr`, `batches` per halving (released: 1000 or
    20000), `warmup` batches before the first, starts staggered over the layers; a layer that
    fails restarts, and retires from this move after `retire_after` failures (released: never);
    `at` may also be "relu" (the default here), behind BatchNorm and the activation that follow, as
    released. The scoring path always uses the base path's BatchNorm
    statistics (the released code lets it use and disturb its own).
    """

    name: ClassVar[str] = "aofp"

    theta: float = 0.01
    scoring: Literal["exact", "sampled"] = "exact"
    groups: Literal["internal", "all"] = "internal"
    max_theta: float = 0.64
    at: str | None = None
    images: int = 512
    batches: int = 100
    warmup: int = 50
    retire_after: int = 3
    lr: float = 0.001

    def __post_init__(self) -> None:
        if not self.theta >= 0:
            raise InvalidValue(
                f"theta is a share of a layer's signal and cannot be {self.theta!r}; give 0 or "
                "more, 0.01 as in the released code."
            )
        if self.scoring not in ("exact", "sampled"):
            raise InvalidValue(f"scoring is 'exact' or 'sampled', not {self.scoring!r}.")
        if self.groups not in ("internal", "all"):
            raise InvalidValue(f"groups is 'internal' or 'all', not {self.groups!r}.")
        places = ("conv", "bn") if self.scoring == "exact" else ("conv", "bn", "relu")
        if self.at is not None and self.at not in places:
            raise InvalidValue(
                f"at is one of {', '.join(places)} with scoring={self.scoring!r}, not {self.at!r}."
            )
        for name in ("images", "batches", "retire_after"):
            if getattr(self, name) < 1:
                raise InvalidValue(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not self.lr > 0:
            raise InvalidValue(f"lr is a learning rate above 0, not {self.lr}.")
        if self.warmup < 0:
            raise InvalidValue(f"warmup counts batches and cannot be {self.warmup}.")

    def search(self, context: Context) -> Search:
        """One move: every layer that passes, at the rung where its search succeeded."""
        if self.scoring == "sampled":
            return (yield from search_sampled(self, context))
        return (yield from self._search_exactly(context))

    def relaxed(self) -> AOFP | None:
        """The same method with theta doubled, or None at `max_theta`."""
        if self.theta >= self.max_theta:
            return None
        return replace(self, theta=min(self.max_theta, 2 * self.theta or 0.001))

    def targets(self, context: Context) -> list[ChannelGroup]:
        """The groups that are searched."""
        return [
            group
            for group in context.prunable
            if group.consumers and (self.groups == "all" or not group.residual)
        ]

    def _search_exactly(self, context: Context) -> Search:
        evidence = yield from context.measure(at=self.at or "conv", images=self.images)
        grams = [evidence[group.name] for group in self.targets(context)]
        asked: AOFP | None = self
        move = None
        while asked is not None:
            method, rungs = asked, [list(ladder(gram, asked.theta)) for gram in grams]
            move = method._move_of(context, grams, rungs)
            if context.target_macs is None or _worthwhile(context, move):
                break
            asked = method.relaxed()  # towards a target: the smallest theta that leads there
        yield from chain.from_iterable(rungs)
        return move

    def _move_of(
        self, context: Context, grams: list[ContributionGram], rungs: list[list[Rung]]
    ) -> Move | None:
        drop: dict[str, Units] = {}
        order: dict[tuple[str, int], float] = {}
        for gram, climbed in zip(grams, rungs, strict=True):
            if climbed and climbed[-1].verdict == "take":
                units = climbed[-1].candidates
                drop[gram.group] = units if context.target_macs is None else bearable(gram, units)
                alone = zip(gram.units, gram.alone().tolist(), strict=True)
                order |= {(gram.group, unit): damage for unit, damage in alone}
        drop = context.trimmed(drop, order)
        if not drop:
            return None
        damage = {gram.group: gram.damage(drop.get(gram.group, ())) for gram in grams}
        return context.move(self, drop, damage)


STEP = 1 / 32  # of the original MACs: what a move on the way to a target should remove
MOST = 1 / 8  # of its consumers' signal: what one move takes from a group


def bearable(gram: ContributionGram, units: Units) -> Units:
    """As many of `units`, those that do least alone first, as take `MOST` of the signal together.

    But for one of them. On the way to a target theta may have been doubled until a half of every
    layer passes; what is taken in steps, each is repaired.
    """
    if gram.damage(units) <= MOST:
        return units
    alone = dict(zip(gram.units, gram.alone().tolist(), strict=True))
    ordered = sorted(units, key=lambda unit: (alone[unit], unit))
    low, high = 1, len(ordered)
    while low < high:  # the damage grows, or nearly so, with every unit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if gram.damage(ordered[:middle]) <= MOST else (low, middle - 1)
    return units_of(ordered[:low])


def _worthwhile(context: Context, move: Move | None) -> bool:
    if move is None or context.target_macs is None:
        return move is not None
    missing = move.before.macs - context.target_macs
    whole = context.cost(WidthPlan.full(context.graph)).macs
    return move.before.macs - move.after.macs >= min(missing, STEP * whole)
