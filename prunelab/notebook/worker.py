"""One thread per session that runs what its screens' buttons ask for, in order."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from prunelab.session.session import Session

Job = Callable[[bool], None]
"""What a press asks for; called with whether Stop came since it was queued. Must not raise."""


class Worker:
    """A queue of jobs and the one thread that runs them.

    A kernel that runs a cell answers no press, and which thread a press comes on differs from
    one Jupyter to the next: so a press only queues, and what it asks for happens here.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Job, int]] = deque()
        self._stops = 0
        self._changed = threading.Condition()
        self._running = False
        self._closed = False
        # a daemon: a kernel told to shut down must not wait for training to end
        self.thread = threading.Thread(target=self._run, name="prunelab", daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Queue `job` and return at once."""
        with self._changed:
            self._waiting.append((job, self._stops))
            self._changed.notify_all()

    def stop(self) -> None:
        """Tell the jobs that have not begun to do nothing."""
        with self._changed:
            self._stops += 1

    def wait(self, seconds: float) -> bool:
        """Wait until nothing runs or waits; False when `seconds` were not enough."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._running and not self._waiting, timeout=seconds
            )

    def close(self) -> None:
        """Let the thread end after the job that runs."""
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
            with suppress(Exception):  # nobody is here to be told, and the next job must run
                job(stopped)


_workers: weakref.WeakKeyDictionary[Session, Worker] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def worker_of(session: Session) -> Worker:
    """The worker of `session`; the same for all its screens, gone when the session is."""
    with _lock:
        worker = _workers.get(session)
        if worker is None:
            worker = _workers[session] = Worker()
            weakref.finalize(session, worker.close)
        return worker
