"""Whether the copy of a network runs on its own tensors, or on those of the original."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

from prunelab.data.private_random import private_random
from prunelab.data.tensors import reachable
from prunelab.errors import BadModel
from prunelab.graph.labels.layout import tensors_in
from prunelab.graph.modules.dispatch_mode import DispatchMode
from prunelab.graph.surgery.closures import functions_of
from prunelab.graph.surgery.editing import copy_with


def check_copies(model: nn.Module, run: Callable[[nn.Module], Any], own_run: bool) -> None:
    """Raise `BadModel` if running a copy of `model` uses a tensor of `model` itself.

    That takes a function that refers to the network: one of its own, or with `own_run` the user's
    `run`; other networks are not run. Whether a copy runs at all is for others to find out; the
    caller restores the state of `model`.
    """
    if not own_run and not _referred(model):
        return
    strangers, copy = _Strangers(model), copy_with(model, {}).eval()
    with suppress(Exception), torch.no_grad(), private_random(), strangers:
        run(copy)
    if strangers.met:
        raise BadModel(
            f"A copy of this network runs the original: it uses {strangers.met} of the network "
            "from which it was copied, and prunelab works on copies so that yours stays as it is. "
            "A function that runs in forward holds your network where a copy cannot replace it, "
            "such as in a global variable; let it use self, in a method of the class, and forward= "
            "the network that it is given."
        )


class _Strangers(DispatchMode):
    """`met` names the parameter or buffer of `model` that is used inside the `with` block."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        named = [*model.named_parameters(), *model.named_buffers()]
        self._names = {id(tensor): name for name, tensor in named}
        self.met = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for tensor in () if self.met else tensors_in(*args, kwargs):
            self.met = self._names.get(id(tensor), "")
        return func(*args, **(kwargs or {}))


def _referred(model: nn.Module) -> bool:
    """Whether a function of a module, or of a module's class, may refer to `model`."""
    own = {id(module) for module in model.modules()}
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    functions = [
        getattr(item, "fget", item)
        for kind in kinds
        if not kind.__module__.startswith("torch.")
        for item in vars(kind).values()
    ]
    return bool(functions_of(model.modules())) or any(
        id(item) in own
        for function in functions
        if isinstance(function, FunctionType)
        for item in [*reachable(function), *_globals(function.__code__, function.__globals__)]
    )


def _globals(code: CodeType, known: dict[str, Any]) -> list[Any]:
    """What the names that a function reads stand for in its module."""
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    found = [known[name] for name in code.co_names if name in known]
    return found + [item for part in inner for item in _globals(part, known)]
