"""Fast contributions against plain implementations, and constant memory over long streams."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Couplings, Tiny, batches, measured

import prunelab as pl
from prunelab.evidence.few_positions import patches_at
from prunelab.evidence.gram_collector import columns_of
from prunelab.evidence.patch_correlation import correlations_of, symmetric_product
from prunelab.evidence.patch_moments import patch_moments, patches
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.labels.layer_calls import Call, Conv, Watch

EXACT = {"rtol": 1e-10, "atol": 1e-10}
patient = settings(deadline=None, max_examples=80)  # the machine may be busy


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], Conv]:
    """A size, a kernel, and a way to go over it, in one to three dimensions."""
    dims = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    size, kernel, stride = each(1, 7), each(1, 3), each(1, 3)
    padding, dilation = each(0, 3), each(1, 2)
    for h, k, p, d in zip(size, kernel, padding, dilation, strict=True):
        assume(h + 2 * p > d * (k - 1))
    return size, kernel, Conv(stride, padding, dilation, False, 1)


@patient
@given(geometries(), st.integers(1, 3), st.integers(1, 3))
def test_lags_give_the_second_moment_and_the_sum_of_the_patches(
    geometry: tuple[tuple[int, ...], tuple[int, ...], Conv], images: int, channels: int
) -> None:
    size, kernel, conv = geometry
    x = torch.randn(images, channels, *size, dtype=torch.float64)
    rows = patches(x, kernel, conv)
    plan = correlations_of(size, kernel, conv)
    assert plan.outputs * images == len(rows)
    entries = prod(kernel)
    want = (rows.T @ rows).view(channels, entries, channels, entries)
    blocks = plan.second_moment(x)
    for a in range(entries):
        for b in range(a, entries):  # entries that never meet have no block
            found = blocks.get((a, b), torch.zeros(channels, channels, dtype=torch.float64))
            torch.testing.assert_close(found, want[:, a, :, b], **EXACT)
    torch.testing.assert_close(plan.entry_sums(x).flatten(), rows.sum(0), **EXACT)
    moment = patch_moments(x, kernel, conv).moment
    torch.testing.assert_close(moment[:-1, :-1], rows.T @ rows, **EXACT)


@patient
@given(geometries(), st.integers(0, 2**31))
def test_patches_at_a_few_places_are_those_patches(
    geometry: tuple[tuple[int, ...], tuple[int, ...], Conv], seed: int
) -> None:
    size, kernel, conv = geometry
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    rows = patches(x, kernel, conv).view(2, -1, 3, prod(kernel))
    place = torch.randint(rows.shape[1], (2, 4), generator=torch.Generator().manual_seed(seed))
    found = patches_at(x, kernel, conv, place)
    for image in range(2):
        torch.testing.assert_close(found[image].transpose(0, 1), rows[image, place[image]])


def test_a_symmetric_product_is_made_in_blocks() -> None:
    a = torch.randn(300, 5, dtype=torch.float64)
    torch.testing.assert_close(symmetric_product(a), a @ a.T, **EXACT)


def test_of_a_3x3_kernel_13_correlations_and_their_borders_remain() -> None:
    plan = correlations_of((14, 14), (3, 3), Conv((1, 1), (1, 1), (1, 1), False, 1))
    cost = [prod(span.stop - span.start for span in term) for term in plan.terms]
    assert sum(size > 100 for size in cost) == 13
    assert len(cost) == 29
    assert all(size <= 14 for size in cost if size <= 100)


# ---------------------------------------------------------------- whole networks


class Readable(Watch):
    """The definition: z of every unit, by running every layer on that unit's inputs alone."""

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        super().__init__(model)
        self.layers = {layer.weight: layer for layer in graph.layers if layer.dense}
        self.grams: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}

    def on_call(self, call: Call, out: Tensor) -> None:
        if call.name not in self.layers or not out.numel():
            return
        columns, count = columns_of(self.layers[call.name])
        z = []
        for unit in range(count):
            alone = call.x.clone()
            alone[:, columns != unit] = 0
            z.append(self.applied(call, alone))
        rows = torch.stack(z).movedim(2, -1).flatten(1, -2)  # [units, rows, out]
        flat = rows.flatten(1)
        self.grams[call.name] = self.grams.get(call.name, 0) + flat @ flat.T
        self.sums[call.name] = self.sums.get(call.name, 0) + rows.sum(1)

    @staticmethod
    def applied(call: Call, x: Tensor) -> Tensor:
        if call.conv is None:
            return x @ call.weight.T
        conv = call.conv
        return torch.convolution(
            x, call.weight, None, conv.stride, conv.padding, conv.dilation, conv.transposed,
            [0] * len(conv.stride), conv.groups,
        )  # fmt: skip


def net(*parts: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*parts)


