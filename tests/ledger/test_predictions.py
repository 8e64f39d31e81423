"""Predictions, reasons and answers: recorded in the ledger before the results are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab.errors import InvalidValue, UnknownName, WrongState
from prunelab.ledger.events import Noted
from prunelab.ledger.history_words import told
from prunelab.ledger.state import fold
from prunelab.ledger.words import sentence
from prunelab.values import revive

Session = pl.Session


def only(session: Session) -> pl.Prediction:
    (prediction,) = session.state.predictions
    return prediction


# ---------------------------------------------------------------- locking and settling


def test_a_guess_of_accuracy_is_settled_by_approve_and_the_repair_that_comes_with_it(
    session: Session,
) -> None:
    session.propose()
    session.predict(accuracy=0.5)
    assert only(session).open
    session.approve()
    found = only(session)
    assert found.result == session.state.now.metrics["accuracy"]
    assert found.settled == session.state.head == len(session.ledger) - 1
    assert found.error == 0.5 - session.state.now.metrics["accuracy"]
    assert (found.guess, found.known, found.withdrawn) == (0.5, False, False)


def test_before_it_comes_out_a_second_guess_takes_the_place_of_the_first(session: Session) -> None:
    session.propose()
    session.predict(accuracy=0.5, loss=1.0)
    session.predict(accuracy=0.75)
    assert {(p.name, p.guess) for p in session.state.predictions} == {
        ("accuracy", 0.75),
        ("loss", 1.0),
    }


def test_after_it_came_out_a_guess_can_no_longer_be_changed(session: Session) -> None:
    session.propose()
    session.predict(accuracy=0.5)
    session.approve()
    before = only(session)
    session.predict(accuracy=session.state.now.metrics["accuracy"])
    session.tune(steps=1)
    first, second = session.state.predictions
    assert first == before
    assert second.settled == session.state.head


def test_units_and_costs_come_out_with_the_proposal(session: Session) -> None:
    session.predict(units=3, macs=0.9, params=0.8)
    move = session.propose()
    assert move is not None
    results = {p.name: p.result for p in session.state.predictions}
    assert results == {
        "units": move.units,
        "macs": move.after.macs / move.before.macs,
        "params": move.after.params / move.before.params,
    }
    with pytest.raises(WrongState, match="before propose"):
        session.predict(units=move.units)


def test_a_declined_move_withdraws_the_guess_about_it(session: Session) -> None:
    session.propose()
    session.predict(accuracy=0.5)
    session.reject()
    assert only(session).withdrawn
    session.tune(steps=1)
    assert only(session).result is None


def test_undo_withdraws_open_guesses_and_leaves_settled_ones(session: Session) -> None:
    session.propose()
    session.predict(accuracy=0.5)
    session.approve()
    session.predict(loss=2.0)
    session.undo()
    settled, open_once = session.state.predictions
    assert settled.result is not None
    assert open_once.withdrawn


def test_a_guess_about_what_came_out_before_is_called_known(session: Session) -> None:
    session.propose()
    session.approve()
    accuracy = session.state.now.metrics["accuracy"]
    session.undo()
    session.predict(units=5)
    session.propose()
    session.predict(accuracy=accuracy)
    session.approve()
    units, again = session.state.predictions
    assert units.known, "the same move of the same network was proposed before"
    assert again.known
    assert again.result == accuracy


def test_the_state_follows_from_the_events_alone(session: Session) -> None:
    session.predict(units=5)
    session.propose()
    session.predict(accuracy=0.5)
    session.approve()
    session.answer("exercise 1", [1, 2])
    assert fold(session.ledger) == session.state


@pytest.mark.parametrize(
    ("guess", "error", "says"),
    [
        ({}, InvalidValue, "Give at least one prediction"),
        ({"acuracy": 0.9}, UnknownName, "Did you mean 'accuracy'"),
        ({"accuracy": 91}, InvalidValue, "a share between 0 and 1"),
        ({"accuracy": "high"}, InvalidValue, "a share"),
        ({"accuracy": True}, InvalidValue, "a share"),
        ({"loss": math.nan}, InvalidValue, "a number"),
        ({"loss": None}, InvalidValue, "a number"),
        ({"units": -1}, InvalidValue, "a whole number from 0 up; not -1"),
        ({"macs": 12e6}, InvalidValue, "a share"),
    ],
)
def test_what_is_no_guess_is_refused_and_changes_nothing(
    session: Session, guess: dict[str, Any], error: type[Exception], says: str
) -> None:
    before = session.state
    with pytest.raises(error, match=says):
        session.predict(**guess)
    assert session.state is before


def test_any_number_type_is_a_guess(session: Session) -> None:
    for value in (np.float32(0.5), torch.tensor(0.5), 1, 0.5):
        session.predict(accuracy=value)  # type: ignore[arg-type]
    assert only(session).guess == 0.5


# ---------------------------------------------------------------- answers, reasons, files


def test_the_latest_answer_counts(session: Session) -> None:
    session.answer("exercise 1", 48)
    session.answer("exercise 2", {"layers": ["conv1", "conv2"], "right": True})
    session.answer("exercise 1", torch.tensor(49))
    assert session.state.answers["exercise 1"] == 49
    assert session.state.answers["exercise 2"] == {"layers": ("conv1", "conv2"), "right": True}
    assert told(session.ledger[-1]) == "answer: exercise 1: 49"


@pytest.mark.parametrize("value", [object(), math.inf, {1, 2}, "x" * 10_001, lambda: 1])
def test_what_is_no_answer_is_refused(session: Session, value: object) -> None:
    with pytest.raises(InvalidValue):
        session.answer("exercise 1", value)
    assert len(session.ledger) == 1


def test_notes_are_notes_or_reasons(session: Session) -> None:
    session.note("hello")
    session.note("the stem is cheap", kind="reason")
    kinds = [event.kind for event in session.ledger if isinstance(event, Noted)]
    assert kinds == ["note", "reason"]
    with pytest.raises(InvalidValue, match="verbs of their own"):
        session.note("accuracy 1", kind="prediction")
    with pytest.raises(InvalidValue, match="exercise's name"):
        session.answer(" ", 1)


def test_notes_of_older_files_are_read_as_notes() -> None:
    event = revive({"is": "Noted", "seq": 3, "at": "", "text": "old"})
    assert event == Noted(seq=3, text="old")
    assert event.kind == "note"


def test_a_resumed_session_knows_its_predictions(
    trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    path = tmp_path / "run.prunelab"
    session = Session(trained, data, method=pl.AOFP(theta=0.05, images=128), path=path)
    session.propose()
    session.predict(accuracy=0.5)
    session.answer("exercise 1", (1, {"a": [2.5]}))
    again = Session.open(path, model=trained, data=data)
    assert again.state == session.state
    session.approve()
    assert Session.open(path, model=trained, data=data).state == session.state


def test_the_script_says_them_again(
    session: Session, trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    session.predict(units=4)
    session.propose()
    session.predict(accuracy=0.5)
    session.note("because", kind="reason")
    session.answer("exercise 1", [1, "two"])
    session.approve()
    space: dict[str, Any] = {"__name__": "replayed"}
    exec(session.export(tmp_path / "run.py").read_text(), space)
    assert space["replay"](trained, data).state == session.state


def test_the_sentence_sets_the_guess_against_the_result(session: Session) -> None:
    class Group:
        name, producers, consumers = "conv1", ("conv1",), ()

    session.predict(units=4)
    move = session.propose()
    assert move is not None
    said = sentence(session.state, session.ledger[-1], Group())
    assert f"Predicted units 4: off by {abs(4 - move.units)}." in said
    session.predict(accuracy=0.5)
    session.approve()
    accuracy = session.state.now.metrics["accuracy"]
    said = sentence(session.state, session.ledger[-1], Group())
    assert f"Predicted accuracy 50.0%: off by {100 * (accuracy - 0.5):.1f} points" in said
