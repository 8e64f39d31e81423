"""Least squares of one layer from which units are removed one by one, each time solved anew.

The state that backward elimination with refit updates (`Elimination`, `Surgeon`): the optimal
brain surgeon for whole channels (Hassibi, Stork; NIPS 1992), by block elimination of an inverse.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import reduce
from math import prod
from operator import add
from typing import Any

import numpy as np
import torch
from torch import nn

from prunelab.data.batches import HOLD, nonempty, part, take
from prunelab.errors import BadData, InvalidValue
from prunelab.evidence import Evidence, PatchMoments
from prunelab.evidence.gram_collector import distinct_units
from prunelab.evidence.measure import measuring
from prunelab.evidence.patch_moments import WIDEST
from prunelab.graph.channels.channel_graph import Layer
from prunelab.graph.surgery.effective_weights import effective_weights
from prunelab.methods.base import Context
from prunelab.repair.fit import ridge_without
from prunelab.repair.regression import with_ridge

Array = np.ndarray


class RefitProblem:
    """The least squares of one layer's outputs on the patch entries that it still reads.

    Parameters
    ----------
    inverse
        The inverse of the patches' second moment [n, n]; changed in place.
    kernel
        The kernel that gives the present outputs [out, n].
    entries
        For each unit read, by its number in the graph, its patch entries.
    outputs
        The units that the layer makes [out].
    energy
        The squared norm of the outputs.
    metric
        An output error e costs e' `metric` e, summed over the patches [out, out]; None: e' e.
    """

    def __init__(
        self,
        inverse: Array,
        kernel: Array,
        entries: dict[int, Array],
        outputs: Array,
        energy: float,
        metric: Array | None = None,
    ) -> None:
        self.inverse = inverse
        self.entries = entries
        self.outputs = outputs
        self.energy = energy
        self._metric = np.eye(len(kernel)) if metric is None else metric
        self._kernel = kernel.T.copy()  # [n, out]
        self._weighted = self._kernel @ self._metric  # kept up to date with _kernel

    @property
    def kernel(self) -> Array:
        """The kernel that reproduces the outputs best from the remaining entries [out, n]."""
        return self._kernel.T

    def costs(self, units: Sequence[int]) -> Array:
        """The increase of the error if one of `units` is removed and the rest refitted [units]."""
        found = np.zeros(len(units))
        sizes = np.array([len(self.entries[unit]) for unit in units])
        for size in np.unique(sizes):  # all alike, unless a unit is read twice
            same = np.flatnonzero(sizes == size)
            own = np.stack([self.entries[units[index]] for index in same.tolist()])
            blocks = np.linalg.inv(self.inverse[own[:, :, None], own[:, None, :]])
            losses = self._kernel[own] @ self._weighted[own].transpose(0, 2, 1)
            found[same] = np.sum(blocks * losses, axis=(1, 2))
        return found

    def remove(self, unit: int) -> None:
        """Remove a unit's entries: block elimination of the inverse, refit of the kernel."""
        own = self.entries.pop(unit)
        rows = self.inverse[own]
        gain = np.linalg.solve(rows[:, own], rows)
        self._weighted -= gain.T @ self._weighted[own]
        self._kernel -= gain.T @ self._kernel[own]
        self.inverse -= rows.T @ gain

    def remove_outputs(self, unit: int) -> None:
        """Drop a unit's outputs from the objective."""
        keep, gone = self.outputs != unit, self.outputs == unit
        share = self._kernel[:, gone] @ self._metric[np.ix_(gone, keep)]
        self._weighted = self._weighted[:, keep] - share
        self._kernel = self._kernel[:, keep]
        self._metric = self._metric[np.ix_(keep, keep)]
        self.outputs = self.outputs[keep]


def refittable(layer: Layer) -> bool:
    """Whether a `RefitProblem` of the layer can be made."""
    return not layer.transposed and len(layer.in_units) * prod(layer.kernel) <= WIDEST


