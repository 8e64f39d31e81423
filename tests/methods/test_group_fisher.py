"""Group Fisher: savings of a unit, order of removal, and training that approve adopts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Couplings, Tiny, batches

import prunelab as pl
from prunelab.cost.savings import savings
from prunelab.evidence.mask_gradients import MaskWatch, differentiable

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


@pytest.mark.parametrize("training", [False, True])
def test_internal_removes_the_lowest_units_inside_blocks_and_leaves_streams_whole(
    training: bool,
) -> None:
    shipped = pl.data.load("fashion", subset=True, batch_size=16)
    few = pl.Data(train=list(shipped.train)[:2], val=list(shipped.val)[:2])
    how = {"training": training, "images": 32, "interval": 1, "share": 0.005, "normalise": None}
    model = pl.zoo.load("resnet20")
    found = {}
    for groups in ("all", "internal"):
        session = pl.Session(model, few, pl.GroupFisher(groups=groups, **how))
        move = session.propose()
        assert move is not None
        found[groups] = move.drop, shown(session)
    graph = session.graph
    drop, scores = found["internal"]
    assert set(scores) == {group.name for group in graph.groups if group.prunable} - {
        group.name for group in graph.groups if group.residual
    }
    assert drop and set(drop) <= set(scores)
    if not training:  # the scores do not change during the move
        streams = {name for name in found["all"][1] if graph[name].residual}
        assert streams
        lowest = {name: found["all"][1][name] for name in scores}
        assert all(np.array_equal(lowest[name], scores[name]) for name in scores)
        cut = [scores[name][unit] for name, units in drop.items() for unit in units]
        kept = [
            value
            for name, values in scores.items()
            for unit, value in enumerate(values)
            if unit not in drop.get(name, ())
        ]
        assert max(cut) <= min(kept)


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


# ---------------------------------------------------------------- distillation as the loss


class Larger(nn.Module):
    """A teacher of another architecture, some of whose weights have names of the student's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(1, 20, 3, padding=1), nn.BatchNorm2d(20)
        self.conv1, self.fc = nn.Conv2d(20, 24, 3, stride=2), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(F.relu(self.bn0(self.stem(x)))))
        return self.fc(x.mean((2, 3)))


def teacher_for(student: nn.Module, which: str) -> nn.Module:
    """The very network that the session is given, one of the same architecture, or another."""
    if which == "itself":
        return student
    teacher = Tiny() if which == "the same architecture" else Larger()
    for x, _ in batches(128, 4):
        teacher(x)  # so that BatchNorm has statistics of its own
    teacher.eval()
    teacher.conv1.weight.requires_grad_(False)
    return teacher


def distilling(teacher: nn.Module, kind: str) -> Any:
    """Cross entropy plus what sets the student's logits apart from the teacher's.

    The teacher runs under autograd, as a user who forgets `torch.no_grad` would have it.
    """

    def loss(model: nn.Module, batch: Any) -> Tensor:
        given, aim = model(batch[0]), teacher(batch[0])
        apart = F.mse_loss(given, aim)
        if kind == "kl":
            given_, aim_ = F.log_softmax(given / 2, 1), F.log_softmax(aim / 2, 1)
            apart = 4 * F.kl_div(given_, aim_, reduction="batchmean", log_target=True)
        return F.cross_entropy(given, batch[1]) + 3 * apart

    return loss


