"""Repair: least squares against numpy on raw samples, exact cases, and bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunelab as pl
from prunelab.evidence import patch_moments as moments
from prunelab.evidence.patch_moments import cross_moment, patch_moments, patches, positions_of
from prunelab.evidence.reconstruction_target import LayerOutput, OutputWatch
from prunelab.graph.labels import layer_calls as calls
from prunelab.loops.batch import finish, run_batch
from prunelab.repair import fit as fitting
from prunelab.repair import front_to_back, layer_problem
from prunelab.repair.layer_problem import LayerProblem
from prunelab.repair.least_squares import repairing
from prunelab.repair.recalibration import Traced, recalibrating
from prunelab.repair.regression import Rows
from prunelab.repair.rescale import rescaling


class Chain(nn.Module):
    """Three convolutions, of which the middle one loses inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 5, 3, padding=1, stride=2)
        self.c = nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Chain().double().eval()


def images(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 2, 6, 6, dtype=torch.float64, generator=generator) for _ in range(count)]


def solved_on(count: int = 3) -> list[Tensor]:
    """Those of `images` that least squares is solved on: every fourth one judges."""
    return [x[[0, 1, 2, 4, 5, 6]] for x in images(count)]


def cut_of(net: nn.Module, **drop: list[int]) -> tuple[Traced, Traced]:
    """The network before and after dropping these units."""
    graph = pl.trace(net, images()[0])
    plan = pl.WidthPlan.full(graph).drop(drop)
    return Traced(net, graph), Traced(pl.cut(net, graph, plan), graph.after(plan))


def test_a_layer_gets_the_weights_that_numpy_finds_on_raw_patches(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "RIDGES", (0.0,))
    before, after = cut_of(net, a=[1, 4])
    finish(repairing(after, before, images, run_batch))

    rows, aims = [], []
    for x in solved_on():
        hidden = torch.relu(net.a(x))
        patches = nn.functional.unfold(hidden[:, [0, 2, 3, 5]], 3, padding=1, stride=2)
        rows.append(patches.transpose(1, 2).reshape(-1, 36))
        aims.append(net.b(hidden).flatten(2).transpose(1, 2).reshape(-1, 5))
    patches = torch.cat([torch.cat(rows), torch.ones(sum(map(len, rows)), 1)], 1)
    best, *_ = np.linalg.lstsq(patches.detach().numpy(), torch.cat(aims).detach().numpy())
    small = after.network
    assert np.allclose(small.b.weight.detach().reshape(5, -1).T, best[:-1], atol=1e-8)
    assert np.allclose(small.b.bias.detach(), best[-1], atol=1e-8)


def test_a_channel_that_is_a_sum_of_others_is_made_good_exactly(net: nn.Module) -> None:
    with torch.no_grad():  # before the ReLU nothing is lost: both are positive
        net.a.weight.abs_()
        net.a.weight[2] = net.a.weight[0] + 2 * net.a.weight[1]
        net.a.bias[:] = 1.0
        net.a.bias[2] = 3.0

    def positive() -> list[Tensor]:
        return [x.abs() for x in images()]

    want = [net(x) for x in positive()]
    before, after = cut_of(net, a=[2])
    finish(repairing(after, before, positive, run_batch))
    for x, y in zip(positive(), want, strict=True):
        assert torch.allclose(after.network(x), y, atol=1e-4)


def test_layers_that_lost_nothing_and_the_network_before_stay_as_they_are(net: nn.Module) -> None:
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    before, after = cut_of(net, b=[2])
    finish(repairing(after, before, images, run_batch))
    assert torch.equal(after.network.a.weight, net.a.weight)
    assert torch.equal(after.network.b.weight, net.b.weight[[0, 1, 3, 4]])
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


