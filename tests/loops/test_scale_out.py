"""What the page of many GPUs counts is what processes add up."""

from __future__ import annotations

import pytest
from scripts import load

scale_out = load("scale_out")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "many"), [("mobilenet", 2), pytest.param("resnet20", 4, marks=pytest.mark.slow)]
)
def test_processes_add_up_the_bytes_that_are_counted(name: str, many: int) -> None:
    want = {what: list(found) for what, found in scale_out.counted(name).items()}
    every = scale_out.processes(name, many)
    assert every == [want] * many


def test_a_ring_sends_nothing_on_one_gpu_and_all_but_a_share_on_many() -> None:
    machine = scale_out.Machine(inside=2e9, across=1e9, latency=0.5)
    assert machine.all_reduce(1e9, 1, 1) == 0
    assert machine.all_reduce(1e9, 0, 4) == 0.75
    assert machine.all_reduce(1e9, 2, 16) == 1.875 + 4
