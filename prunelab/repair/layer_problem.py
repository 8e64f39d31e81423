"""One layer's samples, batch by batch: what it still reads, and what it should give.

Rows while they are fewer than a row has entries, second moments from then on: either way what is
kept does not grow with the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.evidence.patch_moments import cross_moment, patch_moments, patches, positions_of
from prunelab.graph.channels.channel_graph import Layer
from prunelab.graph.labels.layer_calls import Call
from prunelab.repair.fit import Fit, Moments, Rows, fit
from prunelab.repair.recalibration import Traced, places, shift_norm

WIDEST = 8192  # patch entries whose second moment is kept: 0.5 GB in float64
ROWS = 2**26  # entries of the samples kept of a layer that is wider: 0.25 GB in float32
JUDGES = 2**26  # entries of the samples kept that judge a layer
POSITIONS = 32  # of an image that judges
DETERMINED = 4  # samples an entry


@dataclass(slots=True, eq=False)
class LayerProblem:
    """One layer to be solved: min ||(P, 1) W' - Y||^2 over the patches P that it still reads.

    `layer` is as in the small network; `inputs` are the positions of its input channels in the
    network that is watched, `outputs` those of its outputs in the target. Y is without bias. Some
    images are `held` out: they are not solved on, they judge.
    """

    layer: Layer
    constant: bool  # whether there is a bias or a BatchNorm to put the constant into
    inputs: Tensor
    outputs: Tensor
    solved: Rows | Moments | None = None
    held: Rows | None = None

    @property
    def entries(self) -> int:
        """The entries of one patch."""
        return len(self.layer.in_units) * prod(self.layer.kernel)

    @property
    def determined(self) -> bool:
        """Whether there are as many samples as it takes to solve for every entry."""
        return self.solved is not None and len(self.solved) >= DETERMINED * self.entries

    def add(self, call: Call, y: Tensor, images: int, held: bool) -> None:
        """Take in a call of the layer on some images, what it aims at, and whether these judge."""
        x = call.x
        if len(self.inputs) < x.shape[1]:
            x = x.index_select(1, self.inputs.to(x.device))
        if held:
            room = _room(JUDGES, self.entries, self.held)
            self.held = _with(self.held, x, y, call, min(POSITIONS * images, room))
        else:
            self._solve_on(x, y, call)

    def _solve_on(self, x: Tensor, y: Tensor, call: Call) -> None:
        """Rows while they are fewer than the entries, moments from then on.

        Of a layer too wide for those one call gives at most half of the rows that there is room
        for, so that later images have their say.
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
        """Put into `small` what is best, see `fit`; None where the layer was not called."""
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
        self._put(found, small, target)
        return found

    def _norm(self, network: nn.Module) -> Any:
        """The BatchNorm behind the layer, if its statistics can be changed."""
        if self.layer.norm is None:
            return None
        norm = network.get_submodule(self.layer.norm)
        whole = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_var is not None
        return norm if whole else None

    @torch.no_grad()
    def _put(self, found: Fit, small: nn.Module, target: nn.Module) -> None:
        """The constant goes into the bias or, where there is none, into BatchNorm's mean."""
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
    """How many rows more there is room for."""
    return most // entries - (0 if there is None else len(there))


def _with(there: Rows | None, x: Tensor, y: Tensor, call: Call, most: int) -> Rows | None:
    """The rows there and at most so many of a call: as many positions of each of its inputs."""
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
    """Places among `count`, in order: always the same."""
    draw = torch.Generator().manual_seed(count)
    return torch.randperm(count, generator=draw)[:some].sort().values.to(device)


def problem_of(small: Traced, watched: Layer, target: Layer) -> LayerProblem | None:
    """What is to be solved of a layer; None where least squares does not apply."""
    now = small.graph.layer(watched.name)
    if not now.dense or now.transposed or now.computed:
        return None
    has_bias = _bias_of(now) in dict(small.network.named_parameters())
    return LayerProblem(
        layer=now,
        constant=has_bias or now.norm is not None,
        inputs=places(now.in_units, watched.in_units),
        outputs=places(now.out_units, target.out_units),
    )


def _bias_of(layer: Layer) -> str:
    return layer.weight.removesuffix("weight") + "bias"
