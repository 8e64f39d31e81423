"""Long networks in few rows: layers gathered by the module that they are in."""

from __future__ import annotations

from collections.abc import Sequence

ROOM = 40  # rows that a figure shows before layers are gathered


def modules(names: Sequence[str], most: int = ROOM, opened: str | None = None) -> dict[str, str]:
    """For each layer the row that stands for it: itself, if there are at most `most` layers.

    Else its module, at the greatest depth that gives at most `most` of them. The modules that the
    layer `opened` is in are taken apart.
    """
    if len(names) <= most:
        return {name: name for name in names}
    deepest = max(name.count(".") for name in names) + 1
    for depth in range(deepest, 0, -1):
        found = {name: _outer(name, depth) for name in names}
        if depth == 1 or len({*found.values()}) <= most:
            break
    while opened in found and found[opened] != opened:
        depth += 1
        module = found[opened]
        found |= {name: _outer(name, depth) for name in names if found[name] == module}
    return found


def _outer(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])
