"""The weights that layers use, where hooks or parametrizations compute them from others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunelab.graph.channels.channel_graph import Layer


def effective_weights(model: nn.Module, layers: tuple[Layer, ...]) -> dict[str, Tensor]:
    """The weight that each layer uses, by layer; a channel selector has none.

    A weight that forward code itself computes (standardisation) is not known without running it:
    there, the parameter that it is computed from.
    """
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    found = {}
    for layer in layers:
        if layer.weight not in parameters:
            continue
        weight = parameters[layer.weight].detach()
        if layer.computed and layer.name in modules:
            with torch.no_grad():
                made = _made(modules[layer.name])
            if isinstance(made, Tensor) and made.shape == weight.shape:
                weight = made.detach()
        found[layer.name] = weight
    return found


def _made(module: nn.Module) -> Any:
    """The weight of a module, made anew as its hooks make it before each call."""
    for hook in module._forward_pre_hooks.values():
        if getattr(hook, "_tensor_name", None) == "weight" and hasattr(hook, "apply_mask"):
            return hook.apply_mask(module)
        if getattr(hook, "name", None) == "weight" and hasattr(hook, "compute_weight"):
            left = vars(module).get("weight")
            return left if hasattr(hook, "n_power_iterations") else hook.compute_weight(module)
    return getattr(module, "weight", None)
