"""How verbs end: with a sentence, on the screen and in the history."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from page import Page

import prunelab as pl
from prunelab.figures.board import SIGNS
from prunelab.ledger import history_words, words
from prunelab.ledger.events import Noted, Proposed, Rejected, Undone
from prunelab.notebook import Screen, text
from prunelab.notebook.parameters import tips_of, values_of
from prunelab.notebook.view import Aims
from prunelab.notebook.worker import worker_of
from prunelab.session.export import to_script
from prunelab.values import Progress


@pytest.fixture
def screen(session: pl.Session) -> Iterator[Screen]:
    made = Screen(session)
    yield made
    made.close()


@pytest.fixture
def page(screen: Screen) -> Page:
    made = Page(screen)
    for name in ("method", "history", "export"):
        made.unfold(name)
    return made


def last_said(page: Page) -> str:
    """The outcome in the history, which the screen says too."""
    event = page.screen.session.ledger[-1]
    assert isinstance(event, Noted)
    assert event.text in page.said("reason")
    assert event.text in unescape(page.html)
    return event.text


# ---------------------------------------------------------------- run, tune, propose


def test_a_run_says_that_its_aim_is_met(page: Page) -> None:
    page.put("aim", "macs", 70)
    page.put("aim", "lose", "")
    page.screen.press("run")
    said = last_said(page)
    assert said.startswith("Run ended after ")
    assert "the aim of 70% of the MACs is met, with " in said
    assert "Validation accuracy " in said
    page.screen.press("run")
    assert last_said(page).startswith("Run changed nothing: the aim of 70% of the MACs is already")


def test_a_run_says_that_it_made_its_moves(page: Page) -> None:
    page.put("aim", "macs", 20)
    page.put("aim", "lose", "")
    page.put("aim", "moves", 1)
    page.screen.press("run")
    assert "Run ended after 1 move, as many as Settings allow: " in last_said(page)


def test_a_run_that_cannot_reach_its_aim_says_so(page: Page) -> None:
    page.put("aim", "lose", "")
    page.screen.choice.aims = Aims(macs=0.1, lose=None)
    page.screen.press("run")
    assert " of the MACs: aofp cannot reach 0.1% of the MACs" in last_said(page)
    assert page.said("error") == ""


def test_a_run_that_stops_at_its_floor_says_so_once(page: Page, session: pl.Session) -> None:
    session.method = pl.AOFP(theta=0.5, images=128)
    page.screen.choice.aims = Aims(macs=10, lose=0.0)
    page.screen.press("run")
    said = [event for event in session.ledger if isinstance(event, Noted)]
    assert [event.kind for event in said] == ["run"]
    assert last_said(page).startswith("The run stopped at ")


@pytest.mark.parametrize("verb", ["run", "tune", "propose"])
def test_a_verb_that_is_stopped_says_so(page: Page, session: pl.Session, verb: str) -> None:
    page.put("aim", "macs", 20)
    page.put("aim", "lose", "")
    fingerprint = session.state.now.event.fingerprint

    def stop(told: Any) -> None:
        if isinstance(told, Progress):
            session.stop()

    end = session.listen(stop)
    page.screen.press(verb)
    end()
    said = last_said(page)
    assert "stopped" in said
    assert ("after 1 of " in said) == (verb == "tune")
    assert session.state.now.event.fingerprint == fingerprint
    assert page.said("error") == ""


def test_a_search_that_finds_nothing_says_what_to_do(page: Page, session: pl.Session) -> None:
    session.method = pl.AOFP(theta=1e-9, images=64)
    page.screen.press("propose")
    assert session.state.exhausted
    assert page.said("reason") == words.nothing(session.state.proposed)
    assert "carries more than 1e-07% of the signal. Raise theta" in page.said("reason")


# ---------------------------------------------------------------- the aim


def test_an_aim_typed_before_evidence_is_ready_is_answered_with_it(
    page: Page, session: pl.Session
) -> None:
    page.put("aim", "macs", 70, live=True)
    assert text.AWAITED in page.said("hint")
    assert page.screen.choice.made is None
    session.measure()
    page.screen._changed()
    assert text.AWAITED not in page.said("hint")
    assert page.screen.choice.move == session.foresee(target_macs=0.7).move


def test_an_aim_that_is_met_says_so(page: Page, session: pl.Session) -> None:
    session.run(target_macs=0.8, min_accuracy=None)
    session.measure()
    page.put("aim", "macs", 90)
    assert "The aim of 90% of the MACs is met already, with " in page.said("hint")
    page.screen.press("propose")
    assert "The aim of 90% of the MACs is met already, with " in page.said("hint")


@pytest.mark.parametrize("method", ["aofp", "magnitude"])
def test_propose_keeps_to_the_aim(page: Page, session: pl.Session, method: str) -> None:
    large = {"aofp": pl.AOFP(theta=0.9, images=64), "magnitude": pl.Magnitude(pruning_ratio=0.7)}
    session.method = large[method]
    beyond = session.what_if(session.propose().drop)
    session.reject("too much")
    goal = 0.9 * session.state.base.cost.macs
    assert beyond.after.macs < goal
    page.put("aim", "macs", 90)
    page.screen.press("propose")
    pending = session.state.pending
    assert pending is not None
    assert beyond.after.macs < pending.after.macs
    events = [type(event) for event in session.ledger][3:]
    again = [Proposed, Rejected, Proposed] if method == "aofp" else [Proposed]
    assert events == again, "what goes beyond the aim is told in the history"


# ---------------------------------------------------------------- theta on a pending proposal


def test_a_theta_released_on_a_proposal_is_an_offer(page: Page, session: pl.Session) -> None:
    session.measure()
    page.put("aim", "macs", 1)
    page.screen._told("back", None, None, False)
    page.screen.press("propose")
    first = session.state.pending
    page.put("theta", None, -0.3, live=True)
    page.put("theta", None, -0.3)
    assert session.state.pending == first
    offered = page.screen.choice.move
    assert offered != first
    assert page.said("question").endswith(" instead?")
    assert page.screen._info().ladder.theta == 0.5, "the line is that of the offer"
    assert text.OFFER in page.html
    page.click("instead")
    assert worker_of(session).wait(10)
    assert session.state.pending.drop == offered.drop
    assert [type(event) for event in session.ledger][-2:] == [Rejected, Proposed]


def test_back_from_an_offer_also_brings_theta_back(page: Page, session: pl.Session) -> None:
    session.measure()
    page.screen.press("propose")
    drawn, theta = page.screen._info(), session.method.theta
    for do, arg, value in (("theta", None, -0.3), ("parameter", "theta", 0.4)):
        page.put(do, arg, value)
        assert page.screen._info() != drawn
        page.click("back")
        assert page.screen._info() == drawn
        assert session.method.theta == theta


# ---------------------------------------------------------------- the guard


def judged(value: float, higher: bool, name: str = "iou") -> Any:
    """A state whose original has this value of its first metric."""
    point = SimpleNamespace(metrics={name: value})
    began = SimpleNamespace(
        settings={"higher_is_better": higher, "repair": None}, metrics=point.metrics
    )
    return SimpleNamespace(base=point, began=began)


@pytest.mark.parametrize(
    ("state", "lose", "floor"),
    [
        (judged(0.62, True), 0.031, 0.589),
        (judged(2.4, False, "loss"), 0.12, 2.52),
        (judged(0.9, True, "accuracy"), 2.0, 0.88),
        (judged(-3.0, True, "score"), 0.15, -3.15),
        (judged(0.0, True), None, None),
        (judged(float("nan"), True), None, None),
    ],
)
def test_the_guard_speaks_the_metrics_own_unit(
    state: Any, lose: float | None, floor: float | None
) -> None:
    aims = Aims.of(state)
    assert aims.lose == lose
    assert aims.floor(state) == (None if floor is None else pytest.approx(floor))


def test_the_guard_of_a_metric_where_low_is_good_says_so(
    trained: torch.nn.Module, data: pl.Data
) -> None:
    loss = lambda model, loader: 0.25  # noqa: E731
    session = pl.Session(trained, data, metrics={"depth error": (loss, "lower")})
    screen = Screen(session)
    page = Page(screen)
    assert "Depth error may rise by" in page.html
    assert page.value("aim", "lose") == "0.013"
    assert "Low is good" in page.html
    screen.close()


# ---------------------------------------------------------------- undo, export, the trajectory


def test_undo_with_a_proposal_pending_is_two_steps(page: Page, session: pl.Session) -> None:
    for _ in range(2):
        page.screen.press("propose")
        page.screen.press("approve")
    page.screen.press("propose")
    head = session.state.head
    page.screen.press("undo")
    assert (session.state.pending, session.state.head) == (None, head)
    assert page.said("reason") == "The proposal is discarded; the network is unchanged."
    page.screen.press("undo")
    assert session.state.moves == 1
    assert page.said("reason") == "Undone: move 2; the network is as after move 1 again."
    page.screen.press("undo")
    assert page.said("reason") == "Undone: move 1; the network is the original again."
    assert [
        history_words.told(e, session.state) for e in session.ledger if isinstance(e, Undone)
    ] == [
        "the proposal",
        "move 2",
        "move 1",
    ]
    assert "session.undo(only_proposal=True)" in to_script(session)


def test_an_export_that_fails_says_so_where_it_was_pressed(page: Page, tmp_path: Path) -> None:
    def export(name: str) -> None:
        page.screen._told("export", None, name, False)
        assert worker_of(page.screen.session).wait(20)

    export(str(tmp_path / "none" / "plan.json"))
    assert "There is no folder" in page.screen.part("export")
    assert "There is no folder" not in page.screen.part("form")
    export(str(tmp_path / "plan.json"))
    assert "There is no folder" not in page.screen.part("export")
    assert "Written: " in page.screen.part("export")


def test_a_click_on_a_point_opens_its_comparison(page: Page, session: pl.Session) -> None:
    page.screen.press("propose")
    page.screen.press("approve")
    revealed = page.screen.choice.revealed
    page.screen._told("point", None, 0, False)
    assert f'data-reveal="{revealed + 1}"' in page.screen.part("compare")
    assert page.screen.choice.ends == (session.state.head, 0)
    assert "move 1: " in page.screen.part("compare")
    assert "the original: 100% of the MACs" in page.screen.part("compare")


# ---------------------------------------------------------------- words and signs


def test_a_move_by_hand_is_told_as_such(page: Page, session: pl.Session) -> None:
    session.propose()
    session.adjust({"conv1": [0, 3]})
    session.note("a note in between")
    assert page.said("reason").startswith("You propose to drop 2 of 12 channels in conv1")
    assert "by hand: conv1 -2" in page.screen.part("history")


def test_the_legend_lists_what_is_shown(page: Page) -> None:
    def shown() -> set[str]:
        return {name for name in SIGNS if f"</span> {name}</span>" in page.screen.part("key")}

    assert shown() == {"kept", "coupled layers"}
    page.screen.press("propose")
    proposed = {"proposed to drop", "theta", "where the proposal leads"}
    assert shown() == {"kept", "coupled layers", *proposed}
    page.screen.press("approve")
    page.screen.press("undo")
    assert "undone" in shown()


def test_every_parameter_has_a_tooltip_of_its_own(page: Page) -> None:
    tips = tips_of(pl.AOFP)
    assert set(tips) == set(values_of(pl.AOFP()))
    assert tips["images"] == "Exact: how many training images are measured."
    assert f'title="{tips["max_theta"]}"' in unescape(page.screen.part("method"))


# ---------------------------------------------------------------- two screens of a session


def test_work_aside_on_one_screen_leaves_the_verbs_of_another(session: pl.Session) -> None:
    screen, other = Screen(session), Screen(session)
    seen: list[set[str]] = []
    begun, go_on = threading.Event(), threading.Event()

    def look(told: Any) -> None:
        if isinstance(told, Progress) and session.aside and not begun.is_set():
            seen.append(Page(other).on)
            begun.set()
            go_on.wait(5)

    end = session.listen(look)  # after those of the screens
    aside = threading.Thread(target=lambda: suppressed(session), daemon=True)
    aside.start()
    assert begun.wait(10)
    seen.append(Page(other).on)
    go_on.set()
    other._click("propose")
    assert worker_of(session).wait(20)
    aside.join(5)
    end()
    assert all("propose" in on for on in seen)
    assert session.state.pending is not None
    for made in (screen, other):
        made.close()


def suppressed(session: pl.Session) -> None:
    """Measure in the background, which a verb ends."""
    try:
        session.measure(background=True)
    except pl.errors.Stopped:
        return