class Residual(nn.Module):
    """A branch with BatchNorm beside a shortcut; the stem feeds both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 5, 3, padding=1)
        self.a = nn.Conv2d(5, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.side = nn.Conv2d(5, 4, 1)

    def branch(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.norm(self.branch(x)) + self.side(x)


def test_the_end_of_a_branch_makes_good_what_its_shortcut_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fitting, "RIDGES", (0.0,))
    torch.manual_seed(3)
    net = Residual().double().eval()
    with torch.no_grad():
        net.norm.weight.uniform_(0.5, 1.5)
        net.norm.bias.uniform_(-1, 1)
        net.norm.running_mean.uniform_(-0.5, 0.5)
        net.norm.running_var.uniform_(0.5, 1.5)
    before, after = cut_of(net, stem=[1], a=[0, 3])
    solved = finish(repairing(after, before, images, run_batch))
    small = after.network
    assert set(solved) == {"a", "b", "side"}
    assert torch.equal(small.norm.running_var, net.norm.running_var)

    rows, aims = [], []
    scale = net.norm.weight / torch.sqrt(net.norm.running_var + net.norm.eps)
    with torch.no_grad():
        for x in solved_on():
            full, less = torch.relu(net.stem(x)), torch.relu(small.stem(x))
            hidden = torch.relu(small.a(less))
            aim = net.branch(full) + (net.side(full) - small.side(less)) / scale.view(1, -1, 1, 1)
            patches = nn.functional.unfold(hidden, 3, padding=1)
            rows.append(patches.transpose(1, 2).reshape(-1, 36))
            aims.append(aim.flatten(2).transpose(1, 2).reshape(-1, 4))
    patches = torch.cat([torch.cat(rows), torch.ones(sum(map(len, rows)), 1)], 1)
    best, *_ = np.linalg.lstsq(patches.numpy(), torch.cat(aims).numpy())
    assert np.allclose(small.b.weight.detach().reshape(4, -1).T, best[:-1], atol=1e-7)
    assert np.allclose(net.norm.running_mean - small.norm.running_mean, best[-1], atol=1e-7)


def outputs(net: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """What the layer `name` reads, as patches [rows, entries], and what it gives [rows, out]."""
    layer, seen = net.get_submodule(name), []
    handle = layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        for x in solved_on():
            net(x)
    handle.remove()
    conv = calls.Conv(layer.stride, layer.padding, layer.dilation, False, 1)
    read = torch.cat([patches(x, layer.kernel_size, conv) for x, _ in seen])
    return read, torch.cat([y.movedim(1, -1).flatten(0, -2) for _, y in seen])


def test_what_the_refit_leaves_is_orthogonal_to_what_is_kept_and_smaller(net: nn.Module) -> None:
    """But for the ridge, which asks for its share of the change."""
    before, after = cut_of(net, a=[0, 3])
    unrefitted = outputs(after.network, "b")[1]
    old = net.b.weight[:, [1, 2, 4, 5]].detach().flatten(1).T
    found = finish(repairing(after, before, lambda: iter(images()), run_batch))["b"]
    read, given = outputs(after.network, "b")
    want = outputs(net, "b")[1]
    left = want - given
    centred = read - read.mean(0)
    ridge = found.ridge * centred.square().sum(0)[:, None]
    change = after.network.b.weight.detach().flatten(1).T - old
    assert found.choice == "lstsq"
    assert float(change.abs().max()) > 1e-3
    assert torch.allclose(centred.T @ left, ridge * change, atol=1e-9)
    assert float(left.sum(0).abs().max()) < 1e-9 * len(left)  # and to the constant
    amiss = want - unrefitted
    assert left.square().sum() < (amiss - amiss.mean(0)).square().sum()


def test_the_more_is_kept_the_less_is_left(net: nn.Module) -> None:
    errors = []
    for drop in ([], [2], [2, 5], [0, 2, 5], [0, 1, 2, 5], [0, 1, 2, 4, 5]):
        before, after = cut_of(net, a=drop)
        finish(repairing(after, before, lambda: iter(images()), run_batch))
        errors.append(float((outputs(net, "b")[1] - outputs(after.network, "b")[1]).square().sum()))
    assert errors[0] == 0
    assert errors == sorted(errors)
    assert errors[1] > 0


def test_aiming_at_the_original_beats_aiming_at_the_network_so_far(net: nn.Module) -> None:
    before, after = cut_of(net, a=[0, 1, 3], b=[2])
    graph = before.graph
    first = graph.after(pl.WidthPlan.full(graph).drop({"a": [0, 1, 3]}))
    so_far = Traced(pl.cut(net, graph, pl.WidthPlan.full(graph).drop({"a": [0, 1, 3]})), first)
    finish(repairing(so_far, before, lambda: iter(images()), run_batch))
    errors = []
    for target in (before, so_far):
        plan = pl.WidthPlan.full(graph).drop({"a": [0, 1, 3], "b": [2]})
        small = Traced(pl.cut(so_far.network, first, plan), after.graph)
        finish(repairing(small, target, lambda: iter(images()), run_batch))
        with torch.no_grad():
            errors.append(sum(float((net(x) - small.network(x)).square().sum()) for x in images()))
    assert errors[0] < 0.99 * errors[1]


# ---------------------------------------------------------------- sums


class Blocks(nn.Module):
    """Two residual blocks, plain or with BatchNorm before the sum; `sums` keeps what they give."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        for block in "ab":
            self.add_module(f"{block}1", nn.Conv2d(4, 6, 3, padding=1))
            self.add_module(f"{block}2", nn.Conv2d(6, 4, 3, padding=1, bias=not norm))
            self.add_module(f"{block}n", nn.BatchNorm2d(4) if norm else nn.Identity())
        self.stem, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 1)
        self.sums: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        x, self.sums = torch.relu(self.stem(x)), []
        for block in "ab":
            one, two, norm = (self.get_submodule(f"{block}{part}") for part in "12n")
            x = x + norm(two(torch.relu(one(x))))
            self.sums.append(x)
        return self.head(x)


