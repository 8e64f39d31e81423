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
    varying_axes,
    viewed,
    widened,
)
from prunelab.graph.labels.op_tables import (
    CASTS,
    CONTRACTIONS,
    ELEMENTWISE,
    MOVES,
    NORMALISES_BATCH,
    REDUCES,
    RESHAPES,
    SCALES,
    STATISTICS,
    SUMS,
    aten,
)

Key = tuple[str, int]  # a parameter or buffer, and one of its axes
Pair = tuple[Key, Key, Tensor]  # an axis, another one, and the entry there of each entry


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """The parameters from which a tensor was computed; `name` is the main one.

    `axes` gives for (parameter, axis) the index of the entry of every element, broadcastable to
    the tensor's shape. `mixed` holds the axes whose entries are combined with each other, so that
    none can be removed alone. `plain`: the tensor is the parameter itself, at most cast or
    transposed. `zeros`: an element is zero where the entries from which it comes, along any one of
    these axes, are zero in all of these parameters; none if it may be another number. `learned`:
    the main one is a parameter, not a buffer such as a mask. `tangled`: entries were computed from
    parameters in a way that is not followed. `norms` are weight norms, (direction, length, axis)
    for v, g and the axis that is not summed over. `paired` are vectors multiplied with a parameter,
    as spectral norm does: the entry at each place belongs to that one of another axis.
    """

    name: str
    axes: Mapping[Key, Tensor]
    mixed: frozenset[Key] = frozenset()
    plain: bool = True
    zeros: Mapping[str, frozenset[int]] = field(default_factory=dict)
    learned: bool = False
    tangled: bool = False
    norms: frozenset[tuple[str, str, int]] = field(default_factory=frozenset)
    paired: tuple[Pair, ...] = ()

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Origin:
        """The parameter or buffer itself."""
        rank = tensor.ndim
        axes = {(name, i): arange(s, rank, i) for i, s in enumerate(tensor.shape)}
        zeros = {name: frozenset(range(rank))}
        return cls(name, axes, zeros=zeros, learned=isinstance(tensor, nn.Parameter))

    @property
    def blended(self) -> Origin:
        """The origin of a result whose entries may depend on all entries of the parameters."""
        return replace(self, axes={}, mixed=self.mixed | set(self.axes), plain=False, zeros={})

    def zeroed(self, axis: int) -> tuple[Key, ...]:
        """The parameters, each with an axis, whose zeros are those along `axis` of the tensor.

        None where not all of them, or not the main one, have entries along it.
        """
        found = {
            (name, own): index
            for (name, own), index in self.axes.items()
            if own in self.zeros.get(name, ()) and varying_axes(index) == [axis]
        }
        every = {name for name, _ in found} == {*self.zeros} and self.name in self.zeros
        return tuple(found) if every else ()

    @property
    def firmness(self) -> int:
        """Along how many axes zeros of the parameters are zeros of the tensor."""
        return sum(map(len, self.zeros.values()))

    def carried(self, move: Any) -> Origin:
        """The origin after `move`, which is applied to the index of every axis."""
        axes, mixed = {}, set(self.mixed)
        for key, index in self.axes.items():
            made = move(index)
            if made is None:
                mixed.add(key)
            else:
                axes[key] = made
        zeros = {
            name: frozenset(axis for axis in own if (name, axis) in axes)
            for name, own in self.zeros.items()
        }
        return replace(self, axes=axes, mixed=frozenset(mixed), zeros=zeros)


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
        left = replace(origin, plain=False)
        if packet not in STATISTICS | {aten.sum}:  # which are zero over zeros
            left = replace(left, zeros={})
        return left.carried(lambda index: _reduce(index, axes, made.ndim))
    if packet in NORMALISES_BATCH:
        return _standardised(first, inputs)
    if packet is aten._weight_norm_interface:
        return _normed(args, inputs)
    if packet in CONTRACTIONS and len(inputs) == 2:
        return _contracted(inputs)
    if packet is aten.constant_pad_nd:
        return _padded(func, args, kwargs, origin)
    if packet in (aten.stack, aten.cat) and len(inputs) == len(args[0]):
        return _joined(packet, argument(func, args, kwargs, "dim", 0) % made.ndim, inputs, made)
    if torch.Tag.pointwise in func.tags or packet in ELEMENTWISE or packet in SCALES:
        return _pointwise(packet, args, inputs, made.ndim)
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
    """The combined origin of a result of `rank` axes, its inputs broadcast together.

    It is taken to be zero where all of them are.
    """
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
    zeros = dict(inputs[0][1].zeros)
    for _, origin in inputs[1:]:
        for name, own in origin.zeros.items():
            zeros[name] = zeros.get(name, own) & own
    if not all(origin.zeros for _, origin in inputs):
        zeros = {}
    main = max((origin for _, origin in inputs), key=lambda one: (one.learned, len(one.axes)))
    tangled = any(origin.tangled and tensor.numel() > 1 for tensor, origin in inputs)
    paired = tuple(pair for _, origin in inputs for pair in origin.paired)
    return Origin(
        main.name, axes, frozenset(mixed), False, zeros, main.learned, tangled, frozenset(norms),
        paired,
    )  # fmt: skip


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _contracted(inputs: Sequence[tuple[Tensor, Origin]]) -> Origin:
    """A product with a vector, summed over the last axis of the first and that of the second."""
    (x, left), (_, right) = inputs
    found = [
        (one, other, index.reshape(-1))
        for own, others, last in ((right, left, x.ndim - 1), (left, right, 0))
        if own.plain and len(own.axes) == 1
        for one in own.axes
        for other, index in others.axes.items()
        if varying_axes(index) == [last]
    ]
    rows = left.carried(lambda index: index.squeeze(-1) if index.shape[-1] == 1 else None)
    mixed = rows.mixed | right.mixed | {*right.axes}
    paired = (*left.paired, *right.paired, *found)
    return replace(rows, mixed=mixed, plain=False, zeros={}, paired=paired)


