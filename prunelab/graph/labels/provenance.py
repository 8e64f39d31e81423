"""The origin of tensors that were computed from parameters alone: which entries they come from.

A weight that is cast, transposed, scaled, normalised or masked before a convolution is followed
by storing, for every axis of every parameter, the index of the entry that each element came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.graph.labels.layout import (
    Shape,
    arange,
    argument,
    axes_of,
    compact,
    moved,
    reduced,
    viewed,
    widened,
)
from prunelab.graph.labels.op_tables import (
    CASTS,
    ELEMENTWISE,
    MOVES,
    NORMALISES_BATCH,
    REDUCES,
    RESHAPES,
    SCALES,
    aten,
)

Key = tuple[str, int]  # a parameter or buffer, and one of its axes


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """The parameters from which a tensor was computed; `name` is the main one.

    `axes` gives for (parameter, axis) the index of the entry of every element, broadcastable to
    the tensor's shape. `mixed` holds the axes whose entries are combined with each other, so that
    none can be removed alone. `plain`: the tensor is the parameter itself, at most cast or
    transposed. `scaled`: it is the parameter times something, so zero entries stay zero. `learned`:
    the main one is a parameter, not a buffer such as a mask. `tangled`: entries were computed from
    parameters in a way that is not followed. `norms` are weight norms, (direction, length, axis)
    for v, g and the axis that is not summed over.
    """

    name: str
    axes: Mapping[Key, Tensor]
    mixed: frozenset[Key] = frozenset()
    plain: bool = True
    scaled: bool = True
    learned: bool = False
    tangled: bool = False
    norms: frozenset[tuple[str, str, int]] = field(default_factory=frozenset)

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Origin:
        """The parameter or buffer itself."""
        rank = tensor.ndim
        axes = {(name, i): arange(s, rank, i) for i, s in enumerate(tensor.shape)}
        return cls(name, axes, learned=isinstance(tensor, nn.Parameter))

    @property
    def blended(self) -> Origin:
        """The origin of a result whose entries may depend on all entries of the parameters."""
        return replace(self, axes={}, mixed=self.mixed | set(self.axes), plain=False, scaled=False)

    def carried(self, move: Any) -> Origin:
        """The origin after `move`, which is applied to the index of every axis."""
        axes, mixed = {}, set(self.mixed)
        for key, index in self.axes.items():
            made = move(index)
            if made is None:
                mixed.add(key)
            else:
                axes[key] = made
        return replace(self, axes=axes, mixed=frozenset(mixed))


def origin_after(
    func: Any, args: tuple[Any, ...], kwargs: Any, inputs: Sequence[tuple[Tensor, Origin]], out: Any
) -> Origin:
    """The origin of the result `out` of `func`, for `inputs` that all come from parameters."""
    packet = func.overloadpacket
    first, origin = inputs[0]
    made = out[0] if isinstance(out, (tuple, list)) else out
    if packet in CASTS:
        return origin
    if packet in RESHAPES:
        return origin.carried(lambda index: _view(index, first.shape, made.shape))
    if packet in MOVES:
        return origin.carried(lambda index: moved(func, index, first.shape, args[1:], kwargs)[0])
    if packet is aten.view_as_complex:
        return origin.carried(lambda index: index.squeeze(-1) if index.shape[-1] == 1 else None)
    if packet is aten.view_as_real:
        return origin.carried(lambda index: index.unsqueeze(-1))
    if packet is aten.slice or packet is aten.select:
        return replace(_cut_out(func, args, kwargs, first, origin), plain=False)
    if packet in REDUCES:
        axes = axes_of(argument(func, args, kwargs, "dim"), first.ndim)
        left = replace(origin, plain=False, scaled=False)
        return left.carried(lambda index: _reduce(index, axes, made.ndim))
    if packet in NORMALISES_BATCH:
        return _standardised(first, inputs)
    if packet is aten._weight_norm_interface:
        return _normed(args, inputs)
    if torch.Tag.pointwise in func.tags or packet in ELEMENTWISE or packet in SCALES:
        return _pointwise(packet, inputs, made.ndim)
    blend = origin.blended
    for _, other in inputs[1:]:
        blend = replace(blend, mixed=blend.mixed | other.mixed | set(other.axes))
    return replace(blend, tangled=True)


def _view(index: Tensor, old: Shape, new: Shape) -> Tensor | None:
    found = viewed(index, old, new)
    return None if found is None else found[0]


def _reduce(index: Tensor, axes: list[int], rank: int) -> Tensor | None:
    if any(index.shape[axis] > 1 for axis in axes):
        return None
    return reduced(index, axes, rank)


def _cut_out(
    func: Any, args: tuple[Any, ...], kwargs: Any, first: Tensor, origin: Origin
) -> Origin:
    """A part of a parameter: no entry can be removed along the axis that is sliced."""
    axis = argument(func, args, kwargs, "dim", 0) % first.ndim

    def part(index: Tensor) -> Tensor | None:
        found: Tensor = moved(func, index, first.shape, args[1:], kwargs)[0]
        whole = index.shape[axis] == 1 or found.shape == index.shape
        return found if whole else None

    return origin.carried(part)


def _merged(inputs: Sequence[tuple[Tensor, Origin]], rank: int) -> Origin:
    """The combined origin of a result of `rank` axes, its inputs broadcast together."""
    axes: dict[Key, Tensor] = {}
    mixed: set[Key] = set()
    norms: set[tuple[str, str, int]] = set()
    for _, origin in inputs:
        mixed |= origin.mixed
        norms |= origin.norms
        for key, index in origin.axes.items():
            index = widened(index, rank)
            if key in axes and not _same(axes[key], index):
                mixed.add(key)
            axes.setdefault(key, index)
    main = max((origin for _, origin in inputs), key=lambda one: (one.learned, len(one.axes)))
    tangled = any(origin.tangled and tensor.numel() > 1 for tensor, origin in inputs)
    return Origin(
        main.name, axes, frozenset(mixed), False, main.scaled, main.learned, tangled,
        frozenset(norms),
    )  # fmt: skip


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _pointwise(packet: Any, inputs: Sequence[tuple[Tensor, Origin]], rank: int) -> Origin:
    merged = _merged(inputs, rank)
    # a quotient is zero where its numerator is; a product where either factor is
    firm = packet in SCALES and (packet not in (aten.div, aten.div_) or inputs[0][1].scaled)
    return replace(merged, scaled=firm and any(origin.scaled for _, origin in inputs))


def _standardised(x: Tensor, inputs: Sequence[tuple[Tensor, Origin]]) -> Origin:
    """A weight standardised row by row, as a batch normalisation of the weight itself."""
    origin = inputs[0][1]
    met = {
        key
        for key, index in origin.axes.items()
        if any(size > 1 for axis, size in enumerate(index.shape) if axis != 1)
    }
    mixed = set(origin.mixed) | met
    axes = dict(origin.axes)
    for _, other in inputs[1:]:
        mixed |= other.mixed
        for key, index in other.axes.items():
            wide = index.reshape([1, -1] + [1] * (x.ndim - 2)) if index.ndim == 1 else None
            if wide is None:
                mixed.add(key)
            else:
                axes[key] = compact(wide)
    return replace(origin, axes=axes, mixed=frozenset(mixed), plain=False, scaled=False)


def _normed(args: tuple[Any, ...], inputs: Sequence[tuple[Tensor, Origin]]) -> Origin:
    """A weight norm, g v / ||v||: a direction v, and a length g per entry of one axis."""
    (v, direction), (_, length) = inputs[:2]
    merged = _merged(inputs, v.ndim)
    axis = args[2] % v.ndim if len(args) > 2 else 0
    if not (direction.plain and length.plain):
        return merged.blended
    norms = merged.norms | {(direction.name, length.name, axis)}
    return replace(merged, name=direction.name, scaled=True, norms=norms)
