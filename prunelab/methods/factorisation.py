"""Factorisation: a convolution becomes two, of the rank between them, see `factorised`.

Input: a network, and the share of each layer's multiply-adds to remove, or a MAC target.
In one move, for every convolution that can be factorised:               `_Factorisation.search`
  1. Decompose: the kernel, k x 1 then 1 x k (Jaderberg, Vedaldi,
     Zisserman, "Speeding up CNNs with low rank expansions", BMVC
     2014), or the responses y = W x by the eigenvectors of E[y y'],
     k x k then 1 x 1 (Zhang, Zou, He, Sun, "Accelerating very deep
     convolutional networks", 2016, sec. 2.1).                           `energies`
  2. Choose the ranks: the products of the energies kept should be
     largest at the MACs wanted (Zhang et al., sec. 2.4).                `ranks_within`
  3. Replace each layer, if that saves multiply-adds.                    `factorised`
  4. Refit the second convolution of each on its inputs in the network
     as approximated so far, towards the original outputs (sec. 2.3).    repair="lstsq"

A rank is the width of the channel group between the two convolutions: it is shown, adjusted, undone
and pruned further like any other. `ThreeC` combines both with Channel Pruning.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from math import floor
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from prunelab.errors import IllegalPlan, InvalidValue
from prunelab.evidence.output_moments import output_moments
from prunelab.graph.channels.channel_graph import ChannelGraph, Layer
from prunelab.graph.surgery.factorisation import Factors, Kind, factorised, factors, unfit
from prunelab.graph.surgery.factorised_graph import extended, is_plain
from prunelab.methods.base import Context, Found, Search
from prunelab.methods.settings import check_counts, freeze_ratio
from prunelab.values import FrozenMap, Importance, Move, WidthPlan
from prunelab.values.given import as_annotated

Array = np.ndarray
STEPS = 60  # of the halving towards a MAC target


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """A layer that may become two: its energies [rank], largest first, and its multiply-adds.

    `whole` are those of the layer as it is, `each` those of a rank of 1 afterwards. Ranks are
    multiples of `step`.
    """

    energies: Array
    whole: int
    each: int
    step: int

    @property
    def left(self) -> Array:
        """The share of the energy that the ranks 1, 2, ... keep [rank]."""
        kept = np.cumsum(self.energies)
        return kept / kept[-1] if kept[-1] > 0 else np.ones_like(kept)

    @property
    def ranks(self) -> Array:
        """The ranks that save multiply-adds."""
        most = min(len(self.energies), (self.whole - 1) // self.each)
        return np.arange(min(self.step, most), most + 1, self.step) if most else np.arange(0)

    def within(self, macs: float) -> int | None:
        """The largest rank of at most `macs` multiply-adds, or the smallest; None: as it is."""
        if macs >= self.whole or not len(self.ranks):
            return None
        fits = self.ranks[self.ranks * self.each <= macs]
        return int(fits[-1] if len(fits) else self.ranks[0])


def ranks_within(options: Mapping[str, Option], macs: int) -> dict[str, int] | None:
    """The ranks that keep most energy with at most `macs` multiply-adds in all these layers.

    Maximises the product of the shares of energy that the layers keep (Zhang et al., sec. 2.4,
    eq. 12): for a price of a multiply-add every layer takes its best rank, or stays whole, and the
    price is as low as the budget allows. Layers left out stay whole; None: no ranks are within it.

    Parameters
    ----------
    options
        The layers, by name.
    macs
        The multiply-adds that all of them may have.
    """

    def at(price: float) -> tuple[dict[str, int], int]:
        chosen, total = {}, 0
        for name, option in options.items():
            costs = np.append(option.ranks * option.each, option.whole)
            kept = np.append(option.left[option.ranks - 1], 1.0)
            best = int(np.argmin(price * costs - np.log(np.maximum(kept, 1e-300))))
            total += int(costs[best])
            if best < len(option.ranks):
                chosen[name] = int(option.ranks[best])
        return chosen, total

    least = {name: int(o.ranks[0]) for name, o in options.items() if len(o.ranks)}
    narrowest = sum(least.get(name, 0) * o.each or o.whole for name, o in options.items())
    if narrowest > macs:
        return None
    low, high = 0.0, 1.0 / max(1, min(o.each for o in options.values()))
    while at(high)[1] > macs:
        if high > 1e300:
            return least
        low, high = high, 2 * high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle)[1] <= macs else (middle, high)
    return at(high)[0]


@dataclass(frozen=True, slots=True)
class _Factorisation:
    """What both kinds share; the parameters are described at `SpatialFactorisation`."""

    name: ClassVar[str]
    kind: ClassVar[Kind]
    factorises: ClassVar[bool] = True

    pruning_ratio: float | Mapping[str, float] = 0.5
    ranks: Mapping[str, int] | None = None
    images: int = 512

    def __post_init__(self) -> None:
        freeze_ratio(self)
        check_counts(self, "images")
        for name, rank in (self.ranks or {}).items():
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise InvalidValue(f"A rank is a whole number of at least 1, not {name}: {rank!r}.")
        if self.ranks is not None:
            object.__setattr__(self, "ranks", FrozenMap(self.ranks))

    def search(self, context: Context) -> Search:
        """One move over all layers that can be factorised."""
        layers = self._layers(context)
        if not layers:
            return None
        energies, outputs = yield from self._measuring(context, layers)
        kinds = dict.fromkeys(layers, self.kind)
        graph = context.form(kinds)
        whole = extended(context.plan, graph)
        options = _options(context, graph, whole, energies)
        chosen = self._chosen(context, options)
        if not chosen:
            return None
        yield from _spectra(options, self.kind)
        return self._move(context, options, chosen, outputs)

    def _layers(self, context: Context) -> list[str]:
        """The layers to consider; raises `IllegalPlan` for one that is named and does not fit."""
        ratio = self.pruning_ratio
        named = self.ranks if self.ranks is not None else ratio
        own = [layer.name for layer in context.graph.layers]
        asked = list(named) if isinstance(named, Mapping) else own
        for name in named if isinstance(named, Mapping) else ():
            reason = unfit(context.model, name, self.kind)
            if reason and name not in context.graph.factors:
                raise IllegalPlan(f"{name} cannot be factorised ({self.kind}): {reason}.")
        return [
            name
            for name in asked
            if not unfit(context.model, name, self.kind) and self._fits(context.graph, name)
        ]

    def _fits(self, graph: ChannelGraph, name: str) -> bool:
        """Whether a layer is no part of another, or one that goes on to be factorised: 1 x k."""
        if not is_plain(graph.layer(name)):
            return False
        above, _, part = name.rpartition(".")
        if above not in graph.factors:
            return True
        return part == "1" and (graph.factors[above], self.kind) == ("spatial", "channel")

    def _measuring(
        self, context: Context, layers: list[str]
    ) -> Generator[Any, None, tuple[dict[str, Array], dict[str, Tensor]]]:
        """Step 1: what each component carries, and the moments that it was computed from."""
        outputs: dict[str, Tensor] = {}
        if self.kind == "channel":
            outputs = yield from output_moments(
                context.model, layers, context.images(self.images), context.forward, self.images
            )
        weights = dict(context.model.named_parameters())
        found = {
            name: factors(weights[f"{name}.weight"], self.kind, outputs.get(name)).energies
            for name in layers
        }
        return {name: energies.cpu().numpy() for name, energies in found.items()}, outputs

    def _chosen(self, context: Context, options: Mapping[str, Option]) -> dict[str, int]:
        """Step 2: the rank of each layer that is factorised."""
        if self.ranks is not None:
            given = {name: option.within(self.ranks[name] * option.each)
                     for name, option in options.items()}  # fmt: skip
            return {name: rank for name, rank in given.items() if rank is not None}
        ratio, goal = self.pruning_ratio, context.target_macs
        if goal is not None:
            rest = context.cost(context.plan).macs - sum(o.whole for o in options.values())
            return ranks_within(options, goal - rest) or {}
        chosen = {}
        for name, option in options.items():
            share = ratio[name] if isinstance(ratio, Mapping) else ratio
            rank = option.within(floor((1 - share) * option.whole)) if share > 0 else None
            if rank is not None:
                chosen[name] = rank
        return chosen

    def _move(
        self,
        context: Context,
        options: Mapping[str, Option],
        chosen: Mapping[str, int],
        outputs: Mapping[str, Tensor],
    ) -> Found:
        kinds = dict.fromkeys(chosen, self.kind)
        graph = context.form(kinds)
        whole = extended(context.plan, graph)
        made = replace(context, graph=graph.after(whole), plan=whole)
        adds = {f"{name}.0": len(whole.kept[f"{name}.0"]) for name in chosen}
        drop = {f"{name}.0": whole.kept[f"{name}.0"][rank:] for name, rank in chosen.items()}
        damage = {}
        if self.kind == "channel":
            damage = {
                f"{name}.0": max(0.0, 1 - options[name].left[rank - 1])
                for name, rank in chosen.items()
            }
        move: Move = replace(
            made.move(self, drop, damage),
            before=context.cost(context.plan),
            factors=FrozenMap(kinds),
            adds=FrozenMap(adds),
        )

        def make(name: str, weight: Tensor) -> Factors:
            return factors(weight, self.kind, outputs.get(name))

        return Found(move, factorised(context.model, kinds, make))


def _options(
    context: Context, graph: ChannelGraph, whole: WidthPlan, energies: Mapping[str, Array]
) -> dict[str, Option]:
    """Every layer with its costs at the widths of `whole`, the plan of all at full rank."""
    cut = graph.after(whole)

    def each(layer: Layer) -> int:
        return layer.macs // len(cut[group].units)

    found = {}
    for name, values in energies.items():
        group = f"{name}.0"
        macs = each(cut.layer(group)) + each(cut.layer(f"{name}.1"))
        found[name] = Option(values, context.graph.layer(name).macs, macs, cut[group].step)
    return found


def _spectra(options: Mapping[str, Option], kind: Kind) -> list[Importance]:
    """The spectrum of every layer, to show."""
    of = "kernel's" if kind == "spatial" else "output's"
    found = []
    for name, option in options.items():
        total = float(option.energies.sum()) or 1.0
        values = tuple(float(f"{energy / total:.6g}") for energy in option.energies)
        units = tuple(range(len(values)))
        found.append(Importance(f"{name}.0", units, values, f"share of the {of} energy"))
    return found


@as_annotated
@dataclass(frozen=True, slots=True)
class SpatialFactorisation(_Factorisation):
    """k x k convolutions become k x 1, then 1 x k (Jaderberg et al., BMVC 2014).

    The ranks are those of the kernel; only the repair sees images.

    Parameters
    ----------
    pruning_ratio
        The share of a layer's multiply-adds to remove: one number, or a mapping from layers to
        numbers (other layers stay whole). With a MAC target (`run`, `prune`) all layers together
        meet it, with ranks chosen by energy.
    ranks
        The rank of each layer instead, by name.
    images
        How many training images are measured.
    """

    name: ClassVar[str] = "spatial_factorisation"
    kind: ClassVar[Kind] = "spatial"


@as_annotated
@dataclass(frozen=True, slots=True)
class ChannelFactorisation(_Factorisation):
    """k x k convolutions get fewer outputs, and a 1 x 1 behind them (Zhang et al., 2016).

    The channels between are the principal components of the layer's responses.

    Parameters
    ----------
    pruning_ratio, ranks, images
        As for `SpatialFactorisation`.
    """

    name: ClassVar[str] = "channel_factorisation"
    kind: ClassVar[Kind] = "channel"