def repaired(net: nn.Module, **drop: list[int]) -> nn.Module:
    before, after = cut_of(net, **drop)
    finish(repairing(after, before, images, run_batch))
    return after.network


def own_output(there: LayerOutput, _: LayerOutput, channels: Tensor) -> Tensor:
    """The aim of a branch that does not care for its shortcut."""
    return there.y.index_select(1, channels)


@pytest.fixture(params=[False, True], ids=["plain", "batchnorm"])
def blocks(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    model = Blocks(request.param).double()
    with torch.no_grad():
        for x in images():
            model(x)  # statistics of its own
    return model.eval()


def error_of_sum(net: nn.Module, small: nn.Module, place: int) -> float:
    total = 0.0
    with torch.no_grad():
        for x in images():
            net(x), small(x)
            total += float((net.sums[place] - small.sums[place]).square().sum())
    return total


def test_aiming_at_the_sum_makes_good_what_the_shortcut_lost(
    blocks: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = {"a1": [0, 1, 2, 3], "b1": [4, 5]}
    summed = repaired(blocks, **drop)
    monkeypatch.setattr(front_to_back, "reconstruction_target", own_output)
    plain = repaired(blocks, **drop)
    first = [error_of_sum(blocks, small, 0) for small in (plain, summed)]
    assert first[0] == pytest.approx(first[1])  # its shortcut lost nothing
    second = [error_of_sum(blocks, small, 1) for small in (plain, summed)]
    assert second[1] < 0.95 * second[0]


def test_an_unpruned_shortcut_leaves_the_branch_its_own_output(
    blocks: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed = repaired(blocks, b1=[1, 4])
    monkeypatch.setattr(front_to_back, "reconstruction_target", own_output)
    plain = repaired(blocks, b1=[1, 4])
    assert not torch.equal(plain.b2.weight, blocks.b2.weight[:, [0, 2, 3, 5]])
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(summed.state_dict()[name], tensor, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- rows that are not of images


class Transposed(nn.Module):
    """Two linear layers on rows ordered by position first, as in a transformer's [T, N, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 6)
        self.b = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x.transpose(0, 1)))).mean(0)


def test_no_row_of_an_image_that_judges_is_solved_on_whatever_the_order_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks: list[LayerProblem] = []
    monkeypatch.setattr(LayerProblem, "solve", lambda task, *_: tasks.append(task))
    torch.manual_seed(0)
    net, x = Transposed().double(), torch.randn(8, 5, 3).double()
    graph = pl.trace(net, x)
    plan = pl.WidthPlan.full(graph).drop({"a": [1, 4]})
    before, small = Traced(net, graph), Traced(pl.cut(net, graph, plan), graph.after(plan))
    finish(repairing(small, before, lambda: [x], run_batch))
    read = torch.relu(small.network.a(x)).detach()
    (task,) = tasks
    for found, own in ((task.solved, read[[0, 1, 2, 4, 5, 6]]), (task.held, read[3::4])):
        rows = own.transpose(0, 1).flatten(0, 1)
        second = found.moments.second if isinstance(found, Rows) else found.second
        assert torch.allclose(second[:4, :4], rows.T @ rows)


class Regions(nn.Module):
    """A head that looks at the places where the features say so: other ones once they change."""

    def __init__(self, few: bool) -> None:
        super().__init__()
        self.few = few
        self.a = nn.Conv2d(2, 6, 3, padding=1)
        self.score = nn.Conv2d(6, 1, 1)
        self.head = nn.Linear(6, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        score, rows = self.score(y).flatten(1), y.flatten(2).transpose(1, 2)
        if self.few:  # as many places in every image
            rows = rows[torch.arange(len(x))[:, None], score.topk(4)[1]].flatten(0, 1)
        else:
            rows = rows[score > score.mean()]
        return self.out(torch.relu(self.head(rows))).mean(0, keepdim=True)


@pytest.mark.parametrize("kind", ["lstsq", "rescale"])
@pytest.mark.parametrize("few", [True, False], ids=["as many rows", "other numbers of rows"])
def test_a_layer_that_sees_other_regions_than_before_does_not_aim_at_them(
    few: bool, kind: str
) -> None:
    torch.manual_seed(0)
    net = Regions(few).double().eval()
    graph = pl.trace(net, images()[0])
    plan = pl.WidthPlan.full(graph).drop({"a": [0, 3], "head": [2]})
    small = Traced(pl.cut(net, graph, plan), graph.after(plan))
    weights = [small.network.head.weight.clone(), small.network.out.weight.clone()]
    if kind == "rescale":
        finish(rescaling(small, Traced(net, graph), Traced(net, graph), images, run_batch))
    else:
        fits = finish(repairing(small, Traced(net, graph), images, run_batch))
        assert set(fits) == {"score"}, "it comes before anything is picked out"
    assert torch.equal(small.network.head.weight, weights[0])
    assert torch.equal(small.network.out.weight, weights[1])


def test_a_layer_that_sees_the_very_regions_of_before_is_solved() -> None:
    torch.manual_seed(0)
    net = Regions(True).double().eval()
    graph = pl.trace(net, images()[0])
    plan = pl.WidthPlan.full(graph).drop({"head": [2]})  # comes after the regions are picked out
    small = Traced(pl.cut(net, graph, plan), graph.after(plan))
    assert set(finish(repairing(small, Traced(net, graph), images, run_batch))) == {"out"}


# ---------------------------------------------------------------- how many rows are kept


def task_of(net: nn.Module, x: Tensor, drop: dict[str, list[int]], name: str) -> LayerProblem:
    graph = pl.trace(net, x)
    plan = pl.WidthPlan.full(graph).drop(drop)
    small = Traced(pl.cut(net, graph, plan), graph.after(plan))
    task = LayerProblem.of(small, graph.layer(name), graph.layer(name))
    assert task is not None
    return task


def call_of(net: nn.Module, x: Tensor, name: str) -> LayerOutput:
    heard = OutputWatch(net, [f"{name}.weight"])
    with torch.no_grad(), heard:
        net(x)
    return heard.found[f"{name}.weight"][0]


def test_a_wide_layer_is_solved_on_as_many_rows_as_there_is_room_for(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though one batch alone would not fit; and later batches have their say."""
    monkeypatch.setattr(layer_problem, "WIDEST", 10)
    monkeypatch.setattr(layer_problem, "ROWS", 40 * 45)
    x = images()[0]
    task, found = task_of(net, x, {"a": [1]}, "b"), call_of(net, x, "b")
    sizes = []
    for _ in range(8):
        task.add(found.call, found.y, len(x), held=False)
        assert isinstance(task.solved, Rows)
        sizes.append(len(task.solved))
    assert found.y.numel() // found.y.shape[1] == 72, "the rows of one batch"
    assert sizes == [16, 24, 32, 36, 38, 39, 40, 40]
    every = patches(found.call.x[:, [0, 2, 3, 4, 5]], (3, 3), found.call.conv)
    weight = net.b.weight[:, [0, 2, 3, 4, 5]].flatten(1)
    whole = {tuple(row) for row in torch.cat([every, positions_of(found.y)], 1).tolist()}
    assert weight.shape[1] == task.entries == 45
    assert {tuple(row) for row in torch.cat([task.solved.p, task.solved.y], 1).tolist()} <= whole


@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_a_few_positions_of_each_image_judge(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    size = 24
    if kind == "linear":
        net: nn.Module = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
        x = torch.randn(5, size * size, 3)
    else:
        net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
        x = torch.randn(5, 3, size, size)
    task, found = task_of(net, x, {"0": [1]}, "2"), call_of(net, x, "2")
    for _ in range(2):
        task.add(found.call, found.y, len(x), held=True)
    assert task.held is not None
    assert len(task.held) == 2 * 5 * layer_problem.POSITIONS
    monkeypatch.setattr(layer_problem, "HELD_ROWS", 5 * 325)
    for _ in range(3):
        task.add(found.call, found.y, len(x), held=True)
    assert len(task.held) == 325, "never more than there is room for"


# ---------------------------------------------------------------- numbers of few digits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (5, 1)])
def test_moments_of_half_precision_are_those_of_the_same_numbers(
    dtype: torch.dtype, kernel: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x, w = (30 * torch.randn(16, 4, 9, 9)).to(dtype), torch.randn(5, 4, *kernel).to(dtype)
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = calls.Conv((1, 1), padding, (1, 1), False, 1)
    y = nn.functional.conv2d(x, w, padding=padding)
    rows = patches(x, kernel, conv).double()
    second, cross = rows.T @ rows, rows.T @ positions_of(y).double()
    assert torch.allclose(
        patch_moments(x, kernel, conv).moment[:-1, :-1], second, rtol=1e-4, atol=50
    )
    assert torch.allclose(cross_moment(x, y, kernel, conv)[:-1], cross, rtol=1e-4, atol=50)


class Upwards(nn.Module):
    """A transposed convolution that loses an input."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 6, 3, padding=1)
        self.b = nn.ConvTranspose2d(6, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def test_a_transposed_convolution_in_half_precision_is_rescaled() -> None:
    torch.manual_seed(0)
    net = Upwards().bfloat16().eval()
    x = [one.bfloat16() for one in images()]
    graph = pl.trace(net, x[0])
    plan = pl.WidthPlan.full(graph).drop({"a": [0, 2]})
    small = Traced(pl.cut(net, graph, plan), graph.after(plan))
    before = Traced(net, graph)
    finish(rescaling(small, before, before, lambda: x, run_batch))
    assert torch.isfinite(small.network.b.weight).all()


# ---------------------------------------------------------------- BatchNorm on single images


class Flat(nn.Module):
    """BatchNorm behind a linear layer: of one image there is one value a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3)
        self.n = nn.BatchNorm2d(4)
        self.b = nn.Linear(64, 5)
        self.m = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.m(self.b(torch.relu(self.n(self.a(x))).flatten(1)))


@pytest.mark.parametrize("sizes", [(8, 8, 1), (1, 1), (1,)], ids=str)
def test_batchnorm_is_measured_though_a_batch_holds_one_image(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = Flat().double().eval()
    given = [torch.cat(images())[:size] for size in sizes]
    graph = pl.trace(net, given[0])
    plan = pl.WidthPlan.full(graph).drop({"a": [1]})
    found, only_large = (Traced(pl.cut(net, graph, plan), graph.after(plan)) for _ in range(2))
    finish(recalibrating(found, Traced(net, graph), lambda: given, run_batch))
    large = [x for x in given if len(x) > 1]
    mean = only_large.network.m.running_mean.clone()
    if large:
        finish(recalibrating(only_large, Traced(net, graph), lambda: large, run_batch))
        assert not torch.equal(only_large.network.m.running_mean, mean)
    assert torch.equal(found.network.m.running_mean, only_large.network.m.running_mean)
    assert torch.equal(found.network.m.running_var, only_large.network.m.running_var)
    assert not found.network.m._forward_pre_hooks
    assert not any(norm.training for norm in (net.n, net.m, found.network.n, found.network.m))


@pytest.mark.parametrize("most", [1, 300, 2**25])
def test_patches_are_made_a_few_at_once(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "ENTRIES", most)
    torch.manual_seed(0)
    x, w = torch.randn(3, 2, 7, 8).double(), torch.randn(4, 2, 5, 2).double()
    conv = calls.Conv((2, 1), (2, 0), (1, 2), False, 1)
    y = nn.functional.conv2d(x, w, None, *(conv.stride, conv.padding, conv.dilation))
    rows = torch.cat([patches(x, (5, 2), conv), torch.ones(y[:, 0].numel(), 1).double()], 1)
    assert torch.allclose(cross_moment(x, y, (5, 2), conv), rows.T @ positions_of(y))
    rows, y = torch.randn(9, 5).double(), torch.randn(9, 2).double()
    ones = torch.cat([rows, torch.ones(9, 1).double()], 1)
    assert torch.allclose(cross_moment(rows, y, (), None), ones.T @ y)
