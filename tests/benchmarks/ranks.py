"""What several processes save and send, against one: evidence, evaluation and tuning of resnet20.

    torchrun --standalone --nproc-per-node 2 tests/benchmarks/ranks.py [NETWORK]

Prints, for each part, the CPU seconds of the busiest rank as a share of one process's for the same
images (so that other load on the machine does not count), the largest relative difference between
the results, and the bytes that a rank adds up. Nothing here is asserted.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import torch

import prunelab as pl
from prunelab.loops import ranks
from prunelab.loops.batch import cross_entropy, finish
from prunelab.loops.training import answering, training
from prunelab.values import table


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    found = work()
    return found, time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    name = sys.argv[1] if len(sys.argv) > 1 else "resnet20"
    data = pl.data.load("fashion", subset=True)
    model, train = pl.zoo.load(name), list(islice(data.train, 16))
    graph = pl.trace(model, train[0][0][:2])

    def evidence() -> np.ndarray:
        ev = pl.measure(model, graph, list(ranks.sharded(train))).all_reduce()
        return np.concatenate([gram.ravel() for gram in ev.grams.values()])

    def loss() -> np.ndarray:
        return np.array([finish(answering(model, data.test))[1]])

    def tuned(accumulate: int) -> np.ndarray:
        network = pl.zoo.load(name)
        settings = pl.Training(lr=1e-3, accumulate=accumulate)
        steps = len(train) // many
        work = training(network, lambda epoch: iter(train), steps, cross_entropy, settings, frozen)
        finish(work)
        return torch.cat([p.detach().flatten() for p in network.parameters()]).numpy()

    many = int(os.environ["WORLD_SIZE"])
    frozen = [n for n, module in model.named_modules() if hasattr(module, "running_mean")]
    alone = [timed(evidence), timed(loss), timed(lambda: tuned(many))]
    ranks.join()
    shared = [timed(evidence), timed(loss), timed(lambda: tuned(1))]
    rows = [("", f"CPU of the busiest of {many}", "difference", "bytes added up")]
    parameters = sum(p.numel() for p in model.parameters())
    sent = (8 * len(alone[0][0]), 0, 4 * parameters)
    for what, one, some, count in zip(
        ("evidence", "evaluation", "tuning"), alone, shared, sent, strict=True
    ):
        most = max(ranks.gathered(some[1]))
        difference = np.abs(some[0] - one[0]).max() / np.abs(one[0]).max()
        rows.append((what, f"{most / one[1]:.0%}", f"{difference:.1e}", f"{count:,}"))
    if ranks.rank() == 0:
        print(table(rows))


if __name__ == "__main__":
    main()