def measuring_apart(
    context: Context, images: int, kinds: Sequence[str], layers: Sequence[str]
) -> Generator[Any, None, tuple[Evidence, Evidence | None]]:
    """Measure most of `images` training images and, apart, those held out to choose a ridge by.

    Parameters
    ----------
    context
        What gives the network and the images.
    images
        How many training images there are in all.
    kinds, layers
        What to measure, as in `measure`.

    Returns
    -------
    tuple of Evidence
        The evidence to solve on, and that on held-out images (None: there are none).
    """
    found: list[Evidence | None] = []
    for held in (False, True):
        batches = nonempty(part(take(context.training_batches(context.seed), images), held))
        if batches is None and held:
            found.append(None)
            continue
        found.append(
            (
                yield from measuring(
                    context.model,
                    context.graph,
                    batches or (),
                    kinds,
                    layers=layers,
                    seed=context.seed,
                    forward=context.forward,
                    loss=context.loss,
                    expected=images // HOLD if held else images - images // HOLD,
                )
            )
        )
    solved, apart = found
    assert solved is not None
    return solved, apart


def refit_problem(
    model: nn.Module,
    layer: Layer,
    solved: Evidence,
    held: Evidence | None,
    metric: Array | None = None,
) -> RefitProblem:
    """The least squares of a layer, with an intercept where it has a bias or a BatchNorm.

    Parameters
    ----------
    model, layer
        The network and one of its layers.
    solved, held
        Evidence with patch moments. The problem uses both; its ridge is solved on `solved` and
        chosen by `held`.
    metric
        As in `RefitProblem`.

    Raises
    ------
    InvalidValue
        For a layer that is not `refittable`.
    BadData
        For a layer that did not run on these images.
    """
    if not refittable(layer):
        raise InvalidValue(
            f"{layer.name} cannot be refitted: elimination takes convolutions that are not "
            f"transposed, with at most {WIDEST} inputs times kernel entries. Use ThiNet for what "
            "it reads, or leave that out of pruning_ratio={...}."
        )
    parts = [one.moments[layer.name] for one in (solved, held) if one and layer.name in one.moments]
    if not parts:
        raise BadData(
            f"{layer.name} did not run on these images, so it could not be measured. Give other "
            "images, or leave what it reads out of pruning_ratio={...}."
        )
    weight = effective_weights(model, (layer,))[layer.name].double().cpu()
    kernel = weight.reshape(len(weight), -1)
    bias = {
        layer.weight.removesuffix("weight") + "bias",
        f"{layer.name}.bias",
        f"{layer.name}.bias_orig",
    }
    intercept = layer.norm is not None or not bias.isdisjoint(dict(model.named_parameters()))
    unit_of_entry = np.repeat(layer.in_units, prod(layer.kernel))
    units = distinct_units(layer)
    seconds = [one.moment.cpu() for one in parts]
    ridge = ridge_without(
        torch.from_numpy(np.isin(unit_of_entry, units[1::2])),
        kernel.T,
        seconds[0],
        seconds[1] if len(seconds) > 1 else None,
        constant=intercept,
    )
    moment = _second_moment(reduce(add, parts), intercept)
    return RefitProblem(
        inverse=np.linalg.inv(with_ridge(torch.from_numpy(moment), ridge).numpy()),
        kernel=kernel.numpy(),
        entries={unit: np.flatnonzero(unit_of_entry == unit) for unit in units.tolist()},
        outputs=layer.out_units,
        energy=float(np.sum((kernel.numpy() @ moment) * kernel.numpy())),
        metric=metric,
    )


def _second_moment(moments: PatchMoments, intercept: bool) -> Array:
    """The second moment of the patches, about their mean where there is an intercept."""
    moment: Array = moments.moment.cpu().numpy()
    inner = moment[:-1, :-1]
    if intercept:
        inner = inner - np.outer(moment[-1, :-1], moment[-1, :-1]) / max(1, moments.rows)
    return inner
