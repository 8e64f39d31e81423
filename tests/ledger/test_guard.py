"""Alarms after a step that costs too much, the floor of a run, and networks at chance."""

from __future__ import annotations

import json
import math
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Tiny

import prunelab as pl
from prunelab.cli import main as cli
from prunelab.cli.terminal import told
from prunelab.ledger import guard, history_words, words
from prunelab.ledger.events import Approved, Began, Noted, Repaired, Tuned
from prunelab.ledger.store import FileStore
from prunelab.values import Cost, FrozenMap


class Butcher:
    """Drops all units but one, group by group: with no repair, a ruin."""

    name = "butcher"

    def search(self, context: Any) -> Any:
        yield from ()
        wide = [group for group in context.prunable if len(group.units) > 1]
        drop = {group.name: group.units[1:] for group in wide[:2]}
        return context.move(self, drop) if drop else None


def ruined(trained: nn.Module, data: pl.Data, **more: Any) -> pl.Session:
    session = pl.Session(trained, data, Butcher(), repair=None, **more)
    session.propose()
    session.approve()
    return session


def began(metric: str, value: float, **settings: Any) -> Began:
    return Began(
        seq=0, network="Net", fingerprint="f", seed=0, method="aofp", parameters=FrozenMap(),
        settings=FrozenMap(settings), widths=FrozenMap(), metrics=FrozenMap({metric: value}),
        cost=Cost(10, 10, 10), weights="f",
    )  # fmt: skip


def replayed(session: pl.Session, model: nn.Module, data: pl.Data, folder: Path) -> pl.Session:
    """What the exported script makes."""
    path = session.export(folder / "run.py")
    scope: dict[str, Any] = {"__name__": "replayed"}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    again: pl.Session = scope["replay"](model, data)
    return again


# ---------------------------------------------------------------- what a step may cost


@pytest.mark.parametrize(
    ("metric", "higher", "original", "before", "after", "mark"),
    [
        ("accuracy", True, 0.9, 0.9, 0.85, None),
        ("accuracy", True, 0.9, 0.9, 0.849, "lost 5.1 points in the last step"),
        ("accuracy", True, 0.762, 0.762, 0.281, "lost 48.1 points in the last step"),
        ("top5_accuracy", True, 0.9, 0.8, 0.7, "lost 10.0 points in the last step"),
        ("accuracy", True, 0.9, 0.2, 0.9, None),
        ("score", True, 40.0, 30.0, 26.0, None),
        ("score", True, 40.0, 30.0, 25.9, "lost 4.1 in the last step"),
        ("score", True, -40.0, -40.0, -44.1, "lost 4.1 in the last step"),
        ("mse", False, 1.0, 2.0, 2.4, None),
        ("mse", False, 1.0, 2.0, 2.5, "mse rose by 0.5 in the last step"),
        ("mse", False, 1.0, 2.0, 0.1, None),
        ("mse", False, 1.0, 2.0, math.nan, "mse is not finite after the last step"),
        ("mse", False, 1.0, 2.0, math.inf, "mse is not finite after the last step"),
        ("accuracy", True, 0.9, 0.9, math.nan, "accuracy is not finite after the last step"),
        ("accuracy", True, 0.9, math.nan, 0.2, None),
    ],
)
def test_a_step_may_cost_so_much(
    metric: str, higher: bool, original: float, before: float, after: float, mark: str | None
) -> None:
    start = began(metric, original, higher_is_better=higher)
    found = guard.alarm(start, {metric: before}, {metric: after})
    assert (found and found.mark) == mark


@pytest.mark.parametrize(
    ("metric", "after", "alarm"),
    [
        ("accuracy", 0.5, True),
        ("accuracy", 1.5, False),
        ("loss", 1.5, True),
        ("loss", 0.5, False),
        ("error", 1.5, True),
        ("score", 0.5, False),
        ("score", 1.5, False),
    ],
)
def test_where_the_direction_was_not_kept_the_name_tells_it_or_nothing_does(
    metric: str, after: float, alarm: bool
) -> None:
    found = guard.alarm(began(metric, 1.0, repair=None), {metric: 1.0}, {metric: after})
    assert (found is not None) == alarm


