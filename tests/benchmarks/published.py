"""The networks of the four papers: published widths and costs.

ThiNet's figures come from its repositories (Roll920/ThiNet and Roll920/ThiNet_Code), those of its
ResNet-50 at 50 and 30% from tables of later papers. Channel Pruning's widths are those of
ethanhe42/channel-pruning (temp/channel_pruning.prototxt and temp/resnet-50-cp.prototxt), and what
it counts is said in lib/cfgs.py there. Group Fisher's figures are Table 1 of the paper; widths are
published of its re-implementation only (open-mmlab/mmrazor, configs/pruning/mmcls/group_fisher).
AOFP's figure for ResNet-50 is told in Table 4 of the Group Fisher paper; its widths are not
published, and neither are Channel Pruning's at 2x and 4x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import prunelab as pl
from prunelab.cost import layer_costs
from prunelab.graph.surgery.factorisation import Kind, factorised, plain_factors
from prunelab.methods import three_c

X = torch.zeros(1, 3, 224, 224)
Widths = Mapping[str, int]

# ---------------------------------------------------------------- widths

VGG16 = tuple(f"features.{place}" for place in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
THINET_CONV = (32, 32, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512)
THINET_TINY = (16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 256)
CHANNEL_PRUNING_5X = (24, 22, 41, 51, 108, 89, 111, 184, 276, 228, 512, 512, 512)

BLOCKS = tuple(f"layer{i}.{j}" for i, n in enumerate((3, 4, 6, 3), start=1) for j in range(n))
INSIDE = ("conv1", "conv2")
# By block: the channels that its branch reads, and the widths of its first two layers.
CHANNEL_PRUNING_2X = (
    (35, 64, 55), (101, 51, 39), (97, 50, 37), (144, 128, 106), (205, 105, 72), (198, 105, 72),
    (288, 128, 110), (278, 256, 225), (418, 209, 147), (407, 204, 158), (423, 212, 155),
    (412, 211, 148), (595, 256, 213), (606, 512, 433), (1222, 512, 437), (1147, 512, 440),
)  # fmt: skip
# The stem and the first three streams; by block, the widths of its first two layers.
STREAMS = ("conv1", "layer1.0.conv3", "layer2.0.conv3", "layer3.0.conv3")
FISHER_MEMORY = (61, 241, 512, 1024), (
    (27, 35), (32, 29), (27, 42), (87, 107), (44, 50), (52, 81), (47, 50), (210, 206),
    (107, 108), (86, 126), (91, 112), (98, 110), (112, 115), (397, 427), (373, 348), (433, 384),
)  # fmt: skip
FISHER_MACS = (61, 242, 509, 1024), (
    (28, 35), (31, 28), (26, 41), (90, 107), (42, 50), (51, 84), (49, 51), (210, 207),
    (103, 108), (90, 124), (94, 114), (99, 111), (108, 111), (400, 421), (377, 347), (443, 376),
)  # fmt: skip


def by_layer(layers: tuple[str, ...], widths: tuple[int, ...]) -> dict[str, int]:
    """Widths by the name of the layer."""
    return dict(zip(layers, widths, strict=True))


def by_block(layers: tuple[str, ...], widths: tuple[tuple[int, ...], ...]) -> dict[str, int]:
    """Widths of the same `layers` in every block of ResNet-50, by name."""
    return {
        f"{block}.{layer}": width
        for block, row in zip(BLOCKS, widths, strict=True)
        for layer, width in zip(layers, row, strict=True)
    }


def fisher(widths: tuple[tuple[int, ...], tuple[tuple[int, int], ...]]) -> dict[str, int]:
    """Widths of Group Fisher's ResNet-50, by name."""
    return by_layer(STREAMS, widths[0]) | by_block(INSIDE, widths[1])


