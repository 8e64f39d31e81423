"""Evaluation and training mode: whether a network's code takes another way in training."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType

from torch import nn

PASSED_ON = ("CALL", "LOAD", "KW_NAMES", "PRECALL", "PUSH_NULL")


def branches_on_its_mode(model: nn.Module) -> bool:
    """Whether code outside of PyTorch's own layers does more with `self.training` than hand it on.

    Dropout and its like, to which it is handed on, couple channels in either mode alike.
    """
    kinds = {
        kind
        for module in model.modules()
        for kind in type(module).__mro__
        if not kind.__module__.startswith("torch.")
    }
    functions = [getattr(f, "fget", f) for kind in kinds for f in vars(kind).values()]
    codes = [code for f in functions if (code := getattr(f, "__code__", None)) is not None]
    return any(_branches(code) for code in codes)


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
