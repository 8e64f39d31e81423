"""A convolution that reads only selected channels of its input."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class SelectingConv2d(nn.Conv2d):
    """A convolution of the input channels whose indices are in `sampler` [in channels].

    The index sampler of Channel Pruning's residual networks (He, Zhang, Sun; ICCV 2017; the
    "Filter" layer of the authors' released networks): a branch then reads fewer channels than its
    shortcut has. `with_channel_selectors` puts it into a network. The selected channels are copied
    at every call.
    """

    sampler: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Convolve the selected channels."""
        return super().forward(x.index_select(1, self.sampler))


def select_channels(conv: nn.Conv2d) -> None:
    """Turn a plain convolution into one that selects channels; at first it selects all of them."""
    conv.__class__ = SelectingConv2d
    conv.register_buffer("sampler", torch.arange(conv.in_channels, device=conv.weight.device))


def selector_buffers(model: nn.Module) -> Iterator[str]:
    """The names of the buffers in `model` that select channels."""
    for name, module in model.named_modules():
        if isinstance(module, SelectingConv2d):
            yield f"{name}.sampler" if name else "sampler"
