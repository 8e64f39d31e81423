"""Values that leave PyTorch: what a network turns into numbers or arrays, a trace cannot follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from prunelab.graph.labels.unfused import Unfused

LEAVES = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__}


class Leaving(Unfused):
    """Calls `on_leave` with each tensor whose values code is about to read outside PyTorch.

    These calls pass no dispatcher; `item` does, as an operation without a rule.
    """

    def __init__(self, on_leave: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._on_leave = on_leave

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in LEAVES:
            self._on_leave(args[0])
        return super().__torch_function__(func, types, args, kwargs)
