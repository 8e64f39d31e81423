"""Detection: RetinaNet of torchvision, pruned by Group Fisher while training, guarded by AP."""

import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import box_iou

import prunelab as pl


def squares(batches: int, seed: int):
    """Batches (images, targets) as detectors of torchvision take them: a square in each image."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(batches):
        images, targets = [], []
        for _ in range(2):
            left, top = torch.randint(0, 16, (2,), generator=draw).tolist()
            image = torch.rand(3, 32, 32, generator=draw) / 4
            image[0, top : top + 12, left : left + 12] = 1
            box = torch.tensor([[left, top, left + 12, top + 12]], dtype=torch.float32)
            images.append(image)
            targets.append({"boxes": box, "labels": torch.tensor([1])})
        found.append((images, targets))
    return found


def average_precision(model, loader):
    """AP of one class at an IoU of 0.5; several classes and IoUs: torchmetrics, pycocotools."""
    scores, hits, there = [], [], 0
    model.eval()
    with torch.no_grad():
        for images, targets in loader:
            for found, target in zip(model(images), targets, strict=True):
                overlap, which = box_iou(found["boxes"], target["boxes"]).max(1)
                taken: set[int] = set()
                for score, iou, box in zip(found["scores"], overlap, which.tolist(), strict=True):
                    scores.append(float(score))
                    hits.append(float(iou) > 0.5 and box not in taken)
                    taken |= {box} if hits[-1] else set()
                there += len(target["boxes"])
    right = torch.tensor(hits)[torch.tensor(scores).argsort(descending=True)].float()
    precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
    return float((precision * right).sum() / there) if len(right) else 0.0


def network():
    """A small one; yours is retinanet_resnet50_fpn(weights="DEFAULT")."""
    features = nn.Sequential()
    for name, into, out in (("a", 3, 8), ("b", 8, 12)):
        layer = nn.Sequential(nn.Conv2d(into, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU())
        features.add_module(name, layer)
    backbone = BackboneWithFPN(features, {"a": "0", "b": "1"}, [8, 12], 8)
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    return RetinaNet(backbone, 2, anchor_generator=anchors, min_size=32, max_size=32)


torch.manual_seed(0)
data = pl.Data(squares(4, 0), squares(2, 1), squares(2, 2))
method = pl.GroupFisher(**{**pl.GroupFisher.DETECTION, "interval": 1, "units_per_step": 4})
session = pl.Session(
    network(), data, method, loss=pl.detection_loss, repair=None, train=pl.Training(lr=0.01),
    metrics={"AP at 0.5": average_precision},
)  # fmt: skip
session.run(target_macs=0.8, min_accuracy=None)
session.tune(steps=4)
print(session.state.line(), session.evaluate())
