"""Long networks in few rows: layers gathered by the module that they are in."""

from __future__ import annotations

from collections.abc import Sequence

ROOM = 40  # rows that a figure shows before layers are gathered


def modules(names: Sequence[str], most: int = ROOM) -> dict[str, str]:
    """For each layer the row that stands for it: itself, if there are at most `most` layers.

    Else its module, at the greatest depth that gives at most `most` of them.
    """
    deepest = max((name.count(".") for name in names), default=0) + 1
    for depth in range(deepest, 0, -1):
        found = {name: ".".join(name.split(".")[:depth]) for name in names}
        if depth == 1 or len({*found.values()}) <= most:
            break
    return found if len(names) > most else {name: name for name in names}
