"""The fold of the method: boxes for a dataclass's fields, and what a change of them does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from html import unescape
from pathlib import Path
from typing import Any, ClassVar, Literal

import ipywidgets as ipw
import numpy as np
import pytest

import prunelab as pl
from prunelab.errors import InvalidValue
from prunelab.figures.ladder import rejudged
from prunelab.ledger import Proposed
from prunelab.methods.contract import parameters
from prunelab.methods.halving import judge
from prunelab.notebook import Screen, text
from prunelab.notebook.parameters import choices, hints_of, kind_of, read, written
from prunelab.values import Rung


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


def boxes(screen: Screen) -> dict[str, Any]:
    return screen.parameters.boxes


# ---------------------------------------------------------------- fields become boxes


def test_every_field_of_the_method_has_a_box_with_its_value(
    screen: Screen, session: pl.Session
) -> None:
    shown = {name: box.value for name, box in boxes(screen).items()}
    assert shown == {**parameters(session.method), "at": ""}
    assert screen.parameters.fold.titles == ("Method: AOFP · theta 0.05",)
    assert screen.parameters.fold.selected_index is None, "closed at first"


def test_the_box_fits_the_type(screen: Screen, session: pl.Session) -> None:
    session.method = Mine()
    assert {name: type(box) for name, box in boxes(screen).items()} == {
        "ratio": ipw.FloatText,
        "rounds": ipw.IntText,
        "greedy": ipw.Checkbox,
        "order": ipw.Dropdown,
        "start": ipw.Dropdown,
        "layer": ipw.Text,
        "place": ipw.Text,
        "shares": ipw.Text,
    }
    assert "A method of one&#x27;s own" in screen.parameters.about.value
    assert screen.parameters.words.value == "", "no theta, no words of it"


@pytest.mark.parametrize(
    ("name", "given", "becomes"),
    [
        ("ratio", 0.25, 0.25),
        ("rounds", 7, 7),
        ("greedy", True, True),
        ("order", "down", "down"),
        ("start", "here", "here"),
        ("layer", "conv2", "conv2"),
        ("place", "bn", "bn"),
        ("shares", "0.3", 0.3),
        ("shares", "{'conv2': 0.1}", {"conv2": 0.1}),
    ],
)
def test_a_box_changes_its_field_and_no_other(
    screen: Screen, session: pl.Session, name: str, given: Any, becomes: Any
) -> None:
    session.method = Mine()
    boxes(screen)[name].value = given
    assert session.method == replace(Mine(), **{name: becomes})
    assert screen.controls.error.value == ""


def test_unknown_and_odd_annotations_get_a_text_box_or_go_by_the_value() -> None:
    assert kind_of(None, 3) is ipw.IntText
    assert kind_of(int, 2.5) is ipw.Text
    assert kind_of(float, 1) is ipw.FloatText
    assert kind_of(float, float("inf")) is ipw.Text
    assert kind_of(tuple[int, ...], (1, 2)) is ipw.Text
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
    screen: Screen, session: pl.Session, tmp_path: Path
) -> None:
    boxes(screen)["theta"].value = 0.2
    boxes(screen)["images"].value = 64
    screen.press("propose")
    made = session.ledger[-1]
    assert isinstance(made, Proposed)
    assert made.parameters == parameters(pl.AOFP(theta=0.2, images=64))
    script = session.export(tmp_path / "again.py").read_text()
    began, changed = script.index("theta=0.05"), script.index("theta=0.2")
    assert began < script.index("session.method = ") < changed < script.index("session.propose()")
    assert len(session.ledger) == 2, "a change of parameters is no event"


def test_a_bad_value_is_a_red_line_and_changes_nothing(screen: Screen, session: pl.Session) -> None:
    before = session.method
    boxes(screen)["theta"].value = -1
    assert "theta is a share of a layer&#x27;s signal" in screen.controls.error.value
    assert session.method is before
    assert boxes(screen)["theta"].value == 0.05
    boxes(screen)["at"].value = "moon"
    assert "at is one of conv, bn" in screen.controls.error.value
    assert boxes(screen)["at"].value == ""
    boxes(screen)["theta"].value = 0.1
    assert screen.controls.error.value == ""


def test_trouble_in_ones_own_validation_is_a_red_line_too(
    screen: Screen, session: pl.Session
) -> None:
    session.method = Mine()
    boxes(screen)["ratio"].value = 2
    assert "ValueError: ratio is a share" in screen.controls.error.value
    boxes(screen)["shares"].value = "{"
    assert "no value in Python" in unescape(screen.controls.error.value)
    assert session.method == Mine()
    with pytest.raises(InvalidValue):
        read("{", Any)


def test_the_boxes_follow_what_code_sets_in_every_screen(
    screen: Screen, session: pl.Session
) -> None:
    other = pl.show(session)
    session.method = pl.AOFP(theta=0.03)
    assert boxes(screen)["theta"].value == boxes(other)["theta"].value == 0.03
    boxes(screen)["theta"].value = 0.04
    assert boxes(other)["theta"].value == 0.04
    assert other.parameters.fold.titles == ("Method: AOFP · theta 0.04",)
    other.close()


def test_methods_keep_their_parameters_while_others_are_tried(
    screen: Screen, session: pl.Session
) -> None:
    session.method = Mine(rounds=9)
    assert "mine" in dict(screen.parameters.method.options).values()
    screen.parameters.method.value = "aofp"
    assert session.method == pl.AOFP(theta=0.05, images=128)
    screen.parameters.method.value = "mine"
    assert session.method == Mine(rounds=9)


def test_boxes_rest_while_a_verb_is_at_work(screen: Screen, session: pl.Session) -> None:
    seen: set[bool] = set()
    session.listen(lambda told: seen.add(boxes(screen)["theta"].disabled))
    screen.press("propose")
    assert True in seen
    assert not boxes(screen)["theta"].disabled


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


def test_the_slider_moves_theta_to_two_digits(screen: Screen, session: pl.Session) -> None:
    screen.parameters.slider.value = 0.0281838
    assert session.method == replace(pl.AOFP(theta=0.028), images=128)
    assert boxes(screen)["theta"].value == 0.028
    assert "0.028 = stop where" in screen.parameters.words.value
    boxes(screen)["theta"].value = 0
    assert screen.controls.error.value == "", "zero has no logarithm but is a theta"
    assert boxes(screen)["theta"].value == 0


def test_a_new_theta_redraws_the_search_as_it_would_have_gone(
    screen: Screen, session: pl.Session
) -> None:
    screen.press("propose")
    screen.press("reject")
    drawn = screen.live.drawn
    boxes(screen)["theta"].value = 0.3
    foreseen = screen.live.drawn
    assert foreseen.ladder != drawn.ladder
    assert len(session.ledger) == 3, "nothing was asked of the session"
    screen.press("propose")
    assert screen.group == foreseen.ladder.group
    assert screen.live.drawn.ladder == foreseen.ladder
    assert screen.live.drawn.importance.values == foreseen.importance.values


def test_a_pending_proposal_made_with_another_theta_says_so(
    screen: Screen, session: pl.Session
) -> None:
    screen.press("propose")
    assert screen.parameters.note.value == ""
    boxes(screen)["theta"].value = 0.3
    assert text.OUTDATED in unescape(screen.parameters.note.value)
    boxes(screen)["theta"].value = 0.05
    assert screen.parameters.note.value == ""


def test_only_a_new_search_can_tell_once_the_network_or_the_measure_changed(
    screen: Screen, session: pl.Session
) -> None:
    screen.press("propose")
    boxes(screen)["at"].value = "bn"
    boxes(screen)["theta"].value = 0.3
    assert screen.live.drawn.ladder.theta == 0.05
    boxes(screen)["at"].value = ""
    assert screen.live.drawn.ladder.theta == 0.3
    screen.press("approve")
    assert screen.live.drawn.ladder.theta == 0.05


RUNGS = (
    Rung("conv1", 0, (0, 1, 2, 3), (0.3, 0.1, 0.2, 0.4), (1, 2), 0.2, 0.05, "halve"),
    Rung("conv1", 1, (1, 2), (0.03, 0.06), (1,), 0.03, 0.05, "take"),
)


@pytest.mark.parametrize(
    ("theta", "verdicts"), [(0.5, ["take"]), (0.05, ["halve", "take"]), (0.03, ["halve", "fail"])]
)
def test_theta_decides_where_a_search_stops(theta: float, verdicts: list[str]) -> None:
    made = rejudged(RUNGS, theta)
    assert [rung.verdict for rung in made] == verdicts
    assert {rung.theta for rung in made} == {theta}
    for rung in made:
        again = judge(rung.group, rung.halving, rung.search, np.array(rung.damages), theta)
        assert again == rung


def test_a_search_that_trained_on_the_way_is_left_as_it_was() -> None:
    sampled = tuple(replace(rung, batches=100) for rung in RUNGS)
    assert rejudged(sampled, 0.5) == list(sampled)
