"""Sampled AOFP beside the exact form: accuracy towards a target, and set damage beside the oracle.

    python tests/benchmarks/aofp_sampled.py [--part job oracle] [--networks vgg8 resnet20]
        [--forms exact sampled] [--seeds 3] [--batches 20] [--steps 100] [--minutes 60]

`job`: each session is run to 50% of the MACs, evaluated on the test images, tuned for `--steps`
batches, evaluated and taken back; then the same at 35%. No session begins after `--minutes`.
`oracle`: frozen weights; the damage of the sets that the search ends with, over that of the greedy
oracle's sets of the same sizes (the least next-layer damage, unit by unit).

Prints rows as they come, then its tables. Nothing here is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

import prunelab as pl
from prunelab.evidence import ContributionGram
from prunelab.ledger.events import Proposed
from prunelab.methods.aofp_sampled import ScoringPath
from prunelab.methods.aofp_search import iter_rungs

SHARES = (0.5, 0.35)
Row = dict[str, Any]


def methods(batches: int) -> dict[str, pl.AOFP]:
    """Both forms; sampled with few batches a halving, and so with a larger theta."""
    short = {"batches": batches, "warmup": batches, "retire_after": 1}
    return {
        "exact": pl.AOFP(),
        "sampled": pl.AOFP(theta=0.05, scoring="sampled", **short),
    }


def jobs(
    networks: list[str], forms: list[str], seeds: int, batches: int, steps: int, minutes: float
) -> list[Row]:
    """Runs, one row for each point."""
    data, started, rows = pl.data.load("fashion", subset=True, batch_size=64), time.time(), []
    for seed in range(seeds):
        for network in networks:
            for form in forms:
                method = methods(batches)[form]
                for repair in (None, "lstsq"):
                    if time.time() - started > 60 * minutes:
                        print(f"not run: {network}, {form} AOFP, repair {repair}, seed {seed}")
                        continue
                    session = pl.Session(
                        pl.zoo.load(network), data, method, seed=seed, repair=repair
                    )
                    rows += points(session, steps, {
                        "network": network, "form": form, "repair": repair, "seed": seed,
                    })  # fmt: skip
    return rows


def points(session: pl.Session, steps: int, row: Row) -> Iterable[Row]:
    """The session's accuracy at each share of the MACs, before and after tuning."""
    base, spent = session.evaluate()["accuracy"], 0.0
    for share in SHARES:
        begun = time.perf_counter()
        session.run(target_macs=share, min_accuracy=None)
        spent += time.perf_counter() - begun
        moves = [e.move for e in session.ledger if isinstance(e, Proposed) and e.move]
        bare = session.evaluate()["accuracy"]
        session.tune(steps=steps)
        tuned = session.evaluate()["accuracy"]
        session.undo()
        found = row | {
            "share": share,
            "moves": session.state.moves,
            "trained": sum(move.carry.get("batches", 0) for move in moves),
            "seconds": spent,
            "bare": bare - base,
            "tuned": tuned - base,
        }
        print(found, flush=True)
        yield found


def job_table(rows: list[Row]) -> None:
    """Means over the seeds."""
    print("\n| network | MACs | AOFP | repair | seeds | moves | trained on | untuned | tuned |")
    print("|---|---|---|---|---|---|---|---|---|")
    keys = dict.fromkeys((r["network"], r["share"], r["form"], r["repair"]) for r in rows)
    for key in sorted(keys, key=lambda key: (key[0], -key[1], key[2], str(key[3]))):
        mine = [r for r in rows if (r["network"], r["share"], r["form"], r["repair"]) == key]
        network, share, form, repair = key
        count = [f"{statistics.mean(r[what] for r in mine):.0f}" for what in ("moves", "trained")]
        shown = [spread([100 * r[what] for r in mine]) for what in ("bare", "tuned")]
        print(
            f"| {network} | {share:.0%} | {form} | {repair or 'none'} | {len(mine)} | {count[0]} | "
            f"{count[1]} | {shown[0]} | {shown[1]} |"
        )


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    more = f" ±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.2f}{more}"


# ---------------------------------------------------------------- set damage


def greedy(gram: np.ndarray, size: int) -> list[int]:
    """The set that the greedy oracle removes: unit by unit, the least damage of all so far."""
    chosen: list[int] = []
    running, own = np.zeros(len(gram)), np.diagonal(gram)
    for _ in range(size):
        rise = 2 * running + own
        rise[chosen] = np.inf
        chosen.append(int(np.argmin(rise)))
        running = running + gram[chosen[-1]]
    return chosen


