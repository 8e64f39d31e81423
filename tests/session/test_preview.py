"""Foresight: predictions equal the verbs' results, and no network is run for them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Couplings, Tiny

import prunelab as pl
from prunelab.cost.timing import LayerTimes
from prunelab.data.splits import Splits
from prunelab.evidence import damage_curve
from prunelab.values import FrozenMap


@pytest.fixture
def measured(session: pl.Session) -> pl.Session:
    """The session with evidence at hand."""
    session.measure()
    return session


@pytest.fixture
def idle(measured: pl.Session, monkeypatch: pytest.MonkeyPatch) -> pl.Session:
    """The same, whose network cannot be run any more."""

    def run(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was run")

    monkeypatch.setattr(measured.model, "forward", run)
    monkeypatch.setattr(Splits, "images", run)
    return measured


@pytest.mark.parametrize("theta", [1e-6, 0.01, 0.05, 0.2, 1.0])
def test_another_theta_is_foreseen_as_a_proposal_then_makes_it(
    session: pl.Session, theta: float
) -> None:
    session.measure()
    before = list(session.ledger)
    seen = session.foresee(theta=theta)
    assert list(session.ledger) == before
    session.method = pl.AOFP(theta=theta, images=128)
    assert session.propose() == seen.move
    proposed = session.state.proposed
    assert proposed is not None
    assert proposed.seen == seen.seen
    assert session.state.proposed_widths() == seen.widths


@pytest.mark.parametrize(
    "method",
    [
        pl.ThiNet(pruning_ratio=0.3, images=128),
        pl.Magnitude(pruning_ratio=0.3),
        pl.Random(pruning_ratio=0.25),
    ],
    ids=lambda method: method.name,
)
def test_any_method_that_gets_by_with_the_evidence_is_foreseen(
    measured: pl.Session, method: Any
) -> None:
    seen = measured.foresee(method=method)
    measured.method = method
    assert measured.propose() == seen.move
    assert measured.state.proposed.seen == seen.seen


def test_scores_of_a_proposal_answer_for_another_ratio(session: pl.Session) -> None:
    session.method = pl.Taylor(images=64)
    session.propose()
    session.reject()
    again = pl.Taylor(images=64, pruning_ratio=0.25)
    seen = session.foresee(method=again)
    session.method = again
    assert session.propose() == seen.move


def test_a_drop_is_foreseen_as_adjust_then_makes_it(session: pl.Session) -> None:
    session.propose()
    drop = {"conv1": [0, 3, 5], "conv3": [1]}
    seen = session.foresee(drop)
    assert seen.move == session.what_if(drop) == session.adjust(drop)
    assert seen.damage == seen.move.damage
    assert (seen.before, seen.after) == (seen.move.before, seen.move.after)
    assert session.approve().now.cost == seen.after
    assert session.plan == seen.plan


def test_nothing_is_run_for_a_foresight(idle: pl.Session) -> None:
    assert idle.foresee({"conv1": [0]}).move is not None
    assert idle.foresee(theta=0.2).move is not None
    assert idle.foresee(target_macs=0.6).move is not None
    assert idle.foresee().seen


def test_the_best_of_that_size_is_never_worse_than_what_was_chosen(measured: pl.Session) -> None:
    evidence = measured.evidence.evidence
    for units in itertools.combinations(range(8), 3):
        seen = measured.foresee({"conv1": units})
        best = seen.best["conv1"]
        assert len(best.units) == 3
        assert best.damage == evidence["conv1"].damage(best.units) <= seen.damage["conv1"]


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.2, 1.0))
def test_a_budget_is_kept_and_hardly_dearer_than_the_slow_search_finds(
    studied: pl.Session, share: float
) -> None:
    seen = studied.foresee(target_macs=share)
    assert seen.after.macs <= share * seen.before.macs
    evidence = studied.evidence.evidence
    inner = [n for n in evidence.groups if not studied.graph[n].residual]
    slow = pl.allocate(studied.graph, evidence, share, groups=inner)
    lost = {n: damage_curve(evidence[n]).damages for n in inner}
    dropped = slow.dropped
    least = sum(lost[n][len(units) - 1] for n, units in dropped.items())
    assert sum(seen.damage.values()) <= 1.25 * least + 0.01


@pytest.fixture(scope="module")
def studied(trained: torch.nn.Module, data: pl.Data) -> pl.Session:
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.05, images=128))
    session.measure()
    return session


def test_a_budget_out_of_reach_is_said_to_be(measured: pl.Session) -> None:
    with pytest.raises(pl.BudgetUnreachable, match="out of reach"):
        measured.foresee(target_macs=0.001)


def test_a_budget_counts_from_the_original_network(measured: pl.Session) -> None:
    measured.propose()
    measured.approve()
    measured.measure()
    seen = measured.foresee(target_macs=0.4)
    assert seen.before == measured.state.now.cost
    assert seen.after.macs <= 0.4 * measured.state.base.cost.macs
    assert measured.foresee(target_macs=1.0).move.drop == {}


def test_residual_streams_stay_unless_the_method_takes_them(
    trained: torch.nn.Module, data: pl.Data
) -> None:
    touched = []
    for groups in ("internal", "all"):
        session = pl.Session(trained, data, method=pl.AOFP(images=64, groups=groups))
        session.measure()
        touched.append(set(session.foresee(target_macs=0.3).move.drop))
    assert touched[0] == {"conv1", "conv3"}
    assert "stem" in touched[1]


def test_one_question_at_a_time_and_a_theta_only_where_there_is_one(measured: pl.Session) -> None:
    with pytest.raises(pl.InvalidValue, match="one question at a time, not theta and target_macs"):
        measured.foresee(theta=0.1, target_macs=0.5)
    with pytest.raises(pl.InvalidValue, match="target_macs is a share"):
        measured.foresee(target_macs=-1)
    measured.method = "magnitude"
    with pytest.raises(pl.InvalidValue, match="magnitude has no theta"):
        measured.foresee(theta=0.1)


def test_what_cannot_be_dropped_is_refused_as_by_adjust(measured: pl.Session) -> None:
    with pytest.raises(pl.IllegalPlan, match="one must stay"):
        measured.foresee({"conv1": range(12)})
    with pytest.raises(pl.UnknownName, match="Did you mean 'conv1'"):
        measured.foresee({"conv11": [0]})


# ---------------------------------------------------------------- evidence


def test_without_evidence_it_says_how_to_get_some(session: pl.Session) -> None:
    assert session.evidence is None
    with pytest.raises(pl.WrongState, match=r"Nothing was measured yet.*session\.measure\(\)"):
        session.foresee({"conv1": [0]})


def test_evidence_says_when_it_was_measured_and_goes_stale(session: pl.Session) -> None:
    assert str(session.measure()) == "measured before the first move on 128 training images"
    session.propose()
    session.approve()
    held = session.evidence
    assert (held.moves, held.stale) == (0, True)
    with pytest.raises(pl.WrongState, match=r"before the first move .* has changed since"):
        session.foresee(theta=0.1)
    assert str(session.measure()) == "measured after move 1 on 128 training images"
    assert session.foresee(theta=0.3).move is not None
    session.undo()
    assert session.evidence.stale
    assert session.evidence.moves == 1


def test_measuring_again_measures_nothing(measured: pl.Session) -> None:
    before = measured.evidence.evidence
    told: list[Any] = []
    end = measured.listen(told.append)
    assert measured.measure().evidence is before
    end()
    assert [type(item) for item in told] == [pl.Ended]


def test_a_foresight_does_not_wait_for_a_verb(measured: pl.Session) -> None:
    seen = []

    def listener(item: Any) -> None:
        if isinstance(item, pl.Progress):
            assert measured.busy == "tune"
            seen.append(measured.foresee(theta=0.2))

    alone = measured.foresee(theta=0.2)
    end = measured.listen(listener)
    measured.tune(steps=2)
    end()
    assert seen[:2] == [alone, alone]


def test_a_method_that_must_run_the_network_says_so(measured: pl.Session) -> None:
    for method in (pl.AOFP(scoring="sampled"), pl.Elimination(), pl.ChannelPruning()):
        with pytest.raises(pl.WrongState, match=r"has to run the network|Nothing was measured"):
            measured.foresee(method=method)


def test_stopping_a_measurement_leaves_the_evidence_there_was(session: pl.Session) -> None:
    end = session.listen(lambda item: session.stop() if isinstance(item, pl.Progress) else None)
    with pytest.raises(pl.Stopped):
        session.measure()
    end()
    assert session.evidence is None


# ---------------------------------------------------------------- times


def test_times_follow_macs_and_activations(trained: torch.nn.Module, data: pl.Data) -> None:
    graph = pl.trace(trained, torch.zeros(1, 1, 12, 12))
    full = pl.WidthPlan.full(graph)
    from prunelab.cost.counting import layer_costs

    costs = FrozenMap(layer_costs(graph, full))
    times = LayerTimes(full, costs, FrozenMap(dict.fromkeys(costs, 1.0)), 2.0, "cpu")
    assert times.total == pytest.approx(len(costs) + 2.0)
    assert times.at(graph, full) == pytest.approx(times.total)
    half = full.drop({"conv1": range(6)})
    scaled = times.scaled(graph, half)
    assert scaled["conv1"] == scaled["conv2"] == 0.5
    assert scaled["stem"] == 1.0
    after = layer_costs(graph, half)
    share = sum(c.activation_bytes for c in after.values()) / sum(
        c.activation_bytes for c in costs.values()
    )
    assert scaled[""] == pytest.approx(2.0 * share)


def test_a_measurement_times_the_layers(measured: pl.Session) -> None:
    seen = measured.foresee({"conv1": range(6)})
    assert seen.seconds is not None
    before, after = seen.seconds
    assert 0 < after < before
    assert "ms" in str(seen)


def test_layers_cost_what_the_network_costs() -> None:
    for model, shape in ((Tiny(), (1, 1, 12, 12)), (Couplings(), (1, 2, 8, 8))):
        from prunelab.cost.counting import layer_costs

        graph = pl.trace(model, torch.randn(shape))
        plan = pl.WidthPlan.full(graph).drop({graph.groups[1].name: [0]})
        each, whole = layer_costs(graph, plan).values(), pl.cost(graph, plan)
        assert sum(cost.macs for cost in each) == whole.macs
        assert sum(cost.activation_bytes for cost in each) == whole.activation_bytes
        assert (
            sum(cost.params for cost in each)
            == whole.params
            == pl.cost(pl.cut(model, graph, plan), torch.randn(shape)).params
        )
