"""Which sizes of a view code derives from the shape of a tensor, and which it knows as numbers.

`x.view(n, c // 8, 8, h, w)` splits an axis in two. With fewer channels the first part shrinks, for
it is derived from a shape; the other one is a number. A run with marked sizes shows it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import BaseTorchFunctionMode

Shapes = tuple[torch.Size, torch.Size]  # of a tensor, before and after a view
Derived = Mapping[Shapes, set[int]]  # the axes of each view
ASKS = (Tensor.shape.__get__, Tensor.size)  # type: ignore[attr-defined]
VIEWS = (Tensor.view, Tensor.reshape, torch.reshape)


class _Size(int):
    """A size that comes from a shape; so is what integers are computed from it."""


def _kept(compute: Callable[..., Any]) -> Callable[..., Any]:
    def made(*given: Any) -> Any:
        out = compute(*(int(x) if isinstance(x, int) else x for x in given))
        return _Size(out) if type(out) is int else out

    return made


for _name in ("add", "sub", "mul", "floordiv"):
    _compute = getattr(operator, _name)
    setattr(_Size, f"__{_name}__", _kept(_compute))
    setattr(_Size, f"__r{_name}__", _kept(lambda a, b, compute=_compute: compute(b, a)))


class MarkedSizes(BaseTorchFunctionMode):
    """Inside the `with` block, `found` gets the axes of views whose sizes code derives from shapes.

    Code that does not run with such sizes raises an error of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Shapes, set[int]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in ASKS:
            return torch.Size(map(_Size, out)) if isinstance(out, tuple) else _Size(out)
        if func in VIEWS and len(args) > 1:
            sizes = args[1] if isinstance(args[1], tuple | list) else args[1:]
            axes = {axis for axis, size in enumerate(sizes) if isinstance(size, _Size)}
            self.found.setdefault((args[0].shape, out.shape), axes).intersection_update(axes)
        return out
