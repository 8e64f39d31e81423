"""What a notebook decided, repeated elsewhere: the same widths, or a search anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunelab as pl
from prunelab.evidence.fingerprint import fingerprint
from prunelab.session.replay import decisions, repeat, settings_of

ROOT = Path(__file__).resolve().parents[2]
SOURCES = """
import torch, prunelab as pl
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )

def batches(seed, count):
    draw = torch.Generator().manual_seed(seed)
    labels = [torch.randint(4, (8,), generator=draw) for _ in range(count)]
    noise = [torch.randn(8, 3, 8, 8, generator=draw) for _ in range(count)]
    return [(x + y[:, None, None, None], y) for x, y in zip(noise, labels)]

def few():
    return pl.Data(batches(0, 3), batches(1, 2), batches(2, 2))

def many():
    return pl.Data(batches(3, 8), batches(1, 4), batches(2, 2))
"""
names: dict[str, object] = {}
exec(SOURCES, names)
network, few, many = names["network"], names["few"], names["many"]


def decided(path: Path | None = None) -> pl.Session:
    """A session with all that a path may hold, and steps that were undone or rejected."""
    session = pl.Session(network(), few(), method=pl.AOFP(theta=0.05), path=path, round_to=2)
    session.propose()
    session.reject("not yet")
    session.method = "magnitude"
    session.propose(0.8)
    session.approve()
    session.undo()
    session.propose(0.8)
    session.adjust({"0": [1, 5]})
    session.approve(repair=False)
    session.repair("bn")
    session.tune(steps=2)
    session.method = "surgeon"
    session.propose(0.5)
    session.approve()
    return session


def test_decisions_are_those_that_were_not_undone() -> None:
    found = list(decisions(decided().ledger))
    verbs = [verb for verb, _ in found]
    tuned = ["tune"] * (("tune", {"steps": 2}) in found)
    assert verbs == ["use", "propose", "approve", "repair", *tuned, "use", "propose", "approve"]
    assert found[0] == ("use", {"method": "magnitude", **found[0][1]})
    assert found[1:4] == [
        ("propose", {"drop": {"0": [1, 5]}}), ("approve", {"repair": False}),
        ("repair", {"kind": "bn"}),
    ]  # fmt: skip
    again = list(decisions(decided().ledger, redecide=True))
    assert again[1] == ("propose", {"target_macs": 0.8})
    assert found[-1] == ("approve", {})


def test_the_same_decisions_are_the_same_widths(tmp_path: Path) -> None:
    first = decided()
    again = repeat(
        pl.Session(network(), few(), **settings_of(first.state.began)), decisions(first.ledger)
    )
    assert again.plan == first.plan
    # randomness comes from event numbers, so bitwise where nothing was undone
    third = repeat(pl.Session(network(), few(), round_to=2), decisions(again.ledger))
    assert fingerprint(third.model) == fingerprint(again.model)
    other = pl.Session(network(), many(), **settings_of(first.state.began))
    repeat(other, decisions(first.ledger))
    assert other.plan == first.plan
    assert fingerprint(other.model) != fingerprint(first.model)
    # a session that was itself repeated says so, and can be repeated
    assert [e.given for e in again.ledger if e.verb == "propose"] == [True, True]
    assert "session.propose(drop={'0': [1, 5]})" in again.export(tmp_path / "run.py").read_text()


def test_a_repetition_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    wanted = list(decisions(decided().ledger))
    whole = repeat(pl.Session(network(), few(), round_to=2), wanted)
    for stop in (2, 5):
        path = tmp_path / f"{stop}.prunelab"
        repeat(pl.Session(network(), few(), path=path, round_to=2), wanted[:stop])
        more = pl.Session(network(), few(), path=path, round_to=2, resume=True)
        assert fingerprint(repeat(more, wanted).model) == fingerprint(whole.model)
    with pytest.raises(pl.InvalidValue, match="holds other steps"):
        repeat(more, [("repair", {"kind": "bn"})])


def test_propose_takes_units_of_your_own() -> None:
    session = pl.Session(network(), few(), method="aofp")
    before = len(session.ledger)
    for drop, error in (({"0": [99]}, pl.IllegalPlan), ({"none": [0]}, pl.UnknownName)):
        with pytest.raises(error):
            session.propose(drop=drop)
    with pytest.raises(pl.InvalidValue, match="not both"):
        session.propose(0.5, drop={"0": [1]})
    assert len(session.ledger) == before
    move = session.propose(drop={"0": [1, 2]})
    assert move is not None and dict(move.drop) == {"0": (1, 2)}
    assert move.damage["0"] > 0
    with pytest.raises(pl.WrongState, match="is pending"):
        session.propose(drop={"0": [3]})
    session.approve()
    assert session.state.widths()["0"] == 6


def test_a_tune_by_hand_is_not_repeated_silently(tmp_path: Path) -> None:
    session = pl.Session(network(), few(), path=tmp_path / "run.prunelab")
    with session.tuning("my trainer") as net:
        nn.init.ones_(net[0].bias)
    with pytest.raises(pl.InvalidValue, match="my trainer has to be put in by hand"):
        list(decisions(session.ledger))
    assert "DECISIONS = None" in session.export(tmp_path / "run.py").read_text()


# ---------------------------------------------------------------- as programs


def program(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    (folder / "own.py").write_text(SOURCES)
    given = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=given, capture_output=True, text=True
    )


def loaded(folder: Path) -> Tensor:
    model = pl.load_pruned(network, folder / "replayed.safetensors")
    with torch.no_grad():
        return model(torch.ones(1, 3, 8, 8))


OTHER = """
import own
from torch import nn

