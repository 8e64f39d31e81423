"""Explanations of couplings: the chain of operations between two layers, in words."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchvision import models


def traced(name: str) -> pl.ChannelGraph:
    model = getattr(models, name)(weights=None).eval()
    return pl.trace(model, torch.randn(1, 3, 64, 64))


@pytest.fixture(scope="module")
def resnet20() -> pl.ChannelGraph:
    return pl.trace(pl.zoo.load("resnet20", pretrained=False), torch.randn(1, 1, 28, 28))


@pytest.fixture(scope="module")
def mobilenet_v2() -> pl.ChannelGraph:
    return traced("mobilenet_v2")


def said(graph: pl.ChannelGraph, *names: str) -> list[str]:
    return [str(step) for step in graph.explain(*names).steps]


# ---------------------------------------------------------------- two layers


def test_an_add_is_named_with_the_block_that_it_is_in(resnet20: pl.ChannelGraph) -> None:
    found = resnet20.explain("conv1", "layer1.0.conv2")
    assert found.answer == "conv1 and layer1.0.conv2 are coupled: they share 16 units of conv1."
    assert [str(step) for step in found.steps] == [
        "the add in layer1.0 combines conv1 and layer1.0.conv2"
    ]
    assert (
        str(found).splitlines()[1] == "  1. the add in layer1.0 combines conv1 and layer1.0.conv2"
    )
    assert found.reasons[0].startswith("It works channel by channel")


def test_the_way_is_the_shortest_and_runs_from_the_first_layer_to_the_second(
    resnet20: pl.ChannelGraph,
) -> None:
    way = said(resnet20, "layer1.2.conv2", "conv1")
    assert way == said(resnet20, "conv1", "layer1.2.conv2")[::-1]
    assert way == [
        "the add in layer1.2 combines layer1.1.conv2 and layer1.2.conv2",
        "the add in layer1.1 combines layer1.0.conv2 and layer1.1.conv2",
        "the add in layer1.0 combines conv1 and layer1.0.conv2",
    ]


def test_every_two_layers_of_a_group_have_an_unbroken_way() -> None:
    for graph in (traced("resnet50"), traced("efficientnet_b0"), traced("resnext50_32x4d")):
        for group in graph.groups:
            first = group.producers[0]
            for other in group.producers[1:]:
                at = first
                for step in graph.explain(first, other).steps:
                    assert at in (step.a, step.b)
                    at = step.b if at == step.a else step.a
                assert at == other


def test_a_depth_wise_convolution_ties_its_input_to_its_output(
    mobilenet_v2: pl.ChannelGraph,
) -> None:
    found = mobilenet_v2.explain("features.2.conv.0.0", "features.2.conv.1.0")
    assert [str(step) for step in found.steps] == [
        "the depth-wise convolution features.2.conv.1.0 gives every channel of "
        "features.2.conv.0.0 its own filter"
    ]
    assert "are coupled" in found.reasons[0]
    assert found.steps[0].channels == 96


def test_a_gate_is_a_multiplication() -> None:
    graph = traced("efficientnet_b0")
    found = graph.explain("features.2.0.block.1.0", "features.2.0.block.2.fc2")
    assert [str(step) for step in found.steps] == [
        "the multiplication in features.2.0.block.2 combines features.2.0.block.1.0 and "
        "features.2.0.block.2.fc2"
    ]
    assert "squeeze-and-excitation" in found.reasons[0]


def test_a_grouped_convolution_says_so() -> None:
    found = traced("resnext50_32x4d").explain("layer1.0.conv1", "layer1.0.conv2")
    assert "the grouped convolution layer1.0.conv2 computes each of its channel groups" in str(
        found
    )
    assert "several small convolutions" in found.reasons[0]


def test_a_pyramid_couples_its_levels_from_the_top_down() -> None:
    model = models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None).backbone
    graph = pl.trace(model.eval(), torch.randn(1, 3, 64, 64))
    assert said(graph, "fpn.inner_blocks.0.0", "fpn.inner_blocks.2.0") == [
        "the add in fpn combines fpn.inner_blocks.1.0 and fpn.inner_blocks.0.0",
        "the add in fpn combines fpn.inner_blocks.2.0 and fpn.inner_blocks.1.0",
    ]


class Shared(nn.Module):
    """One convolution, one depth-wise one and one BatchNorm, each run on two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 1, groups=8)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.twice(self.twice(self.stem(x))), self.other(x)
        return self.out(self.depthwise(self.bn(a)) * torch.sigmoid(b) + self.depthwise(self.bn(b)))


def test_shared_modules_are_named_as_shared() -> None:
    graph = pl.trace(Shared(), torch.randn(1, 3, 6, 6))
    every = {str(coupling) for coupling in graph.couplings}
    assert every >= {
        "twice runs more than once: it reads stem and twice through the same weights",
        "twice and other pass through the same batch normalisation, bn",
        "twice and other enter the same filters of the depth-wise convolution depthwise",
        "the depth-wise convolution depthwise gives every channel of twice its own filter",
        "the multiplication in the network's own forward combines other and depthwise",
    }
    assert said(graph, "stem", "depthwise")[0].startswith("twice runs more than once")


