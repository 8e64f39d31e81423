"""Coupled channels: known counts, and channels that must be frozen."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl

# Groups and units as an independent reference implementation counts them, without the outputs.
KNOWN = {
    "resnet18": (12, 2880),
    "resnet50": (37, 11456),
    "vgg16_bn": (15, 12416),
    "mobilenet_v2": (25, 9128),
    "densenet121": (120, 10240),
    "resnext50_32x4d": (21, 4416),
    "efficientnet_b0": (40, 11404),
    "regnet_y_400mf": (37, 2323),
}
ZOO = {"vgg8": (7, 576), "resnet20": (12, 448), "mobilenet": (13, 1584)}


def random_plan(graph: pl.ChannelGraph, seed: int, most: float = 0.7) -> pl.WidthPlan:
    rng = np.random.default_rng(seed)
    drop = {}
    for group in graph.groups:
        if group.prunable:
            count = int(rng.integers(0, max(1, int(group.width * most)) + 1))
            drop[group.name] = rng.choice(group.width, min(count, group.width - 1), replace=False)
    return pl.WidthPlan.full(graph).drop(drop)


def counted(graph: pl.ChannelGraph) -> tuple[int, int]:
    groups = [group for group in graph.groups if group.prunable]
    return len(groups), sum(group.width for group in groups)


def assert_masked_is_cut(model: nn.Module, graph: pl.ChannelGraph, x: Tensor, seed: int) -> None:
    plan = random_plan(graph, seed)
    model, x = model.double(), x.double()
    with torch.no_grad():
        small, same = pl.cut(model, graph, plan), pl.masked(model, graph, plan)
        got, want = small(x), same(x)
    assert got.shape == want.shape
    assert float((got - want).norm()) <= 1e-10 * float(want.norm())


@pytest.mark.parametrize("name", ZOO)
def test_zoo_has_the_known_groups_and_masked_equals_cut(name: str) -> None:
    model = pl.zoo.load(name, pretrained=False)
    x = torch.randn(2, 1, 28, 28)
    graph = pl.trace(model, x)
    assert counted(graph) == ZOO[name]
    for seed in range(5):
        assert_masked_is_cut(model, graph, x, seed)


@pytest.mark.parametrize("name", KNOWN)
def test_torchvision_has_the_known_groups_and_masked_equals_cut(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchvision import models

    model = getattr(models, name)(weights=None).eval()
    x = torch.randn(1, 3, 64, 64)
    graph = pl.trace(model, x)
    assert counted(graph) == KNOWN[name]
    assert_masked_is_cut(model, graph, x, seed=0)


def test_residual_blocks_couple_the_stream_and_leave_the_inside_alone() -> None:
    graph = pl.trace(pl.zoo.load("resnet20", pretrained=False), torch.randn(1, 1, 28, 28))
    stream = graph["layer1.2.conv2"]
    assert stream is graph["conv1"]
    assert stream.producers == ("conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2")
    assert stream.residual
    inside = graph["layer1.0.conv1"]
    assert inside.producers == ("layer1.0.conv1",)
    assert inside.consumers == ("layer1.0.conv2",)
    assert not inside.residual
    assert not graph["fc"].prunable
    assert "output" in graph["fc"].why


class Squeezed(nn.Module):
    """A block with squeeze-and-excitation, and a shortcut that is projected or added as it is."""

    def __init__(self, projected: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand = nn.Conv2d(8, 12, 1)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.fc1, self.fc2 = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project = nn.Conv2d(12, 8, 1)
        self.shortcut = nn.Conv2d(8, 8, 1) if projected else nn.Identity()
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depth(self.expand(x)).relu()
        y = y * self.fc2(self.fc1(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(self.shortcut(x) + self.project(y))


@pytest.mark.parametrize("projected", [True, False])
def test_what_a_gate_multiplies_is_no_stream_and_a_blocks_input_is(projected: bool) -> None:
    graph = pl.trace(Squeezed(projected), torch.randn(1, 3, 8, 8))
    assert graph["fc2"] is graph["expand"]  # coupled, but not summed
    assert not graph["expand"].residual and not graph["fc1"].residual
    assert graph["project"].residual
    assert graph["stem"].residual, "the shortcut carries it past the block"
    assert (graph["stem"] is graph["project"]) == (not projected)


class Laterals(nn.Module):
    """Two resolutions, each through a lateral convolution into one sum; the first is read again."""

    def __init__(self, read_again: bool) -> None:
        super().__init__()
        self.read_again = read_again
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.lateral1, self.lateral2 = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.again, self.head = nn.Conv2d(8, 2, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        one = self.one(x)
        y = self.head(self.lateral1(one) + self.lateral2(self.two(one)))
        return (y, self.again(one)) if self.read_again else (y,)


@pytest.mark.parametrize("read_again", [True, False])
def test_a_blocks_input_leads_to_its_sum_alone(read_again: bool) -> None:
    graph = pl.trace(Laterals(read_again), torch.randn(1, 3, 8, 8))
    assert graph["lateral1"].residual
    assert graph["one"].residual == (not read_again)
    assert not graph["two"].residual


class Parallel(nn.Module):
    """Two blocks of parallel kernels as RepVGG trains them; with `identity` the second adds x."""

    def __init__(self, identity: bool) -> None:
        super().__init__()
        self.identity = identity
        self.wide1, self.point1 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.wide2, self.point2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.wide1(x) + self.point1(x))
        return self.head(self.wide2(x) + self.point2(x) + (x if self.identity else 0))


@pytest.mark.parametrize("identity", [True, False])
def test_parallel_kernels_of_one_input_are_no_stream_but_for_the_identity(identity: bool) -> None:
    graph = pl.trace(Parallel(identity), torch.randn(1, 3, 8, 8))
    assert graph["wide1"] is graph["point1"]
    assert graph["wide2"] is graph["point2"]
    assert (graph["wide1"] is graph["wide2"]) == identity
    assert [graph[name].residual for name in ("wide1", "wide2")] == [identity, identity]


SPARED = {  # residual streams and the inputs of their first blocks
    "resnet50": "conv1 layer1.0.conv3 layer2.0.conv3 layer3.0.conv3 layer4.0.conv3",
    "regnet_y_400mf": "stem.0 "
    + " ".join(f"trunk_output.block{stage}.block{stage}-0.proj.0" for stage in (1, 2, 3, 4)),
    "mobilenet_v3_small": "features.2.block.2.0 features.4.block.3.0 features.7.block.3.0 "
    "features.9.block.3.0",
    "shufflenet_v2_x0_5": "stage2.0.branch1.2 stage3.0.branch1.2 stage4.0.branch1.2",
    "vgg11_bn": "",
    "densenet121": "",
}


@pytest.mark.parametrize("name", SPARED)
def test_torchvision_networks_have_these_streams(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    graph = pl.trace(getattr(models, name)(weights=None).eval(), torch.randn(1, 3, 64, 64))
    assert [group.name for group in graph.groups if group.residual] == SPARED[name].split()


class Coupled(nn.Module):
    """A random small network: what it is made of follows from `recipe`."""

    def __init__(self, recipe: list[int], width: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        layers: list[nn.Module] = []
        channels = width
        for step in recipe:
            layer: nn.Module
            match step:
                case 0:
                    layer = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
                    channels = width
                case 1:  # residual
                    layer = nn.Sequential(
                        nn.Conv2d(channels, 2 * width, 1, bias=False),
                        nn.BatchNorm2d(2 * width),
                        nn.ReLU(inplace=True),
                        nn.Conv2d(2 * width, channels, 3, padding=1),
                    )
                case 2:  # depth-wise
                    layer = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
                case 3:  # dense block: concat
                    layer = nn.Conv2d(channels, width, 3, padding=1)
                    channels += width
                case 4:  # squeeze and excitation
                    layer = nn.Sequential(
                        nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU(),
                        nn.Conv2d(4, channels, 1), nn.Sigmoid(),
                    )  # fmt: skip
                case _:  # grouped
                    layer = nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels // 2)
                    channels *= 2
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(channels * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step, layer in zip(self.recipe, self.layers, strict=True):
            out = layer(x)
            x = {1: lambda x=x, out=out: x + out, 3: lambda x=x, out=out: torch.cat([x, out], 1),
                 4: lambda x=x, out=out: x * out}.get(step, lambda out=out: out)()  # fmt: skip
        return self.head(F.adaptive_max_pool2d(x, 2).flatten(1))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=5),
    st.sampled_from([4, 6]),
    st.integers(0, 10**6),
)
def test_random_networks_masked_equals_cut(recipe: list[int], width: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = Coupled(recipe, width).eval()
    x = torch.randn(2, 3, 8, 8)
    graph = pl.trace(model, x)
    assert any(group.prunable for group in graph.groups)
    assert_masked_is_cut(model, graph, x, seed)


class HardCoded(nn.Module):
    """Its forward code knows the width of `a`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)
        self.c = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x.view(len(x), 8, -1).view(len(x), 8, *x.shape[2:])
        return self.c(self.b(x).relu())


