"""Costs are facts: how many inputs a call holds is shown by the run, given, or asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import prunelab as pl
from prunelab.data.batches import agreed_size
from prunelab.graph.survey import inputs_of

IMAGE = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class Detector(Net):
    def forward(self, images: list[Tensor]) -> Any:  # type: ignore[override]
        return [{"boxes": Net.forward(self, image[None])[0].flatten(1)} for image in images]


class Video(Net):
    """Clips are pooled over time, which is the first axis unless `second`."""

    def __init__(self, second: bool = False) -> None:
        super().__init__()
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(int(self.second))


class Frames(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Noised(Net):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return super().forward(x * t)


class Named(Net):
    def forward(self, *, image: Tensor, prior: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"out": super().forward(image), "prior": prior}


class Pooled(Net):
    """All frames of one clip are the first axis; one answer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean((0, 2, 3))[None]


def images(*leading: int) -> Tensor:
    return torch.randn(*leading, 3, 16, 16)


CASES = [
    (Net(), (images(1),), 1),
    (Net(), (images(2),), 2),
    (Net(), (IMAGE,), 1),
    (Detector(), ([IMAGE],), 1),
    (Detector(), ([IMAGE, IMAGE[:, :8]],), 2),
    (Video(), (images(7, 1),), 1),
    (Video(), (images(7, 2),), 2),
    (Video(second=True), (images(2, 7),), 2),
    (Video(second=True), (images(1, 7),), 1),
    (Noised(), (torch.tensor(0.5), images(2)), 2),
    (Noised(), (torch.rand(2, 1, 1, 1), images(2)), 2),
    (Named(), {"image": images(2), "prior": torch.zeros(100, 4)}, 2),
]


@pytest.mark.parametrize(("net", "given", "count"), CASES)
def test_macs_are_those_of_one_input(net: nn.Module, given: Any, count: int) -> None:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(**given) if isinstance(given, dict) else net(*given)
    want = counter.get_total_flops() // 2 // count
    graph = pl.trace(net, given)
    assert graph.inputs == count
    found = pl.cost(net, given)
    assert found.macs == want
    assert pl.cost(graph, pl.WidthPlan.full(graph)) == found
    assert pl.cost(graph, pl.WidthPlan.full(graph), given) == found


@pytest.mark.parametrize(
    ("net", "x"), [(Pooled(), images(5)), (Frames(), images(7, 2)), (Video(), images(2, 3))]
)
def test_what_cannot_be_known_is_asked_for(net: nn.Module, x: Tensor) -> None:
    if isinstance(net, Video):  # three answers, from either axis: time that is kept, or inputs
        assert pl.cost(net, x).macs == 2 * 63488
        return
    with pytest.raises(pl.InvalidValue, match=r"batch_size=") as caught:
        pl.cost(net, x)
    assert str(list(x.shape)) in str(caught.value)
    graph = pl.trace(net, x)
    assert graph.inputs is None
    with pytest.raises(pl.InvalidValue, match=r"batch_size="):
        pl.cost(graph, pl.WidthPlan.full(graph))
    whole = pl.cost(net, x, batch_size=1)
    assert pl.cost(graph, pl.WidthPlan.full(graph), x, batch_size=1) == whole
    said = pl.trace(net, x, batch_size=1)
    assert pl.cost(said, pl.WidthPlan.full(said)) == whole
    for wrong in (0, 1.5, True):
        with pytest.raises(pl.InvalidValue, match="batch_size counts inputs"):
            pl.cost(net, x, batch_size=wrong)  # type: ignore[call-overload]


