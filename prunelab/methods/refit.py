"""Least squares of one layer from which units are removed one by one, each time solved anew.

The state that backward elimination with refit updates (`Elimination`, `Surgeon`): the optimal
brain surgeon for whole channels (Hassibi, Stork; NIPS 1992), by block elimination of an inverse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import add
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.errors import BadData, InvalidValue
from prunelab.evidence import Evidence, PatchMoments
from prunelab.evidence.gram_collector import distinct_units
from prunelab.evidence.output_fisher import Root
from prunelab.evidence.patch_correlation import symmetric_product
from prunelab.evidence.patch_moments import WIDEST
from prunelab.evidence.weak_cache import weak_cache
from prunelab.graph.channels.channel_graph import Layer
from prunelab.graph.surgery.effective_weights import effective_weights
from prunelab.repair.fit import ridge_without
from prunelab.repair.regression import sizes_of

Array = np.ndarray
Metric = Array | Root | None
Built = tuple[Tensor, Tensor | None, float]  # what an `Inverse` is made of, and an energy
ROOM = 4  # an n-th of a matrix's rows may wait to be subtracted from it


class Inverse:
    """The inverse of a second moment, of which only some rows are needed, after each removal.

    It is `base` - left' right. A removal adds rows to the two instead of changing the matrix
    (left-looking elimination), which takes n m for each row, m the rows so far, instead of n^2.

    Parameters
    ----------
    base
        The inverse [n, n], or the diagonal of a diagonal matrix [n].
    less
        Rows [m, n] whose products are subtracted (None: nothing is).
    """

    def __init__(self, base: Tensor, less: Tensor | None = None) -> None:
        self._base = base
        self._used = 0 if less is None else len(less)
        room = self._used + max(64, len(base) // ROOM)
        self._left, self._right = (base.new_empty(room, len(base)) for _ in range(2))
        if less is not None:
            self._left[: self._used] = self._right[: self._used] = less

    def rows(self, own: Tensor) -> Tensor:
        """The rows `own` [some] of the inverse [some, n]."""
        if self._base.ndim == 2:
            rows = self._base[own]
        else:
            rows = self._base.new_zeros(len(own), len(self._base))
            rows[torch.arange(len(own)), own] = self._base[own]
        left, right = self._left[: self._used], self._right[: self._used]
        return rows.addmm_(left[:, own].T, right, alpha=-1)

    def blocks(self, sets: Tensor) -> Tensor:
        """The blocks of the inverse at sets of indices [sets, k], each with itself [sets, k, k]."""
        if self._base.ndim == 2:
            found = self._base[sets[:, :, None], sets[:, None, :]]
        else:
            found = torch.diag_embed(self._base[sets])
        left, right = (part[: self._used].T[sets] for part in (self._left, self._right))
        return found - left @ right.transpose(1, 2)

    def subtract(self, left: Tensor, right: Tensor) -> None:
        """Subtract left' right, both [some, n]."""
        if self._used + len(left) > len(self._left):
            whole = self._base if self._base.ndim == 2 else torch.diag(self._base)
            waiting = self._left[: self._used].T, self._right[: self._used]
            self._base, self._used = whole.addmm(*waiting, alpha=-1), 0
        places = slice(self._used, self._used + len(left))
        self._left[places], self._right[places] = left, right
        self._used = places.stop


@dataclass(slots=True)
class Sets:
    """Units that each have k patch entries: what their prices are computed from.

    `units` [sets] are their numbers, `own` [sets, k] their entries. `blocks` [sets, k, k] are
    those of the inverse, `losses` the products of the units' weights by the metric.
    """

    units: Array
    own: Tensor
    blocks: Tensor
    losses: Tensor