def inside(percent: int) -> dict[str, int]:
    """ThiNet's rule for ResNet-50: the layers inside a block keep so much, rounded down."""
    full = [64 * 2 ** (int(block[5]) - 1) for block in BLOCKS]
    return by_block(INSIDE, tuple((width * percent // 100,) * 2 for width in full))


# ---------------------------------------------------------------- networks


class Pooled(nn.Module):
    """VGG-16's convolutions under a global average pool and one linear layer: ThiNet-GAP's head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.vgg16(init_weights=False).features[:-1]
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        self.fc = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def vgg16() -> nn.Module:
    return torchvision.models.vgg16(init_weights=False)


def vgg16_factorised() -> nn.Module:
    """VGG-16 with the layers that 3C factorises, at full rank.

    Where a 1 x 1 at the released rank saves nothing its code joins it to the layer before
    (`combineHP`): conv5_1 to conv5_3 become two layers, the others three.
    """
    kinds: dict[str, Kind] = dict.fromkeys(three_c.VGG16, "spatial")
    kinds |= {f"{name}.1": "channel" for name in list(kinds) if name not in VGG16[10:]}
    return factorised(vgg16(), kinds, lambda name, weight: plain_factors(weight, kinds[name]))


def three_c_widths() -> dict[str, int]:
    """The released ranks, and the channels that its third stage leaves."""
    ranks = dict(three_c.VGG16)
    found = {f"{name}.0": rank for name, rank in ranks.items()}
    found |= {f"{name}.1.0": rank for name, rank in ranks.items() if name not in VGG16[10:]}
    widths = dict(zip(VGG16, (64, 64, 128, 128, *[256] * 3, *[512] * 6), strict=True))
    return found | {
        name: int(widths[name.removesuffix(".1.1")] * share)
        for name, share in three_c.VGG16_CHANNELS.items()
    }


def resnet50_v1() -> nn.Module:
    """ResNet-50 as first published: a stage's first layer has the stride, not its second."""
    model = torchvision.models.resnet50()
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return model


def resnet50_sampled() -> nn.Module:
    """ResNet-50 as first published; its branches pick the channels that they read."""
    model = resnet50_v1().eval()
    return pl.with_channel_selectors(model, pl.trace(model, X))


# ---------------------------------------------------------------- counting


@dataclass(frozen=True)
class Count:
    """What a network has, at 224 pixels: multiply-adds, outputs, parameters by what they are."""

    macs: int
    convolutions: int  # multiply-adds of convolutions alone
    outputs: int  # of convolutions, at all positions
    params: int
    biases: int  # of convolutions and linear layers


def counted(model: nn.Module, graph: pl.ChannelGraph, plan: pl.WidthPlan) -> Count:
    """The count of the network at the widths of `plan`, cut to them and not: they must agree."""
    small, cost = pl.cut(model, graph, plan), pl.cost(graph, plan)
    assert pl.cost(small, X) == cost, f"cut: {pl.cost(small, X)!r}, by the plan: {cost!r}"
    kernels = {layer.name for layer in graph.layers if layer.kernel}
    convolutions = [each for name, each in layer_costs(graph, plan).items() if name in kernels]
    layers = [m for m in small.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return Count(
        cost.macs,
        sum(each.macs for each in convolutions),
        sum(each.activation_bytes for each in convolutions) // graph.activation_itemsize,
        cost.params,
        sum(layer.bias.numel() for layer in layers if layer.bias is not None),
    )


@dataclass(frozen=True)
class Figure:
    """A published number as it is printed, and how ours is counted to be set beside it.

    Ours must be the same to the `digits` behind the point, unless `differs` says why it is not.
    `truncated`: the paper drops further digits instead of rounding.
    """

    what: str
    published: str
    ours: Callable[[Count], float]
    digits: int
    truncated: bool = False
    differs: str = ""

    def told(self, count: Count) -> str:
        """Ours, to the digits of the published one."""
        value = self.ours(count)
        if self.truncated:
            value = int(value * 10**self.digits) / 10**self.digits
        return f"{value:.{self.digits}f}"

    def same(self, count: Count) -> bool:
        return float(self.told(count)) == float(self.published)


def figure(what: str, published: str, ours: Callable[[Count], float], **more: Any) -> Figure:
    """A figure that is compared to the digits that it is printed with."""
    return Figure(what, published, ours, len(published.partition(".")[2]), **more)


def flops(published: str, **more: Any) -> Figure:
    return figure("FLOPs (2 a MAC), 10^9", published, lambda c: 2 * c.macs / 1e9, **more)


def macs(published: str, **more: Any) -> Figure:
    return figure("MACs, 10^9", published, lambda c: c.macs / 1e9, **more)


def params(published: str, **more: Any) -> Figure:
    return figure("parameters, 10^6", published, lambda c: c.params / 1e6, **more)


def unbiased(published: str) -> Figure:
    """As ThiNet counts parameters."""
    what = "parameters but layers' biases, 10^6"
    return figure(what, published, lambda c: (c.params - c.biases) / 1e6)


def with_norms(published: str) -> Figure:
    """As mmrazor counts: a BatchNorm takes two operations for each of its outputs.

    Activations are left out, with which the whole network would have 4.12 and not 4.11.
    """
    what = "MACs, and 2 an output of BatchNorm, 10^9"
    return figure(what, published, lambda c: (c.macs + 2 * c.outputs) / 1e9)


VGG16_MACS = 15_346_630_656  # of its convolutions: what Channel Pruning's code divides by
RESNET50_MACS = 4_089_184_256


def faster(times: int, **more: Any) -> Figure:
    """As Channel Pruning counts a speed-up of VGG-16: convolutions; "5x" is read as 5.0."""
    what = "times fewer MACs of convolutions"
    return Figure(what, str(times), lambda c: VGG16_MACS / c.convolutions, 1, **more)


# ---------------------------------------------------------------- papers


@dataclass(frozen=True)
class Search:
    """How widths are found: a session on `network` by `method(network)`, towards `target` MACs.

    Images are `side` pixels wide; the multiply-adds are those at 224. `network` may have another
    head than the network that is costed, where the method leaves the head alone.
    """

    network: Callable[[], nn.Module]
    method: Callable[[nn.Module], Any]
    side: int = 224
    target: int | None = None


@dataclass(frozen=True)
class Paper:
    """A network of a paper: `widths` are published or prescribed, all others as they were."""

    name: str
    network: Callable[[], nn.Module]
    figures: tuple[Figure, ...]
    widths: Widths = field(default_factory=dict)
    search: Search | None = None


def giving(widths: Widths) -> Callable[[nn.Module], dict[str, float]]:
    """What every layer of a network gives when it is pruned to these widths."""

    def ratios(model: nn.Module) -> dict[str, float]:
        graph = pl.trace(model.eval(), X)
        return {name: 1 - width / graph[name].width for name, width in widths.items()}

    return ratios


def thinet(widths: Widths, network: Callable[[], nn.Module], side: int = 224) -> Search:
    ratios = giving(widths)
    return Search(network, lambda model: pl.ThiNet(ratios(model), images=2), side)


def channel_pruning(widths: Widths, network: Callable[[], nn.Module], side: int = 224) -> Search:
    ratios = giving(widths)
    return Search(network, lambda model: pl.ChannelPruning(ratios(model), images=2), side)


def scheduled(times: int) -> Paper:
    """Channel Pruning's VGG-16 by the paper's schedule: shallow layers give most."""
    target = VGG16_MACS // times + 512 * 1000  # the head's
    return Paper(
        f"Channel Pruning VGG-16 {times}x, by its schedule",
        vgg16,
        (faster(times),),
        search=Search(
            Pooled, lambda _: pl.ChannelPruning(schedule="shallow", images=2), target=target
        ),
    )


HALVES = Search(Pooled, lambda _: pl.ThiNet(schedule="conv", images=2))
SECOND_HAND = "published by a later paper only, whose way of counting is not known"
CHOSEN = "which units go is up to the weights, and ours are random"
CONV, TINY = by_layer(VGG16, THINET_CONV), by_layer(VGG16, THINET_TINY)
VGG_5X = by_layer(VGG16, CHANNEL_PRUNING_5X)
RESNET_2X = by_block(("conv1.sampler", *INSIDE), CHANNEL_PRUNING_2X)

PAPERS = (
    Paper(
        "VGG-16",
        vgg16,
        (
            flops("30.94"),
            unbiased("138.34"),
            figure("MACs of convolutions", str(VGG16_MACS), lambda c: c.convolutions),
        ),
    ),
    Paper("ThiNet-Conv", vgg16, (flops("9.58"), unbiased("131.44")), CONV, HALVES),
    Paper("ThiNet-GAP", Pooled, (flops("9.34"), unbiased("8.32")), CONV, HALVES),
    Paper("ThiNet-Tiny", Pooled, (flops("2.01"), unbiased("1.32")), TINY, thinet(TINY, Pooled)),
    Paper("ResNet-50, first version", resnet50_v1, (flops("7.72"), unbiased("25.56"))),
    *(
        Paper(
            f"ThiNet-{percent} (ResNet-50)",
            resnet50_v1,
            (flops(published, differs=why), unbiased(weights)),
            inside(percent),
            Search(resnet50_v1, lambda _: pl.ThiNet(0.5, images=2), 64) if percent == 50 else None,
        )
        for percent, published, why, weights in (
            (70, "4.88", "", "16.94"),
            (50, "3.42", SECOND_HAND, "12.38"),
            (30, "2.20", SECOND_HAND, "8.66"),
        )
    ),
    *(scheduled(times) for times in (2, 4, 5)),
    Paper(
        "Channel Pruning VGG-16 5x, as released",
        vgg16,
        (
            faster(
                5,
                differs="the released widths are not 5x, whether linear layers are counted or not",
            ),
        ),
        VGG_5X,
        channel_pruning(VGG_5X, Pooled),
    ),
    Paper(
        "3C VGG-16 4x, ranks and channels as in the released code",
        vgg16_factorised,
        (
            faster(
                4,
                differs="4x is the name; where its ranks come from was never explained",
            ),
        ),
        three_c_widths(),
    ),
    Paper(
        "Channel Pruning ResNet-50 2x, as released",
        resnet50_sampled,
        (
            figure("MACs, by hand from the prototxt", "2599320244", lambda c: c.macs),
            Figure(
                "times fewer MACs",
                "2",
                lambda c: 3_857_973_248 / c.macs,
                1,
                differs="the released widths are not 2x",
            ),
        ),
        RESNET_2X,
        channel_pruning(RESNET_2X, resnet50_sampled, side=64),
    ),
    Paper(
        "ResNet-50",
        torchvision.models.resnet50,
        (
            macs("4.089"),
            params("25.55", truncated=True),
            figure("outputs, 10^6", "11.11", lambda c: c.outputs / 1e6),
        ),
    ),
    Paper(
        "exact AOFP ResNet-50, at its MACs",
        torchvision.models.resnet50,
        (macs("1.77"),),
        search=Search(
            torchvision.models.resnet50,
            lambda _: pl.AOFP(theta=0.01, images=2),
            side=64,
            target=1_770_000_000,
        ),
    ),
    Paper(
        "Group Fisher ResNet-50, at its MACs",
        torchvision.models.resnet50,
        (
            macs("2.044", truncated=True),
            params("19.42", truncated=True, differs=CHOSEN),
            figure("outputs, 10^6", "5.82", lambda c: c.outputs / 1e6, differs=CHOSEN),
        ),
        search=Search(
            torchvision.models.resnet50,
            lambda _: pl.GroupFisher(training=False, images=2, share=1.0),
            side=64,
            target=RESNET50_MACS // 2,
        ),
    ),
    Paper(
        "ResNet-50, as mmrazor counts",
        torchvision.models.resnet50,
        (with_norms("4.11"), params("25.6")),
    ),
    Paper(
        "Group Fisher ResNet-50 of mmrazor, by memory",
        torchvision.models.resnet50,
        (with_norms("2.06"), params("16.3")),
        fisher(FISHER_MEMORY),
    ),
    Paper(
        "Group Fisher ResNet-50 of mmrazor, by MACs",
        torchvision.models.resnet50,
        (with_norms("2.06"), params("16.3")),
        fisher(FISHER_MACS),
    ),
)
