"""Surgeon: the very sequence of removals of a plain search that computes everything anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

import prunelab as pl
from prunelab.cost.counting import cost
from prunelab.evidence import patch_moments
from prunelab.evidence.output_fisher import Root
from prunelab.methods import refit, surgeon
from prunelab.methods.refit import Inverse

Array = np.ndarray


class Plain:
    """`RefitProblem` by definition: the whole inverse is changed, every price computed anew."""

    def __init__(
        self,
        inverse: Inverse,
        kernel: Array,
        entries: Mapping[int, Array],
        outputs: Array,
        energy: float,
        metric: Array | Root | None,
    ) -> None:
        self.inverse = inverse.rows(torch.arange(kernel.shape[1])).numpy()
        self.entries, self.outputs, self.energy = dict(entries), outputs, energy
        self.metric = metric.whole if isinstance(metric, Root) else metric
        self.kernel = kernel.copy()

    def costs(self, units: Array) -> Array:
        found = []
        for unit in units.tolist():
            own = self.entries[unit]
            weights = self.kernel[:, own]
            block = np.linalg.inv(self.inverse[np.ix_(own, own)])
            found.append(np.sum(block * (weights.T @ self.metric @ weights)))
        return np.array(found)

    def remove(self, unit: int) -> None:
        own = self.entries.pop(unit)
        rows = self.inverse[own]
        gain = np.linalg.solve(rows[:, own], rows)
        self.kernel -= self.kernel[:, own] @ gain
        self.inverse -= rows.T @ gain

    def remove_outputs(self, unit: int) -> None:
        keep = self.outputs != unit
        self.kernel, self.metric = self.kernel[keep], self.metric[np.ix_(keep, keep)]
        self.outputs = self.outputs[keep]


class PlainSavings:
    """`Savings` by definition: the cost of every plan with one unit less."""

    def __init__(self, graph: Any, plan: pl.WidthPlan, kind: str) -> None:
        self.graph, self.plan = graph, plan
        self.start = cost(graph, plan).macs

    @property
    def dropped(self) -> int:
        return self.start - cost(self.graph, self.plan).macs

    @property
    def each(self) -> Array:
        now, found = cost(self.graph, self.plan).macs, np.zeros(self.graph.units)
        for group in self.graph.groups:  # units of a group that stay are alike in these networks
            units = self.plan.kept[group.name]
            if group.prunable and len(units) > 1:
                less = self.plan.drop({group.name: units[:1]})
                found[group.first + np.asarray(units)] = now - cost(self.graph, less).macs
        return found

    def drop(self, number: int) -> None:
        group = next(g for g in self.graph.groups if g.span.start <= number < g.span.stop)
        self.plan = self.plan.drop({group.name: [number - group.first]})


def fashion(name: str) -> tuple[torch.nn.Module, pl.Data]:
    return pl.zoo.load(name), pl.data.load("fashion", subset=True)


def noise() -> tuple[torch.nn.Module, pl.Data]:
    batches = [(torch.randn(16, 3, 32, 32), torch.arange(16) % 10) for _ in range(3)]
    return resnet18(num_classes=10).eval(), pl.Data(batches, batches)


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "step"),
    [
        (lambda: fashion("resnet20"), 0.4),
        (lambda: fashion("mobilenet"), 0.3),
        (lambda: fashion("vgg8"), 0.2),
        pytest.param(noise, 0.05, marks=pytest.mark.slow),
    ],
    ids=["resnet20", "mobilenet", "vgg8", "resnet18"],
)
def test_units_go_in_the_order_of_a_search_that_computes_everything_anew(
    make: Callable[[], tuple[torch.nn.Module, pl.Data]],
    step: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data = make()
    orders: list[list[int]] = []
    remove = surgeon.RefitState._remove

    def spied(state: surgeon.RefitState, group: Any, number: int) -> None:
        orders[-1].append(number)
        remove(state, group, number)

    monkeypatch.setattr(surgeon.RefitState, "_remove", spied)
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(refit, "RefitProblem", Plain)
            monkeypatch.setattr(surgeon, "Savings", PlainSavings)
            monkeypatch.setattr(patch_moments, "_few", lambda rows, entries: False)
        orders.append([])
        session = pl.Session(model, data, pl.Surgeon(step=step, images=48), repair=None)
        assert session.propose() is not None
    fast, slow = orders
    assert len(fast) > 20
    assert fast == slow
