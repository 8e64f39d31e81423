"""How well each score agrees with the loss oracle, and the cost of evidence.

    python tests/benchmarks/fidelity.py [gradient] [oracle] [fidelity] [--network NAME]
                                        [--images 256]

The means are over groups; "one ranking" is rho over all units together. A forward pass is one over
all the images. Ratios are taken in one run; medians are stated. Nothing here is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from math import nan
from typing import Any

import torch
from torch.nn import functional as F

import prunelab as pl
from prunelab.data.named import take
from prunelab.evidence.ablation import Ablator
from prunelab.loops.batch import cross_entropy
from prunelab.methods.aofp_search import expected_damages


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
    """Losses without units, with the prefix cached and by whole runs."""
    units = [(g.name, unit) for g in graph if g.prunable for unit in g.units]
    drops = [{name: (unit,)} for name, unit in units[:: max(1, len(units) // 24)]]

    def run(cached: bool) -> None:
        ablator = Ablator(model, graph, cross_entropy, cached=cached)
        for batch in few[:1]:
            list(ablator.measure(batch, drops))

    ratios = [seconds(lambda: run(False)) / seconds(lambda: run(True)) for _ in range(3)]
    ratio = statistics.median(ratios)
    print(f"{len(drops)} masks: whole runs take {ratio:.2f} x those with a cached prefix")


def scores_of(
    model: torch.nn.Module, graph: pl.ChannelGraph, few: list[Any]
) -> dict[str, Callable[[], dict[str, Any]]]:
    """What gives each score, by its name: called, a score for every unit of every group."""
    names = [group.name for group in graph if group.prunable]
    labelled = pl.Data(train=few, val=few)

    def measured(score: Callable[[Any, str], Any], **options: Any) -> Any:
        def work() -> dict[str, Any]:
            evidence = pl.measure(model, graph, few, **options)
            return {name: score(evidence, name) for name in names}

        return work

    def proposed(method: Any) -> Any:
        def work() -> Any:
            session = pl.Session(model, labelled, method, graph=graph, repair=None)
            session.propose()
            return session.state.proposed.seen

        return work

    gradient = {"kinds": ("gradient",)}
    return {
        "damage isolation: G's diagonal": measured(lambda ev, n: ev[n].alone()),
        "exact AOFP's first halving": measured(lambda ev, n: expected_damages(ev[n].gram)),
        "Group Fisher, unnormalised": measured(lambda ev, n: ev.gradient(n).fisher, **gradient),
        "Group Fisher, consumers only": measured(
            lambda ev, n: ev.gradient(n).fisher, masks="consumers", **gradient
        ),
        "Taylor": measured(lambda ev, n: ev.gradient(n).taylor, **gradient),
        "BatchNorm scale": proposed(pl.BatchNormScale()),
        "magnitude, L1": proposed(pl.Magnitude()),
        "magnitude, L2": proposed(pl.Magnitude(norm=2)),
        "max response": proposed(pl.MaxResponse(weights="consumers")),
        "first k": proposed(pl.FirstK()),
        "random": proposed(pl.Random()),
    }


def fidelity(model: torch.nn.Module, graph: pl.ChannelGraph, few: list[Any]) -> None:
    """Every score against the signed oracle on the same images, beside its cost."""

    def timed(work: Callable[[], Any]) -> tuple[Any, float]:
        started = time.process_time()
        return work(), time.process_time() - started

    @torch.no_grad()
    def forward() -> None:
        for x, _ in few:
            model(x)

    forward()
    plain = statistics.median(timed(forward)[1] for _ in range(3))
    half = len(few) // 2
    halves, spent = timed(lambda: [
        pl.measure(model, graph, some, kinds=("ablation",)) for some in (few[:half], few[half:])
    ])  # fmt: skip
    names = [group.name for group in graph if group.prunable]
    truth, *parts = [[ev.ablation(n) for n in names] for ev in (halves[0] + halves[1], *halves)]
    print(f"{sum(len(x) for x, _ in few)} images; a forward pass over them takes {plain:.1f} s.\n")
    print("| score | rho | tau | one ranking | lowest half in common | regret, lowest quarter "
          "| forward passes | seconds |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    ceiling = nan
    for name, work in scores_of(model, graph, few).items():
        found, cost = timed(work)
        at = pl.fidelity(found, truth, halves=(parts[0], parts[1]),
                         losses=lambda drops: pl.ablate(model, graph, few[:4], drops))  # fmt: skip
        ceiling = at.ceiling
        overlap = statistics.mean(group.bottom(0.5).overlap for group in at.groups)
        regret = statistics.mean(group.bottom(0.25).regret for group in at.groups)
        print(f"| {name} | {at.spearman:.2f} | {at.kendall:.2f} | {at.everywhere.spearman:.2f} "
              f"| {overlap:.0%} | {regret:+.3f} | {cost / plain:.1f} | {cost:.1f} |",
              flush=True)  # fmt: skip
    print(f"| the oracle itself | {ceiling:.2f} between halves | | | | 0 "
          f"| {spent / plain:.0f} | {spent:.0f} |\n", flush=True)  # fmt: skip


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
