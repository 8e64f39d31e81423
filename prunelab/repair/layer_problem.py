"""One layer's least-squares samples, batch by batch: its remaining inputs and its targets.

They are kept as rows while there are fewer rows than entries in a row, and as second moments from
then on, so memory does not grow with the images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.evidence.patch_moments import (
    WIDEST,
    cross_moment,
    patch_moments,
    patches,
    positions_of,
)
from prunelab.graph.channels.channel_graph import Layer
from prunelab.graph.labels.layer_calls import Call
from prunelab.repair.fit import Fit, fit
from prunelab.repair.recalibration import Traced, positions_among, shift_norm
from prunelab.repair.rectified import ROWS as ROWS_BEFORE_RELU
from prunelab.repair.rectified import rectified as refit_before_relu
from prunelab.repair.regression import Moments, Rows

ROWS = 2**26  # entries of all rows kept of a layer wider than WIDEST: 0.25 GB in float32
HELD_ROWS = 2**26  # entries of all held-out rows of a layer
POSITIONS = 32  # of each held-out image
DETERMINED = 4  # samples for each entry
IMAGES = 512  # at least; more only while a layer is not `determined`


@dataclass(slots=True, eq=False)
class LayerProblem:
    """One layer to solve: min ||(P, 1) W' - Y||^2 over the patches P that it still reads.

    Attributes
    ----------
    layer
        The layer in the small network.
    constant
        Whether a bias or a BatchNorm can take the constant.
    inputs, outputs
        The positions of its input channels in the network that gives P, and of its outputs in the
        one that gives the targets Y (without bias).
    factor
        Whether it is the second part of a factorised layer, see `factorised`.
    solved, held
        The samples to solve on, and those of held-out images to choose by.
    before_relu
        Some of those to solve on, of a `factor` that a ReLU follows.
    """

    layer: Layer
    constant: bool
    inputs: Tensor
    outputs: Tensor
    factor: bool = False
    solved: Rows | Moments | None = None
    held: Rows | None = None
    before_relu: Rows | None = None

    @classmethod
    def of(cls, small: Traced, watched: Layer, target: Layer) -> LayerProblem | None:
        """The problem of a layer; None if least squares does not apply to it.

        Parameters
        ----------
        small
            The network to repair.
        watched, target
            The layer in the network that gives its inputs, and in the one that gives its targets.
        """
        now = small.graph.layer(watched.name)
        if not now.dense or now.transposed or now.computed:
            return None
        has_bias = _bias_of(now) in dict(small.network.named_parameters())
        return cls(
            layer=now,
            constant=has_bias or now.norm is not None,
            inputs=positions_among(now.in_units, watched.in_units),
            outputs=positions_among(now.out_units, target.out_units),
            factor=now.name.endswith(".1") and now.name[:-2] in small.graph.factors,
        )

    @property
    def entries(self) -> int:
        """The entries of one patch."""
        return len(self.layer.in_units) * prod(self.layer.kernel)

    @property
    def determined(self) -> bool:
        """Whether there are enough samples to solve for every entry."""
        return self.solved is not None and len(self.solved) >= DETERMINED * self.entries

    def satisfied(self, start: int) -> bool:
        """Whether the images from number `start` on are not needed."""
        return start >= IMAGES and self.determined

    def add(
        self, call: Call, y: Tensor, images: int, held: bool, *, rectified: bool = False
    ) -> None:
        """Add a call of the layer.

        Parameters
        ----------
        call
            The call, with the layer's input.
        y
            The target, one value for each output [N, out, *positions].
        images
            How many images it is on.
        held
            Whether these are held out.
        rectified
            Whether a ReLU follows the layer.
        """
        x = call.x
        if len(self.inputs) < x.shape[1]:
            x = x.index_select(1, self.inputs.to(x.device))
        if held:
            room = _room(HELD_ROWS, self.entries, self.held)
            self.held = _with(self.held, x, y, call, min(POSITIONS * images, room))
            return
        if rectified and self.factor:
            room = ROWS_BEFORE_RELU - (0 if self.before_relu is None else len(self.before_relu))
            self.before_relu = _with(self.before_relu, x, y, call, min(POSITIONS * images, room))
        self._solve_on(x, y, call)

    def _solve_on(self, x: Tensor, y: Tensor, call: Call) -> None:
        """Keep rows while there are fewer than entries, second moments from then on.

        A layer wider than WIDEST keeps rows only, and a call fills at most half of the room left,
        so that later images count too.
        """
        rows = y.numel() // y.shape[1]
        there = 0 if self.solved is None else len(self.solved)
        if not isinstance(self.solved, Moments):
            if self.entries > WIDEST:
                room = _room(ROWS, self.entries, self.solved)
                self.solved = _with(self.solved, x, y, call, (room + 1) // 2)
                return
            if there + rows <= self.entries:
                self.solved = _with(self.solved, x, y, call, rows)
                return
        kernel = tuple(call.weight.shape[2:])
        moments = Moments(
            patch_moments(x, kernel, call.conv).moment,
            cross_moment(x, y, kernel, call.conv),
            y.movedim(1, 0).flatten(1).double().square().sum(1),
        )
        before = self.solved.moments if isinstance(self.solved, Rows) else self.solved
        self.solved = moments if before is None else before + moments

    def solve(self, small: nn.Module, target: nn.Module) -> Fit | None:
        """Write the best fit into `small`, see `fit`; None if the layer was not called."""
        if self.solved is None:
            return None
        weight = dict(small.named_parameters())[self.layer.weight]
        old = weight.detach().reshape(len(weight), -1).double().T
        norm = self._norm(target)
        scale = None
        if norm is not None:
            gamma = norm.weight if norm.weight is not None else torch.ones_like(norm.running_var)
            scale = gamma.detach().double().square() / (norm.running_var.double() + norm.eps)
            scale = scale[self.outputs.to(scale.device)]
        found = fit(
            self.solved, self.held, old, constant=self.constant, normed=norm is not None,
            importance=scale,
        )  # fmt: skip
        if found.choice == "lstsq" and self.before_relu is not None and self.held is not None:
            affine = self._affine(target, norm)
            refit = found.weight, found.constant, found.ridge, affine
            better, constant = refit_before_relu(self.before_relu, self.held, *refit)
            found = replace(found, weight=better, constant=constant)
        self._put(found, small, target)
        return found

    def _affine(self, target: nn.Module, norm: Any) -> tuple[Tensor, Tensor]:
        """The scale and shift of the outputs before the ReLU: of bias and BatchNorm [out]."""
        outputs = self.outputs
        scale = torch.ones(len(outputs), dtype=torch.float64, device=outputs.device)
        shift = torch.zeros_like(scale)
        bias = dict(target.named_parameters()).get(_bias_of(self.layer))
        if bias is not None:
            shift = shift.to(bias.device) + bias.detach().double()[outputs.to(bias.device)]
        if norm is not None:
            own = outputs.to(norm.running_var.device)
            scale = (norm.running_var.double() + norm.eps).rsqrt()[own]
            if norm.weight is not None:
                scale = scale * norm.weight.detach().double()[own]
            shift = (shift - norm.running_mean.double()[own]) * scale
            if norm.bias is not None:
                shift = shift + norm.bias.detach().double()[own]
        return scale, shift

    def _norm(self, network: nn.Module) -> Any:
        """The BatchNorm behind the layer, if it has running statistics."""
        if self.layer.norm is None:
            return None
        norm = network.get_submodule(self.layer.norm)
        whole = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_var is not None
        return norm if whole else None

    @torch.no_grad()
    def _put(self, found: Fit, small: nn.Module, target: nn.Module) -> None:
        """Write a fit; the constant goes into the bias or, without one, into BatchNorm's mean."""
        if found.choice == "kept":
            return
        norms = self._norm(small), self._norm(target)
        if found.choice == "bn":
            shift_norm(*norms, self.outputs, found.shift, found.ratio)
            return
        parameters = dict(small.named_parameters())
        weight = parameters[self.layer.weight]
        weight.copy_(found.weight.T.reshape(weight.shape))
        bias, constant = parameters.get(_bias_of(self.layer)), found.constant
        if bias is not None:
            there = dict(target.named_parameters())[_bias_of(self.layer)].detach()
            bias.copy_(there[self.outputs.to(there.device)] + constant)
            constant = torch.zeros_like(constant)
        if norms[0] is not None:
            shift_norm(*norms, self.outputs, -constant, torch.ones_like(constant))


def _room(most: int, entries: int, there: Rows | None) -> int:
    """How many more rows there is room for."""
    return most // entries - (0 if there is None else len(there))


def _with(there: Rows | None, x: Tensor, y: Tensor, call: Call, most: int) -> Rows | None:
    """`there` plus at most `most` rows of a call: the same number of positions of each input."""
    if most < 1:
        return there
    if most < len(x):
        some = _drawn(len(x), most, x.device)
        x, y = x[some], y[some]
    positions, each = y[0, 0].numel(), most // len(x)
    at = _drawn(positions, each, x.device) if each < positions else None
    found = Rows(patches(x, tuple(call.weight.shape[2:]), call.conv, at), positions_of(y, at))
    return found if there is None else there + found


def _drawn(count: int, some: int, device: torch.device) -> Tensor:
    """`some` indices below `count`, in order; always the same for the same `count`."""
    draw = torch.Generator().manual_seed(count)
    return torch.randperm(count, generator=draw)[:some].sort().values.to(device)


def _bias_of(layer: Layer) -> str:
    return layer.weight.removesuffix("weight") + "bias"
