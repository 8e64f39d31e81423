"""Hand-ins: points of a valid one, and rejection of broken, forged or malicious ones."""

from __future__ import annotations

import csv
import json
import math
import random
import re
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn
from toys import Tiny, batches

import prunelab as pl
from prunelab.classroom import handin
from prunelab.classroom.grading import Grader
from prunelab.classroom.marking import mark, said
from prunelab.classroom.rubric import KINDS, Check, Rubric
from prunelab.cli import main as cli
from prunelab.errors import HandInError, InvalidValue, SessionFileError, UnknownName
from prunelab.graph.surgery.network_state import NetworkState
from prunelab.values import FrozenMap

RUBRIC = """
title = "Stripes"

[network]
factory = "lecturer:network"
same_start = true

[data]
factory = "lecturer:images"

[[check]]
kind = "macs"
at_most = 0.95
none_at = 1.0
points = 2

[[check]]
kind = "accuracy"
at_least = 0.5
points = 2

[[check]]
kind = "verbs"
least = { propose = 2, adjust = 1, undo = 1, tune = 9 }
points = 4

[[check]]
kind = "predictions"
of = "accuracy"
count = 2
points = 2

[[check]]
kind = "reasons"
points = 1

[[check]]
kind = "answer"
exercise = "exercise 1"
value = 49
points = 1

[[check]]
kind = "answer"
exercise = "exercise 2"
value = ["conv1", 0.5]
within = 0.01
points = 1
"""


def network() -> nn.Module:
    """The lecturer's network; `made` sets its weights."""
    model = Tiny()
    model.load_state_dict(network.weights)  # type: ignore[attr-defined]
    return model


def images() -> pl.Data:
    return pl.Data(train=batches(64, 1), val=batches(128, 2), test=batches(128, 7))


@pytest.fixture(scope="module")
def lab(trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a rubric, and with the hand-in of an honest session."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "lab.toml").write_text(RUBRIC)
    (folder / "lecturer.py").write_text("from test_grading import images, network")
    network.weights = trained.state_dict()  # type: ignore[attr-defined]
    data = pl.Data(train=batches(256, 1), val=batches(128, 2), test=batches(128, 3))
    path = folder / "run.prunelab"
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.05, images=128), path=path)
    session.propose()
    session.adjust({"conv1": [0, 1]})
    session.predict(accuracy=0.5)
    session.approve()
    session.note("the stem is shared", kind="reason")
    session.undo()
    session.answer("exercise 1", 49)
    session.answer("exercise 2", ["conv1", 0.501])
    session.propose()
    session.predict(accuracy=0.75)
    session.approve()
    session.tune(steps=2)
    handin.submit(path)
    return folder


@pytest.fixture(scope="module")
def grader(lab: Path) -> Grader:
    return Grader(Rubric.read(lab / "lab.toml"))


def remade(lab: Path, out: Path, change: Callable[[dict[str, bytes]], Any]) -> Path:
    """The honest hand-in after `change` to its members."""
    with zipfile.ZipFile(lab / "run.zip") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return out


def edited(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[dict[str, bytes]], None]:
    """A change to the ledger's events, as JSON."""

    def apply(parts: dict[str, bytes]) -> None:
        events = [json.loads(line) for line in parts["ledger.jsonl"].splitlines()]
        change(events)
        parts["ledger.jsonl"] = "\n".join(json.dumps(event) for event in events).encode()

    return apply


def marks(grade: pl.Grade) -> dict[str, float]:
    return {found.name: found.points for found in grade.marks}


# ---------------------------------------------------------------- an honest hand-in


def test_an_honest_hand_in_earns_what_the_rubric_promises(lab: Path, grader: Grader) -> None:
    grade = grader.grade(lab / "run.zip")
    assert grade.problems == ()
    assert marks(grade) == {
        "macs": 2,
        "accuracy": 2,
        "verbs": round(4 * (3 + 1 / 9) / 4, 2),
        "predictions accuracy": 2,
        "reasons": 1,
        "answer exercise 1": 1,
        "answer exercise 2": 1,
    }
    assert grade.points == 12.11
    assert grade.of == 13
    assert "tune 1 of 9" in str(grade)