def test_a_width_that_the_code_knows_is_frozen_and_the_rest_is_not() -> None:
    graph = pl.trace(HardCoded(), torch.randn(1, 3, 5, 5))
    assert "hard-codes" in graph["a"].why
    assert graph["b"].prunable


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.cumsum(self.a(x), dim=1))


def test_an_operation_without_a_rule_freezes_and_says_so() -> None:
    graph = pl.trace(Unknown(), torch.randn(1, 3, 5, 5))
    assert "cumsum" in graph["a"].why


class Twice(nn.Module):
    """One layer used twice, functional calls, and a parameter per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(5, 8, 1, 1))
        self.gamma = nn.Parameter(torch.randn(5, 1, 1))
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.shared(self.stem(x)).relu())
        return self.fc((F.conv2d(x, self.weight) * self.gamma).relu().mean((2, 3)))


def test_shared_and_functional_layers_are_seen_and_cut() -> None:
    model, x = Twice(), torch.randn(2, 3, 6, 6)
    graph = pl.trace(model, x)
    assert graph["shared"] is graph["stem"]
    assert graph["weight"].prunable
    small = pl.cut(model, graph, pl.WidthPlan.full(graph).drop({"weight": [1, 3], "stem": [0]}))
    assert tuple(small.gamma.shape) == (3, 1, 1)
    assert_masked_is_cut(model, graph, x, seed=3)


class Slices(nn.Module):
    """In-place writes into slices, and channels padded with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.c = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.cat([self.a(x), self.a(x)], 1)
        out[:, 4:] = self.b(x)
        return self.c(out)


