"""How often the jackknife's 95% intervals hold the damage on all images.

    python tests/benchmarks/intervals.py [--samples 5] [--images 512] [--chunks 16]

For each shipped network: the damage of every channel alone on the 4,000 training images that ship,
and on samples of them, drawn by a seed each. `covered` is the share of channels and samples whose
interval holds the former; `ranks` the mean number of ranks that a channel may have, of those of its
group; `undecided` the share of a group's channels that a decision on half of them leaves undecided;
`cost` the CPU seconds of the jackknife over those of a plain pass.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

import prunelab as pl

NETWORKS = ("resnet20", "vgg8", "mobilenet")
BATCH = 64


def drawn(x: torch.Tensor, images: int, seed: int) -> list[torch.Tensor]:
    """Batches of so many images of `x`, without repetition."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return list(x[order[:images]].split(BATCH))


def row(name: str, x: torch.Tensor, samples: int, images: int, chunks: int) -> tuple[str, ...]:
    """One network's row of the table."""
    model = pl.zoo.load(name)
    graph = pl.trace(model, x[:1])
    whole = pl.measure(model, graph, x.split(BATCH))
    covered, ranks, undecided, cost = [], [], [], []
    for seed in range(samples):
        batches = drawn(x, images, seed)
        started = time.process_time()
        pl.measure(model, graph, batches)
        plain = time.process_time() - started
        started = time.process_time()
        found = pl.jackknife(model, graph, batches, chunks=chunks)
        cost.append((time.process_time() - started) / plain)
        for group in whole.groups:
            intervals = zip(found.alone(group), whole[group].alone(), strict=True)
            covered += [one.low <= value <= one.high for one, value in intervals]
            size = len(whole[group].units)
            ranks += [(most - least + 1) / size for least, most in found.ranks(group)]
            undecided.append(len(found.undecided(group, size // 2)) / size)
    return (
        name,
        f"{len(covered) // samples:,}",
        f"{np.mean(covered):.1%}",
        f"{np.mean(ranks):.0%}",
        f"{np.mean(undecided):.0%}",
        f"{np.median(cost):.1f}",
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--write", type=Path, help="write the page here")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.cat([batch for batch, _ in pl.data.load("fashion", subset=True).train])
    head = ("network", "channels", "covered", "ranks", "undecided", "cost")
    lines = [f"| {' | '.join(head)} |", f"|{'--|' * len(head)}"]
    print("\n".join(lines))
    for name in NETWORKS:
        lines.append(f"| {' | '.join(row(name, x, asked.samples, asked.images, asked.chunks))} |")
        print(lines[-1], flush=True)
    if asked.write:
        title, _, text = __doc__.split("\n\n", 2)
        how = f"{asked.samples} samples of {asked.images} images, {asked.chunks} chunks."
        asked.write.write_text(f"# {title}\n\n{text}\n{how}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
