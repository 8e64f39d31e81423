"""Accuracy after the cut: our methods, random choice, and Torch-Pruning's criteria.

    python tests/benchmarks/methods.py [--part untrained tuned aofp] [--network resnet20 vgg8 ...]
                                       [--seeds 3] [--steps 400] [--official]
                                       [--keep FILE [--kept-only]]

Shipped networks on the shipped subset of Fashion-MNIST, at equal multiply-adds. Evidence, repair
and tuning use its 4,000 training images; what is chosen (Torch-Pruning's best) is chosen on val;
reported are its 1,500 test images, and with --official the 9,000 that the official set has beside
val; AOFP, whose claim is about training on all there is, then has all 60,000. Seeds vary the images
measured, random choice and the order of tuning. Every choice of channels, Torch-Pruning's too, is
cut by prunelab and gets the same three treatments: none, BatchNorm recalibrated, repaired.
--keep FILE holds what was measured: what is there is not measured again, so the tables can be made
in pieces; --kept-only shows what there is and measures nothing. Needs torch-pruning.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab.loops.batch import finish, run_batch
from prunelab.methods import Context, Search
from prunelab.repair.recalibration import Traced, recalibrating
from prunelab.values import FrozenMap

SHARES = {"untrained": (0.7, 0.5, 0.3), "tuned": (0.5, 0.3, 0.2)}  # of the MACs, kept
SCOPES = {"local": {}, "global": {"global_pruning": True},
          "isomorphic": {"global_pruning": True, "isomorphic": True}}  # fmt: skip
CRITERIA: dict[str, Callable[[], Any]] = {
    "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "Taylor": lambda: tp.importance.GroupTaylorImportance(),
    "BN scale": lambda: tp.importance.BNScaleImportance(),
    "LAMP": lambda: tp.importance.LAMPImportance(p=2),
    "FPGM": lambda: tp.importance.FPGMImportance(p=2),
}
TREATMENTS = ("none", "bn", "lstsq")
Drop = dict[str, list[int]]


class NotKept(Exception):
    """A cell that is not to be measured now, and was not before."""


@dataclass(frozen=True)
class Given:
    """A method that drops what it was given."""

    name: ClassVar[str] = "given"

    drop: FrozenMap

    def search(self, context: Context) -> Search:
        """One move."""
        yield from ()
        return context.move(self, {name: units for name, units in self.drop.items() if units})


@dataclass
class Bench:
    """A network, the data, and what was measured so far."""

    network: str
    seeds: int
    steps: int
    official: bool
    keep: Path | None
    frozen: bool = False  # whether only what is kept is shown
    known: dict[str, Any] = field(default_factory=dict)
    taken: dict[int, list[Any]] = field(default_factory=dict)
    paths: dict[int, pl.Session] = field(default_factory=dict)  # by seed, the Surgeon's session

    def __post_init__(self) -> None:
        self.model = pl.zoo.load(self.network)
        self.data = pl.data.load("fashion", subset=True, batch_size=125)
        self.whole = pl.data.load("fashion", batch_size=125) if self.official else None
        self.graph = pl.trace(self.model, torch.zeros(1, 1, 28, 28))
        self.macs = pl.cost(self.graph, pl.WidthPlan.full(self.graph)).macs
        if self.keep is not None and self.keep.exists():
            self.known = json.loads(self.keep.read_text())

    def cell(self, key: str, work: Callable[[], Any]) -> Any:
        """What `work` measures, unless it is known."""
        key = f"{self.network} {key}"
        if key not in self.known:
            if self.frozen:
                raise NotKept(key)
            started = time.process_time()
            self.known[key] = work()
            print(key, self.known[key], f"{time.process_time() - started:.0f} s", file=sys.stderr)
            if self.keep is not None:
                before = json.loads(self.keep.read_text()) if self.keep.exists() else {}
                self.keep.write_text(json.dumps(before | {key: self.known[key]}, indent=0))
        return self.known[key]

    def session(self, method: Any, seed: int, repair: str | None) -> pl.Session:
        return pl.Session(self.model, self.data, method, seed=seed, repair=repair, graph=self.graph)

    def gradients(self, seed: int) -> list[torch.Tensor]:
        """The gradients of the loss on 512 training images, for criteria that want them."""
        if seed not in self.taken:
            model = pl.zoo.load(self.network)
            for x, y in pl.data.take(self.data.shuffled(seed), 512):
                F.cross_entropy(model(x), y).backward()
            self.taken[seed] = [parameter.grad for parameter in model.parameters()]
        return self.taken[seed]

    def tested(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on the images that are reported."""
        found = {"shipped": accuracy(model, self.data.test)}
        if self.whole is not None:
            found["official"] = accuracy(model, self.whole.test)
        return found

    def treated(self, drop: Mapping[str, Any], seed: int, kinds: tuple[str, ...]) -> Any:
        """The network without `drop`, under each treatment."""
        session = self.session(Given(FrozenMap(drop)), seed, None)
        session.propose()
        session.approve()
        found = {}
        for kind in kinds:
            if kind != "none":
                session.repair(kind)
            found[kind] = self.tested(session.model)
            if kind != "none":
                session.undo()
        return found

    def tuned(self, drop: Mapping[str, Any], seed: int, repair: str | None) -> dict[str, float]:
        session = self.session(Given(FrozenMap(drop)), seed, repair)
        session.propose()
        session.approve()
        session.tune(steps=self.steps)
        return self.tested(session.model)


