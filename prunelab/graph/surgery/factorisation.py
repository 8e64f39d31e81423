"""`factorised`: convolutions as two smaller ones, whose rank is the width between them.

spatial    k x k becomes k x 1, then 1 x k                     Jaderberg, Vedaldi, Zisserman, 2014
channel    k x k becomes k x k to fewer channels, then 1 x 1   Zhang, Zou, He, Sun, 2016, sec. 2.1

At full rank the outputs are the same. The channels between are a channel group like any other,
ordered by energy: dropping the last ones is the truncated singular value decomposition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prunelab.errors import IllegalPlan
from prunelab.graph.surgery.editing import copy_with

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
