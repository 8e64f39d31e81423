"""Baselines that the papers compare with, each the `scores` of a one-shot method.

  weight norm      sum |w|^p over the filter                      `Magnitude.scores`
  slimming         |gamma| of BatchNorm                           `BatchNormScale.scores`
  Taylor           mean over images of |dL/dm|                    `Taylor.scores`
  first k          the channel's index                            `FirstK.scores`
  max response     sum |w| of the filter, or of the readers       `MaxResponse.scores`
  APoZ             the share of zeros in the activations          `APoZ.scores`
  control          a random number                                `Random.scores`

Where several layers produce a group's units (a residual stream, a depthwise pair), a unit's score
is the mean over them.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.errors import BadModel
from prunelab.evidence.zeros import counting_zeros
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph, ChannelGroup, Layer
from prunelab.graph.surgery.effective_weights import effective_weights
from prunelab.methods.base import Context
from prunelab.methods.one_shot import Array, OneShot, Scope, Scores
from prunelab.methods.settings import check_choice
from prunelab.values.given import as_annotated


@as_annotated
@dataclass(frozen=True, slots=True)
class Magnitude(OneShot):
    """Ranks by the norm of a unit's own weights: L1 (Li et al., ICLR 2017) or L2."""

    name: ClassVar[str] = "magnitude"

    norm: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        OneShot.__post_init__(self)
        check_choice(self, "norm", 1, 2)

    @property
    def meaning(self) -> str:
        """What the scores are."""
        return f"L{self.norm} norm of a channel's own weights"

    def scores(self, context: Context, evidence: Any) -> Scores:
        """Norms of filters, the mean over the producers; groups without any stay whole."""
        return _by_producers(context, self.norm)


@as_annotated
@dataclass(frozen=True, slots=True)
class BatchNormScale(OneShot):
    """Ranks by `|gamma|` of a unit's BatchNorms (Liu et al., Network Slimming, ICCV 2017).

    One ranking over the network. The paper trains with an L1 penalty on gamma first. Groups
    without BatchNorm stay whole.
    """

    name: ClassVar[str] = "batchnorm_scale"

    scope: Scope = "global"

    @property
    def meaning(self) -> str:
        """What the scores are."""
        return "absolute BatchNorm scale, |gamma|"

    def scores(self, context: Context, evidence: Any) -> Scores:
        """`|gamma|`, the mean over the BatchNorms of a group."""
        sums, counts = np.zeros(context.graph.units), np.zeros(context.graph.units)
        for name, module in context.model.named_modules():
            units = context.graph.slots.get((f"{name}.weight", 0))
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and units is not None:
                sums += _onto(context.graph, units, module.weight.detach().abs())
                counts += _onto(context.graph, units, torch.ones_like(module.weight))
        scores = _by_group(context, sums / np.maximum(counts, 1))
        scaled = {g.name for g in context.graph.groups if g.prunable and _all(counts, g)}
        if not scaled:
            raise BadModel(
                "No prunable channel of this network passes a BatchNorm with a scale; choose "
                "another method, such as 'magnitude'."
            )
        return {name: values for name, values in scores.items() if name in scaled}


@as_annotated
@dataclass(frozen=True, slots=True)
class Taylor(OneShot):
    """Ranks by the mean of `|dL/dm|` over images, where m is a mask on the unit.

    First-order Taylor expansion (Molchanov et al., ICLR 2017), one ranking over the network;
    `normalise` divides by the L2 norm over the group. `images` training images are measured.
    """

    name: ClassVar[str] = "taylor"
    kinds: ClassVar[tuple[str, ...]] = ("gradient",)

    scope: Scope = "global"
    normalise: bool = True
    images: int = 512

    @property
    def meaning(self) -> str:
        """What the scores are."""
        return "mean |mask gradient| of the loss" + ", share of the group" * self.normalise

    def scores(self, context: Context, evidence: Any) -> Scores:
        """Mean absolute mask gradients."""
        found = {}
        for group in context.prunable:
            values = evidence.gradient(group.name).taylor
            norm = np.linalg.norm(values)
            found[group.name] = values / norm if self.normalise and norm > 0 else values
        return found


@as_annotated
@dataclass(frozen=True, slots=True)
class Random(OneShot):
    """Ranks at random: the control."""

    name: ClassVar[str] = "random"

    @property
    def meaning(self) -> str:
        """What the scores are."""
        return "a random number"

    def scores(self, context: Context, evidence: Any) -> Scores:
        """Uniform random numbers from the search's seed."""
        rng = np.random.default_rng(context.seed)
        return {group.name: rng.random(len(group.units)) for group in context.prunable}