def test_a_write_into_a_slice_is_followed_or_frozen_never_wrong() -> None:
    model, x = Slices(), torch.randn(1, 3, 5, 5)
    graph = pl.trace(model, x)
    assert_masked_is_cut(model, graph, x, seed=1)


def test_tracing_leaves_no_trace() -> None:
    model = pl.zoo.load("resnet20", pretrained=False).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    pl.trace(model, torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_user_freezes_layers_by_name() -> None:
    graph = pl.trace(
        pl.zoo.load("resnet20", pretrained=False), torch.randn(1, 1, 28, 28), freeze=["layer3"]
    )
    assert "asked" in graph["layer3.0.conv1"].why
    assert graph["layer2.0.conv1"].prunable


def test_bad_input_is_told_what_to_do() -> None:
    model = pl.zoo.load("resnet20", pretrained=False)
    with pytest.raises(pl.TraceError, match="example inputs"):
        pl.trace(model, torch.randn(1, 3, 28, 28))
    with pytest.raises(pl.BadModel, match="meta device"):
        pl.trace(nn.Conv2d(3, 4, 1, device="meta"), torch.randn(1, 3, 4, 4))
    graph = pl.trace(model, torch.randn(1, 1, 28, 28))
    with pytest.raises(pl.UnknownName, match=r"Did you mean 'layer1\.0\.conv1'"):
        graph["layer1.0.conv"]


# ---------------------------------------------------------------- training mode


class Head(nn.Module):
    """An auxiliary head that runs in training mode only, as GoogLeNet's do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.aux = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1))
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        out = {"out": self.fc(x.mean((2, 3)))}
        if self.training:
            out["aux"] = self.aux(x).mean((2, 3))
        return out


def test_heads_that_run_in_training_only_are_joined() -> None:
    model, x = Head(), torch.randn(1, 3, 3, 3)  # one value a channel: BatchNorm cannot train on it
    graph = pl.trace(model, x)
    assert graph.unseen == ()
    assert graph["body.0"].consumers == ("fc", "aux.0")
    assert graph["aux.0"].prunable
    assert "in training" in graph["aux.2"].why
    small = pl.cut(model, graph, pl.WidthPlan.full(graph).drop({"body.0": [1, 4], "aux.0": [0]}))
    assert small.train()(torch.randn(2, 3, 5, 5))["aux"].shape == (2, 2)


class Detector(nn.Module):
    """Takes images, and targets too when it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.extra = nn.Conv2d(8, 4, 1)

    def forward(self, images: list[Tensor], targets: list[Tensor] | None = None) -> dict[str, Any]:
        x = self.body(torch.stack(images))
        if not self.training:
            return {"boxes": list(self.head(x))}
        assert targets is not None
        return {"loss": (self.extra(x) - torch.stack(targets)[:, :, None, None]).square().mean()}


def test_detectors_take_other_inputs_in_training() -> None:
    model, image = Detector(), torch.randn(3, 6, 6)
    graph = pl.trace(model, ([image],), train_inputs=([image, image], [torch.zeros(4)] * 2))
    assert graph.unseen == ()
    assert graph["body"].consumers == ("head", "extra")
    with pytest.raises(pl.TraceError, match="train_inputs"):
        pl.trace(model, ([image],), train_inputs=([image],))


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.a(x)))