def everything(model: nn.Module) -> tuple[dict[str, Tensor], list[Any]]:
    """All that could be left behind in a network: values and gradients; flags, modes, hooks."""
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            values[f"{name}'s gradient"] = parameter.grad.clone()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    flags = [(id(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return values, [hooks, flags, [module.training for module in model.modules()]]


def assert_untouched(model: nn.Module, before: tuple[dict[str, Tensor], list[Any]]) -> None:
    values, rest = everything(model)
    assert list(values) == list(before[0])
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in values.items())
    assert rest == before[1]


class Masked(Tiny):
    """Tiny with a mask [N, units, 1, 1] wherever a layer reads a group; plain autograd."""

    def __init__(self, like: nn.Module, images: int) -> None:
        super().__init__()
        self.load_state_dict(like.state_dict())
        self.train(like.training)
        self.masks = {
            name: torch.ones(images, units, 1, 1, requires_grad=True)
            for name, units in (("stem", 8), ("conv1", 12), ("conv3", 16))
        }

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        inside = F.relu(self.bn1(self.conv1(self.masks["stem"] * x)))
        x = F.relu(x + self.bn2(self.conv2(self.masks["conv1"] * inside)))
        x = F.relu(self.conv3(self.masks["stem"] * x))
        return self.fc((self.masks["conv3"] * F.adaptive_avg_pool2d(x, 1)).flatten(1))

    @classmethod
    def squares(cls, like: nn.Module, batch: Any, loss: Any) -> dict[str, Tensor]:
        """The sum over the batch's images of the squared mask gradients, by group."""
        count = len(batch[0])
        masked = cls(like, count)
        found = torch.autograd.grad(loss(masked, batch), list(masked.masks.values()))
        return {
            name: (count * gradient).flatten(1).square().sum(0)  # the loss is a mean
            for name, gradient in zip(masked.masks, found, strict=True)
        }


TEACHERS = ["itself", "the same architecture", "another architecture"]


@pytest.mark.parametrize("kind", ["kl", "mse"])
@pytest.mark.parametrize("which", TEACHERS)
def test_distillation_gives_the_scores_of_plain_autograd(
    trained: nn.Module, data: pl.Data, which: str, kind: str
) -> None:
    teacher = teacher_for(trained, which)
    loss, before = distilling(teacher, kind), everything(teacher)
    method = pl.GroupFisher(**FROZEN, share=0.0, normalise=None)
    session = pl.Session(trained, data, method=method, loss=loss, repair=None)
    session.propose()
    few = list(data.train)[:2]
    each = [Masked.squares(trained, batch, loss) for batch in few]
    found = shown(session)
    assert set(found) == {"stem", "conv1", "conv3"}
    for group, values in found.items():
        want = sum(squares[group] for squares in each) / sum(len(x) for x, _ in few)
        np.testing.assert_allclose(values, want.numpy(), rtol=1e-3, atol=1e-9)
    assert_untouched(teacher, before)


@pytest.mark.parametrize("kind", ["kl", "mse"])
@pytest.mark.parametrize("which", TEACHERS)
def test_pruning_while_distilling_is_a_plain_loop_with_a_teacher(
    trained: nn.Module, data: pl.Data, which: str, kind: str
) -> None:
    """Two batches for every unit, masks by hand, the optimiser by hand."""
    teacher = teacher_for(trained, which)
    loss, before = distilling(teacher, kind), everything(teacher)
    method = pl.GroupFisher(interval=2, share=0.03, lr=0.001)
    session = pl.Session(trained, data, method=method, loss=loss, repair=None)
    move = session.propose()
    assert_untouched(teacher, before)
    assert move.units >= 2

    student = Tiny()
    student.load_state_dict(trained.state_dict())
    student.train()
    decayed = [p for p in student.parameters() if p.ndim > 1]
    spared = [p for p in student.parameters() if p.ndim <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 1e-4}, {"params": spared, "weight_decay": 0.0}],
        lr=0.001,
        momentum=0.9,
    )
    stays = {"stem": torch.ones(8), "conv1": torch.ones(12), "conv3": torch.ones(16)}
    outputs = {"stem": 144 + 144, "conv1": 144, "conv3": 36}  # of all its producers, by unit
    readers = {
        "stem": (student.conv1, student.conv3),
        "conv1": (student.conv2,),
        "conv3": (student.fc,),
    }

    def mask() -> None:
        with torch.no_grad():
            for group, layers in readers.items():
                for layer in layers:
                    layer.weight[:, stays[group] == 0] = 0

    sums = {group: torch.zeros(len(stay)) for group, stay in stays.items()}
    for step, (x, y) in enumerate(list(data.train)[: move.carry["batches"]], start=1):
        for group, squares in Masked.squares(student, (x, y), loss).items():
            sums[group] += squares
        optimiser.zero_grad()
        loss(student, (x, y)).backward()
        optimiser.step()
        mask()
        if step % 2 == 0:
            _, group, unit = min(
                (float(sums[group][unit]) / outputs[group], group, unit)
                for group, stay in stays.items()
                for unit in torch.nonzero(stay).flatten().tolist()
            )
            stays[group][unit] = 0
            sums = {group: torch.zeros(len(stay)) for group, stay in stays.items()}
            mask()
    want = {
        group: tuple(torch.nonzero(stay == 0).flatten().tolist())
        for group, stay in stays.items()
        if not stay.all()
    }
    assert dict(move.drop) == want
    session.approve()
    x = batches(32, 9)[0][0]
    with torch.no_grad():
        expected = student.eval()(x)
        torch.testing.assert_close(session.model(x), expected, rtol=1e-4, atol=1e-4)


def test_a_teachers_layers_are_not_the_students(trained: nn.Module, data: pl.Data) -> None:
    """Weights are watched by identity: of the same names, and of a very copy."""
    student, teacher = Tiny(), Tiny()
    for network in (student, teacher):
        network.load_state_dict(trained.state_dict())
    graph = pl.trace(student.eval(), batches(32, 1)[0][0])
    watch = MaskWatch(student, graph)
    batch = batches(32, 1)[0]
    with differentiable(student):
        watch.measure(student, batch, distilling(teacher.eval(), "mse"))
    assert watch.calls == [
        "stem.weight",
        "conv1.weight",
        "conv2.weight",
        "conv3.weight",
        "fc.weight",
    ]
    want = Masked.squares(student, batch, distilling(teacher, "mse"))["conv1"]
    got = watch.sums[2, graph["conv1"].span]
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-3)


def test_tuning_with_a_teacher_leaves_no_gradients_in_it(trained: nn.Module, data: pl.Data) -> None:
    teacher = teacher_for(trained, "the same architecture")
    before = everything(teacher)
    session = pl.Session(trained, data, loss=distilling(teacher, "kl"), repair=None)
    session.tune(steps=3)
    assert_untouched(teacher, before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"normalise": "flops"},
        {"interval": 0},
        {"units_per_step": 0},
        {"share": 1.5},
        {"lr": 0.0},
        {"masks": "all"},
        {"groups": "residual"},
        {"images": 0},
    ],
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(pl.InvalidValue):
        pl.GroupFisher(**wrong)
