"""Surveys before a decision: sensitivity measures each group alone, a frontier comes back."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch.nn import functional as F

import prunelab as pl
from prunelab.evidence import damage_curve
from prunelab.evidence.fingerprint import fingerprint
from prunelab.figures import frontier_info, sensitivity_info


def mean_loss(network: torch.nn.Module, batches: object, images: int) -> float:
    x, y = (torch.cat(part)[:images] for part in zip(*batches, strict=True))  # type: ignore
    with torch.no_grad():
        return float(F.cross_entropy(network.eval()(x), y))


def test_sensitivity_is_the_loss_of_the_network_cut_by_hand(session: pl.Session) -> None:
    found = session.sensitivity(shares=(0.25, 0.5), images=64)
    graph, plan = session.graph, session.plan
    evidence = session.measure().evidence
    assert [one.group for one in found.groups] == [g.name for g in graph.groups if g.prunable]
    assert found.loss == pytest.approx(mean_loss(session.model, session.data.val, 64), rel=1e-5)
    for one in found.groups:
        assert one.removed == (one.width // 4, one.width // 2)
        assert one.shares == (0.25, 0.5)
        curve = damage_curve(evidence[one.group])
        for count, damage, loss in zip(one.removed, one.damages, one.losses, strict=True):
            units = curve.first(count)
            small = pl.cut(session.model, graph, plan.drop({one.group: units}))
            assert loss == pytest.approx(mean_loss(small, session.data.val, 64), rel=1e-5)
            assert damage == pytest.approx(evidence[one.group].damage(units), rel=1e-6)


def test_sensitivity_changes_nothing_and_says_what_it_measured(session: pl.Session) -> None:
    before, mark = len(session.ledger), fingerprint(session.model)
    found = session.sensitivity(shares=(0.5,), images=32)
    assert (len(session.ledger), fingerprint(session.model)) == (before, mark)
    assert str(found).splitlines()[1].split()[:3] == ["stem", "8", "50%"]
    assert found.rise("conv1") == pytest.approx([found["conv1"].losses[0] - found.loss])
    with pytest.raises(pl.UnknownName, match="conv9"):
        found["conv9"]


def test_sensitivity_of_a_pruned_network_speaks_in_original_units(session: pl.Session) -> None:
    session.propose(drop={"conv1": [0, 1, 2, 3]})
    session.approve()
    found = session.sensitivity(shares=(0.5,), images=32)["conv1"]
    assert (found.width, found.removed) == (8, (4,))


def test_a_share_that_would_leave_nothing_removes_all_but_what_must_stay(
    session: pl.Session,
) -> None:
    found = session.sensitivity(shares=(0.001, 0.999), images=32)["conv1"]
    assert found.removed == (1, 11)


def test_the_sets_of_a_move_are_certified_on_the_evidence_of_the_move(
    session: pl.Session,
) -> None:
    move = session.propose()
    before, mark = len(session.ledger), fingerprint(session.model)
    found = session.certify()
    assert (len(session.ledger), fingerprint(session.model)) == (before, mark)
    assert set(found) == set(move.drop)
    evidence = session.evidence.evidence
    for name, best in found.items():
        assert len(best.units) == len(move.drop[name])
        assert best.proved
        assert best.damage == pytest.approx(evidence[name].damage(best.units))
        assert best.excess(move.damage[name]) >= 0
        sets = combinations(evidence[name].units, len(best.units))
        least = min(evidence[name].damage(units) for units in sets)
        assert best.damage == pytest.approx(least, rel=1e-6)


def test_a_selection_by_hand_is_certified(session: pl.Session) -> None:
    found = session.certify({"conv1": [0, 1, 2]})["conv1"]
    assert len(found.units) == 3
    assert found.excess(session.evidence.evidence["conv1"].damage([0, 1, 2])) >= 0


def test_a_frontier_keeps_a_network_at_each_share_and_comes_back(session: pl.Session) -> None:
    mark, method = fingerprint(session.model), session.method
    found = session.frontier(shares=(0.8, 0.5), method="magnitude")
    assert fingerprint(session.model) == mark
    assert session.method is method
    start, *rest = found.points
    assert start.cost == found.base
    assert [point.cost.macs <= share * found.base.macs for point, share in
            zip(rest, (0.8, 0.5), strict=True)] == [True, True]  # fmt: skip
    for point in found.points:
        assert point.seconds > 0
        if session.state.head != point.seq:
            session.go(point.seq)
        assert session.state.now.cost == point.cost
        assert session.evaluate("val") == pytest.approx(dict(point.metrics))


def test_a_frontier_is_the_runs_one_after_another(session: pl.Session) -> None:
    found = session.frontier(shares=(0.8, 0.5), method=pl.Magnitude())
    session.method = pl.Magnitude()
    for point, share in zip(found.points[1:], (0.8, 0.5), strict=True):
        session.run(share, min_accuracy=None)
        plan = session.plan
        assert session.state.now.cost == point.cost
        session.go(point.seq)
        assert session.plan == plan


def test_a_frontier_ends_where_the_method_has_no_moves_and_says_why(session: pl.Session) -> None:
    found = session.frontier(shares=(0.9, 0.001), method="magnitude")
    assert len(found.points) == 2
    assert "cannot reach 0.1% of the MACs" in found.why
    assert session.state.now.cost == found.base


def test_a_frontier_picks_the_largest_network_within_limits(session: pl.Session) -> None:
    found = session.frontier(shares=(0.8, 0.5), method="magnitude")
    assert found.within(macs=1) == found.points[0]
    assert found.within(macs=0.8) == found.points[1]
    assert found.within(macs=0.79) == found.points[2]
    with pytest.raises(pl.InvalidValue, match="No network of this frontier is that small"):
        found.within(seconds=0)
    assert str(found).splitlines()[0].split() == ["event", "MACs", "parameters", "accuracy", "ms"]


def test_a_pending_move_is_not_swept_away_by_a_frontier(session: pl.Session) -> None:
    move = session.propose(drop={"conv1": [0]})
    with pytest.raises(pl.WrongState, match="pending"):
        session.frontier()
    assert session.state.pending == move


@pytest.mark.parametrize("shares", [(), (0.5, 0.5), (0.5, 0.8), (1.5,), (0.0,), (True,)])
def test_shares_that_do_not_fall_are_refused(
    session: pl.Session, shares: tuple[float, ...]
) -> None:
    with pytest.raises(pl.InvalidValue, match="shares"):
        session.frontier(shares=shares)


def test_the_figures_hold_what_was_measured(session: pl.Session) -> None:
    found = session.sensitivity(shares=(0.25, 0.5), images=32)
    info = sensitivity_info(found)
    assert [line.name for line in info.lines] == [one.group for one in found.groups]
    assert info.lines[0].shares == (25, 50)
    assert info.lines[1].rises == found.rise("conv1")
    most = max(found.groups, key=lambda one: one.losses[-1])
    assert info.labelled[0] == most.group
    drawn = pl.figures.sensitivity(found)
    assert len(drawn.data) == 2 * len(found.groups)
    assert [text for trace in drawn.data for text in trace.text if text] != []

    edge = session.frontier(shares=(0.8,), method="magnitude")
    dots = frontier_info(edge).dots
    assert [dot.seq for dot in dots] == [point.seq for point in edge.points]
    assert dots[1].macs <= 80
    assert dots[0].value == pytest.approx(100 * edge.points[0].metrics["accuracy"])
    assert pl.figures.frontier(edge).data[1].customdata == tuple(p.seq for p in edge.points)