def test_a_session_counts_the_samples_of_its_batches() -> None:
    scalar_first = [
        {"epoch": torch.tensor(1), "image": images(16), "mask": torch.zeros(16, 16, 16).long()}
    ] * 2
    work = pl.Session(
        Net(), pl.Data(scalar_first, scalar_first), "magnitude", forward=lambda m, b: m(b["image"]),
        loss=lambda m, b: F.cross_entropy(m(b["image"]), b["mask"]),
    )  # fmt: skip
    assert work.state.base.cost.macs == 63488
    kept = [(images(4, 3), torch.zeros(4, 3))] * 2  # the run does not show it, the labels do
    work = pl.Session(
        Frames(), pl.Data(kept, kept), "magnitude", forward=lambda m, b: m(b[0]),
        loss=lambda m, b: (m(b[0]).mean((2, 3, 4)) - b[1]).square().mean(),
    )  # fmt: skip
    assert work.state.base.cost.macs == 3 * 63488


def test_samples_are_agreed_where_columns_hold_as_many() -> None:
    x = torch.zeros(4, 3)
    assert agreed_size((x, torch.zeros(4))) == 4
    assert agreed_size({"epoch": torch.tensor(1), "a": x, "b": [1, 2, 3, 4]}) == 4
    assert agreed_size([{"a": x}, {"a": x}]) == 2
    assert agreed_size((x, torch.zeros(5))) is None
    assert agreed_size(x) is None
    assert agreed_size(object()) is None


def test_the_size_that_costs_are_counted_at_is_that_of_one_input() -> None:
    for net, given, at in (
        (Net(), images(2), "3x16x16"),
        (Net(), IMAGE, "3x16x16"),
        (Detector(), ([IMAGE],), "3x16x16"),
        (Video(), images(7, 1), "7x1x3x16x16"),
        (Noised(), (torch.tensor(0.5), images(2)), "3x16x16"),
    ):
        graph = pl.trace(net, given)
        assert pl.cost(net, given).at == at
        assert pl.cost(graph, pl.WidthPlan.full(graph)).at == at


def test_without_a_layer_nothing_is_known() -> None:
    assert inputs_of(torch.zeros(2, 3), torch.zeros(2, 3), None) is None


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 4, 4)
        self.heads, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x)).flatten(2).transpose(1, 2)
        return self.fc(x + self.heads(x, x, x, need_weights=False)[0]).mean(1)


class Recalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv2d(3, 8, 4, 4), nn.LSTM(8, 6, batch_first=True)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(self.conv(x).flatten(2).transpose(1, 2))[0][:, -1])


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 4, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x)).flatten(2)
        return self.fc((x @ x.transpose(1, 2) @ x).mean(2))


def test_a_sum_says_what_it_leaves_out() -> None:
    x, rows = images(2), 16
    for net, left, macs in (
        (Attends(), "attention", 2 * rows * rows * 8),
        (Products(), "attention", 2 * rows * 8 * 8),
    ):
        graph = pl.trace(net, x)
        for found in (pl.cost(net, x), pl.cost(graph, pl.WidthPlan.full(graph))):
            assert left in found.left_out
            assert f"({macs:,} MACs)" in found.left_out
            assert found.left_out in str(found)
        some = [(x, torch.zeros(2).long())]
        work = pl.Session(net, pl.Data(some, some), "magnitude")
        assert f"without attention and other products of activations ({macs:,}" in work.state.line()


def test_recurrent_layers_are_counted_or_named() -> None:
    x, net = images(2), Recalls()
    found = pl.cost(net, x)
    inside = 16 * (24 * 8 + 24 * 6)
    outside = 16 * 8 * 48 + 6 * 4
    assert found.macs == outside + inside or f"recurrent layers ({inside:,} MACs)" in found.left_out


@pytest.mark.parametrize(
    "name",
    [
        "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s",
        "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "resnet18",
        "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "vgg11",
    ],
)  # fmt: skip
def test_torchvision_classifiers_count_as_pytorch_counts_them(name: str) -> None:
    with torch.device("meta"):
        net = torchvision.models.get_model(name, weights=None).eval()
    net = net.to_empty(device="cpu").requires_grad_(False)
    for tensor in [*net.parameters(), *net.buffers()]:
        tensor.zero_()
    x = torch.zeros(2, 3, 64, 64)
    with FlopCounterMode(display=False) as counter:
        net(x)
    assert pl.cost(net, x).macs == counter.get_total_flops() // 4
