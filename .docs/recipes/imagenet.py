"""ImageNet on many GPUs: pruned, then trained by torchvision's reference.

    torchrun --nproc-per-node 8 imagenet.py FOLDER --network resnet50 --epochs 90

FOLDER has train/ and val/, and in each a folder for every class. Without torchrun one GPU runs it.
The same command goes on where an ended run stood; a training that was ended begins again.
"""

import argparse
import os
from pathlib import Path

import torch
from torch import distributed
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR, StepLR
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Subset
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import prunelab as pl

# What references/classification of torchvision trains with, for 256 images a step on all GPUs.
REFERENCE = {
    "resnet50": {"lr": 0.1, "weight_decay": 1e-4, "lr_step": 30, "lr_gamma": 0.1},
    "vgg16": {"lr": 0.01, "weight_decay": 1e-4, "lr_step": 30, "lr_gamma": 0.1},
    "mobilenet_v2": {"lr": 0.045, "weight_decay": 4e-5, "lr_step": 1, "lr_gamma": 0.98},
}


def imagenet(given):
    """Augmented images to train on; some of the training set, as it is, decide; val/ reports."""
    end = [
        v2.PILToTensor(),
        v2.ToDtype(torch.float, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    augmented = v2.Compose([v2.RandomResizedCrop(given.crop), v2.RandomHorizontalFlip(), *end])
    plain = v2.Compose([v2.Resize(given.crop * 256 // 224), v2.CenterCrop(given.crop), *end])
    train, same = (ImageFolder(given.folder / "train", how) for how in (augmented, plain))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    held = min(10_000, len(order) // 5)
    splits = Subset(train, order[held:]), Subset(same, order[:held])
    tested = ImageFolder(given.folder / "val", plain)
    loaders = (
        DataLoader(images, given.batch, num_workers=given.workers) for images in (*splits, tested)
    )
    return pl.Data(*loaders, classes=train.classes)


def schedule(optimiser, given):
    """The learning rate of each epoch: warmed up linearly, then by steps or a cosine."""
    if given.lr_scheduler == "cosine":
        main = CosineAnnealingLR(optimiser, given.epochs - given.warmup)
    else:
        main = StepLR(optimiser, given.lr_step, given.lr_gamma)
    if not given.warmup:
        return main
    warm = LinearLR(optimiser, 0.01, total_iters=given.warmup)
    return SequentialLR(optimiser, [warm, main], [given.warmup])


def train(network, images, given):
    """Train in place as the reference does, each rank on images of its own."""
    many = distributed.is_initialized()
    order = DistributedSampler(images) if many else RandomSampler(images)
    loader = DataLoader(
        images, given.batch, sampler=order, num_workers=given.workers, drop_last=True
    )
    model = DistributedDataParallel(network) if many else network
    together = given.batch * (distributed.get_world_size() if many else 1)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=given.lr * together / 256, momentum=0.9,
        weight_decay=given.weight_decay,
    )  # fmt: skip
    rates = schedule(optimiser, given)
    device = next(network.parameters()).device
    model.train()
    for epoch in range(given.epochs):
        if many:
            order.set_epoch(epoch)
        for x, y in loader:
            with torch.autocast(device.type, torch.bfloat16, given.amp):
                out = model(x.to(device))
                loss = F.cross_entropy(out, y.to(device), label_smoothing=given.smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        rates.step()


def arguments():
    """The options of the program; the defaults are the reference's."""
    parser = argparse.ArgumentParser(description="ImageNet, pruned and trained.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", choices=REFERENCE, default="resnet50")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="of torchvision, or none")
    parser.add_argument("--method", default="surgeon")
    parser.add_argument("--target-macs", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=90, help="mobilenet_v2: 300")
    parser.add_argument("--batch", type=int, default=32, help="images on each GPU")
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--lr-scheduler", choices=("step", "cosine"), default="step")
    parser.add_argument("--warmup", type=int, default=0, help="epochs")
    parser.add_argument("--smoothing", type=float, default=0.0, help="of the labels")
    parser.add_argument("--amp", action="store_true", help="train in bfloat16")
    parser.add_argument("--path", type=Path, default=Path("imagenet.prunelab"))
    given = parser.parse_args()
    vars(given).update(REFERENCE[given.network])
    return given


given = arguments()
data = imagenet(given)
weights = None if given.weights == "none" else given.weights
network = models.get_model(given.network, weights=weights).eval()
session = pl.Session(
    network, data, given.method, path=given.path, resume=True, round_to=8,
    device="cuda" if torch.cuda.is_available() else None,
)  # fmt: skip
session.run(given.target_macs, min_accuracy=None)  # nothing where a run that was ended did it
if session.state.now.event.verb != "tune":
    with session.tuning("torchvision's reference") as network:
        train(network, data.train.dataset, given)
session.export(given.path.with_suffix(".safetensors"))
tested = session.evaluate()
if int(os.environ.get("RANK", 0)) == 0:
    print(session.state.line(), tested)
