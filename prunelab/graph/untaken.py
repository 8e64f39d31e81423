"""Parts of a network that no traced call reaches, such as a head for another task.

What they read is not known. A part that the code mentions may be taken by another call, so
whatever it could read must stay; one that no code mentions is left over and reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from math import prod
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.graph.labels.layout import varying_axes
from prunelab.graph.train_mode import code_of, idle

WIDTHS = ("in_channels", "in_features", "num_features", "num_channels", "input_size")
BUILDS = ("__init__", "init", "reset")  # methods that build a network, not run it
Met = Sequence[tuple[str, Tensor, torch.Size]]  # a module; the labels and shape of what it accesses


def untaken(model: nn.Module, used: Set[str]) -> list[str]:
    """The parts of `model` of which nothing is in `used`, but that its code mentions."""
    return [part for part in idle(model, used) if _mentioned(model, part)]


def entered_above(part: str, entered: Set[str]) -> str:
    """The innermost module around `part` that has run."""
    above = part.rpartition(".")[0]
    while above and above not in entered:
        above = above.rpartition(".")[0]
    return above


def readable(model: nn.Module, part: str, above: str, met: Met) -> list[Tensor]:
    """The labels in `met` that `part` may read, as code of the module `above`.

    Those of the width that one of its layers reads, as they are or flattened: in that module or,
    without any, in the others. Without any, all in that module.
    """
    wide = {*_widths(model, part)}
    fitting = [
        (where, labels)
        for where, labels, shape in met
        if any(wide & {shape[axis], prod(shape[axis:])} for axis in varying_axes(labels))
    ]
    near = [labels for where, labels in fitting if where == above]
    here = [labels for where, labels, _ in met if where == above]
    return near or [labels for _, labels in fitting] or here


def _widths(model: nn.Module, part: str) -> Iterator[int]:
    """The widths that the layers of a part read, or the sizes of a parameter."""
    modules = dict(model.named_modules())
    if part not in modules:
        yield from model.get_parameter(part).shape
        return
    for module in modules[part].modules():
        known = [vars(module).get(name) for name in WIDTHS]
        yield from [width for width in known if isinstance(width, int)] or (
            size for parameter in module.parameters(recurse=False) for size in parameter.shape
        )


def _mentioned(model: nn.Module, part: str) -> bool:
    """Whether code of the module that holds `part` mentions it, other than to build it."""
    owner, _, name = part.rpartition(".")
    while owner and type(model.get_submodule(owner)).__module__.startswith("torch."):
        owner, _, name = owner.rpartition(".")
    holder = model.get_submodule(owner)
    named = {name for code in _codes(holder) for name in _names(code)}
    return name in named or "getattr" in named


def _codes(module: nn.Module) -> Iterator[CodeType]:
    """The code of a module's methods, and of those that they override but may call."""
    kinds = [kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.")]
    met: set[str] = set()
    for held in (vars(module), *map(vars, kinds)):
        for name, function in held.items():
            code = code_of(function)
            if code is None or name in met or any(word in name for word in BUILDS):
                continue
            if "__class__" not in code.co_freevars:  # it does not call super()
                met.add(name)
            yield code


def _names(code: CodeType) -> Iterator[Any]:
    """The names and texts in a function's code."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
        elif isinstance(constant, str):
            yield constant