def test_what_is_measured_is_the_submitted_network(lab: Path, grader: Grader) -> None:
    session = pl.Session.open(lab / "run.prunelab", model=Tiny(), data=images())
    grade = grader.grade(lab / "run.zip")
    example = torch.zeros(1, 1, 12, 12)
    cost = pl.cost(session.model, example)
    assert (grade.measured["macs"], grade.measured["params"]) == (cost.macs, cost.params)
    assert grade.measured["macs_share"] == cost.macs / pl.cost(Tiny(), example).macs
    assert grade.measured["accuracy"] == session.evaluate()["accuracy"], "on the lecturer's images"
    assert grade.claimed == session.state.now.metrics["accuracy"]


def test_a_hand_in_is_small_repeats_and_holds_nothing_that_runs(lab: Path, tmp_path: Path) -> None:
    path = handin.submit(lab / "run.prunelab", tmp_path / "again.zip")
    assert path.read_bytes() == (lab / "run.zip").read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert names[:3] == ["ledger.jsonl", "plan.json", "weights.safetensors"]
    assert all(re.fullmatch(r"step-\d+\.safetensors", name) for name in names[3:])
    assert len(names) == 5, "two predictions came out before the last step"
    assert [p.name for p in tmp_path.iterdir()] == ["again.zip"]


def test_a_session_in_memory_can_be_handed_in(
    session: pl.Session, lab: Path, grader: Grader, tmp_path: Path
) -> None:
    session.answer("exercise 1", 49)
    grade = grader.grade(pl.submit(session, tmp_path / "mine.zip"))
    assert grade.problems == ()
    assert marks(grade)["answer exercise 1"] == 1
    assert grade.measured["macs_share"] == 1


@pytest.mark.parametrize("later", [False, True])
def test_a_hand_in_with_factorised_layers_is_graded_as_the_network_that_it_is(
    session: pl.Session, grader: Grader, tmp_path: Path, later: bool
) -> None:
    session.method = pl.SpatialFactorisation(pruning_ratio=0.4)
    session.propose()
    session.predict(accuracy=0.5)
    session.approve()
    if later:
        session.method = pl.Magnitude(pruning_ratio=0.3)
        session.propose()
        session.approve()
        session.undo()
    grade = grader.grade(pl.submit(session, tmp_path / "split.zip"))
    cost = pl.cost(session.model, torch.zeros(1, 1, 12, 12))
    assert grade.problems == ()
    assert (grade.measured["macs"], grade.measured["params"]) == (cost.macs, cost.params)
    assert grade.measured["accuracy"] == session.evaluate("test", session.model)["accuracy"]


@pytest.mark.parametrize("field", ["factors", "adds"])
def test_a_ledger_that_hides_what_became_two_layers_is_found_out(
    session: pl.Session, grader: Grader, tmp_path: Path, field: str
) -> None:
    session.method = pl.SpatialFactorisation(pruning_ratio=0.4)
    session.propose()
    session.approve()
    path = pl.submit(session, tmp_path / "split.zip")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    events = [json.loads(line) for line in parts["ledger.jsonl"].splitlines()]
    (event,) = steps(events, "Proposed")
    event["move"][field] = {"is": "FrozenMap"} if "is" in str(event["move"][field]) else {}
    parts["ledger.jsonl"] = "\n".join(map(json.dumps, events)).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    assert grader.grade(path).problems


def test_the_rubric_may_be_named_in_one_call(lab: Path, grader: Grader) -> None:
    path = lab / "run.zip"
    assert pl.grade(path, lab / "lab.toml") == grader.grade(path)
    assert pl.grade(path, grader.rubric).points == 12.11


def test_every_verb_is_counted_under_its_own_name(session: pl.Session) -> None:
    session.propose()
    session.reject()
    session.predict(units=1)
    session.propose()
    session.adjust({"conv1": [0]})
    session.approve()
    session.repair()
    session.tune(steps=1)
    session.undo()
    session.note("a")
    session.note("b", kind="reason")
    session.answer("c", 1)
    counts = {"propose": 2, "tune": 1, "begin": 1, "undo": 1}
    for verb in ("reject", "predict", "adjust", "approve", "repair", "note", "reason", "answer"):
        counts[verb] = 1
    assert said(session.ledger) == counts


