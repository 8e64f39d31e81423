"""The one figure of a screen, redrawn in place. The only file that uses plotly's private names.

A FigureWidget holds 5 MB of JavaScript, takes seconds to show and is never garbage-collected. So
it is sent compressed, a screen makes one after its first picture is on the page, and a closed
screen passes its figure on to the next.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from traitlets import Bytes, Unicode, default

from prunelab.figures.board import (
    NAMES,
    Arrange,
    BoardInfo,
    board,
    frame,
    layout,
    panels,
    traces,
)
from prunelab.figures.style import Theme
from prunelab.notebook import text


@cache
def packed() -> bytes:
    """Plotly's widget in JavaScript, gzip."""
    return gzip.compress((files("plotly") / "package_data" / "widgetbundle.js").read_bytes(), 6)


class _Figure(go.FigureWidget):  # type: ignore[misc]  # plotly has no types
    """A FigureWidget that is sent compressed, and ignores what the browser reports of its data.

    plotly.js reports what it drew, and the widget replaces its own data by it; after fast redraws
    the report describes an older one, and x and y of a trace are lost. The reports are not needed.
    """

    _esm = (files("prunelab") / "assets" / "figure.js").read_text(encoding="utf-8")
    _packed = Bytes().tag(sync=True)
    _sorry = Unicode(text.NO_FIGURE).tag(sync=True)

    def __init__(self, *args: Any, **more: Any) -> None:
        self._whole = False
        super().__init__(*args, **more)
        # the widget has no public way to plotly.js's config; without it the figure stays 700 px
        self._config: dict[str, Any] = {**self._config, "responsive": True, "displayModeBar": False}
        self.add_class("prunelab-figure")
        self._whole = True
        self.open()

    def open(self) -> None:
        """Open the widget only when it is complete, so that no page receives a part of it."""
        if self._whole:
            super().open()

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """The state, with the figure as it is now.

        Redraws are sent as messages, and plotly renews the traits only where it is shown: a page
        that is loaded anew would begin with an old figure.
        """
        state: dict[str, Any] = super().get_state(key, drop_defaults)
        if not self._whole:
            return state
        figure = {"_widget_data": self._data, "_widget_layout": self._layout_obj._props}
        for name, now in figure.items():
            if name in state:
                state[name] = self.trait_metadata(name, "to_json")(deepcopy(now), self)
        return state

    @default("_packed")
    def _pack(self) -> bytes:
        return packed()

    def _handler_js2py_traceDeltas(self, change: Any) -> None: ...

    def _handler_js2py_layoutDelta(self, change: Any) -> None: ...


_left: list[_Figure] = []  # figures of closed screens


def changed(old: Any, new: Any) -> Any:
    """The differences of `new` from `old`: plotly validates all that it is given, which is slow."""
    if isinstance(new, dict):
        return {k: changed(old[k], v) if k in old else v for k, v in new.items() if old.get(k) != v}
    if isinstance(new, list) and new and all(isinstance(item, dict) for item in new):
        return [changed(o, n) for o, n in zip(old, new, strict=True)]  # plotly updates each
    return new


class Live:
    """A FigureWidget of the board that follows the infos given to `draw`.

    The layout's `meta`, which draws nothing, holds the number of the info.
    """

    def __init__(self, info: BoardInfo, number: int, arrange: Arrange, theme: Theme) -> None:
        self._drawn = info
        self.arrange = arrange
        self.widget = self._taken(info, theme) if _left else self._made(info, theme)
        self.widget.layout.meta = number

    def _made(self, info: BoardInfo, theme: Theme) -> _Figure:
        return _Figure(board(info, arrange=self.arrange, theme=theme))

    def _taken(self, info: BoardInfo, theme: Theme) -> _Figure:
        widget, drawn = _left.pop(), panels(info)
        with widget.batch_update():
            for trace, new in zip(widget.data, traces(drawn), strict=True):
                trace.update(new.to_plotly_json())
            made = frame(drawn, self.arrange, theme)
            del made["height"]  # set again, it stops plotly.js from resizing the width
            widget.update_layout(made)
        return widget

    @property
    def drawn(self) -> BoardInfo:
        """What the figure shows."""
        return self._drawn

    def draw(self, info: BoardInfo, number: int) -> None:
        """Show `info`; nothing is sent if it is already shown."""
        if info == self._drawn:
            return
        before, after = panels(self._drawn), panels(info)
        with self.widget.batch_update():
            for trace, old, new in zip(
                self.widget.data, traces(before), traces(after), strict=True
            ):
                trace.update(changed(old.to_plotly_json(), new.to_plotly_json()))
            self.widget.update_layout(
                changed(layout(before, self.arrange), layout(after, self.arrange)), meta=number
            )
        self._drawn = info

    def rearrange(self, arrange: Arrange) -> None:
        """Put the panels beside each other, or under each other.

        The height is set by the screen's style: with an explicit height plotly.js does not resize
        the width.
        """
        if arrange == self.arrange:
            return
        self.arrange = arrange
        with self.widget.batch_update():
            self.widget.update_layout(layout(panels(self._drawn), arrange))

    def settle(self) -> None:
        """Send the whole figure, for a page that has not drawn it yet."""
        self.widget.send_state(["_widget_data", "_widget_layout"])

    def on_click(self, panel: str, told: Callable[[Any], None]) -> None:
        """Call `told` with the customdata of clicked points in `panel` (its last trace)."""
        drawn = panels(self._drawn)
        last = sum(len(drawn[name].traces) for name in NAMES[: NAMES.index(panel) + 1]) - 1
        trace = self.widget.data[last]

        def clicked(_trace: Any, points: Any, _state: Any) -> None:
            for index in points.point_inds:
                told(trace.customdata[index])

        trace.on_click(clicked)

    def leave(self) -> None:
        """Release the figure for another screen, without callbacks of this one."""
        for trace in self.widget.data:
            trace.on_click(None)
        _left.append(self.widget)
