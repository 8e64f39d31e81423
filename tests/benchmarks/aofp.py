"""Benchmarks of AOFP: time of the closed form, convergence of sampled scores, a whole run.

    python tests/benchmarks/aofp.py [time] [convergence] [job]

Ratios are taken in one run; medians are stated. Nothing here is asserted.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import spearmanr

import prunelab as pl
from prunelab.methods.aofp_sampled import ScoringPath
from prunelab.methods.aofp_search import expected_damages


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The median time of `work`, after one call that warms up."""
    work()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def table(*rows: tuple[object, ...]) -> None:
    """Print rows in columns."""
    for row in rows:
        print("  ".join(f"{cell!s:>16}" for cell in row), flush=True)


def closed_form_time() -> None:
    """How long the exact search of all layers takes, in forward passes over its batches."""
    print("\nExact search of every layer, 512 images, median of 5")
    table(("network", "forward s", "propose s", "forwards"))
    for name in ("vgg8", "resnet20", "mobilenet"):
        session = pl.Session(pl.zoo.load(name), pl.data.load("fashion", subset=True))
        batches = [x for x, _ in session._evaluator.splits.images(512)]

        def forward(session: pl.Session = session, batches: list[torch.Tensor] = batches) -> None:
            with torch.no_grad():
                for x in batches:
                    session.model(x)

        def propose(session: pl.Session = session) -> None:
            session._evaluator.measurements._evidence = {}
            session.propose()
            session.reject()

        plain, search = seconds(forward), seconds(propose)
        table((name, f"{plain:.2f}", f"{search:.2f}", f"{search / plain:.1f}"))


def convergence() -> None:
    """Rank correlation of sampled scores with the closed form, as batches grow; frozen weights."""
    print("\nSampled scores of resnet20 against the closed form (Spearman, mean of 9 layers)")
    model, data = pl.zoo.load("resnet20"), pl.data.load("fashion", subset=True, batch_size=32)
    xs = [x for x, _ in data.train][:16]
    graph = pl.trace(model, xs[0])
    evidence = pl.measure(model, graph, xs)
    groups = [g for g in graph.groups if g.prunable and not g.residual]
    exact = {g.name: expected_damages(evidence[g.name].gram) for g in groups}
    sums = {g.name: np.zeros(g.width) for g in groups}
    counts = {g.name: np.zeros(g.width) for g in groups}
    rng = np.random.default_rng(0)
    table(("batches", "rho", "lowest layer"))
    for batch in range(1, 1001):
        masks = {g.name: rng.choice(g.width, g.width // 2, replace=False) for g in groups}
        path = ScoringPath(model, graph, {name: tuple(mask) for name, mask in masks.items()})
        with torch.no_grad(), path:
            model(xs[batch % len(xs)])
        for name, mask in masks.items():
            sums[name][mask] += path.damage(name)
            counts[name][mask] += 1
        if batch in (10, 30, 100, 300, 1000):
            rho = [spearmanr(sums[n] / np.maximum(counts[n], 1), exact[n]).statistic for n in exact]
            table((batch, f"{np.mean(rho):.3f}", f"{min(rho):.3f}"))


def job() -> None:
    """Moves and repairs alone, then tuned: accuracy on every official image that is here."""
    data = pl.data.load("fashion")
    print(f"\nThe whole job, {data}")
    table(("network", "MACs kept", "moves", "minutes", "base", "no tuning", "300 batches"))
    for name, target in (("resnet20", 0.5), ("vgg8", 0.35), ("mobilenet", 0.5)):
        session = pl.Session(pl.zoo.load(name), data)
        base = session.evaluate()["accuracy"]
        started = time.perf_counter()
        session.run(target_macs=target, min_accuracy=None)
        minutes = (time.perf_counter() - started) / 60
        share = session.state.now.cost.macs / session.state.base.cost.macs
        bare = session.evaluate()["accuracy"]
        session.tune(steps=300)
        tuned = session.evaluate()["accuracy"]
        table((
            name, f"{share:.1%}", session.state.moves, f"{minutes:.1f}", f"{base:.2%}",
            f"{bare - base:+.2%}", f"{tuned - base:+.2%}",
        ))  # fmt: skip


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["time", "convergence", "job"]
    for title, run in (("time", closed_form_time), ("convergence", convergence), ("job", job)):
        if title in wanted:
            run()
