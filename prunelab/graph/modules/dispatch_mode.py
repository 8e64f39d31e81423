"""A `TorchDispatchMode` that loads torch's compiler only where the process uses it already."""

from __future__ import annotations

import sys
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """Base of the modes that see every operation, as `TorchDispatchMode`.

    torch shields `__torch_dispatch__` from its compiler, for which it imports the compiler at the
    first operation: 1,000 modules in two seconds, where nothing was ever compiled. Here it is
    shielded when a mode is entered and the compiler is there.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # `__enter__` does it

    def __enter__(self) -> Self:
        if "torch._dynamo" in sys.modules:
            kinds: list[Any] = type(self).mro()
            for kind in kinds[: kinds.index(DispatchMode)]:
                plain = vars(kind).get("__torch_dispatch__")
                if plain is not None and not hasattr(plain, "shielded"):
                    kind.__torch_dispatch__ = _shielded(plain)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self


def _shielded(dispatch: Any) -> Any:
    found: Any = torch._disable_dynamo(dispatch, recursive=True)  # type: ignore[attr-defined]
    found.shielded = True
    return found