@as_annotated
@dataclass(frozen=True, slots=True)
class FirstK(OneShot):
    """Keeps the first channels: the simplest baseline of Channel Pruning."""

    name: ClassVar[str] = "first_k"

    @property
    def meaning(self) -> str:
        """What the scores are."""
        return "how far from the last channel"

    def scores(self, context: Context, evidence: Any) -> Scores:
        """The last unit of a group has 0."""
        return {g.name: np.arange(len(g.units), 0, -1.0) - 1 for g in context.prunable}


@as_annotated
@dataclass(frozen=True, slots=True)
class MaxResponse(OneShot):
    """Keeps the channels with the largest sums of absolute weights, a baseline of Channel Pruning.

    `weights`: "producers" sums the filters that produce the channel, "consumers" the weights that
    read it, as the released code does (`lib/decompose.py`).
    """

    name: ClassVar[str] = "max_response"

    weights: Literal["producers", "consumers"] = "producers"

    def __post_init__(self) -> None:
        OneShot.__post_init__(self)
        check_choice(self, "weights", "producers", "consumers")

    @property
    def meaning(self) -> str:
        """What the scores are."""
        what = "that make it" if self.weights == "producers" else "that read it"
        return f"sum of the absolute weights {what}"

    def scores(self, context: Context, evidence: Any) -> Scores:
        """Sums of absolute weights."""
        if self.weights == "producers":
            return _by_producers(context, 1)
        weights = effective_weights(context.model, context.graph.layers)
        sums = np.zeros(context.graph.units)
        for layer in context.graph.layers:
            if layer.dense and layer.name in weights:
                weight = weights[layer.name].transpose(0, 1 - layer.transposed)
                sums += _onto(context.graph, layer.in_units, weight.abs().flatten(1).sum(1))
        return _by_group(context, sums)


@as_annotated
@dataclass(frozen=True, slots=True)
class APoZ(OneShot):
    """Removes the units that are zero most often (Hu, Peng, Tai, Tang; Network Trimming, 2016).

    A baseline of ThiNet: the average percentage of zeros among the values that the next layers
    read, on `images` training images. It needs an activation that makes zeros, such as ReLU.
    """

    name: ClassVar[str] = "apoz"

    images: int = 512

    @property
    def meaning(self) -> str:
        """What the scores are."""
        return "share of activations that are not zero"

    def measuring(self, context: Context) -> Generator[Any, None, Array]:
        """The share of zeros of each unit."""
        return (
            yield from counting_zeros(
                context.model, context.graph, context.images(self.images), context.forward,
                self.images,
            )
        )  # fmt: skip

    def scores(self, context: Context, evidence: Any) -> Scores:
        """One minus the percentage of zeros."""
        return _by_group(context, 1 - evidence)


def _by_producers(context: Context, norm: int) -> Scores:
    """The norm of each unit's filters, the mean over the layers that produce it."""
    weights = effective_weights(context.model, context.graph.layers)
    sums, counts = np.zeros(context.graph.units), np.zeros(context.graph.units)
    for layer in context.graph.layers:
        if layer.name not in weights:
            continue  # a channel selector has no weights
        powers = _filters(weights[layer.name], layer).abs().pow(norm).sum(1)
        of_units = _onto(context.graph, layer.out_units, powers)  # all channels of a unit
        sums += of_units ** (1 / norm)
        counts += np.bincount(layer.out_units[layer.out_units != FIXED], minlength=len(sums)) > 0
    scores = _by_group(context, sums / np.maximum(counts, 1))
    made = _by_group(context, counts)
    return {name: values for name, values in scores.items() if made[name].any()}


def _filters(weight: Tensor, layer: Layer) -> Tensor:
    """A layer's weights as [out channels, weights of each]."""
    if not layer.transposed:
        return weight.flatten(1)
    split = weight.unflatten(0, (layer.conv_groups, -1)).transpose(1, 2)
    return split.flatten(0, 1).flatten(1)


def _onto(graph: ChannelGraph, units: Array, values: Tensor) -> Array:
    """The sum of `values` over the positions of each unit of the graph [units]."""
    mine = units != FIXED
    weights = values.double().cpu().numpy()[mine]
    return np.bincount(units[mine], weights=weights, minlength=graph.units)


def _all(counts: Array, group: ChannelGroup) -> bool:
    return bool(counts[group.first + np.asarray(group.units)].all())


def _by_group(context: Context, values: Array) -> Mapping[str, Array]:
    return {g.name: values[g.first + np.asarray(g.units)] for g in context.prunable}
