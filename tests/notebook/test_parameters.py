"""The method's section: boxes for a dataclass's fields, and effects of their changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from page import Page

import prunelab as pl
from prunelab.errors import InvalidValue
from prunelab.ledger.events import Proposed
from prunelab.methods.base import parameters
from prunelab.notebook import Screen, text
from prunelab.notebook.parameters import choices, hints_of, kind_of, read, written


@dataclass(frozen=True)
class Mine:
    """A method of one's own, with a field of every kind."""

    name: ClassVar[str] = "mine"

    ratio: float = 0.5
    rounds: int = 3
    greedy: bool = False
    order: Literal["up", "down"] = "up"
    start: Literal["here"] | None = None
    layer: str = "conv1"
    place: str | None = None
    shares: float | Mapping[str, float] = field(default_factory=lambda: {"conv1": 0.5})

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError("ratio is a share")

    def search(self, context: Any) -> Any:
        """Find nothing."""
        yield from ()


@pytest.fixture
def screen(session: pl.Session) -> Iterator[Screen]:
    made = pl.show(session)
    yield made
    made.close()


@pytest.fixture
def page(screen: Screen) -> Page:
    """The screen with the method's section open."""
    made = Page(screen)
    made.unfold("method")
    return made


def kinds(page: Page) -> dict[str, str]:
    boxes = [e for e in page.elements if e.get("data-do") == "parameter"]
    return {e["data-arg"]: e.get("type", e.tag) for e in boxes}


# ---------------------------------------------------------------- fields become boxes


def test_every_field_of_the_method_has_a_box_with_its_value(
    screen: Screen, session: pl.Session
) -> None:
    page = Page(screen)
    assert "Method: AOFP · theta 0.05" in page.html
    assert list(kinds(page)) == ["theta"], "the others are closed at first"
    page.unfold("method")
    wanted = parameters(session.method)
    assert list(kinds(page)) == list(wanted)
    assert page.value("parameter", "images") == "128"
    assert page.value("parameter", "theta") == "0.05"
    assert page.value("parameter", "at") == ""


def test_the_box_fits_the_type(page: Page, session: pl.Session) -> None:
    session.method = Mine()
    assert kinds(page) == {
        "ratio": "number",
        "rounds": "number",
        "greedy": "checkbox",
        "order": "select",
        "start": "select",
        "layer": "text",
        "place": "text",
        "shares": "text",
    }
    assert page.find("parameter", "rounds")["step"] == "1"
    assert "A method of one's own" in page.said("hint")
    assert page.said("words") == "", "no theta, no words of it"


@pytest.mark.parametrize(
    ("name", "given", "becomes"),
    [
        ("ratio", 0.25, 0.25),
        ("rounds", 7, 7),
        ("greedy", True, True),
        ("order", "'down'", "down"),
        ("start", "'here'", "here"),
        ("layer", "conv2", "conv2"),
        ("place", "bn", "bn"),
        ("shares", "0.3", 0.3),
        ("shares", "{'conv2': 0.1}", {"conv2": 0.1}),
    ],
)
def test_a_box_changes_its_field_and_no_other(
    page: Page, session: pl.Session, name: str, given: Any, becomes: Any
) -> None:
    session.method = Mine()
    page.put("parameter", name, given)
    assert session.method == replace(Mine(), **{name: becomes})
    assert page.said("error") == ""


def test_unknown_and_odd_annotations_get_a_text_box_or_go_by_the_value() -> None:
    assert kind_of(None, 3) == "whole"
    assert kind_of(int, 2.5) == "text"
    assert kind_of(float, 1) == "number"
    assert kind_of(float, float("inf")) == "text"
    assert kind_of(tuple[int, ...], (1, 2)) == "text"
    assert choices(Literal["a"] | None) == ("a", None)
    assert choices(int | None) == ()

    class Odd:
        field: NotThere  # type: ignore[name-defined]  # noqa: F821

    assert hints_of(Odd) == {}


@pytest.mark.parametrize("value", [None, "bn", 0.25, (1, 2), {"conv1": 0.5}, True])
def test_what_is_written_can_be_read(value: Any) -> None:
    hint = str | None if value is None or isinstance(value, str) else Any
    assert read(written(value), hint) == value


# ---------------------------------------------------------------- changes


def test_propose_uses_the_parameters_and_the_script_writes_them(
    page: Page, session: pl.Session, tmp_path: Path
) -> None:
    page.put("parameter", "theta", 0.2)
    page.put("parameter", "images", 64)
    page.screen.press("propose")
    made = session.ledger[-1]
    assert isinstance(made, Proposed)
    assert made.parameters == parameters(pl.AOFP(theta=0.2, images=64))
    script = session.export(tmp_path / "again.py").read_text()
    began, changed = script.index("theta=0.05"), script.index("theta=0.2")
    assert began < script.index("session.method = ") < changed < script.index("session.propose()")
    assert len(session.ledger) == 2, "a change of parameters is not an event"


