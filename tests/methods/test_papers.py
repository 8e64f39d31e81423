"""The papers' networks have the published costs; Channel Pruning handles many branches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scripts import load
from torch import Tensor, nn
from torch.nn import functional as F
from toys import stripes

import prunelab as pl
from prunelab.ledger.events import Repaired
from prunelab.methods.layerwise import carry_of, next_layer

papers = load("papers")
QUICK = [  # the widths of the others are found or prescribed in the same ways
    "ThiNet-Conv",
    "ThiNet-GAP",
    "ThiNet-Tiny",
    "Channel Pruning VGG-16 5x, as released",
    "Channel Pruning ResNet-50 2x, as released",
    "ResNet-50",
    "Group Fisher ResNet-50 of mmrazor, by memory",
]


@pytest.fixture(scope="module")
def traced() -> Iterator[Callable[[Any], tuple[nn.Module, pl.ChannelGraph]]]:
    """Makes and traces each of the networks once."""

    @cache
    def made(network: Callable[[], nn.Module]) -> tuple[nn.Module, pl.ChannelGraph]:
        model = network().eval()
        return model, pl.trace(model, papers.X)

    yield made
    made.cache_clear()


@pytest.mark.parametrize("name", QUICK)
def test_a_network_of_published_widths_has_the_published_cost(name: str, traced: Any) -> None:
    paper = next(paper for paper in papers.PAPERS if paper.name == name)
    model, graph = traced(paper.network)
    count = papers.counted(model, graph, papers.planned(graph, paper.widths))
    told = {figure.what: (figure.told(count), figure.published) for figure in paper.figures}
    odd = {figure.what for figure in paper.figures if not figure.same(count)}
    assert odd == {figure.what for figure in paper.figures if figure.differs}, told


def allotted(method: Any, graph: pl.ChannelGraph, target: float | None = None) -> pl.WidthPlan:
    """The widths that a method asks for layer by layer, without its search for which units."""
    plan, carry = pl.WidthPlan.full(graph), {}
    while True:
        context: Any = SimpleNamespace(
            graph=graph.after(plan),
            plan=plan,
            carry=carry,
            target_macs=target,
            cost=lambda plan: pl.cost(graph, plan),
        )
        if (found := next_layer(method, context)) is None:
            return plan
        group, keep = found
        plan, carry = plan.drop({group.name: group.units[keep:]}), carry_of(method, group)


@pytest.mark.parametrize("percent", [70, 50, 30])
def test_one_ratio_gives_the_widths_of_thinets_resnet50(percent: int, traced: Any) -> None:
    """As released: two layers inside each block lose it, streams and the stem nothing."""
    paper = next(p for p in papers.PAPERS if p.name == f"ThiNet-{percent} (ResNet-50)")
    model, graph = traced(paper.network)
    plan = allotted(pl.ThiNet(1 - percent / 100), graph)
    assert plan == papers.planned(graph, paper.widths)
    flops, parameters = paper.figures
    count = papers.counted(model, graph, plan)
    assert flops.told(count) == {70: "4.88", 50: "3.41", 30: "2.19"}[percent]
    assert parameters.same(count)


@pytest.mark.parametrize("times", [2, 4, 5])
def test_channel_prunings_schedule_comes_to_the_published_speed_up(times: int, traced: Any) -> None:
    name = f"Channel Pruning VGG-16 {times}x, by its schedule"
    paper = next(paper for paper in papers.PAPERS if paper.name == name)
    model, graph = traced(paper.search.network)
    plan = allotted(paper.search.method(model), graph, paper.search.target)
    (figure,) = paper.figures
    assert figure.same(papers.counted(model, graph, plan))
    kept = [width / graph[name].width for name, width in plan.widths.items()][:13]
    assert kept[10:] == [1, 1, 1]
    shallow, deep = kept[:7], kept[7:10]
    assert max(shallow) - min(shallow) <= 1 / 64  # a unit of the narrowest layer
    assert sum(deep) / 3 == pytest.approx(1.5 * sum(shallow) / 7, rel=0.02)


# ---------------------------------------------------------------- many branches


@pytest.fixture(scope="module")
def xception() -> nn.Module:
    """timm's aligned Xception, narrow: separable layers in residual branches and projections."""
    aligned = pytest.importorskip("timm.models.xception_aligned")
    blocks = [
        {"in_chs": 64, "out_chs": 48, "stride": 2},
        {"in_chs": 48, "out_chs": (48, 64, 64), "stride": 2},
        {
            "in_chs": 64,
            "out_chs": (64, 80, 96),
            "stride": 1,
            "no_skip": True,
            "start_with_relu": False,
        },
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = aligned.XceptionAligned(blocks, num_classes=4)
    return papers.fitted(model, images(32, 2)[0])


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Stripes in three colours, large enough for four halvings."""
    x, labels = stripes(count, seed)
    return F.interpolate(x, 24, mode="bilinear").repeat(1, 3, 1, 1), labels


@pytest.mark.long
@pytest.mark.parametrize("groups", ["internal", "all"])
def test_channel_pruning_on_an_xception_is_exact_move_by_move(
    xception: nn.Module, groups: Any
) -> None:
    data = pl.Data(train=[images(64, 0)], val=[images(32, 1)])
    method = pl.ChannelPruning(pruning_ratio=0.4, groups=groups, images=64)
    session = pl.Session(xception, data, method, repair="lstsq")
    first, seen = session.graph, []
    x = images(4, 3)[0].double()
    for _ in range(6):
        move = session.propose()
        (name,) = move.drop
        seen.append(name)
        graph, before = session.graph, session.model
        plan = session.plan.drop(move.drop)
        double = pl.masked(before, graph, session.plan).double()  # a copy
        with torch.no_grad():
            want = pl.masked(double, graph, plan)(x)
            torch.testing.assert_close(pl.cut(double, graph, plan)(x), want)
        session.approve()
        assert isinstance(session.ledger[-1], Repaired)
        assert session.state.widths()[name] == int(first[name].width * 0.6 + 1e-9)
    assert (groups == "all") == any(first[name].residual for name in seen)
    names = [group.name for group in first.groups]
    assert [names.index(name) for name in seen] == sorted(names.index(name) for name in seen)


@pytest.mark.long
def test_channel_pruning_takes_an_xception_to_a_target(xception: nn.Module) -> None:
    data = pl.Data(train=[images(64, seed) for seed in (0, *range(4, 11))], val=[images(32, 1)])
    x, off = images(32, 1)[0], {}
    for repair in ("lstsq", None):
        session = pl.Session(xception, data, pl.ChannelPruning(images=64), repair=repair)
        session.run(target_macs=0.6)
        assert session.state.now.cost.macs <= 0.6 * session.state.base.cost.macs
        with torch.no_grad():
            want = xception(x)
            off[repair] = float((session.model(x) - want).norm() / want.norm())
    assert off["lstsq"] < 0.9 * off[None]