@torch.no_grad()
def accuracy(model: nn.Module, loader: Any) -> float:
    right = [model(x).argmax(1) == y for x, y in loader]
    return 100 * float(torch.cat(right).double().mean())


# ---------------------------------------------------------------- who chooses


def surgeon(bench: Bench, share: float, seed: int) -> Any:
    """What the Surgeon drops, and what comes of it.

    Its moves end at whole tenths of the MACs, so a session that goes on from 0.7 to 0.5 makes the
    very moves of `pl.prune(model, data, "surgeon", target_macs=0.5, seed=seed)`.
    """

    def work() -> dict[str, Any]:
        session = bench.paths.get(seed)
        if session is None or session.state.now.cost.macs < share * bench.macs:
            session = bench.session("surgeon", seed, "lstsq")
        bench.paths[seed] = session
        session.run(target_macs=share, min_accuracy=None)
        drop = {name: list(units) for name, units in session.plan.dropped.items()}
        return {"drop": drop, "repaired": bench.tested(session.model)}

    return bench.cell(f"surgeon {share} {seed}", work)


def share_of(bench: Bench, drop: Drop) -> float:
    return pl.cost(bench.graph, pl.WidthPlan.full(bench.graph).drop(drop)).macs / bench.macs


def rivals(bench: Bench, seed: int, share: float, only: str | None = None) -> Iterator[Any]:
    """Torch-Pruning's choices at this share of the MACs: name and what it drops."""
    for criterion, make in CRITERIA.items():
        for scope, options in SCOPES.items():
            name = f"{criterion}, {scope}"
            if only in (None, name):
                low, high, best = 0.0, 0.95, None
                for _ in range(9):  # the largest network within the share
                    ratio = (low + high) / 2
                    drop = rival(bench, make(), options, ratio, seed)
                    if drop is not None and share_of(bench, drop) <= share:
                        high, best = ratio, drop
                    else:
                        low = ratio
                if best is not None:
                    yield name, best


