"""The widget that shows the HTML parts of a screen and receives the user's actions."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any

import anywidget
from traitlets import Bool, Int, List, Unicode

Told = Callable[[str, Any, Any, bool], None]
"""Called with an action, its argument, the value, and whether the value is still changing."""

ASSETS = files("prunelab") / "assets"
SCRIPTS = ("idiomorph", "screen")


class HtmlWidget(anywidget.AnyWidget):
    """A column of parts; `show` replaces the HTML of some, and only differences are sent."""

    _esm = "".join((ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    _css = (ASSETS / "screen.css").read_text(encoding="utf-8")

    _parts = List(Unicode(), help="the names of the parts, in order").tag(sync=True)
    _first = Bool(help="whether this widget monitors the whole screen").tag(sync=True)
    drawing = Int(help="the number of the figure that belongs to the text").tag(sync=True)
    heard = Unicode(help="the number of the last message that was handled").tag(sync=True)

    def __init__(self, parts: Sequence[str], told: Told, first: bool = False) -> None:
        self._told = told
        self._dealt_with: deque[str] = deque(
            maxlen=100
        )  # numbers of handled messages; some arrive twice
        self._sending = threading.Lock()  # ipywidgets' hold_sync loses values set by other threads
        self.add_traits(**{name: Unicode().tag(sync=True) for name in parts})
        super().__init__(_parts=list(parts), _first=first)
        self.on_msg(self._hear)

    def show(self, **parts: Any) -> None:
        """Set the HTML of these parts, or `drawing`."""
        with self._sending, self.hold_sync():
            for name, html in parts.items():
                setattr(self, name, html)

    def _hear(self, _widget: Any, content: Any, _buffers: Any) -> None:
        number = str(content.get("n", ""))
        try:
            if number not in self._dealt_with:
                self._dealt_with.append(number)
                with suppress(KeyError, TypeError):  # not a message of ours
                    self._told(content["do"], content["arg"], content["value"], content["live"])
        finally:
            with self._sending:
                if self.heard != number:
                    self.heard = number
                else:  # the page repeats a message: the reply was lost
                    self.send_state("heard")

    def show_again(self) -> None:
        """Send everything: a page that reloads misses the updates in between."""
        with self._sending:
            self.send_state()
