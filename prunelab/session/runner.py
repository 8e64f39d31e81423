"""One verb at a time: the lock, Stop, and those who are told what happens."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from prunelab.errors import SessionBusy, Stopped
from prunelab.loops.batch import finish
from prunelab.values import Ended

Work = Generator[Any, None, Any]


class Verbs:
    """What every verb of a session goes through.

    A verb's work is a generator: between two of its steps listeners are told, and Stop or an
    interrupt can end it.
    """

    def __init__(self) -> None:
        self._gate = threading.Condition()  # held only to look and to change who is at work
        self._stop = threading.Event()
        self._enough = threading.Event()
        self._busy: str | None = None
        self._aside = False  # whether it is one that gives way to others
        self._wanted = threading.Event()
        self._listeners: list[Callable[[Any], None]] = []

    @property
    def busy(self) -> str | None:
        """The verb at work, if any."""
        return self._busy

    def listen(self, callback: Callable[[Any], None]) -> Callable[[], None]:
        """Call `callback` with every Event, and with Progress and evidence while a verb works.

        Once a verb is over and the session free again, whatever the verb came to, it is called
        with `Ended`. It is called on the verb's thread. Gives a function that ends it.
        """
        self._listeners.append(callback)

        def end() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return end

    def stop(self, keep: bool = False) -> None:
        """Ask the verb at work to stop at its next step: it raises `Stopped`, changing nothing.

        With `keep` a tune ends there and then, and commits what it has learnt.
        """
        if keep and self._busy == "tune":
            self._enough.set()
        elif self._busy is not None:
            self._stop.set()

    def make_way(self) -> None:
        """End what is done aside, if anything is: it raises `Stopped` at its next step."""
        if self._aside:
            self._wanted.set()

    @contextmanager
    def _verb(self, name: str, aside: bool = False) -> Iterator[None]:
        """Hold the session for the verb `name`; done `aside`, it stops where another verb comes."""
        with self._gate:
            while self._busy is not None:
                if aside or not self._aside:
                    raise SessionBusy(f"{self._busy} is at work; wait for it, or stop it.")
                self._wanted.set()
                self._gate.wait()
            self._busy, self._aside = name, aside
            for flag in (self._wanted, self._stop, self._enough):
                flag.clear()
        try:
            yield
        finally:
            with self._gate:
                self._busy, self._aside = None, False
                self._gate.notify_all()
            self._tell(Ended(name))

    def _drive(self, name: str, work: Work, aside: bool = False) -> Any:
        """Do all of `work` as the verb `name`."""
        with self._verb(name, aside):
            return finish(self._telling(work))

    def _telling(self, work: Work) -> Work:
        """Pass on what `work` yields to the listeners; Stop ends it between two steps."""
        while True:
            try:
                item = next(work)
            except StopIteration as end:
                return end.value
            self._tell(item)
            if self._stop.is_set() or (self._aside and self._wanted.is_set()):
                work.close()
                raise Stopped(f"{self._busy} was stopped; what it had not finished is discarded.")
            yield item

    def _tell(self, item: Any) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(item)
            except Exception as error:  # a broken view must not break the work
                self._listeners.remove(listener)
                warnings.warn(f"A listener failed and was dropped: {error!r}", stacklevel=2)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C while a commit is half done; it comes through right after."""
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
