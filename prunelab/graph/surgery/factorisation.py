"""`factorised`: convolutions as two smaller ones, whose rank is the width between them.

spatial    k x k becomes k x 1, then 1 x k                     Jaderberg, Vedaldi, Zisserman, 2014
channel    k x k becomes k x k to fewer channels, then 1 x 1   Zhang, Zou, He, Sun, 2016, sec. 2.1

At full rank the outputs are the same. The channels between are a channel group like any other,
ordered by energy: dropping the last ones is the truncated singular value decomposition.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.errors import IllegalPlan
from prunelab.graph.channels.channel_graph import ChannelGraph, ChannelGroup, Layer
from prunelab.graph.surgery.editing import copy_with
from prunelab.values import FrozenMap, WidthPlan, parts_of

Kind = Literal["spatial", "channel"]
KINDS: tuple[Kind, ...] = ("spatial", "channel")


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Two kernels whose composition is a layer's kernel.

    `first` [rank, in, *kernel], `second` [out, rank, *kernel] and `energies` [rank], which fall:
    what each channel between carries, squared.
    """

    first: Tensor
    second: Tensor
    energies: Tensor


def factors(weight: Tensor, kind: Kind, outputs: Tensor | None = None) -> Factors:
    """The kernel of a 2-d convolution as two, at full rank, the channels between by energy.

    Parameters
    ----------
    weight
        The kernel [out, in, height, width].
    kind
        "spatial" or "channel", see the module.
    outputs
        For "channel", the second moment of the layer's outputs [out, out]: its eigenvectors are
        the channels between, so that a lower rank reconstructs responses, not weights.
    """
    matrix, out = _matrix(weight, kind), len(weight)
    if outputs is None:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        return _kernels(weight, u * s.sqrt(), s.sqrt()[:, None] * v, s.square())
    moment, within = outputs.cpu().double(), torch.eye(out, dtype=matrix.dtype)
    if len(matrix) < out:  # there are no more independent outputs than inputs
        within = torch.linalg.svd(matrix, full_matrices=False).Vh
    energies, basis = torch.linalg.eigh(within @ moment @ within.T)
    basis = within.T @ basis.flip(1)
    return _kernels(weight, matrix @ basis, basis.T, energies.flip(0).clamp_min(0))


def plain_factors(weight: Tensor, kind: Kind) -> Factors:
    """The kernel and an identity: two as good as any where only their shapes matter."""
    matrix = _matrix(weight, kind)
    rows, columns = matrix.shape
    one = torch.eye(min(rows, columns), dtype=matrix.dtype)
    pair = (one, matrix) if rows <= columns else (matrix, one)
    return _kernels(weight, *pair, torch.zeros(len(one)))


def factors_like(
    weight: Tensor, kind: Kind, second: Tensor, outputs: Tensor, units: Tensor
) -> Factors:
    """The kernel as two, of which the channels `units` between mean what they do for `second`.

    That is, they are the least-squares coefficients of the outputs: what a first convolution
    should give to a second one that is there already.

    Parameters
    ----------
    weight
        The kernel [out, in, height, width].
    kind
        "spatial" or "channel".
    second
        The second kernel of a layer that has been pruned since [some outputs, units, *kernel].
    outputs, units
        The positions of its outputs among those of `weight`, and of its channels between.
    """
    matrix = _matrix(weight, kind)
    rank = min(matrix.shape)
    there = second.detach().cpu().double().permute(1, 3, 2, 0).flatten(1)  # [units, width out]
    columns = matrix.reshape(len(matrix), -1, len(weight))[:, :, outputs].flatten(1)
    meant = columns @ torch.linalg.pinv(there)
    rest = torch.linalg.lstsq(meant, matrix, driver="gelsd").solution
    u, s, v = torch.linalg.svd(matrix - meant @ rest, full_matrices=False)
    first, others = matrix.new_zeros(len(matrix), rank), torch.ones(rank, dtype=torch.bool)
    whole = matrix.new_zeros(rank, matrix.shape[1])
    others[units] = False
    left = int(others.sum())
    first[:, units], whole[units] = meant, rest
    first[:, others], whole[others] = (u * s)[:, :left], v[:left]
    return _kernels(weight, first, whole, torch.zeros(rank))


