"""Layers solved while the images wait: as one pass a layer solves them, in two passes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import prunelab as pl
from prunelab.loops.batch import finish, run_batch
from prunelab.repair import fit as fitting
from prunelab.repair import front_to_back, layer_problem, least_squares
from prunelab.repair.dataflow import NotReplayable, Run
from prunelab.repair.fit import Fit
from prunelab.repair.least_squares import repairing
from prunelab.repair.recalibration import Traced


class Concat(nn.Module):
    """Branches that are concatenated, in-place activations, BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.c, self.d = nn.Conv2d(6, 4, 1), nn.Conv2d(10, 6, 3, padding=1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(x))
        x = torch.cat([self.act(self.b(x)), self.act(self.c(x))], 1)
        return self.fc(self.act(self.norm(self.d(x))).mean((2, 3)))


class Levels(nn.Module):
    """A head that runs on two levels, as a detector's; its second layer reads what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.out = nn.Conv2d(6, 2, 1)

    def head(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        x = torch.relu(self.two(torch.relu(self.two(x))))
        return self.out(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.a(x))
        y = torch.relu(self.b(x))
        return self.head(x), self.head(y)


class Projected(nn.Module):
    """A residual block whose projection is called after its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.b, self.side = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.b(torch.relu(self.a(x)))
        y += self.side(x)
        return self.head(torch.relu(y))


def images(count: int = 3, size: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(size, 2, 8, 8, dtype=torch.float64, generator=generator) for _ in range(count)
    ]


def pruned(net: type[nn.Module]) -> tuple[Traced, Traced]:
    """A network before and after every third unit of each group is dropped."""
    torch.manual_seed(0)
    model = net().double().eval()
    graph = pl.trace(model, images()[0])
    drop = {group.name: group.units[::3] for group in graph.groups if group.prunable}
    plan = pl.WidthPlan.full(graph).drop(drop)
    return Traced(model, graph), Traced(pl.cut(model, graph, plan), graph.after(plan))


def repaired(
    before: Traced, after: Traced, batches: Callable[[], Any] = images
) -> tuple[nn.Module, dict[str, Fit]]:
    small = Traced(copy.deepcopy(after.network), after.graph)
    return small.network, finish(repairing(small, before, batches, run_batch))


def refusing(*_: Any) -> Iterator[Any]:
    raise NotReplayable
    yield


@pytest.mark.parametrize("net", [Concat, Levels])
def test_waiting_images_solve_the_layers_that_a_pass_a_layer_solves(
    net: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = pruned(net)
    small, fits = repaired(before, after)
    monkeypatch.setattr(least_squares, "solving_in_order", refusing)
    oracle, wanted = repaired(before, after)
    assert set(fits) == set(wanted) and len(fits) >= 3
    for name, tensor in oracle.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], tensor, rtol=1e-9, atol=1e-9)
    assert all(fits[name].errors == pytest.approx(wanted[name].errors) for name in fits)


