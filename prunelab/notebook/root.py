"""The one widget of a screen: HTML parts above and below a figure, and the user's actions.

Everything is inside it, so that every front end that shows an anywidget shows the screen.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any

import anywidget
from traitlets import Int, List, Unicode

from prunelab.notebook import text

Told = Callable[[str, Any, Any, bool], None]
"""Called with an action, its argument, the value, and whether the value is still changing."""

ASSETS = files("prunelab") / "assets"
SCRIPTS = ("idiomorph", "figure", "screen")


class Root(anywidget.AnyWidget):
    """Two columns of HTML parts with a figure between them.

    `put` replaces the HTML of some parts, and only differences are sent; `deliver` sends what is
    no state: the figure, its changes, and the code that draws it.
    """

    _esm = "".join((ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    _css = (ASSETS / "screen.css").read_text(encoding="utf-8")

    _above = List(Unicode(), help="the names of the parts above the figure").tag(sync=True)
    _below = List(Unicode(), help="the names of the parts below it").tag(sync=True)
    _kinds = List(Unicode(), help="what the style refers to").tag(sync=True)
    _drawing = Int(help="the number of the figure that belongs to the text").tag(sync=True)
    _heard = Unicode(help="the number of the last message that was handled").tag(sync=True)
    _sorry = Unicode(text.NO_FIGURE).tag(sync=True)

    _complete = False

    def __init__(self, above: Sequence[str], below: Sequence[str], told: Told) -> None:
        self._told_by_page = told
        self._dealt_with: deque[str] = deque(
            maxlen=100
        )  # numbers of handled messages; some arrive twice
        self._sending = threading.Lock()  # ipywidgets' hold_sync loses values set by other threads
        self.add_traits(**{_trait(name): Unicode().tag(sync=True) for name in (*above, *below)})
        super().__init__(_above=list(above), _below=list(below))
        self.on_msg(self._hear)

    def open(self) -> None:
        """Open the widget only when its parts are made: no page shows an empty screen."""
        if self._complete:
            super().open()

    def complete(self) -> None:
        """The parts are made."""
        self._complete = True
        self.open()

    @property
    def lost(self) -> bool:
        """Whether no page can hear it: marimo ends what a cell made when the cell runs again."""
        return self.comm is None or bool(self.comm._closed)

    def put(self, *, drawing: int | None = None, **parts: str) -> None:
        """Set the HTML of these parts, and the number of the figure that belongs to them."""
        with self._sending, self.hold_sync():
            for name, html in parts.items():
                setattr(self, _trait(name), html)
            if drawing is not None:
                self._drawing = drawing

    def part(self, name: str) -> str:
        """The HTML of a part."""
        html: str = getattr(self, _trait(name))
        return html

    @property
    def drawing(self) -> int:
        """The number of the figure that belongs to the text."""
        number: int = self._drawing
        return number

    def look_like(self, *kinds: str) -> None:
        """Set the kinds that the style refers to, as classes of the screen's element."""
        with self._sending:
            self._kinds = list(kinds)

    def deliver(self, message: dict[str, Any], *buffers: bytes) -> None:
        """Send `message` to the pages that show the widget; none keeps it for later pages."""
        with self._sending:
            self.send(message, list(buffers))

    def show_again(self) -> None:
        """Send everything: a page that reloads misses the updates in between."""
        parts = [_trait(name) for name in (*self._above, *self._below)]
        with self._sending:
            self.send_state([*parts, "_kinds", "_drawing"])

    def _hear(self, _widget: Any, content: Any, _buffers: Any) -> None:
        number = str(content.get("n", ""))
        try:
            if number not in self._dealt_with:
                self._dealt_with.append(number)
                with suppress(KeyError, TypeError):  # not a message of ours
                    self._told_by_page(
                        content["do"], content["arg"], content["value"], content["live"]
                    )
        finally:
            with self._sending:
                if self._heard != number:
                    self._heard = number
                else:  # the page repeats a message: the reply was lost
                    self.send_state("_heard")


def _trait(part: str) -> str:
    return f"html_{part}"
