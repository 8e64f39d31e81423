"""What can be pruned: a module in PyTorch's own code, before it is compiled or quantised."""

from __future__ import annotations

from typing import Any

import torch
from torch.ao.nn.quantized import FloatFunctional

from prunelab.errors import BadModel
from prunelab.graph.surgery.held_tensors import checked_network, without_values

INSTEAD = "Give the nn.Module that it was made from, and do that again after pruning."


def check_network(model: Any) -> None:
    """Raise `BadModel`, saying what to give, unless `model` is a network that can be traced."""
    exported = type(model).__module__.startswith("torch.export")
    if exported or any(kind.__module__.startswith("torch.export") for kind in type(model).__mro__):
        raise BadModel(
            f"This network was exported by torch.export: its shapes are fixed. {INSTEAD}"
        )
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise BadModel(
            f"This network is TorchScript ({type(model).__name__}): its code cannot be followed, "
            f"nor its layers replaced. {INSTEAD}"
        )
    checked_network(model)
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__ and not isinstance(module, FloatFunctional):
            raise BadModel(
                f"{name or 'The network'} is quantised ({type(module).__name__}): its weights are "
                f"packed and cannot be cut. {INSTEAD}"
            )
    if (name := without_values(model)) is not None:
        raise BadModel(
            f"{name} has no values: it is on the meta device, or lazy. Load the weights first "
            "(model.to_empty(device='cpu') and load_state_dict), or run the network once."
        )
