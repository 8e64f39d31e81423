"""Measuring and proposing leave everything as it was, whatever the method: bit by bit.

The user's network with its attributes, hooks and their objects; the session's; the random states;
and what the process shares with other threads, which is watched from one of them all the time.
"""

from __future__ import annotations

import random
import threading
import warnings
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from faults import bits, process, seen
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl
from prunelab.methods import METHODS
from prunelab.methods.lasso import _Inside


class Counts:
    """A hook with a state of its own."""

    def __init__(self) -> None:
        self.calls, self.kept = 0, [np.arange(3), {"a": torch.ones(2)}]

    def __call__(self, *_: Any) -> None:
        self.calls += 1

    def method(self, *_: Any) -> None:
        self.kept.append(self.calls)


class Odd(nn.Module):
    """Dropout, BatchNorm in training mode, a module used twice, hooks, attributes that change."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.again = self.twice
        self.dropout = nn.Dropout2d(0.2)
        self.wide = nn.Conv2d(8, 12, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(12, momentum=None)
        self.fc = nn.Linear(12, 4)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.log, self.memo = [1, [2]], {"a": {"b": [3]}}
        self.hook = Counts()
        self.wide.register_forward_hook(self.hook)
        self.fc.register_forward_pre_hook(self.hook.method)
        self.bn.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.log.append(len(x))
        self.memo["a"]["b"].append(0)
        if self.training:
            self.steps += 1
        x = F.relu(self.bn(self.stem(x)))
        x = self.twice(F.relu(self.again(x)))
        x = F.dropout(F.relu(x), 0.1, self.training)
        x = self.dropout(F.relu(self.bn2(self.wide(x))))
        return self.fc(x.mean((2, 3)))


def own(value: Any, depth: int = 0) -> Any:
    """A value all the way down, with the identity of what can change."""
    if isinstance(value, Tensor):
        return id(value), value.detach().numpy().tobytes(), value.requires_grad, value.grad is None
    if isinstance(value, np.ndarray):
        return id(value), value.tobytes()
    if isinstance(value, nn.Module):
        return id(value), own(vars(value), depth + 1)
    if isinstance(value, dict):
        return id(value), {key: own(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return id(value), [own(item, depth + 1) for item in value]
    if hasattr(value, "__dict__") and not isinstance(value, type) and depth < 20:
        inner = getattr(value, "__self__", None)  # a bound method
        return id(inner or value), own(vars(inner or value), depth + 1)
    return repr(value)


def shared() -> tuple[Any, ...]:
    """What a change on one thread would change on others."""
    return (
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(), torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu"), str(torch.get_default_device()), torch.initial_seed(),
        tuple(str(one) for one in warnings.filters if type(one[1]) is not _Inside),
        random.getstate()[1][:3],
        torch.get_rng_state().numpy().tobytes(),
        len(nn.modules.module._global_forward_hooks), torch._C._len_torch_dispatch_stack(),
    )  # fmt: skip


def differing(found: set[Any]) -> list[Any]:
    """The parts of `shared` that had several values."""
    return [values for values in map(set, zip(*found, strict=True)) if len(values) > 1]


class Watch:
    """Watches from another thread what threads share; `found` are the states that it saw."""

    def __enter__(self) -> Watch:
        self.found: set[Any] = {shared()}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._end.wait(0.002):
            self.found.add(shared())

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def images(channels: int, size: int, classes: int) -> pl.Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, channels, size, size, generator=generator)
    y = torch.randint(0, classes, (32,), generator=generator)
    batches = [(x[:16], y[:16]), (x[16:], y[16:])]
    return pl.Data(train=batches, val=batches, test=batches)


def quick(name: str) -> Any:
    """The method `name` on few images."""
    kind = METHODS[name]
    given = {"images": 32} if any(field.name == "images" for field in fields(kind)) else {}
    return kind(**given)


def pure(model: nn.Module, data: pl.Data, method: Any) -> None:
    """Propose twice by a method, and ask all that only measures."""
    before, around = own(model), process()
    with Watch() as watch:
        session = pl.Session(model, data, method, repair=None)
        state = seen(session)
        session.propose()
        after = seen(session)
        assert after[2:6] == state[2:6], "the session's own network"
        if session.state.pending is not None:
            session.reject()
            session.propose(target_macs=0.7)
    assert own(model) == before
    assert process() == around
    assert differing(watch.found) == []


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What is imported at the first use has warning filters of its own."""
    session = pl.Session(Odd(), images(1, 12, 4), quick("channel_pruning"), repair=None)
    session.propose()
    pl.latency(session.model, torch.ones(1, 1, 12, 12))


SAMPLED = pl.AOFP(scoring="sampled", batches=4, warmup=0, theta=10.0)


@pytest.mark.parametrize("name", [*METHODS, "sampled"])
def test_a_method_leaves_an_odd_network_alone(name: str) -> None:
    pure(Odd().train(), images(1, 12, 4), SAMPLED if name == "sampled" else quick(name))


@pytest.mark.parametrize("network", ["vgg8", "resnet20", "mobilenet"])
@pytest.mark.parametrize("name", ["thinet", "magnitude", "aofp"])
def test_a_method_leaves_the_zoo_alone(network: str, name: str) -> None:
    pure(pl.zoo.load(network), images(1, 28, 10), quick(name))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["vgg8", "resnet20", "mobilenet"])
@pytest.mark.parametrize("name", [*METHODS, "sampled"])
def test_every_method_leaves_the_zoo_alone(network: str, name: str) -> None:
    method = SAMPLED if name == "sampled" else quick(name)
    pure(pl.zoo.load(network).train(), images(1, 28, 10), method)


def test_what_only_measures_leaves_an_odd_network_alone() -> None:
    model, data = Odd().train(), images(1, 12, 4)
    before, around = own(model), process()
    with Watch() as watch:
        graph = pl.trace(model, data.train[0][0][:2])
        pl.measure(model, graph, data.train, kinds=("contribution", "gradient", "curvature"))
        pl.cost(model, data.train[0][0][:2])
        pl.latency(model, data.train[0][0][:2])
        pl.cut(model, graph, pl.WidthPlan.full(graph))
        pl.masked(model, graph, pl.WidthPlan.full(graph))
        session = pl.Session(model, data, graph=graph)
        state = seen(session)
        session.measure()
        session.foresee({"wide": [0]})
        session.sensitivity((0.5,), images=16)
        session.evaluate()
        session.latency()
        session.step_time()
        session.compare_move({"wide": [0]}, images=16)
        session.what_if({"wide": [0]})
        session.certify({"wide": [0]}, nodes=10)
    assert seen(session) == state
    assert own(model) == before
    assert process() == around
    assert differing(watch.found) == []
    assert bits(session.original()) == bits(model)