@pytest.mark.parametrize(
    ("given", "value", "within", "points"),
    [
        (49, 49, None, 1),
        (49.0, 49, None, 1),
        (49.4, 49, 0.5, 1),
        (49.6, 49, 0.5, 0),
        (" Conv1 ", "conv1", None, 1),
        ("49", 49, None, 0),
        (49, "49", None, 0),
        (True, 1, None, 0),
        (1, True, None, 0),
        (False, False, None, 1),
        ([1, 2], [1, 2], None, 1),
        ([1, 2, 3], [1, 2], None, 0),
        (1, [1], None, 0),
        ({"a": 1}, 1, None, 0),
        (10**400, 49, 0.5, 0),
    ],
)
def test_answers_are_compared_as_what_they_are(
    given: Any, value: Any, within: float | None, points: float, session: pl.Session
) -> None:
    session.answer("exercise 1", given)
    asked = {"exercise": "exercise 1", "value": value}
    check = Check(
        "c", "answer", 1, FrozenMap(asked | ({} if within is None else {"within": within}))
    )
    assert mark(check, FrozenMap(), session.state, list(session.ledger)).points == points


def test_points_fall_in_a_straight_line_to_none_at() -> None:
    def points(kind: str, value: float, **asked: float) -> float:
        check = Check("c", kind, 4, FrozenMap(asked))
        return mark(check, FrozenMap({"macs_share": value, "accuracy": value}), None, ()).points

    assert [points("macs", v, at_most=0.5, none_at=0.7) for v in (0.4, 0.5, 0.6, 0.7, 0.9)] == [
        *(4, 4, 2, 0, 0),
    ]
    assert [points("accuracy", v, at_least=0.9, none_at=0.8) for v in (1, 0.9, 0.85, 0.8, 0)] == [
        *(4, 4, 2, 0, 0),
    ]
    assert [points("accuracy", v, at_least=0.9) for v in (0.9, 0.8999)] == [4, 0]


def test_a_guess_of_what_had_been_seen_earns_nothing(
    session: pl.Session, grader: Grader, tmp_path: Path
) -> None:
    session.propose()
    session.approve()
    accuracy = session.state.now.metrics["accuracy"]
    session.undo()
    session.propose()
    session.predict(accuracy=accuracy)
    session.approve()
    grade = grader.grade(pl.submit(session, tmp_path / "a.zip"))
    assert grade.problems == ()
    (found,) = [m for m in grade.marks if m.name == "predictions accuracy"]
    assert found.points == 0
    assert "1 after the result was shown" in found.why


# ---------------------------------------------------------------- forged hand-ins


def set_accuracy(event: dict[str, Any], value: float) -> None:
    event["metrics"]["accuracy"] = value


def steps(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["is"] == kind]


def claim_accuracy(events: list[dict[str, Any]]) -> None:
    set_accuracy(events[-1], 0.7)


def claim_prediction(events: list[dict[str, Any]]) -> None:
    """Make the guess of 0.5 right."""
    set_accuracy(steps(events, "Repaired")[0], 0.5)


def claim_macs(events: list[dict[str, Any]]) -> None:
    events[-1]["cost"]["macs"] //= 2


def claim_smaller(events: list[dict[str, Any]]) -> None:
    events[-1]["kept"]["conv1"] = [5]


def guess_afterwards(events: list[dict[str, Any]]) -> None:
    """Write a prediction for units between propose and approve, where they stand already."""
    place = next(i for i, event in enumerate(events) if event["is"] == "Approved")
    prediction = {"is": "Noted", "text": "", "kind": "prediction", "value": {"units": 2.0}}
    events.insert(place, prediction)
    for seq, event in enumerate(events):
        event["seq"] = seq


def approve_nothing(events: list[dict[str, Any]]) -> None:
    place = next(i for i, event in enumerate(events) if event["is"] == "Approved")
    events.insert(place + 1, dict(events[place]))
    for seq, event in enumerate(events):
        event["seq"] = seq


def lose_an_event(events: list[dict[str, Any]]) -> None:
    del events[3]


def undo_something_else(events: list[dict[str, Any]]) -> None:
    steps(events, "Undone")[0]["step"] = 0


def another_start(events: list[dict[str, Any]]) -> None:
    events[0]["fingerprint"] = "0" * 16
    for event in steps(events, "Proposed") + steps(events, "Adjusted"):
        event["move"]["fingerprint"] = "0" * 16


