"""Which sizes of a view code derives from the shape of a tensor, and which it knows as numbers.

`x.view(n, c // 8, 8, h, w)` splits an axis in two. With fewer channels the first part shrinks, for
it is derived from a shape; the other one is a number. A run with marked sizes shows it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

from prunelab.data.private_random import private_random
from prunelab.graph.labels.shape_run import ShapeRun

Shapes = tuple[torch.Size, torch.Size]  # of a tensor, before and after a view
ASKS = (Tensor.shape.__get__, Tensor.size)  # type: ignore[attr-defined]
VIEWS = (Tensor.view, Tensor.reshape, torch.reshape)


class _Derived(int):
    """A size that comes from a shape; so is what integers are computed from it."""


def _kept(compute: Callable[..., Any]) -> Callable[..., Any]:
    def made(*given: Any) -> Any:
        out = compute(*(int(x) if isinstance(x, int) else x for x in given))
        return _Derived(out) if type(out) is int else out

    return made


for _name in ("add", "sub", "mul", "floordiv"):
    _compute = getattr(operator, _name)
    setattr(_Derived, f"__{_name}__", _kept(_compute))
    setattr(_Derived, f"__r{_name}__", _kept(lambda a, b, compute=_compute: compute(b, a)))


class _Marked(BaseTorchFunctionMode):
    """Inside the `with` block shapes are marked; `found` has the axes of views with such sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Shapes, set[int]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in ASKS:
            return torch.Size(map(_Derived, out)) if isinstance(out, tuple) else _Derived(out)
        if func in VIEWS and len(args) > 1:
            sizes = args[1] if isinstance(args[1], tuple | list) else args[1:]
            axes = {axis for axis, size in enumerate(sizes) if isinstance(size, _Derived)}
            self.found.setdefault((args[0].shape, out.shape), axes).intersection_update(axes)
        return out


def derived_sizes(
    model: nn.Module, run: Callable[[nn.Module], Any], values: bool
) -> Mapping[Shapes, set[int]]:
    """The axes of each view in one run of `model` whose sizes its code derives from a shape.

    `model` is a copy for this run; `values` says that its code depends on values. Code that does
    not run with such sizes shows those before it.
    """
    marked, cheap = _Marked(), nullcontext() if values else ShapeRun()
    with suppress(Exception), torch.no_grad(), private_random(), cheap, marked:
        run(model)
    return marked.found
