"""The session: verbs, undo and branches, resume, targets; errors change nothing."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Tiny, batches

import prunelab as pl
from prunelab.ledger import history_words, words
from prunelab.ledger.events import Approved, Proposed, Rejected, Repaired, Tuned, Undone
from prunelab.ledger.state import fold
from prunelab.values import Progress, revive, thaw


def snapshot(session: pl.Session) -> tuple[Any, ...]:
    weights = tuple(tensor.clone() for tensor in session.model.state_dict().values())
    return list(session.ledger), session.state, session.plan, weights


def assert_unchanged(session: pl.Session, before: tuple[Any, ...]) -> None:
    events, state, plan, weights = before
    assert list(session.ledger) == events
    assert session.state == state
    assert session.plan == plan
    for a, b in zip(session.model.state_dict().values(), weights, strict=True):
        assert torch.equal(a, b)
    assert session.busy is None


def kinds(session: pl.Session) -> list[str]:
    return [type(event).__name__ for event in session.ledger]


def test_a_move_is_proposed_shown_approved_and_really_cut(session: pl.Session) -> None:
    move = session.propose()
    assert move.drop
    assert move.after.macs < move.before.macs
    assert set(move.damage) == set(move.drop)
    seen = session.state.proposed.seen
    assert {rung.group for rung in seen} >= set(move.drop)
    state = session.approve()
    assert state.moves == 1
    assert kinds(session) == ["Began", "Proposed", "Approved", "Repaired"]
    real = pl.cost(session.model, batches(32, 0)[0][0][:1])
    assert real == state.now.cost == move.after
    for name, units in move.drop.items():
        assert not set(units) & set(session.plan.kept[name])
    assert isinstance(session.model, Tiny)


def test_the_users_model_is_never_touched(trained: nn.Module, session: pl.Session) -> None:
    before = [tensor.clone() for tensor in trained.state_dict().values()]
    session.run(target_macs=0.6)
    session.tune(steps=3)
    for a, b in zip(trained.state_dict().values(), before, strict=True):
        assert torch.equal(a, b)


def test_undo_gives_back_the_very_bits_and_a_later_move_branches(session: pl.Session) -> None:
    session.propose()
    session.approve()
    first = [tensor.clone() for tensor in session.model.state_dict().values()]
    session.propose()
    session.approve()
    session.tune(steps=2)
    assert session.state.moves == 2
    session.undo()  # the tune
    assert session.state.moves == 2
    session.undo()  # the second move, with the repair that came with it
    assert session.state.moves == 1
    for a, b in zip(session.model.state_dict().values(), first, strict=True):
        assert torch.equal(a, b)
    session.propose()
    session.approve()
    branches = {point.parent for point in session.state.points if point not in session.state.path}
    assert session.state.path[-2].parent in branches
    assert fold(session.ledger) == session.state


def test_one_undo_drops_the_proposal_and_takes_back_the_approve(session: pl.Session) -> None:
    session.propose()
    session.approve()
    session.propose()
    session.undo()
    assert session.state.pending is None
    assert session.state.moves == 0
    event = session.ledger[-1]
    assert isinstance(event, Undone)
    assert event.proposal
    with pytest.raises(pl.WrongState, match="nothing to undo"):
        session.undo()


def test_reject_and_adjust_change_the_proposal_only(session: pl.Session) -> None:
    move = session.propose()
    adjusted = session.adjust(drop={"conv1": [0, 1, 2]})
    assert adjusted.drop == {"conv1": (0, 1, 2)}
    assert session.state.pending == adjusted
    assert adjusted.damage["conv1"] > 0
    assert session.plan == pl.WidthPlan.full(session.graph)
    assert session.what_if({"conv1": [0, 1, 2]}) == adjusted
    session.reject("too much")
    assert session.state.pending is None
    assert isinstance(session.ledger[-1], Rejected)
    assert session.propose().drop == move.drop


def test_the_state_forbids_what_makes_no_sense(session: pl.Session) -> None:
    for verb in (session.approve, session.reject, lambda: session.adjust(drop={})):
        with pytest.raises(pl.WrongState):
            verb()
    session.propose()
    before = snapshot(session)
    with pytest.raises(pl.WrongState, match="pending"):
        session.propose()
    with pytest.raises(pl.IllegalPlan, match="one must stay"):
        session.adjust(drop={"conv1": range(12)})
    with pytest.raises(pl.UnknownName, match="Did you mean 'conv1'"):
        session.adjust(drop={"conv11": [0]})
    with pytest.raises(pl.IllegalPlan, match="does not have"):
        session.adjust(drop={"conv1": [77]})
    assert_unchanged(session, before)


def test_a_stale_proposal_is_never_approved(session: pl.Session) -> None:
    session.propose()
    session.tune(steps=1)
    assert session.state.stale
    with pytest.raises(pl.StaleEvidence, match="propose again"):
        session.approve()
    assert session.propose() is not None
    assert not session.state.stale
    session.approve()


def test_run_meets_the_target_within_one_unit(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.01, images=128))
    session.run(target_macs=0.5)
    base = session.state.base.cost.macs
    assert session.state.now.cost.macs <= 0.5 * base
    last = [event for event in session.ledger if isinstance(event, Approved)][-1]
    dropped = [e.move for e in session.ledger if isinstance(e, Proposed)][-1].drop
    full = pl.WidthPlan.full(session.graph)
    heavier = []
    for name, units in dropped.items():
        for unit in units:
            kept = {n: set(u) | ({unit} if n == name else set()) for n, u in last.kept.items()}
            plan = full.drop({n: set(full.kept[n]) - kept[n] for n in kept})
            heavier.append(pl.cost(pl.trace(trained, torch.randn(1, 1, 12, 12)), plan).macs)
    assert max(heavier) > 0.5 * base


def test_run_doubles_theta_and_says_so_then_gives_up_with_the_best_plan(
    trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data, method=pl.AOFP(theta=1e-6, max_theta=0.02, images=128))
    with pytest.raises(pl.BudgetUnreachable, match="no further moves") as caught:
        session.run(target_macs=0.2)
    assert caught.value.plan == session.plan
    thetas = [
        e.move.parameters["theta"] for e in session.ledger if isinstance(e, Proposed) and e.move
    ]
    assert thetas and all(1e-6 < theta <= 0.02 for theta in thetas)


def test_run_refuses_a_target_that_the_methods_groups_cannot_reach_before_it_measures(
    data: pl.Data,
) -> None:
    class Streams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 8, 3, padding=1)
            self.inside, self.last = nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(2, 8, 3, padding=1)
            self.fc = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.fc((x + self.last(self.inside(x).relu())).mean((2, 3)))

    net, x = Streams(), torch.randn(1, 1, 12, 12)
    session = pl.Session(net, data, method=pl.AOFP(images=64))
    narrowest = pl.WidthPlan.full(session.graph).drop({"inside": [1]})
    left = pl.cost(pl.trace(net, x), narrowest).macs / session.state.base.cost.macs
    with pytest.raises(pl.BudgetUnreachable, match=f"{left:.1%} are left.*'all'") as caught:
        session.run(target_macs=left - 0.01)
    assert caught.value.plan == session.plan == pl.WidthPlan.full(session.graph)
    assert len(session.ledger) == 1
    session.run(target_macs=left + 1e-6, min_accuracy=None)
    assert session.plan.widths == narrowest.widths


def test_the_guard_leaves_the_breaking_move_pending(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.05, images=128), repair=None)
    session.run(target_macs=0.1, min_accuracy=0.95)
    assert session.state.now.metrics["accuracy"] >= 0.95
    assert session.state.pending is not None


@pytest.mark.parametrize("target", [0, -1, True, "half", float("nan")])
def test_targets_out_of_range_are_refused(session: pl.Session, target: Any) -> None:
    before = snapshot(session)
    with pytest.raises(pl.InvalidValue, match="target_macs"):
        session.run(target_macs=target)
    assert_unchanged(session, before)


def test_repair_helps_and_is_a_step_of_its_own(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.3, images=128), repair=None)
    session.propose()
    session.adjust(drop={"conv1": range(0, 12, 2), "conv3": range(0, 16, 2)})
    session.approve()
    bare = session.evaluate()["loss"]
    session.repair()
    event = session.ledger[-1]
    assert isinstance(event, Repaired)
    assert event.kind == "lstsq"
    assert not event.automatic
    assert session.evaluate()["loss"] < bare
    with pytest.raises(pl.InvalidValue, match="repair is"):
        session.repair("magic")
    session.undo()
    assert session.evaluate()["loss"] == pytest.approx(bare)


@pytest.mark.parametrize("kind", ["bn", "lstsq"])
def test_repairing_what_was_not_pruned_changes_nothing(session: pl.Session, kind: str) -> None:
    before = [tensor.clone() for tensor in session.model.state_dict().values()]
    session.repair(kind)
    for a, b in zip(session.model.state_dict().values(), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_tune_trains_and_records(session: pl.Session) -> None:
    session.propose()
    session.approve()
    session.tune(steps=4)
    event = session.ledger[-1]
    assert isinstance(event, Tuned)
    assert (event.steps, event.by, event.replayable) == (4, "prunelab", True)


def test_a_trainer_of_ones_own(session: pl.Session) -> None:
    with session.tuning("my trainer") as model, torch.no_grad():
        model.fc.bias += 0.25
    assert session.ledger[-1].by == "my trainer"
    assert not session.ledger[-1].replayable
    before = snapshot(session)
    with pytest.raises(ZeroDivisionError), session.tuning("broken") as model:
        model.fc.bias.data.zero_()
        raise ZeroDivisionError
    with pytest.raises(pl.NotFinite, match="fc"), session.tuning("nan") as model:
        model.fc.weight.data.fill_(torch.nan)
    with pytest.raises(pl.BadModel, match="shape"), session.tuning("grows") as model:
        model.fc = nn.Linear(16, 9)
    assert_unchanged(session, before)


def test_metrics_losses_and_batches_of_ones_own(trained: nn.Module, tmp_path: Path) -> None:
    train = [{"x": x, "y": y} for x, y in batches(96, 1)]

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["x"])

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(forward(model, batch), batch["y"])

    def error(model: nn.Module, loader: Any) -> float:
        with torch.no_grad():
            return float(torch.stack([loss(model, batch) for batch in loader]).mean())

    own = pl.Session(
        trained,
        pl.Data(train=train, val=train, input_shape=(1, 12, 12)),
        method=pl.AOFP(theta=0.05),
        forward=forward,
        loss=loss,
        metrics={"error": (error, "lower")},
    )
    own.propose()
    own.approve()
    own.tune(steps=2)
    assert list(own.evaluate()) == ["error"]
    floor = own.state.now.metrics["error"] + 1e-3
    own.run(target_macs=0.2, min_accuracy=floor)
    assert own.state.now.metrics["error"] <= floor
    assert own.export(tmp_path / "own.safetensors").is_file()


def test_verbs_are_refused_while_one_is_at_work_and_stop_passes(session: pl.Session) -> None:
    before = snapshot(session)
    told: list[str] = []

    def listener(item: Any) -> None:
        if isinstance(item, Progress):
            with pytest.raises(pl.SessionBusy):
                session.undo()
            told.append(session.busy)
            session.stop()

    end = session.listen(listener)
    with pytest.raises(pl.Stopped):
        session.propose()
    end()
    assert told == ["propose"]
    assert_unchanged(session, before)
    assert session.propose() is not None


@pytest.mark.parametrize("verb", ["propose", "approve", "repair", "tune", "run", "evaluate"])
def test_an_interrupt_in_any_verb_changes_nothing(session: pl.Session, verb: str) -> None:
    if verb in ("approve",):
        session.propose()
    before = snapshot(session)
    work = {"tune": lambda: session.tune(steps=5)}.get(verb, lambda: getattr(session, verb)())
    count = 0

    class Interrupts(KeyboardInterrupt):
        pass

    def interrupt(item: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise Interrupts

    end = session.listen(interrupt)
    with pytest.raises(Interrupts):
        work()
    end()
    assert_unchanged(session, before)
    work()


def test_proposing_shows_the_search_as_it_goes(session: pl.Session) -> None:
    seen = []
    search = session.proposing()
    while True:
        try:
            seen.append(next(search))
        except StopIteration as end:
            move = end.value
            break
    assert [item for item in seen if isinstance(item, pl.Rung)] == list(session.state.proposed.seen)
    assert move == session.state.pending


def test_an_abandoned_search_leaves_the_session_free(session: pl.Session) -> None:
    before = snapshot(session)
    search = session.proposing()
    next(search)
    search.close()
    assert_unchanged(session, before)


def test_events_go_to_json_and_back(session: pl.Session) -> None:
    session.propose()
    session.adjust(drop={"conv1": [1]})
    session.approve()
    session.undo()
    for event in session.ledger:
        again = revive(json.loads(json.dumps(thaw(event))))
        assert again == event
        assert again.at == event.at


def test_a_session_file_resumes_where_it_was(
    trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    path = tmp_path / "run.prunelab"
    first = pl.Session(trained, data, method=pl.AOFP(theta=0.05, images=128), path=path)
    straight = pl.Session(trained, data, method=pl.AOFP(theta=0.05, images=128))
    for session in (first, straight):
        session.propose()
        session.approve()
        session.propose()
    again = pl.Session.open(path, model=Tiny(), data=data)
    assert list(again.ledger) == list(first.ledger) == list(straight.ledger)
    assert again.state == straight.state
    assert again.method == straight.method
    for a, b in zip(
        again.model.state_dict().values(), straight.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    for session in (again, straight):
        session.approve()
        session.tune(steps=2)
        session.undo()
        session.propose()
    assert list(again.ledger) == list(straight.ledger)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
from toys import Tiny, batches
import prunelab as pl
torch.manual_seed(0)
torch.set_num_threads(1)
data = pl.Data(train=batches(64, 1), val=batches(32, 2))
session = pl.Session(Tiny(), data, method=pl.AOFP(theta=0.5), path={path!r})
session.propose()
session.approve()
print(session.state.line(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_kernel_loses_nothing_that_was_approved(tmp_path: Path) -> None:
    path = str(tmp_path / "run.prunelab")
    code = KILLED.format(tests=str(Path(__file__).parents[1]), path=path)
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    small = pl.Data(train=batches(64, 1), val=batches(32, 2))
    again = pl.Session.open(path, model=Tiny(), data=small)
    assert again.state.moves == 1
    assert again.state.line() == killed.stdout.strip()


def test_buttons_and_verbs_write_the_same_ledger(trained: nn.Module, data: pl.Data) -> None:
    by_verbs, by_buttons = (
        pl.Session(trained, data, method=pl.AOFP(theta=0.05, images=128)) for _ in range(2)
    )
    screen = pl.show(by_buttons)
    for verb in ("propose", "approve", "propose", "reject", "propose", "undo", "repair"):
        if verb == "undo":  # the screen goes step by step: first what is pending
            by_verbs.undo(only_proposal=True)
        else:
            getattr(by_verbs, verb)()
        screen.press(verb)
    screen.close()
    assert list(by_buttons.ledger) == list(by_verbs.ledger)


def test_a_model_on_the_meta_device_is_refused(data: pl.Data) -> None:
    with torch.device("meta"):
        empty = Tiny()
    with pytest.raises(pl.BadModel, match="meta device"):
        pl.Session(empty, data)


def test_another_models_session_is_refused(
    trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    path = tmp_path / "run.prunelab"
    pl.Session(trained, data, path=path)
    with pytest.raises(pl.SessionFileError, match="do not fit"):
        pl.Session.open(path, model=nn.Sequential(nn.Conv2d(1, 2, 3)), data=data)
    with pytest.raises(pl.SessionFileError, match="exists already"):
        pl.Session(trained, data, path=path)


def test_the_same_verbs_from_another_thread(session: pl.Session) -> None:
    worker = threading.Thread(target=lambda: (session.propose(), session.approve()))
    worker.start()
    worker.join()
    assert session.state.moves == 1


def test_data_that_cannot_be_used_is_told_what_to_do(trained: nn.Module, data: pl.Data) -> None:
    good = data.train
    with pytest.raises(pl.BadData, match=r"0 \.\. 3"):
        bad = [(x, y + 1) for x, y in good]
        pl.Session(trained, pl.Data(train=good, val=bad))
    with pytest.raises(pl.BadData, match="cannot run on this batch"):
        wrong = [(torch.randn(4, 3, 12, 12), torch.zeros(4, dtype=torch.long))]
        pl.Session(trained, pl.Data(train=good, val=wrong))
    with pytest.raises(pl.BadModel, match=r"conv2\.weight holds NaN"):
        broken = Tiny()
        broken.conv2.weight.data[0] = torch.nan
        pl.Session(broken, data)
    with pytest.raises(pl.UnknownName, match="method"):
        pl.Session(trained, data, method="aofpp")
    with pytest.raises(pl.InvalidValue, match="repair"):
        pl.Session(trained, data, repair="magic")
    with pytest.raises(pl.BadData, match=r"\.train"):
        pl.Session(trained, [1, 2])


def test_a_nan_loss_names_the_layer_and_changes_nothing(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, train=pl.Training(lr=1e30))
    before = snapshot(session)
    with pytest.raises(pl.NotFinite):
        session.tune(steps=8)
    assert_unchanged(session, before)


def test_what_is_exported_comes_back_the_same(
    session: pl.Session, trained: nn.Module, tmp_path: Path
) -> None:
    session.run(target_macs=0.6)
    path = session.export(tmp_path / "small.safetensors")
    again = pl.load_pruned(Tiny, path)
    x = batches(32, 0)[0][0]
    with torch.no_grad():
        assert torch.equal(again(x), session.model(x))
    card = json.loads((tmp_path / "small.card.json").read_text())
    assert card["cost"]["after"]["macs"] == pl.cost(again, x[:1]).macs
    assert card["test"]["after"] == session.evaluate()
    assert card["latency_seconds"]["batch"] == 1
    plan = pl.WidthPlan.from_json(
        session.export(tmp_path / "plan.json").read_text(), pl.trace(trained, x)
    )
    assert plan == session.plan
    with pytest.raises(pl.InvalidValue, match="export writes"):
        session.export(tmp_path / "small.pkl")
    with pytest.raises(pl.BadModel, match="another architecture"):
        pl.load_pruned(lambda: nn.Conv2d(1, 2, 3), path)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(pl.SessionFileError, match="cannot be read"):
        pl.load_pruned(Tiny, tmp_path / "junk.safetensors")


def test_the_script_replays_the_same_ledger(
    session: pl.Session, trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    session.propose()
    session.adjust(drop={"conv1": [0, 3]})
    session.approve()
    session.propose()
    session.reject("no")
    session.tune(steps=2)
    session.undo()
    session.note("done")
    session.run(target_macs=0.8)
    path = session.export(tmp_path / "run.py")
    scope: dict[str, Any] = {"__name__": "replayed"}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    assert list(scope["replay"](trained, data).ledger) == list(session.ledger)


@pytest.mark.long
def test_the_script_run_by_itself_gives_the_same_bits(
    session: pl.Session, trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    session.measure()
    session.propose()
    session.adjust(session.foresee(target_macs=0.85).move.drop)
    session.compare_move()
    session.approve()
    session.repair("bn")
    session.undo()
    session.method = pl.Magnitude(pruning_ratio=0.3)
    session.propose()
    session.approve()
    session.undo()
    session.method = pl.AOFP(theta=0.02, images=64)
    session.run(target_macs=0.6)
    session.repair()
    session.tune(steps=3)
    session.propose()
    path = session.export(tmp_path / "run.py")
    scope: dict[str, Any] = {"__name__": "replayed"}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    again = scope["replay"](trained, data)
    assert list(again.ledger) == list(session.ledger)
    assert again.plan == session.plan
    assert again.state.pending == session.state.pending
    for a, b in zip(
        again.model.state_dict().values(), session.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_prune_does_the_whole_job_without_a_person(trained: nn.Module, data: pl.Data) -> None:
    result = pl.prune(
        trained, data, method=pl.AOFP(theta=0.05, images=128), target_macs=0.5, tune=4
    )
    before, after = (pl.cost(model, batches(32, 0)[0][0][:1]) for model in (trained, result.model))
    assert after.macs <= 0.5 * before.macs
    assert result.trajectory[-1].cost == after
    assert result.plan.widths["conv1"] < 12


def test_a_tune_that_is_stopped_can_keep_what_it_has(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, repair=None)
    seen: list[int] = []

    def enough(told: object) -> None:
        if isinstance(told, Progress) and told.what == "tuning":
            seen.append(told.done)
            if told.done == 3:
                session.stop(keep=True)

    session.listen(enough)
    session.tune(steps=50)
    event = session.ledger[-1]
    assert isinstance(event, Tuned)
    assert (event.steps, event.replayable) == (3, False)
    assert max(seen) == 3
    session.stop(keep=True)
    session.tune(steps=2)
    assert session.ledger[-1].steps == 2, "an old word to keep ends no later tune"


def test_a_metric_that_is_no_number_breaks_the_floor(trained: nn.Module, data: pl.Data) -> None:
    values = iter([0.9])
    metrics = {"score": lambda model, loader: next(values, float("nan"))}
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.05, images=128), metrics=metrics)
    session.run(target_macs=0.5, min_accuracy=0.1)
    assert session.state.moves == 0
    assert session.state.pending is not None


def test_a_latency_is_remembered_of_the_point_where_it_was_measured(session: pl.Session) -> None:
    assert session.latencies == {}
    session.latency(session.original())
    assert session.latencies == {}, "of another network"
    first = session.latency()
    assert 0 < first.low <= first.median <= first.high
    assert (first.runs, first.device, first.inputs) == (30, "cpu", 1)
    session.propose()
    session.approve()
    assert session.latencies == {0: first}
    second = session.latency()
    assert set(session.latencies) == {0, session.state.head}
    assert session.latencies[session.state.head] == second
    first = session.latencies[0]  # measured again, in turn
    session.undo()
    assert session.latencies[session.state.head] == first
    session.listen(lambda told: session.stop() if isinstance(told, Progress) else None)
    with pytest.raises(pl.Stopped):
        session.latency()
    assert session.latencies[0] == first
    assert [type(event).__name__ for event in session.ledger][-1] == "Undone", "no event of its own"


@pytest.mark.parametrize("own", [False, True])
def test_a_latency_is_of_one_input_and_of_a_batch_where_forward_is_ones_own(
    trained: nn.Module, data: pl.Data, own: bool
) -> None:
    forward = (lambda model, batch: model(batch[0])) if own else None
    metrics = {"score": lambda model, loader: 0.0} if own else None
    session = pl.Session(trained, data, forward=forward, metrics=metrics, repair=None)
    seen: list[int] = []
    network = session.original()
    network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    found = session.latency(network)
    batch = len(data.train[0][0])
    assert set(seen) == {found.inputs} == {batch if own else 1}


def test_run_makes_so_many_moves_and_approve_can_leave_out_the_repair(
    trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.05, images=128))
    session.run(target_macs=0.3, moves=1, repair=False)
    assert [type(event).__name__ for event in session.ledger] == ["Began", "Proposed", "Approved"]
    assert "session.approve(repair=False)" in session.export(tmp_path / "run.py").read_text()
    assert session.ledger[-1].run == 0.3
    assert [history_words.by(event) for event in session.ledger] == [
        "",
        "AOFP",
        "a run to 30% of the MACs",
    ]
    assert words.outcome(session.state, None).startswith("Approved by a run (theta ")
    session.propose()
    session.approve()
    assert session.ledger[-2].run is None
    assert [history_words.by(event) for event in session.ledger][3:] == ["AOFP", "you", "session"]
    assert words.outcome(session.state, None).startswith("Approved and repaired: ")
    with pytest.raises(pl.InvalidValue, match="moves is a whole number"):
        session.run(moves=1.5)
    events = len(session.ledger)
    with pytest.raises(pl.InvalidValue, match="0 or more, not -1"):
        session.run(target_macs=0.1, moves=-1)
    session.run(target_macs=0.1, moves=0)
    for target in (float("inf"), float("nan"), 0, True):
        with pytest.raises(pl.InvalidValue, match="target_macs is a share"):
            session.run(target_macs=target)
    assert len(session.ledger) == events


@pytest.mark.parametrize("name", ['three """ quotes', "a \\x of its own", "an end\\"])
def test_a_script_is_python_whatever_a_metric_is_called(
    trained: nn.Module, data: pl.Data, tmp_path: Path, name: str
) -> None:
    session = pl.Session(trained, data, metrics={name: lambda *_: 1.0})
    text = session.export(tmp_path / "run.py").read_text()
    assert ast.get_docstring(ast.parse(text), clean=False).endswith(f"{session.state.line()}.")