class GroupedConcat(nn.Module):
    """The groups of a convolution straddle two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 1)
        self.grouped = nn.Conv2d(8, 4, 1, groups=2)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.grouped(torch.cat([self.a(x), self.b(x)], 1)))


def test_layers_in_one_group_of_a_grouped_convolution_are_coupled_in_part() -> None:
    graph = pl.trace(GroupedConcat(), torch.randn(1, 3, 4, 4))
    found = graph.explain("a", "b")
    assert [str(step) for step in found.steps] == [
        "a and b enter the same filters of the grouped convolution grouped"
    ]
    alone = graph.explain("b")
    assert alone.answer == "The channels of b are in 2 groups."
    assert "channels of b enter the same filters of the grouped convolution grouped" in str(alone)


# ---------------------------------------------------------------- not coupled


def test_a_reader_is_not_coupled_with_what_it_reads(resnet20: pl.ChannelGraph) -> None:
    found = resnet20.explain("layer1.0.conv1", "layer1.0.conv2")
    assert found.answer == "layer1.0.conv1 and layer1.0.conv2 are not coupled."
    assert not found.steps
    text = str(found)
    assert "layer1.0.conv2 reads layer1.0.conv1: each of its outputs is a weighted sum" in text
    assert "layer1.0.conv1 reads layer1.0.conv2" not in text  # it ran before
    assert "layer1.0.conv1 is in the group layer1.0.conv1, read by layer1.0.conv2." in text


def test_a_concatenation_couples_nothing_and_its_reader_is_named() -> None:
    graph = traced("densenet121")
    found = graph.explain("features.conv0", "features.denseblock1.denselayer6.conv2")
    assert "features.transition1.conv reads both, side by side: a concatenation" in str(found)


# ---------------------------------------------------------------- one layer


def test_a_layer_alone_tells_its_group_its_readers_and_its_meetings(
    resnet20: pl.ChannelGraph,
) -> None:
    found = resnet20.explain("layer1.0.conv2")
    assert found.answer == (
        "layer1.0.conv2 shares its channels with conv1, layer1.1.conv2, layer1.2.conv2: "
        "16 units, prunable."
    )
    assert found.facts[0].startswith("read by layer1.0.conv1, layer1.1.conv1")
    assert [str(step) for step in found.steps] == [
        "the add in layer1.0 combines conv1 and layer1.0.conv2",
        "the add in layer1.1 combines layer1.0.conv2 and layer1.1.conv2",
    ]
    assert resnet20.explain("layer1.0.conv1").answer == (
        "layer1.0.conv1 is alone: 16 units, prunable."
    )


def test_a_frozen_group_says_why(resnet20: pl.ChannelGraph) -> None:
    assert "frozen: it is an output of the network" in resnet20.explain("fc").answer
    frozen = resnet20.freeze({"conv1": "you asked to freeze it"})
    assert "The group is frozen: you asked to freeze it." in str(
        frozen.explain("conv1", "layer1.0.conv2")
    )


class Spare(nn.Module):
    """It has a layer that it does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.spare = nn.Conv2d(3, 8, 1), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).mean((2, 3)))


def test_a_layer_that_never_ran_is_told_from_one_that_is_not_there() -> None:
    graph = pl.trace(Spare(), torch.randn(1, 3, 4, 4))
    assert "spare never ran" in graph.explain("spare").answer
    assert "spare never ran" in graph.explain("stem", "spare").answer
    with pytest.raises(pl.UnknownName, match=r"Did you mean 'stem'"):
        graph.explain("stems")
    with pytest.raises(pl.UnknownName, match=r"no layer 'spear'"):
        graph.explain("stem", "spear")


