"""3C: spatial and channel factorisation, then channel pruning (He, Zhang, Sun; sec. 4.1.1).

Input: a network, and a MAC target or the ranks of its layers.
In three stages, each approved and repaired before the next:               `ThreeC.search`
  1. k x k convolutions become k x 1, then 1 x k.                          `SpatialFactorisation`
  2. The second of these becomes 1 x k to fewer outputs, then 1 x 1.       `ChannelFactorisation`
  3. The channels of the layers' inputs are pruned, front to back, a
     layer a move; `channels` of them stay.                                `ChannelPruning`

Released code: ethanhe42/channel-pruning, `lib/net.py` (`R3`), which goes through all three for a
layer before it goes on to the next; here every layer's repair sees those before it all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from statistics import mean
from typing import Any, ClassVar

from prunelab.errors import InvalidValue
from prunelab.methods.base import Context, Found, Search, found
from prunelab.methods.channel_pruning import ChannelPruning
from prunelab.methods.factorisation import ChannelFactorisation, SpatialFactorisation
from prunelab.values import FrozenMap
from prunelab.values.given import as_annotated

CHANNELS = 1 / 1.15  # of the released code, `c_ratio`
# The ranks of the released code for VGG-16 at a quarter of the MACs (`rankdic`), at both
# factorisations: 4/3 of what it lists for the layers before the last resolution.
VGG16: Mapping[str, int] = FrozenMap({
    "features.2": 22, "features.5": 49, "features.7": 62, "features.10": 110, "features.12": 118,
    "features.14": 141, "features.17": 233, "features.19": 256, "features.21": 302,
    "features.24": 398, "features.26": 390, "features.28": 379,
})  # fmt: skip
# And the share of channels that stays in the groups which it prunes (`alldic`, `pooldic`).
VGG16_CHANNELS: Mapping[str, float] = FrozenMap({
    f"features.{place}.1.1": CHANNELS for place in (2, 5, 7, 10, 12, 17, 19)
})  # fmt: skip


@as_annotated
@dataclass(frozen=True, slots=True)
class ThreeC:
    """Spatial and channel factorisation, then channel pruning, at one MAC target.

    Parameters
    ----------
    speed_up
        How many times fewer multiply-adds are wanted where there is no MAC target.
    ranks
        The rank of each layer in both factorisations, by name; other layers are not factorised.
        None: chosen by energy, and both factorisations save the same factor.
        `prunelab.methods.three_c.VGG16` has those of the released code.
    channels
        The share of channels that stay in the third stage, of the layers' inputs: one number, or
        a mapping from groups to numbers (the others stay whole; `VGG16_CHANNELS` has the released
        ones). With a MAC target this is what the third stage would save before the target decides.
    images
        How many training images are measured.
    """

    name: ClassVar[str] = "three_c"
    factorises: ClassVar[bool] = True

    speed_up: float = 4.0
    ranks: Mapping[str, int] | None = None
    channels: float | Mapping[str, float] = CHANNELS
    images: int = 512

    def __post_init__(self) -> None:
        if not self.speed_up > 1:
            raise InvalidValue(f"speed_up is a factor above 1, not {self.speed_up!r}.")
        own = self.channels
        for share in own.values() if isinstance(own, Mapping) else [own]:
            if not 0 < share <= 1:
                raise InvalidValue(f"channels is a share above 0, at most 1, not {share!r}.")
        if isinstance(own, Mapping):
            object.__setattr__(self, "channels", FrozenMap(own))
        checked = SpatialFactorisation(ranks=self.ranks, images=self.images)
        object.__setattr__(self, "ranks", checked.ranks)

    def search(self, context: Context) -> Search:
        """The next move of the first stage that still has one."""
        now, carry = context.cost(context.plan).macs, context.carry
        goal = context.target_macs or carry.get("goal") or round(now / self.speed_up)
        for stage in range(carry.get("stage", 0), 3):
            result = yield from self._stage(context, stage, goal, now)
            if result.move is not None:
                left = {**result.move.carry, "stage": stage if stage == 2 else stage + 1}
                kept: FrozenMap[Any] = FrozenMap({**left, "goal": goal})
                move = replace(result.move, method=self.name, carry=kept)
                return replace(result, move=move)
        return None

    def _stage(self, context: Context, stage: int, goal: int, now: int) -> Any:
        """What a stage finds; the first two share what the third leaves, in equal factors."""
        if stage == 2:
            pruning = ChannelPruning(self._ratios(context), images=self.images)
            wanted = None if self.ranks is not None else goal
            return found((yield from pruning.search(replace(context, target_macs=wanted))))
        own = self.channels
        stays = mean(own.values()) if isinstance(own, Mapping) else own
        share = min(1.0, goal / now / stays**2)
        wanted = round(now * (sqrt(share) if stage == 0 else share))
        method = (SpatialFactorisation, ChannelFactorisation)[stage]
        ranks = self.ranks
        if ranks is not None and stage == 1:
            split = context.graph.factors  # a layer whose rank saves nothing was left whole
            ranks = {f"{name}.1": rank for name, rank in ranks.items() if name in split}
        factorising = method(ranks=ranks, images=self.images)
        result: Found = found((yield from factorising.search(replace(context, target_macs=wanted))))
        return result

    def _ratios(self, context: Context) -> dict[str, float]:
        """The share of each group to remove in the third stage; the ranks stay."""
        if isinstance(self.channels, Mapping):
            return {name: 1 - share for name, share in self.channels.items()}
        ranks = {f"{name}.0" for name in context.graph.factors}
        names = [group.name for group in context.prunable if group.name not in ranks]
        return dict.fromkeys(names, 1 - self.channels)
