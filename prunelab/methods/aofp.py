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
     With a MAC target, ours: without those that cost the loss most. `aofp_target.searching`
Repeat until the multiply-adds are reached; fine-tune.               `Session.run`, `Session.tune`

Released code: DingXiaoH/AOFP, `aofp_conv.py`. Ours: the closed form; with a MAC target, theta that
doubles (`AOFP.relaxed`), and layers that wait where they cost the loss most (`aofp_target`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar, Literal

from prunelab.errors import InvalidValue
from prunelab.graph.channels.channel_graph import ChannelGroup
from prunelab.methods.aofp_sampled import search_sampled
from prunelab.methods.aofp_search import iter_rungs
from prunelab.methods.aofp_target import Choice, Grams, orders, searching, taken
from prunelab.methods.base import Context, Search, spares
from prunelab.methods.settings import (
    check_choice,
    check_counts,
    check_groups,
    check_lr,
)
from prunelab.values import Move, Units
from prunelab.values.given import as_annotated


@as_annotated
@dataclass(frozen=True, slots=True)
class AOFP:
    """Binary search in every layer for channels whose loss hardly changes the next layer's output.

    With a MAC target (`run`, `prune`) a move is ours, not the paper's: a small share of the signal
    may be one that the loss depends on. Exact: what passes in a layer, at most an eighth of the
    signal that its consumers read, is masked alone on 128 training images. Layers are taken in the
    order of the rise of the loss for each multiply-add saved, while they cost together at most
    half of what all that pass cost; the dearest wait. Theta is doubled, up to `max_theta`, until
    that saves 1/32 of the original MACs; the move says which theta it used. Where none does, the
    dearest are taken too. A move takes one run of the network for each layer that passes, and one
    more where a larger theta finds other units; without labels or `loss=` the share of the signal
    stands for the loss.

    Sampled, a move ends once it has saved 1/32 of the original MACs, at the target, or when all
    layers have retired; the next one goes on where it ended, with its momentum, if it was approved
    and the network was not tuned. Towards a target, theta is doubled where all layers retire
    before anything is found.

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
        "internal" leaves residual streams, what their first blocks read, and fully connected
        layers whole (released code), "all" scores them too, by the sum over their consumers (an
        extension).
    max_theta
        What theta may grow to.
    at
        Where outputs are compared: "conv" (before bias and BatchNorm), "bn" (behind BatchNorm),
        and for "sampled" also "relu" (behind the activation, as released). None: "conv" for
        "exact", "relu" for "sampled".
    damage
        Sampled: "batch_ratio", sums over the batch before the ratio (released code), or
        "sample_ratio", the mean over samples of each one's ratio.
    images
        Exact: how many training images are measured.
    batches
        Sampled: batches of each halving (released: 1000 or 20000).
    warmup
        Sampled: batches before the first halving; the layers start one after another.
    retire_after
        Sampled: a layer that fails restarts, and retires from the move after so many failures in
        a row (released: never).
    lr
        Sampled: the constant learning rate, twice that for biases (released). The scoring path
        uses the base path's BatchNorm statistics (the released code lets it compute, and disturb,
        its own).
    """

    name: ClassVar[str] = "aofp"
    only_convolutions: ClassVar[bool] = True
    repair: ClassVar[str | None] = None

    theta: float = 0.01
    scoring: Literal["exact", "sampled"] = "exact"
    groups: Literal["internal", "all"] = "internal"
    max_theta: float = 0.64
    at: str | None = None
    damage: Literal["batch_ratio", "sample_ratio"] = "batch_ratio"
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
        check_choice(self, "damage", "batch_ratio", "sample_ratio")
        if self.scoring == "exact" and self.damage != "batch_ratio":
            raise InvalidValue(
                "damage='sample_ratio' needs scoring='sampled': the closed form sums over images "
                "before the ratio."
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
        return [g for g in context.prunable if g.consumers and not spares(self, g)]

    def _search_exactly(self, context: Context) -> Search:
        """Steps 1 to 5 in closed form, from one measurement."""
        evidence = yield from context.measure(at=self.at or "conv", images=self.images)
        grams = {group.name: evidence[group.name] for group in self.targets(context)}
        if context.target_macs is None:
            rungs = [list(iter_rungs(gram, self.theta)) for gram in grams.values()]
            choice = Choice(self, rungs, taken(rungs))
        else:
            choice = yield from searching(self, context, grams)
        yield from chain.from_iterable(choice.rungs)
        return choice.method._move_of(context, grams, choice.drop)

    def _move_of(self, context: Context, grams: Grams, drop: dict[str, Units]) -> Move | None:
        """Step 5: what all layers remove."""
        drop = context.trimmed(drop, orders(grams))
        if not drop:
            return None
        damage = {name: gram.damage(drop.get(name, ())) for name, gram in grams.items()}
        return context.move(self, drop, damage)
