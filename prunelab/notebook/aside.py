"""What a screen lets the worker do while nothing else is asked: measure, and try what is chosen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from prunelab.errors import PruneLabError, SessionBusy, Stopped
from prunelab.notebook.worker import Worker

REST = 0.7  # seconds that a selection must rest before it is tried
Job = Callable[[], Any]
Done = Callable[[Any], None]


class Aside:
    """One job at a time, begun once the person has rested; a verb, or another choice, ends it.

    `begun` and `done` are called around a job on the worker's thread; `done` gets its result.
    What goes wrong aside is nobody's trouble but the job's: it is told as the result.
    """

    def __init__(self, session: Any, worker: Worker) -> None:
        self._session = session
        self._worker = worker
        self._timer: threading.Timer | None = None
        self._turn = 0  # only the latest job counts

    def after_rest(self, job: Job, done: Done, begun: Callable[[], None]) -> None:
        """Do `job` when the person has rested."""
        self.cancel()
        turn = self._turn
        self._timer = threading.Timer(
            REST, lambda: self._worker.submit(lambda stopped: self._do(turn, job, done, begun))
        )
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """Do not begin what waits, and end what was begun."""
        self._turn += 1
        if self._timer is not None:
            self._timer.cancel()
        self._session.make_way()

    def _do(self, turn: int, job: Job, done: Done, begun: Callable[[], None]) -> None:
        if turn != self._turn:
            return
        begun()
        try:
            result = job()
        except (Stopped, SessionBusy):
            result = None
        except PruneLabError as error:
            result = error
        if turn == self._turn:
            done(result)
