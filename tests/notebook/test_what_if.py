"""The screen's live answers while a user drags and types, and its background jobs."""

from __future__ import annotations

import gc
import io
import threading
import time
from collections.abc import Callable, Iterator
from html import unescape
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ipywidgets.widgets import widget as widgets
from page import Page, elements
from PIL import Image
from torch import nn

import prunelab as pl
from prunelab.errors import Stopped
from prunelab.figures.png import address, grey, png, signed
from prunelab.figures.widths import WidthRow
from prunelab.ledger.events import Proposed, Rejected
from prunelab.ledger.words import share
from prunelab.notebook import Screen, background, text
from prunelab.notebook.channel_inspector import channel
from prunelab.notebook.root import Root
from prunelab.notebook.rows import layers
from prunelab.notebook.view import Table
from prunelab.notebook.worker import worker_of
from prunelab.session import repairing
from prunelab.values import Progress, si


@pytest.fixture
def screen(session: pl.Session) -> Iterator[Screen]:
    made = Screen(session)
    yield made
    made.close()


@pytest.fixture
def page(screen: Screen) -> Page:
    made = Page(screen)
    for name in ("method", "layers"):
        made.unfold(name)
    return made


@pytest.fixture
def shown(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A screen that a page shows, where no rest is needed."""
    monkeypatch.setattr(background, "REST", 0.0)
    screen._told("here", None, False, False)
    return screen


def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


# ---------------------------------------------------------------- answers


def test_a_theta_that_moves_shows_what_the_method_would_propose(
    page: Page, session: pl.Session
) -> None:
    session.measure()
    method = session.method
    page.put("theta", None, -0.7, live=True)
    foreseen = session.foresee(theta=0.2)
    assert page.screen.choice.move == foreseen.move
    assert "with theta 0.20" in page.said("reason").lower()
    assert "0.20 = stop where" in page.said("words")
    assert page.screen._info().ladder.theta == 0.2
    assert session.method is method, "the slider still moves"
    assert len(session.ledger) == 1
    page.put("theta", None, -0.7)
    assert session.method.theta == 0.2
    move = session.propose()
    assert move is not None
    assert move.drop == foreseen.move.drop


def test_a_width_that_is_dragged_takes_the_best_where_there_are_no_scores(
    page: Page, session: pl.Session
) -> None:
    session.measure()
    group = page.screen.choice.group
    width = len(session.plan.kept[group])
    page.put("width", group, width - 2, live=True)
    drop = page.screen.choice.drop[group]
    assert len(drop) == 2
    found = session.foresee({group: drop})
    assert found.best[group].units == drop
    assert page.value("width", group) == str(width - 2)
    assert text.better(page.screen.choice.made, group) == ""
    assert len(session.ledger) == 1


def test_a_worse_choice_is_told_the_best_of_its_size_and_can_take_it(
    page: Page, session: pl.Session
) -> None:
    session.measure()
    group = page.screen.choice.group
    units = session.plan.kept[group]
    alone = {unit: session.foresee({group: [unit]}).damage[group] for unit in units}
    worst = max(alone, key=alone.__getitem__)
    page.put("units", None, worst)
    assert "The best 1 would remove" in page.html
    page.click("best", group)
    assert page.screen.choice.drop[group] == (min(alone, key=alone.__getitem__),)
    page.click("back")
    assert page.screen.choice.drop == {}
    assert page.said("question") == text.START


def test_a_budget_that_is_typed_is_spread_over_the_layers(page: Page, session: pl.Session) -> None:
    session.measure()
    page.put("aim", "macs", 70, live=True)
    move = page.screen.choice.move
    assert move == session.foresee(target_macs=0.7).move
    assert move.after.macs <= 0.7 * session.state.base.cost.macs
    page.screen.press("adjust")
    assert session.state.pending is not None
    assert session.state.pending.drop == move.drop, "with no proposal, the method is asked first"
    assert isinstance(session.ledger[1], Proposed)


def test_only_what_is_shown_can_be_approved(page: Page) -> None:
    page.screen.press("propose")
    assert "approve" in page.on
    page.put("units", None, "0")
    assert "approve" not in page.on
    assert "adjust" in page.on
    page.screen.press("adjust")
    assert "approve" in page.on


def test_without_evidence_a_choice_is_measured_first(page: Page, session: pl.Session) -> None:
    assert session.evidence is None
    page.put("units", None, "0, 1")
    assert session.evidence is not None
    assert page.screen.choice.move is not None
    assert page.said("error") == ""


# ---------------------------------------------------------------- in the background


def test_nothing_is_done_in_the_background_while_no_page_shows_the_screen(
    page: Page, session: pl.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "REST", 0.0)
    page.screen.press("propose")
    page.screen.press("reject")
    assert worker_of(session).wait(5)
    assert page.screen._background._found == {}


def test_a_page_has_the_proposal_tried_and_the_flipped_images_fetched(
    shown: Screen, session: pl.Session
) -> None:
    wait_until(lambda: session.evidence is not None)
    shown.press("propose")
    page = Page(shown)
    wait_until(lambda: page.said("trial").startswith("On 128 validation images, as cut: "))
    page.put("aim", "repair", False)
    page.unfold("changes")
    assert worker_of(session).wait(30)
    trial = session.compare_move()
    assert text.trial(trial) in page.said("trial")
    assert page.html.count("<figure") == min(len(trial.lost) + len(trial.gained), 12)
    before, after = trial.answers
    moved = [i for i in trial.lost if before.given[i] != after.given[i]]
    assert ("Confused: " in page.said("hint")) == bool(moved or trial.gained)
    assert len(session.ledger) == 2, "nothing is written down"
    shown.press("approve")
    assert page.said("trial") == ""
    page.unfold("compare")
    ends = shown.choice.ends
    wait_until(lambda: page.said("trial"))
    assert worker_of(session).wait(30)
    assert text.difference(session.compare(*ends)) == page.said("trial")
    wait_until(lambda: shown._background.step_time() is not None)
    page.unfold("settings")
    assert "400 steps, about" in page.html


def test_the_proposal_is_set_against_the_best_set_of_its_size(
    shown: Screen, session: pl.Session
) -> None:
    session.method = pl.AOFP(theta=0.5, images=128)
    page = Page(shown)
    shown.press("propose")
    move, group = session.state.pending, shown.choice.group
    assert move is not None
    wait_until(lambda: "Proved: " in page.said("proved"))
    gram, units = session.evidence.evidence[group], move.drop[group]
    best = min(gram.damage(some) for some in combinations(gram.units, len(units)))
    excess = gram.damage(units) / best - 1
    near = f"within {share(excess)} of " if excess > 1e-3 else ""
    told = f"Proved: {near}the best {len(units)} channels."
    assert page.said("proved").strip() == told
    shown.press("approve")
    assert page.said("proved") == ""


def test_where_approve_repairs_the_repaired_network_is_tried_too(
    shown: Screen, session: pl.Session
) -> None:
    session.method = pl.AOFP(theta=0.5, images=128)
    page = Page(shown)
    page.put("aim", "macs", 1)
    shown.press("propose")
    wait_until(lambda: "Repaired: " in page.said("trial"))
    cut, mended = session.compare_move(), session.compare_move(repair=True)
    assert cut != mended
    assert page.said("trial") == f"{text.trial(cut)} {text.repaired(mended)}"
    page.unfold("changes")
    alone = text.repaired(mended, alone=True)
    assert page.said("trial").endswith(alone), "the classes are those of what Approve would leave"
    page.put("aim", "repair", False)
    assert "epaired: " not in page.said("trial")
    assert page.said("trial").startswith(text.trial(cut))
    page.put("aim", "repair", True)
    assert alone in page.said("trial"), "known still"
    shown.press("approve")
    assert session.state.now.metrics["accuracy"] == mended.after


def test_a_session_that_repairs_nothing_tries_a_selection_once(
    trained: nn.Module, data: pl.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "REST", 0.0)
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.05, images=128), repair=None)
    screen = Screen(session)
    screen._told("here", None, False, False)
    screen.press("propose")
    Page(screen).put("aim", "repair", True)
    wait_until(lambda: screen._background.step_time() is not None)
    assert Page(screen).said("trial") == text.trial(session.compare_move())
    screen.close()


def test_a_verb_ends_the_trial_of_the_repaired_network(
    shown: Screen, session: pl.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ended = threading.Event(), []
    repair = repairing.repair_towards

    def slow(*given: Any) -> Any:
        try:
            for _ in range(1000):
                began.set()
                time.sleep(0.005)
                yield Progress(0, 1, "repairing")
        finally:
            ended.append(session.busy)
        return (yield from repair(*given))

    monkeypatch.setattr(repairing, "repair_towards", slow)
    shown.press("propose")
    assert began.wait(60)
    page = Page(shown)
    wait_until(lambda: text.REPAIRING in page.said("trial"))
    shown.press("reject")
    assert ended == ["compare_move"]
    assert page.said("error") == page.said("trial") == ""
    assert isinstance(session.ledger[-1], Rejected)


def test_what_fails_in_the_background_is_not_shown_and_not_begun_again(
    shown: Screen, session: pl.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fails(*given: Any, **more: Any) -> Any:
        tries.append(more["repair"])
        raise OSError("the disk is gone")

    monkeypatch.setattr(session, "compare_move", fails)
    shown.press("propose")
    wait_until(lambda: shown._background.step_time() is not None)
    assert tries == [False, True]
    assert (Page(shown).said("trial"), Page(shown).said("error")) == ("", "")


def test_a_trial_that_gave_way_to_a_verb_said_in_code_is_begun_again(
    shown: Screen, session: pl.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, trial, tries = threading.Event(), session.compare_move, []

    def slow(drop: Any, **more: Any) -> Any:
        tries.append(more["repair"])
        if len(tries) > 1:
            return trial(drop, **more)
        began.set()
        wait_until(session._runner._preempted.is_set)
        raise Stopped("it gave way")

    monkeypatch.setattr(session, "compare_move", slow)
    shown.press("propose")
    assert began.wait(60)
    session._runner._preempted.set()
    wait_until(lambda: "Repaired: " in Page(shown).said("trial"))
    assert tries == [False, False, True]


def test_latency_is_shown_as_measured_where_it_was_and_as_estimated_where_it_is_not(
    shown: Screen, session: pl.Session
) -> None:
    page = Page(shown)
    page.unfold("costs")
    wait_until(lambda: 0 in session.latencies and session.evidence is not None)
    assert worker_of(session).wait(30)
    first = session.latencies[0]
    told = f"{text.TOO_NOISY}{text.HERE}" if text.noisy(first) else text.spread(first)
    assert f"{text.MEASURED}{told}" in page.said("tile")
    assert text.measured_tip(first) in unescape(page.html)
    group = next(iter(shown.choice.layers))
    shown._told("width", group, 1, False)
    assert text.MEASURED not in page.said("tile")
    assert text.LATENCY in page.said("tile")
    rows = [e.text for e in page.elements if e.tag == "tr"]
    assert f"{text.MEASURED}{text.spread(first)}{text.spread(first)}" in rows
    assert [row for row in rows if row.startswith(text.LATENCY)]
    shown.press("adjust")
    shown.press("approve")
    assert f"{text.MEASURED}{text.UNKNOWN}" in page.said("tile"), "nothing was measured yet"
    wait_until(lambda: session.state.head in session.latencies)
    assert worker_of(session).wait(30)
    assert session.latencies[0] != first, "the original ran again, in turn with the network now"
    first, second = session.latencies[0], session.latencies[session.state.head]
    told = f"{text.spread(second)}{text.was(first)}"
    told = f"{text.TOO_NOISY}{text.HERE}" if text.noisy(first, second) else told
    assert f"{text.MEASURED}{told}" in page.said("tile")
    assert shown._info().trajectory.path[-1].seconds == second.median
    page.unfold("compare")
    assert f"{text.MEASURED}{text.spread(first)}{text.spread(second)}" in [
        e.text for e in page.elements if e.tag == "tr"
    ]


def test_a_plan_file_is_compared_with_a_point(
    shown: Screen, session: pl.Session, tmp_path: Path
) -> None:
    shown.press("propose")
    shown.press("approve")
    file = session.export(tmp_path / "plan.json")
    shown.press("undo")
    page = Page(shown)
    page.unfold("compare")
    page.put("plan", None, tmp_path / "nothing.json")
    assert "cannot be read" in page.said("error")
    page.put("plan", None, file)
    assert shown.choice.ends == (0, str(file))
    plan = shown.choice.plans[str(file)]
    assert si(pl.cost(plan.graph, plan).macs) in page.html
    assert "disabled" in page.find("go", str(file)), "no point to go to"
    wait_until(lambda: page.said("trial"))
    assert worker_of(session).wait(30)
    assert page.said("trial") == text.difference(session.compare(0, plan))
    page.put("compare", "0", file)
    page.put("compare", "1", 0)
    assert shown.choice.ends == (str(file), 0)


def test_a_button_writes_a_file_and_says_where(
    shown: Screen, session: pl.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = Page(shown)
    page.unfold("export")
    page.click("export", "plan.json")
    assert worker_of(session).wait(30)
    assert (tmp_path / "plan.json").read_text().strip() == session.plan.to_json()
    assert f"Written: {tmp_path.resolve() / 'plan.json'} (" in page.html
    page.put("export", None, tmp_path / "my.py")
    assert worker_of(session).wait(30)
    assert (tmp_path / "my.py").is_file()
    page.put("export", None, "small.pt")
    assert worker_of(session).wait(30)
    assert "small.pt" in page.said("error")
    assert len(session.ledger) == 1


def test_another_verb_ends_what_is_done_in_the_background(session: pl.Session) -> None:
    began, ended = threading.Event(), []

    def slow() -> Any:
        for _ in range(1000):
            began.set()
            time.sleep(0.005)
            yield
        ended.append("done")

    def work() -> None:
        try:
            session._runner.run("trial", slow(), background=True)
        except Stopped:
            ended.append("stopped")

    thread = threading.Thread(target=work)
    thread.start()
    assert began.wait(5)
    session.note("first come")
    thread.join(5)
    assert ended == ["stopped"]
    assert session.busy is None


# ---------------------------------------------------------------- inspecting a channel


def test_a_channel_is_looked_at_without_a_trace(session: pl.Session) -> None:
    before = {name: t.clone() for name, t in session.model.state_dict().items()}
    group = next(g for g in session.graph.groups if g.prunable)
    unit = session.plan.kept[group.name][1]
    look = channel(session, group, unit)
    weight = dict(session.model.named_modules())[group.producers[0]].weight[1].detach()
    assert look.norm == pytest.approx(float(weight.norm()))
    assert len(look.maps) == len(look.inputs) == 4
    assert look.kernels[0].shape == (*weight.shape[1:], 3)
    after = session.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not session.model.training


def test_a_png_is_read_back_as_it_was() -> None:
    generator = np.random.default_rng(0)
    for shape in ((5, 7), (4, 3, 3)):
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        assert np.array_equal(Image.open(io.BytesIO(png(pixels))), pixels)
    assert address(pixels).startswith("data:image/png;base64,")
    assert grey(np.array([[1.0, 3.0]])).tolist() == [[0, 255]]
    assert signed(np.zeros((1, 1)), 1.0).tolist() == [[[255, 255, 255]]]


# ---------------------------------------------------------------- many shows


def test_showing_again_shows_the_same_screen_and_a_closed_one_leaves_nothing(
    session: pl.Session,
) -> None:
    screen = pl.show(session)
    assert pl.show(session) is screen
    assert pl.show(session, theme="dark") is not screen
    pl.show(session, theme="dark").close()
    screen.close()
    assert pl.show(session) is not screen
    pl.show(session).close()

    def around() -> tuple[int, int, int]:
        gc.collect()
        return len(widgets._instances), len(session._runner._listeners), threading.active_count()

    counts = []
    for turn in range(100):
        made = Screen(session)
        if turn % 30 == 0:
            made._draw_again()
        made.close()
        if turn in (0, 99):
            counts.append(around())
    # not equal: a thread of an earlier test may end in between
    assert all(now <= then for then, now in zip(*counts, strict=True)), "none is left behind"


def test_a_screen_that_its_front_end_has_closed_is_made_anew(session: pl.Session) -> None:
    """marimo does so when the cell that made it runs again."""
    screen = pl.show(session)
    screen.comm.close()
    again = pl.show(session)
    assert again is not screen
    assert not again.lost
    assert pl.show(session) is again
    again.close()


def test_a_page_that_is_loaded_anew_is_sent_every_part(
    session: pl.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    screen = Screen(session)
    monkeypatch.setattr(screen, "send_state", sent.append)
    screen._told("here", None, False, False)
    assert not any("html_form" in keys for keys in sent), "it came with everything"
    screen._told("here", None, False, False)
    (keys,) = (keys for keys in sent if {"html_form", "html_history"} <= {*keys})
    assert "_esm" not in keys, "a page that is sent its code makes every view anew"
    screen.close()


def test_a_message_that_comes_twice_is_dealt_with_once_and_answered_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    panel = Root(("form",), ("state",), lambda *what: told.append(what))
    panel.complete()
    answers: list[Any] = []
    monkeypatch.setattr(panel, "send_state", lambda key: answers.append(key))
    message = {"n": "1.1", "do": "press", "arg": "stop", "value": None, "live": False}
    for content in (message, message, {**message, "n": "1.2"}):
        panel._hear(panel, content, None)
    assert told == [("press", "stop", None, False)] * 2
    assert answers.count("_heard") == 3
    panel.close()


def test_a_network_of_200_layers_is_gathered_by_module_and_can_be_searched() -> None:
    rows = tuple(
        WidthRow(f"stage{i // 50}.block{i % 50}.conv", 64, 64, 60, (f"conv{i}",))
        for i in range(200)
    )
    view = SimpleNamespace(
        info=SimpleNamespace(widths=SimpleNamespace(rows=rows)),
        group=SimpleNamespace(name=rows[120].name),
        drop={},
        move=None,
        at_work=(),
        layer_costs={},
        seconds=None,
        table=Table(),
    )
    found = elements(layers(view))
    assert len([e for e in found if "data-row" in e]) == 200
    modules = [e for e in found if e.has("pl-module")]
    assert [e["data-key"] for e in modules] == [f"stage{i}" for i in range(4)]
    assert ["open" in e for e in modules] == [False, False, True, False], "the chosen layer's"
    assert "stage0: 50 layers, 3200 → 3000 channels" in [e.text for e in found]
    assert any(e.get("data-filter") == "layers" for e in found)
