"""Group Fisher: what a unit saves, what is dropped first, and training that approve adopts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import Couplings, Tiny, batches

import prunelab as pl
from prunelab.cost.counting import savings

FROZEN = {"training": False, "images": 64}


@pytest.mark.parametrize("which", ["couplings", "tiny", "mobilenet"])
def test_savings_are_the_differences_of_costs(which: str) -> None:
    networks = {
        "couplings": (Couplings(), torch.randn(1, 2, 8, 8)),
        "tiny": (Tiny(), torch.randn(1, 1, 12, 12)),
        "mobilenet": (pl.zoo.load("mobilenet", pretrained=False), torch.randn(1, 1, 28, 28)),
    }
    graph = pl.trace(*networks[which])
    groups = [group for group in graph if group.prunable]
    full = pl.WidthPlan.full(graph)
    for plan in (full, full.drop({group.name: [0] for group in groups})):
        macs, memory = savings(graph, plan)
        before = pl.cost(graph, plan)
        for group in groups:
            for unit in plan.kept[group.name][:2]:
                after = pl.cost(graph, plan.drop({group.name: [unit]}))
                assert macs[group.first + unit] == before.macs - after.macs
                saved = before.activation_bytes - after.activation_bytes
                assert memory[group.first + unit] == saved
            if 0 not in plan.kept[group.name]:
                assert macs[group.first] == memory[group.first] == 0


def shown(session: pl.Session) -> dict[str, np.ndarray]:
    return {item.group: np.array(item.values) for item in session.state.proposed.seen}


@pytest.mark.parametrize("normalise", ["memory", "macs", None])
def test_the_first_unit_has_the_lowest_score(
    trained: nn.Module, data: pl.Data, normalise: Any
) -> None:
    method = pl.GroupFisher(**FROZEN, share=0.0, normalise=normalise)
    session = pl.Session(trained, data, method=method, repair=None)
    graph = session.graph
    few = list(data.train)[:2]
    evidence = pl.measure(trained, graph, few, kinds=("gradient",))
    macs, memory = savings(graph, pl.WidthPlan.full(graph))
    per = {"memory": memory / 1e3, "macs": macs / 1e3, None: np.ones(graph.units)}[normalise]
    want = {
        (group.name, unit): evidence.gradient(group.name).fisher[unit] / per[group.first + unit]
        for group in graph
        if group.prunable
        for unit in group.units
    }
    move = session.propose()
    ((name, units),) = move.drop.items()
    assert (name, units[0]) == min(want, key=lambda unit: want[unit])
    for group, values in shown(session).items():
        mine = [want[group, unit] for unit in graph[group].units]
        np.testing.assert_allclose(values, mine, rtol=1e-4)
    assert not move.damage
    assert session.state.proposed.weights is None  # nothing was trained


def test_a_unit_that_nothing_reads_goes_first(trained: nn.Module, data: pl.Data) -> None:
    model = Tiny()
    model.load_state_dict(trained.state_dict())
    model.eval()
    with torch.no_grad():
        model.conv2.weight[:, 3] = 0
        model.fc.weight[:, [5, 9]] = 0
    for method in (
        pl.GroupFisher(**FROZEN, share=0.0, units_per_step=3),
        pl.GroupFisher(interval=1, share=0.0, units_per_step=3, lr=1e-9),
    ):
        session = pl.Session(model, data, method=method, repair=None)
        assert dict(session.propose().drop) == {"conv1": (3,), "conv3": (5, 9)}


def test_groups_that_nothing_uses_are_not_skipped(trained: nn.Module, data: pl.Data) -> None:
    model = Tiny()
    model.load_state_dict(trained.state_dict())
    with torch.no_grad():
        model.fc.weight.zero_()
    session = pl.Session(model, data, method=pl.GroupFisher(**FROZEN, share=1.0), repair=None)
    move = session.propose()
    assert len(move.drop["conv3"]) == 15  # one stays
    assert all(len(units) < session.graph[name].width for name, units in move.drop.items())


def test_normalised_by_macs_units_are_asked_again_at_their_present_widths(
    trained: nn.Module, data: pl.Data
) -> None:
    method = pl.GroupFisher(**FROZEN, share=0.5, normalise="macs")
    session = pl.Session(trained, data, method=method, repair=None)
    move = session.propose()
    graph = session.graph
    evidence = pl.measure(trained, graph, list(data.train)[:2], kinds=("gradient",))
    fisher = evidence.gradients[2, :-1] / evidence.images
    plan = pl.WidthPlan.full(graph)
    goal = pl.cost(graph, plan).macs / 2
    drop: dict[str, list[int]] = {}
    while pl.cost(graph, plan).macs > goal:
        macs, _ = savings(graph, plan)
        options = [
            (fisher[g.first + u] / macs[g.first + u], g.name, u)
            for g in graph
            if g.prunable and len(plan.kept[g.name]) > 1
            for u in plan.kept[g.name]
        ]
        _, name, unit = min(options)
        drop.setdefault(name, []).append(unit)
        plan = plan.drop({name: [unit]})
    assert dict(move.drop) == {name: tuple(sorted(units)) for name, units in drop.items()}


def test_a_scaled_loss_and_the_size_of_batches_change_no_choice(
    trained: nn.Module, data: pl.Data
) -> None:
    def scaled(model: nn.Module, batch: Any) -> torch.Tensor:
        return 7 * F.cross_entropy(model(batch[0]), batch[1])

    small = pl.Data(
        train=[(x[i : i + 8], y[i : i + 8]) for x, y in data.train for i in range(0, 32, 8)],
        val=data.val,
    )
    method = pl.GroupFisher(**FROZEN, share=0.2)
    moves = [
        pl.Session(trained, data, method=method).propose(),
        pl.Session(trained, data, method=method, loss=scaled).propose(),
        pl.Session(trained, small, method=method).propose(),
    ]
    assert moves[0].drop == moves[1].drop == moves[2].drop


def test_training_is_plain_training_with_masks(trained: nn.Module, data: pl.Data) -> None:
    """Two steps with one drop between them, done by hand."""
    method = pl.GroupFisher(interval=1, share=0.02, lr=0.01)
    session = pl.Session(trained, data, method=method, repair=None)
    move = session.propose()
    assert move.units >= 2
    model = Tiny()
    model.load_state_dict(trained.state_dict())
    model.train()
    optimiser = torch.optim.SGD(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 1e-4},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=0.01,
        momentum=0.9,
    )
    graph = session.graph
    _, memory = savings(graph, pl.WidthPlan.full(graph))
    drop: dict[str, list[int]] = {}
    readers = {"stem": ["conv1", "conv3"], "conv1": ["conv2"], "conv3": ["fc"]}

    def mask() -> None:
        with torch.no_grad():
            for name, units in drop.items():
                for reader in readers[name]:
                    getattr(model, reader).weight[:, units] = 0

    for x, y in list(data.train)[: move.carry["batches"]]:
        same = Tiny()
        same.load_state_dict(model.state_dict())
        evidence = pl.measure(same, graph, [(x, y)], kinds=("gradient",), bn="batch")
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
        mask()
        _, name, unit = min(
            (evidence.gradient(g.name).fisher[u] / memory[g.first + u], g.name, u)
            for g in graph
            if g.prunable
            for u in g.units
            if u not in drop.get(g.name, ())
        )
        drop.setdefault(name, []).append(unit)
        mask()
    assert dict(move.drop) == {name: tuple(sorted(units)) for name, units in drop.items()}
    session.approve()
    x = batches(32, 9)[0][0]
    with torch.no_grad():
        want = model.eval()(x)
        torch.testing.assert_close(session.model.eval()(x), want, rtol=1e-4, atol=1e-4)


def test_approve_adopts_the_trained_weights_and_flags_survive(
    trained: nn.Module, data: pl.Data
) -> None:
    model = Tiny()
    model.load_state_dict(trained.state_dict())
    model.stem.weight.requires_grad_(False)
    session = pl.Session(model, data, method=pl.GroupFisher(interval=2, share=0.0), repair=None)
    before = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    move = session.propose()
    assert move.units == 1
    assert move.carry["batches"] == 2
    for name, tensor in session.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    session.approve()
    assert not torch.equal(session.model.fc.bias, before["fc.bias"])
    assert not session.model.stem.weight.requires_grad
    kept = list(session.plan.kept["stem"])
    assert torch.equal(session.model.stem.weight, before["stem.weight"][kept])  # was frozen
    assert all(p.grad is None for p in session.model.parameters())
    session.undo()
    for name, tensor in session.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_same_seed_gives_the_same_move(trained: nn.Module, data: pl.Data) -> None:
    method = pl.GroupFisher(interval=2, share=0.05)
    first, second = (pl.Session(trained, data, method=method, seed=4).propose() for _ in range(2))
    assert first == second


def test_run_meets_the_target_within_one_unit(trained: nn.Module, data: pl.Data) -> None:
    method = pl.GroupFisher(interval=1, share=0.1)
    session = pl.Session(trained, data, method=method, repair=None)
    session.run(target_macs=0.6)
    share = session.state.now.cost.macs / session.state.base.cost.macs
    assert 0.5 < share <= 0.6
    assert session.state.moves > 2
    assert all(session.plan.kept[group.name] for group in session.graph)


@pytest.mark.parametrize(
    "wrong",
    [
        {"normalise": "flops"},
        {"interval": 0},
        {"units_per_step": 0},
        {"share": 1.5},
        {"lr": 0.0},
        {"masks": "all"},
        {"images": 0},
    ],
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(pl.InvalidValue):
        pl.GroupFisher(**wrong)
