"""Progress as text: one line that is redrawn on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TextIO

from prunelab.ledger.events import Approved, Event, Proposed, Repaired, Step, Tuned
from prunelab.ledger.words import said
from prunelab.values import Progress, as_text, si

WIDTH = 24  # characters of the bar
REDRAW = 0.1  # seconds between two drawings on a terminal
QUIET = 20.0  # seconds between two lines elsewhere


class Terminal:
    """A listener that writes a session's progress and events to `stream`."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._live = stream.isatty()
        self._what = ""
        self._began = 0.0
        self._drawn = 0.0
        self._bar = ""

    def __call__(self, seen: object) -> None:
        """Show an item: progress moves the bar, events are written as lines."""
        if isinstance(seen, Progress):
            self._progress(seen)
        elif isinstance(seen, Event):
            self.line(told(seen))

    def line(self, text: str) -> None:
        """Write `text` as a permanent line."""
        self.clear()
        if text:
            self._stream.write(text + "\n")
            self._stream.flush()

    def clear(self) -> None:
        """Erase the bar."""
        if self._bar:
            self._stream.write("\r" + " " * len(self._bar) + "\r")
            self._stream.flush()
            self._bar = ""

    def _progress(self, step: Progress) -> None:
        now = self._clock()
        if step.what != self._what or step.done <= 1:
            self._what, self._began = step.what, now
            self._drawn = now if not self._live else self._drawn
        if now - self._drawn < (REDRAW if self._live else QUIET):
            return
        self._drawn = now
        share = step.done / step.total if step.total else 0.0
        rest = (now - self._began) * (step.total - step.done) / step.done if step.done else 0.0
        text = f"{share:4.0%} {step.what} {step.done}/{step.total}"
        text += f", {_minutes(rest)} left" if rest and now - self._began > 1 else ""
        if not self._live:
            self._stream.write(text.strip() + "\n")
            self._stream.flush()
            return
        full = round(share * WIDTH)
        text = f"[{'#' * full}{'.' * (WIDTH - full)}] {text}"
        text = text[: shutil.get_terminal_size().columns - 1]
        self._stream.write("\r" + text.ljust(len(self._bar)))
        self._stream.flush()
        self._bar = text


def told(event: Event) -> str:
    """An event in one line of plain words; empty for events that a terminal does not show."""
    if isinstance(event, Proposed):
        return "no further moves" if event.move is None else f"proposed  {event.move}"
    if isinstance(event, Step):
        kinds = {Approved: "approved", Repaired: "repaired", Tuned: "tuned"}
        name = next((word for kind, word in kinds.items() if isinstance(event, kind)), "changed")
        scores = [f"validation {key} {as_text(key, value)}" for key, value in event.metrics.items()]
        return f"{name:<9} " + ", ".join([f"MACs {si(event.cost.macs)}", *scores])
    return said(event)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