def test_a_metric_is_called_by_a_text_and_gives_a_number(trained: nn.Module, data: pl.Data) -> None:
    for name, value, message in (
        (3, 1.0, "names of metrics are strings, not 3"),
        ("q", None, "'q' returned None"),
        ("q", torch.zeros(2), "'q' returned tensor"),
    ):
        with pytest.raises(pl.InvalidValue, match=message):
            pl.Session(trained, data, metrics={name: lambda *_, value=value: value})


def test_go_takes_up_any_point_on_any_branch(
    trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.05, images=128), path=tmp_path / "s")
    session.propose()
    session.approve()
    far = session.state.head
    weights = {name: t.clone() for name, t in session.model.state_dict().items()}
    session.undo()
    session.propose()
    session.go(far)
    assert session.state.head == far
    assert session.state.pending is None
    again = session.model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    assert f"session.go({far})" in session.export(tmp_path / "run.py").read_text()
    opened = pl.Session.open(tmp_path / "s", model=trained, data=data)
    assert opened.state == session.state
    with pytest.raises(pl.InvalidValue, match="no other network at event"):
        session.go(far)


def test_a_parameter_that_is_no_plain_data_is_recorded_by_its_type(
    trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    @dataclass(frozen=True)
    class Guided:
        name: ClassVar[str] = "guided"

        guide: Any
        share: float = 0.5

        def search(self, context: Any) -> Iterator[Any]:
            yield from ()

    for path in (None, tmp_path / "run.prunelab"):
        session = pl.Session(trained, data, method=Guided(nn.Linear(2, 2)), path=path)
        assert dict(session.state.began.parameters) == {"guide": "<Linear>", "share": 0.5}


# ---------------------------------------------------------------- a notebook that is run again


def test_a_cell_that_is_run_again_resumes_its_session(
    trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    def cell(**more: Any) -> pl.Session:
        given = {"method": pl.AOFP(theta=0.01), "path": tmp_path / "run.prunelab", "resume": True}
        return pl.Session(trained, data, **{**given, **more})

    session = cell()
    session.method = pl.AOFP(theta=0.05, images=64)
    session.propose()
    session.approve()
    session.propose()
    before = snapshot(session)
    again = cell()
    assert_unchanged(again, before)
    assert again.method == session.method, "the one that proposed last"
    for odd in ({"seed": 1}, {"repair": "bn"}, {"repair_images": 7}):
        with pytest.raises(pl.InvalidValue, match="began with"):
            cell(**odd)
    with pytest.raises(pl.SessionFileError, match="exists"):
        cell(resume=False)
    with pytest.raises(pl.InvalidValue, match="path"):
        cell(path=None)
    assert_unchanged(cell(), before)


def test_undo_of_the_proposal_only_keeps_the_steps_and_is_replayed(
    session: pl.Session, trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    with pytest.raises(pl.WrongState):
        session.undo(only_proposal=True)
    session.propose()
    session.approve()
    head = session.state.head
    session.propose()
    session.undo(only_proposal=True)
    assert (session.state.head, session.state.pending) == (head, None)
    path = session.export(tmp_path / "run.py")
    scope: dict[str, Any] = {"__name__": "replayed"}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    assert list(scope["replay"](trained, data).ledger) == list(session.ledger)


def test_the_script_of_a_tune_that_was_ended_early_runs_and_says_so(
    session: pl.Session, trained: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    def enough(told: object) -> None:
        if isinstance(told, Progress) and told.what == "tuning" and told.done == 3:
            session.stop(keep=True)

    end = session.listen(enough)
    session.tune(steps=50)
    end()
    seq = len(session.ledger) - 1
    path = session.export(tmp_path / "run.py")
    scope: dict[str, Any] = {"__name__": "replayed"}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    said = scope["__doc__"].split("\n\n")[1]
    assert f"- event {seq}: a tune that was ended early, after 3 steps" in said
    assert scope["replay"](trained, data).ledger[-1].steps == 3


def test_a_latency_is_measured_in_turn_with_the_original(session: pl.Session) -> None:
    first = session.latency()
    assert list(session.latencies) == [0]
    session.propose()
    session.approve()
    assert session.latency() == session.latencies[session.state.head]
    assert session.latencies[0] != first, "measured again, under the same load"


class TwoHeads(nn.Module):
    """The second head never runs on a plain batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Tiny()
        self.spare = nn.Linear(16, 3)

    def forward(self, x: Tensor, spare: bool = False) -> Tensor:
        if not spare:
            return self.body(x)
        net = self.body
        x = F.relu(net.conv3(F.relu(net.bn0(net.stem(x)))))
        return self.spare(x.mean((2, 3)))


def test_layers_that_never_ran_are_named_where_the_session_is_shown(
    data: pl.Data, tmp_path: Path
) -> None:
    session = pl.Session(TwoHeads(), data, method="magnitude")
    assert session.graph["body.conv3"].why
    assert session.state.began.unseen == ("spare",)
    assert "spare never ran" in session.state.line()
    session.propose(0.8)
    session.approve()
    session.export(tmp_path / "net.safetensors")
    assert json.loads((tmp_path / "net.card.json").read_text())["never_ran"] == ["spare"]
    assert session.model(torch.randn(2, 1, 12, 12), spare=True).shape == (2, 3)


class Auxiliary(nn.Module):
    """A head that runs in training only reads what the next layer reads, as GoogLeNet's do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.head, self.aux, self.aux_head = nn.Linear(12, 4), nn.Conv2d(8, 10, 1), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        out = self.head(F.relu(self.b(x)).mean((2, 3)))
        return (out, self.aux_head(F.relu(self.aux(x)).mean((2, 3)))) if self.training else out


def summed_loss(model: nn.Module, batch: Any) -> Tensor:
    outs = model(batch[0])
    each = [F.cross_entropy(out, batch[1]) for out in (outs if model.training else [outs])]
    return torch.stack(each).sum()


@pytest.mark.parametrize(
    "method", ["aofp", "elimination", "surgeon", "group_fisher", "taylor", "oracle", "thinet",
               "channel_pruning", "magnitude"],
)  # fmt: skip
def test_what_no_image_reaches_is_kept_and_said(method: str, data: pl.Data) -> None:
    session = pl.Session(Auxiliary(), data, method=method, loss=summed_loss)
    assert session.graph["aux"].why.startswith("no training image reaches")
    assert session.graph["a"].consumers == ("b", "aux")
    move = session.propose(0.7)
    assert move is not None
    assert set(move.drop) <= {"a", "b"}
    session.approve()
    assert [out.shape for out in session.model.train()(torch.randn(2, 1, 12, 12))] == [(2, 4)] * 2


def test_a_network_without_a_layer_says_so(data: pl.Data) -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.scale).flatten(1)[:, :4]

    graph = pl.trace(Weighted(), torch.randn(1, 1, 4, 4))
    assert "no convolution or linear layer ran" in str(graph)
    with pytest.raises(pl.BadModel, match=r"no convolution and no linear layer ran .*\(spare"):
        pl.Session(Weighted(), data)


class Squeezes(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv3(F.relu(self.bn0(self.stem(x)))))
        return F.log_softmax(self.fc(F.adaptive_avg_pool2d(x, 1).squeeze()), dim=1)


def test_a_network_that_takes_no_batch_of_one_is_given_two(data: pl.Data, tmp_path: Path) -> None:
    with pytest.raises(pl.TraceError, match="two if it takes no batch of one"):
        pl.trace(Squeezes(), torch.randn(1, 1, 12, 12))
    session = pl.Session(Squeezes(), data, method="magnitude", repair=None)
    assert len(session.example) == 2
    session.propose(0.7)
    session.approve()
    assert session.latency().inputs == 2
    session.measure()
    session.export(tmp_path / "net.safetensors")
    whole = pl.cost(Squeezes(), torch.randn(2, 1, 12, 12))
    assert session.state.base.cost.macs == whole.macs


class Routed(nn.Module):
    """Its images choose which of two layers runs, and few choose the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.ways = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 6, 3), nn.Conv2d(6, 8, 1)) for _ in "ab"
        )
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.ways[int(x.max() > 50)](self.stem(x)).mean((2, 3)))


def test_a_layer_that_later_images_reach_is_reached(data: pl.Data) -> None:
    first, *others = data.train
    bright = [first, *others[:2], (others[2][0] + 100, others[2][1])]
    calls = [(first[0][:1],), (bright[-1][0][:1],)]
    for train, reaches in ((bright, True), (others, False)):
        session = pl.Session(Routed(), pl.Data(train, data.val), example_inputs=calls[::-1])
        assert session.graph["ways.1.0"].prunable == reaches
        assert session.graph["ways.0.0"].prunable
