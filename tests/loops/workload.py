"""What `test_ranks` runs in one process and in several: the results must be the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import prunelab as pl
from prunelab.evidence.fingerprint import fingerprint
from prunelab.loops.batch import finish
from prunelab.loops.ranks import sharded
from prunelab.loops.training import accuracy, average_loss, training

KINDS = ("contribution", "patches", "gradient", "ablation", "curvature")


def network(norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(),
        nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


def batches(count: int, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(count)
    made = []
    for _ in range(count):
        labels = torch.randint(4, (size,), generator=draw)
        noise = torch.randn(size, 3, 8, 8, generator=draw)
        made.append((noise + labels[:, None, None, None], labels))
    return made


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def measured(count: int) -> dict[str, list[float]]:
    """Evidence of every kind, the oracle, accuracy and loss, on so many batches."""
    model, given = network().eval(), batches(count)
    graph = pl.trace(model, given[0][0][:2])
    ev = pl.measure(model, graph, list(sharded(given)), KINDS, loss=loss).all_reduce()
    arrays: dict[str, Any] = {
        "images": ev.images,
        "grams": np.concatenate([ev.grams[name].ravel() for name in sorted(ev.grams)]),
        "moments": torch.cat([ev.moments[n].moment.flatten() for n in sorted(ev.moments)]),
        "sums": np.concatenate([ev.sums[name].sums.ravel() for name in sorted(ev.sums)]),
        "rows": [ev.sums[name].rows for name in sorted(ev.sums)],
        "fisher": ev.gradients[2],
        "ablated": ev.ablated,
        "curvature": np.concatenate([ev.curvature[n].ravel() for n in sorted(ev.curvature)]),
        "damage": ev["0"].damage([0, 3]),
        "oracle": pl.ablate(model, graph, given, [{}, {"0": [1]}, {"3": [0, 2]}]),
        "accuracy": accuracy(model, given),
        "loss": average_loss(loss)(model, given),
    }
    return {
        name: np.asarray(value, dtype=np.float64).ravel().tolist() for name, value in arrays.items()
    }


def session(method: Any, path: Path | None = None, **more: Any) -> pl.Session:
    data = pl.Data(batches(8), batches(5), batches(3))
    return pl.Session(network(), data, method=method, path=path, **more)


def pruned(method: Any, tune: int = 0) -> dict[str, Any]:
    """A session's end: widths, weights, metrics."""
    work = session(method)
    work.run(target_macs=0.6, min_accuracy=None)
    if tune:
        work.tune(steps=tune)
    return {
        "widths": dict(work.state.widths()),
        "kept": {name: list(units) for name, units in work.plan.kept.items()},
        "fingerprint": work.state.now.event.fingerprint,
        "same": work.state.now.event.fingerprint == fingerprint(work.model),
        "metrics": work.evaluate(),
        "events": [type(event).__name__ for event in work.ledger],
    }


def tuned(accumulate: int) -> list[float]:
    """The weights after three steps of SGD, each of so many batches on a rank."""
    model, given = network(norm=False), batches(12)
    settings = pl.Training(lr=0.1, accumulate=accumulate)
    finish(training(model, lambda epoch: iter(given), 3, loss, settings))
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return weights.double().tolist()
