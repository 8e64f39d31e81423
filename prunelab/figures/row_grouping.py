"""Long networks in few rows: layers grouped by their module."""

from __future__ import annotations

from collections.abc import Sequence

ROOM = 40  # rows that a figure shows before layers are gathered


def modules(names: Sequence[str], most: int = ROOM, opened: str | None = None) -> dict[str, str]:
    """The row that represents each layer.

    It is the layer itself if there are at most `most` layers, otherwise its module, at the largest
    depth with at most `most` modules. The modules that contain the layer `opened` are expanded.
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
