"""`widened`: a network with more channels and the same outputs; the inverse of a cut."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.errors import IllegalPlan, InvalidValue
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph, ChannelGroup
from prunelab.graph.modules.integers import set_integers
from prunelab.graph.modules.module_attributes import set_width
from prunelab.graph.surgery.editing import check_fit, copy_with
from prunelab.values.given import as_annotated

WIDEST = 1 << 20  # units of a group
NOISE = 0.1  # as a share of a filter's standard deviation


@as_annotated
def widened(
    model: nn.Module,
    graph: ChannelGraph,
    widen: float = 1.5,
    *,
    groups: Iterable[str] | None = None,
    noise: float = NOISE,
    seed: int = 0,
) -> nn.Module:
    """A new module, of the same class, with `widen` times as many units in `groups`.

    Units chosen at random are duplicated in place, and the weights that read a unit are divided
    among its copies, so that the outputs stay the same (Chen, Goodfellow, Shlens, "Net2Net",
    ICLR 2016).

    Parameters
    ----------
    model, graph
        The network, which stays as it is, and its graph.
    widen
        The factor, at least 1.
    groups
        Names of the groups to widen (None: all prunable ones). Groups read by a weight that is
        computed from others (weight norm) stay as they are.
    noise
        Added to each copied filter, times the filter's standard deviation, because equal copies
        stay equal in training. 0 keeps the outputs exactly.
    seed
        Of the choice of units and of the noise.

    Trace the result again: its units have new numbers. Raises `InvalidValue` for factors below 1
    or negative noise, `IllegalPlan` for a group that is frozen and so cannot be widened.
    """
    if not 1 <= widen < float("inf") or not 0 <= noise < float("inf"):
        raise InvalidValue(
            f"widen is a factor of at least 1 and noise a share of at least 0, not {widen!r} and "
            f"{noise!r}."
        )
    check_fit(model, graph)
    if widen * max((group.width for group in graph.groups), default=1) > WIDEST:
        raise InvalidValue(
            f"widen={widen:g} would give a group more than {WIDEST:,} units. Give less."
        )
    rng = np.random.default_rng(seed)
    copies = np.ones(graph.units + 1, dtype=np.int64)  # the last entry is for FIXED
    for group in _chosen(graph, groups):
        alive = group.first + np.asarray(group.units, dtype=np.int64)
        copies[alive] = _copy_counts(len(alive), widen, group.step, rng)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    reads = {(layer.weight, layer.in_axis) for layer in graph.layers if layer.dense}
    tensors: dict[str, Tensor] = {}
    for (name, axis), units in graph.slots.items():
        if (copies[units] == 1).all():
            continue
        tensor = tensors.get(name, state[name].detach())
        at = torch.from_numpy(_repeated(units, copies)).to(tensor.device)
        tensor = tensor.index_select(axis, at)
        if (name, axis) in reads:
            shares = torch.from_numpy(1 / copies[units]).to(tensor)[at]
            tensor = tensor * shares.view(-1, *([1] * (tensor.ndim - 1 - axis)))
        tensors[name] = tensor
    _add_noise(graph, tensors, copies, noise, seed)
    made = copy_with(model, tensors)
    for name, units in graph.bare.items():
        if (copies[units] > 1).any():
            set_width(made.get_submodule(name), int(copies[units].sum()))
    set_integers(made, {name: int(copies[units].sum()) for name, units in graph.edits.items()})
    return made


def _chosen(graph: ChannelGraph, names: Iterable[str] | None) -> list[ChannelGroup]:
    """The groups to widen."""
    groups = [g for g in graph.groups if g.prunable] if names is None else [graph[n] for n in names]
    for group in groups:
        if not group.prunable:
            raise IllegalPlan(f"{group.name} cannot be widened: {group.why}. Leave it out.")
    computed = {layer.name for layer in graph.layers if layer.computed}
    return [g for g in groups if not computed & {*g.producers, *g.consumers}]


def _copy_counts(width: int, widen: float, step: int, rng: np.random.Generator) -> np.ndarray:
    """The number of copies of each unit after widening [width]."""
    goal = ceil(width * widen / step - 1e-9) * step
    copies = np.full(width, goal // width)
    copies[rng.choice(width, size=goal % width, replace=False)] += 1
    return copies


def _repeated(units: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """The old position that each new position copies; runs of a unit are repeated in place.

    In place, so that concatenations, flattened maps and equal parts keep their order.
    """
    starts = np.flatnonzero(np.diff(units, prepend=units[:1] - 1))
    runs = np.split(np.arange(len(units)), starts[1:])
    return np.concatenate([np.tile(run, copies[units[run[0]]]) for run in runs])


def _add_noise(
    graph: ChannelGraph, tensors: dict[str, Tensor], copies: np.ndarray, noise: float, seed: int
) -> None:
    """Add noise to the copied filters of every producer in `tensors`."""
    generator = torch.Generator().manual_seed(seed)
    for layer in graph.layers:
        units = layer.out_units
        moved = copies[units] > 1
        if not noise or layer.weight not in tensors or not moved[units != FIXED].any():
            continue
        weight = tensors[layer.weight]
        if not weight.is_floating_point():
            continue  # a channel selector's indices
        axis = (1 if layer.dense else 0) if layer.transposed else 0
        if weight.shape[axis] != int(copies[units].sum()):
            continue  # a grouped transposed convolution has its filters along two axes
        rows = torch.from_numpy(np.flatnonzero(moved[_repeated(units, copies)]))
        some = weight.index_select(axis, rows.to(weight.device))
        own = [other for other in range(some.ndim) if other != axis]
        scale = some.std(own, keepdim=True, correction=0)
        drawn = torch.randn(some.shape, generator=generator).to(some)
        tensors[layer.weight] = weight.index_copy(
            axis, rows.to(weight.device), some + noise * scale * drawn
        )
