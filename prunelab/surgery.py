"""Editing networks: `masked`, `cut` and `rebuild`, the only code that does.

All three return a new module and leave the given one as it is. May import values, channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.channels import ChannelGraph
from prunelab.errors import BadModel, IllegalPlan
from prunelab.values import WidthPlan, units_of


def cut(model: nn.Module, graph: ChannelGraph, plan: WidthPlan) -> nn.Module:
    """A new plain module, of the same class, without the units that `plan` drops.

    `graph` describes `model` (after earlier cuts: `graph.after(...)`); hooks, buffers, dtype,
    device, memory format, flags and tied parameters survive. Raises `BadModel` when the network
    does not fit the graph, `IllegalPlan` when the plan keeps units that it no longer has.
    """
    _check(model, graph, plan)
    alive = graph.alive(plan)
    small = copy.deepcopy(model)
    state = dict(_tensors(small))
    cuts: dict[str, Tensor] = {}
    for (name, axis), units in graph.slots.items():
        stays = alive[units]
        if stays.all():
            continue
        positions = torch.from_numpy(np.flatnonzero(stays))
        tensor = cuts.get(name, state[name])
        cuts[name] = tensor.detach().index_select(axis, positions.to(tensor.device))
    replace_tensors(small, cuts)
    return small


def masked(model: nn.Module, graph: ChannelGraph, plan: WidthPlan) -> nn.Module:
    """A new module of unchanged shapes with the same outputs as `cut` gives.

    The columns through which consumers read the dropped units are zeroed: that masks a unit
    behind its BatchNorm and activation, which zeroing its own weights would not.
    """
    _check(model, graph, plan)
    same = copy.deepcopy(model)
    silence(same, graph, {g.name: set(g.units) - set(plan.kept[g.name]) for g in graph.groups})
    return same


def silence(model: nn.Module, graph: ChannelGraph, drop: Mapping[str, Iterable[int]]) -> None:
    """Mask these units in `model` itself: zero the columns through which consumers read them."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, (axis, columns) in columns_read(graph, drop).items():
            weight = parameters[name]
            weight.index_fill_(axis, columns.to(weight.device), 0.0)


def columns_read(
    graph: ChannelGraph, drop: Mapping[str, Iterable[int]]
) -> dict[str, tuple[int, Tensor]]:
    """Where consumers read these units: (axis, positions) of the weights that do.

    Raises `UnknownName` for a group, `IllegalPlan` for a unit that `graph` does not have.
    """
    gone = np.zeros(graph.units + 1, dtype=bool)  # the last is FIXED
    for name, given in drop.items():
        group, units = graph[name], units_of(given)
        if missing := set(units) - set(group.units):
            raise IllegalPlan(
                f"{group.name} does not have the units {sorted(missing)[:8]}; it has "
                f"{len(group.units)} of its {group.width}, numbered from 0."
            )
        gone[group.first + np.asarray(units, dtype=np.int64)] = True
    return {
        layer.weight: (0 if layer.transposed else 1, torch.from_numpy(columns))
        for layer in graph.layers
        if layer.dense and len(columns := np.flatnonzero(gone[layer.in_units]))
    }


def rebuild(model: nn.Module, plan: WidthPlan) -> nn.Module:
    """A fresh instance of the traced architecture, cut to `plan`: same shapes as the pruned one.

    `model` is unpruned and stays as it is; its weights are cut, whatever they are.
    """
    graph = plan.graph
    if not isinstance(graph, ChannelGraph):
        raise IllegalPlan("This plan does not come from a traced network; use WidthPlan.full.")
    return cut(model, graph, plan)


def replace_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put `tensors` in the place of the parameters and buffers of these names, in `model`.

    Shared parameters stay shared; `in_channels`, `num_features`, `groups` ... follow the shapes.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is not None:
                owners.setdefault(id(value), []).append((module, key))
    state = dict(_tensors(model))
    touched: dict[nn.Module, dict[str, torch.Size]] = {}
    for name, tensor in tensors.items():
        old = state[name]
        if tensor.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last):
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        new: Tensor = tensor
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(tensor, requires_grad=old.requires_grad)
        for module, key in owners[id(old)]:
            if key in module._parameters:
                module._parameters[key] = new  # type: ignore[assignment]
            else:
                module._buffers[key] = new
            touched.setdefault(module, {})[key] = old.shape
    for module, shapes in touched.items():
        _tell_the_truth(module, shapes)


def _tell_the_truth(module: nn.Module, old: Mapping[str, torch.Size]) -> None:
    """Make a module's own account of its widths follow the shapes of its tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd):
        assert isinstance(weight, Tensor)
        if module.groups > 1:
            axis = 0
            before = old["weight"][axis] if "weight" in old else weight.shape[axis]
            module.groups = module.groups * weight.shape[axis] // before
        out_axis, in_axis = (1, 0) if module.transposed else (0, 1)
        outs, ins = weight.shape[out_axis], weight.shape[in_axis]
        module.out_channels = outs * (module.groups if module.transposed else 1)
        module.in_channels = ins * (1 if module.transposed else module.groups)
    elif isinstance(module, nn.Linear) and isinstance(weight, Tensor):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sized = weight if isinstance(weight, Tensor) else module.running_mean
        if isinstance(sized, Tensor):
            module.num_features = sized.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _check(model: nn.Module, graph: ChannelGraph, plan: WidthPlan) -> None:
    state = dict(_tensors(model))
    for (name, axis), units in graph.slots.items():
        if name not in state or state[name].shape[axis] != len(units):
            found = tuple(state[name].shape) if name in state else "nothing of that name"
            raise BadModel(
                f"The network does not fit the graph: {name} should have {len(units)} entries "
                f"along axis {axis}, found {found}. Trace this network, or use graph.after(plan) "
                "for one that was cut."
            )
    for group in graph.groups:
        if missing := set(plan.kept[group.name]) - set(group.units):
            raise IllegalPlan(
                f"The plan keeps units {sorted(missing)[:8]} of {group.name}, which this network "
                "no longer has."
            )