class Crossed(nn.Module):
    """Two layers side by side meet a wide one, and in another order a second; halves then add."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)
        self.p, self.q = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 12, 1)
        self.left, self.right = nn.Conv2d(12, 6, 1), nn.Conv2d(12, 3, 1)
        self.out = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        y = (torch.cat([a, b], 1) + self.p(x)) * (torch.cat([b, a], 1) - self.q(x)).abs()
        one, two = self.left(y).chunk(2, 1)
        return self.out(one * two + self.right(y))


def test_every_step_of_a_way_holds_for_one_unit_all_along() -> None:
    graph = pl.trace(Crossed(), torch.randn(1, 3, 4, 4))
    for group in graph.groups:
        for other in group.producers[1:]:
            steps = graph.explain(group.producers[0], other).steps
            led = [{unit for span in step.units for unit in range(*span)} for step in steps]
            assert set.intersection(*led) <= set(group.units)
            assert set.intersection(*led)
    assert len(graph.explain("left").steps) == 2  # its halves, and the multiplication of them
    assert [step.a for step in graph.explain("left", "right").steps] == ["left"]


def test_steps_of_different_units_make_no_way(resnet20: pl.ChannelGraph) -> None:
    first, second = resnet20.explain("conv1", "layer1.1.conv2").steps
    some, others = ((0, 3), (8, 11)), ((3, 8), (11, 16))
    ways = (  # through layer1.0.conv2 for some units, through layer1.2.conv2 for the others
        replace(first, units=((0, 16),)),
        replace(second, units=some),
        replace(first, b="layer1.2.conv2", units=others),
        replace(second, a="layer1.1.conv2", b="layer1.2.conv2", units=others),
    )
    graph = replace(resnet20, couplings=ways)
    found = graph.explain("conv1", "layer1.1.conv2")
    assert found.steps == ways[2:]
    assert found.facts == ("This chain holds for units 3-7, 11-15; others are coupled elsewhere.",)
    after = graph.after(pl.WidthPlan.full(graph).drop({"conv1": [*range(3, 8), *range(11, 16)]}))
    found = after.explain("conv1", "layer1.1.conv2")
    assert (found.steps, found.facts) == (ways[:2], ())


# ---------------------------------------------------------------- the record


def test_couplings_are_few_small_and_survive_a_cut(resnet20: pl.ChannelGraph) -> None:
    assert len(resnet20.couplings) == 9  # three adds in each of three stages
    assert len(pickle.dumps(resnet20.couplings)) < 2000
    plan = pl.WidthPlan.full(resnet20).drop({"conv1": range(6)})
    after = resnet20.after(plan)
    assert after.couplings == resnet20.couplings
    assert "they share 10 units of conv1" in after.explain("conv1", "layer1.2.conv2").answer
    assert "10 of 16 units left" in after.explain("conv1").answer


def test_tracing_leaves_no_hook_behind() -> None:
    model = Shared()
    pl.trace(model, torch.randn(1, 3, 6, 6))
    with pytest.raises(pl.TraceError):
        pl.trace(model, torch.randn(1, 4, 6, 6))
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


class Caught(nn.Module):
    """Goes on after an inner module has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.wrong = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        try:
            x = self.wrong(x)
        except RuntimeError:
            x = F.relu(self.a(x)) + self.b(x)
        return self.out(x)


def test_a_module_that_fails_is_left_all_the_same() -> None:
    graph = pl.trace(Caught(), torch.randn(1, 3, 4, 4))
    assert said(graph, "a", "b") == ["the add in the network's own forward combines a and b"]


class Scripted(nn.Module):
    """A part of it is TorchScript, which takes no hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.act = torch.jit.script(nn.Hardtanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.a(x)) + self.b(x))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_scripted_part_is_traced_all_the_same() -> None:
    graph = pl.trace(Scripted(), torch.randn(1, 3, 4, 4))
    assert said(graph, "a", "b") == ["the add in the network's own forward combines a and b"]


def test_markdown_holds_the_same_words(resnet20: pl.ChannelGraph) -> None:
    found = resnet20.explain("conv1", "layer1.1.conv2")
    assert found._repr_markdown_() == (
        "**conv1 and layer1.1.conv2 are coupled: they share 16 units of conv1.**\n\n"
        "1. the add in layer1.0 combines conv1 and layer1.0.conv2\n"
        "2. the add in layer1.1 combines layer1.0.conv2 and layer1.1.conv2\n\n"
        f"*{found.reasons[0]}*"
    )


# ---------------------------------------------------------------- the table


def test_the_table_is_aligned_and_totals_stand_on_top(resnet20: pl.ChannelGraph) -> None:
    head, names, first, *rest = str(resnet20).splitlines()
    assert head.startswith("ChannelGraph: 12 prunable groups of 13, 448 units; ")
    assert first[names.index("made by") :].startswith("4 layers")
    assert rest[0][names.index("made by") :].startswith("itself")
    assert rest[-1] == "  frozen: 1 group (it is an output of the network)"
    assert repr(resnet20) == "<ChannelGraph: 13 groups, 458 units>"


def test_a_long_table_is_cut_short_and_says_so() -> None:
    graph = traced("densenet121")
    lines = str(graph).splitlines()
    assert len(lines) <= 40
    assert max(len(line) for line in lines) <= 130
    assert "  ... and 89 more" in lines
    assert "... and 89 more" in graph._repr_html_()


def test_the_share_of_the_parameters_counts_both_axes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    graph = pl.trace(Net(), torch.randn(1, 3, 4, 4))
    # 24 weights of a, 32 of b read by column; b's four biases belong to the output
    assert f"{56 / 60:.1%} of 60 parameters" in str(graph)
    assert "0.0% of 60 parameters" in str(graph.freeze({"a": "so"}))