def rival(bench: Bench, importance: Any, options: Any, ratio: float, seed: int) -> Drop | None:
    """What Torch-Pruning's own pruner drops in one step."""
    model = pl.zoo.load(bench.network)
    inputs = torch.zeros(1, 1, 28, 28)
    pruner = tp.pruner.BasePruner(
        model, inputs, importance, pruning_ratio=ratio, ignored_layers=[model.fc], **options
    )
    if isinstance(importance, tp.importance.GroupTaylorImportance):
        for parameter, gradient in zip(model.parameters(), bench.gradients(seed), strict=True):
            parameter.grad = gradient.clone()
    pruner.step()
    drop: dict[str, set[int]] = {}
    for layer, outputs, units in pruner.pruning_history():
        if outputs:
            drop.setdefault(bench.graph[layer].name, set()).update(units)
    found = {name: sorted(units) for name, units in drop.items()}
    if any(len(units) >= bench.graph[name].width for name, units in found.items()):
        return None
    same = pl.cut(bench.model, bench.graph, pl.WidthPlan.full(bench.graph).drop(found))
    x = next(iter(bench.data.val))[0][:8]
    with torch.no_grad():
        if not torch.allclose(same(x), model.eval()(x), atol=1e-3):
            raise AssertionError("this is not the network that Torch-Pruning made")
    return found


def best_rival(bench: Bench, seed: int, share: float, treatment: str) -> dict[str, Any]:
    """The choice that is best on val, under a treatment, among all criteria and scopes."""

    def judged(drop: Drop) -> float:
        plan = pl.WidthPlan.full(bench.graph).drop(drop)
        small = pl.cut(bench.model, bench.graph, plan)
        now, whole = Traced(small, bench.graph.after(plan)), Traced(bench.model, bench.graph)
        images = list(pl.data.take(bench.data.train, 256))
        if treatment == "bn":
            finish(recalibrating(now, whole, lambda: images, run_batch))
        return accuracy(small, bench.data.val)

    # what draws nothing is the same for every seed, so seed 0 decides which it is
    first = None if seed == 0 else best_rival_of(bench, 0, share, treatment)["name"]
    found = [(judged(d) if first is None else 0.0, n, d) for n, d in
             rivals(bench, seed, share, first)]  # fmt: skip
    value, name, drop = max(found)
    return {"name": name, "val": value, "drop": drop, "macs": share_of(bench, drop)}


def best_rival_of(bench: Bench, seed: int, share: float, treatment: str) -> Any:
    return bench.cell(
        f"rival {treatment} {share} {seed}", lambda: best_rival(bench, seed, share, treatment)
    )


def random_drop(bench: Bench, seed: int, share: float) -> Drop:
    session = bench.session("random", seed, None)
    session.run(target_macs=share, min_accuracy=None)
    return {name: list(units) for name, units in session.plan.dropped.items()}


# ---------------------------------------------------------------- the tables


def spread(values: list[float]) -> str:
    """Mean, and the standard deviation over the seeds."""
    more = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{more}"


def table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def reported(bench: Bench) -> list[str]:
    return ["shipped", "official"] if bench.official else ["shipped"]


