"""How the time of each verb grows with images, channels, depth, batch and input size.

    python tests/benchmarks/speed.py scaling

A plain network of 3x3 convolutions is varied along one axis at a time. CPU seconds a + b size^p of
one thread are fitted to the three sizes of FITTED and predicted for the two of CHECKED.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

import prunelab as pl

FITTED = (1.0, 2.0, 4.0)
CHECKED = (3.0, 6.0)
POWERS = np.arange(-1, 3.01, 0.05)


@dataclass(frozen=True)
class Setting:
    """A network and its data; each field is an axis."""

    images: int = 32
    channels: int = 16
    depth: int = 3
    batch: int = 16
    pixels: int = 24

    def at(self, axis: str, times: float) -> Setting:
        """The same with one axis so many times as long."""
        return replace(self, **{axis: round(getattr(self, axis) * times)})

    def session(self, method: object, repair: str | None = None) -> pl.Session:
        """A session on the network."""
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for place in range(self.depth):
            layers += [
                nn.Conv2d(self.channels if place else 3, self.channels, 3, padding=1),
                nn.BatchNorm2d(self.channels), nn.ReLU(),
            ]  # fmt: skip
        net = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.channels, 10)
        )
        data = [
            (torch.randn(n, 3, self.pixels, self.pixels), torch.arange(n) % 10)
            for n in [self.batch] * -(-self.images // self.batch)
        ]
        return pl.Session(net.eval(), pl.Data(data, data[:1]), method, repair=repair)


Timer = Callable[[Callable[[], object]], float]


def trace(at: Setting, timer: Timer) -> float:
    model = at.session(pl.FirstK()).model
    x = torch.randn(1, 3, at.pixels, at.pixels)
    return timer(lambda: pl.trace(model, x))


def measure(at: Setting, timer: Timer) -> float:
    session = at.session(pl.AOFP(images=at.images))
    batches = [x for x, _ in session.data.train]
    graph = pl.trace(session.model, batches[0][:1])
    return timer(lambda: pl.measure(session.model, graph, batches))


def propose(at: Setting, timer: Timer) -> float:
    return timer(at.session(pl.AOFP(theta=0.05, images=at.images)).propose)


def surgeon(at: Setting, timer: Timer) -> float:
    return timer(at.session(pl.Surgeon(step=0.3, images=at.images)).propose)


def repair(at: Setting, timer: Timer) -> float:
    session = at.session(pl.Magnitude(pruning_ratio=0.3), "lstsq")
    session.propose()
    return timer(session.approve)


def tune(at: Setting, timer: Timer) -> float:
    session = at.session(pl.FirstK())
    return timer(lambda: session.tune(steps=at.images // at.batch))


def evaluate(at: Setting, timer: Timer) -> float:
    session = at.session(pl.FirstK())
    return timer(lambda: session.evaluate("train"))


def fit(sizes: np.ndarray, seconds: np.ndarray) -> tuple[float, float, float]:
    """(a, b, p) of the least relative error, a and b not negative."""
    best = (np.inf, 0.0, 0.0, 0.0)
    for power in POWERS:
        for columns in ((1, 1), (0, 1), (1, 0)):
            basis = np.stack([np.ones_like(sizes), sizes**power], 1) * columns / seconds[:, None]
            (a, b), *_ = np.linalg.lstsq(basis, np.ones_like(sizes), rcond=None)
            error = float(np.sum((basis @ [a, b] - 1) ** 2)) + 1e-3 * abs(power)
            if min(a, b) >= 0 and error < best[0]:
                best = (error, float(a), float(b), float(power))
    return best[1:]


def main(timer: Timer) -> None:
    """Print the table."""
    print("| verb | axis | exponent | constant share | predicted / measured at 3x | at 6x |")
    print("|--|--|--|--|--|--|")
    for verb in (trace, measure, propose, surgeon, repair, tune, evaluate):
        for axis in ("images", "channels", "depth", "batch", "pixels"):
            base = replace(Setting(), images=96) if axis == "batch" else Setting()
            taken = {t: verb(base.at(axis, t), timer) for t in (*FITTED, *CHECKED)}
            a, b, power = fit(np.array(FITTED), np.array([taken[t] for t in FITTED]))
            off = [f"{(a + b * t**power) / taken[t]:.2f}" for t in CHECKED]
            share = a / (a + b)
            row = f"| {verb.__name__} | {axis} | {power:.2f} | {share:.0%} | {off[0]} | {off[1]} |"
            print(row, flush=True)