@pytest.mark.parametrize("net", [Concat, Levels, Projected])
@pytest.mark.parametrize("bytes_", [0, 20_000])
def test_images_that_carry_too_much_start_anew_and_nothing_else_changes(
    net: type[nn.Module], bytes_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = pruned(net)
    wanted, _ = repaired(before, after)
    monkeypatch.setattr(front_to_back, "CARRIED", bytes_)
    small, _ = repaired(before, after)
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(small.state_dict()[name], tensor), name


def test_every_operation_runs_once_on_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = pruned(Concat)
    ran: Counter[tuple[int, int]] = Counter()
    runs: list[Run] = []
    run = Run._run

    def counting(self: Run, index: int) -> None:
        if self not in runs:
            runs.append(self)
        ran[runs.index(self), index] += 1
        run(self, index)

    monkeypatch.setattr(Run, "_run", counting)
    loaded: list[int] = []

    def batches() -> Iterator[Tensor]:
        for number, batch in enumerate(images()):
            loaded.append(number)
            yield batch

    _, fits = repaired(before, after, batches)
    assert len(fits) == 4
    parts = 2 * len(images())  # solved on, held out
    assert len(runs) == 2 * parts  # of two networks; the first of a shape is its own check
    assert set(ran.values()) == {1}
    assert loaded == [0, 1, 2]


class Pretending(Concat):
    """Computes something else on tensors without data."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * (2.0 if isinstance(x, FakeTensor) else 1.0))


def test_a_recording_of_other_outputs_is_found_out_and_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, after = pruned(Pretending)
    small, fits = repaired(before, after)
    monkeypatch.setattr(least_squares, "solving_in_order", refusing)
    oracle, wanted = repaired(before, after)
    assert set(fits) == set(wanted)
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(small.state_dict()[name], tensor), name


def test_a_layer_takes_more_images_only_until_it_is_determined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layer_problem, "IMAGES", 16)
    before, after = pruned(Concat)
    batches = lambda: images(12)  # noqa: E731
    small, fits = repaired(before, after, batches)
    # 64 positions of 12 images of each 16; fc has one row an image and 4 entries, so it needs 2
    assert {name: fit.rows for name, fit in fits.items()} == {
        "b": 12 * 64, "c": 12 * 64, "d": 12 * 64, "fc": 2 * 12,
    }  # fmt: skip
    monkeypatch.setattr(least_squares, "solving_in_order", refusing)
    oracle, wanted = repaired(before, after, batches)
    assert {name: fit.rows for name, fit in wanted.items()} == {
        name: fit.rows for name, fit in fits.items()
    }
    for name, tensor in oracle.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], tensor, rtol=1e-9, atol=1e-9)


def test_batches_of_other_shapes_wait_beside_each_other() -> None:
    before, after = pruned(Concat)
    whole = torch.cat(images())
    small, _ = repaired(before, after, lambda: [whole])
    parts, _ = repaired(before, after, lambda: [whole[:4], whole[4:36], whole[36:]])
    for name, tensor in small.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=1e-9, atol=1e-9)


def test_what_the_code_caches_for_a_shape_holds_data_afterwards() -> None:
    @cache
    def grid(size: int) -> Tensor:
        return torch.linspace(0, 1, size, dtype=torch.float64)

    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.c = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x)) + grid(x.shape[-1])
            return self.c(torch.relu(self.b(x)))

    before, after = pruned(Places)
    grid.cache_clear()
    _, fits = repaired(before, after)
    assert len(fits) == 2
    assert bool(before.network(images()[0]).isfinite().all())


@pytest.mark.parametrize("refused", [False, True], ids=["waiting", "a pass a layer"])
def test_a_projection_aims_at_its_own_output_and_the_branch_at_the_sum(
    refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channel Pruning: the branch makes good what the shortcut lost, not the other way about."""
    monkeypatch.setattr(fitting, "RIDGES", (0.0,))
    if refused:
        monkeypatch.setattr(least_squares, "solving_in_order", refusing)
    before, after = pruned(Projected)
    small, fits = repaired(before, after)
    assert {name for name, fit in fits.items() if fit.choice == "lstsq"} >= {"side", "b"}
    net: Any = before.network
    got: Any = small
    keep = [i for i in range(4) if i % 3]
    x = torch.cat([x[torch.arange(len(x)) % 4 != 3] for x in images()])
    with torch.no_grad():
        full, less = torch.relu(net.stem(x)), torch.relu(got.stem(x))
        hidden = torch.relu(got.a(less))
        own = net.side(full)[:, keep]
        total = net.b(torch.relu(net.a(full)))[:, keep] + own - got.side(less)
        for layer, read, aim in ((got.side, less, own), (got.b, hidden, total)):
            size = layer.kernel_size[0]
            rows = nn.functional.unfold(read, size, padding=size // 2).transpose(1, 2).flatten(0, 1)
            rows = torch.cat([rows, torch.ones(len(rows), 1)], 1).numpy()
            best, *_ = np.linalg.lstsq(rows, aim.flatten(2).transpose(1, 2).flatten(0, 1).numpy())
            assert np.allclose(layer.weight.detach().flatten(1).T, best[:-1], atol=1e-7)
            assert np.allclose(layer.bias.detach(), best[-1], atol=1e-7)
