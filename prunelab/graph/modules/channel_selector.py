"""A convolution that reads some channels of its input only."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class SampledConv2d(nn.Conv2d):
    """A convolution of the channels of its input that `sampler` [in channels] names.

    The index sampler of Channel Pruning's residual nets (He, Zhang, Sun; ICCV 2017; the "Filter"
    layer of the authors' released networks): a branch then reads fewer channels than its shortcut
    carries. `surgery.sampled` puts it into a network. What it selects is copied at every call.
    """

    sampler: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the channels that are sampled."""
        return super().forward(x.index_select(1, self.sampler))


def read_all(conv: nn.Conv2d) -> None:
    """Make a plain convolution one that samples, from all of its channels for the time being."""
    conv.__class__ = SampledConv2d
    conv.register_buffer("sampler", torch.arange(conv.in_channels, device=conv.weight.device))


def samplers(model: nn.Module) -> Iterator[str]:
    """The names of the buffers in `model` that say which channels are read."""
    for name, module in model.named_modules():
        if isinstance(module, SampledConv2d):
            yield f"{name}.sampler" if name else "sampler"
