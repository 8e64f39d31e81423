"""Cutting: plain modules with correct attributes, and legal plans."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from toys import assert_exact

import prunelab as pl


def mobilenet() -> tuple[nn.Module, pl.ChannelGraph, torch.Tensor]:
    model, x = pl.zoo.load("mobilenet", pretrained=False), torch.randn(2, 1, 28, 28)
    return model, pl.trace(model, x), x


def test_dropping_nothing_changes_nothing() -> None:
    model, graph, x = mobilenet()
    full = pl.WidthPlan.full(graph)
    with torch.no_grad():
        assert torch.equal(pl.cut(model, graph, full)(x), model(x))
        assert torch.equal(pl.masked(model, graph, full)(x), model(x))


def test_modules_tell_the_truth_after_a_cut() -> None:
    model, graph, x = mobilenet()
    plan = pl.WidthPlan.full(graph).drop({"blocks.1.expand": range(0, 96, 2), "stem": [3]})
    small = pl.cut(model, graph, plan)
    depthwise, project = small.blocks[1].depthwise, small.blocks[1].project
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (48, 48, 48)
    assert (project.in_channels, small.blocks[1].bn2.num_features) == (48, 48)
    assert small.stem.out_channels == small.blocks[0].expand.in_channels == 15
    assert type(small) is type(model)
    assert list(small.state_dict()) == list(model.state_dict())
    assert all(type(p) is nn.Parameter for p in small.parameters())
    small.train()(x).sum().backward()


def test_the_original_is_untouched() -> None:
    model, graph, _ = mobilenet()
    before = copy.deepcopy(model.state_dict())
    pl.cut(model, graph, pl.WidthPlan.full(graph).drop({"head": [1, 2]}))
    pl.masked(model, graph, pl.WidthPlan.full(graph).drop({"head": [1, 2]}))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_flags_formats_and_requires_grad_survive() -> None:
    model, graph, _ = mobilenet()
    model = model.to(memory_format=torch.channels_last)
    model.train()
    model.bn1.eval()
    model.head.weight.requires_grad_(False)
    small = pl.cut(model, graph, pl.WidthPlan.full(graph).drop({"head": [0], "stem": [5]}))
    assert small.training
    assert not small.bn1.training
    assert not small.head.weight.requires_grad
    assert small.head.weight.is_contiguous(memory_format=torch.channels_last)


def test_cutting_twice_is_cutting_once() -> None:
    model, graph, _x = mobilenet()
    full = pl.WidthPlan.full(graph)
    first = full.drop({"blocks.2.expand": [0, 5, 7], "stem": [2]})
    both = first.drop({"blocks.2.expand": [1, 95], "head": [11]})
    step = pl.cut(model, graph, first)
    twice = pl.cut(step, graph.after(first), both)
    once = pl.cut(model, graph, both)
    for (name, a), b in zip(twice.state_dict().items(), once.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_rebuild_gives_the_pruned_shapes_from_a_fresh_instance() -> None:
    model, graph, _ = mobilenet()
    plan = pl.WidthPlan.full(graph).drop({"head": range(100)})
    fresh = pl.rebuild(pl.zoo.load("mobilenet", pretrained=False), plan)
    cut = pl.cut(model, graph, plan)
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in cut.parameters()]


def test_plans_print_compare_and_go_to_json_and_back() -> None:
    _, graph, _ = mobilenet()
    plan = pl.WidthPlan.full(graph).drop({"blocks.0.depthwise": [1, 2]})
    assert plan.dropped == {"blocks.0.expand": (1, 2)}
    again = pl.WidthPlan.from_json(plan.to_json(), graph)
    assert again == plan
    assert hash(again) == hash(plan)
    assert str(plan) == "WidthPlan(blocks.0.expand 62/64)"
    assert plan.widths["blocks.0.expand"] == 62


@pytest.mark.parametrize(
    ("drop", "says"),
    [
        ({"head": range(192)}, "one must stay"),
        ({"head": [192]}, "does not have"),
        ({"fc": [0]}, "output"),
    ],
)
def test_illegal_plans_say_why(drop: dict[str, list[int]], says: str) -> None:
    _, graph, _ = mobilenet()
    with pytest.raises(pl.IllegalPlan, match=says):
        pl.WidthPlan.full(graph).drop(drop)


def test_a_plan_of_another_network_is_refused() -> None:
    _model, graph, x = mobilenet()
    other = pl.zoo.load("resnet20", pretrained=False)
    plan = pl.WidthPlan.full(graph)
    with pytest.raises(pl.BadModel, match="does not fit the graph"):
        pl.cut(other, graph, plan)
    with pytest.raises(pl.IllegalPlan, match="another network"):
        pl.WidthPlan.from_json(plan.to_json(), pl.trace(other, x))
    with pytest.raises(pl.IllegalPlan, match="not a width plan"):
        pl.WidthPlan.from_json("[]", graph)


def test_cost_of_a_plan_is_the_cost_of_the_cut_network() -> None:
    for name in ("vgg8", "resnet20", "mobilenet"):
        model, x = pl.zoo.load(name, pretrained=False), torch.randn(2, 1, 28, 28)
        graph = pl.trace(model, x)
        drop = {g.name: range(0, g.width, 3) for g in graph.groups if g.prunable}
        plan = pl.WidthPlan.full(graph).drop(drop)
        small = pl.cut(model, graph, plan)
        assert pl.cost(graph, plan) == pl.cost(small, x) == pl.cost(graph.after(plan), plan)
        assert pl.cost(graph, plan, torch.randn(1, 1, 32, 32)) == pl.cost(
            small, torch.randn(1, 1, 32, 32)
        )


def test_a_transposed_convolution_costs_its_kernel_at_every_position_of_its_input() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ConvTranspose2d(4, 6, 3, stride=2), nn.Conv2d(6, 2, 1)
    )
    graph = pl.trace(model, torch.randn(2, 1, 5, 5))
    assert graph.layer("1").macs == 5 * 5 * 4 * 6 * 3 * 3
    plan = pl.WidthPlan.full(graph).drop({"0": [1], "1": [0, 2]})
    small = pl.cut(model, graph, plan)
    for side in (5, 9):
        x = torch.randn(1, 1, side, side)
        assert pl.cost(graph, plan, x) == pl.cost(small, x)
    assert pl.cost(graph, plan) == pl.cost(small, torch.randn(1, 1, 5, 5))


def test_macs_agree_with_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for name in ("vgg8", "resnet20", "mobilenet"):
        model, x = pl.zoo.load(name, pretrained=False), torch.randn(1, 1, 28, 28)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        assert pl.cost(model, x).macs * 2 == counter.get_total_flops()


# ---------------------------------------------------------------- what a cut network is


class Parts(nn.Module):
    """Normalisations of all kinds, a tied convolution, and buffers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.groups = nn.GroupNorm(4, 16)
        self.bare = nn.GroupNorm(4, 16, affine=False)
        self.one = nn.Conv2d(16, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 16, 3, padding=1)
        self.two.weight = self.one.weight
        self.instance = nn.InstanceNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.act = nn.PReLU(8)
        self.fc = nn.Linear(8, 4)
        self.register_buffer("shift", torch.randn(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bare(self.groups(self.stem(x)))
        x = self.instance(self.two(torch.relu(self.one(x))))
        x = self.act(self.up(x)) + self.shift
        return self.fc(x.mean((2, 3)))


def parts() -> tuple[Parts, pl.ChannelGraph, torch.Tensor, pl.WidthPlan]:
    model, x = Parts().eval(), torch.randn(2, 3, 8, 8)
    graph = pl.trace(model, x)
    plan = pl.WidthPlan.full(graph).drop({"stem": [1], "up": [0, 3, 4]})
    return model, graph, x, plan


def test_every_kind_of_layer_tells_the_truth() -> None:
    model, graph, x, plan = parts()
    assert graph["stem"].width == 4  # the norm groups
    small = pl.cut(model, graph, plan)
    assert (small.groups.num_groups, small.groups.num_channels) == (3, 12)
    assert (small.bare.num_groups, small.bare.num_channels) == (3, 12)
    assert small.instance.num_features == 12
    assert (small.up.in_channels, small.up.out_channels) == (12, 5)
    assert (small.act.num_parameters, small.fc.in_features) == (5, 5)
    assert tuple(small.shift.shape) == (5, 1, 1)
    assert small.two.weight is small.one.weight
    assert_exact(model, graph, x)


def test_hooks_dtype_and_formats_survive_and_so_does_the_random_state() -> None:
    model, graph, x, plan = parts()
    model = model.to(torch.bfloat16).to(memory_format=torch.channels_last)
    calls: list[int] = []
    model.fc.register_forward_hook(lambda *_: calls.append(1))
    state = torch.get_rng_state()
    small = pl.cut(model, graph, plan)
    assert torch.equal(torch.get_rng_state(), state)
    assert {tensor.dtype for tensor in small.state_dict().values()} == {torch.bfloat16}
    assert small.one.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        small(x.to(torch.bfloat16))
    assert calls == [1]
    assert not any(
        a.data_ptr() == b.data_ptr()
        for a, b in zip(small.parameters(), model.parameters(), strict=True)
    )


def test_every_kind_of_hook_survives_and_new_ones_stay_apart() -> None:
    model, graph, x, plan = parts()
    calls: list[str] = []
    model.one.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.one.register_full_backward_hook(lambda *_: calls.append("backward"))
    model.fc.weight.register_hook(lambda grad: calls.append("never"))  # of the old weight alone
    model.register_state_dict_post_hook(lambda *_: calls.append("state"))
    small = pl.cut(model, graph, plan).train()
    assert calls == []  # a cut runs nothing of the network's own
    small(x).sum().backward()
    small.state_dict()
    assert set(calls) == {"before", "backward", "state"}
    small.act.register_forward_hook(lambda *_: calls.append("new"))
    assert not model.act._forward_hooks
    model.stem.register_forward_hook(lambda *_: calls.append("old"))
    assert not small.stem._forward_hooks


def test_a_cut_network_trains_as_any_other() -> None:
    """With nothing dropped it takes the very steps of the original; cut, its loss falls."""
    torch.manual_seed(0)
    model, graph, x = mobilenet()
    target = torch.tensor([0, 1])

    def steps(net: nn.Module) -> list[float]:
        net.train()
        optimiser = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
        losses = []
        for _ in range(6):
            loss = F.cross_entropy(net(x), target)
            optimiser.zero_grad()
            loss.backward()
            assert all(p.grad is not None for p in net.parameters())
            optimiser.step()
            losses.append(float(loss.detach()))
        return losses

    full = pl.WidthPlan.full(graph)
    plan = full.drop({g.name: range(g.width // 2) for g in graph.groups if g.prunable})
    small = pl.cut(model, graph, plan)
    means = [b.clone() for name, b in small.named_buffers() if name.endswith("running_mean")]
    falling = steps(small)
    assert falling[-1] < falling[0] / 2
    after = [b for name, b in small.named_buffers() if name.endswith("running_mean")]
    assert not any(torch.equal(a, b) for a, b in zip(means, after, strict=True))
    assert steps(pl.cut(model, graph, full)) == steps(model)


class Keeps(nn.Module):
    """Buffers saved and not saved, frozen parameters, values and a method as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 2, 1)
        self.register_buffer("scale", torch.rand(8, 1, 1))
        self.register_buffer("shift", torch.rand(8, 1, 1), persistent=False)
        self.notes = {"made": ["here"], "of": self.stem}
        self.head = self.finish

    def finish(self, x: Tensor) -> Tensor:
        return self.out(F.relu(x) * self.scale + self.shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


def test_what_a_network_keeps_goes_along() -> None:
    torch.manual_seed(0)
    model, x = Keeps().eval(), torch.randn(1, 3, 6, 6)
    model.out.requires_grad_(False)
    graph = pl.trace(model, x)
    plan = pl.WidthPlan.full(graph).drop({"stem": [1, 2, 6]})
    small = pl.cut(model, graph, plan)
    assert type(small) is Keeps
    assert list(small.state_dict()) == list(model.state_dict())
    keep = [0, 3, 4, 5, 7]
    assert torch.equal(small.scale, model.scale[keep])
    assert torch.equal(small.shift, model.shift[keep])
    assert "shift" not in small.state_dict()
    assert [p.requires_grad for p in small.parameters()] == [True, False, False]
    assert small.notes["of"] is small.stem
    assert small.notes["made"] is not model.notes["made"]
    with torch.no_grad():
        torch.testing.assert_close(small(x), pl.masked(model, graph, plan)(x))


def test_features_that_a_recurrent_layer_reads_are_cut() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.out = nn.Conv2d(3, 8, 3), nn.Linear(6, 2)
            self.time = nn.LSTM(8, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.time(self.stem(x).mean(3).transpose(1, 2))[0][:, -1])

    torch.manual_seed(0)
    model, x = Reads().double(), torch.randn(2, 3, 6, 6, dtype=torch.double)
    graph = pl.trace(model, x)
    small = pl.cut(model, graph, pl.WidthPlan.full(graph).drop({"stem": [0, 3, 4]}))
    assert small.time.input_size == 5
    same = pl.masked(model, graph, pl.WidthPlan.full(graph).drop({"stem": [0, 3, 4]}))
    torch.testing.assert_close(small(x), same(x))


def test_a_cut_network_scripts_exports_and_loads() -> None:
    model, graph, x, plan = parts()
    small = pl.cut(model, graph, plan)
    with torch.no_grad():
        want = small(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, and people use it
            assert torch.allclose(torch.jit.script(small)(x), want, atol=1e-5)
        exported = torch.export.export(small, (x,)).module()
        assert torch.allclose(exported(x), want, atol=1e-5)
    again = pl.rebuild(Parts().eval(), plan)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), want)


def test_an_old_weight_norm_is_cut_and_keeps_its_scale() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convs = [nn.utils.weight_norm(nn.Conv2d(a, b, 3)) for a, b in ((3, 8), (8, 6), (6, 2))]
    model, x = nn.Sequential(*convs), torch.randn(2, 3, 9, 9)
    model(x).sum().backward()  # leaves weights that cannot be copied as they are
    graph = pl.trace(model, x)
    assert [group.width for group in graph.groups if group.prunable] == [8, 6]
    small = pl.cut(model, graph, pl.WidthPlan.full(graph).drop({"0": [1, 2], "1": [0]}))
    kept = [0, 3, 4, 5, 6, 7]
    assert torch.allclose(small[1].weight, model[1].weight[1:][:, kept], atol=1e-6)
    assert (small[1].in_channels, small[1].out_channels) == (6, 5)
    assert_exact(model, graph, x)


def test_a_pruning_mask_of_pytorch_is_cut_along() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    prune.l1_unstructured(model[2], "weight", 0.5)
    x = torch.randn(2, 3, 9, 9)
    graph = pl.trace(model, x)
    assert graph["0"].prunable
    small = pl.cut(model, graph, pl.WidthPlan.full(graph).drop({"0": [0, 5]}))
    assert small[2].weight_mask.shape == small[2].weight_orig.shape == (2, 6, 3, 3)
    assert_exact(model, graph, x)


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        spread = self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (spread + 1e-5), self.bias)


def test_a_standardised_weight_gives_outputs_and_keeps_its_inputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Standardised(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    x = torch.randn(2, 3, 9, 9)
    graph = pl.trace(model, x)
    assert "computed from all of its inputs" in graph["0"].why
    assert graph["1"].prunable
    assert_exact(model, graph, x)


class Tied(nn.Module):
    """An auto-encoder whose decoder is its encoder, turned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.code = nn.Linear(6, 12), nn.Linear(12, 4, bias=False)
        self.head = nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.code(self.stem(x)) @ self.code.weight))


def test_a_weight_used_in_two_ways_is_left_alone() -> None:
    model, x = Tied(), torch.randn(3, 6)
    graph = pl.trace(model, x)
    assert "two ways" in graph["code"].why
    assert_exact(model, graph, x)


class Regions(nn.Module):
    """Deformable convolution, and regions of interest, even none."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops import DeformConv2d

        self.stem, self.offset = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 18, 3, padding=1)
        self.deform, self.box = DeformConv2d(8, 6, 3, padding=1), nn.Linear(6 * 4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        from torchvision.ops import roi_align

        x = self.deform(self.stem(x), self.offset(x)).relu()
        return self.head(self.box(roi_align(x, [boxes], 2).flatten(1)).relu())


@pytest.mark.parametrize("count", [0, 3])
def test_deformed_images_and_regions_of_interest(count: int) -> None:
    model, x = Regions(), torch.randn(1, 3, 8, 8)
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 1, 6, 7], [2, 0, 7, 3]])[:count]
    graph = pl.trace(model, (x, boxes))
    assert graph["box"].prunable
    assert graph["deform"].prunable
    assert "deform" in graph["stem"].why
    assert_exact(model, graph, x, boxes)


class Bare(nn.Module):
    """A normalisation that has no tensor to tell its width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3), nn.GroupNorm(4, 16, affine=False)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.stem(x)).relu().mean((2, 3)))


def test_an_exported_network_knows_the_widths_of_its_bare_norms(
    data: pl.Data, tmp_path: Path
) -> None:
    session = pl.Session(Bare(), data, method=pl.AOFP(theta=10.0, max_theta=10.0), repair=None)
    assert session.propose() is not None
    session.approve()
    session.export(tmp_path / "small.safetensors")
    small = pl.load_pruned(Bare, tmp_path / "small.safetensors")
    assert small.norm.num_channels == small.stem.out_channels < 16
    x = torch.randn(2, 1, 12, 12)
    with torch.no_grad():
        assert torch.equal(small(x), session.model(x))