@pytest.mark.parametrize("file", [False, True])
def test_a_ruining_approve_is_carried_out_and_told_loudly(
    trained: nn.Module, data: pl.Data, tmp_path: Path, file: bool
) -> None:
    path = tmp_path / "run.prunelab" if file else None
    session = ruined(trained, data, path=path)
    assert session.state.moves == 1
    lost = session.state.base.metrics["accuracy"] - session.state.now.metrics["accuracy"]
    assert lost > 0.3
    assert f" · lost {100 * lost:.1f} points in the last step" in session.state.line()
    said = words.outcome(session.state, session.ledger[-1])
    assert f". A loss of {100 * lost:.1f} points, above the limit of 5 per step." in said
    advice = "Repair it, or undo it and prune less (a smaller theta, fewer channels)."
    assert said.endswith(advice)
    assert f"<td>lost {100 * lost:.1f} points" in history_words.history(
        session.state, session.ledger
    )
    assert f"A loss of {100 * lost:.1f} points" in pl.figures.report(session.ledger)
    if path:
        again = pl.Session.open(path, model=trained, data=data, method=Butcher())
        assert again.state == session.state
        assert words.outcome(again.state, again.ledger[-1]) == said
    session.undo()
    assert "lost" not in session.state.line()


def test_a_repair_or_a_tune_that_ruins_is_told_with_advice_of_its_own(
    trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data)
    with session.tuning("a bad trainer") as network, torch.no_grad():
        network.fc.weight.zero_()
    assert "points in the last step" in session.state.line()
    said = words.outcome(session.state, session.ledger[-1])
    assert said.endswith("Undo it, or tune with a smaller learning rate.")
    session.repair("bn")
    assert session.state.alarm() is None, "it cost nothing more"
    alarm = guard.Alarm("accuracy", 0.9, 0.5, guard.POINTS)
    assert alarm.sentence(session.ledger[-1]).endswith("per step. Undo it, or tune.")


def test_a_repair_that_comes_with_an_approve_is_held_against_the_network_before_both(
    trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data, pl.Random())
    session.propose(target_macs=0.5)
    session.approve()
    state = session.state
    cut, repaired = state.points[-2:]
    assert isinstance(cut.event, Approved)
    assert isinstance(repaired.event, Repaired)
    assert cut.metrics["accuracy"] < 0.9 < repaired.metrics["accuracy"], "a ruin, made good"
    assert state.before(repaired.seq) == state.before(cut.seq) == state.base
    assert state.alarm() is None
    assert state.alarm(cut.seq) is not None
    assert "points in the last step" not in history_words.history(state, session.ledger)
    session.go(cut.seq)
    assert "points in the last step" in session.state.line(), "as cut, it is a ruin"


# ---------------------------------------------------------------- the floor of a run


@pytest.mark.parametrize(
    ("original", "higher", "chance", "floor"),
    [
        (0.9, True, 0.1, 0.5),
        (0.15, True, 0.1, None),
        (0.1, True, 0.1, None),
        (40.0, True, None, 20.0),
        (0.0, True, None, None),
        (-3.0, True, None, None),
        (math.nan, True, None, None),
        (0.5, False, None, 2.0),
        (0.0, False, None, None),
    ],
)
def test_the_floor_that_a_run_keeps_by_itself(
    original: float, higher: bool, chance: float | None, floor: float | None
) -> None:
    assert guard.floor(original, higher, chance) == (
        None if floor is None else pytest.approx(floor)
    )


def test_chance_is_the_share_of_the_commonest_label(trained: nn.Module, data: pl.Data) -> None:
    assert guard.commonest([0, 1, 1, 2]) == 0.5
    labels = torch.cat([y for _, y in data.val])
    settings = pl.Session(trained, data).state.began.settings
    assert settings["chance"] == float(labels.bincount().max()) / len(labels)
    assert settings["higher_is_better"] is True


