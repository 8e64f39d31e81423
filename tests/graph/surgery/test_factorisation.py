"""Factorised convolutions: the same outputs, ranks as channel groups, a graph like a trace's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import prunelab as pl
from prunelab.graph.surgery.factorisation import Kind, factorised, factors, factors_like
from prunelab.graph.surgery.factorised_graph import extended, factorised_graph

NETWORKS: dict[str, dict[str, Kind]] = {
    "resnet18": {
        "conv1": "spatial", "layer1.0.conv1": "spatial", "layer1.0.conv1.1": "channel",
        "layer2.0.conv1": "channel", "layer2.0.downsample.0": "channel",
    },
    "vgg11": {"features.0": "spatial", "features.3": "channel", "features.3.0": "spatial"},
}  # fmt: skip


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None, num_classes=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.running_mean, -1, 1)
    return model.double().eval()


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_graph_is_the_one_that_a_trace_of_the_factorised_network_finds(name: str) -> None:
    model, x = network(name), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    graph = pl.trace(model, x)
    made, derived = factorised_graph(graph, model, NETWORKS[name], lambda net: net(x))
    traced = pl.trace(made, x)
    assert torch.allclose(made(x), model(x), rtol=1e-10, atol=1e-12)
    assert {g.producers: (g.width, g.why, g.consumers) for g in derived.groups} == {
        g.producers: (g.width, g.why, g.consumers) for g in traced.groups
    }
    assert [g.name for g in derived.groups if g.name in {q.name for q in graph.groups}] == [
        g.name for g in graph.groups
    ]
    full = extended(pl.WidthPlan.full(graph), derived)
    assert pl.cost(derived, full) == pl.cost(made, x)


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_cut_to_random_plans_equals_masked(name: str) -> None:
    model, x = network(name), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    graph = pl.trace(model, x)
    made, derived = factorised_graph(graph, model, NETWORKS[name], lambda net: net(x))
    rng = np.random.default_rng(0)
    plan = pl.WidthPlan.full(derived).drop({
        g.name: rng.choice(g.width, g.width // 3, replace=False) for g in derived if g.prunable
    })  # fmt: skip
    small = pl.cut(made, derived, plan)
    assert torch.allclose(small(x), pl.masked(made, derived, plan)(x), rtol=1e-9, atol=1e-12)
    assert pl.cost(derived, plan) == pl.cost(small, x)
    again = factorised(pl.cut(model, graph, pl.WidthPlan.full(graph)), NETWORKS[name])
    assert type(again.get_submodule(next(iter(NETWORKS[name])))) is nn.Sequential


@pytest.mark.parametrize("kind", ["spatial", "channel"])
def test_truncated_kernel_is_the_best_of_its_rank(kind: Kind) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    found = factors(weight, kind)
    axes = (1, 2, 3, 0)
    rows = 12 if kind == "spatial" else 36
    matrix = weight.permute(axes).reshape(rows, -1).numpy()
    values = np.linalg.svd(matrix, compute_uv=False)
    assert np.allclose(found.energies, values**2)
    for rank in (1, 3, 6):
        first, second = found.first[:rank], found.second[:, :rank]
        if kind == "spatial":
            whole = torch.einsum("rnh,orw->onhw", first[..., 0], second[:, :, 0])
        else:
            whole = torch.einsum("rnhw,or->onhw", first, second[..., 0, 0])
        lost = float((weight - whole).square().sum())
        assert lost == pytest.approx(float(np.square(values[rank:]).sum()), abs=1e-9)


def test_responses_are_reconstructed_by_their_principal_components() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    x = torch.randn(50, 2, 9, 9, dtype=torch.float64) * torch.tensor([1.0, 5.0])[:, None, None]
    y = nn.functional.conv2d(x, weight).movedim(1, 0).flatten(1)
    found = factors(weight, "channel", y @ y.T)
    eigenvalues = torch.linalg.eigvalsh(y @ y.T).flip(0)
    for rank in (2, 4):
        between = nn.functional.conv2d(x, found.first[:rank])
        got = nn.functional.conv2d(between, found.second[:, :rank]).movedim(1, 0).flatten(1)
        lost = float((y - got).square().sum())
        assert lost == pytest.approx(float(eigenvalues[rank:].sum()))


def test_more_outputs_than_inputs_stay_exact_whatever_the_images_showed() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 32, 3, padding="same").double()
    net, x = nn.Sequential(conv), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    y = nn.functional.conv2d(x * 0 + 1, conv.weight).movedim(1, 0).flatten(1)
    made = factorised(net, {"0": "channel"}, lambda _, w: factors(w, "channel", y @ y.T))
    assert made.get_submodule("0.0").weight.shape[0] == 9
    assert torch.allclose(made(x), net(x))


@pytest.mark.parametrize("kind", ["spatial", "channel"])
def test_factors_like_give_a_pruned_second_kernel_what_it_is_best_given(kind: Kind) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 5, 3, 3, dtype=torch.float64)
    found = factors(weight, kind)
    outputs, units = torch.tensor([0, 2, 3, 7]), torch.tensor([0, 1, 4])
    second = found.second[outputs][:, units] + 0.1 * torch.randn(4, 3, 1, 1).double()
    made = factors_like(weight, kind, second, outputs, units)
    net = nn.Sequential(nn.Conv2d(5, 8, 3, bias=False)).double()
    net[0].weight.data = weight
    x = torch.randn(6, 5, 9, 9, dtype=torch.float64)
    assert torch.allclose(factorised(net, {"0": kind}, lambda *_: made)(x), net(x))
    want = weight.permute(1, 2, 3, 0)[..., outputs].reshape(15 if kind == "spatial" else 45, -1)
    there = second.permute(1, 3, 2, 0).flatten(1)
    best = torch.linalg.lstsq(there.T, want.T).solution  # of each input entry: what is between
    assert torch.allclose(made.first[units].flatten(1), best, atol=1e-9)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 5, (5, 3), stride=(2, 3), padding=(0, 2)),
        nn.Conv2d(3, 5, 3, dilation=(1, 2), padding="same"),
        nn.Conv2d(3, 5, 4, stride=3, padding=1, bias=False),
    ],
)
@pytest.mark.parametrize("kind", ["spatial", "channel"])
def test_stride_padding_and_dilation_are_kept(conv: nn.Conv2d, kind: Kind) -> None:
    net, x = nn.Sequential(conv).double(), torch.randn(2, 3, 17, 19, dtype=torch.float64)
    assert torch.allclose(factorised(net, {"0": kind})(x), net(x))


@pytest.mark.parametrize(
    ("module", "kind", "reason"),
    [
        (nn.Linear(3, 3), "spatial", "no nn.Conv2d but Linear"),
        (nn.Conv2d(4, 4, 3, groups=2), "spatial", "2 groups"),
        (nn.Conv2d(3, 3, 1), "spatial", "1 x 1"),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), "channel", "'reflect'"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3)), "channel", "Parametrized"),
    ],
)
def test_layer_that_cannot_be_factorised_is_refused_with_the_reason(
    module: nn.Module, kind: Kind, reason: str
) -> None:
    with pytest.raises(pl.PruneLabError, match=reason):
        factorised(nn.Sequential(module), {"0": kind})


def test_layer_under_two_names_or_with_a_tied_weight_is_refused() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    with pytest.raises(pl.PruneLabError, match="several names"):
        factorised(nn.Sequential(conv, conv), {"0": "spatial"})
    other = nn.Conv2d(3, 3, 3)
    other.weight = conv.weight
    with pytest.raises(pl.PruneLabError, match="several names"):
        factorised(nn.Sequential(conv, other), {"1": "spatial"})
