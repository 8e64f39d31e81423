"""Contribution evidence: exact damage against brute force, and merging by addition."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Tiny, batches

import prunelab as pl
from prunelab.evidence.patch_moments import cross_moment, patch_moments, patches
from prunelab.graph.labels.layer_calls import Conv
from prunelab.methods.aofp_search import expected_damages

EXACT = 1e-10


def brute_damage(model: nn.Module, consumer: str, columns: list[int], xs: list[Tensor]) -> float:
    """||y - y without these input columns||^2 / ||y||^2 by running the layer twice."""
    layer = model.get_submodule(consumer)
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for x in xs:
            model(x)
    handle.remove()
    lost = whole = 0.0
    weight = layer.weight.detach()
    for x in seen:
        without = x.clone()
        without[:, columns] = 0
        if isinstance(layer, nn.Linear):
            y, v = F.linear(x, weight), F.linear(without, weight)
        else:
            y, v = (F.conv2d(a, weight, None, layer.stride, layer.padding) for a in (x, without))
        lost += float((y - v).square().sum())
        whole += float(y.square().sum())
    return lost / whole


@pytest.mark.parametrize("name", ["vgg8", "resnet20", "mobilenet"])
def test_damage_is_what_masking_the_consumer_does(name: str) -> None:
    model = pl.zoo.load(name, pretrained=False).double()
    xs = [torch.randn(3, 1, 28, 28, dtype=torch.float64) for _ in range(2)]
    graph = pl.trace(model, xs[0])
    evidence = pl.measure(model, graph, xs)
    for group in graph.groups:
        if not group.prunable:
            continue
        units = [0, 2, 3]
        for consumer, gram in evidence[group.name].consumers.items():
            want = brute_damage(model, consumer, units, xs)
            assert gram.damage(units) == pytest.approx(want, rel=EXACT)


class Flat(nn.Module):
    """A linear layer behind a flatten, and a concat of two groups before a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 3, 1, stride=1)
        self.c = nn.Conv2d(7, 5, 3, stride=2, padding=1, dilation=1)
        self.fc = nn.Linear(5 * 9, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x).relu(), self.b(x).relu()], 1)
        return self.fc(self.c(x).relu().flatten(1))


def test_damage_behind_a_concat_and_a_flatten() -> None:
    model = Flat().double()
    xs = [torch.randn(4, 2, 6, 6, dtype=torch.float64)]
    graph = pl.trace(model, xs[0])
    evidence = pl.measure(model, graph, xs)
    assert evidence["b"].damage([0, 2]) == pytest.approx(
        brute_damage(model, "c", [4, 6], xs), rel=EXACT
    )
    columns = [*range(9, 18), *range(36, 45)]
    assert evidence["c"].damage([1, 4]) == pytest.approx(
        brute_damage(model, "fc", columns, xs), rel=EXACT
    )
    one = evidence["b"].consumers["c"]
    whole = evidence["a"].consumers["c"]
    assert one.energy == pytest.approx(whole.energy)
    assert one.cross.sum() + whole.cross.sum() == pytest.approx(one.energy)


def test_behind_batch_norm_outputs_weigh_by_gamma_over_sigma(trained: nn.Module) -> None:
    model = trained.__class__()
    model.load_state_dict(trained.state_dict())
    model = model.double().eval()
    x = batches(32, 5)[0][0].double()
    graph = pl.trace(model, x)
    scaled = pl.measure(model, graph, [x], at="bn")["conv1"].damage([0, 1])
    with torch.no_grad():
        bn = model.bn2
        model.conv2.weight *= (bn.weight / torch.sqrt(bn.running_var + bn.eps)).view(-1, 1, 1, 1)
    assert scaled == pytest.approx(pl.measure(model, graph, [x])["conv1"].damage([0, 1]))