FORGERIES = {
    claim_accuracy: "states a validation accuracy of 70.0%; recomputed",
    claim_prediction: "states a validation accuracy of 50.0%; recomputed",
    claim_macs: "MACs",
    claim_smaller: "keeps other units",
    guess_afterwards: "already shows its units",
    approve_nothing: "approved though no move was pending",
    lose_an_event: "event 3 of the ledger is missing",
    undo_something_else: "undo without an undoable step",
    another_start: "did not begin with the network of the rubric",
}


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_forged_ledger_is_told_and_counts_for_nothing(
    forge: Callable[[list[dict[str, Any]]], None], lab: Path, grader: Grader, tmp_path: Path
) -> None:
    grade = grader.grade(remade(lab, tmp_path / "forged.zip", edited(forge)))
    assert any(FORGERIES[forge] in problem for problem in grade.problems), grade.problems
    assert grade.points == 4, "only what is measured counts"
    assert grade.measured == grader.grade(lab / "run.zip").measured
    untrusted = [m for m in grade.marks if "cannot be trusted" in m.why]
    assert math.fsum(m.of for m in untrusted) == grade.of - 4


def other_weights(parts: dict[str, bytes]) -> None:
    state = load_tensors(parts["weights.safetensors"])
    state["fc.bias"] = state["fc.bias"] + 1
    parts["weights.safetensors"] = save_tensors(state)


def no_step(parts: dict[str, bytes]) -> None:
    del parts[next(name for name in parts if name.startswith("step-"))]


def test_weights_of_another_network_are_told(lab: Path, grader: Grader, tmp_path: Path) -> None:
    grade = grader.grade(remade(lab, tmp_path / "a.zip", other_weights))
    assert "weights handed in are not those of the ledger" in grade.problems[0]
    grade = grader.grade(remade(lab, tmp_path / "b.zip", no_step))
    assert re.search(r"it has no step-\d+", grade.problems[0])


# ---------------------------------------------------------------- broken and malicious ones


def change_weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, bytes]], None]:
    def apply(parts: dict[str, bytes]) -> None:
        state = load_tensors(parts["weights.safetensors"])
        change(state)
        parts["weights.safetensors"] = save_tensors(state)

    return apply


