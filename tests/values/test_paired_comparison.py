"""Paired comparisons of two networks on the same images, and their intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from toys import batches

import prunelab as pl
from prunelab.values.paired_comparison import Answers, by_batch, by_image

HALF = {"conv1": range(6), "conv3": range(0, 16, 2)}


def on(session: pl.Session, network: nn.Module, images: int) -> list[bool]:
    """Which of the first validation images `network` gets right: the plain way."""
    x = torch.cat([x for x, _ in session.data.val])[:images]
    y = torch.cat([y for _, y in session.data.val])[:images]
    with torch.no_grad():
        return (network(x).argmax(1) == y).tolist()


@pytest.mark.parametrize("images", [1, 50, 1000])
def test_a_trial_is_the_masked_network_against_the_one_now(
    session: pl.Session, images: int
) -> None:
    before = (list(session.ledger), session.state)
    trial = session.compare_move(HALF, images=images)
    plan = session.plan.drop(HALF)
    masked = on(session, pl.masked(session.model, session.graph, plan), images)
    now = on(session, session.model, images)
    assert trial.images == len(now) == min(images, 128)
    assert trial.before == np.mean(now)
    assert trial.after == np.mean(masked)
    pairs = list(enumerate(zip(now, masked, strict=True)))
    assert trial.lost == tuple(i for i, (a, b) in pairs if a and not b)
    assert trial.gained == tuple(i for i, (a, b) in pairs if b and not a)
    assert (list(session.ledger), session.state) == before


def test_a_trial_on_all_images_says_what_evaluate_says(session: pl.Session) -> None:
    trial = session.compare_move(HALF)
    masked = pl.masked(session.model, session.graph, session.plan.drop(HALF))
    assert trial.after == session.evaluate("val", network=masked)["accuracy"]
    assert trial.before == session.state.now.metrics["accuracy"]


def test_by_default_the_pending_move_is_tried(session: pl.Session) -> None:
    with pytest.raises(pl.WrongState, match="nothing to try"):
        session.compare_move()
    move = session.propose()
    assert session.compare_move() == session.compare_move(move.drop)
    session.tune(steps=1)
    with pytest.raises(pl.StaleEvidence):
        session.compare_move()


def test_the_network_now_is_not_run_again(
    session: pl.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = session.compare_move(HALF)

    def run(*_: Any) -> Any:
        raise AssertionError("the network now was run")

    now = session._history.network
    monkeypatch.setattr(now, "forward", run)
    with pytest.raises(AssertionError):
        session.compare_move({})  # a copy of it
    monkeypatch.undo()
    small = pl.cut(session.model, session.graph, session.plan.drop(HALF))
    monkeypatch.setattr("prunelab.session.comparing.cut", lambda *_: small)
    monkeypatch.setattr(now, "forward", run)
    assert session.compare_move(HALF) == want


def test_a_loader_with_other_images_every_time_is_still_paired(trained: nn.Module) -> None:
    class Fickle:
        """Batches that differ from one pass to the next two."""

        passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            return iter(batches(64, 2 + self.passes // 2))

    session = pl.Session(trained, pl.Data(train=batches(64, 1), val=Fickle()))
    trial = session.compare_move({})
    assert trial.before == trial.after
    assert not trial.lost and not trial.gained


def test_a_trial_can_be_stopped_between_batches(session: pl.Session) -> None:
    seen = []
    trying = session.comparing_move(HALF)
    seen.append(next(trying))
    assert session.busy == "compare_move"
    session.stop()
    with pytest.raises(pl.Stopped):
        list(trying)
    assert session.busy is None
    assert isinstance(seen[0], pl.Progress)
    assert session.compare_move(HALF).images == 128


@pytest.mark.parametrize("images", [0, -1, True, 2.5])
def test_a_number_of_images_is_asked_for(session: pl.Session, images: Any) -> None:
    with pytest.raises(pl.InvalidValue, match=r"images (must be|is) a whole number"):
        session.compare_move(HALF, images=images)


def test_a_trial_of_a_trained_proposal_takes_its_weights(trained: nn.Module, data: pl.Data) -> None:
    method = pl.AOFP(theta=0.5, scoring="sampled", batches=2, warmup=1, lr=0.05)
    session = pl.Session(trained, data, method=method, repair=None)
    move = session.propose()
    assert move is not None
    trial = session.compare_move()
    session.approve()
    assert trial.after == session.state.now.metrics["accuracy"]


@pytest.mark.parametrize("repair", [False, True])
def test_a_trial_foretells_what_approve_makes(
    trained: nn.Module, data: pl.Data, repair: bool
) -> None:
    session = pl.Session(
        trained, data, method=pl.AOFP(theta=0.3, images=128), repair="lstsq" if repair else None
    )
    session.propose()
    session.adjust(HALF)
    trial = session.compare_move(repair=True)
    session.approve()
    assert trial.after == session.state.now.metrics["accuracy"]
    assert trial.after == session.evaluate("val")["accuracy"]
    told = session.ledger[-1].compared
    if not repair:
        assert told == {"images": 128, "lost": len(trial.lost), "gained": len(trial.gained)}


# ---------------------------------------------------------------- other tasks


def own(trained: nn.Module, **more: Any) -> pl.Session:
    def loss(model: nn.Module, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]), batch[1])

    data = pl.Data(train=batches(64, 1), val=batches(80, 2))
    return pl.Session(trained, data, method=pl.AOFP(images=64), loss=loss, **more)


def test_other_metrics_are_paired_batch_by_batch(trained: nn.Module) -> None:
    session = own(trained)
    trial = session.compare_move(HALF)
    masked = pl.masked(session.model, session.graph, session.plan.drop(HALF))
    assert trial.metric == "loss"
    assert trial.images == 80
    assert not trial.higher_is_better
    assert trial.before == pytest.approx(session.state.now.metrics["loss"])
    assert trial.after == pytest.approx(session.evaluate("val", network=masked)["loss"], rel=1e-5)
    assert trial.answers is None
    assert [len(one) for one in trial.batches] == [3, 3]
    assert session.compare_move(HALF) == trial, "with the batches of the network now remembered"


def test_a_single_batch_has_no_interval(trained: nn.Module) -> None:
    trial = own(trained).compare_move(HALF, images=20)
    assert math.isnan(trial.margin)
    assert trial.within_noise
    assert "one batch" in str(trial)


# ---------------------------------------------------------------- intervals


def answers(right: np.ndarray) -> Answers:
    return Answers((1,) * len(right), tuple(right.astype(int).tolist()))


@settings(max_examples=15, deadline=None)
@given(lost=st.integers(8, 60), gained=st.integers(8, 60), images=st.integers(300, 1000))
def test_the_paired_interval_is_that_of_the_bootstrap(lost: int, gained: int, images: int) -> None:
    now, then = np.ones(images, dtype=bool), np.ones(images, dtype=bool)
    then[:lost] = False
    now[lost : lost + gained] = False
    trial = by_image(answers(now), answers(then))
    rng = np.random.default_rng(0)
    change = then.astype(int) - now.astype(int)
    means = change[rng.integers(0, images, (4000, images))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert 2 * trial.margin == pytest.approx(high - low, rel=0.16)
    assert trial.difference == pytest.approx((gained - lost) / images)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(25, 60))
def test_the_interval_over_batches_is_that_of_the_bootstrap(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.normal(size=(2, count))
    trial = by_batch("loss", before, after, [32] * count, False)
    change = after - before
    means = change[rng.integers(0, count, (4000, count))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert 2 * trial.margin == pytest.approx(high - low, rel=0.16)
    assert trial.difference == pytest.approx(change.mean())


def test_the_interval_over_equal_batches_is_students(trained: nn.Module) -> None:
    from scipy import stats

    before, after = np.array([0.1, 0.4, 0.2, 0.9]), np.array([0.3, 0.5, 0.1, 1.0])
    trial = by_batch("loss", before, after, [8] * 4, False)
    want = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert trial.difference - trial.margin == pytest.approx(want.low)
    assert trial.difference + trial.margin == pytest.approx(want.high)


@pytest.mark.parametrize(("lost", "noise"), [(0, True), (5, True), (7, False), (40, False)])
def test_few_lost_images_are_within_noise(lost: int, noise: bool) -> None:
    then = np.ones(1000, dtype=bool)
    then[:lost] = False
    assert by_image(answers(np.ones(1000)), answers(then)).within_noise is noise


def test_a_trial_reads_as_a_sentence() -> None:
    now, then = np.ones(1000, dtype=bool), np.ones(1000, dtype=bool)
    now[:79] = False
    then[4:90] = False
    assert str(by_image(answers(now), answers(then))) == (
        "92.1 -> 91.4% (-0.7 +- 0.8 points; 11 images lost, 4 gained; within noise)"
    )
