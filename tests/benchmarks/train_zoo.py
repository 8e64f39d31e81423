"""Trains one network of the zoo on the full Fashion-MNIST and writes its weights and card.

    python tests/benchmarks/train_zoo.py resnet20

The last epoch is kept, whatever it scores: the official test images are looked at once, at the
end. One thread, so that a re-run on the same machine and versions gives the same weights.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from prunelab.data import zoo

EPOCHS = {"vgg8": 20, "resnet20": 20, "mobilenet": 12}
BFLOAT16 = {"vgg8", "resnet20"}  # depth-wise convolutions are slower in bfloat16 on a CPU
MEAN, STD = 0.2860, 0.3530
OUT = Path(zoo.__file__).parents[1] / "assets" / "zoo"


def read_idx(path: Path) -> Tensor:
    """One gzipped IDX file as a uint8 tensor."""
    raw = gzip.decompress(path.read_bytes())
    dims = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * len(dims)).copy()).view(
        dims
    )


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [N, 1, 28, 28] flipped with chance one half and shifted by up to 2 pixels."""
    n, _, height, width = images.shape
    flip = torch.rand(n, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = F.pad(images, (2, 2, 2, 2))
    dy, dx = torch.randint(0, 5, (2, n), generator=generator)
    rows = dy[:, None] + torch.arange(height)
    cols = dx[:, None] + torch.arange(width)
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], cols[:, None, :]].permute(
        0, 3, 1, 2
    )


def main() -> None:
    """Train, score once, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=sorted(EPOCHS))
    parser.add_argument("--root", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()
    epochs = args.epochs or EPOCHS[args.network]

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images = read_idx(args.root / "train-images-idx3-ubyte.gz")[:, None].float() / 255
    images = (images - MEAN) / STD
    labels = read_idx(args.root / "train-labels-idx1-ubyte.gz").long()

    model = zoo.build(args.network, seed=args.seed).to(memory_format=torch.channels_last)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decay, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    batch = 128
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=0.2, total_steps=steps, pct_start=0.25, cycle_momentum=False
    )
    started = time.time()
    for epoch in range(epochs):
        model.train()
        total = 0.0
        order = torch.randperm(len(images), generator=generator)
        for index in order[: len(order) // batch * batch].view(-1, batch):
            x = augment(images[index], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.network in BFLOAT16):
                loss = F.cross_entropy(model(x), labels[index], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        spent = (time.time() - started) / 60
        print(f"epoch {epoch + 1}/{epochs} loss {total / (steps // epochs):.4f} {spent:.1f} min")

    model = model.to(memory_format=torch.contiguous_format).eval()
    test = read_idx(args.root / "t10k-images-idx3-ubyte.gz")[:, None].float() / 255
    truth = read_idx(args.root / "t10k-labels-idx1-ubyte.gz").long()
    with torch.inference_mode():
        logits = torch.cat([model((part - MEAN) / STD) for part in test.split(500)])
    accuracy = (logits.argmax(1) == truth).double().mean().item()
    OUT.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, OUT / f"{args.network}.safetensors")
    card = {
        "network": args.network,
        "data": "Fashion-MNIST, the 60,000 official training images",
        "test_accuracy": round(accuracy, 4),
        "test_images": len(truth),
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": {
            "command": f"python tests/benchmarks/train_zoo.py {args.network}",
            "epochs": epochs,
            "batch": batch,
            "optimiser": "SGD, Nesterov momentum 0.9, weight decay 5e-4 on weights only",
            "schedule": "one cycle, peak 0.2, warm-up 25%",
            "loss": "cross entropy, label smoothing 0.05",
            "augmentation": "horizontal flip, shift by up to 2 pixels",
            "precision": "bfloat16 autocast" if args.network in BFLOAT16 else "float32",
            "threads": 1,
            "seed": args.seed,
            "minutes": round((time.time() - started) / 60, 1),
            "torch": torch.__version__,
        },
    }
    (OUT / f"{args.network}.json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{args.network}: {accuracy:.2%} of {len(truth)} official test images")


if __name__ == "__main__":
    main()
