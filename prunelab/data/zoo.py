"""Small convolutional networks that ship with trained weights, so that lessons start at once.

Three families cover the structures that pruning has to handle: `vgg8` is plain, `resnet20` has
residual shortcuts, `mobilenet` has inverted residuals with depth-wise convolutions. They are
ordinary instances of `nn.Module` that do not depend on prunelab.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import safetensors.torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.data.private_random import private_random
from prunelab.errors import InvalidValue, PruneLabError, UnknownName
from prunelab.values.given import as_annotated


class VGG8(nn.Module):
    """Seven 3x3 convolutions and a linear layer (after Simonyan & Zisserman, 2015).

    Input [N, in_channels, H, W] with H, W >= 4; output [N, classes] logits.
    """

    widths = (32, 32, 64, 64, 128, 128, 128)
    pooled = (2, 4)  # a 2x2 max pool follows these layers

    def __init__(self, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        before = in_channels
        for index, width in enumerate(self.widths, start=1):
            self.add_module(f"conv{index}", nn.Conv2d(before, width, 3, padding=1, bias=False))
            self.add_module(f"bn{index}", nn.BatchNorm2d(width))
            before = width
        self.fc = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        for index in range(1, len(self.widths) + 1):
            x = F.relu(self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(x)))
            if index in self.pooled:
                x = F.max_pool2d(x, 2)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al., CVPR 2016)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class ResNet20(nn.Module):
    """The residual network of depth 20 for CIFAR (He et al., CVPR 2016).

    Input [N, in_channels, H, W]; output [N, classes] logits.
    """

    def __init__(self, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, stride=1)
        self.layer2 = self._stage(16, 32, stride=2)
        self.layer3 = self._stage(32, 64, stride=2)
        self.fc = nn.Linear(64, classes)

    @staticmethod
    def _stage(before: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(before, width, stride),
            BasicBlock(width, width, 1),
            BasicBlock(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class InvertedResidual(nn.Module):
    """Expansion, depth-wise convolution, projection (Sandler et al., CVPR 2018)."""

    def __init__(self, before: int, width: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = before * expansion
        self.expand = nn.Conv2d(before, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.residual = stride == 1 and before == width

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu6(self.bn1(self.expand(x)))
        out = F.relu6(self.bn2(self.depthwise(out)))
        out = self.bn3(self.project(out))
        return x + out if self.residual else out


class MobileNet(nn.Module):
    """A MobileNetV2 for small images: eight inverted residual blocks.

    Input [N, in_channels, H, W]; output [N, classes] logits.
    """

    blueprint = (  # width, number of blocks, stride of the first block
        (24, 2, 2),
        (40, 3, 2),
        (64, 3, 1),
    )

    def __init__(self, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        before = 16
        self.stem = nn.Conv2d(in_channels, before, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(before)
        blocks = []
        for width, repeats, stride in self.blueprint:
            for index in range(repeats):
                blocks.append(InvertedResidual(before, width, stride if index == 0 else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(before, 192, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(192)
        self.fc = nn.Linear(192, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn1(self.stem(x)))
        x = F.relu6(self.bn2(self.head(self.blocks(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "vgg8": VGG8,
    "resnet20": ResNet20,
    "mobilenet": MobileNet,
}


def build(name: str, in_channels: int = 1, classes: int = 10, seed: int = 0) -> nn.Module:
    """A network of the zoo with new weights; the global random state is not changed.

    Parameters
    ----------
    name
        "vgg8", "resnet20" or "mobilenet".
    in_channels, classes
        The number of input channels and of outputs.
    seed
        Of the He initialisation.

    Raises `UnknownName` for a network that is not in the zoo.
    """
    if name not in ARCHITECTURES:
        raise UnknownName("network", name, ARCHITECTURES)
    with private_random(seed):
        model = ARCHITECTURES[name](in_channels, classes)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


@as_annotated
def load(name: str, pretrained: bool = True, in_channels: int = 1, classes: int = 10) -> nn.Module:
    """A network of the zoo, in evaluation mode on the CPU.

    Parameters
    ----------
    name
        "vgg8", "resnet20" or "mobilenet".
    pretrained
        Whether to load the shipped weights; otherwise the weights are new.
    in_channels, classes
        The number of input channels and of outputs.

    Raises `UnknownName` for a network that is not in the zoo, and `InvalidValue` when the shipped
    weights are for other inputs or classes.
    """
    model = build(name, in_channels, classes)
    if pretrained:
        weights = _read(name, "safetensors")
        state = safetensors.torch.load(weights)
        own = model.state_dict()
        if wrong := [key for key in own if key not in state or own[key].shape != state[key].shape]:
            raise InvalidValue(
                f"The weights of {name} that ship are for 1 input channel and 10 classes "
                f"(Fashion-MNIST), given in_channels={in_channels}, classes={classes}: "
                f"{wrong[0]} does not fit. Use pretrained=False and train it, or copy what fits."
            )
        model.load_state_dict(state)
    return model.eval()


def card(name: str) -> dict[str, Any]:
    """How the shipped weights were trained: data, recipe, seed, accuracy on the official test set.

    Raises `UnknownName` for a network that is not in the zoo.
    """
    if name not in ARCHITECTURES:
        raise UnknownName("network", name, ARCHITECTURES)
    return dict(json.loads(_read(name, "json")))


def _read(name: str, kind: str) -> bytes:
    path = resources.files("prunelab") / "assets" / "zoo" / f"{name}.{kind}"
    if not path.is_file():
        raise PruneLabError(
            f"{name}.{kind} is missing from this installation of prunelab. Install it again, or "
            f"make it: python tests/benchmarks/train_zoo.py {name}."
        )
    return path.read_bytes()
