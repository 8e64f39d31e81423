"""Work on one thread does not affect other threads."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import batches

import prunelab as pl
from prunelab.graph.probe_runs import NewInDouble, in_double
from prunelab.methods import lasso


def beside(work: Callable[[], object], look: Callable[[], Any]) -> set[Any]:
    """What `look` gives on another thread, over and over, while this one is at `work`."""
    seen: set[Any] = set()
    started, done = threading.Event(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add(look())
            started.set()

    thread = threading.Thread(target=watch)
    thread.start()
    started.wait()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return seen


def test_a_probe_in_float64_leaves_the_default_dtype_of_other_threads() -> None:
    net = nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)]).double()
    x = torch.randn(4, 8, 16, 16)

    def work() -> None:
        for _ in range(20):
            assert in_double(lambda net: net(x), net).dtype == torch.float64

    assert beside(work, lambda: torch.zeros(1).dtype) == {torch.float32}


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda: torch.zeros(2), torch.float64),
        (lambda: torch.randn(2, 2), torch.float64),
        (lambda: torch.arange(3), torch.int64),
        (lambda: torch.arange(0, 1, 0.5), torch.float64),
        (lambda: torch.full((2,), 0.5), torch.float64),
        (lambda: torch.full((2,), 1), torch.int64),
        (lambda: torch.tensor([1.5]), torch.float64),
        (lambda: torch.tensor(np.float32([1.5])), torch.float32),
        (lambda: torch.tensor(True), torch.bool),
        (lambda: torch.ones(2, dtype=torch.float32), torch.float32),
        (lambda: torch.ones(2, dtype=torch.float32).new_zeros(3), torch.float32),
    ],
)
def test_new_tensors_have_the_dtype_that_a_default_of_float64_would_give(
    make: Callable[[], torch.Tensor], dtype: torch.dtype
) -> None:
    with NewInDouble():
        assert make().dtype == dtype
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert make().dtype == dtype
    finally:
        torch.set_default_dtype(usual)


class Random(nn.Module):
    """A network with attention and dropout, which it never switches off: input [N, 1, 12, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.conv2(F.relu(self.conv1(x)))), 0.1)
        x = F.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
        return self.fc(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Noisy:
    """Batches with noise from the global generator, some time apart."""

    def __init__(self, count: int, seed: int) -> None:
        self.batches = batches(count, seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.batches:
            time.sleep(0.002)
            yield x + 0.1 * torch.randn_like(x), y


def sessions() -> pl.Session:
    data = pl.Data(train=Noisy(128, 1), val=Noisy(64, 2))
    method = pl.AOFP(scoring="sampled", batches=4, warmup=0, theta=10.0)
    return pl.Session(Random().eval(), data, method=method)


WORK: dict[str, Callable[[pl.Session], object]] = {
    "loads": lambda session: [list(session._evaluator.splits.images(128)) for _ in range(5)],
    "evaluates": lambda session: session.evaluate(),
    "traces": lambda session: pl.trace(session.model, torch.ones(2, 1, 12, 12)),
    "measures": lambda session: session.measure(),
    "proposes": lambda session: session.propose(),
    "tunes": lambda session: session.tune(steps=8),
    "times": lambda session: session.latency(),
}


@pytest.mark.parametrize("work", WORK)
def test_a_seeded_loop_draws_beside_a_worker_what_it_draws_alone(work: str) -> None:
    session = sessions()
    thread = threading.Thread(target=WORK[work], args=(session,))
    torch.manual_seed(0)
    beside = [torch.rand(1)]
    thread.start()
    while thread.is_alive():
        beside.append(torch.rand(1))
        time.sleep(0.0005)
    torch.manual_seed(0)
    assert torch.equal(torch.cat(beside), torch.cat([torch.rand(1) for _ in beside]))


def state() -> tuple[Any, ...]:
    """What belongs to the process, or to the thread that calls."""
    return (
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_num_threads(),
        list(warnings.filters),
        list(sys.path),
        dict(os.environ),
        random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
        signal.getsignal(signal.SIGINT),
    )


def test_verbs_leave_what_belongs_to_the_process_as_it_was() -> None:
    session = sessions()
    before = state()
    verbs = (
        "loads", "evaluates", "traces", "measures", "times", "proposes", "approve", "repair",
        "undo", "tunes", "outputs",
    )  # fmt: skip
    for name in verbs:
        verb = WORK.get(name) or getattr(pl.Session, name)
        verb(session, *([session.model] if name == "outputs" else []))
        assert state() == before, name
    pl.cost(session.model, torch.ones(1, 1, 12, 12))
    assert state() == before


def test_a_loop_over_proposing_is_as_if_nothing_ran_between_its_steps() -> None:
    data = pl.Data(train=Noisy(128, 1), val=Noisy(64, 2))
    steps = pl.Session(Random().eval(), data, method=pl.AOFP()).proposing()
    torch.manual_seed(0)
    between = []
    for _ in steps:
        assert torch.is_grad_enabled()
        between.append(torch.rand(1))
    assert len(between) > 3
    torch.manual_seed(0)
    assert torch.equal(torch.cat(between), torch.cat([torch.rand(1) for _ in between]))


@pytest.mark.parametrize("verb", ["tunes", "proposes", "evaluates"])
def test_a_random_network_gives_the_same_whatever_the_global_seed(verb: str) -> None:
    network, found = Random().eval(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        data = pl.Data(train=Noisy(128, 1), val=Noisy(64, 2))
        method = pl.AOFP(scoring="sampled", batches=4, warmup=0, theta=10.0)
        session = pl.Session(network, data, method=method)
        result = WORK[verb](session)
        if verb == "tunes":
            result = session.state.now.event.fingerprint
        found.append(result)
    assert found[0] == found[1]


def test_attention_stays_fused_on_other_threads_while_one_is_watched() -> None:
    network, x = Random().eval(), torch.randn(2, 1, 12, 12)
    seen = beside(lambda: pl.trace(network, x), torch.backends.mha.get_fastpath_enabled)
    assert seen == {True} and torch.backends.mha.get_fastpath_enabled()


def test_a_lasso_silences_no_warning_of_another_thread() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3))
    twice = np.concatenate([rows, rows], axis=1)  # collinear, which is warned of
    gram = twice.T @ twice

    def warned() -> bool:
        try:
            warnings.warn("of the other thread", stacklevel=1)
        except UserWarning:
            return True
        return False

    def work() -> None:
        for _ in range(100):
            lasso.lars(gram, gram.sum(0))

    work()  # what is imported meanwhile has filters of its own
    assert beside(work, warned) == {True}
    assert warned()