class Supervised(nn.Module):
    """Wants targets in training, where a head and a loss read what evaluation reads otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3), Block(), Block()
        self.tail, self.fc = nn.Conv2d(8, 16, 1), nn.Linear(16, 2)
        self.early = nn.ModuleList([nn.Linear(8, 2)])

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        x = self.one(self.stem(x))
        if self.training:
            self.early[0](x.mean((2, 3)))
            if targets is None:
                raise ValueError("training takes targets.")
        x = self.tail(self.two(x)).mean((2, 3))
        if self.training:
            return x.softmax(1).sum() - (self.fc(x) - targets).square().mean()
        return self.fc(x)


def test_what_only_training_reads_stays_when_training_does_not_run() -> None:
    model, x, y = Supervised().double(), torch.randn(2, 3, 6, 6, dtype=torch.double), torch.ones(2)
    graph = pl.trace(model, x)
    assert graph.untrained == "ValueError: training takes targets"
    assert "did not run in training mode (ValueError: training takes targets)" in str(graph)
    assert {group.name for group in graph.groups if group.prunable} == {"one.a", "two.a"}
    guarded = "it may be read by training-only code of the network"
    assert graph["stem"].why == graph["tail"].why == guarded
    assert graph["early.0"].why == "it runs only in training mode, which failed"
    plan = pl.WidthPlan.full(graph).drop({"one.a": range(7), "two.a": range(5)})
    pl.cut(model, graph, plan).train()(x, y).backward()

    graph = pl.trace(model, x, train_inputs=(x, y))
    assert graph.untrained == ""
    assert graph["stem"].prunable
    assert "softmax is taken over its channels" in graph["tail"].why


class Apart(nn.Module):
    """Its head for training is in a part that does not ask for its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.neck, self.inner.spare = Block(), nn.Conv2d(8, 2, 1)
        self.stem, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor, use: bool = False) -> Tensor:
        if self.fc.training and not use:
            raise RuntimeError("say use")
        x = self.inner.neck(self.stem(x))
        return self.fc(x.mean((2, 3))) + (self.inner.spare(x).mean() if use else 0)


def test_what_an_idle_part_may_read_stays_when_training_does_not_run() -> None:
    graph = pl.trace(Apart(), torch.randn(1, 3, 6, 6))
    assert graph.untrained == "RuntimeError: say use"
    assert graph.unseen == ("inner.spare",)
    assert graph["stem"].why == "it may be read in training by inner.spare, which did not run"
    assert graph["inner.neck.a"].prunable