def test_a_bad_value_is_a_red_line_and_changes_nothing(page: Page, session: pl.Session) -> None:
    before = session.method
    page.put("parameter", "theta", -1)
    assert "theta is a share of a layer's signal" in page.said("error")
    assert session.method is before
    assert page.value("parameter", "theta") == "0.05"
    page.put("parameter", "at", "moon")
    assert "at is one of conv, bn" in page.said("error")
    assert page.value("parameter", "at") == ""
    page.put("parameter", "theta", 0.1)
    assert page.said("error") == ""


def test_trouble_in_ones_own_validation_is_a_red_line_too(page: Page, session: pl.Session) -> None:
    session.method = Mine()
    page.put("parameter", "ratio", 2)
    assert "ValueError: ratio is a share" in page.said("error")
    page.put("parameter", "shares", "{")
    assert "not a value in Python" in page.said("error")
    assert session.method == Mine()
    with pytest.raises(InvalidValue):
        read("{", Any)


def test_the_boxes_follow_what_code_sets_in_every_screen(page: Page, session: pl.Session) -> None:
    other = Page(Screen(session))
    other.unfold("method")
    session.method = pl.AOFP(theta=0.03)
    assert page.value("parameter", "theta") == other.value("parameter", "theta") == "0.03"
    page.put("parameter", "theta", 0.04)
    assert other.value("parameter", "theta") == "0.04"
    assert "Method: AOFP · theta 0.04" in other.html
    other.screen.close()


def test_methods_keep_their_parameters_while_others_are_tried(
    page: Page, session: pl.Session
) -> None:
    session.method = Mine(rounds=9)
    assert "mine" in {e.get("value") for e in page.elements if e.tag == "option"}
    page.put("method", None, "aofp")
    assert session.method == pl.AOFP(theta=0.05, images=128)
    page.put("method", None, "mine")
    assert session.method == Mine(rounds=9)


def test_boxes_rest_while_a_verb_is_at_work(page: Page, session: pl.Session) -> None:
    seen: set[bool] = set()
    session.listen(lambda told: seen.add("disabled" in page.find("parameter", "theta")))
    page.screen.press("propose")
    assert True in seen
    assert "disabled" not in page.find("parameter", "theta")


# ---------------------------------------------------------------- theta


@pytest.mark.parametrize(
    ("theta", "words"),
    [
        (0.02, "0.020 = stop where a layer would lose more than 2.0% of its signal"),
        (0.125, "0.125 = stop where a layer would lose more than 12.5% of its signal"),
        (0.0005, "0.00050 = stop where a layer would lose more than 0.050% of its signal"),
        (1.0, "1.0 = stop where a layer would lose more than 100% of its signal"),
        (0, "0.0 = stop where a layer would lose more than 0.0% of its signal"),
    ],
)
def test_theta_reads_in_words(theta: float, words: str) -> None:
    assert text.theta(theta) == words


def test_the_slider_moves_theta_to_two_digits(page: Page, session: pl.Session) -> None:
    page.put("theta", None, -1.55)  # the slider counts in decades
    assert session.method == replace(pl.AOFP(theta=0.028), images=128)
    assert page.value("parameter", "theta") == "0.028"
    assert "0.028 = stop where" in page.said("words")
    page.put("parameter", "theta", 0)
    assert page.said("error") == "", "zero has no logarithm but is a theta"
    assert page.value("parameter", "theta") == "0"


def test_a_new_theta_redraws_the_search_as_it_would_have_gone(
    page: Page, session: pl.Session
) -> None:
    page.screen.press("propose")
    page.screen.press("reject")
    drawn = page.screen._info()
    page.put("parameter", "theta", 0.3)
    foreseen = page.screen._info()
    assert foreseen.ladder != drawn.ladder
    assert len(session.ledger) == 3, "nothing was asked of the session"
    page.screen.press("propose")
    assert page.screen.choice.group == foreseen.ladder.group
    assert page.screen._info().ladder == foreseen.ladder
    assert page.screen._info().importance.values == foreseen.importance.values


def test_a_pending_proposal_made_with_another_theta_says_so(
    page: Page, session: pl.Session
) -> None:
    page.screen.press("propose")
    assert text.OUTDATED not in page.said("hint")
    page.put("parameter", "theta", 0.3)
    assert text.OUTDATED in page.said("hint")
    page.put("parameter", "theta", 0.05)
    assert text.OUTDATED not in page.said("hint")


def test_only_a_new_search_can_tell_once_the_network_or_the_measure_changed(
    page: Page, session: pl.Session
) -> None:
    page.screen.press("propose")
    page.put("parameter", "at", "bn")
    page.put("parameter", "theta", 0.3)
    assert page.screen._info().ladder.theta == 0.05
    page.put("parameter", "at", "")
    page.put("parameter", "theta", 0.3)
    assert page.screen._info().ladder.theta == 0.3
    page.click("back")
    page.screen.press("approve")
    assert page.screen._info().ladder.theta == 0.05