class RefitProblem:
    """The least squares of one layer's outputs on the patch entries that it still reads.

    Parameters
    ----------
    inverse
        The inverse of the patches' second moment [n, n].
    kernel
        The kernel that gives the present outputs [out, n].
    entries
        For each unit read, by its number in the graph, its patch entries.
    outputs
        The units that the layer makes [out].
    energy
        The squared norm of the outputs.
    metric
        An output error e costs e' `metric` e, summed over the patches [out, out], or its root;
        None: e' e.
    """

    def __init__(
        self,
        inverse: Array | Inverse,
        kernel: Array,
        entries: Mapping[int, Array],
        outputs: Array,
        energy: float,
        metric: Metric = None,
    ) -> None:
        self.entries = dict(entries)
        self.outputs = outputs
        self.energy = energy
        self.units = np.array(sorted(entries))
        self.prices = np.zeros(len(entries))  # aligned with `units`
        self._inverse = inverse if isinstance(inverse, Inverse) else Inverse(_tensor(inverse))
        self._kernel = _tensor(kernel.T).contiguous()  # [n, out]
        self._stays = torch.ones(len(kernel), dtype=torch.bool)
        self._root = isinstance(metric, Root)
        given = metric.rows if isinstance(metric, Root) else metric
        self._metric = None if given is None else _tensor(given).clone()
        by_size: dict[int, list[int]] = {}  # all alike, unless a unit is read twice
        for unit in self.units.tolist():
            by_size.setdefault(len(entries[unit]), []).append(unit)
        self._sets = [self._set(np.array(units)) for units in by_size.values()]
        self._stale = True

    def _set(self, units: Array) -> Sets:
        own = torch.from_numpy(np.stack([self.entries[unit] for unit in units.tolist()]))
        weighted = self._weighted(self._kernel)
        losses = self._kernel[own] @ weighted[own].transpose(1, 2)
        return Sets(units, own, self._inverse.blocks(own), losses)

    @property
    def kernel(self) -> Array:
        """The kernel that reproduces the outputs best from the remaining entries [out, n]."""
        kernel: Array = self._kernel[:, self._stays].T.numpy()
        return kernel

    @property
    def size(self) -> int:
        """The number n of patch entries."""
        return len(self._kernel)

    def table(self) -> Tensor:
        """The inverse and the kernel side by side [n, n + out]."""
        return torch.cat([self._inverse.rows(torch.arange(self.size)), self._kernel], dim=1)

    def costs(self, units: Sequence[int] | Array) -> Array:
        """The increase of the error if one of `units` is removed and the rest refitted [units]."""
        if self._stale:
            for one in self._sets:
                if len(one.units):
                    found = (torch.linalg.inv(one.blocks) * one.losses).sum((1, 2))
                    self.prices[np.searchsorted(self.units, one.units)] = found.numpy()
            self._stale = False
        found_for: Array = self.prices[np.searchsorted(self.units, units)]
        return found_for

    def remove(self, unit: int) -> None:
        """Remove a unit's entries: block elimination of the inverse, refit of the kernel.

        With rows H_r of the inverse and weights W_r, everything changes by H_r' (H_rr)^-1 times
        H_r or W_r; of that only the blocks that prices are made of are computed.
        """
        own = torch.from_numpy(self.entries.pop(unit))
        rows = self._inverse.rows(own)
        gain = torch.linalg.solve(rows[:, own], rows)
        gone = self._kernel[own].clone()
        weighted = self._weighted(gone)
        cross, square = weighted @ self._kernel.T, weighted @ gone.T
        for one in self._sets:
            stays = one.units != unit
            if not stays.all():
                one.units, kept = one.units[stays], torch.from_numpy(stays)
                one.own, one.blocks, one.losses = one.own[kept], one.blocks[kept], one.losses[kept]
            left, right = rows.T[one.own], gain.T[one.own]  # [sets, k, entries of the unit]
            one.blocks -= left @ right.transpose(1, 2)
            part = right @ cross.T[one.own].transpose(1, 2)
            one.losses -= part + part.transpose(1, 2) - right @ square @ right.transpose(1, 2)
        self._kernel.addmm_(gain.T, gone, alpha=-1)
        self._inverse.subtract(rows, gain)
        self._stale = True

    def remove_outputs(self, unit: int) -> None:
        """Drop a unit's outputs from the objective."""
        gone = torch.from_numpy(self.outputs == unit) & self._stays
        shares = self._kernel[:, gone]
        weighted = self._weighted(torch.eye(len(gone), dtype=shares.dtype)[gone])
        cross, square = weighted @ self._kernel.T, weighted[:, gone]
        self._stays &= ~gone
        for one in self._sets:
            right = shares[one.own]
            part = right @ cross.T[one.own].transpose(1, 2)
            one.losses -= part + part.transpose(1, 2) - right @ square @ right.transpose(1, 2)
        if self._metric is not None:
            self._metric[:, gone] = 0
            if not self._root:
                self._metric[gone] = 0
        self._stale = True

    def _weighted(self, weights: Tensor) -> Tensor:
        """`weights` [some, out] times the metric of the outputs that stay [some, out]."""
        if self._metric is None:
            return weights * self._stays
        if self._root:
            return (weights @ self._metric.T) @ self._metric
        return weights @ self._metric


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def refittable(layer: Layer) -> bool:
    """Whether a `RefitProblem` of the layer can be made."""
    return not layer.transposed and len(layer.in_units) * prod(layer.kernel) <= WIDEST


