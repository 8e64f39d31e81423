"""The report: one page with every step of a session, without external resources or scripts."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import prunelab as pl
from prunelab.errors import InvalidValue, MissingPackage
from prunelab.figures import board_info, report, svg
from prunelab.figures.importance import draw_importance
from prunelab.figures.ladder import draw_ladder
from prunelab.figures.report import scenes
from prunelab.figures.trajectory import draw_trajectory
from prunelab.ledger.events import Event, Noted
from prunelab.ledger.ledger import Ledger
from prunelab.ledger.state import fold
from prunelab.ledger.store import FileStore
from prunelab.session.report_what_if import what_if
from prunelab.values import FrozenMap

HOSTILE = "</script><script>alert('{{data}}')</script><img src=x onerror=alert(2)> & \u2028"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, trained: nn.Module, data: pl.Data) -> Path:
    """The file of a session in which everything happened once."""
    path = tmp_path_factory.mktemp("session") / "run.prunelab"
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.05, images=64), path=path)
    session.propose()
    session.reject(HOSTILE)
    session.method = pl.AOFP(theta=0.3, images=64)
    move = session.propose()
    assert move is not None
    session.adjust(move.drop)
    session.approve()
    session.undo()
    session.note(HOSTILE)
    session.tune(steps=1)
    return path


@pytest.fixture(scope="module")
def events(path: Path) -> list[Event]:
    return list(Ledger(FileStore.open(path)))


class Page(HTMLParser):
    """What a browser would find in a page: elements with their attributes, and their text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = [""]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1], data))

    def inside(self, tag: str) -> list[str]:
        return [text for place, text in self.texts if place == tag]


def data_of(page: str) -> dict[str, Any]:
    """The steps and pictures, read as the page's own script reads them."""
    start = page.index('<script id="data" type="application/json">')
    start = page.index(">", start) + 1
    found: dict[str, Any] = json.loads(page[start : page.index("</script>", start)])
    return found


def steps_of(page: str) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = data_of(page)["steps"]
    return steps


# ---------------------------------------------------------------- the steps


def test_every_event_has_a_step_and_a_repair_shares_that_of_its_approve(
    events: list[Event],
) -> None:
    kinds = [type(event).__name__ for event in events]
    assert kinds == [
        *("Began", "Proposed", "Rejected", "Proposed", "Adjusted"),
        *("Approved", "Repaired", "Undone", "Noted", "Tuned"),
    ]
    assert [scene.seq for scene in scenes(events)] == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_a_step_shows_the_state_of_its_moment(events: list[Event]) -> None:
    for scene in scenes(events):
        state = fold(events[: scene.seq + 1])
        assert scene.line == state.line()
        rows = {row[0]: row[1:] for row in scene.costs}
        now = state.now.cost.macs / state.base.cost.macs
        assert rows["MACs"][1].endswith(f"({now:.1%})")
        assert (rows["MACs"][2] != "") == (state.pending is not None)
        assert rows["validation accuracy"][1] == f"{state.now.metrics['accuracy']:.1%}"


def test_a_step_says_what_happened(events: list[Event]) -> None:
    said = {scene.seq: scene.sentence for scene in scenes(events)}
    assert said[0] == "The network before the first move."
    assert said[1].startswith("AOFP proposes to drop ")
    assert said[2] == f"Rejected ({HOSTILE}): nothing was changed."
    assert said[4].startswith("You propose to drop ")
    assert said[6].startswith("Approved and repaired: validation accuracy ")
    assert said[7] == "Undone: move 1; the network is the original again."
    assert said[8] == HOSTILE
    assert said[9].startswith("Tuned for 1 step: ")


def test_the_pictures_are_the_screens_own_of_the_group_that_loses_most(
    events: list[Event],
) -> None:
    scene = scenes(events)[1]
    state = fold(events[:2])
    assert state.pending is not None
    group = max(state.pending.drop, key=lambda name: len(state.pending.drop[name]))
    info = board_info(state, group)
    assert scene.pictures[0] == svg(draw_importance(info.importance))
    assert scene.pictures[1] == svg(draw_ladder(info.ladder))
    assert scene.pictures[-1] == svg(draw_trajectory(info.trajectory))


def test_the_group_stays_until_the_next_proposal(events: list[Event]) -> None:
    titles = [re.search("Importance in [^<]*", "".join(s.pictures)) for s in scenes(events)]
    shown = [title and title[0] for title in titles]
    assert shown[0] is None, "before the first proposal there is nothing to see"
    assert shown[1] == shown[2], "rejected"
    assert shown[4:] == shown[3:4] * 5, "approved, undone, noted and tuned"


def test_layers_say_which_groups_are_shown_and_coupled(events: list[Event]) -> None:
    layers = {"conv1": ("conv1",), "conv3": ("conv3", "twin")}
    made = scenes(events, layers)[0]
    assert [row[0] for row in made.groups] == ["conv1", "conv3 (2 layers)"]
    assert "coupled" in made.pictures[0]


def test_every_group_says_what_it_would_lose_and_how_it_was_searched(events: list[Event]) -> None:
    scene, state = scenes(events)[3], fold(events[:4])
    assert state.pending is not None
    rows = {row[0]: row[1:] for row in scene.groups}
    for name, width in state.began.widths.items():
        original, now, proposed, lost, search = rows[name]
        assert (original, now) == (str(width), str(width))
        drop = state.pending.drop.get(name, ())
        assert proposed == (str(width - len(drop)) if drop else "")
        assert bool(lost) is bool(drop)
        assert ("< theta 0.3" in search) is bool(drop)


