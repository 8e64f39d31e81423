"""Runs one verb at a time: the lock, stopping, and notifying listeners.

A verb's work is a generator. Between two of its steps listeners are called, and a stop, an
interrupt or a foreground verb can end it.

Locks are taken in this order, and none is waited for while a later one is held: the session (one
verb holds it from its first step to its last), then the ledger's store (within one append), then
`Preview`'s budget (milliseconds; taken by readers that hold nothing). `_gate` guards only the
fields that say who holds the session; it is never held while a verb runs or a listener is called.
Listeners are called on the verb's thread while it holds the session, so a listener must not call a
verb; `Ended` is sent after the session is free.
"""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from prunelab.errors import SessionBusy, Stopped
from prunelab.loops.batch import finish
from prunelab.values import Ended

Result = TypeVar("Result")
Work = Generator[Any, None, Result]


class Runner:
    """Runs the verbs of one session."""

    def __init__(self) -> None:
        self._gate = threading.RLock()  # of C, which an interrupt cannot leave half taken
        self._freed = threading.Condition(self._gate)
        self._stop = threading.Event()
        self._enough = threading.Event()
        self._preempted = threading.Event()
        self._busy: str | None = None
        self._holder: object = None
        self._in_background = False
        self._listeners: list[Callable[[Any], None]] = []

    @property
    def busy(self) -> str | None:
        """The verb that is running, if any."""
        return self._busy

    @property
    def aside(self) -> bool:
        """Whether a verb runs in the background: a foreground one preempts it."""
        return self._in_background

    def listen(self, callback: Callable[[Any], None]) -> Callable[[], None]:
        """Call `callback` with every item and event; returns a function that removes it."""
        self._listeners.append(callback)

        def end() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return end

    def stop(self, keep: bool = False) -> None:
        """Ask the running verb to stop; with `keep` a tune ends and commits its steps so far."""
        if keep and self._busy == "tune":
            self._enough.set()
        elif self._busy is not None:
            self._stop.set()

    def enough(self) -> bool:
        """Whether the running verb was asked to end and keep its result so far."""
        return self._enough.is_set()

    def preempt(self) -> None:
        """End the running verb if it runs in the background."""
        if self._in_background:
            self._preempted.set()

    @contextmanager
    def hold(self, verb: str, background: bool = False) -> Iterator[None]:
        """Hold the session for `verb`.

        Raises `SessionBusy` where another verb is running. A foreground verb preempts one that
        runs in the background, and waits until it has ended at its next step.
        """
        holder = object()
        try:
            self._take(holder, verb, background)
            yield
        finally:
            interrupt = None
            while self._holder is holder:  # an interrupt may come before a call begins
                try:
                    self._give_back(holder, verb)
                except (KeyboardInterrupt, MemoryError) as error:
                    interrupt = error
            if interrupt is not None:
                raise interrupt

    def run(self, verb: str, work: Work[Result], background: bool = False) -> Result:
        """Run `work` to its end as `verb`."""
        holder = object()
        try:  # not `with`: an interrupt may come between a `with` and what it enters or leaves
            self._take(holder, verb, background)
            return finish(self.relay(work))
        finally:
            interrupt = None
            while self._holder is holder:  # nor before a call begins
                try:
                    self._give_back(holder, verb)
                except (KeyboardInterrupt, MemoryError) as error:
                    interrupt = error
            if interrupt is not None:
                raise interrupt

    def _take(self, holder: object, verb: str, background: bool) -> None:
        with self._gate:
            while self._holder is not None:
                if background or not self._in_background:
                    raise SessionBusy(f"{self._busy} is running; wait for it, or stop it.")
                self._preempted.set()
                self._freed.wait()
            for flag in (self._preempted, self._stop, self._enough):
                flag.clear()
            self._holder, self._busy, self._in_background = holder, verb, background

    def _give_back(self, holder: object, verb: str) -> None:
        """Set the session free if `holder` holds it, and tell so."""
        if self._holder is holder:
            with self._gate:
                self._busy, self._in_background = None, False
                self._freed.notify_all()
                self._holder = None
            self.tell(Ended(verb))

    def relay(self, work: Work[Result]) -> Work[Result]:
        """Pass the items of `work` on to the listeners; `stop` ends it between two steps."""
        try:
            while True:
                try:
                    item = next(work)
                except StopIteration as end:
                    result: Result = end.value
                    return result
                self.tell(item)
                if self._stop.is_set() or (self._in_background and self._preempted.is_set()):
                    raise Stopped(f"{self._busy} was stopped; its unfinished work is discarded.")
                yield item
        finally:
            work.close()  # at once, not when the last one who looks at the error lets it go

    def tell(self, item: Any) -> None:
        """Call every listener with `item`."""
        for listener in tuple(self._listeners):
            try:
                listener(item)
            except Exception as error:  # a broken view must not break the work
                if listener in self._listeners:  # unless it has removed itself
                    self._listeners.remove(listener)
                warnings.warn(f"A listener failed and was dropped: {error!r}", stacklevel=2)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C during a commit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[Any] = []
    previous = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *args: caught.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if caught and callable(previous):
        previous(*caught[0])