def problem_bytes(layer: Layer, images: int) -> float:
    """The memory of a layer's problem on so many images: its inverse, rows that wait, weights."""
    rows = images * layer.positions * layer.row_count
    entries, outputs = len(layer.in_units) * prod(layer.kernel), len(layer.out_units)
    room, few = max(64, entries // ROOM), 2 * rows <= entries
    base = 3 * rows if few else entries + 2 * room
    return 8.0 * (entries * (base + 2 * outputs) + outputs * min(outputs, 2048))


def refit_problem(
    model: nn.Module,
    layer: Layer,
    solved: Evidence,
    held: Evidence | None,
    metric: Metric = None,
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
    known, place = _known(solved), (layer.name, None if held is None else ref(held))
    if place not in known:
        ridge = ridge_without(
            torch.from_numpy(np.isin(unit_of_entry, units[1::2])),
            kernel.T,
            *(one.kept.cpu() if one.kept is not None else one.moment.cpu() for one in parts),
            constant=intercept,
        )
        known[place] = _inverse(reduce(add, parts), ridge, kernel, intercept)
    base, less, energy = known[place]
    return RefitProblem(
        inverse=Inverse(base, less),
        kernel=kernel.numpy(),
        entries={unit: np.flatnonzero(unit_of_entry == unit) for unit in units.tolist()},
        outputs=layer.out_units,
        energy=energy,
        metric=metric,
    )


@weak_cache
def _known(solved: Evidence) -> dict[tuple[str, ref[Evidence] | None], Built]:
    """What was built of an evidence, by layer and held-out evidence: a move asked for again."""
    return {}


def _inverse(moments: PatchMoments, ridge: float, kernel: Tensor, intercept: bool) -> Built:
    """The inverse of the patches' second moment plus a ridge, and the outputs' squared norm.

    The moment is about the patches' mean where there is an intercept. Of a few patches P the
    inverse is that of a diagonal D plus P' P: D^-1 - Q' Q, Q = L^-1 P D^-1, L L' = 1 + P D^-1 P'.
    """
    if moments.kept is not None:
        p = moments.kept.cpu().double()
        p = p - p.mean(0) if intercept else p
        energy = float((p @ kernel.T).square().sum())
        sizes = (ridge * sizes_of(p.square().sum(0))).sqrt()
        inner = symmetric_product(p := p / sizes)
        inner.diagonal().add_(1)
        root = torch.linalg.cholesky(inner)
        less = torch.linalg.solve_triangular(root, p, upper=False)
        return sizes.square().reciprocal(), less / sizes, energy
    whole = moments.moment.cpu()
    moment = whole[:-1, :-1].clone()
    if intercept:
        moment.addr_(whole[-1, :-1], whole[-1, :-1], alpha=-1 / max(1, moments.rows))
    energy = float(((kernel @ moment) * kernel).sum())
    moment.diagonal().add_(ridge * sizes_of(moment.diagonal()))
    root, info = torch.linalg.cholesky_ex(moment)
    inverse = torch.linalg.inv(moment) if int(info) else torch.cholesky_inverse(root)
    return inverse, None, energy