def _padded(func: Any, args: tuple[Any, ...], kwargs: Any, origin: Origin) -> Origin:
    """A parameter with a border: along an axis that has one, entries are not followed."""
    pads = args[1]

    def padded(index: Tensor) -> Tensor | None:
        wide = [place // 2 for place, size in enumerate(pads) if size]
        return None if any(index.shape[-1 - back] > 1 for back in wide) else index

    made = replace(origin.carried(padded), plain=False)
    return made if not argument(func, args, kwargs, "value", 0) else replace(made, zeros={})


def _joined(
    packet: Any, axis: int, inputs: Sequence[tuple[Tensor, Origin]], made: Tensor
) -> Origin:
    """Parameters stacked, or side by side along an axis: that axis is not followed."""

    def along(index: Tensor) -> Tensor | None:
        if packet is aten.stack:
            return index.unsqueeze(axis)
        return None if index.shape[axis] > 1 else index

    return _merged([(tensor, origin.carried(along)) for tensor, origin in inputs], made.ndim)


def _pointwise(
    packet: Any, args: tuple[Any, ...], inputs: Sequence[tuple[Tensor, Origin]], rank: int
) -> Origin:
    merged = _merged(inputs, rank)
    if packet in SUMS:
        shifted = any(isinstance(part, int | float) and part for part in args[:2])
        return replace(merged, zeros={}) if shifted else merged
    # a quotient is zero where its numerator is; a product where either factor is
    first = inputs[:1] if args[0] is inputs[0][0] else []
    factors = first if packet in (aten.div, aten.div_) else inputs
    firm = [origin for _, origin in factors if origin.zeros] if packet in SCALES else []
    most = max(firm, default=None, key=lambda one: (one.name == merged.name, one.firmness))
    return replace(merged, zeros={} if most is None else most.zeros)


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
    return replace(origin, axes=axes, mixed=frozenset(mixed), plain=False, zeros={})


def _normed(args: tuple[Any, ...], inputs: Sequence[tuple[Tensor, Origin]]) -> Origin:
    """A weight norm, g v / ||v||: a direction v, and a length g per entry of one axis."""
    (v, direction), (_, length) = inputs[:2]
    merged = _merged(inputs, v.ndim)
    axis = args[2] % v.ndim if len(args) > 2 else 0
    if not (direction.plain and length.plain):
        return merged.blended
    norms = merged.norms | {(direction.name, length.name, axis)}
    return replace(merged, name=direction.name, zeros=direction.zeros, norms=norms)
