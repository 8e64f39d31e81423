"""Where in a network the running code is: the innermost module at work. May import torch."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class Places:
    """Inside its `with`, `now` is the qualified name of the innermost module that is running.

    "" stands for the network's own `forward`. A module registered under two names goes by the
    first. The hooks that find out are on the modules, so other threads are left alone, and are
    gone afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._running: list[str] = []
        self._hooks: list[RemovableHandle] = []

    @property
    def now(self) -> str:
        """The qualified name of the innermost running module."""
        return self._running[-1] if self._running else ""

    def __enter__(self) -> Places:
        for name, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks: what runs inside counts to the module around it
            self._hooks += [
                module.register_forward_pre_hook(self._entering(name), prepend=True),
                module.register_forward_hook(self._leaving, always_call=True),
            ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _entering(self, name: str) -> Any:
        return lambda module, args: self._running.append(name)

    def _leaving(self, module: nn.Module, args: Any, out: Any) -> None:
        self._running.pop()
