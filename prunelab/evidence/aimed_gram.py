"""Second moments of a layer's contributions and of its reconstruction target in another network.

These are the normal equations of Channel Pruning's LASSO and of ThiNet's refit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.data.batches import batch_size
from prunelab.data.private_random import private_steps
from prunelab.errors import BadData
from prunelab.evidence.gram_accumulators import LayerAccumulators, accumulator_of
from prunelab.evidence.gram_collector import columns_of, distinct_units
from prunelab.evidence.patch_moments import cross_moment
from prunelab.evidence.reconstruction_target import (
    OutputWatch,
    reconstruction_target,
    same_rows,
)
from prunelab.evidence.unit_sums import by_unit, contributions
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph, ChannelGroup, Layer
from prunelab.graph.labels.layer_calls import Call
from prunelab.graph.trace import copy_of
from prunelab.loops.batch import checked, guarded, run_batch
from prunelab.values import Progress

Array = np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class AimedGram:
    """One layer's contributions z_i and its reconstruction target y, as second moments.

    Sums are over samples, positions and output channels. `units` [n] are graph-wide numbers (last,
    FIXED for inputs of no unit), `gram` [n, n] holds <z_i, z_j>, `cross` [n] holds <z_i, y>,
    `energy` is ||y||^2. `sums` [n, out] and `aims` [out] are the sums of z and of y over `rows`
    samples and positions.
    """

    units: Array
    gram: Array
    cross: Array
    energy: float
    sums: Array
    aims: Array
    rows: int

    @property
    def centred(self) -> AimedGram:
        """The same for centred contributions and targets, as in `Evidence.centred`."""
        rows = max(1, self.rows)
        return replace(
            self,
            gram=self.gram - self.sums @ self.sums.T / rows,
            cross=self.cross - self.sums @ self.aims / rows,
            energy=self.energy - float(self.aims @ self.aims) / rows,
        )

    def of(self, group: ChannelGroup) -> tuple[Array, Array]:
        """`gram` and `cross` of the group's units, other inputs subtracted from the target."""
        own = np.isin(self.units, group.first + np.asarray(group.units, dtype=np.int64))
        return self.gram[np.ix_(own, own)], self.cross[own] - self.gram[np.ix_(own, ~own)].sum(1)

    def __add__(self, other: AimedGram) -> AimedGram:
        return AimedGram(
            self.units,
            self.gram + other.gram,
            self.cross + other.cross,
            self.energy + other.energy,
            self.sums + other.sums,
            self.aims + other.aims,
            self.rows + other.rows,
        )


@private_steps
@torch.no_grad()
def aiming(
    model: nn.Module,
    graph: ChannelGraph,
    target: nn.Module,
    target_graph: ChannelGraph,
    batches: Iterable[Any],
    layers: Collection[str],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    expected: int = 0,
) -> Generator[Progress, None, dict[str, AimedGram]]:
    """Measure layers of a network against their reconstruction targets in another.

    Parameters
    ----------
    model, graph
        The pruned network, whose inputs are used.
    target, target_graph
        The network whose outputs are the targets. Both are left bitwise as they were.
    batches
        What `forward` takes, read once.
    layers
        Names of the layers to measure.
    forward
        `forward(model, batch)` runs a network (None: on the batch's first entry).
    expected
        How many images there are, for Progress.

    Yields
    ------
    Progress
        Progress in images.

    Returns
    -------
    dict of str to AimedGram
        An `AimedGram` for each layer that ran, on the same rows in both networks.

    Raises
    ------
    BadData
        For no batches, or batches on which a network fails.
    """
    forward = forward or run_batch
    wanted = {graph.layer(name).weight: graph.layer(name) for name in layers}
    channels = {
        key: outputs_in(target_graph.layer(layer.name).out_units, layer.out_units)
        for key, layer in wanted.items()
    }
    sums = {key: _TargetSums(layer) for key, layer in wanted.items()}
    images = 0
    model, target = copy_of(model).eval(), copy_of(target).eval()
    for batch in guarded(batches):
        there, here = OutputWatch(target, wanted), OutputWatch(model, wanted)
        with there:
            checked(forward, target, batch)
        with here:
            checked(forward, model, batch)
        for key, layer_sums in sums.items():
            for aim, given in zip(there.found[key], here.found[key], strict=False):
                if given.y.numel() and same_rows(there, aim, here, given):
                    at = channels[key].to(given.y.device)
                    layer_sums.add(given.call, reconstruction_target(aim, given, at))
        images += batch_size(batch)
        yield Progress(images, max(expected, images), "measuring against the original network")
    if not images:
        raise BadData("There are no batches to measure on; give at least one.")
    return {wanted[key].name: one.gram for key, one in sums.items() if one.grams.all}


def outputs_in(units: Array, kept: Array) -> Tensor:
    """The positions of the units `kept` among `units`."""
    if len(units) == len(kept):
        return torch.arange(len(kept))  # FIXED may occur more than once
    position = {unit: index for index, unit in enumerate(units.tolist())}
    return torch.tensor([position[unit] for unit in kept.tolist()])


class _TargetSums:
    """Sums one layer's contributions and their products with the targets, call by call."""

    def __init__(self, layer: Layer) -> None:
        self.units = distinct_units(layer)
        self.columns, self.count = columns_of(layer)
        self.grams = LayerAccumulators(
            lambda call: accumulator_of(call, self.columns, self.count, None)
        )
        self.cross: Any = 0.0
        self.aims: Any = 0.0
        self.energy = 0.0

    def add(self, call: Call, y: Tensor) -> None:
        """Add one call and its target."""
        gram = self.grams.add(call)
        weight, conv, columns = gram.weight, gram.conv, gram.columns
        if conv is not None and conv.transposed:
            z = contributions(call.x.to(weight.dtype), weight, conv, columns, self.count)
            cross = (z * y.flatten(2)).double().flatten(1).sum(1)
        else:
            moment = cross_moment(call.x, y, tuple(weight.shape[2:]), conv)[:-1]
            by_entry = (moment * weight.reshape(len(weight), -1).T).sum(1)
            cross = by_unit(by_entry.view(len(columns), -1).sum(1), columns, self.count)
        self.cross = self.cross + cross
        self.aims = self.aims + y.movedim(1, 0).flatten(1).sum(1, dtype=torch.float64)
        self.energy += float(y.double().square().sum())

    @property
    def gram(self) -> AimedGram:
        """The sums so far, of one call or more."""
        return AimedGram(
            units=self.units if self.count == len(self.units) else np.append(self.units, FIXED),
            gram=self.grams.gram,
            cross=self.cross.cpu().numpy(),
            energy=self.energy,
            sums=self.grams.sums,
            aims=self.aims.cpu().numpy(),
            rows=self.grams.rows,
        )


def by_layer(grams: Mapping[str, AimedGram], group: ChannelGroup) -> tuple[Array, Array]:
    """`gram` and `cross` of a group, summed over the layers that read it.

    Raises `BadData` where none of them was measured.
    """
    parts = [gram.of(group) for name, gram in grams.items() if name in group.consumers]
    if not parts:
        raise BadData(
            f"On these images {' and '.join(group.consumers)} did not run, or ran on other rows "
            f"than in the original network, so {group.name} could not be measured. Give other "
            "images, or leave it out of what is pruned."
        )
    found, crosses = zip(*parts, strict=True)
    return np.sum(found, axis=0), np.sum(crosses, axis=0)