def test_costs_by_layer_are_shown_where_they_are_known(session: pl.Session) -> None:
    session.propose()
    full = pl.WidthPlan.full(session.plan.graph)
    events = list(session.ledger)
    asked = []

    def costs(kept: FrozenMap | None, factors: FrozenMap) -> dict[str, pl.Cost]:
        assert not factors
        asked.append(kept)
        plan = full if kept is None else pl.WidthPlan(kept, full.graph)
        return session.costs(plan)

    assert scenes(events)[1].layers == ()
    assert len(scenes(events, None, costs)[1].layers) == 3
    proposed = full.drop(session.state.pending.drop)
    assert proposed.kept in asked


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def text(events: list[Event]) -> str:
    return report(events)


def test_the_page_holds_every_step_and_the_whole_history(text: str, events: list[Event]) -> None:
    data = data_of(text)
    for step, scene in zip(data["steps"], scenes(events), strict=True):
        assert (step["line"], step["sentence"]) == (scene.line, scene.sentence)
        assert [tuple(row) for row in step["groups"]] == list(scene.groups)
        assert [data["pictures"][number] for number in step["pictures"]] == list(scene.pictures)
    rows = re.findall(r"<tr><td>(?:<s>)?(\d+)", text)
    assert rows == [str(event.seq) for event in reversed(events)]
    assert "Approved" in Page(text).inside("s"), "what was undone is struck through"


def test_a_picture_stands_in_the_page_once(text: str) -> None:
    pictures = data_of(text)["pictures"]
    assert len(pictures) == len(set(pictures))


def test_the_history_says_who_decided_and_why(text: str) -> None:
    cells = Page(text).inside("td")
    assert {"AOFP", "you"} <= set(cells)
    assert HOSTILE in cells, "the reason of the reject"
    assert [cell for cell in cells if re.fullmatch(r"removes at most .*% .* \(theta 0.3\)", cell)]


def test_the_page_needs_no_other_file_and_is_small(text: str) -> None:
    page = Page(text)
    loading = {"src", "href", "srcset", "data", "poster", "action", "background"}
    assert [item for item in page.elements if loading & set(item[1])] == []
    assert {tag for tag, _ in page.elements} & {"link", "img", "iframe", "object", "embed"} == set()
    styles = " ".join(page.inside("style"))
    assert "url(" not in styles
    assert "@import" not in styles
    policies = [a["content"] for tag, a in page.elements if "http-equiv" in a]
    assert policies[0] is not None
    assert "default-src 'none'" in policies[0], "and the browser sees to it"
    assert len(text) < 300_000


def test_what_people_write_stays_text(text: str) -> None:
    page = Page(text)
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert [tag for tag, _ in page.elements].count("img") == 0
    assert HOSTILE in steps_of(text)[7]["sentence"]
    assert "".join(page.inside("td")).count(HOSTILE) == 2


def test_a_hostile_name_of_a_network_stays_text(events: list[Event]) -> None:
    began = replace(events[0], network="<img src=x>{{data}}")  # type: ignore[call-arg]
    page = Page(report([began]))
    assert "<img src=x>{{data}}, pruned to 100.0% of its MACs" in page.inside("h1")
    assert [tag for tag, _ in page.elements].count("img") == 0


def test_a_metric_that_is_no_number_leaves_the_data_readable(events: list[Event]) -> None:
    odd = FrozenMap({"score": float("nan")})
    (step,) = steps_of(report([replace(events[0], metrics=odd)]))  # type: ignore[call-arg]
    assert "nan" not in "".join(data_of(report([replace(events[0], metrics=odd)]))["pictures"])  # type: ignore[call-arg]
    assert ["validation score", "nan", "nan", ""] in step["costs"]


def test_the_same_events_give_the_same_page(text: str, events: list[Event]) -> None:
    assert report(events) == text
    assert report([*events, Noted(seq=len(events), text="more")]) != text


# ---------------------------------------------------------------- session.export


def test_a_session_and_its_file_give_the_same_report(
    path: Path, trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    session = pl.Session.open(path, model=trained, data=data)
    written = session.export(tmp_path / "run.html")
    layers = {group.name: group.producers for group in session.graph.groups if group.prunable}
    full = pl.WidthPlan.full(session.plan.graph)

    def costs(kept: FrozenMap | None, factors: FrozenMap) -> dict[str, pl.Cost]:
        return session.costs(full if kept is None else pl.WidthPlan(kept, full.graph))

    events = Ledger(FileStore.open(path))
    assert written.read_text(encoding="utf-8") == report(events, layers, costs, what_if(session))


@pytest.fixture
def no_plotly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in sys.modules if name.startswith("prunelab.figures")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("plotly", "plotly.graph_objects", "plotly.offline"):
        monkeypatch.setitem(sys.modules, name, None)
    yield


@pytest.mark.usefixtures("no_plotly")
def test_without_plotly_it_says_what_to_install(session: pl.Session, tmp_path: Path) -> None:
    with pytest.raises(MissingPackage, match=r"plotly.* is missing: pip install 'prunelab\[lab\]'"):
        session.export(tmp_path / "run.html")
    assert list(tmp_path.iterdir()) == []


def test_other_kinds_are_refused_with_what_there_is(session: pl.Session, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidValue, match=r"\.safetensors, \.onnx, \.pt2, \.json, \.py, \.html, or a folder"
    ):
        session.export(tmp_path / "run.pdf")