def _matrix(weight: Tensor, kind: Kind) -> Tensor:
    """The kernel as a matrix, whose rows the first convolution reads and the second makes."""
    _, into, height, width = weight.shape
    both = weight.detach().cpu().double().permute(1, 2, 3, 0)
    return both.reshape(into * height * (1 if kind == "spatial" else width), -1)


def _kernels(weight: Tensor, first: Tensor, second: Tensor, energies: Tensor) -> Factors:
    """Factors of `_matrix` as kernels."""
    (out, into, height, _), rank = weight.shape, len(second)
    return Factors(
        first.T.reshape(rank, into, height, -1).to(weight),
        second.reshape(rank, -1, out).permute(2, 0, 1)[:, :, None].contiguous().to(weight),
        energies,
    )


def composed(model: nn.Module, name: str, kinds: Mapping[str, str]) -> Tensor:
    """The kernel that a layer, or what it has become, stands for [out, in, height, width]."""
    if name not in kinds:
        return dict(model.named_parameters())[f"{name}.weight"].detach()
    first, second = (composed(model, f"{name}.{part}", kinds) for part in (0, 1))
    if kinds[name] == "spatial":
        return torch.einsum("rnh,orw->onhw", first[..., 0], second[:, :, 0])
    return torch.einsum("rnhw,or->onhw", first, second[..., 0, 0])


def factorised(
    model: nn.Module,
    layers: Mapping[str, Kind],
    make: Callable[[str, Tensor], Factors] | None = None,
    *,
    share: bool = False,
) -> nn.Module:
    """A copy of `model` in which each of `layers` is two convolutions in an `nn.Sequential`.

    Parameters
    ----------
    model
        The network; it stays as it is.
    layers
        The kind of factorisation, by the name of an `nn.Conv2d`. The second of the two has
        the bias. The parts of "conv" are "conv.0" and "conv.1", and can be factorised again.
    make
        Gives the factors of a layer's kernel; None: `factors`.
    share
        Share the other tensors with `model`; the copy must then not be written to.

    Returns
    -------
    A plain network with the same outputs, at full rank: in itself it is larger than `model`.

    Raises
    ------
    IllegalPlan
        For a layer that cannot be factorised, with the reason.
    """
    made = copy_with(model, {}, share=share)
    for name in sorted(layers, key=len):  # a layer before its parts
        kind = layers[name]
        reason = unfit(made, name, kind)
        if reason:
            raise IllegalPlan(f"{name} cannot be factorised ({kind}): {reason}.")
        conv = made.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        found = factors(conv.weight, kind) if make is None else make(name, conv.weight)
        above, _, own = name.rpartition(".")
        setattr(made.get_submodule(above), own, _pair(conv, kind, found))
    return made


def factorised_like(
    model: nn.Module, graph: ChannelGraph, like: nn.Module, like_graph: ChannelGraph
) -> nn.Module:
    """A copy of `model` whose layers are factorised as in `like`, which was pruned from it.

    What stands between two parts means the same in both networks, see `factors_like`.

    Parameters
    ----------
    model
        The network; it stays as it is.
    graph
        That of the result.
    like, like_graph
        A network with more factorised layers, and its graph.
    """
    kinds: Mapping[str, Any] = graph.factors
    there = dict(model.named_modules())
    more = {name: kind for name, kind in kinds.items() if f"{name}.0" not in there}

    def make(name: str, weight: Tensor) -> Factors:
        ours, theirs = (_inside(g, f"{name}.1")[-1].out_units for g in (graph, like_graph))
        outputs = torch.from_numpy(np.flatnonzero(np.isin(ours, theirs)))
        units = torch.tensor(like_graph[f"{name}.0"].units)
        second = composed(like, f"{name}.1", like_graph.factors)
        return factors_like(weight, more[name], second, outputs, units)

    return factorised(model, more, make)


