"""How well each score agrees with the loss oracle, and what evidence costs.

    python tests/benchmarks/fidelity.py [gradient] [oracle] [fidelity] [--network NAME]

Ratios are taken in one run; medians are stated. Nothing here is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

import prunelab as pl
from prunelab.data import take
from prunelab.evidence.ablation import Ablator
from prunelab.evidence.batch import cross_entropy
from prunelab.methods.halving import expected_damages


def seconds(work: Callable[[], object]) -> float:
    """The time of `work`."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def gradient(model: torch.nn.Module, graph: pl.ChannelGraph, few: list[Any]) -> None:
    """Mask gradients of a batch against a plain forward and backward pass of it."""
    x, y = few[0]

    def plain() -> None:
        F.cross_entropy(model(x), y).backward()
        model.zero_grad(set_to_none=True)

    def masks() -> None:
        pl.measure(model, graph, [(x, y)], kinds=("gradient",))

    plain(), masks()
    ratios = [(seconds(masks), seconds(plain)) for _ in range(7)]
    found = statistics.median(a / b for a, b in ratios)
    print(f"mask gradients, {len(x)} images: {found:.2f} x a plain forward and backward pass")


def oracle(model: torch.nn.Module, graph: pl.ChannelGraph, few: list[Any]) -> None:
    """Losses without units, with a tape and by whole runs."""
    units = [(g.name, unit) for g in graph if g.prunable for unit in g.units]
    drops = [{name: (unit,)} for name, unit in units[:: max(1, len(units) // 24)]]

    def run(tape: bool) -> None:
        ablator = Ablator(model, graph, cross_entropy, tape=tape)
        for batch in few[:1]:
            list(ablator.measure(batch, drops))

    ratios = [seconds(lambda: run(False)) / seconds(lambda: run(True)) for _ in range(3)]
    print(f"{len(drops)} masks: whole runs take {statistics.median(ratios):.2f} x those on a tape")


def fidelity(model: torch.nn.Module, graph: pl.ChannelGraph, few: list[Any]) -> None:
    """Every score against the signed oracle on the same images."""
    half = len(few) // 2
    halves = [pl.measure(model, graph, some, kinds=("ablation",)) for some in
              (few[:half], few[half:])]  # fmt: skip
    names = [group.name for group in graph if group.prunable]
    truth, *parts = [[ev.ablation(n) for n in names] for ev in (halves[0] + halves[1], *halves)]
    images = sum(len(x) for x, _ in few)
    data = pl.Data(train=few, val=few)
    evidence = pl.measure(model, graph, few, kinds=("contribution", "gradient"))
    found: dict[str, Any] = {
        "contribution alone": {n: evidence[n].alone() for n in names},
        "AOFP, first halving": {n: expected_damages(evidence[n].gram) for n in names},
        "mask gradient squared": {n: evidence.gradient(n).fisher for n in names},
    }
    only = pl.measure(model, graph, few, kinds=("gradient",), masks="consumers")
    found["the same, consumers only"] = {n: only.gradient(n).fisher for n in names}
    for method in (
        pl.GroupFisher(training=False, images=images, share=0.0),
        pl.Taylor(images=images),
        pl.Magnitude(),
        pl.Magnitude(norm=2),
        pl.BatchNormScale(),
        pl.MaxResponse(weights="consumers"),
        pl.FirstK(),
        pl.Random(),
    ):
        session = pl.Session(model, data, method=method, graph=graph, repair=None)
        session.propose()
        name = method.name + (" L2" if getattr(method, "norm", 1) == 2 else "")
        found[name] = session.state.proposed.seen
    print(f"\n{images} images; rho and tau: means over groups; the last: all units as one ranking")
    print(f"{'':<26}{'rho':>7}{'tau':>7}{'ceiling':>9}{'one ranking':>13}")
    for name, scores in found.items():
        at = pl.fidelity(scores, truth, halves=(parts[0], parts[1]))
        row = (at.spearman, at.kendall, at.ceiling, at.everywhere.spearman)
        print(f"{name:<26}{row[0]:>7.2f}{row[1]:>7.2f}{row[2]:>9.2f}{row[3]:>13.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["gradient", "oracle", "fidelity"])
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--images", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = pl.zoo.load(options.network).eval()
    images = list(take(pl.data.load("fashion", subset=True).train, options.images))
    channels = pl.trace(network, images[0][0][:1])
    for part in options.parts:
        {"gradient": gradient, "oracle": oracle, "fidelity": fidelity}[part](
            network, channels, images
        )
