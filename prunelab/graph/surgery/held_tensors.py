"""The parameters and buffers of a network, read and written where its modules hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunelab.errors import BadModel
from prunelab.graph.modules.module_attributes import sync_attributes
from prunelab.graph.modules.walk import walk


class Entry(NamedTuple):
    """A parameter or buffer under one of its names; `module` holds it as `key`."""

    name: str
    module: nn.Module
    key: str
    tensor: Tensor

    @property
    def unsaved(self) -> bool:
        """Whether it is a buffer that `state_dict()` leaves out."""
        return self.key in self.module._non_persistent_buffers_set


def entries(model: nn.Module) -> Iterator[Entry]:
    """Every parameter and buffer under every name, in the order of `state_dict()`."""
    for path, module in _paths(model, "", ()):
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    yield Entry(f"{path}{key}", module, key, tensor)


def _paths(
    module: nn.Module, path: str, above: tuple[nn.Module, ...]
) -> Iterator[tuple[str, nn.Module]]:
    """Every module under every name, with a dot behind it; a module inside itself is left out."""
    yield path, module
    for key, child in module._modules.items():
        if child is not None and child is not module and child not in above:
            yield from _paths(child, f"{path}{key}.", (*above, module))


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by every name."""
    return {path.removesuffix("."): module for path, module in _paths(model, "", ())}


def checked_network(given: Any, name: str = "model") -> None:
    """Raise `BadModel` where `given`, the argument `name`, is no network."""
    if isinstance(given, nn.Module):
        return
    what = f"a {type(given).__name__}"
    if isinstance(given, (str, PathLike, type)):
        what = repr(given) if isinstance(given, str) else str(given)
    raise BadModel(
        f"{name} is {what}; it must be the network itself, an nn.Module. Build it, and load its "
        "weights: model = Net(...); model.load_state_dict(torch.load(path))."
    )


def without_values(model: nn.Module) -> str | None:
    """The name of a tensor of `model` that has no values yet: on the meta device, or lazy."""
    odd = (e.name for e in entries(model) if is_lazy(e.tensor) or e.tensor.is_meta)
    return next(odd, None)


def not_finite(model: nn.Module) -> str | None:
    """The name of a tensor of `model` that is damaged: it holds NaN, or infinity by mistake.

    A buffer may hold infinity on purpose, such as an attention mask; running statistics may not.
    """
    for name, module, key, tensor in entries(model):
        if not tensor.is_floating_point():
            continue
        values = tensor if tensor.layout == torch.strided else tensor.to_dense()
        if values.element_size() == 1:
            values = values.float()  # torch cannot ask numbers of 8 bits
        if not torch.isfinite(values).all():
            weight = key in module._parameters or isinstance(module, nn.modules.batchnorm._NormBase)
            if weight or values.isnan().any():
                return name
    return None


# ---------------------------------------------------------------- writing


def replace_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace the parameters and buffers of these names in `model` by `tensors`.

    Shared ones stay shared; `in_channels`, `num_features`, `groups` ... follow the shapes.
    """
    held = list(entries(model))
    own = {entry.name: entry.tensor for entry in held}
    made = {id(own[name]): _as(own[name], tensor) for name, tensor in tensors.items()}
    for _, module, key, tensor in held:
        if id(tensor) in made:
            hold(module, key, made[id(tensor)])
    settle(model, tensors)


def settle(model: nn.Module, changed: Mapping[str, Tensor]) -> None:
    """Sync the width attributes of the modules whose tensors changed."""
    if not changed:
        return
    ids = {id(entry.tensor) for entry in entries(model) if entry.name in changed}
    for _, module in walk(model):
        held = module._modules.get("parametrizations")
        parts = [module] if held is None else [module, *held.children()]
        if any(
            id(tensor) in ids
            for part in parts
            for own in (part._parameters, part._buffers)
            for tensor in own.values()
        ):
            sync_attributes(module)


def hold(module: nn.Module, key: str, tensor: Tensor) -> None:
    """Put `tensor` where `module` holds the parameter or buffer `key`."""
    held: dict[str, Any] = module._parameters if key in module._parameters else module._buffers
    held[key] = tensor


def _as(old: Tensor, tensor: Tensor) -> Tensor:
    if isinstance(old, nn.Parameter):
        return nn.Parameter(tensor, requires_grad=old.requires_grad)
    return tensor


def like(old: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` with the order of axes, and if it is a parameter the flag, of `old`."""
    axes = order_of(old)
    return _as(old, tensor if order_of(tensor) == axes else in_order(tensor, axes, tensor.device))


def order_of(tensor: Tensor) -> list[int]:
    """The axes of a tensor from the outermost in memory to the innermost."""
    axes = list(range(tensor.ndim))
    if tensor.layout != torch.strided or 0 in tensor.stride():
        return axes
    return sorted(axes, key=lambda axis: -tensor.stride()[axis])


def in_order(tensor: Tensor, axes: list[int], device: torch.device) -> Tensor:
    """A copy of `tensor` whose axes lie in memory in this order."""
    made = torch.empty_permuted(tensor.shape, axes, dtype=tensor.dtype, device=device)
    return made.copy_(tensor)
