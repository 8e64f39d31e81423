"""Cutting: plain modules that tell the truth about themselves, and plans that are legal."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

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