def test_evidence_adds_up_and_leaves_no_trace(trained: nn.Module) -> None:
    xs = [x for x, _ in batches(96, 4)]
    graph = pl.trace(trained, xs[0])
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    whole = pl.measure(trained, graph, xs)
    parts = pl.measure(trained, graph, xs[:1]) + pl.measure(trained, graph, xs[1:])
    assert parts.images == whole.images == 96
    np.testing.assert_allclose(parts["conv1"].gram, whole["conv1"].gram, rtol=1e-6)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, before[name])
    other = pl.measure(Tiny(), graph, xs)
    with pytest.raises(pl.StaleEvidence):
        whole + other


def test_patch_moments_are_the_products_of_patches() -> None:
    x = torch.randn(3, 4, 7, 5, dtype=torch.float64)
    for kernel, stride, padding in [((3, 3), 1, 1), ((3, 3), 2, 1), ((1, 1), 2, 0), ((5, 3), 1, 2)]:
        conv = Conv((stride, stride), (padding, padding), (1, 1), False, 1)
        rows = patches(x, kernel, conv)
        ones = torch.ones(len(rows), 1, dtype=torch.float64)
        full = torch.cat([rows, ones], 1)
        found = patch_moments(x, kernel, conv)
        torch.testing.assert_close(found.moment, full.T @ full, rtol=EXACT, atol=EXACT)
        weight = torch.randn(6, 4, *kernel, dtype=torch.float64)
        y = F.conv2d(x, weight, None, stride, padding)
        torch.testing.assert_close(
            rows @ weight.reshape(6, -1).T, y.movedim(1, -1).reshape(-1, 6), rtol=EXACT, atol=EXACT
        )
        torch.testing.assert_close(
            cross_moment(x, y, kernel, conv),
            full.T @ y.movedim(1, -1).reshape(-1, 6),
            rtol=EXACT,
            atol=EXACT,
        )


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7])
def test_the_closed_form_is_the_mean_over_all_masks(n: int) -> None:
    z = np.random.default_rng(n).normal(size=(n, 20))
    gram = z @ z.T
    want = np.zeros(n)
    count = np.zeros(n)
    for mask in combinations(range(n), n // 2):
        index = list(mask)
        want[index] += gram[np.ix_(index, index)].sum()
        count[index] += 1
    np.testing.assert_allclose(expected_damages(gram), want / count, rtol=1e-12)


def test_a_transposed_convolution_consumes_too() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, 2))
    model = model.double()
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    graph = pl.trace(model, x)
    damage = pl.measure(model, graph, [x])["0"].damage([1, 2])
    with torch.no_grad():
        hidden = model[1](model[0](x))
        y = F.conv_transpose2d(hidden, model[2].weight, None, 2)
        hidden[:, [1, 2]] = 0
        v = F.conv_transpose2d(hidden, model[2].weight, None, 2)
    assert damage == pytest.approx(float((y - v).square().sum() / y.square().sum()), rel=EXACT)


def test_bad_batches_are_told_what_to_do(trained: nn.Module) -> None:
    x = torch.randn(2, 1, 12, 12)
    graph = pl.trace(trained, x)
    with pytest.raises(pl.BadData, match="no batches"):
        pl.measure(trained, graph, [])
    with pytest.raises(pl.BadData, match="cannot run on this batch"):
        pl.measure(trained, graph, [torch.randn(2, 3, 12, 12)])
    with pytest.raises(pl.NotFinite, match="conv1"):
        pl.measure(trained, graph, [torch.full_like(x, torch.nan)])

    def raises() -> object:
        yield x
        raise OSError("disk gone")

    with pytest.raises(pl.BadData, match="OSError at batch 1: disk gone"):
        pl.measure(trained, graph, raises())
    with pytest.raises(pl.InvalidValue, match="kinds"):
        pl.measure(trained, graph, [x], kinds=("guess",))
    with pytest.raises(pl.IllegalPlan, match="was measured without"):
        pl.measure(trained, graph, [x])["conv1"].damage([99])
