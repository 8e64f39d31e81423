"""Editing networks: `masked`, `cut`, `rebuild` and `with_channel_selectors`.

All of these return a new module and leave the given one unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunelab.errors import BadModel, IllegalPlan, InvalidValue
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.modules.channel_selector import select_channels
from prunelab.graph.modules.integers import set_integers
from prunelab.graph.modules.module_attributes import set_width
from prunelab.graph.modules.walk import tensors_by_name, walk
from prunelab.graph.surgery.closures import deep_copy
from prunelab.graph.surgery.held_tensors import checked_network, like, settle
from prunelab.values import WidthPlan
from prunelab.values.given import as_annotated


@as_annotated
def cut(model: nn.Module, graph: ChannelGraph, plan: WidthPlan) -> nn.Module:
    """A new plain module, of the same class, without the units that `plan` drops.

    Parameters
    ----------
    model
        The network; it stays as it is. Hooks, buffers, dtype, device, memory format, flags and
        tied parameters are preserved in the new one.
    graph
        Describes `model` (after earlier cuts: `graph.after(...)`).
    plan
        The units to keep.

    Raises `BadModel` when the network does not fit the graph or cannot be copied, `IllegalPlan`
    when the plan keeps units that it no longer has.
    """
    _check(model, graph, plan)
    return cut_to(model, graph, graph.alive(plan))


def cut_to(
    model: nn.Module, graph: ChannelGraph, alive: np.ndarray, *, share: bool = False
) -> nn.Module:
    """A copy of `model` that keeps the units in `alive`.

    Parameters
    ----------
    model, graph
        The network and its graph.
    alive
        Which units stay, as `ChannelGraph.alive` returns it [units + 1].
    share
        Share unchanged tensors with `model`; the copy must then not be written to.
    """
    small = copy_with(model, cut_tensors(model, graph, alive), share=share)
    for name, units in graph.bare.items():
        if not alive[units].all():
            set_width(small.get_submodule(name), int(alive[units].sum()))
    set_integers(small, {name: int(alive[units].sum()) for name, units in graph.edits.items()})
    return small


@as_annotated
def masked(model: nn.Module, graph: ChannelGraph, plan: WidthPlan) -> nn.Module:
    """A new module of unchanged shapes with the same outputs as that of `cut`.

    Parameters
    ----------
    model, graph, plan
        As for `cut`.

    The columns by which consumers read the dropped units are zeroed: this masks a unit after its
    BatchNorm and activation, which zeroing its own weights would not.
    """
    _check(model, graph, plan)
    return copy_with(model, masked_tensors(model, graph, ~graph.alive(plan)))


def zero_columns(model: nn.Module, graph: ChannelGraph, drop: Mapping[str, Iterable[int]]) -> None:
    """Mask the units in `drop` in `model` itself, by zeroing the columns that read them."""
    state = tensors_by_name(model)
    with torch.no_grad():
        for name, tensor in masked_tensors(model, graph, graph.gone(drop)).items():
            state[name].copy_(tensor)


def take_columns(
    model: nn.Module, other: nn.Module, graph: ChannelGraph, units: Mapping[str, Iterable[int]]
) -> None:
    """Undo `zero_columns` in `model` itself: the columns that read `units` are those of `other`."""
    state = tensors_by_name(model)
    with torch.no_grad():
        for name, tensor in masked_tensors(model, graph, graph.gone(units), other).items():
            state[name].copy_(tensor)


def masked_tensors(
    model: nn.Module, graph: ChannelGraph, gone: np.ndarray, other: nn.Module | None = None
) -> dict[str, Tensor]:
    """The parameters that read dropped units, with the columns of these units zeroed.

    `gone` marks the dropped units, as `ChannelGraph.gone` returns it [units + 1]. With `other`, a
    network of the same shapes, the columns are those that it has.
    """
    state = tensors_by_name(model)
    source = {} if other is None else tensors_by_name(other)
    lengths = {direction: (length, axis) for direction, length, axis in graph.norms}
    changed: dict[str, Tensor] = {}
    reads = [
        (key, layer.in_units)
        for layer in graph.layers
        if layer.dense
        for key in ((layer.weight, layer.in_axis), *layer.added)
    ]
    for (name, axis), units in reads:
        read = gone[graph.slots.get((name, axis), units)]
        if not read.any():
            continue
        columns = torch.from_numpy(np.flatnonzero(read))
        if name in lengths:
            length, own = lengths[name]
            if own == axis:  # of the lengths: a zero direction cannot be normalised
                name = length
            else:
                before = state[name].detach()
                after = _with(before, axis, columns, source.get(name))
                changed[length] = state[length].detach() * _norm(after, own) / _norm(before, own)
        changed[name] = _with(state[name].detach(), axis, columns, source.get(name))
    return changed


@as_annotated
def rebuild(model: nn.Module, plan: WidthPlan) -> nn.Module:
    """`model`, an unpruned instance of the traced architecture, cut to `plan`.

    The result has the shapes of the pruned network; its weights are those of `model`, cut.
    `model` stays as it is.
    """
    graph = plan.graph
    if not isinstance(graph, ChannelGraph):
        raise IllegalPlan("This plan does not come from a traced network; use WidthPlan.full.")
    return cut(model, graph, plan)


@as_annotated
def with_channel_selectors(
    model: nn.Module, graph: ChannelGraph, layers: Iterable[str] | None = None
) -> nn.Module:
    """A new module in which some convolutions select the channels they read; at first all of them.

    Parameters
    ----------
    model, graph
        The network and its graph.
    layers
        Names of plain `nn.Conv2d` layers. None takes those inside a branch that read the same
        channels as its shortcut or projection.

    Each becomes a `SelectingConv2d` with a group of its own, so that every method can prune the
    inputs of a branch while its shortcut keeps them. Trace the result again. The channels from
    which such a layer selects are then frozen, because it addresses them by index. This saves
    multiply-adds but copies the selected channels at every call (`cost` counts the bytes), so
    measure the latency. Raises `BadModel` where there is no such convolution, `InvalidValue` for a
    layer that cannot select channels.
    """
    check_fit(model, graph)
    made = copy_with(model, {})
    modules = dict(made.named_modules())
    if layers is None:
        summed = {maker for group in graph.groups if group.residual for maker in group.producers}
        inside = {maker for group in graph.groups for maker in group.producers} - summed
        stream = {reader for group in graph.groups if group.residual for reader in group.consumers}
        names = [
            layer.name
            for layer in graph.layers
            if layer.name in stream & inside and type(modules.get(layer.name)) is nn.Conv2d
        ]
    else:
        names = [graph.layer(name).name for name in layers]
    if not names:
        raise BadModel(
            "No convolution of this network reads a residual stream inside a branch, so there is "
            "nothing to select. Name the layers, or leave the channel selectors out."
        )
    for name in names:
        conv = modules.get(name)
        if type(conv) is not nn.Conv2d or conv.groups > 1 or graph.layer(name).computed:
            raise InvalidValue(
                f"{name} cannot select its channels: only a plain nn.Conv2d with groups=1 can, and "
                "with a weight of its own. Leave it out."
            )
        select_channels(conv)
    return made


def cut_tensors(model: nn.Module, graph: ChannelGraph, alive: np.ndarray) -> dict[str, Tensor]:
    """The parameters and buffers that change when only the units in `alive` stay, after the cut.

    `alive` is as `ChannelGraph.alive` returns it [units + 1].
    """
    state = tensors_by_name(model)
    taken: dict[str, list[tuple[int, Tensor]]] = {}
    for (name, axis), units in graph.slots.items():
        stays = alive[units]
        if not stays.all():
            taken.setdefault(name, []).append((axis, torch.from_numpy(np.flatnonzero(stays))))
    cuts = {name: _only(state[name].detach(), axes) for name, axes in taken.items()}
    for (
        direction,
        length,
        own,
    ) in graph.norms:  # the remaining entries of a direction keep their scale
        others = [(axis, at) for axis, at in taken.get(direction, []) if axis != own]
        if others:
            before = state[direction].detach()
            ratio = _norm(_only(before, others), own) / _norm(before, own)
            kept = [(axis, at) for axis, at in taken[direction] if axis == own]
            cuts[length] = _only(state[length].detach() * ratio, kept)
    return cuts


def _only(tensor: Tensor, axes: list[tuple[int, Tensor]]) -> Tensor:
    """`tensor` at the given positions of some axes; the axis that shrinks most, first."""
    for axis, positions in sorted(axes, key=lambda pair: len(pair[1]) / tensor.shape[pair[0]]):
        run = _run(positions, tensor.shape[axis]) if tensor.ndim == 2 else 1
        if run > 1:  # a linear layer after a flatten reads many features of each channel
            blocks = tensor.unflatten(axis, (-1, run))
            kept = (positions[::run] // run).to(tensor.device)
            tensor = blocks.index_select(axis, kept).flatten(axis, axis + 1)
        else:
            tensor = tensor.index_select(axis, positions.to(tensor.device))
    return tensor


def _run(positions: Tensor, size: int) -> int:
    """The length of the equal, aligned blocks that make up `positions` along an axis."""
    at = positions.numpy()
    breaks = np.flatnonzero(np.diff(at) != 1) + 1
    starts = at[np.concatenate([[0], breaks])]
    return int(np.gcd.reduce([size, len(at), *starts, *np.diff([0, *breaks])]))


def _with(tensor: Tensor, axis: int, positions: Tensor, other: Tensor | None) -> Tensor:
    """`tensor` with the entries of `other` (None: zeros) at these positions of an axis."""
    positions = positions.to(tensor.device)
    if other is None:
        return tensor.index_fill(axis, positions, 0.0)
    return tensor.index_copy(axis, positions, other.detach().index_select(axis, positions))


def _norm(direction: Tensor, axis: int) -> Tensor:
    """The norm of `direction` over every axis but one."""
    others = [other for other in range(direction.ndim) if other != axis]
    return torch.linalg.vector_norm(direction, dim=others, keepdim=True)


# ---------------------------------------------------------------- copies


def copy_with(model: nn.Module, tensors: Mapping[str, Tensor], *, share: bool = False) -> nn.Module:
    """A copy of `model` in which `tensors` replace the parameters and buffers of these names.

    Parameters
    ----------
    model
        The network.
    tensors
        New tensors by name; the replaced ones are never copied.
    share
        Share the other tensors with `model`; the copy must then not be written to.

    Raises `BadModel` for what is no network, or cannot be copied.
    """
    checked_network(model)
    memo: dict[int, object] = {}
    for name, old in tensors_by_name(model).items():
        if name in tensors:
            memo[id(old)] = like(old, tensors[name])
        elif share:
            memo[id(old)] = old
    try:
        with _Detached():
            made: nn.Module = deep_copy(model, memo)
    except Exception as error:
        raise BadModel(
            f"The network cannot be copied: {_uncopied(model)} ({type(error).__name__}: {error}). "
            "prunelab works on copies so that yours stays as it is. Make it where it is used, "
            "keep it outside the network, or give its class a __deepcopy__."
        ) from error
    own = {id(part) for _, part in _parts(model, not share)}
    if shared := next((name for name, part in _parts(made, not share) if id(part) in own), None):
        raise BadModel(
            f"A copy of the network would share {shared} with it (a __deepcopy__ of its own?); "
            "prunelab works on copies so that yours stays as it is. Let copy.deepcopy copy it."
        )
    settle(made, tensors)
    return made


class _Detached(TorchFunctionMode):
    """Lets `deepcopy` copy the tensors that it refuses, wherever a network keeps them.

    These are the results of computations, tensors of inference mode and some sparse ones. The
    copies are plain tensors without autograd's graph.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if not tensor.is_leaf or tensor.is_inference() or tensor.layout != torch.strided:
                memo[id(tensor)] = tensor.detach().clone()
                return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _uncopied(model: nn.Module) -> str:
    """Which attribute of which module `deepcopy` cannot copy."""
    modules = dict(model.named_modules())
    for name, module in modules.items():
        for key, value in vars(module).items():
            try:
                with _Detached():
                    copy.deepcopy(value, {id(other): other for other in modules.values()})
            except Exception:
                kind = type(value).__name__
                return f"{key} of {name or type(module).__name__}, a {kind}, has no copy"
    return f"{type(model).__name__} has no copy"


def _parts(model: nn.Module, tensors: bool) -> list[tuple[str, object]]:
    """The modules of a network and, with `tensors`, its parameters and buffers."""
    return [*walk(model), *(tensors_by_name(model).items() if tensors else ())]


def check_fit(model: nn.Module, graph: ChannelGraph) -> None:
    """Raise `BadModel` for what is no network, or one that the graph does not describe."""
    checked_network(model)
    state = tensors_by_name(model)
    for (name, axis), units in graph.slots.items():
        if name not in state or state[name].shape[axis] != len(units):
            found = tuple(state[name].shape) if name in state else "nothing of that name"
            raise BadModel(
                f"The network does not fit the graph: {name} should have {len(units)} entries "
                f"along axis {axis}, found {found}. Trace this network, or use graph.after(plan) "
                "for one that was cut."
            )


def _check(model: nn.Module, graph: ChannelGraph, plan: WidthPlan) -> None:
    check_fit(model, graph)
    graph.alive(plan)  # raises for a plan of another network
    for group in graph.groups:
        if missing := set(plan.kept[group.name]) - set(group.units):
            raise IllegalPlan(
                f"The plan keeps units {sorted(missing)[:8]} of {group.name}, which this network "
                "no longer has."
            )
