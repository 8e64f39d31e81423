"""What work on one thread does to others: nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunelab.graph.probe_runs import NewInDouble, in_double


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