def unfit(model: nn.Module, name: str, kind: Kind) -> str:
    """Why a layer cannot be factorised; empty if it can."""
    conv = dict(model.named_modules()).get(name)
    if type(conv) is not nn.Conv2d:
        return f"it is no nn.Conv2d but {'nothing' if conv is None else type(conv).__name__}"
    if conv.groups > 1:
        return f"its kernel is in {conv.groups} groups"
    if conv.padding_mode != "zeros":
        return f"its padding is {conv.padding_mode!r}, not zeros"
    if conv._forward_hooks or conv._forward_pre_hooks or "forward" in vars(conv):
        return "it has hooks or a forward of its own"
    if not name or list(dict(conv.named_parameters())) not in (["weight"], ["weight", "bias"]):
        return "its weight is no parameter of its own"
    everywhere = model.named_parameters(remove_duplicate=False)
    if sum(weight is conv.weight for _, weight in everywhere) > 1:
        return "its weight has several names"
    if kind not in KINDS:
        return f"the kind is one of {', '.join(KINDS)}"
    if kind == "spatial" and min(conv.kernel_size) < 2:
        return f"its kernel is {conv.kernel_size[0]} x {conv.kernel_size[1]}"
    return ""


def _pair(conv: nn.Conv2d, kind: Kind, found: Factors) -> nn.Sequential:
    padding = conv.padding if isinstance(conv.padding, str) else None

    def part(weight: Tensor, of: tuple[bool, bool], bias: bool) -> nn.Conv2d:
        """A convolution that has stride, padding and dilation of `conv` on these two axes."""

        def own(values: tuple[int, ...], without: int) -> tuple[int, int]:
            a, b = (v if here else without for v, here in zip(values, of, strict=True))
            return a, b

        made = nn.Conv2d(
            weight.shape[1], weight.shape[0], (weight.shape[2], weight.shape[3]),
            own(conv.stride, 1),
            padding or own(conv.padding, 0),  # type: ignore[arg-type]
            own(conv.dilation, 1), bias=bias, device="meta",
        )  # fmt: skip
        made.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
        if bias:
            made.bias = conv.bias
        return made.train(conv.training)

    axes = ((True, False), (False, True)) if kind == "spatial" else ((True, True), (False, False))
    pair = nn.Sequential(
        part(found.first, axes[0], False), part(found.second, axes[1], conv.bias is not None)
    )
    return pair.train(conv.training)


# ---------------------------------------------------------------- the graph


def factorised_graph(
    graph: ChannelGraph,
    model: nn.Module,
    layers: Mapping[str, Kind],
    run: Callable[[nn.Module], object],
) -> tuple[nn.Module, ChannelGraph]:
    """`model` with `plain_factors` of these layers, and its graph, derived from that of `model`.

    Groups keep their names and unit numbers. Behind each factorised layer "conv" stands the new
    group "conv.0", whose width is the full rank.

    Parameters
    ----------
    graph, model
        A network and its graph; both stay as they are.
    layers
        As for `factorised`.
    run
        Runs a network on an input, once, for the number of positions between the convolutions.

    Raises
    ------
    IllegalPlan
        For a layer that cannot be factorised.
    """
    for name in layers:
        known = [layer for layer in graph.layers if layer.name == name]
        if not all(map(is_plain, known)):
            raise IllegalPlan(f"{name} cannot be factorised: its weight is used in other ways too.")
    made = factorised(model, layers, lambda name, w: plain_factors(w, layers[name]), share=True)
    order = sorted(layers, key=len)  # a layer before its parts
    names = [f"{name}.{part}" for name in order for part in (0, 1)]
    try:
        seen = _positions(made, names, run)
    except Exception as error:
        raise IllegalPlan(
            f"{', '.join(order)} cannot be factorised: the network does not run with an "
            f"nn.Sequential in the place of each ({type(error).__name__}: {error})."
        ) from error
    for name in order:
        if not seen[f"{name}.0"]:
            raise IllegalPlan(f"{name} cannot be factorised: it is not called as a module.")
        ratio = seen[f"{name}.0"] / seen[f"{name}.1"]
        graph = _split(graph, name, layers[name], ratio)
    return made, replace(graph, network=weakref.ref(made))


def is_plain(layer: Layer) -> bool:
    """Whether a layer's weight is used as that of a convolution over an image's channels only."""
    return layer.rows is None and layer.other == (0, 0) and not layer.computed