def set_part(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda parts: parts.update({name: data})


HUGE = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 4]}})
BAD = {
    "NaN weights": (change_weights(lambda s: s["fc.bias"].fill_(math.nan)), "NaN or infinity"),
    "infinite weights": (change_weights(lambda s: s["fc.bias"].fill_(math.inf)), "NaN or infinity"),
    "a missing weight": (change_weights(lambda s: s.pop("fc.bias")), "fc.bias"),
    "a weight too many": (
        change_weights(lambda s: s.update(spy=torch.zeros(2))),
        "has no spy",
    ),
    "a wrong shape": (
        change_weights(lambda s: s.update({"fc.bias": torch.zeros(3)})),
        "do not fit the plan",
    ),
    "a wrong type": (
        change_weights(lambda s: s.update({"fc.bias": torch.zeros(4, dtype=torch.float64)})),
        "do not fit the plan",
    ),
    "junk for what is no tensor": (
        change_weights(lambda s: s.update({"": torch.full((9,), 91, dtype=torch.uint8)})),
        "not what a session writes",
    ),
    "modes of another network": (
        change_weights(lambda s: s.update(NetworkState({}, {"training": "all"}).packed())),
        "not what a session writes",
    ),
    "a huge tensor": (
        set_part("weights.safetensors", struct.pack("<Q", len(HUGE)) + HUGE.encode() + b"\0" * 4),
        "",
    ),
    "a huge header": (set_part("weights.safetensors", struct.pack("<Q", 1 << 62)), ""),
    "a pickle for weights": (set_part("weights.safetensors", b"cos\nsystem\n(S'x'\ntR."), ""),
    "a bomb for weights": (set_part("weights.safetensors", bytes(200 << 20)), "is larger than"),
    "a bomb for a ledger": (set_part("ledger.jsonl", b" " * (50 << 20)), "is larger than"),
    "too many events": (set_part("ledger.jsonl", b"{}\n" * 5000), "more than 2,000 events"),
    "a deep ledger": (set_part("ledger.jsonl", b"[" * 200_000), ""),
    "an empty ledger": (set_part("ledger.jsonl", b""), ""),
    "no text": (set_part("ledger.jsonl", b"\xff\xfe"), "decode"),
    "an unknown kind": (set_part("ledger.jsonl", b'{"is": "os.system", "seq": 0}'), ""),
    "a value for an event": (
        set_part("ledger.jsonl", b'{"is":"Cost","macs":1,"params":1,"activation_bytes":1}'),
        "line 1 of the ledger is not an event",
    ),
    "a deep plan": (set_part("plan.json", b"[" * 200_000), ""),
    "another plan": (set_part("plan.json", b'{"kept": {"conv9": [0]}}'), "another network"),
    "an infinite unit": (set_part("plan.json", b'{"kept": {"stem": [1e999]}}'), ""),
    "no plan": (lambda parts: parts.pop("plan.json"), "it has no plan.json"),
    "a path upwards": (set_part("../../evil.py", b"print()"), "not part of a hand-in"),
    "an absolute path": (set_part("/evil.py", b"print()"), "not part of a hand-in"),
    "a script": (set_part("network.py", b"print()"), "not part of a hand-in"),
    "an odd step": (set_part("step-../1.safetensors", b""), "not part of a hand-in"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_hand_in_gets_its_reason_and_leaves_nothing_behind(
    name: str, lab: Path, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, says = BAD[name]
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    grade = grader.grade(remade(lab, tmp_path / "bad.zip", change))
    assert len(grade.problems) == 1
    assert says in grade.problems[0]
    assert grade.points <= 4
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.zip", "here"]


def test_files_that_are_no_hand_ins_get_their_reason(
    lab: Path, grader: Grader, tmp_path: Path
) -> None:
    whole = (lab / "run.zip").read_bytes()
    cases = {
        "empty": b"",
        "text": b"hello" * 100,
        "half": whole[: len(whole) // 2],
        "flipped": whole[:200] + bytes([whole[200] ^ 255]) + whole[201:],
        "session": (lab / "run.prunelab").read_bytes(),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        grade = grader.grade(tmp_path / name)
        assert len(grade.problems) == 1, name
        assert grade.points <= 4, name
    (problem,) = grader.grade(tmp_path / "nowhere.zip").problems
    assert problem == "there is no such file"
    assert len(grader.grade(tmp_path).problems) == 1, "a folder"


def test_a_zip_may_not_repeat_encrypt_or_overlong_its_contents(
    lab: Path, grader: Grader, tmp_path: Path
) -> None:
    path = tmp_path / "twice.zip"
    shutil.copy(lab / "run.zip", path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("plan.json", "{}")
    assert grader.grade(path).problems == ("it holds a name twice",)

    secret = bytearray((lab / "run.zip").read_bytes())
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = -1
        while (place := secret.find(magic, place + 1)) >= 0:
            secret[place + flags] |= 1
    (tmp_path / "secret.zip").write_bytes(secret)
    assert "encrypted" in grader.grade(tmp_path / "secret.zip").problems[0]

    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(200):
            archive.writestr(f"step-{number}.safetensors", b"")
    assert "more than 103 files" in grader.grade(tmp_path / "many.zip").problems[0]

    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("plan.json", b"{}")
    assert "unusual way" in grader.grade(tmp_path / "lzma.zip").problems[0]


def test_whatever_is_written_into_a_ledger_grading_goes_on(
    lab: Path, grader: Grader, tmp_path: Path
) -> None:
    """Random values in random places: measured points stay, nothing is raised."""
    values: list[Any] = [
        None,
        -1,
        10**400,
        1e308,
        math.nan,
        "x",
        [],
        {},
        True,
        [[1]],
        {"is": "Move"},
    ]
    rng = random.Random(0)

    def places(node: Any) -> list[tuple[Any, Any]]:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        below = [p for k in keys if isinstance(node[k], dict | list) for p in places(node[k])]
        return [(node, key) for key in keys] + below

    def spoil(events: list[dict[str, Any]]) -> None:
        for event in events:
            event.pop("seen", None)
        node, key = rng.choice([p for event in events for p in places(event)])
        node[key] = rng.choice(values)

    for _ in range(60):
        grade = grader.grade(remade(lab, tmp_path / "spoilt.zip", edited(spoil)))
        assert marks(grade)["macs"] == 2
        assert grade.points == 4 or grade.problems == ()


# ---------------------------------------------------------------- the commands


def test_one_broken_hand_in_never_stops_the_others(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(lab / "run.zip", tmp_path / "=ada.zip")
    (tmp_path / "bob.zip").write_bytes(b"PK broken")
    remade(lab, tmp_path / "cyd.zip", edited(claim_accuracy))
    out = tmp_path / "out.csv"
    arguments = ["grade", f"{tmp_path}/*.zip", "--rubric", f"{lab}/lab.toml", "--csv", str(out)]
    assert cli.main(arguments) == 0
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["hand-in"] for row in rows] == ["'=ada.zip", "bob.zip", "cyd.zip"]
    assert [row["points"] for row in rows] == ["12.11", "0.0", "4.0"]
    assert [row["of"] for row in rows] == ["13.0"] * 3
    assert rows[0]["problems"] == ""
    assert "not a zip file" in rows[1]["problems"]
    assert rows[1]["MACs"] == ""
    assert "states a validation accuracy" in rows[2]["problems"]
    assert float(rows[0]["MACs share"]) < 0.95
    assert rows[0]["answer exercise 1"] == "1.0"
    assert rows[0]["answer exercise 1: why"] == "right: 49"
    err = capsys.readouterr().err
    assert "bob.zip: 0 of 13 points" in err
    assert re.search(r"lecturer:network itself has \d+\.\d\d% on the test images", err)


def test_submit_says_what_to_hand_in(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.prunelab"
    shutil.copy(lab / "run.prunelab", path)
    assert cli.main(["submit", str(path)]) == 0
    assert (tmp_path / "mine.zip").read_bytes() == (lab / "run.zip").read_bytes()
    assert "Hand in this one file" in capsys.readouterr().out
    assert cli.main(["submit", str(tmp_path / "none.prunelab")]) == 1
    assert "There is no file" in capsys.readouterr().err
    with pytest.raises(SessionFileError):
        handin.submit(tmp_path / "mine.zip")


def test_a_session_that_could_not_be_graded_is_not_handed_in(
    session: pl.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.note("more")
    monkeypatch.setattr(handin, "EVENTS", 1)
    with pytest.raises(HandInError, match="at most 1 events"):
        pl.submit(session, tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- rubrics


def content(**changes: Any) -> dict[str, Any]:
    check = {"kind": "macs", "at_most": 0.5, "points": 1}
    made: dict[str, Any] = {
        "network": {"zoo": "resnet20"},
        "data": {"set": "fashion"},
        "check": [check],
    }
    for key, value in changes.items():
        if key == "check":
            made["check"] = [{**check, **value}]
        else:
            made[key] = value
    return made


def test_a_rubric_says_what_it_means(tmp_path: Path) -> None:
    rubric = Rubric.of(content(title="Half"), tmp_path)
    assert (rubric.title, rubric.network, rubric.data) == ("Half", "resnet20", "fashion")
    assert (rubric.same_start, rubric.split, rubric.validation) == (True, "test", "val")
    assert rubric.points == 1
    free = Rubric.of(content(data={"set": "fashion", "validation": False}), tmp_path)
    assert free.validation is None


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"netwrok": {}}, UnknownName, "Did you mean 'network'"),
        ({"network": {}}, InvalidValue, "give zoo or factory"),
        ({"network": {"zoo": "a", "factory": "b:c"}}, InvalidValue, "one of the two"),
        ({"network": {"zoo": "lab:network"}}, InvalidValue, "module:function"),
        ({"network": {"factory": "resnet20"}}, InvalidValue, "module:function"),
        ({"network": {"zoo": "resnet20", "same_start": 1}}, InvalidValue, "true or false"),
        ({"network": "resnet20"}, InvalidValue, "a table"),
        ({"data": {"set": "fashion", "split": "exam"}}, InvalidValue, "train, val or test"),
        ({"data": {"set": "fashion", "subset": True}}, UnknownName, "subset"),
        ({"check": {"kind": "mac"}}, UnknownName, "Did you mean 'macs'"),
        ({"check": {"at_most": 50}}, InvalidValue, "a share between 0 and 1"),
        ({"check": {"at_most": True}}, InvalidValue, "a share between 0 and 1"),
        ({"check": {"at_least": 0.5}}, UnknownName, "Did you mean 'at_most'"),
        ({"check": {"none_at": 0.4}}, InvalidValue, "must lie above at_most"),
        ({"check": {"points": -1}}, InvalidValue, "a number from 0 up"),
        ({"check": {"points": "many"}}, InvalidValue, "a number from 0 up"),
        ({"check": {"name": 3}}, InvalidValue, "a text"),
    ],
)
def test_a_rubric_with_a_mistake_is_refused(
    changes: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(says)):
        Rubric.of(content(**changes), tmp_path)


@pytest.mark.parametrize(
    ("check", "error", "says"),
    [
        ({"kind": "verbs"}, InvalidValue, "least is missing"),
        ({"kind": "verbs", "least": {"fly": 1}}, UnknownName, "verb"),
        ({"kind": "verbs", "least": {"undo": 0}}, InvalidValue, "a table of verbs and counts"),
        ({"kind": "answer", "exercise": "1"}, InvalidValue, "value is missing"),
        ({"kind": "answer", "exercise": "1", "value": {}}, InvalidValue, "a number, a text"),
        ({"kind": "accuracy", "at_least": 0.5, "none_at": 0.6}, InvalidValue, "below at_least"),
        ({"kind": "predictions", "count": 0}, InvalidValue, "from 1 up"),
        ({}, InvalidValue, "kind is missing"),
    ],
)
def test_a_check_with_a_mistake_is_refused(
    check: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(says)):
        Rubric.of({**content(), "check": [{"points": 1, **check}]}, tmp_path)


def test_two_checks_may_not_share_a_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="two checks are called 'macs'"):
        Rubric.of({**content(), "check": content()["check"] * 2}, tmp_path)


def test_rubric_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="cannot be read"):
        Rubric.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("points = = 3")
    with pytest.raises(InvalidValue, match="is not TOML"):
        pl.grade("a.zip", tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(InvalidValue, match="is not TOML"):
        Rubric.read(tmp_path / "bytes.toml")


FAULTS = """
from toys import batches
import prunelab as pl

def number():
    return 3

def images():
    test = batches(64, 3)
    test[-1] = (test[-1][0], test[-1][1] + 1000)
    return pl.Data(train=batches(64, 1), val=batches(64, 2), test=test)
"""


def test_what_is_wrong_with_the_lecturers_side_is_raised(tmp_path: Path) -> None:
    def grader_of(**changes: Any) -> Grader:
        return Grader(Rubric.of(content(**changes), tmp_path))

    (tmp_path / "lecturer_faults.py").write_text(FAULTS)
    with pytest.raises(UnknownName, match="data set"):
        grader_of(data={"set": "fashon"})
    with pytest.raises(pl.BadData, match="has no"):
        grader_of(data={"factory": "lecturer_faults:number"})
    with pytest.raises(pl.BadModel, match="must give"):
        grader_of(
            network={"factory": "lecturer_faults:number"}, data={"factory": "test_grading:images"}
        )
    with pytest.raises(pl.BadData):  # the first batch does not show it
        grader_of(
            network={"factory": "test_grading:network"}, data={"factory": "lecturer_faults:images"}
        )
    with pytest.raises(InvalidValue, match="no module 'lecturer_none'"):
        grader_of(data={"factory": "lecturer_none:images"})


class Odd(Tiny):
    """A network with more than a `state_dict()` holds."""

    epoch = 0

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([self.conv1, self.conv2])
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.register_buffer("mask", torch.tensor([-torch.inf]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.scale * x)

    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]


def odd() -> nn.Module:
    torch.manual_seed(1)
    return Odd().to(memory_format=torch.channels_last)


def test_a_network_that_holds_more_than_a_state_dict_is_graded(tmp_path: Path) -> None:
    network, images = {"factory": "test_grading:odd"}, {"factory": "test_grading:images"}
    grader = Grader(Rubric.of(content(network=network, data=images), tmp_path))
    model = odd()
    model.scale *= 2
    session = pl.Session(model, globals()["images"](), pl.ThiNet(images=64), path=tmp_path / "run")
    session.propose()
    session.approve()
    grade = grader.grade(handin.submit(tmp_path / "run"))
    assert grade.problems == ()
    assert grade.measured["accuracy"] == session.evaluate()["accuracy"]


def test_the_rubric_on_the_teachers_page_has_every_kind_of_check(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "notebooks" / "teacher.md").read_text("utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "lab.toml").write_text(text)
    rubric = Rubric.read(tmp_path / "lab.toml")
    assert {check.kind for check in rubric.checks} | {"params"} == set(KINDS)
    for check in rubric.checks:
        assert set(check.settings) == set(KINDS[check.kind]), "every setting is shown"
