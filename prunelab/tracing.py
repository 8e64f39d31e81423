"""`trace`: the channel graph of a network, checked by a probe cut.

May import labels, channels, surgery, values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from prunelab.channels import ChannelGraph, build_graph
from prunelab.errors import BadModel, TraceError
from prunelab.labels import run_on_labels
from prunelab.surgery import cut, masked
from prunelab.values import WidthPlan


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    freeze: Sequence[str] = (),
) -> ChannelGraph:
    """Find the channels of `model` that live and die together, by running it on labels.

    `example_inputs` is what the network takes: a tensor, a tuple of arguments, or a dict of
    keyword arguments; with `forward`, whatever `forward(model, example_inputs)` takes. `freeze`
    names layers, or parts of the network, whose channels must all stay. The network runs in
    evaluation mode and is left bitwise as it was.

    At the end a copy is cut and compared with the masked network; groups where the two differ
    are frozen, because forward code hard-codes their width. Raises `TraceError` when the network
    does not run on these inputs, `BadModel` for one on the meta device.
    """
    meta = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if meta:
        raise BadModel(
            f"The network is on the meta device ({meta[0]} has no values). Load its weights "
            "first: model.to_empty(device='cpu') and load_state_dict."
        )
    run = runner(example_inputs, forward)
    tensors = [leaf for leaf in tree_leaves(example_inputs) if isinstance(leaf, Tensor)]
    batch = tensors[0].shape[0] if tensors and tensors[0].ndim else 1
    itemsize = next((x.element_size() for x in tensors if x.is_floating_point()), 4)
    with undisturbed(model):
        model.eval()
        try:
            found = run_on_labels(model, run, batch)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise TraceError(
                f"The network does not run on the example inputs (shapes {shapes}): "
                f"{type(error).__name__}: {error}. Give inputs that model(inputs) takes, "
                "or forward=."
            ) from error
        graph = build_graph(model, found, tuple(tuple(t.shape) for t in tensors), itemsize)
        graph = graph.freeze(_asked(graph, freeze))
        return _probe(model, graph, run)


def runner(
    inputs: Any, forward: Callable[[nn.Module, Any], Any] | None = None
) -> Callable[[nn.Module], Any]:
    """How to run a network on `inputs`: a tensor, a tuple of arguments or a dict of them."""
    if forward is not None:
        return lambda model: forward(model, inputs)
    if isinstance(inputs, dict):
        return lambda model: model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return lambda model: model(*inputs)
    return lambda model: model(inputs)


def _asked(graph: ChannelGraph, freeze: Sequence[str]) -> dict[str, str]:
    reasons = {}
    for name in freeze:
        inside = [
            group.name
            for group in graph.groups
            if any(p == name or p.startswith(f"{name}.") for p in group.producers)
        ]
        for found in inside or [graph[name].name]:
            reasons[found] = "you asked to freeze it"
    return reasons


@contextmanager
def undisturbed(model: nn.Module) -> Any:
    """Whatever runs inside leaves flags, buffers and random numbers as they were."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for module, training in flags:
                module.training = training
            with torch.no_grad():
                for buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)


# ---------------------------------------------------------------- the probe


def _probe(model: nn.Module, graph: ChannelGraph, run: Callable[..., Any]) -> ChannelGraph:
    """Cut a copy, run it, compare with masked; freeze the groups where that fails."""
    names = [group.name for group in graph.groups if group.prunable]
    reasons: dict[str, str] = {}
    pending = [names]
    while pending:
        some = pending.pop()
        if not some or _survives(model, graph, some, run):
            continue
        if len(some) == 1:
            reasons[some[0]] = "the network's code hard-codes its width"
        else:
            half = len(some) // 2
            pending += [some[:half], some[half:]]
    return graph.freeze(reasons)


def _survives(
    model: nn.Module, graph: ChannelGraph, names: list[str], run: Callable[..., Any]
) -> bool:
    rng = np.random.default_rng(0)
    drop = {}
    for name in names:
        width = graph[name].width
        drop[name] = rng.choice(width, size=min(width - 1, width // 4 | 1), replace=False).tolist()
    plan = WidthPlan.full(graph).drop(drop)
    for double in (False, True):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                small, same = cut(model, graph, plan), masked(model, graph, plan)
                if double:
                    small, same = small.double(), same.double()
                got, want = [
                    [x for x in tree_leaves(_in_double(run, net, double)) if isinstance(x, Tensor)]
                    for net in (small, same)
                ]
        except Exception:  # whatever its forward raises, it is the cut that made it
            return False
        if [x.shape for x in got] != [x.shape for x in want]:
            return False
        # float32 rounding is amplified by deep random networks: doubt is settled in float64
        close = 1e-6 if double else 1e-4
        if all(_close(a, b, close) for a, b in zip(got, want, strict=True)):
            return True
    return False


def _in_double(run: Callable[..., Any], net: nn.Module, double: bool) -> Any:
    if not double:
        return run(net)
    hook = net.register_forward_pre_hook(
        lambda _, args, kwargs: tree_map(
            lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x,
            (args, kwargs),
        ),
        with_kwargs=True,
    )
    try:
        return run(net)
    finally:
        hook.remove()


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if not a.is_floating_point():
        return True
    a, b = torch.nan_to_num(a.double()), torch.nan_to_num(b.double())
    return bool((a - b).norm() <= tolerance * max(1e-12, float(b.norm())))


def copy_of(model: nn.Module) -> nn.Module:
    """A private copy of `model`; raises `BadModel` when it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise BadModel(
            f"The network cannot be copied ({type(error).__name__}: {error}); prunelab works on "
            "copies so that yours stays as it is. Remove what deepcopy cannot take."
        ) from error
