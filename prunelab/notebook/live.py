"""The interactive figure as JSON: the whole, what differs from an earlier one, and its code."""

from __future__ import annotations

import gzip
import json
from functools import cache
from importlib.resources import files
from itertools import accumulate
from typing import Any

from plotly.utils import PlotlyJSONEncoder

from prunelab.figures.board import NAMES, Arrange, BoardInfo, frame, panels, traces
from prunelab.figures.style import Theme

CLICKS = {"importance": "flip", "widths": "group", "trajectory": "point"}
"""What a click on a point of a panel's last trace tells the kernel, with its customdata."""


@cache
def packed() -> bytes:
    """plotly.js, gzip: of the installed plotly, as a page without network has no other."""
    return gzip.compress((files("plotly") / "package_data" / "plotly.min.js").read_bytes(), 6)


def drawn(info: BoardInfo, number: int, arrange: Arrange, theme: Theme) -> dict[str, Any]:
    """The board as plotly.js takes it.

    The layout's `meta`, which draws nothing, holds the `number`. The size is the page's matter:
    plotly.js that is told a height does not follow its place.
    """
    board = panels(info)
    layout = frame(board, arrange, theme)
    for name in ("height", "template"):  # the template "none" is plotly.js's own default
        del layout[name]
    counts = accumulate(len(board[name].traces) for name in NAMES)
    last = {name: count - 1 for name, count in zip(NAMES, counts, strict=True)}
    figure = {
        "data": [trace.to_plotly_json() for trace in traces(board)],
        "layout": {**layout, "autosize": True, "meta": number},
        "clicks": {last[name]: told for name, told in CLICKS.items()},
    }
    plain: dict[str, Any] = json.loads(PlotlyJSONEncoder().encode(figure))
    return plain


def changes(old: Any, new: Any) -> Any:
    """What makes `new` of `old`: of an object and of a list of objects only what differs.

    None deletes. plotly.js measures and draws anew what depends on a list that was replaced.
    """
    if isinstance(old, list) and _objects(old) and _objects(new) and len(old) == len(new):
        old, new = (dict(zip(map(str, range(len(x))), x, strict=True)) for x in (old, new))
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    gone: dict[str, Any] = {key: None for key in old if key not in new}
    return gone | {
        key: changes(old[key], value) if key in old else value
        for key, value in new.items()
        if key not in old or old[key] != value
    }


def _objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)
