"""One layer's samples, batch by batch: what it still reads, and what it should give.

Rows while they are fewer than a row has entries, second moments from then on: either way what is
kept does not grow with the images. May import channels, coupling, evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.channels import Layer
from prunelab.coupling.calls import Call
from prunelab.evidence.moments import cross_moment, patch_moments, patches, positions_of
from prunelab.repair.fit import Fit, Moments, Rows, fit
from prunelab.repair.recalibration import Traced, places, shift_norm

WIDEST = 8192  # patch entries whose second moment is kept: 0.5 GB in float64
ROWS = 2**27  # entries of the samples kept of a layer that is wider: 0.5 GB in float32
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

    def add(self, call: Call, y: Tensor, held: bool) -> None:
        """Take in a call of the layer, what it aims at, and whether these images judge."""
        x = call.x
        if len(self.inputs) < x.shape[1]:
            x = x.index_select(1, self.inputs.to(x.device))
        if held:
            self.held = _sum(self.held, _sample(x, y, call))
        else:
            self._solve_on(x, y, call)

    def _solve_on(self, x: Tensor, y: Tensor, call: Call) -> None:
        """Rows while they are fewer than the entries, moments from then on."""
        rows = y.numel() // y.shape[1]
        there = 0 if self.solved is None else len(self.solved)
        few = not isinstance(self.solved, Moments) and there + rows <= self.entries
        kernel = tuple(call.weight.shape[2:])
        if few or self.entries > WIDEST:
            if (there + rows) * self.entries <= ROWS:
                found = Rows(patches(x, kernel, call.conv), positions_of(y))
                self.solved = found if self.solved is None else self.solved + found  # type: ignore[operator]
            return
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


def _sum(before: Rows | None, more: Rows) -> Rows:
    return more if before is None else before + more


def _sample(x: Tensor, y: Tensor, call: Call) -> Rows:
    """A few positions of each image: they judge as well as all of them do."""
    positions = y[0, 0].numel()
    at = None
    if positions > POSITIONS:
        draw = torch.Generator().manual_seed(positions)
        at = torch.randperm(positions, generator=draw)[:POSITIONS].sort().values.to(x.device)
    return Rows(patches(x, tuple(call.weight.shape[2:]), call.conv, at), positions_of(y, at))


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
