"""Where in a network the running code is: the innermost module at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class Places:
    """While a network runs inside `of`, `now` names the innermost module that is running.

    "" stands for the network's own `forward`. A module registered under two names goes by the
    first. `been` are those that ran so far; `passing` is called with what the module that is `now`
    running was given, and with what each of its parts gives back. The hooks that find out are on
    the modules, so other threads are left alone, and are gone afterwards.
    """

    def __init__(self) -> None:
        self._running: list[str] = []
        self.been: set[str] = set()
        self.passing: Callable[[Any], None] = lambda given: None

    @property
    def now(self) -> str:
        """The qualified name of the innermost running module."""
        return self._running[-1] if self._running else ""

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """The network that runs inside is `model`."""
        hooks: list[RemovableHandle] = []
        try:
            for name, module in model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue  # takes no hooks: what runs inside counts to the module around it
                hooks += [
                    module.register_forward_pre_hook(
                        self._entering(name), prepend=True, with_kwargs=True
                    ),
                    module.register_forward_hook(self._leaving, always_call=True),
                ]
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._running.clear()

    def _entering(self, name: str) -> Any:
        def entering(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._running.append(name)
            self.been.add(name)
            self.passing((args, kwargs))

        return entering

    def _leaving(self, module: nn.Module, args: Any, out: Any) -> None:
        self._running.pop()
        self.passing(out)
