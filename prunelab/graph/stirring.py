"""Random values for parameters that hide what they multiply: a scale that begins at zero."""

from __future__ import annotations

import torch
from torch import nn

TINY = 1e-3


def stir(model: nn.Module) -> None:
    """Give the parameters of `model` that are all equal, or all tiny, random values.

    Such are zero-initialised scales, biases and layers, and scales of one. Values keep their sign
    and size where they have any, so that exponents and roots stay finite.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not parameter.is_floating_point() or not parameter.numel():
            continue
        low, high = (float(x) for x in parameter.detach().aminmax())
        most = max(abs(low), abs(high))
        if low < high and most > TINY:
            continue
        noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
        if most > TINY:
            values = low * (0.75 + 0.5 * noise)
        else:
            sign = torch.where(noise * 64 % 1 < 0.5, -1.0, 1.0)
            rows = parameter.shape[0] if parameter.ndim else 1
            values = sign * (0.1 + 0.4 * noise) * (rows / parameter.numel()) ** 0.5
        parameter.data.copy_(values)
