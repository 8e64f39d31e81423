"""The screen: buttons are a function of the state, presses become verbs, trouble is a line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from prunelab.errors import IllegalPlan, PruneLabError, SessionBusy, Stopped, UnknownName, WrongState
from prunelab.ledger import (
    Adjusted,
    Approved,
    Began,
    Event,
    Ledger,
    MemoryStore,
    Proposed,
    Rejected,
    Repaired,
    State,
    Tuned,
    Undone,
)
from prunelab.values import Cost, FrozenMap, Move, Progress, Rung, WidthPlan

WIDTH = 16


@dataclass
class Group:
    """A group of the fake network."""

    name: str
    width: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    prunable: bool = True
    why: str = ""


class Graph:
    """Nine plain groups and one coupled one, like a small residual network."""

    def __init__(self) -> None:
        plain = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)]
        self.groups = [
            Group(name, WIDTH * 2 ** (int(name[5]) - 1), (name,), (name[:-1] + "2",))
            for name in plain
        ]
        shared = ("conv1", "layer1.0.conv2", "layer1.1.conv2")
        self.groups.insert(0, Group("conv1", WIDTH, shared, ("layer1.0.conv1", "layer1.1.conv1")))

    def __getitem__(self, name: str) -> Group:
        return next(group for group in self.groups if group.name == name)


class FakeSession:
    """Folds real events; knows no network: damages come from a formula."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.plan = WidthPlan.full(self.graph)
        self.ledger = Ledger(MemoryStore())
        self.busy: str | None = None
        self.told: list[Callable[[object], None]] = []
        self.stopping = threading.Event()
        self.calls: list[tuple[Any, ...]] = []
        self.pause = 0.0  # seconds per step of a search
        self._add(
            Began,
            network="FakeNet",
            fingerprint="0",
            seed=0,
            method="aofp",
            parameters=FrozenMap({"theta": 0.01}),
            settings=FrozenMap(),
            widths=FrozenMap(self.plan.widths),
            metrics=FrozenMap({"accuracy": 0.921}),
            cost=self.cost(self.plan),
            weights="w0",
        )

    @property
    def state(self) -> State:
        return self.ledger.state

    def listen(self, callback: Callable[[object], None]) -> Callable[[], None]:
        self.told.append(callback)
        return lambda: self.told.remove(callback)

    def tell(self, what: object) -> None:
        for callback in list(self.told):
            callback(what)

    def _add(self, event: type[Event], **facts: Any) -> None:
        self.tell(self.ledger.append(event(seq=len(self.ledger), **facts)))

    def cost(self, plan: WidthPlan) -> Cost:
        units = sum(len(units) for units in plan.kept.values())
        return Cost(macs=units * 10_000, params=units * 100, activation_bytes=units * 400)

    def damages(self, group: str) -> np.ndarray:
        """The damage of each unit of `group` [width], share of the signal."""
        width = self.graph[group].width
        order = np.random.default_rng(sum(map(ord, group))).permutation(width)
        return 8e-4 * (1 + 4 / width) ** order.astype(float)

    def _move(self, drop: Mapping[str, Iterable[int]], method: str = "aofp") -> Move:
        full = FrozenMap({name: tuple(sorted(units)) for name, units in drop.items() if units})
        after = self.plan.drop(full)
        return Move(
            drop=full,
            method=method,
            parameters=FrozenMap({"theta": 0.01}),
            seed=1,
            damage=FrozenMap(
                {name: float(self.damages(name)[list(u)].sum()) for name, u in full.items()}
            ),
            before=self.cost(self.plan),
            after=self.cost(after),
            fingerprint=str(self.state.head),
        )

    def what_if(self, drop: Mapping[str, Iterable[int]]) -> Move:
        return self._move(drop, "person")

    def _rungs(self, group: str) -> list[Rung]:
        damages = self.damages(group)
        search = self.plan.kept[group]
        rungs = []
        for halving in range(10):
            ranked = sorted(search, key=lambda unit: damages[unit])
            half = tuple(sorted(ranked[: len(search) // 2]))
            worst = float(damages[list(half)].max() * len(half))
            verdict = "take" if worst < 0.01 else "halve" if len(half) > 1 else "fail"
            rungs.append(
                Rung(
                    group,
                    halving,
                    tuple(search),
                    tuple(float(damages[u] * len(half)) for u in search),
                    half,
                    worst,
                    0.01,
                    verdict,
                )
            )
            if verdict != "halve":
                break
            search = half
        return rungs

    def propose(self) -> Move | None:
        self._enter("propose")
        if self.state.pending is not None:
            self._leave()
            raise WrongState("A move is pending: approve, adjust or reject it first.")
        try:
            seen: list[Rung] = []
            drop = {}
            for done, group in enumerate(self.graph.groups):
                for rung in self._rungs(group.name):
                    if self.stopping.is_set():
                        raise Stopped("propose was stopped.")
                    time.sleep(self.pause)
                    seen.append(rung)
                    self.tell(rung)
                self.tell(Progress(done + 1, len(self.graph.groups), "searching"))
                if seen[-1].verdict == "take" and group.name != "layer3.2.conv1":
                    drop[group.name] = seen[-1].candidates
            move = self._move(drop) if drop else None
            self._add(
                Proposed, method="aofp", parameters=FrozenMap(), move=move, seen=tuple(seen)
            )
            return move
        finally:
            self._leave()

    def _enter(self, verb: str, **given: Any) -> None:
        if self.busy:
            raise SessionBusy(f"{self.busy} is at work; press Stop to end it.")
        self.busy = verb
        self.stopping.clear()
        self.calls.append((verb, *given.items()))

    def _leave(self) -> None:
        self.busy = None

    def _pending(self) -> Move:
        if self.state.pending is None:
            raise WrongState("Nothing is proposed: propose first.")
        return self.state.pending

    def adjust(self, drop: Mapping[str, Iterable[int]]) -> None:
        self.calls.append(("adjust", drop))
        self._pending()
        move = self._move(drop)
        self._add(Adjusted, drop=move.drop, move=move)

    def _step(self, step: type[Event], gain: float, **facts: Any) -> None:
        before = self.state.now.metrics["accuracy"]
        self._add(
            step,
            kept=self.plan.kept,
            metrics=FrozenMap({"accuracy": round(before + gain, 4)}),
            cost=self.cost(self.plan),
            fingerprint=str(len(self.ledger)),
            weights="w",
            compared=FrozenMap({"images": 1000, "lost": 11, "gained": 4}),
            **facts,
        )

    def approve(self) -> None:
        self.calls.append(("approve",))
        self.plan = self.plan.drop(self._pending().drop)
        self._step(Approved, -0.012)
        self._step(Repaired, 0.005, kind="lstsq", automatic=True)

    def reject(self, why: str = "") -> None:
        self.calls.append(("reject", why))
        self._pending()
        self._add(Rejected, reason=why)

    def undo(self) -> None:
        self.calls.append(("undo",))
        if not self.state.undoable:
            raise WrongState("There is nothing to undo.")
        step, head = self.state.undo_target()
        self._add(Undone, step=step, proposal=self.state.pending is not None)
        kept = self.state.point(head).kept
        full = WidthPlan.full(self.graph)
        gone = {n: set(u) - set(kept[n]) for n, u in full.kept.items()} if kept else {}
        self.plan = full.drop(gone)

    def tune(self, steps: int = 200) -> None:
        self._enter("tune", steps=steps)
        try:
            for done in range(steps):
                if self.stopping.is_set():
                    raise Stopped("tune was stopped.")
                time.sleep(self.pause)
                self.tell(Progress(done + 1, steps, "training"))
            self._step(Tuned, 0.004, steps=steps, by="prunelab", replayable=True)
        finally:
            self._leave()

    def run(self, target_macs: float = 0.5, min_accuracy: float | None = None) -> None:
        self.calls.append(("run", target_macs, min_accuracy))
        raise ZeroDivisionError("a bug")

    def stop(self) -> None:
        self.stopping.set()
