"""Copies of networks that hold functions: a `forward` set on an instance, decorators, hooks.

`copy.deepcopy` shares functions. One whose variables hold the network would go on running the
original, so it is made again with variables that hold the copy.
"""

from __future__ import annotations

import copy
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

from prunelab.data.tensors import reachable


def deep_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy(model, memo)`, with functions that hold `model` bound to the copy."""
    own = {id(part) for part in _parts(model)}
    twins = _twins(model)
    own |= {id(twin) for twin, _ in twins}

    def holds(value: Any) -> bool:
        return any(id(item) in own for item in reachable(value))

    bound = [function for function in functions_of(model) if holds(function)]
    cells: dict[int, CellType] = {}
    for function in bound:
        for cell in function.__closure__ or ():
            if id(cell) not in cells:
                cells[id(cell)] = CellType() if holds(cell) else cell
        closure = tuple(cells[id(cell)] for cell in function.__closure__ or ())
        memo[id(function)] = FunctionType(
            function.__code__, function.__globals__, function.__name__, None, closure or None
        )
    made: nn.Module = copy.deepcopy(model, memo)
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


def functions_of(model: nn.Module) -> list[FunctionType]:
    """The functions that the modules of a network hold as attributes and hooks."""
    found: dict[int, FunctionType] = {}
    for module in model.modules():
        for item in reachable([value for value in vars(module).values() if value is not None]):
            if isinstance(item, FunctionType):
                found.setdefault(id(item), item)
    return list(found.values())
