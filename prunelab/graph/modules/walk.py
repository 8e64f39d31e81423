"""The modules and tensors of a network by name, found in one walk without recursion."""

from __future__ import annotations

from torch import Tensor, nn


def walk(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """`model.named_modules()`, in a small part of the time: every module by its first name."""
    found: dict[int, tuple[str, nn.Module]] = {}
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = name, module
            start = f"{name}." if name else ""
            waiting += [
                (f"{start}{key}", child)
                for key, child in reversed([*module._modules.items()])
                if child is not None
            ]
    return [*found.values()]


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a network, then its buffers, each by its first name."""
    modules, found = walk(model), {}
    for held in ("_parameters", "_buffers"):
        met: set[int] = set()
        for path, module in modules:
            for key, tensor in getattr(module, held).items():
                if tensor is not None and id(tensor) not in met:
                    met.add(id(tensor))
                    found[f"{path}.{key}" if path else key] = tensor
    return found