class Pyramid(nn.Module):
    """A head shared by two sizes, and called with a part of its weight as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        small = F.avg_pool2d(x, 2)
        y = self.head(x).relu() + F.interpolate(self.head(small).relu(), scale_factor=2)
        return (
            self.last(y).mean((2, 3)) + F.conv2d(x, 2 * self.head.weight).mean((1, 2, 3))[:, None]
        )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "every coupling": (Couplings, (3, 2, 8, 8)),
    "stride 2 and residual": (Tiny, (3, 1, 12, 12)),
    "shared at two sizes": (Pyramid, (3, 2, 8, 8)),
    "no padding, dilation": (
        net(nn.Conv2d(2, 5, 1), nn.Conv2d(5, 4, 3, dilation=2), nn.Conv2d(4, 3, (1, 3), 2)),
        (2, 2, 9, 8),
    ),
    "reflected and circular padding": (
        net(
            nn.Conv2d(2, 5, 1),
            nn.Conv2d(5, 4, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(4, 3, 3, padding=2, stride=2, padding_mode="circular"),
        ),
        (2, 2, 7, 6),
    ),
    "padding to the same size": (
        net(nn.Conv2d(2, 5, 3, padding="same"), nn.Conv2d(5, 3, (3, 5), padding="same")),
        (2, 2, 6, 5),
    ),
    "one dimension": (
        net(nn.Conv1d(2, 6, 3), nn.Conv1d(6, 4, 5, 2, padding=2), nn.Conv1d(4, 3, 3)),
        (3, 2, 17),
    ),
    "three dimensions": (
        net(nn.Conv3d(1, 4, 3), nn.Conv3d(4, 3, 3, (1, 2, 2), padding=1), nn.Conv3d(3, 2, 1)),
        (2, 1, 5, 6, 7),
    ),
    "transposed": (
        net(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 3, 3, 2, padding=1), nn.Conv2d(3, 2, 1)),
        (2, 2, 5, 6),
    ),
    "behind a flatten": (
        net(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 5), nn.Linear(5, 3)),
        (6, 1, 5, 5),
    ),
    "grouped and depthwise": (
        net(
            nn.Conv2d(2, 6, 1),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.Conv2d(6, 6, 3, groups=3),
            nn.Conv2d(6, 3, 3, stride=2, padding=1),
        ),
        (2, 2, 7, 7),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_measured_contributions_are_the_definition(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make().double().eval()
    xs = [torch.randn(shape, dtype=torch.float64) for _ in range(2)]
    graph = pl.trace(model, xs[0])
    evidence = pl.measure(model, graph, xs, ("contribution", "patches"))
    readable = Readable(model, graph)
    with torch.no_grad(), readable:
        for x in xs:
            model(x)
    assert evidence.grams
    for layer, gram in evidence.grams.items():
        want = readable.grams[graph.layer(layer).weight].numpy()
        np.testing.assert_allclose(gram, want, rtol=1e-10, atol=1e-10 * np.abs(want).max())
        want = readable.sums[graph.layer(layer).weight].numpy()
        np.testing.assert_allclose(evidence.sums[layer].sums, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["every coupling", "transposed", "stride 2 and residual"])
def test_every_position_is_an_exact_sample(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make().double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    graph = pl.trace(model, x)
    exact, some = pl.measure(model, graph, [x]), pl.measure(model, graph, [x], positions=10_000)
    for layer, gram in exact.grams.items():
        np.testing.assert_array_equal(some.grams[layer], gram)


def test_a_sample_estimates_the_sums_over_everything(trained: nn.Module) -> None:
    xs = [x for x, _ in batches(256, 3)]
    graph = pl.trace(trained, xs[0])
    exact = pl.measure(trained, graph, xs)
    for drawn in ({"positions": 60}, {"scalars": 600}):
        some = measured(trained, graph, xs, **drawn)
        for layer, gram in exact.grams.items():  # so that consumers can be summed
            assert np.trace(some.grams[layer]) == pytest.approx(np.trace(gram), rel=0.1)
        assert some["conv1"].damage(range(6)) == pytest.approx(
            exact["conv1"].damage(range(6)), rel=0.1
        )
        assert some["conv1"].energy == pytest.approx(exact["conv1"].energy, rel=0.1)


def test_single_precision_loses_a_ten_millionth(trained: nn.Module) -> None:
    xs = [x for x, _ in batches(256, 3)]
    single = pl.measure(trained, pl.trace(trained, xs[0]), xs)
    model = Tiny()
    model.load_state_dict(trained.state_dict())
    model = model.double().eval()
    double = pl.measure(model, pl.trace(model, xs[0].double()), [x.double() for x in xs])
    for layer, gram in double.grams.items():
        assert np.abs(single.grams[layer] - gram).max() < 2e-6 * np.abs(gram).max()


# ---------------------------------------------------------------- one pass, bounded memory


def held() -> int:
    """The bytes of all tensors that are alive."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


KINDS: list[dict[str, Any]] = [
    {"kinds": ("contribution",)},
    {"kinds": ("contribution", "patches")},
    {"positions": 3},
    {"scalars": 3},
    {"kinds": ("gradient",)},
    {"kinds": ("ablation",)},
]


@pytest.mark.parametrize("asked", KINDS, ids=str)
def test_a_stream_is_read_once_and_keeps_nothing(trained: nn.Module, asked: dict[str, Any]) -> None:
    graph = pl.trace(trained, batches(32, 0)[0][0])
    seen: list[weakref.ref[Tensor]] = []
    sizes: list[int] = []

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(12):
            if index in (3, 11):
                sizes.append(held())
            if index > 1:
                assert seen[index - 2]() is None
            x, y = batches(8, index)[0]
            seen.append(weakref.ref(x))
            yield x, y

    measured(trained, graph, stream(), **asked)
    assert len(seen) == 12
    assert sizes[1] <= sizes[0] + 1024