def _positions(
    model: nn.Module, names: list[str], run: Callable[[nn.Module], object]
) -> dict[str, int]:
    """How many output positions each of these modules has in one run."""
    seen = dict.fromkeys(names, 0)
    handles = []
    for name in names:

        def count(_: nn.Module, __: object, out: Tensor, name: str = name) -> None:
            seen[name] += out.numel() // out.shape[1]

        handles.append(model.get_submodule(name).register_forward_hook(count))
    try:
        run(model)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _split(graph: ChannelGraph, name: str, kind: Kind, positions: float) -> ChannelGraph:
    """The graph in which a layer is two; the first has `positions` times as many positions."""
    whole = graph.layer(name)
    first, second = f"{name}.0", f"{name}.1"
    height, width = whole.kernel
    kernels = ((height, 1), (1, width)) if kind == "spatial" else (whole.kernel, (1, 1))
    entries = [len(whole.in_units) * prod(kernels[0]), len(whole.out_units) * prod(kernels[1])]
    between = graph.units + np.arange(min(entries))
    layers = []
    for layer in graph.layers:
        if layer is not whole:
            layers.append(layer)
            continue
        seen, applied = round(positions * layer.positions), round(positions * layer.applied)
        layers += [
            replace(
                layer, name=first, weight=f"{first}.weight", out_units=between, norm=None,
                kernel=kernels[0], positions=seen, applied=applied,
            ),
            replace(
                layer, name=second, weight=f"{second}.weight", in_units=between, kernel=kernels[1]
            ),
        ]  # fmt: skip
    own = {f"{name}.weight", f"{name}.bias"}
    slots = {key: units for key, units in graph.slots.items() if key[0] not in own}
    for old, new in (
        ((f"{name}.weight", 1), (f"{first}.weight", 1)),
        ((f"{name}.weight", 0), (f"{second}.weight", 0)),
        ((f"{name}.bias", 0), (f"{second}.bias", 0)),
    ):
        if old in graph.slots:
            slots[new] = graph.slots[old]
    slots |= {(f"{first}.weight", 0): between, (f"{second}.weight", 1): between}
    sizes = {key: size for key, size in graph.sizes.items() if key not in own}
    sizes |= {
        f"{part}.weight": len(between) * size
        for part, size in zip((first, second), entries, strict=True)
    }
    if f"{name}.bias" in graph.sizes:
        sizes[f"{second}.bias"] = graph.sizes[f"{name}.bias"]
    return replace(
        graph,
        groups=_groups(graph, name, len(between)),
        layers=tuple(layers),
        slots=slots,
        sizes=sizes,
        couplings=tuple(
            replace(c, a=second if c.a == name else c.a, b=second if c.b == name else c.b)
            for c in graph.couplings
        ),
        factors={**graph.factors, name: kind},
    )


def _groups(graph: ChannelGraph, name: str, rank: int) -> tuple[ChannelGroup, ...]:
    """The groups once layer `name` is two, the new one just before those that it makes."""
    first, second = f"{name}.0", f"{name}.1"
    new = ChannelGroup(
        first, rank, tuple(range(rank)), (first,), (second,), "", graph.units, residual=False,
        step=graph.round_to,
    )  # fmt: skip
    groups: list[ChannelGroup] = []
    for group in graph.groups:
        if name in group.producers and new not in groups:
            groups.append(new)
        groups.append(
            replace(
                group,
                producers=tuple(second if p == name else p for p in group.producers),
                consumers=tuple(first if c == name else c for c in group.consumers),
            )
        )
    return tuple(groups if new in groups else [*groups, new])


def extended(plan: WidthPlan, graph: ChannelGraph) -> WidthPlan:
    """The same plan for the `graph` of the network with more factorised layers, at full rank.

    At the widths of `plan`: the kernel of a layer that lost channels has a lower rank.
    """
    new = sorted((g.name for g in graph.groups if g.name not in plan.kept), key=len)
    kept = {group.name: plan.kept.get(group.name, group.units) for group in graph.groups}
    for name in new:  # a layer before its parts
        alive = graph.alive(WidthPlan(FrozenMap(kept), graph))
        above = name.removesuffix(".0")
        first, second = _inside(graph, name), _inside(graph, f"{above}.1")
        into = alive[first[0].in_units].sum() * prod(prod(layer.kernel) for layer in first)
        out = alive[second[-1].out_units].sum() * prod(prod(layer.kernel) for layer in second)
        kept[name] = kept[name][: min(into, out)]
    return WidthPlan(FrozenMap(kept), graph)


def _inside(graph: ChannelGraph, name: str) -> list[Layer]:
    """The layer `name`, or the layers that it has become."""
    return [graph.layer(part) for part in parts_of((x.name for x in graph.layers), name)]