def halved(scores: dict[int, list[float]], sizes: list[int]) -> list[list[int]]:
    """The better half, and the better half of that."""
    sets, left = [], sorted(scores)
    for size in sizes:
        left = sorted(left, key=lambda unit: np.mean(scores[unit] or [np.inf]))[:size]
        sets.append(left)
    return sets


def sampled_sets(
    model: torch.nn.Module, graph: pl.ChannelGraph, xs: list[torch.Tensor], batches: int, seed: int
) -> dict[str, list[list[int]]]:
    """Of every layer, the half, quarter and eighth that sampled halvings end with."""
    rng = np.random.default_rng(seed)
    spaces = {g.name: list(g.units) for g in inner(graph)}
    sets: dict[str, list[list[int]]] = {name: [] for name in spaces}
    for _ in range(3):
        seen = {name: {unit: [] for unit in units} for name, units in spaces.items()}
        for index in range(batches):
            masks = {n: rng.choice(s, len(s) // 2, replace=False) for n, s in spaces.items()}
            path = ScoringPath(model, graph, {n: tuple(m) for n, m in masks.items()})
            with torch.no_grad(), path:
                model(xs[index % len(xs)])
            for name, mask in masks.items():
                for unit in mask.tolist():
                    seen[name][unit].append(path.damage(name))
        for name, scores in seen.items():
            spaces[name] = halved(scores, [len(spaces[name]) // 2])[0]
            sets[name].append(spaces[name])
    return sets


def inner(graph: pl.ChannelGraph) -> list[pl.ChannelGroup]:
    """The groups that AOFP searches."""
    return [g for g in graph.groups if g.prunable and not g.residual]


def oracle(networks: list[str], seeds: int, batches: Iterable[int]) -> None:
    """Set damage over the greedy oracle's, the mean over layers."""
    print("\n| network | sets of | 1/2 | 1/4 | 1/8 |\n|---|---|---|---|---|")
    data = pl.data.load("fashion", subset=True, batch_size=32)
    xs = [x for x, _ in data.train][:16]
    for network in networks:
        model = pl.zoo.load(network)
        graph = pl.trace(model, xs[0][:1])
        evidence = pl.measure(model, graph, xs)
        grams = {group.name: evidence[group.name] for group in inner(graph)}
        exact = {n: [[*r.candidates] for r in iter_rungs(g, 0.0)][:3] for n, g in grams.items()}
        report(network, "exact AOFP", grams, [exact])
        for count in batches:
            found = [sampled_sets(model, graph, xs, count, seed) for seed in range(seeds)]
            report(network, f"sampled AOFP, {count} batches a halving", grams, found)
        single = {n: halved(alone(g), sizes(g)) for n, g in grams.items()}
        report(network, "each unit's own damage", grams, [single])
        rng = np.random.default_rng(0)
        drawn = [
            {n: [rng.choice(len(g.units), k, replace=False).tolist() for k in sizes(g)]
             for n, g in grams.items()}
            for _ in range(10)
        ]  # fmt: skip
        report(network, "random", grams, drawn)


def sizes(gram: ContributionGram) -> list[int]:
    """The sizes of three halvings."""
    return [len(gram.units) // 2, len(gram.units) // 4, len(gram.units) // 8]


def alone(gram: ContributionGram) -> dict[int, list[float]]:
    """The damage of each unit alone."""
    return {unit: [value] for unit, value in zip(gram.units, gram.alone().tolist(), strict=True)}


def report(
    network: str,
    name: str,
    grams: dict[str, ContributionGram],
    found: list[dict[str, list[list[int]]]],
) -> None:
    """One row: the mean over layers and seeds of the damage over the oracle's."""
    cells = []
    for place in range(3):
        ratios = [
            gram.damage(sets[layer][place])
            / max(1e-12, gram.damage(greedy(gram.gram, len(sets[layer][place]))))
            for sets in found
            for layer, gram in grams.items()
        ]
        cells.append(f"{np.mean(ratios):.2f}")
    print(f"| {network} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="*", default=["job", "oracle"])
    parser.add_argument("--networks", nargs="*", default=["vgg8", "resnet20"])
    parser.add_argument("--forms", nargs="*", default=["exact", "sampled"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60)
    given = parser.parse_args()
    if "oracle" in given.part:
        oracle(given.networks, given.seeds, (20, 100))
    if "job" in given.part:
        limits = given.seeds, given.batches, given.steps, given.minutes
        job_table(jobs(given.networks, given.forms, *limits))