def bare(bench: Bench, share: float, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each choice of channels, and what it gives under each treatment."""

    def treated(who: str, drop: Callable[[], Drop], kinds: tuple[str, ...]) -> dict[str, Any]:
        key = f"{who} {share} {seed}"
        return dict(bench.cell(key, lambda: bench.treated(drop(), seed, kinds)))

    with suppress(NotKept):
        mine = surgeon(bench, share, seed)
        unmended = treated("surgeon bare", lambda: mine["drop"], ("none", "bn"))
        yield "Surgeon", unmended | {"lstsq": mine["repaired"]}
    with suppress(NotKept):
        yield "random", treated("random", lambda: random_drop(bench, seed, share), TREATMENTS)
    with suppress(NotKept):
        theirs = best_rival_of(bench, seed, share, "bn")
        cells = treated("rival treated", lambda: theirs["drop"], TREATMENTS)
        yield f"Torch-Pruning's best: {theirs['name']}", cells


def trained(bench: Bench, share: float, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each choice of channels after tuning."""

    def tuned(who: str, drop: Drop, repair: str | None) -> dict[str, Any]:
        key = f"tuned {bench.steps} {who} {share} {seed}"
        return {"tuned": bench.cell(key, lambda: bench.tuned(drop, seed, repair))}

    with suppress(NotKept):
        mine = surgeon(bench, share, seed)["drop"]
        yield "Surgeon, repaired", tuned("surgeon", mine, "lstsq")
    with suppress(NotKept):
        theirs = best_rival_of(bench, seed, share, "bn")
        name = f"Torch-Pruning's best: {theirs['name']}"
        yield name, tuned("rival", theirs["drop"], None)
        yield f"{name}, repaired by prunelab", tuned("rival mended", theirs["drop"], "lstsq")


def tables(bench: Bench, part: str, title: str, columns: Mapping[str, str]) -> None:
    """One table for each set of test images: a row for each share and chooser."""
    base = bench.cell("base", lambda: bench.tested(bench.model))
    lines: dict[str, list[list[str]]] = {images: [] for images in reported(bench)}
    for share in SHARES[part]:
        measure = bare if part == "untrained" else trained
        found: dict[str, list[dict[str, Any]]] = {}
        for seed in range(bench.seeds):
            for who, cells in measure(bench, share, seed):
                found.setdefault(who, []).append(cells)
        for images, rows in lines.items():
            for who, each in found.items():
                values = [spread([cells[kind][images] for cells in each]) for kind in columns]
                rows.append([f"{1 - share:.0%}", who, str(len(each)), *values])
    for images, rows in lines.items():
        print(f"\n### {bench.network}, {title}, {images} test images, base {base[images]:.2f}%\n")
        table(["MACs removed", "choice", "seeds", *columns.values()], rows)


def untrained(bench: Bench) -> None:
    """No training after the cut."""
    names = ("none", "BatchNorm recalibrated", "repaired")
    tables(bench, "untrained", "no training", dict(zip(TREATMENTS, names, strict=True)))


def tuned(bench: Bench) -> None:
    """The same steps, schedule and loss for all."""
    tables(bench, "tuned", f"{bench.steps} batches of tuning", {"tuned": "accuracy"})


def aofp(bench: Bench) -> None:
    """AOFP's claim at this size: 65% of the MACs gone without loss, after tuning."""
    base = bench.cell("base", lambda: bench.tested(bench.model))

    def job(seed: int) -> dict[str, float]:
        # on all there is the training is long, so it may be bold
        train = pl.Training(lr=0.05, weight_decay=5e-4) if bench.official else pl.Training()
        result = pl.prune(bench.model, bench.whole or bench.data, "aofp", target_macs=0.35,
                          min_accuracy=None, seed=seed, tune=bench.steps, train=train,
                          graph=bench.graph)  # fmt: skip
        return bench.tested(result.model)

    made = []
    for seed in range(bench.seeds):
        with suppress(NotKept):
            made.append(bench.cell(f"aofp {bench.steps} {seed}", lambda seed=seed: job(seed)))
    if not made:
        return
    title = f"{bench.network} at 35% of its MACs, {bench.steps} batches of tuning"
    print(f"\n### Exact AOFP, {title}\n")
    rows = [[i, f"{base[i]:.2f}", spread([cell[i] for cell in made])] for i in reported(bench)]
    table(["test images", "base", "exact AOFP"], rows)


def main() -> None:
    parts = {"untrained": untrained, "tuned": tuned, "aofp": aofp}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--network", nargs="+", default=["resnet20", "vgg8", "mobilenet"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--kept-only", action="store_true")
    parser.add_argument("--official", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.network:
        bench = Bench(name, asked.seeds, asked.steps, asked.official, asked.keep, asked.kept_only)
        for part in asked.part:
            if part != "aofp" or name == "vgg8":
                parts[part](bench)


if __name__ == "__main__":
    main()
