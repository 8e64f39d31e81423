"""One thread per session that runs the verbs of its screens' buttons, in order."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from prunelab.session.session import Session

Job = Callable[[bool], None]
"""A queued action; called with whether Stop was pressed since. Must not raise."""


class Worker:
    """A queue of jobs and the one thread that runs them.

    A kernel that runs a cell handles no clicks, and the thread of a click's callback depends on
    the Jupyter version. So a callback only queues the action, which runs here.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Job, int]] = deque()
        self._stops = 0
        self._changed = threading.Condition()
        self._running = False
        self._closed = False
        # a daemon, so that a kernel can shut down during training
        self.thread = threading.Thread(target=self._run, name="prunelab", daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Queue `job` and return at once."""
        with self._changed:
            self._waiting.append((job, self._stops))
            self._changed.notify_all()

    def stop(self) -> None:
        """Make the jobs that have not begun do nothing."""
        with self._changed:
            self._stops += 1

    def wait(self, seconds: float) -> bool:
        """Wait until no job runs or waits; False after a timeout of `seconds`."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._running and not self._waiting, timeout=seconds
            )

    def close(self) -> None:
        """End the thread after the running job."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._running = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job, stops = self._waiting.popleft()
                self._running = True
                stopped = stops < self._stops
            with suppress(Exception):  # there is no caller to raise to, and the next job must run
                job(stopped)


_workers: weakref.WeakKeyDictionary[Session, Worker] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def worker_of(session: Session) -> Worker:
    """The worker of `session`, shared by its screens and deleted with the session."""
    with _lock:
        worker = _workers.get(session)
        if worker is None:
            worker = _workers[session] = Worker()
            weakref.finalize(session, worker.close)
        return worker
