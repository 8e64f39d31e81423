"""AOFP: approximated oracle filter pruning (Ding, Ding, Guo, Han, Yan; ICML 2019).

Damage isolation: the damage of masking a set M of layer i's channels is how much it changes the
output of the next layer alone, ||u - v||^2 / ||u||^2, u without and v with the mask.

Input: a network and theta, the damage that a layer may take.
For every layer i, all in parallel:                                  `AOFP.search`
  1. S <- the channels of layer i; g <- floor(|S| / 2).
  2. Draw random M in S with |M| = g; t_j <- the mean damage of the
     masks that hold j. In closed form, over all masks at once:      `aofp_search.expected_damages`
     As published, while SGD trains the base path:                   `aofp_sampled.search_sampled`
  3. P <- the g channels of S with the lowest t; q <- max of t in P. `aofp_search.judge`
  4. If q < theta: remove P. Else if g > 1: S <- P, go to 2. Else:
     nothing is removed.                                             `aofp_search.iter_rungs`
  5. One move is what all layers remove.                             `AOFP._move_of`
Repeat until the multiply-adds are reached; fine-tune.               `Session.run`, `Session.tune`

Released code: DingXiaoH/AOFP, `aofp_conv.py`. Ours: the closed form; with a MAC target, theta that
doubles while too little passes (`AOFP.relaxed`), and a limit on what one move takes (`bearable`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar, Literal

from prunelab.errors import InvalidValue
from prunelab.evidence import ContributionGram
from prunelab.graph.channels.channel_graph import ChannelGroup
from prunelab.methods.aofp_sampled import search_sampled
from prunelab.methods.aofp_search import iter_rungs
from prunelab.methods.base import Context, Search
from prunelab.methods.settings import (
    check_choice,
    check_counts,
    check_groups,
    check_lr,
    selects,
)
from prunelab.values import Move, Rung, Units, WidthPlan, units_of


@dataclass(frozen=True, slots=True)
class AOFP:
    """Binary search in every layer for channels whose loss hardly changes the next layer's output.

    With a MAC target (`run`, `prune`) theta is doubled, up to `max_theta`, while no layer passes
    or all that do would remove less than 1/32 of the original MACs; the move says which theta it
    used. It then removes at most an eighth of the signal that a group's consumers read (ours: with
    a theta of 0.64 half of every layer would go at once).

    Parameters
    ----------
    theta
        A half is removed when the worst mean damage in it is below this share of the consumer's
        signal (strictly, as in the released PyTorch code).
    scoring
        "exact" computes the expectation over all masks in closed form, with frozen weights;
        "sampled" draws masks on a scoring path while SGD trains a private copy of the network, as
        the released code does.
    groups
        "internal" leaves residual streams whole (released code), "all" scores them by the sum
        over their consumers (an extension).
    max_theta
        What theta may grow to.
    at
        Where outputs are compared: "conv" (before bias and BatchNorm), "bn" (behind BatchNorm),
        and for "sampled" also "relu" (behind the activation, as released). None: "conv" for
        "exact", "relu" for "sampled".
    images
        Exact: how many training images are measured.
    batches
        Sampled: batches of each halving (released: 1000 or 20000).
    warmup
        Sampled: batches before the first halving; the layers start one after another.
    retire_after
        Sampled: a layer that fails restarts, and retires from the move after so many failures
        (released: never).
    lr
        Sampled: the constant learning rate. The scoring path uses the base path's BatchNorm
        statistics (the released code lets it compute, and disturb, its own).
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
        check_choice(self, "scoring", "exact", "sampled")
        check_groups(self)
        places = ("conv", "bn") if self.scoring == "exact" else ("conv", "bn", "relu")
        if self.at is not None and self.at not in places:
            raise InvalidValue(
                f"at is one of {', '.join(places)} with scoring={self.scoring!r}, not {self.at!r}."
            )
        check_counts(self, "images", "batches", "retire_after")
        check_lr(self)
        if self.warmup < 0:
            raise InvalidValue(f"warmup counts batches and cannot be {self.warmup}.")

    def search(self, context: Context) -> Search:
        """One move: every layer that passes, at the halving where its search succeeded."""
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
        return [group for group in context.prunable if selects(self.groups, group)]

    def _search_exactly(self, context: Context) -> Search:
        """Steps 1 to 5 in closed form, from one measurement."""
        evidence = yield from context.measure(at=self.at or "conv", images=self.images)
        grams = [evidence[group.name] for group in self.targets(context)]
        relaxed: AOFP | None = self
        move = None
        while relaxed is not None:
            method, rungs = relaxed, [list(iter_rungs(gram, relaxed.theta)) for gram in grams]
            move = method._move_of(context, grams, rungs)
            if context.target_macs is None or _worthwhile(context, move):
                break
            relaxed = method.relaxed()  # with a target: the smallest theta that is enough
        yield from chain.from_iterable(rungs)
        return move

    def _move_of(
        self, context: Context, grams: list[ContributionGram], rungs: list[list[Rung]]
    ) -> Move | None:
        """Step 5: what all layers remove, given the halvings of each."""
        drop: dict[str, Units] = {}
        order: dict[tuple[str, int], float] = {}
        for gram, search in zip(grams, rungs, strict=True):
            if search and search[-1].verdict == "take":
                units = search[-1].candidates
                drop[gram.group] = units if context.target_macs is None else bearable(gram, units)
                alone = zip(gram.units, gram.alone().tolist(), strict=True)
                order |= {(gram.group, unit): damage for unit, damage in alone}
        drop = context.trimmed(drop, order)
        if not drop:
            return None
        damage = {gram.group: gram.damage(drop.get(gram.group, ())) for gram in grams}
        return context.move(self, drop, damage)


STEP = 1 / 32  # of the original MACs: what a move should remove when there is a target
MOST = 1 / 8  # of its consumers' signal: what one move may take from a group


def bearable(gram: ContributionGram, units: Units) -> Units:
    """As many of `units`, the least damaging first, as take at most `MOST` of the signal, or one.

    With a target theta may have been doubled until half of every layer passes. Smaller moves, each
    repaired, do less damage.
    """
    if gram.damage(units) <= MOST:
        return units
    alone = dict(zip(gram.units, gram.alone().tolist(), strict=True))
    ordered = sorted(units, key=lambda unit: (alone[unit], unit))
    low, high = 1, len(ordered)
    while low < high:  # the damage grows, nearly always, with every unit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if gram.damage(ordered[:middle]) <= MOST else (low, middle - 1)
    return units_of(ordered[:low])


def _worthwhile(context: Context, move: Move | None) -> bool:
    """Whether a move meets the target, or removes a `STEP` of the original MACs."""
    if move is None or context.target_macs is None:
        return move is not None
    missing = move.before.macs - context.target_macs
    whole = context.cost(WidthPlan.full(context.graph)).macs
    return move.before.macs - move.after.macs >= min(missing, STEP * whole)
