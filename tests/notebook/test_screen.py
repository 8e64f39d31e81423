"""The screen: buttons follow the state, presses call verbs, errors are shown as a line."""

from __future__ import annotations

import gc
import gzip
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest
from page import Page
from torch.nn import functional

import prunelab as pl
from prunelab.errors import SessionBusy, Stopped, UnknownName, WrongState
from prunelab.evidence.fingerprint import fingerprint
from prunelab.ledger.events import (
    Adjusted,
    Approved,
    Began,
    Event,
    Noted,
    Proposed,
    Rejected,
    Repaired,
    Tuned,
    Undone,
)
from prunelab.ledger.ledger import Ledger
from prunelab.ledger.state import State
from prunelab.ledger.store import TemporaryStore
from prunelab.notebook import Screen, figure_slot, show, text
from prunelab.notebook import screen as screen_module
from prunelab.notebook.view import enabled
from prunelab.notebook.worker import worker_of
from prunelab.session.preview import AtHand, Foresight, Selection
from prunelab.values import Cost, Ended, FrozenMap, Move, Progress, Rung, WidthPlan, units_of
from prunelab.values.paired_comparison import PairedComparison

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

    factors: ClassVar[dict[str, str]] = {}

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
        self.graph = self.proposal_graph = Graph()
        self.plan = WidthPlan.full(self.graph)
        self.ledger = Ledger(TemporaryStore())
        self.busy: str | None = None
        self.told: list[Callable[[object], None]] = []
        self.stopping = threading.Event()
        self.enough = threading.Event()
        self.metrics = {"accuracy": pl.Metric(lambda model, loader: 0.0)}
        self.calls: list[tuple[Any, ...]] = []
        self.pause = 0.0  # seconds per step of a search
        self._method: Any = pl.AOFP(theta=0.01)
        self._add(
            Began,
            network="FakeNet",
            fingerprint="0",
            seed=0,
            method="aofp",
            parameters=FrozenMap({"theta": 0.01}),
            settings=FrozenMap({"repair": "lstsq"}),
            widths=FrozenMap(self.plan.widths),
            metrics=FrozenMap({"accuracy": 0.921}),
            cost=self.cost(self.plan),
            weights="w0",
        )

    @property
    def state(self) -> State:
        return self.ledger.state

    @property
    def method(self) -> Any:
        return self._method

    @method.setter
    def method(self, method: Any) -> None:
        self._enter("method")
        self._method = pl.make_method(method)
        self._leave()

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

    def foresee(
        self,
        drop: Mapping[str, Iterable[int]] | None = None,
        *,
        theta: float | None = None,
        target_macs: float | None = None,
    ) -> Foresight:
        seen: tuple[Rung, ...] = ()
        if drop is None:
            theta = 0.01 if theta is None else theta
            rungs = {group.name: self._rungs(group.name, theta) for group in self.graph.groups}
            drop = {name: r[-1].candidates for name, r in rungs.items() if r[-1].verdict == "take"}
            seen = tuple(rung for each in rungs.values() for rung in each)
        move = self._move(drop, "person")
        best = {name: self._best(name, len(units)) for name, units in move.drop.items()}
        plan = self.plan.drop(move.drop)
        return Foresight(move, plan, move.before, move.after, seen, FrozenMap(best), (0.002, 0.001))

    def _best(self, group: str, count: int) -> Selection:
        damages = self.damages(group)
        units = sorted(self.plan.kept[group], key=lambda unit: damages[unit])[:count]
        return Selection(units_of(units), float(damages[units].sum()))

    @property
    def evidence(self) -> AtHand | None:
        return None

    def costs(self) -> dict[str, Cost]:
        return {}

    def seconds(self) -> dict[str, float] | None:
        return None

    def measure(self, background: bool = False) -> None:
        self.calls.append(("measure",))

    def compare_move(
        self, drop: Mapping[str, Iterable[int]], repair: bool = False, background: bool = False
    ) -> PairedComparison:
        self.calls.append(("trial", drop, repair))
        return PairedComparison("accuracy", 0.921, 0.914, 0.006, 1000)

    @property
    def latencies(self) -> dict[int, pl.Latency]:
        return {}

    def latency(self, background: bool = False) -> pl.Latency:
        return pl.Latency(0.002, 0.001, 0.003, 30, "cpu")

    def step_time(self, background: bool = False) -> float:
        return 0.1

    def preempt(self) -> None:
        pass

    def _rungs(self, group: str, theta: float = 0.01) -> list[Rung]:
        damages = self.damages(group)
        search = self.plan.kept[group]
        rungs = []
        for halving in range(10):
            ranked = sorted(search, key=lambda unit: damages[unit])
            half = tuple(sorted(ranked[: len(search) // 2]))
            worst = float(damages[list(half)].max() * len(half))
            verdict = "take" if worst < theta else "halve" if len(half) > 1 else "fail"
            rungs.append(
                Rung(
                    group,
                    halving,
                    tuple(search),
                    tuple(float(damages[u] * len(half)) for u in search),
                    half,
                    worst,
                    theta,
                    verdict,
                )
            )
            if verdict != "halve":
                break
            search = half
        return rungs

    def propose(self, target_macs: float | None = None) -> Move | None:
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
            self._add(Proposed, method="aofp", parameters=FrozenMap(), move=move, seen=tuple(seen))
            return move
        finally:
            self._leave()

    def _enter(self, verb: str, **given: Any) -> None:
        if self.busy:
            raise SessionBusy(f"{self.busy} is at work; press Stop to end it.")
        self.busy = verb
        self.stopping.clear()
        self.enough.clear()
        self.calls.append((verb, *given.items()))

    def _leave(self) -> None:
        ended, self.busy = self.busy, None
        self.tell(Ended(str(ended)))

    def _pending(self) -> Move:
        if self.state.pending is None:
            raise WrongState("Nothing is proposed: propose first.")
        return self.state.pending

    def adjust(self, drop: Mapping[str, Iterable[int]]) -> None:
        self.calls.append(("adjust", drop))
        self._pending()
        move = self._move(drop)
        self._add(Adjusted, move=move)

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

    def approve(self, repair: bool = True) -> None:
        self.calls.append(("approve", repair))
        self.plan = self.plan.drop(self._pending().drop)
        self._step(Approved, -0.012)
        if repair:
            self._step(Repaired, 0.005, kind="lstsq", automatic=True)

    def reject(self, why: str = "") -> None:
        self.calls.append(("reject", why))
        self._pending()
        self._add(Rejected, reason=why)

    def undo(self, *, only_proposal: bool = False) -> None:
        self.calls.append(("undo",))
        if not self.state.undoable:
            raise WrongState("There is nothing to undo.")
        step, head = (None, self.state.head) if only_proposal else self.state.undo_target()
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
                if self.enough.is_set():
                    steps = done
                    break
                time.sleep(self.pause)
                self.tell(Progress(done + 1, steps, "training"))
            self._step(Tuned, 0.004, steps=steps, by="prunelab", replayable=True)
        finally:
            self._leave()

    @property
    def aside(self) -> bool:
        return False

    def note(self, text: str, kind: str = "note") -> None:
        self._add(Noted, text=text, kind=kind)

    def run(self, target_macs: float, min_accuracy: float | None, **more: Any) -> None:
        self.calls.append(("run", target_macs, min_accuracy, more))
        raise ZeroDivisionError("a bug")

    def stop(self, keep: bool = False) -> None:
        (self.enough if keep else self.stopping).set()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def screen(session: FakeSession) -> Iterator[Screen]:
    made = Screen(session)
    yield made
    made.close()


@pytest.fixture
def page(screen: Screen) -> Page:
    return Page(screen)


@pytest.fixture
def figured(screen: Screen) -> Screen:
    """A screen with its interactive figure, as when a page shows it."""
    screen._draw_again()
    return screen


@pytest.fixture
def sent(figured: Screen, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The messages that pages get, in order; the first is the whole figure."""
    messages: list[dict[str, Any]] = []
    monkeypatch.setattr(figured, "send", lambda message, _: messages.append(message))
    figured._draw_again()
    return messages


def on(screen: Screen) -> set[str]:
    return Page(screen).on


def trace(screen: Screen, name: str) -> Any:
    assert screen.figure.sent is not None
    return next(trace for trace in screen.figure.sent["data"] if trace["name"] == name)


def click(screen: Screen, name: str, index: int) -> None:
    """Click a point of the figure, as the page tells it."""
    assert screen.figure.sent is not None
    of, names = trace(screen, name), [trace["name"] for trace in screen.figure.sent["data"]]
    told = screen.figure.sent["clicks"][str(names.index(name))]
    screen._told(told, None, of["customdata"][index], False)


def merged(old: Any, changes: Any) -> Any:
    """What assets/figure.js makes of a figure and its changes."""
    if not isinstance(changes, dict) or not isinstance(old, (dict, list)):
        return changes
    pairs = enumerate(old) if isinstance(old, list) else old.items()
    made = {str(key): value for key, value in pairs}
    for key, value in changes.items():
        made[key] = None if value is None else merged(made.get(key), value)
    made = {key: value for key, value in made.items() if value is not None}
    return list(made.values()) if isinstance(old, list) else made


def pages(sent: list[dict[str, Any]]) -> Any:
    """The figure that a page holds after the messages `sent`."""
    figure: Any = None
    for message in sent:
        if message["do"] == "draw":
            figure = message["figure"]
        elif message["do"] == "change" and figure["layout"]["meta"] == message["after"]:
            figure = merged(figure, message["changes"])
    return figure


# ---------------------------------------------------------------- buttons


def test_the_buttons_carry_the_verbs(page: Page) -> None:
    texts = [e.text for e in page.elements if e.tag == "button" and e.get("data-do") == "press"]
    assert texts == [
        "Propose",
        "Approve",
        "Adjust",
        "Reject",
        "Undo",
        "Repair",
        "Tune",
        "Run",
        "Stop",
    ]


def test_buttons_follow_the_state(screen: Screen) -> None:
    assert on(screen) == {"propose", "tune", "run"}
    screen.press("propose")
    assert on(screen) == {"approve", "adjust", "reject", "undo"}
    screen.press("approve")
    assert on(screen) == {"propose", "undo", "repair", "tune", "run"}


def test_a_stale_proposal_can_only_be_replaced_or_dropped(session: FakeSession) -> None:
    session.propose()
    pending = session.state.pending
    assert pending is not None
    stale = replace(session.state, pending=replace(pending, fingerprint="another"))
    can = {verb for verb, yes in enabled(stale, busy=False).items() if yes}
    assert "approve" not in can
    assert {"propose", "reject", "undo"} <= can


def test_at_work_only_stop_can_be_pressed(session: FakeSession) -> None:
    assert [verb for verb, yes in enabled(session.state, busy=True).items() if yes] == ["stop"]


def test_press_is_synchronous_and_a_click_is_not(screen: Screen, session: FakeSession) -> None:
    session.pause = 0.005
    started = time.monotonic()
    Page(screen).click("press", "propose")
    assert time.monotonic() - started < 0.1
    assert on(screen) == {"stop"}
    assert session.state.pending is None
    assert worker_of(session).wait(20)
    assert session.state.pending is not None
    screen.press("approve")
    assert session.state.moves == 1


def test_a_verb_called_from_code_shows_too(screen: Screen, session: FakeSession) -> None:
    session.propose()
    assert "approve" in on(screen)
    assert "AOFP proposes to drop" in Page(screen).said("reason")


def test_an_unknown_button_is_refused(screen: Screen) -> None:
    with pytest.raises(UnknownName, match="approve"):
        screen.press("aprove")


def test_the_boxes_give_the_verbs_their_arguments(screen: Screen, session: FakeSession) -> None:
    page = Page(screen)
    page.put("aim", "steps", 3)
    screen.press("tune")
    page.put("aim", "macs", 60)
    page.put("aim", "lose", 4.1)
    page.put("aim", "moves", 5)
    screen.press("run")
    page.put("aim", "lose", "")
    page.put("aim", "repair", False)
    page.put("aim", "moves", "")
    screen.press("run")
    screen.press("propose")
    screen.press("approve")
    screen.press("propose")
    page.put("aim", "reason", "too much")
    screen.press("reject")
    assert ("tune", ("steps", 3)) in session.calls
    assert ("run", 0.6, pytest.approx(0.88), {"moves": 5, "repair": True}) in session.calls
    assert ("run", 0.6, None, {"moves": None, "repair": False}) in session.calls
    assert ("approve", False) in session.calls
    assert ("reject", "too much") in session.calls


@pytest.mark.parametrize(("name", "typed"), [("macs", 0), ("macs", "x"), ("steps", 1.5)])
def test_an_odd_number_is_a_red_line_and_changes_nothing(
    page: Page, name: str, typed: object
) -> None:
    before = page.value("aim", name)
    page.put("aim", name, typed)
    assert f"{name} is a number from" in page.said("error")
    assert page.value("aim", name) == before


# ---------------------------------------------------------------- stop, trouble


def test_stop_passes_the_queue(screen: Screen, session: FakeSession) -> None:
    session.pause = 0.01
    page = Page(screen)
    page.put("aim", "steps", 500)
    page.click("press", "tune")
    screen._worker.submit(partial(screen._perform, "propose", None))
    screen._at_work.append("propose")
    wait_until(lambda: session.busy == "tune")
    Page(screen).click("press", "stop")
    assert worker_of(session).wait(5)
    told = session.ledger[-1]
    assert isinstance(told, Noted)
    assert told.text.startswith("Tuning was stopped after ")
    assert told.text in Page(screen).said("reason")
    assert [call[0] for call in session.calls] == ["tune"]
    assert Page(screen).said("error") == ""
    assert on(screen) == {"propose", "tune", "run"}


def test_trouble_is_a_red_line_and_the_session_is_intact(
    screen: Screen, session: FakeSession
) -> None:
    screen.press("approve")
    assert "propose first" in Page(screen).said("error")
    assert any(e.has("pl-error") and e["role"] == "alert" for e in Page(screen).elements)
    screen.press("run")
    assert "ZeroDivisionError: a bug" in Page(screen).said("error")
    screen.press("propose")
    assert Page(screen).said("error") == ""
    assert session.state.pending is not None


def test_a_screen_that_fails_does_not_fail_the_verb(
    screen: Screen, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen.figure, "show", lambda info: 1 / 0)
    session.propose()
    assert session.state.pending is not None
    assert "ZeroDivisionError" in Page(screen).said("error")


def test_text_from_outside_is_escaped(screen: Screen) -> None:
    page = Page(screen)
    page.unfold("history")
    page.put("aim", "reason", "<script>")
    screen.press("propose")
    screen.press("reject")
    assert page.html.count("&lt;script&gt;") == 3, "the box, the sentence and the history"
    assert "<script>" not in page.html


def test_two_screens_share_one_worker_and_show_the_same(session: FakeSession) -> None:
    one, two = Screen(session), Screen(session)
    Page(one).click("press", "propose")
    assert worker_of(session).wait(20)
    assert Page(two).html == Page(one).html
    assert "approve" in on(two)
    assert one._worker is two._worker
    two.press("approve")
    one.close()
    session.undo()
    two.close()


def test_the_worker_ends_with_its_session() -> None:
    session = FakeSession()
    worker = worker_of(session)
    thread = worker.thread
    del session
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


# ---------------------------------------------------------------- adjusting


def test_clicking_bars_changes_a_draft_and_adjust_commits_it_once(
    figured: Screen, session: FakeSession
) -> None:
    screen = figured
    screen.press("propose")
    events = len(session.ledger)
    group = screen.choice.group
    assert session.state.pending is not None
    proposed = session.state.pending.drop[group]
    bars = trace(screen, "channel")
    units = bars["customdata"]
    kept = units.index(next(unit for unit in units if unit not in proposed))
    for index in (kept, units.index(proposed[0])):
        click(screen, "channel", index)
    assert len(session.ledger) == events
    wanted = set(proposed) ^ {proposed[0], units[kept]}
    assert set(screen.choice.drop[group]) == wanted
    assert Page(screen).said("reason").count("Your choice: drop") == 1
    screen.press("adjust")
    assert "You propose to drop" in Page(screen).said("reason")
    assert len(session.ledger) == events + 1
    assert set(session.state.pending.drop[group]) == wanted
    assert [call[0] for call in session.calls].count("adjust") == 1


def test_a_count_drops_the_least_important(screen: Screen, session: FakeSession) -> None:
    page, group = Page(screen), "layer2.0.conv1"
    page.unfold("layers")
    screen.press("propose")
    page.put("width", group, 29, live=True)
    assert screen.choice.group == group, "the layer that is dragged is looked at"
    ranked = screen._info().importance.units
    assert screen.choice.drop[group] == tuple(sorted(ranked[:3]))
    assert page.value("units") == ", ".join(map(str, sorted(ranked[:3])))
    assert page.value("width", group) == "29"


def test_a_list_of_channels_is_taken_or_answered(screen: Screen) -> None:
    page = Page(screen)
    page.unfold("layers")
    screen.press("propose")
    page.put("units", None, "3, 7, 10-12")
    assert screen.choice.drop[screen.choice.group] == (3, 7, 10, 11, 12)
    page.put("units", None, "3, x")
    assert "'x' is not a channel" in Page(screen).said("error")
    page.put("units", None, "9999")
    assert "does not have" in Page(screen).said("error")
    assert screen.choice.drop[screen.choice.group] == (3, 7, 10, 11, 12)


def test_the_draft_starts_over_with_every_proposal(screen: Screen) -> None:
    screen.press("propose")
    screen.choice.keep(screen.choice.group, 15)
    screen.press("reject")
    assert screen.choice.drop == {}
    assert screen.choice.made is None


@pytest.mark.parametrize(
    ("typed", "units"), [("", ()), ("4", (4,)), ("3 1,1", (1, 3)), ("2-4 9", (2, 3, 4, 9))]
)
def test_typed_channels(typed: str, units: tuple[int, ...]) -> None:
    assert text.parse_units(typed) == units


# ---------------------------------------------------------------- what is shown


def test_the_state_line_is_the_sessions_own(screen: Screen, session: FakeSession) -> None:
    screen.press("propose")
    (line,) = [e for e in Page(screen).elements if e.has("pl-line") and "aria-live" in e]
    assert line.text == session.state.line()
    assert line["role"] == "status"


def test_a_proposal_is_told_in_plain_words(screen: Screen, session: FakeSession) -> None:
    screen.press("propose")
    page = Page(screen)
    page.put("group", None, "layer1.0.conv1")
    assert session.state.pending is not None
    dropped = len(session.state.pending.drop["layer1.0.conv1"])
    words = page.said("reason")
    assert page.said("question").startswith(f"Remove {dropped} of 16 channels in layer1.0.conv1")
    assert f"drop {dropped} of 16 channels in layer1.0.conv1: removes " in words
    assert "% of the signal entering layer1.0.conv2 ... and 8 more layers" in words
    page.put("group", None, "conv1")
    assert "Coupled: 3 layers lose the same channels." in Page(screen).said("reason")
    page.put("group", None, "layer3.2.conv1")
    assert "none in layer3.2.conv1" in Page(screen).said("reason")


def test_a_step_is_told_with_what_it_lost_and_gained(screen: Screen) -> None:
    screen.press("propose")
    screen.press("approve")
    assert (
        "Approved and repaired: validation accuracy 92.1% → 91.4% on 1,000 images: "
        "cut 11 lost, 4 gained; repair 11 lost, 4 gained" in Page(screen).said("reason")
    )


def test_the_history_has_every_event_newest_first(screen: Screen, session: FakeSession) -> None:
    Page(screen).unfold("history")
    for verb in ("propose", "adjust", "approve", "undo", "propose", "reject"):
        screen.press(verb)
    table = screen.part("history")
    rows = re.findall(r"<tr><td>(?:<s>)?(\d+)", table)
    assert rows == [str(seq) for seq in reversed(range(len(session.ledger)))]
    assert "<s>Approved</s>" in table
    assert "<td>Rejected</td>" in table


def test_progress_tells_the_time_that_is_left() -> None:
    assert text.time_left(3, 12, 0.5) == "3 of 12"
    assert text.time_left(3, 12, 6.0) == "3 of 12, about 18 s left"
    assert text.time_left(1, 101, 6.0) == "1 of 101, about 10 min left"
    assert text.time_left(12, 12, 6.0) == "12 of 12"


def test_progress_shows_only_while_a_verb_works(session: FakeSession, screen: Screen) -> None:
    shown: list[str] = []
    session.listen(lambda _: shown.append(Page(screen).said("work")))
    Page(screen).put("aim", "steps", 3)
    screen.press("tune")
    assert any(words.startswith("training: ") for words in shown)
    assert Page(screen).said("work") == ""


def test_a_verb_called_from_code_and_stopped_leaves_no_trace(
    session: FakeSession, screen: Screen
) -> None:
    session.pause = 0.02
    session.listen(lambda told: session.stop() if screen._info().ladder.others else None)
    before = screen._info()
    with pytest.raises(Stopped):
        session.propose()
    assert screen._info() == before
    assert Page(screen).said("work") == ""


def test_the_ladder_is_drawn_while_rungs_come(session: FakeSession, screen: Screen) -> None:
    session.pause = 0.02
    sizes: set[int] = set()
    session.listen(lambda _: sizes.add(len(screen._info().ladder.others)))
    session.propose()
    assert len(sizes) >= 3


def test_redraws_are_at_most_five_a_second(
    session: FakeSession, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []
    draw = screen.figure.show
    monkeypatch.setattr(
        screen.figure, "show", lambda info: (drawn.append(time.monotonic()), draw(info))
    )
    session.pause = 0.01
    started = time.monotonic()
    session.propose()
    assert len(drawn) <= 5 * (time.monotonic() - started) + 2


def test_the_network_without_a_proposal_shows_a_hint(screen: Screen) -> None:
    assert text.WELCOME in Page(screen).said("reason")


# ---------------------------------------------------------------- the one figure


def test_the_whole_figure_is_sent_once_and_then_what_differs(
    figured: Screen, sent: list[dict[str, Any]]
) -> None:
    for verb in ("propose", "approve", "propose", "undo", "reject"):
        figured.press(verb)
        assert pages(sent) == figured.figure.sent
    figured._told("flip", None, trace(figured, "channel")["customdata"][-1], False)
    figured._told("group", None, "layer3.0.conv1", False)
    assert pages(sent) == figured.figure.sent
    assert {message["do"] for message in sent[1:]} == {"change"}


def test_another_selection_is_a_small_message(figured: Screen, sent: list[dict[str, Any]]) -> None:
    figured.press("propose")
    sent.clear()
    figured._told("flip", None, trace(figured, "channel")["customdata"][-1], False)
    (message,) = sent
    assert len(json.dumps(message)) < 0.25 * len(json.dumps(figured.figure.sent))
    assert "customdata" not in json.dumps(message)


def test_a_redraw_is_a_few_messages_and_none_when_nothing_changed(
    figured: Screen, sent: list[dict[str, Any]]
) -> None:
    sent.clear()
    figured.press("propose")
    assert 1 <= len(sent) <= 4
    sent.clear()
    figured._refresh()
    assert sent == []


def test_a_page_loaded_anew_starts_from_what_is_shown(
    figured: Screen, sent: list[dict[str, Any]]
) -> None:
    for live in (True, False):
        figured.choice.group = "layer1.0.conv1" if live else "layer2.0.conv1"
        figured.press("propose")
        figured._told("theta", None, -1.0, live)
        figured._told("here", None, False, False)
        wait_until(lambda: sent[-1]["do"] == "draw")
        whole = sent[-1]["figure"]
        drawn = {trace["name"]: trace for trace in whole["data"]}
        assert drawn["channel"]["customdata"] == list(figured._info().importance.units)
        assert drawn["search"]["x"]
        assert whole["layout"]["meta"] == figured.drawing
        figured.press("reject")


def test_text_and_figure_carry_the_same_number(figured: Screen) -> None:
    numbers = []
    for verb in ("propose", "approve", "undo"):
        figured.press(verb)
        assert figured.figure.sent is not None
        assert figured.figure.sent["layout"]["meta"] == figured.drawing
        numbers.append(figured.drawing)
    assert sorted(set(numbers)) == numbers, "every change counts"


def test_a_page_that_drew_an_old_figure_is_sent_the_whole(
    figured: Screen, sent: list[dict[str, Any]]
) -> None:
    figured.press("propose")
    sent.clear()
    figured._told("figure", None, figured.drawing, False)
    assert sent == []
    figured._told("figure", None, figured.drawing - 1, False)
    assert sent == [{"do": "draw", "figure": figured.figure.sent}]


def test_the_code_of_the_figure_is_sent_to_a_page_that_has_none(
    figured: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the installed plotly's own file, and no page fetches another."""
    told: list[Any] = []
    monkeypatch.setattr(figured, "send", lambda message, buffers: told.append((message, buffers)))
    for bare in (False, True):
        told.clear()
        figured._told("here", None, bare, False)
        wait_until(lambda: any(message["do"] == "draw" for message, _ in told))
        assert [message["do"] for message, _ in told] == ["load"] * bare + ["draw"]
    ((_, (code,)), _) = told
    assert b"Plotly.react" not in code
    assert gzip.decompress(code).lstrip().startswith(b"/**\n* plotly.js v")
    assert "http" not in Screen._esm.replace("http://www.w3.org", "")


def test_code_of_the_figure_that_is_missing_is_a_red_line(
    figured: Screen, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> bytes:
        raise FileNotFoundError("plotly.min.js")

    monkeypatch.setattr(figure_slot, "packed", missing)
    figured._told("load", None, None, False)
    assert "The interactive figure could not be loaded" in Page(figured).said("error")
    figured.press("propose")
    assert session.state.pending is not None


def test_a_narrow_screen_stacks_its_panels(figured: Screen, sent: list[dict[str, Any]]) -> None:
    figured._told("narrow", None, True, False)
    assert pages(sent)["layout"]["xaxis"]["domain"] == [0, 1]
    assert "stack" in figured._kinds
    assert "grid" not in figured._kinds
    figured._told("narrow", None, False, False)
    assert pages(sent)["layout"]["xaxis"]["domain"] == [0.315, 0.73]
    assert figured._kinds == ["auto", "grid"]


def test_the_browser_alone_knows_the_size_of_the_figure(
    figured: Screen, sent: list[dict[str, Any]]
) -> None:
    """plotly.js that is told a size does not follow that of its place."""
    figured._told("narrow", None, True, False)
    figured.press("propose")
    figured._told("narrow", None, False, False)
    for message in sent:
        told = message["figure" if message["do"] == "draw" else "changes"].get("layout", {})
        assert not {"height", "width"} & told.keys()


# ---------------------------------------------------------------- pages without widgets


def test_the_bundle_is_the_same_every_time(session: FakeSession) -> None:
    bundles = []
    for made in (session, FakeSession()):
        screen = show(made)
        screen.press("propose")
        bundle, _ = screen._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle
        bundles.append((bundle["text/plain"], bundle["image/svg+xml"]))
        screen.close()
    assert bundles[0] == bundles[1]
    assert bundles[0][0] == f"Screen({session.state.line()})"


def test_a_cell_shows_a_picture_for_pages_without_the_kernel_and_the_screen(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(screen_module, "display", lambda bundle, **_: shown.append(bundle))
    screen._ipython_display_()
    picture, live = shown
    assert 'src="data:image/svg+xml;base64,' in picture["text/html"]
    assert picture["text/plain"] == live["text/plain"] == repr(screen)
    assert "application/vnd.jupyter.widget-view+json" in live
    assert "image/svg+xml" not in live


def test_the_static_picture_is_small_valid_xml_at_every_stage(screen: Screen) -> None:
    for verb in ("propose", "approve", "undo", "propose", "reject"):
        picture = screen._repr_mimebundle_()[0]["image/svg+xml"]
        assert len(picture) < 20_000
        ElementTree.fromstring(picture)
        screen.press(verb)


@pytest.mark.parametrize(("name", "given"), [("arrange", "circle"), ("theme", "pink")])
def test_odd_arguments_are_refused(session: FakeSession, name: str, given: str) -> None:
    with pytest.raises(UnknownName, match=given):
        show(session, **{name: given})


# ---------------------------------------------------------------- a real session


def test_every_button_works_on_a_real_session(trained: Any, data: Any) -> None:
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.2))
    screen = pl.show(session)
    page = Page(screen)
    errors = []
    for verb in ("propose", "adjust", "approve", "repair", "tune", "undo", "propose", "reject"):
        if verb == "adjust":
            screen._told("flip", None, screen._info().importance.units[-1], False)
        if verb == "tune":
            page.put("aim", "steps", 2)
        screen.press(verb)
        errors.append(Page(screen).said("error"))
    page.put("aim", "macs", 80)
    screen.press("run")
    errors.append(Page(screen).said("error"))
    assert errors == [""] * 9
    kinds = [type(event).__name__ for event in session.ledger]
    assert kinds[1:7] == ["Proposed", "Adjusted", "Approved", "Repaired", "Repaired", "Tuned"]
    assert session.state.now.cost.macs <= 0.8 * session.state.base.cost.macs
    assert session.state.line() in page.said("line")
    assert screen._info().trajectory.path[-1].macs <= 80
    screen.close()


class Sick(list[Any]):
    """Batches whose last one holds NaN, or whose loader raises, once something is `wrong`."""

    wrong = ""

    def __iter__(self) -> Iterator[Any]:
        for place, (x, y) in enumerate(list.__iter__(self)):
            last = place == len(self) - 1
            if last and self.wrong == "error":
                raise OSError("the disk is gone")
            yield (x * float("nan") if last and self.wrong == "NaN" else x), y


def test_training_images_that_break_in_mid_run_are_left_out_and_the_history_says_so(
    trained: Any, data: Any
) -> None:
    sick = Sick(data.train)

    def fall_ill(told: object) -> None:
        if isinstance(told, Repaired):
            sick.wrong = "NaN"

    session = pl.Session(
        trained, pl.Data(train=sick, val=data.val), method=pl.AOFP(theta=0.05, images=256)
    )
    screen, begun = Screen(session), session.state
    page = Page(screen)
    page.put("aim", "macs", 60)
    page.put("aim", "lose", "")
    end = session.listen(fall_ill)
    screen.press("run")
    end()
    assert page.said("error") == ""
    assert session.state.now.cost.macs <= 0.6 * session.state.base.cost.macs
    notes = [e.text for e in session.ledger if isinstance(e, Noted)]
    assert notes == [
        "Of 256 training images 32 hold NaN or infinity: they are excluded from measuring, "
        "solving and training.",
        text.ran(begun, session.state, screen.choice.aims, ""),
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    ("split", "wrong", "said"),
    [
        ("train", "error", "the disk is gone"),
        ("val", "NaN", "NaN on batch"),
        ("val", "error", "the disk is gone"),
        ("loss", "NaN", "NaN"),
        ("loss", "error", "(loss) raised ArithmeticError"),
    ],
)
def test_what_goes_wrong_in_mid_run_is_a_red_line_and_the_session_is_intact(
    trained: Any, data: Any, split: str, wrong: str, said: str
) -> None:
    sick = {name: Sick(getattr(data, name)) for name in ("train", "val")}
    armed: list[str] = []

    def loss(model: Any, batch: Any) -> Any:
        if armed == ["error"]:
            raise ArithmeticError("the loss is gone")
        found = functional.cross_entropy(model(batch[0]), batch[1])
        return found * float("nan") if armed else found

    def fall_ill(told: object) -> None:
        if isinstance(told, Repaired):  # the first move is made
            armed.append(wrong)
            if split != "loss":
                sick[split].wrong = wrong

    session = pl.Session(
        trained,
        pl.Data(**sick, test=data.test),
        method=pl.GroupFisher() if split == "loss" else pl.AOFP(theta=0.05, images=256),
        loss=loss if split == "loss" else None,
    )
    screen = Screen(session)
    page = Page(screen)
    page.put("aim", "macs", 60)
    page.put("aim", "lose", "")
    end = session.listen(fall_ill)
    screen.press("run")
    assert said in page.said("error")
    assert session.state.moves == 1
    assert (session.busy, page.said("work")) == (None, "")
    assert page.on >= {"undo"} and "stop" not in page.on
    kept = [type(event).__name__ for event in session.ledger]
    assert kept in (kept[:4], [*kept[:4], "Proposed"]), "what was found before it is kept"
    end()
    mark = fingerprint(session.model)
    assert mark == session.state.now.event.fingerprint
    armed.clear()
    for batches in sick.values():
        batches.wrong = ""
    screen.press("run")
    assert page.said("error") == ""
    assert session.state.now.cost.macs <= 0.6 * session.state.base.cost.macs
    screen.close()


def test_a_verb_that_leaves_no_event_leaves_no_progress_bar(
    trained: Any, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.05, images=128))
    screen = pl.show(session)
    monkeypatch.setattr(screen._throttle, "due", lambda: True)
    shown: list[str] = []
    session.listen(lambda _: shown.append(Page(screen).said("work")))
    session.evaluate()
    assert len(shown) > 1
    assert all(shown[:-1])
    assert shown[-1] == ""
    screen.close()


def test_layers_that_a_proposal_factorises_are_shown_and_adjusted_before_it_is_approved(
    data: pl.Data,
) -> None:
    session = pl.Session(pl.zoo.load("vgg8"), data, pl.SpatialFactorisation())
    screen = pl.show(session)
    screen.press("propose")
    wait_until(lambda: screen.choice.group == "conv7.0", 60)
    shown = screen.choice.info()
    row = next(row for row in shown.widths.rows if row.name == "conv7.0")
    assert row.proposed < row.now == 384
    assert len(shown.importance.units) == 384
    screen.choice.keep("conv7.0", 50)
    assert len(screen.choice.drop["conv7.0"]) == 334
    screen.press("reject")
    wait_until(lambda: "conv7.0" not in screen.choice.layers)
    assert screen.choice.group in screen.choice.layers
