"""The stack of running modules, and the innermost of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from prunelab.graph.modules.walk import walk


class ModuleStack:
    """While a network runs inside `of`, `innermost` names the innermost running module.

    "" stands for the network's own `forward`. A module registered under two names has the first.
    `entered` are the modules that have run so far. `on_pass` is called with the inputs of the
    innermost module, and with the outputs of each of its submodules. This uses hooks on the
    modules, which do not affect other threads and are removed afterwards.
    """

    def __init__(self) -> None:
        self._running: list[str] = []
        self.entered: set[str] = set()
        self.on_pass: Callable[[Any], None] = lambda given: None

    @property
    def innermost(self) -> str:
        """The qualified name of the innermost running module."""
        return self._running[-1] if self._running else ""

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """Observe `model` inside the `with` block."""
        hooks: list[RemovableHandle] = []
        try:
            for name, module in walk(model):
                if isinstance(module, torch.jit.ScriptModule):
                    continue  # takes no hooks; its operations count as those of its parent
                hooks += [
                    module.register_forward_pre_hook(
                        self._on_enter(name), prepend=True, with_kwargs=True
                    ),
                    module.register_forward_hook(self._on_leave, always_call=True),
                ]
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._running.clear()

    def _on_enter(self, name: str) -> Any:
        def on_enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._running.append(name)
            self.entered.add(name)
            self.on_pass((args, kwargs))

        return on_enter

    def _on_leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self._running.pop()
        self.on_pass(out)
