"""Factorisation as moves: ranks against brute force, and a session from proposal to export."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Tiny, batches

import prunelab as pl
from prunelab.methods.factorisation import Option, ranks_within

patient = settings(deadline=None, max_examples=60)


def option(draw: Any) -> Option:
    energies = sorted(draw(st.lists(st.floats(0.01, 10), min_size=2, max_size=5)), reverse=True)
    each = draw(st.integers(1, 5))
    whole = draw(st.integers(1, 5 * len(energies)))
    return Option(np.array(energies), whole, each, 1)


@patient
@given(st.data())
def test_ranks_are_the_best_within_what_they_cost(data: Any) -> None:
    options = {name: option(data.draw) for name in ("a", "b", "c")}
    budget = data.draw(st.integers(1, sum(o.whole for o in options.values())))
    found = ranks_within(options, budget)

    def choices(o: Option) -> list[tuple[int, float, int | None]]:
        ranks = [(int(r) * o.each, float(np.log(o.left[r - 1])), int(r)) for r in o.ranks]
        return [*ranks, (o.whole, 0.0, None)]

    every = [
        (sum(c for c, _, _ in some), sum(e for _, e, _ in some), some)
        for some in itertools.product(*(choices(o) for o in options.values()))
    ]
    within = [one for one in every if one[0] <= budget]
    if found is None:
        assert not within
        return
    mine = {name: found.get(name) for name in options}
    cost, kept, _ = next(one for one in every if [c[2] for c in one[2]] == list(mine.values()))
    assert cost <= budget
    assert not [one for one in every if one[0] <= cost and one[1] > kept + 1e-9]


def session(method: Any, **more: Any) -> pl.Session:
    torch.manual_seed(0)
    data = pl.Data(train=batches(96, 0), val=batches(64, 1), test=batches(64, 2))
    return pl.Session(Tiny().eval(), data, method, **more)


KINDS = [pl.SpatialFactorisation, pl.ChannelFactorisation]


@pytest.mark.parametrize("kind", KINDS)
def test_move_saves_the_share_of_every_layer_that_was_asked_for(kind: Any) -> None:
    work = session(kind(0.5))
    move = work.propose()
    assert move is not None
    assert set(move.factors.values()) == {kind.kind}
    assert work.state.now.cost.macs == work.state.base.cost.macs  # nothing is changed yet
    work.approve(repair=False)
    before, after = work.costs(pl.WidthPlan.full(pl.trace(Tiny(), torch.randn(1, 1, 12, 12)))), {}
    for name, cost in work.costs().items():
        layer = name.removesuffix(".0").removesuffix(".1") if name[-2:] in (".0", ".1") else name
        after[layer] = after.get(layer, 0) + cost.macs
    for name in move.factors:
        assert after[name] <= before[name].macs / 2
    assert work.state.now.cost == move.after == pl.cost(work.model, torch.randn(1, 1, 12, 12))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_dropped_keeps_the_outputs(kind: Any) -> None:
    work = session(kind(0.5), repair=None)
    x = batches(16, 3)[0][0]
    before = work.model(x)
    move = work.propose()
    assert move is not None
    work.adjust({name: units[:1] for name, units in move.drop.items() if name == "conv3.0"})
    work.approve()
    full = {name: len(work.plan.kept[name]) for name in move.adds if name != "conv3.0"}
    assert full == {name: rank for name, rank in move.adds.items() if name != "conv3.0"}
    work.undo()
    assert torch.equal(work.model(x), before)
    work.propose()
    work.adjust({"conv3.0": [move.adds["conv3.0"] - 1]})
    work.approve()
    assert (work.model(x) - before).abs().max() < 0.2 * before.abs().max()


def test_session_with_factorised_layers_opens_replays_and_goes_back(tmp_path: Path) -> None:
    work = session(pl.SpatialFactorisation(), path=tmp_path / "a.prunelab")
    x = batches(16, 3)[0][0]
    work.run(0.6, min_accuracy=None)
    factorised = work.state.head
    work.method = pl.Magnitude(0.25)
    work.propose()
    work.approve()
    assert any(name in work.state.path[-2].event.kept for name in ("conv2.0", "conv3.0"))
    pruned, line = work.model(x), work.state.line()
    again = pl.Session.open(tmp_path / "a.prunelab", model=Tiny().eval(), data=work.data)
    assert again.state.line() == line
    assert torch.equal(again.model(x), pruned)
    again.go(factorised)
    again.go(0)
    assert torch.equal(again.model(x), session("magnitude").model(x))
    script: dict[str, Any] = {}
    work.export(tmp_path / "a.py")
    exec((tmp_path / "a.py").read_text(), script)
    torch.manual_seed(0)
    replayed = script["replay"](Tiny().eval(), work.data)
    assert replayed.plan == work.plan
    assert torch.equal(replayed.model(x), pruned)


def test_pending_factorisation_is_there_after_a_restart(tmp_path: Path) -> None:
    work = session(pl.ChannelFactorisation(), path=tmp_path / "a.prunelab")
    move = work.propose()
    shutil.copy(tmp_path / "a.prunelab", tmp_path / "b.prunelab")
    again = pl.Session.open(tmp_path / "b.prunelab", model=Tiny().eval(), data=work.data)
    assert again.state.pending == move
    for each in (work, again):
        each.approve()
    x = batches(16, 3)[0][0]
    assert torch.equal(work.model(x), again.model(x))


def test_exported_network_loads_into_the_original_architecture(tmp_path: Path) -> None:
    work = session(pl.ThreeC(speed_up=2.0))
    work.run(0.5, min_accuracy=None)
    work.export(tmp_path / "small.safetensors")
    loaded = pl.load_pruned(Tiny, tmp_path / "small.safetensors")
    x = batches(16, 3)[0][0]
    assert torch.allclose(loaded(x), work.model(x))
    assert all(type(m).__module__.startswith(("torch.", "toys")) for m in loaded.modules())
    work.export(tmp_path / "plan.json")
    work.export(tmp_path / "report.html")


def test_three_stages_follow_each_other_and_each_is_repaired() -> None:
    work = session(pl.ThreeC(), repair="lstsq")
    kinds = []
    goal = 0.4 * work.state.base.cost.macs
    while work.state.now.cost.macs > goal:
        move = work.propose(0.4)
        assert move is not None
        kinds.append(set(move.factors.values()))
        work.approve()
    assert kinds[:2] == [{"spatial"}, {"channel"}]
    assert kinds[2:] and not any(kinds[2:])
    nested = [name for name in work.plan.graph.factors if name.endswith(".1")]
    assert nested


def test_unfit_layers_and_ranks_are_refused() -> None:
    work = session(pl.SpatialFactorisation({"fc": 0.5}))
    with pytest.raises(pl.PruneLabError, match="fc cannot be factorised"):
        work.propose()
    assert work.state.pending is None
    with pytest.raises(pl.PruneLabError, match="whole number"):
        pl.SpatialFactorisation(ranks={"conv2": 0})
    with pytest.raises(pl.PruneLabError, match="speed_up"):
        pl.ThreeC(speed_up=1.0)


def test_three_c_goes_on_where_a_given_rank_saves_nothing() -> None:
    work = session(pl.ThreeC(ranks={"conv2": 3, "conv3": 1000}))
    work.propose()
    work.approve()
    assert dict(work.plan.graph.factors) == {"conv2": "spatial"}
    move = work.propose()
    assert move is not None
    assert set(move.factors) <= {"conv2.1"}, "no layer that was not named"
    none = session(pl.ThreeC(ranks={"conv3": 1000})).propose()
    assert none is not None
    assert not none.factors, "nothing to factorise: channels are next"


def test_three_c_prunes_the_named_groups_only_in_its_third_stage() -> None:
    work = session(pl.ThreeC(ranks={"conv2": 3}, channels={"conv1": 0.5}))
    while work.propose() is not None:
        work.approve()
    widths = {name: len(kept) for name, kept in work.plan.kept.items()}
    full = {group.name: group.width for group in work.plan.graph.groups}
    thinner = {name for name in full if widths[name] < full[name]}
    assert widths["conv1"] == full["conv1"] // 2
    assert thinner <= {"conv1", "conv2.0", "conv2.1.0"}
    with pytest.raises(pl.PruneLabError, match="channels is a share"):
        pl.ThreeC(channels={"conv1": 0.0})