def network():
    net = own.network()
    nn.init.zeros_(net[0].bias)
    return net
"""
OWN = ("--model", "own:network", "--data", "own:few")


@pytest.mark.long
def test_replay_gives_the_same_network(tmp_path: Path) -> None:
    session = pl.Session(network(), few(), path=tmp_path / "run.prunelab")
    session.propose(0.6)
    session.approve()
    done = program(tmp_path, "-m", "prunelab", "replay", "run.prunelab", *OWN)
    assert done.returncode == 0, done.stderr
    assert "written: replayed.safetensors" in done.stdout
    with torch.no_grad():
        wanted = session.model.eval()(torch.ones(1, 3, 8, 8))
    torch.testing.assert_close(loaded(tmp_path), wanted)


@pytest.mark.long
def test_a_script_runs_as_it_is_on_two_ranks(tmp_path: Path) -> None:
    session = decided()
    session.export(tmp_path / "run.py")
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    more = ("--data", "own:many", "--path", "big.prunelab")
    done = program(tmp_path, *run, "run.py", "--model", "own:network", *more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written: replayed.safetensors") == 1
    again = pl.Session.open(tmp_path / "big.prunelab", model=network(), data=many())
    assert again.plan == session.plan
    assert "not the weights" not in done.stderr
    redone = program(tmp_path, "run.py", *OWN, "--redecide", "--out", "again.safetensors")
    assert redone.returncode == 0, redone.stderr
    assert (tmp_path / "again.safetensors").exists()
    untrained = ("--model", "other:network", *OWN[2:])
    (tmp_path / "other.py").write_text(OTHER)
    told = program(tmp_path, "run.py", *untrained)
    assert "not the weights" in told.stderr


def test_a_script_of_the_zoo_needs_no_arguments(tmp_path: Path) -> None:
    data = pl.data.load("fashion", subset=True)
    session = pl.Session(pl.zoo.load("mobilenet"), data, method="magnitude", repair=None)
    text = session.export(tmp_path / "run.py").read_text()
    assert "model='mobilenet', data='fashion'))" in text
    said = program(tmp_path, "run.py", "--help").stdout
    assert "(default: mobilenet)" in said
