"""What can be pruned: a module in PyTorch's own code, before it is compiled or quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from prunelab.errors import BadModel

INSTEAD = "Give the nn.Module that it was made from, and do that again after pruning."


def check_network(model: Any) -> None:
    """Raise `BadModel`, saying what to give, unless `model` is a network that can be traced."""
    if isinstance(model, str | Path):
        raise BadModel(
            f"A network is an nn.Module, not a path ({str(model)!r}). Build it in Python, load its "
            "weights with model.load_state_dict(torch.load(path, weights_only=True)), and give it."
        )
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
    if not isinstance(model, nn.Module):
        load = " Build it in Python and load these weights." * isinstance(model, dict)
        raise BadModel(f"A network is an nn.Module, not a {type(model).__name__}.{load}")
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            raise BadModel(
                f"{name or 'The network'} is quantised ({type(module).__name__}): its weights are "
                f"packed and cannot be cut. {INSTEAD}"
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise BadModel(
                f"{name} of a lazy layer has no size yet. Run the network once on an input first."
            )
        if tensor.is_meta:
            raise BadModel(
                f"The network is on the meta device ({name} has no values). Load its weights "
                "first: model.to_empty(device='cpu') and load_state_dict."
            )
