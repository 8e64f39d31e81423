"""Limits redraws while a verb is running, and measures how long it takes. No Jupyter."""

from __future__ import annotations

import time

from prunelab.values import Progress

FRAME = 0.2  # seconds between two redraws; a page cannot follow faster ones


class Throttle:
    """A clock for one screen."""

    def __init__(self) -> None:
        self._drawn = 0.0
        self._what = ""
        self._since = 0.0

    def due(self) -> bool:
        """Whether to redraw now; if so, the time is recorded."""
        now = time.monotonic()
        if now - self._drawn < FRAME:
            return False
        self._drawn = now
        return True

    def elapsed(self, progress: Progress) -> float:
        """Seconds since this work began."""
        now = time.monotonic()
        if progress.what != self._what or progress.done <= 1:
            self._what, self._since = progress.what, now
        return now - self._since
