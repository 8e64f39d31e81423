"""Copies of networks, also of those that hold functions: a `forward` of an instance, hooks.

`copy.deepcopy` shares functions. One whose variables hold the network would go on running the
original, so it is made again with variables that hold the copy. Modules that are copied in the
usual way are copied here one by one, which takes a small part of the time.
"""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.data.tensors import reachable
from prunelab.graph.modules.walk import walk

ATOMIC = {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size}
EMPTY = {dict, OrderedDict, list, set}  # containers that `deepcopy` makes anew even if empty
SPECIAL = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__", "__slots__")


def deep_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy(model, memo)`, with functions that hold `model` bound to the copy."""
    modules = [module for _, module in walk(model)]
    functions = functions_of(modules)
    if functions:
        return _rebound(model, modules, functions, memo)
    return _copied(model, modules, memo)


def _copied(model: nn.Module, modules: Sequence[nn.Module], memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy(model, memo)`, in less time.

    It makes every module that has no protocol of its own first, and then fills it: so nothing is
    copied by recursion, nor do containers that are empty take part in it.
    """
    usual = {kind for kind in {type(module) for module in modules} if _usual(kind)}
    own = [
        module
        for module in modules
        if type(module) in usual and id(module) not in memo and "__deepcopy__" not in vars(module)
    ]
    for module in own:
        memo[id(module)] = module.__new__(type(module))
    for module in reversed(own):  # submodules first
        state: dict[str, Any] = dict(module.__getstate__())
        for key, value in state.items():
            kind = type(value)
            if kind in ATOMIC:
                continue
            if kind in EMPTY and not value and id(value) not in memo:
                state[key] = memo[id(value)] = kind()
            elif not _atomic(value):
                state[key] = _filled(value, memo)
        memo[id(module)].__setstate__(state)
    return copy.deepcopy(model, memo)  # which it finds in `memo`, unless it is unusual


def _atomic(value: Any) -> bool:
    """Whether `deepcopy` returns `value` itself: most attributes of modules."""
    kind = type(value)
    return kind in ATOMIC or (kind is tuple and all(type(item) in ATOMIC for item in value))


def _filled(value: Any, memo: dict[int, Any]) -> Any:
    """The copy of an attribute; the contents of a dict are mostly in `memo`."""
    if type(value) is not dict or id(value) in memo:
        return copy.deepcopy(value, memo)
    made = memo[id(value)] = {}
    for key, item in value.items():
        kept = type(key) is str and (item is None or id(item) in memo)
        where = key if kept else copy.deepcopy(key, memo)
        made[where] = memo.get(id(item)) if kept else copy.deepcopy(item, memo)
    return made


def _usual(kind: type) -> bool:
    """Whether `deepcopy` copies the attributes of such a module, and does nothing else."""
    return (
        all(getattr(kind, name) is getattr(nn.Module, name)
            for name in ("__reduce_ex__", "__reduce__", "__getstate__", "__new__"))
        and not any(hasattr(kind, name) for name in SPECIAL)
        and kind not in copyreg.dispatch_table
    )  # fmt: skip


def _rebound(
    model: nn.Module,
    modules: Sequence[nn.Module],
    functions: Sequence[FunctionType],
    memo: dict[int, Any],
) -> nn.Module:
    """As `deep_copy`, of a network that holds these functions."""
    own = {id(part) for part in _parts(model)}
    twins = _twins(model)
    own |= {id(twin) for twin, _ in twins}

    def holds(value: Any) -> bool:
        return any(id(item) in own for item in reachable(value))

    bound = [function for function in functions if holds(function)]
    cells: dict[int, CellType] = {}
    for function in bound:
        for cell in function.__closure__ or ():
            if id(cell) not in cells:
                cells[id(cell)] = CellType() if holds(cell) else cell
        closure = tuple(cells[id(cell)] for cell in function.__closure__ or ())
        memo[id(function)] = FunctionType(
            function.__code__, function.__globals__, function.__name__, None, closure or None
        )
    made = _copied(model, modules, memo)
    memo.update({id(twin): memo[id(part)] for twin, part in twins if id(part) in memo})

    def copied(value: Any) -> Any:
        return copy.deepcopy(value, memo) if holds(value) else value

    for function in bound:
        again = memo[id(function)]
        again.__defaults__ = copied(function.__defaults__)
        again.__kwdefaults__ = copied(function.__kwdefaults__)
        again.__dict__.update({name: copied(value) for name, value in vars(function).items()})
        for name in ("__qualname__", "__module__", "__doc__", "__annotations__"):
            setattr(again, name, getattr(function, name))
        for cell in function.__closure__ or ():
            if cells[id(cell)] is not cell:
                cells[id(cell)].cell_contents = copied(cell.cell_contents)
    for module in made.modules() if bound else ():
        for held in (vars(module), *(v for v in vars(module).values() if isinstance(v, dict))):
            for name, value in held.items():
                if isinstance(value, MethodType) and id(value.__func__) in memo:
                    held[name] = MethodType(memo[id(value.__func__)], value.__self__)
    return made


def _parts(model: nn.Module) -> list[Any]:
    return [*model.modules(), *model.parameters(), *model.buffers()]


def _twins(model: nn.Module) -> list[tuple[Any, Any]]:
    """The parts of a network from which the user copied `model`, each with that of `model`.

    `copy.deepcopy` left its functions in `model`, and they hold that other network.
    """
    owners = [
        (module, value)
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, FunctionType)
    ]
    pairs: list[tuple[Any, Any]] = []
    for module, function in owners:
        for other in reachable(function):
            same = isinstance(other, type(module)) and other is not module
            if same and any(value is function for value in vars(other).values()):
                parts = _parts(other), _parts(module)
                if [type(part) for part in parts[0]] == [type(part) for part in parts[1]]:
                    pairs += zip(*parts, strict=True)
    return pairs


def functions_of(modules: Iterable[nn.Module]) -> list[FunctionType]:
    """The functions that modules hold as attributes and hooks."""
    held = [
        value
        for module in modules
        for value in vars(module).values()
        if type(value) not in ATOMIC and not _bare(value)
    ]
    return [item for item in reachable(held) if isinstance(item, FunctionType)]


def _bare(value: Any, depth: int = 2) -> bool:
    """Whether `value` clearly holds no function: most attributes of modules."""
    kind = type(value)
    if kind in ATOMIC or (kind in EMPTY and not value):
        return True
    if kind is Tensor or kind is nn.Parameter:
        return not vars(value)
    if kind is dict and depth:
        return all(_bare(item, depth - 1) for pair in value.items() for item in pair)
    if kind in (tuple, list, set) and depth:
        return all(_bare(item, depth - 1) for item in value)
    return isinstance(value, nn.Module)
