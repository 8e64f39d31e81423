"""Running a network for shapes only: the expensive operations return zeros.

Couplings do not depend on values, unless the network's code does. So convolutions, products and
attentions need not be computed to follow channels; their shapes are still checked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunelab.graph.labels.op_tables import ATTENTION, PRODUCTS, aten
from prunelab.graph.modules.dispatch_mode import DispatchMode

HEAVY = {aten.convolution, *PRODUCTS, *ATTENTION}
LOOKS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class NeedsValues(Exception):
    """The network's code depends on values, so they must be computed."""


def shapes_only(func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    """The result of `func`; zeros of the same shape if it is expensive."""
    if func.overloadpacket not in HEAVY:
        return func(*args, **kwargs)
    kwargs = {key: _shape(value) for key, value in kwargs.items()}
    made = _linear(*args) if func.overloadpacket is aten.addmm else None
    if made is None:
        made = func(*map(_shape, args), **kwargs)
    device = next(x.device for x in args if isinstance(x, Tensor))
    if isinstance(made, Tensor):
        return _zeros(made, device)
    return tuple(_zeros(part, device) for part in made)


def needs_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether control flow or a shape depends on the values given to `func`."""
    if func.overloadpacket is aten.index:
        return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return not LOOKS.isdisjoint(func.tags)


class ShapeRun(DispatchMode):
    """Inside the `with` block, a network runs for shapes only."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return shapes_only(func, args, kwargs or {})


def _linear(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
    """The shape of a linear layer's output; None where torch is to say what does not fit.

    For this torch itself imports its compiler, which takes two seconds.
    """
    if x.shape[1] != len(weight) or bias.shape not in ((), weight.shape[1:]):
        return None
    return torch.empty(len(x), weight.shape[1], dtype=x.dtype, device="meta")


def _shape(x: Any) -> Any:
    return x.to("meta") if isinstance(x, Tensor) else x


def _zeros(made: Any, device: torch.device) -> Any:
    """Zeros with the shape, strides and dtype of `made`."""
    if not isinstance(made, Tensor):
        return made
    if made.is_contiguous():
        return torch.zeros(made.shape, dtype=made.dtype, device=device)
    strides = made.stride()
    return torch.empty_strided(made.shape, strides, dtype=made.dtype, device=device).zero_()