def test_a_detector_without_inputs_for_training_can_be_cut_and_trained() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchvision import models
    model = models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, min_size=64, max_size=64
    )
    graph = pl.trace(model, ([torch.rand(3, 64, 64)],))
    assert graph.untrained.startswith("AssertionError: targets should not be none")
    assert graph["roi_heads.box_head.fc6"].prunable
    assert not graph["backbone.fpn.layer_blocks.0.0"].prunable
    drop = {group.name: range(group.width // 2) for group in graph.groups if group.prunable}
    small = pl.cut(model, graph, pl.WidthPlan.full(graph).drop(drop)).train()
    box = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
    sum(small([torch.rand(3, 64, 64)], [box]).values()).backward()


class Scaled(nn.Module):
    """Training writes a scale that evaluation divides by; its numbers depend on its width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        self.register_buffer("scale", torch.ones(()))
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.training:
            self.scale.copy_(self.out(x).abs().max())
        x = self.out(self.body(x) * x.shape[1] / self.scale)
        if self.seen is None:
            self.seen = x.mean()
        return x


def test_what_training_writes_blinds_no_probe_and_is_not_kept() -> None:
    model = Scaled()
    graph = pl.trace(model, torch.randn(2, 3, 6, 6))
    assert graph["stem"].producers == ("stem", "body")
    assert graph["stem"].why == "the network's code computes with its width as a number"
    assert model.scale == 1
    assert model.seen is None or model.seen != 0


# ---------------------------------------------------------------- the user's word


def test_widths_are_rounded_for_methods_and_plans_are_literal() -> None:
    model, x = pl.zoo.load("mobilenet", pretrained=False), torch.randn(1, 1, 28, 28)
    graph = pl.trace(model, x, round_to=8, min_width=24)
    full = pl.WidthPlan.full(graph)
    assert len(graph.rounded(full, {"head": range(50)})["head"]) == 48  # 192 to 144
    assert graph.rounded(full, {"head": range(7)}) == {}
    assert len(graph.rounded(full, {"head": range(190)})["head"]) == 168  # 24 stay
    order = {("head", unit): -unit for unit in range(192)}
    assert graph.rounded(full, {"head": range(192)}, order)["head"] == tuple(range(24, 192))
    assert len(full.drop({"head": range(50)}).kept["head"]) == 142


def test_a_rounded_width_counts_channels_where_a_unit_is_several() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=8), nn.Conv2d(32, 4, 1))
    graph = pl.trace(model, torch.randn(1, 3, 8, 8), round_to=8)
    assert graph["0"].width == 8
    assert graph.rounded(pl.WidthPlan.full(graph), {"0": [1, 2, 5]}) == {"0": (1, 2)}


def test_moves_leave_widths_that_are_asked_for(trained: nn.Module, data: pl.Data) -> None:
    graph = pl.trace(trained, torch.randn(1, 1, 12, 12), round_to=4)
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.5, images=64), graph=graph)
    move = session.propose()
    assert move is not None
    session.approve()
    assert all(width % 4 == 0 for width in session.plan.widths.values())


def test_a_time_limit_ends_a_long_trace() -> None:
    model = pl.zoo.load("resnet20", pretrained=False)
    with pytest.raises(pl.TraceError, match="time limit"):
        pl.trace(model, torch.randn(1, 1, 28, 28), time_limit=0.0)
    with pytest.raises(pl.InvalidValue, match="round_to"):
        pl.trace(model, torch.randn(1, 1, 28, 28), round_to=0)


class Normed(nn.Module):
    """A stream of channels-last LayerNorms, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.down(self.up(self.norm(x)).relu())
        return self.fc(x.mean((1, 2)))


def test_layer_norm_freezes_its_stream_unless_inexact_is_asked_for() -> None:
    model, x = Normed(), torch.randn(2, 3, 8, 8)
    graph = pl.trace(model, x)
    assert "LayerNorm" in graph["stem"].why
    assert graph["up"].prunable
    graph = pl.trace(model, x, inexact=True)
    assert graph["stem"].prunable
    assert graph["stem"].inexact
    assert not graph["up"].inexact
    small = pl.cut(model, graph, pl.WidthPlan.full(graph).drop({"stem": [1, 2], "up": [3]}))
    assert small.norm.normalized_shape == (6,)
    assert small.train()(x).shape == (2, 3)