def test_a_run_leaves_the_ruining_move_pending_and_says_so(
    trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    session = pl.Session(trained, data, pl.FirstK(), repair=None)
    session.run(target_macs=0.2)
    state = session.state
    assert state.moves == 0
    assert state.pending is not None
    note = session.ledger[-1]
    assert isinstance(note, Noted)
    assert note.kind == "run"
    floor = (state.began.settings["chance"] + state.base.metrics["accuracy"]) / 2
    assert note.text.startswith(
        "The run stopped at 100% of the MACs: the next move would take validation accuracy from "
    )
    assert f"below the floor of {floor:.1%}. Tune, prune less, or run with another" in note.text
    assert words.sentence(state, note, session.graph["conv1"]) == note.text
    assert words.outcome(state, note) == note.text
    assert (history_words.by(note), history_words.told(note), told(note)) == (
        "a run",
        note.text,
        note.text,
    )
    assert note.text in history_words.history(state, session.ledger)
    assert note.text in pl.figures.report(session.ledger)
    assert list(replayed(session, trained, data, tmp_path).ledger) == list(session.ledger)
    session.run(target_macs=0.2, min_accuracy=None)
    assert session.state.now.cost.macs <= 0.2 * state.base.cost.macs
    assert "points in the last step" in session.state.line()


def test_the_screen_tells_why_its_run_stopped(trained: nn.Module, data: pl.Data) -> None:
    screen = pl.show(pl.Session(trained, data, pl.FirstK(), repair=None))
    screen.press("run")
    assert "The run stopped at 100% of the MACs" in screen.part("form")
    screen.press("approve")
    assert "A loss of " in screen.part("form")
    screen.close()


def test_a_run_goes_on_after_moves_that_cost_little(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, pl.AOFP(theta=0.01, images=128))
    session.run(target_macs=0.6)
    assert session.state.now.cost.macs <= 0.6 * session.state.base.cost.macs
    assert not any(isinstance(event, Noted) for event in session.ledger)


def judging(score: Callable[[nn.Module], float], better: str) -> dict[str, Any]:
    return {"metrics": {"score": (lambda model, loader: score(model), better)}}


def distance(model: nn.Module, loader: Any) -> float:
    """Mean squared error of logits that are asked to be the one-hot labels."""
    with torch.no_grad():
        errors = [F.mse_loss(model(x), F.one_hot(y, 4).float()) for x, y in loader]
    return float(torch.stack(errors).mean())


def test_a_regression_is_guarded_at_four_times_its_error(trained: nn.Module, data: pl.Data) -> None:
    own = trained_to_regress(data)
    session = pl.Session(
        own, data, Butcher(), repair=None, metrics={"distance": (distance, "lower")},
        loss=lambda model, batch: F.mse_loss(model(batch[0]), F.one_hot(batch[1], 4).float()),
    )  # fmt: skip
    limit = 4 * session.state.base.metrics["distance"]
    session.run(target_macs=0.1)
    assert session.state.moves == 0
    assert f"above the limit of {limit:.4g}" in session.ledger[-1].text
    session.approve()
    assert "distance rose by " in session.state.line()
    assert "A rise of " in words.outcome(session.state, None)
    assert "chance" not in session.state.began.settings


def trained_to_regress(data: pl.Data) -> nn.Module:
    torch.manual_seed(0)
    model = Tiny()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(12):
        for x, y in data.train:
            optimiser.zero_grad()
            F.mse_loss(model(x), F.one_hot(y, 4).float()).backward()
            optimiser.step()
    return model.eval()


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_a_metric_that_is_no_number_breaks_every_floor_and_is_told(
    trained: nn.Module, data: pl.Data, better: str
) -> None:
    values = iter([0.9])
    own = judging(lambda model: next(values, math.nan), better)
    session = pl.Session(trained, data, pl.FirstK(), repair=None, **own)
    session.run(target_macs=0.5)
    assert session.state.moves == 0
    assert "from 0.9 to nan, which breaks the floor of " in session.ledger[-1].text
    session.approve()
    assert "score is not finite after the last step" in session.state.line()


def test_a_network_that_has_learnt_nothing_is_not_guarded(data: pl.Data) -> None:
    model = Tiny().eval()
    session = pl.Session(model, data, Butcher(), repair=None)
    start = session.state
    assert start.base.metrics["accuracy"] <= start.began.settings["chance"] + guard.CLEAR
    session.run(target_macs=0.2)
    assert session.state.now.cost.macs <= 0.2 * start.base.cost.macs
    assert not any(isinstance(event, Noted) for event in session.ledger)
    assert "last step" not in session.state.line()
    assert pl.prune(model, data, Butcher(), target_macs=0.2, repair=None).plan == session.plan


@pytest.mark.parametrize("floor", ["half", True, [0.5], float("nan")])
def test_a_floor_that_is_none_is_refused(session: pl.Session, floor: Any) -> None:
    with pytest.raises(pl.InvalidValue, match="'auto', or None for no floor"):
        session.run(min_accuracy=floor)
    assert len(session.ledger) == 1


@pytest.mark.parametrize("floor", [0, np.float32(0), np.float64(0), np.int64(0)])
def test_any_number_is_a_floor(session: pl.Session, floor: Any) -> None:
    session.run(target_macs=0.9, min_accuracy=floor, moves=1)
    assert session.state.moves == 1


def test_a_file_from_before_directions_were_kept_is_guarded_too(
    trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    path = tmp_path / "old.prunelab"
    pl.Session(trained, data, pl.FirstK(), repair=None, path=path)
    with sqlite3.connect(path) as database:
        (text,) = database.execute("SELECT json FROM event WHERE seq = 0").fetchone()
        whole = json.loads(text)
        settings = whole["settings"]
        for name in ("higher_is_better", "chance", "repair_images", "freeze", "round_to"):
            del (settings[1] if isinstance(settings, list) else settings)[name]
        old = json.dumps(whole)
        change = "UPDATE event SET json = ?, crc = ? WHERE seq = 0"
        database.execute(change, (old, zlib.crc32(old.encode())))
    assert dict(FileStore.open(path).events()[0].settings) == {"repair": None}
    session = pl.Session.open(path, model=trained, data=data)
    session.run(target_macs=0.2)
    assert session.state.moves == 0
    assert "below the floor of" in session.ledger[-1].text
    session.approve()
    assert "points in the last step" in session.state.line()
    assert words.at_chance(session.state) == "", "chance is not known"


# ---------------------------------------------------------------- without a person


def test_prune_raises_where_only_a_ruin_would_meet_the_target(
    trained: nn.Module, data: pl.Data
) -> None:
    given: dict[str, Any] = {"method": Butcher(), "target_macs": 0.1, "repair": None}
    with pytest.raises(pl.BudgetUnreachable, match="The run stopped at 100% of the MACs") as caught:
        pl.prune(trained, data, **given)
    assert caught.value.plan.widths["conv1"] == 12
    result = pl.prune(trained, data, min_accuracy=0.9, **given)
    assert result.plan == caught.value.plan, "a number is kept, and what there is then given"


def test_prune_raises_where_the_result_is_at_chance_and_holds_it(
    trained: nn.Module, data: pl.Data
) -> None:
    with pytest.raises(pl.AtChance, match="at chance: validation accuracy") as caught:
        pl.prune(
            trained, data, Butcher(), target_macs=0.05, min_accuracy=None, repair=None
        )  # fmt: skip
    result = caught.value.result
    assert result.plan.widths["conv1"] == 1
    assert isinstance(result.model(data.val[0][0]), Tensor)


RUIN = "prune --model vgg8 --method first_k --target-macs 0.05 --repair none --tune 0 --out a{}"


@pytest.mark.long
@pytest.mark.parametrize(
    ("least", "said"),
    [(" --min-accuracy none", "The pruned network is at chance"), ("", "The run stopped at 100%")],
)
def test_the_program_writes_what_there_is_and_ends_with_one_line_and_status_1(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    least: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main((RUIN.format(".safetensors") + least).split()) == 1
    out, err = capsys.readouterr()
    assert "written: a.safetensors" in out
    assert (tmp_path / "a.safetensors").is_file()
    last = err.splitlines()[-1]
    assert last.startswith(f"prunelab: {said}")
    assert err.count("prunelab: ") == 1


def test_the_program_takes_a_share_auto_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["prune", "--min-accuracy", "most"])
    assert ended.value.code == 2
    assert "invalid value 'most': give a share, as in 0.9, auto or none" in capsys.readouterr().err


def test_a_trained_network_of_the_zoo_is_not_ruined_in_silence() -> None:
    network = pl.zoo.load("vgg8")
    session = pl.Session(network, pl.data.load("fashion", subset=True), pl.FirstK(), repair=None)
    session.run(target_macs=0.1)
    assert session.state.moves == 0
    assert "below the floor of" in session.ledger[-1].text
    session.approve()
    assert "A loss of " in words.outcome(session.state, None)
    assert words.at_chance(session.state).startswith("The pruned network is at chance")


# ---------------------------------------------------------------- tuning


def test_a_tune_that_makes_the_network_worse_is_not_taken_and_says_so(
    trained: nn.Module, data: pl.Data
) -> None:
    wrong = pl.Data(train=[(x, (y + 1) % 4) for x, y in data.train], val=data.val)
    session = pl.Session(trained, wrong, train=pl.Training(distil=False))
    session.propose()
    session.approve()
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    head = session.state.head
    session.tune(steps=20)
    event = session.ledger[-1]
    assert isinstance(event, Noted)
    assert event.kind == "tune"
    assert "Tuned for 20 steps; rejected: validation accuracy would go from" in event.text
    assert words.outcome(session.state, event) == event.text
    assert session.state.head == head
    for name, tensor in session.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_trainer_of_your_own_is_taken_whatever_it_does(trained: nn.Module, data: pl.Data) -> None:
    def ruin(model: nn.Module, _: pl.Data, steps: int) -> None:
        with torch.no_grad():
            model.fc.weight.zero_()

    session = pl.Session(trained, data, train=ruin)
    session.tune(steps=1)
    assert isinstance(session.ledger[-1], Tuned)
    assert "in the last step" in session.state.line()


def test_a_run_says_which_theta_it_took(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, pl.AOFP(theta=0.01))
    session.run(target_macs=0.6, min_accuracy=None)
    theta = session.state.proposed.move.parameters["theta"]
    assert theta > 0.01
    text = words.outcome(session.state, session.ledger[-1])
    assert text.startswith(f"Approved by a run (theta {theta:g})")
