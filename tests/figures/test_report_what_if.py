"""What the report's page is given: shares that round to the exact damages, orders, networks."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import numpy as np
import pytest
from torch import nn

import prunelab as pl
from prunelab.evidence import damage_curve
from prunelab.figures import what_if as page
from prunelab.session.report_what_if import what_if


@pytest.fixture(scope="module")
def session(trained: nn.Module, data: pl.Data) -> pl.Session:
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.3, images=64))
    session.propose()
    session.approve()
    return session


def halves(text: str) -> np.ndarray:
    """The numbers, as the page reads them."""
    held = base64.b64decode(text)
    return np.frombuffer(held[4:], "<f2").astype(float) * np.frombuffer(held[:4], "<f4")[0]


def test_evidence_is_measured_where_there_is_none_of_the_network(session: pl.Session) -> None:
    found = what_if(session)
    assert session.evidence is not None and not session.evidence.stale
    assert found.measured == str(session.evidence)
    assert [group.name for group in found.groups] == [
        group.name for group in session.graph.groups if group.prunable
    ]


def test_sums_of_the_pages_numbers_are_the_damages(session: pl.Session) -> None:
    held = page.packed(what_if(session))
    assert session.evidence is not None
    draw = random.Random(0)
    for group in held["groups"]:
        size = len(group["units"])
        gram = np.zeros((size, size))
        gram[np.tril_indices(size)] = halves(group["gram"])
        gram += np.tril(gram, -1).T
        exact = session.evidence.evidence[group["name"]]
        assert halves(group["alone"]) == pytest.approx(exact.alone(), rel=2e-3, abs=1e-6)
        for _ in range(20):
            some = draw.sample(range(size), draw.randint(1, size))
            damage = exact.damage([group["units"][at] for at in some])
            assert gram[np.ix_(some, some)].sum() == pytest.approx(damage, rel=5e-3, abs=1e-4)


def test_the_order_is_that_of_greedy_removal(session: pl.Session) -> None:
    held = page.packed(what_if(session))
    assert session.evidence is not None
    for group in held["groups"]:
        curve = damage_curve(session.evidence.evidence[group["name"]])
        assert [group["units"][at] for at in group["order"]] == list(curve.order)
        assert group["lost"] == pytest.approx(curve.damages, rel=1e-4)


def test_costs_start_from_the_current_network(session: pl.Session) -> None:
    cost, held = session.state.now.cost, page.packed(what_if(session))
    assert held["start"] == (cost.macs, cost.params)
    assert all(len(pair) == 4 for pair in held["pairs"])
    assert json.loads(json.dumps(held))["measured"] == held["measured"]


def test_wide_groups_hold_their_order_alone(
    session: pl.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "WIDEST", 10)
    for group in page.packed(what_if(session))["groups"]:
        assert (group["gram"] is None) == (len(group["units"]) > 10)


def test_networks_stand_from_the_largest_to_the_smallest(session: pl.Session) -> None:
    found: dict[str, Any] = page.networks(session.state)
    macs = [point["macs"] for point in found["points"]]
    assert macs == sorted(macs, reverse=True)
    assert len(macs) == len(session.state.points)
    assert found["points"][0]["widths"] == found["original"]
    last = next(p for p in found["points"] if p["seq"] == session.state.head)
    assert dict(zip(found["groups"], last["widths"], strict=True)) == {
        group.name: len(group.units)
        for group in session.graph.groups
        if group.name in found["groups"]
    }
