"""Third-party networks, trained by one short recipe on the shipped images.

Three channels of 32 x 32 pixels, each image repeated over the channels and enlarged. What a network
is trained on, how long and with which seed is written here, so its weights can be made anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]
Batches = list[Batch]
SIZE = 32


@dataclass(frozen=True)
class Foreign:
    """A network: how it is built, for how many epochs it is trained, what it is asked.

    `task` is "classify" (the garment), "denoise" (the image without the noise that was added) or
    "rows" (the garment from the image as a signal of 32 channels).
    """

    build: Callable[[], nn.Module]
    epochs: int = 5
    lr: float = 0.05
    task: str = "classify"
    adam: bool = False  # squeezenet, without BatchNorm, does not learn by plain SGD in so few steps


class Signal(nn.Module):
    """A 1-d convolutional classifier with strides, as PyTorch's speech command tutorial has it.

    After M5 (Dai et al., Very Deep Convolutional Neural Networks for Raw Waveforms, 2017).
    """

    def __init__(self, inputs: int = 32, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, width, 5, padding=2)
        self.bn1 = nn.BatchNorm1d(width)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm1d(width)
        self.conv3 = nn.Conv1d(width, 2 * width, 3, padding=1)
        self.bn3 = nn.BatchNorm1d(2 * width)
        self.conv4 = nn.Conv1d(2 * width, 2 * width, 3, padding=1)
        self.bn4 = nn.BatchNorm1d(2 * width)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool1d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool1d(F.relu(self.bn3(self.conv3(x))), 2)
        x = F.relu(self.bn4(self.conv4(x)))
        return self.fc(x.mean(-1))


class UNet(nn.Module):
    """A U-Net (Ronneberger, Fischer, Brox, 2015) two levels deep, with BatchNorm, one output."""

    def __init__(self, inputs: int = 3, width: int = 16) -> None:
        super().__init__()

        def twice(into: int, out: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
                nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            )  # fmt: skip

        self.down1 = twice(inputs, width)
        self.down2 = twice(width, 2 * width)
        self.bottom = twice(2 * width, 4 * width)
        self.raise2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.up2 = twice(4 * width, 2 * width)
        self.raise1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up1 = twice(2 * width, width)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.bottom(F.max_pool2d(two, 2))
        x = self.up2(torch.cat([two, self.raise2(x)], 1))
        x = self.up1(torch.cat([one, self.raise1(x)], 1))
        return self.head(x)


def _tv(name: str, **more: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return getattr(torchvision.models, name)(weights=None, num_classes=10, **more)

    return build


def _narrow_densenet() -> nn.Module:
    return torchvision.models.DenseNet(8, (6, 12, 24, 16), 16, num_classes=10)


NETWORKS = {
    "resnet18": Foreign(_tv("resnet18")),
    "vgg11_bn": Foreign(_tv("vgg11_bn"), 4, 0.02),
    "mobilenet_v2": Foreign(_tv("mobilenet_v2"), 8),
    "mobilenet_v3_small": Foreign(_tv("mobilenet_v3_small"), 10),
    "shufflenet_v2_x0_5": Foreign(_tv("shufflenet_v2_x0_5"), 10, 0.1),
    "regnet_y_400mf": Foreign(_tv("regnet_y_400mf"), 6),
    "densenet121_narrow": Foreign(_narrow_densenet, 6),
    "squeezenet1_1": Foreign(_tv("squeezenet1_1"), 12, 0.001, adam=True),
    "unet": Foreign(UNet, 3, 0.05, "denoise"),
    "signal": Foreign(Signal, 8, 0.05, "rows"),
}  # fmt: skip


def batches(split: Iterable[Batch], task: str = "classify", batch_size: int = 128) -> Batches:
    """The images of a split as this task asks for them, all at once."""
    parts = list(split)
    x, y = torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])
    x = F.interpolate(x, size=(SIZE, SIZE), mode="bilinear")
    if task == "denoise":
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x)))
        x, y = (x + 0.5 * noise).repeat(1, 3, 1, 1), x
    elif task == "rows":
        x = x[:, 0]
    else:
        x = x.repeat(1, 3, 1, 1)
    return list(zip(x.split(batch_size), y.split(batch_size), strict=True))


def loss_of(task: str) -> Callable[[nn.Module, Any], Tensor] | None:
    """The loss of a task; None for the default of a session."""
    if task != "denoise":
        return None
    return lambda model, batch: F.mse_loss(model(batch[0]), batch[1])


def trained(
    name: str, train: Batches, seed: int = 0, folder: Path | None = None, epochs: int | None = None
) -> nn.Module:
    """The network `name`, trained on these batches for `epochs` (None: as many as it asks for).

    Read from `folder` if it is there already.
    """
    spec = NETWORKS[name]
    epochs = spec.epochs if epochs is None else epochs
    torch.manual_seed(seed)
    model = spec.build()
    path = folder and folder / f"{name}-{seed}-{sum(len(x) for x, _ in train)}.safetensors"
    if path is not None and path.exists():
        load_model(model, path)
        return model.eval()
    loss = loss_of(spec.task) or (lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]))
    if spec.adam:
        optimiser: Any = torch.optim.Adam(model.parameters(), spec.lr)
    else:
        optimiser = torch.optim.SGD(model.parameters(), spec.lr, momentum=0.9, weight_decay=5e-4)
    steps = epochs * len(train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, spec.lr, total_steps=steps)
    x, y = torch.cat([a for a, _ in train]), torch.cat([b for _, b in train])
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(len(train[0][0])):
            optimiser.zero_grad()
            loss(model, (x[index], y[index])).backward()
            optimiser.step()
            if schedule.last_epoch < steps:
                schedule.step()
    _settle(model, train)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, str(path))
    return model.eval()


@torch.no_grad()
def _settle(model: nn.Module, train: Batches) -> None:
    """BatchNorm's statistics once more: mobilenet_v3's move by a hundredth a step, too slowly."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for x, _ in train[:8]:
        model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
