"""What a network saves that is no tensor: the extra state of its modules, as JSON."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunelab.errors import BadModel


def check_saved(name: str, module: nn.Module) -> None:
    """Raise where a module saves what is neither parameter, buffer nor extra state."""
    if type(module)._save_to_state_dict is not nn.Module._save_to_state_dict:
        saved: dict[str, Any] = {}
        module._save_to_state_dict(saved, "", False)
        own = {*module._parameters, *module._buffers, "_extra_state"}
        if odd := [key for key in saved if key not in own]:
            raise quantised(f"{name}.{odd[0]}")


def quantised(name: str) -> BadModel:
    """The error for what a module packs away, under `name`."""
    return BadModel(
        f"{name} is neither a parameter, a buffer nor extra state, as in quantised layers, and "
        "prunelab cannot write it. Prune the network before it is quantised."
    )


def encoded(value: Any, module: str) -> Any:
    """What `get_extra_state` returned, as JSON."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return {type(value).__name__: [encoded(part, module) for part in value]}
    if isinstance(value, dict):
        return {"dict": [[encoded(part, module) for part in pair] for pair in value.items()]}
    if type(value) is bytes:
        return {"bytes": value.hex()}
    if isinstance(value, Tensor) and not value.is_complex() and not value.is_quantized:
        kind = str(value.dtype).removeprefix("torch.")
        return {"tensor": [kind, list(value.shape), value.detach().flatten().tolist()]}
    raise BadModel(
        f"get_extra_state of {module} gives a {type(value).__name__}, which cannot be written "
        "without pickle. Let it give numbers, texts, tensors, or lists and dicts of them."
    )


def decoded(value: Any) -> Any:
    """The value that `_encoded` turned into JSON."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {decoded(key): decoded(part) for key, part in content}
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "tensor":
        dtype, shape, numbers = content
        return torch.tensor(numbers, dtype=getattr(torch, dtype)).reshape(shape)
    parts = [decoded(part) for part in content]
    return tuple(parts) if kind == "tuple" else parts
