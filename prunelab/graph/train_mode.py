"""Evaluation and training mode: which modules behave differently in training."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterable, Iterator, Set
from types import CodeType
from typing import Any

from torch import nn

PASSED_ON = ("CALL", "LOAD", "KW_NAMES", "PRECALL", "PUSH_NULL")


def mode_dependent(model: nn.Module) -> tuple[str, ...]:
    """The modules whose own code branches on `self.training` instead of only passing it on.

    PyTorch's own layers are left out. Functions to which the flag is passed, such as dropout,
    couple channels in the same way in both modes.
    """
    kinds = {kind: _does(kind) for kind in {type(module) for module in model.modules()}}
    return tuple(
        name
        for name, module in model.named_modules()
        if kinds[type(module)] or _reads(vars(module).values())
    )


def idle(model: nn.Module, used: Set[str]) -> list[str]:
    """The outermost modules and parameters of `model` of which nothing is in `used`."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    at_work = {id(tensor) for name, tensor in tensors if name in used}
    found: list[str] = []
    for name, module in model.named_modules():
        if found and name.startswith(f"{found[-1]}."):
            continue
        own = [*module.parameters()]
        if isinstance(module, nn.modules.batchnorm._NormBase):
            own += [*module.buffers()]  # it may have no parameters
        if own and all(id(parameter) not in at_work for parameter in own):
            found.append(name)
        else:
            found += [
                f"{name}.{key}".removeprefix(".")
                for key, parameter in module.named_parameters(recurse=False)
                if id(parameter) not in at_work
            ]
    return found


def _does(kind: type[nn.Module]) -> bool:
    kinds = [base for base in kind.__mro__ if not base.__module__.startswith("torch.")]
    return _reads(value for base in kinds for value in vars(base).values())


def _reads(values: Iterable[Any]) -> bool:
    return any(_branches(code) for value in values if (code := code_of(value)) is not None)


def code_of(value: Any) -> CodeType | None:
    """The code of a function, method or property, below its decorators; None of anything else."""
    value = getattr(value, "fget", value)
    if not callable(value) or isinstance(value, nn.Module | type):
        return None
    return getattr(inspect.unwrap(value), "__code__", None)


def _branches(code: CodeType) -> bool:
    if "training" in code.co_varnames:
        return True
    asked = False
    for instruction in _instructions(code):
        if asked and not instruction.opname.startswith(PASSED_ON):
            return True
        asked = instruction.opname.startswith("LOAD_ATTR") and instruction.argval == "training"
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    return any(_branches(part) for part in inner)


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    return (i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "EXTENDED_ARG"))
