"""Running a network for its shapes: the operations that take the time give zeros instead.

Which channel meets which does not depend on numbers, unless code looks at them. So convolutions,
products and attentions need not be computed to follow channels; their shapes are checked as ever.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prunelab.graph.labels.op_tables import ATTENTION, PRODUCTS, aten

HEAVY = {aten.convolution, *PRODUCTS, *ATTENTION}
LOOKS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class LooksAtNumbers(Exception):
    """The network's code asks for the numbers themselves, so they have to be computed."""


def sketched(func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    """What `func` gives, zeros if it is heavy."""
    if func.overloadpacket not in HEAVY:
        return func(*args, **kwargs)
    kwargs = {key: _shape(value) for key, value in kwargs.items()}
    made = func(*map(_shape, args), **kwargs)
    device = next(x.device for x in args if isinstance(x, Tensor))
    if isinstance(made, Tensor):
        return _zeros(made, device)
    return tuple(_zeros(part, device) for part in made)


def looks(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether `func` makes the way that the code takes, or a shape, depend on numbers."""
    if func.overloadpacket is aten.index:
        return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return not LOOKS.isdisjoint(func.tags)


class Sketch(TorchDispatchMode):
    """Inside its `with`, a network runs for its shapes alone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return sketched(func, args, kwargs or {})


def _shape(x: Any) -> Any:
    return x.to("meta") if isinstance(x, Tensor) else x


def _zeros(made: Any, device: torch.device) -> Any:
    """Zeros of a shape that an operation gave."""
    if not isinstance(made, Tensor):
        return made
    if made.is_contiguous():
        return torch.zeros(made.shape, dtype=made.dtype, device=device)
    strides = made.stride()
    return torch.empty_strided(made.shape, strides, dtype=made.dtype, device=device).zero_()
