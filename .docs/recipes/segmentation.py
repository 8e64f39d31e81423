"""Segmentation: LR-ASPP of torchvision, guarded by its mean IoU."""

import torch
from torch.nn import functional as F
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

import prunelab as pl

CLASSES = 3


def squares(batches: int, seed: int):
    """Images of noise with a bright square, red (1) or green (2), and the class of each pixel."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(batches):
        x = torch.rand(4, 3, 64, 64, generator=draw) / 4
        y = torch.zeros(4, 64, 64, dtype=torch.int64)
        for image, mask in zip(x, y, strict=True):
            kind, top, left = torch.randint(0, 32, (3,), generator=draw).tolist()
            place = slice(top, top + 24), slice(left, left + 24)
            image[kind % 2][place], mask[place] = 1, kind % 2 + 1
        found.append((x, y))
    return found


def loss(model, batch):
    """The mean cross entropy over pixels."""
    images, masks = batch
    return F.cross_entropy(model(images)["out"], masks)


def mean_iou(model, loader):
    """The intersection of each class over its union, averaged over classes; larger is better."""
    both, either = torch.zeros(CLASSES), torch.zeros(CLASSES)
    model.eval()
    with torch.no_grad():
        for images, masks in loader:
            given = F.one_hot(model(images)["out"].argmax(1), CLASSES).bool()
            wanted = F.one_hot(masks, CLASSES).bool()
            both += (given & wanted).sum((0, 1, 2))
            either += (given | wanted).sum((0, 1, 2))
    return float((both / either.clamp_min(1)).mean())


torch.manual_seed(0)
network = lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=CLASSES)
data = pl.Data(squares(6, 0), squares(3, 1), squares(3, 2))
session = pl.Session(
    network, data, method="magnitude", loss=loss, metrics={"mean IoU": mean_iou},
    train=pl.Training(lr=0.05),
)  # fmt: skip
session.tune(steps=10)  # yours is trained already
session.run(target_macs=0.8, min_accuracy=None)
session.tune(steps=2)
print(session.state.line(), session.evaluate())
