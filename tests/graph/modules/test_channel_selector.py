"""Channel selectors: a branch reads fewer channels than its shortcut carries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toys import Tiny, assert_exact, random_plan

import prunelab as pl
from prunelab.graph.modules.channel_selector import SelectingConv2d
from prunelab.methods import METHODS

X = torch.randn(2, 1, 12, 12)


def with_samplers(model: nn.Module) -> nn.Module:
    return pl.with_channel_selectors(model, pl.trace(model, X))


@pytest.fixture
def selecting(trained: nn.Module) -> nn.Module:
    return pl.with_channel_selectors(trained, pl.trace(trained, X), ["conv1"])


def test_with_all_channels_it_is_the_same_network(trained: nn.Module) -> None:
    made = with_samplers(trained)
    assert isinstance(made.conv1, SelectingConv2d)
    assert type(trained.conv1) is nn.Conv2d
    with torch.no_grad():
        assert torch.equal(made(X), trained(X))
    own = dict(trained.state_dict())
    assert {name for name in made.state_dict() if name not in own} == {
        "conv1.sampler",
        "conv3.sampler",
    }


@pytest.mark.parametrize("name", ["tiny", "resnet20", "mobilenet"])
def test_a_sampler_has_a_group_of_its_own_and_cuts_are_exact(name: str) -> None:
    model = with_samplers(Tiny() if name == "tiny" else pl.zoo.build(name)).eval()
    graph = pl.trace(model, X)
    own = [layer for layer in graph.layers if layer.name.endswith(".sampler")]
    assert own
    for layer in own:
        group = graph[layer.name]
        assert group.prunable
        assert group.consumers == (layer.name.removesuffix(".sampler"),)
        assert layer.macs == 0
    picked = [group for group in graph.groups if "selects from it by index" in group.why]
    assert picked
    assert_exact(model, graph, X)


def test_the_shortcut_keeps_what_the_branch_drops(selecting: nn.Module) -> None:
    graph = pl.trace(selecting, X)
    plan = pl.WidthPlan.full(graph).drop({"conv1.sampler": [1, 2, 6]})
    small = pl.cut(selecting, graph, plan)
    assert small.conv1.sampler.tolist() == [0, 3, 4, 5, 7]
    assert (small.conv1.in_channels, small.stem.out_channels) == (5, 8)
    assert small.bn2.num_features == 8
    with pytest.raises(pl.IllegalPlan, match=r"conv1\.sampler selects from it"):
        plan.drop({"stem": [0]})


def test_its_cost_is_counted_with_and_without_cutting(selecting: nn.Module) -> None:
    graph = pl.trace(selecting, X[:1])
    plain = pl.cost(Tiny(), X[:1])
    whole = pl.cost(selecting, X[:1])
    assert whole.macs == plain.macs
    assert whole.activation_bytes == plain.activation_bytes + 4 * 8 * 144  # the copy
    for seed in range(3):
        plan = random_plan(graph, seed)
        found = pl.cost(pl.cut(selecting, graph, plan), X[:1])
        assert pl.cost(graph, plan) == found
        assert pl.cost(graph, plan, X[:1]) == found


class Bottleneck(nn.Module):
    """A stem that is no sum, read by the first layer of a branch and by a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.conv2, self.conv3 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 8, 1)
        self.project, self.fc = nn.Conv2d(6, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        inside = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc((self.project(x) + self.conv3(inside)).mean((2, 3)))


def test_a_branch_beside_a_projection_samples_what_they_share() -> None:
    made = with_samplers(Bottleneck())
    assert [name for name, _ in made.named_buffers()] == ["conv1.sampler"]
    assert_exact(made, pl.trace(made, X), X)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_prunes_a_network_with_samplers(
    selecting: nn.Module, data: pl.Data, name: str
) -> None:
    method = pl.make_method(name)
    if name == "group_fisher":
        method = replace(method, interval=1, units_per_step=4)
    if name == "aofp":
        method = replace(method, theta=0.1, images=64)
    result = pl.prune(selecting, data, method, target_macs=0.6)
    assert pl.cost(result.model, X[:1]).macs <= 0.6 * pl.cost(selecting, X[:1]).macs
    without_weights = name in ("magnitude", "batchnorm_scale")  # a sampler has none to be ranked by
    assert (result.plan.widths["conv1.sampler"] == 8) >= without_weights
    assert result.plan.widths["stem"] == 8


def test_channel_pruning_selects_and_the_repair_follows(
    selecting: nn.Module, data: pl.Data
) -> None:
    method = pl.ChannelPruning(pruning_ratio={"conv1.sampler": 0.5}, images=128)
    session = pl.Session(selecting, data, method)
    move = session.propose()
    assert move is not None
    assert set(move.drop) == {"conv1.sampler"}
    before = session.model.conv1.weight.detach()[
        :, list(session.plan.drop(move.drop).kept["conv1.sampler"])
    ]
    session.approve()
    assert session.model.conv1.sampler.tolist() == list(session.plan.kept["conv1.sampler"])
    assert not torch.equal(session.model.conv1.weight, before)  # solved anew
    assert session.undo().now.cost == session.state.base.cost
    assert session.model.conv1.sampler.tolist() == list(range(8))


def test_it_is_resumed_exported_and_loaded(
    selecting: nn.Module, data: pl.Data, tmp_path: Path
) -> None:
    session = pl.Session(selecting, data, pl.ThiNet(images=64), path=tmp_path / "run.prunelab")
    session.run(target_macs=0.6)
    session.export(tmp_path / "small.safetensors")

    def factory() -> nn.Module:
        plain = Tiny()
        return pl.with_channel_selectors(plain, pl.trace(plain, X), ["conv1"])

    again = pl.load_pruned(factory, tmp_path / "small.safetensors")
    resumed = pl.Session.open(tmp_path / "run.prunelab", model=factory().eval(), data=data)
    with torch.no_grad():
        want = session.model(X)
        assert torch.equal(again(X), want)
        assert torch.equal(resumed.model(X), want)
    with pytest.raises(pl.BadModel, match="sampler"):
        pl.load_pruned(Tiny, tmp_path / "small.safetensors")


def test_it_samples_what_a_network_is_given(data: pl.Data) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(5, 6, 3)
            self.fc = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

    model, x = Wide().double().eval(), torch.randn(2, 5, 6, 6, dtype=torch.float64)
    made = pl.with_channel_selectors(model, pl.trace(model, x), ["conv"])
    graph = pl.trace(made, x)
    plan = pl.WidthPlan.full(graph).drop({"conv.sampler": [0, 4]})
    want = model(x * torch.tensor([0.0, 1, 1, 1, 0]).view(1, 5, 1, 1))
    torch.testing.assert_close(pl.cut(made, graph, plan)(x), want)


def test_a_network_with_selectors_widens_and_shows_its_couplings(selecting: nn.Module) -> None:
    graph = pl.trace(selecting.double(), X.double())
    wide = pl.widened(selecting, graph, 1.5, noise=0)
    assert len(wide.conv1.sampler) == 12
    with torch.no_grad():
        torch.testing.assert_close(wide(X.double()), selecting(X.double()))
    assert "read by conv1" in str(graph.explain("conv1.sampler"))
    assert "conv1.sampler" in str(graph)
    assert graph.show().data


def test_what_cannot_sample_is_told(trained: nn.Module) -> None:
    graph = pl.trace(trained, X)
    with pytest.raises(pl.InvalidValue, match="plain"):
        pl.with_channel_selectors(trained, graph, ["fc"])
    with pytest.raises(pl.UnknownName):
        pl.with_channel_selectors(trained, graph, ["conv9"])
    vgg = pl.zoo.build("vgg8")
    with pytest.raises(pl.BadModel, match="residual stream"):
        pl.with_channel_selectors(vgg, pl.trace(vgg, X))
    normed = Tiny()
    torch.nn.utils.parametrizations.weight_norm(normed.conv1)
    with pytest.raises(pl.InvalidValue, match=r"plain|its own"):
        pl.with_channel_selectors(normed, pl.trace(normed, X), ["conv1"])
