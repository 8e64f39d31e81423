"""Random networks and random legal plans: masked and cut networks are equal."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import BLOCKS, HEADS, Block, Network, Recipe, build
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import prunelab as pl

KINDS = sorted(BLOCKS)
WHOLE = {"gated", "shuffled grouped", "sliced"}  # must stay, or is one unit

recipes = st.builds(
    Recipe,
    blocks=st.lists(
        st.builds(Block, kind=st.sampled_from(KINDS), width=st.sampled_from((4, 6, 8))),
        min_size=1,
        max_size=6,
    ).map(tuple),
    head=st.sampled_from(HEADS),
    norm=st.sampled_from(("batch", "batch", "batch", "group", "none")),
    inputs=st.sampled_from((1, 1, 2)),
)
seeds = st.integers(0, 10**6)


def random_plan(graph: pl.ChannelGraph, seed: int) -> pl.WidthPlan:
    """Of each prunable group nothing, some units, or all but one."""
    rng = np.random.default_rng(seed)
    drop = {}
    for group in graph.groups:
        if group.prunable:
            most = group.width - 1
            count = int(rng.choice([0, most, rng.integers(0, most + 1)]))
            drop[group.name] = rng.choice(group.width, count, replace=False)
    return pl.WidthPlan.full(graph).drop(drop)


def outputs(model: Network, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return tree_leaves(model(*inputs))


def counted(model: Network, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-adds for one input, by torch's own count."""
    with FlopCounterMode(display=False) as counter:
        outputs(model, inputs)
    return counter.get_total_flops() // 2 // len(inputs[0])


def check(recipe: Recipe, seed: int) -> None:
    model, inputs = build(recipe, seed)
    before = copy.deepcopy(model.state_dict())
    graph = pl.trace(model, inputs)
    plan = random_plan(graph, seed)
    small, same = pl.cut(model, graph, plan), pl.masked(model, graph, plan)

    # cutting is masking
    for got, want in zip(outputs(small, inputs), outputs(same, inputs), strict=True):
        assert got.shape == want.shape
        assert float((got - want).norm()) <= 1e-10 * float(want.norm())

    # the given network is as it was
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name

    # a plan costs what the cut network costs
    cost = pl.cost(graph, plan)
    assert cost.macs == counted(small, inputs)
    assert cost.params == sum(parameter.numel() for parameter in small.parameters())

    # a fresh network takes the shapes
    fresh = pl.rebuild(build(recipe, seed + 1)[0], plan)
    assert shapes(fresh) == shapes(small)

    # an unbroken chain of meetings leads from any layer of a group to any other
    for group in graph.groups:
        at = group.producers[0]
        for step in graph.explain(at, group.producers[-1]).steps:
            at = step.b if at == step.a else step.a
        assert at == group.producers[-1]

    # what is cut can be trained
    leaves: list[Any] = tree_leaves(small.train()(*inputs))
    sum(leaf.sum() for leaf in leaves).backward()


def shapes(model: Network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", sorted({*KINDS} - WHOLE))
def test_every_kind_of_block_can_be_pruned(kind: str) -> None:
    """So that the properties below say something about each."""
    blocks = (Block("plain", 8), Block(kind, 8), Block("plain", 8))
    graph = pl.trace(*build(Recipe(blocks)))
    reasons = {group.why for group in graph.groups if group.width > 1}
    assert reasons == {"", "it is an output of the network"}
    inside = [group for group in graph.groups if any("blocks.1" in p for p in group.producers)]
    assert all(group.prunable for group in inside)


@pytest.mark.long
@settings(max_examples=250, deadline=None, derandomize=True)
@given(recipes, seeds)
def test_random_networks(recipe: Recipe, seed: int) -> None:
    check(recipe, seed)


@pytest.mark.thorough
@settings(max_examples=4000, deadline=None, derandomize=True)
@given(recipes, seeds)
def test_thousands_of_random_networks(recipe: Recipe, seed: int) -> None:
    check(recipe, seed)
