"""The default job on third-party networks: repairs, methods, few images, unusual images.

    python tests/benchmarks/foreign.py [--network resnet18 ...] [--method aofp ...] [--seeds 3]
                                       [--images 16 128 4000] [--target 0.7 0.5] [--tune]
                                       [--odd] [--layers NETWORK] --keep FILE [--kept-only]

Networks of torchvision, a U-Net and a 1-d network (tests/foreign.py) are trained by one short
recipe on the 4,000 images that ship, and pruned with as many of them as `--images` says; accuracies
(of the U-Net: losses) are on the 1,000 validation images. Seeds draw the images and seed the
session. `--odd` prunes with images of one class, of a shifted distribution (negatives), and with
some that are NaN or blank; `--tune` tunes afterwards as `tune` does by default; `--layers` shows
one network's held-out reconstruction layer by layer. --keep FILE holds what was measured, so that
the tables can be made in pieces (foreign.json holds what has been); --kept-only shows it and
measures nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import prunelab as pl
from prunelab.ledger.events import Repaired

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.foreign import NETWORKS, Batches, batches, loss_of, trained

METHODS = ("magnitude", "random", "aofp", "thinet", "channel_pruning", "group_fisher", "surgeon")
REPAIRS = ("bn", "lstsq")
ODD: dict[str, Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "one class": lambda x, y: (x[y == 0], y[y == 0]),
    "shifted": lambda x, y: (-x, y),
    "some broken": lambda x, y: (_spoilt(x), y),
}


def _spoilt(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[::50] = torch.nan
    x[1::50] = 0.3
    return x


class Kept:
    """What was measured, in a file."""

    def __init__(self, path: Path, only: bool) -> None:
        self.path, self.only = path, only
        self.cells: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def cell(self, key: tuple[Any, ...], measure: Callable[[], Any]) -> Any:
        """What was measured under `key`, or is measured now; None where nothing is to be."""
        name = "/".join(map(str, key))
        if name not in self.cells and not self.only:
            found = measure()
            if self.path.exists():  # others write to it as well
                self.cells |= json.loads(self.path.read_text())
            self.cells[name] = found
            self.path.write_text(json.dumps(self.cells, indent=0))
            print(name, found, file=sys.stderr, flush=True)
        return self.cells.get(name)


class Stand:
    """One trained network, its images, and sessions on it."""

    def __init__(self, name: str, weights: Path) -> None:
        spec = NETWORKS[name]
        shipped = pl.data.load("fashion", subset=True)
        self.loss = loss_of(spec.task)
        self.train = batches(shipped.train, spec.task)
        self.val = batches(shipped.val, spec.task)
        self.model = trained(name, self.train, folder=weights)

    def data(self, images: int, seed: int, odd: str = "") -> pl.Data:
        """Data with so many training images, drawn by `seed`."""
        x, y = (torch.cat(part) for part in zip(*self.train, strict=True))
        if odd:
            x, y = ODD[odd](x, y)
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:images]
        drawn: Batches = list(zip(x[chosen].split(128), y[chosen].split(128), strict=True))
        return pl.Data(train=drawn, val=self.val)

    def job(
        self, method: str, repair: str, images: int, seed: int, target: float, odd: str = ""
    ) -> dict[str, Any]:
        """Run a method to a target; what the network is like then."""
        started = time.process_time()
        session = pl.Session(
            self.model, self.data(images, seed, odd), method, repair=repair, seed=seed,
            loss=self.loss,
        )  # fmt: skip
        note = ""
        try:
            session.run(target, min_accuracy=None)
        except pl.PruneLabError as error:
            note = f"{type(error).__name__}: {error}"
        state = session.state
        return {
            "base": next(iter(state.base.metrics.values())),
            "value": next(iter(state.now.metrics.values())),
            "macs": state.now.cost.macs / state.base.cost.macs,
            "instead": [e.kind for e in session.ledger if isinstance(e, Repaired) and e.tried],
            "theta": _theta(session),
            "seconds": round(time.process_time() - started, 1),
            "note": note,
        }

    def tuned(self, images: int, seed: int) -> dict[str, Any]:
        """Run AOFP to 70% and tune by default."""
        session = pl.Session(self.model, self.data(images, seed), seed=seed, loss=self.loss)
        session.run(0.7, min_accuracy=None)
        before = next(iter(session.state.now.metrics.values()))
        session.tune()
        after = next(iter(session.state.now.metrics.values()))
        return {"before": before, "value": after}

    def layers(self) -> list[tuple[str, ...]]:
        """Held-out reconstruction of every layer, 30% of all channels gone by magnitude."""
        session = pl.Session(
            self.model, self.data(4000, 0), pl.Magnitude(pruning_ratio=0.3), loss=self.loss
        )
        session.propose()
        session.approve()
        event = session.ledger[-1]
        assert isinstance(event, Repaired)
        head = ("layer", "samples / entries", "as cut", "BatchNorm recalibrated", "solved", "taken")
        rows = [head]
        for refit in event.refits:
            errors = [f"{100 * refit.errors[kind]:.2f}%" if kind in refit.errors else "-"
                      for kind in ("kept", "bn", "lstsq")]  # fmt: skip
            taken = f"ridge {refit.ridge:g}" if refit.choice == "lstsq" else refit.choice
            rows.append((refit.layer, f"{refit.samples:,} / {refit.entries:,}", *errors, taken))
        return rows


def _theta(session: pl.Session) -> float | None:
    proposed = session.state.proposed
    move = proposed and proposed.move
    return move.parameters.get("theta") if move else None


def spread(cells: list[dict[str, Any] | None]) -> str:
    """Mean and spread over seeds; per cent where it is an accuracy."""
    found = [cell for cell in cells if cell]
    if not found:
        return ""
    values = [cell["value"] for cell in found]
    scale, digits = (100, 1) if found[0].get("base", 1) > 0.2 else (1, 4)
    text = f"{scale * statistics.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ±{scale * (max(values) - min(values)) / 2:.{digits}f}"
    instead = sum(len(cell.get("instead", ())) > 0 for cell in found)
    missed = any(cell.get("note") for cell in found)
    return text + "*" * (instead > 0) + " (short)" * missed


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows as markdown."""
    head, *rest = rows
    lines = [head, tuple("---" for _ in head), *rest]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--method", nargs="+", default=list(METHODS))
    parser.add_argument("--images", nargs="+", type=int, default=[16, 128, 4000])
    parser.add_argument("--target", nargs="+", type=float, default=[0.7, 0.5])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--odd", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--layers")
    parser.add_argument("--weights", type=Path, default=Path("build/foreign"))
    parser.add_argument("--keep", type=Path, default=Path("build/foreign.json"))
    parser.add_argument("--kept-only", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options.keep.parent.mkdir(parents=True, exist_ok=True)
    kept = Kept(options.keep, options.kept_only)
    stands: dict[str, Stand] = {}

    def stand(name: str) -> Stand:
        if name not in stands:
            stands.clear()  # one network in memory at a time
            stands[name] = Stand(name, options.weights)
        return stands[name]

    if options.layers:
        print(table(stand(options.layers).layers()))
        return
    seeds = range(options.seeds)
    if options.odd:
        rows = [("network", "images", *(f"{m}, {r}" for m in options.method for r in REPAIRS))]
        for name in options.network:
            for odd in ODD:
                cells = [
                    spread([
                        kept.cell(("odd", name, odd, m, r, s),
                                  lambda m=m, r=r, s=s, o=odd, n=name: stand(n).job(
                                      m, r, 512, s, 0.7, o))
                        for s in seeds
                    ])
                    for m in options.method for r in REPAIRS
                ]  # fmt: skip
                rows.append((name, odd, *cells))
        print(table(rows))
        return
    if options.tune:
        rows = [("network", "images", "before", "tuned")]
        for name in options.network:
            for images in options.images:
                found = [
                    kept.cell(("tune", name, images, s),
                              lambda i=images, s=s, n=name: stand(n).tuned(i, s))
                    for s in seeds
                ]  # fmt: skip
                before = [{**cell, "value": cell["before"]} for cell in found if cell]
                rows.append((name, str(images), spread(before), spread(found)))
        print(table(rows))
        return
    for target in options.target:
        head = tuple(f"{m}, {r}" for m in options.method for r in REPAIRS)
        rows = [("network", "base", "images", *head)]
        for name in options.network:
            for images in options.images:
                cells = [
                    [
                        kept.cell((name, target, images, m, r, s),
                                  lambda m=m, r=r, s=s, i=images, t=target, n=name: stand(n).job(
                                      m, r, i, s, t))
                        for s in seeds
                    ]
                    for m in options.method for r in REPAIRS
                ]  # fmt: skip
                bases = [c["base"] for some in cells for c in some if c]
                base = spread([{"value": bases[0], "base": bases[0]}]) if bases else ""
                rows.append((name, base, str(images), *map(spread, cells)))
        print(f"\n{target:.0%} of the multiply-adds\n\n{table(rows)}")


if __name__ == "__main__":
    main()
