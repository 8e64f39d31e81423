"""Background jobs while the user is idle: measuring, trying and bounding a move, inspecting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from prunelab.errors import SessionBusy, Stopped
from prunelab.notebook.channel_inspector import Channel, Tried, channel, tried
from prunelab.notebook.selection import Choice
from prunelab.notebook.view import End
from prunelab.notebook.worker import Worker
from prunelab.session.certificate import Certificate, certificate
from prunelab.session.session import Session
from prunelab.values import Move

CHANNEL, COMPARE = "channel", "compare"  # sections whose contents need a run of the network
REST = 0.7  # seconds without a change before a selection is tried


class Background:
    """Runs one job at a time, after a pause of the user; a verb or another choice ends it.

    `changed` is called when a job begins and when it ends. A job that fails is not shown, and is
    not started again.
    """

    def __init__(self, session: Session, worker: Worker, changed: Callable[[], None]) -> None:
        self._session = session
        self._worker = worker
        self._changed = changed
        self._timer: threading.Timer | None = None
        self._turn = 0  # only the latest job counts
        self._found: dict[str, tuple[Any, Any]] = {}  # kind of job -> its subject and result
        self.at_work = ""  # the kind of the running job

    def go_on(self, choice: Choice, opened: Collection[str]) -> None:
        """Start the next missing job after a pause; `opened` are the names of the open sections."""
        self.cancel()
        for kind, of, job in self._wanted(choice, opened):
            if self._found.get(kind, (None, None))[0] != of:
                submit = partial(self._worker.submit, partial(self._do, self._turn, kind, of, job))
                self._timer = threading.Timer(REST, submit)
                self._timer.daemon = True
                self._timer.start()
                return

    def _wanted(
        self, choice: Choice, opened: Collection[str]
    ) -> list[tuple[str, Any, Callable[[], Any]]]:
        session, move = self._session, choice.move
        mark = session.state.now.event.fingerprint
        at_hand = session.evidence
        jobs: list[tuple[str, Any, Callable[[], Any]]] = []
        if at_hand is None or at_hand.stale:
            jobs.append(("measured", mark, partial(session.measure, background=True)))
        if CHANNEL in opened and choice.unit is not None:
            group = session.proposal_graph[choice.group]
            look = partial(channel, session, group, choice.unit)
            jobs.append(("channel", (mark, group.name, choice.unit), look))
        if move is not None and move.drop and move.fingerprint == mark:
            job = partial(tried, session, dict(move.drop))
            jobs.append(("tried", (mark, move.drop), job))
            if choice.repairs:
                jobs.append(("repaired", (mark, move.drop), partial(job, repair=True)))
            if units := move.drop.get(choice.group):
                bound = partial(certificate, session, choice.group, units)
                jobs.append(("certified", (mark, choice.group, units), bound))
        ends = choice.ends
        if COMPARE in opened and ends[0] != ends[1]:
            a, b = (choice.plans[end] if isinstance(end, str) else end for end in ends)
            jobs.append(("compared", ends, partial(session.compare, a, b, background=True)))
        if session.state.head not in session.latencies:
            jobs.append(("latency", mark, partial(session.latency, background=True)))
        jobs.append(("step_time", mark, partial(session.step_time, background=True)))
        return jobs

    def cancel(self) -> None:
        """Drop the waiting job and stop the running one."""
        self._turn += 1
        if self._timer is not None:
            self._timer.cancel()
        self._session.preempt()

    def _do(self, turn: int, kind: str, of: Any, job: Callable[[], Any], stopped: bool) -> None:
        if turn != self._turn or stopped:
            return
        self.at_work = kind
        self._changed()
        try:
            result = job()
        except (Stopped, SessionBusy):  # it was preempted: neither done nor failed
            turn = -1
        except Exception as error:
            result = error
        finally:
            self.at_work = ""
        if turn == self._turn:
            self._found[kind] = of, result
        self._changed()

    def tried(self, move: Move | None, repaired: bool = False) -> Tried | None:
        """The comparison of `move` as cut, or `repaired`, if it was the last one tried."""
        kind = "repaired" if repaired else "tried"
        return self._result(kind, move and (move.fingerprint, move.drop))

    def certificate(self, move: Move | None, group: str) -> Certificate | None:
        """The bound of the units of `group` in `move`, if it was the last one computed."""
        units = move and move.drop.get(group)
        return self._result("certified", move and units and (move.fingerprint, group, units))

    def channel(self, group: str, unit: int | None) -> Channel | None:
        """The inspected channel of the current network."""
        return self._result("channel", (self._session.state.now.event.fingerprint, group, unit))

    def difference(self, ends: tuple[End, End]) -> Any:
        """The comparison of the second of two points or plans with the first."""
        return self._result("compared", ends)

    def step_time(self) -> float | None:
        """Seconds of a tuning step, of the current network or an earlier one."""
        result = self._found.get("step_time", (None, None))[1]
        return None if _failed(result) else result

    def _result(self, kind: str, of: Any) -> Any:
        known, result = self._found.get(kind, (None, None))
        return result if known is not None and known == of and not _failed(result) else None


def _failed(result: Any) -> bool:
    return isinstance(result, Exception)
