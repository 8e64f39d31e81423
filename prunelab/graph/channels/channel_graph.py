"""The channel graph: groups of coupled channels, and where in the network they are.

The graph refers to the parameters and buffers of a network by name, so it is valid for every
instance of the same architecture, and it keeps the original unit numbers after cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import numpy as np
from torch import nn

from prunelab.errors import IllegalPlan, MissingPackage, UnknownName
from prunelab.graph.channels.couplings import Coupling
from prunelab.graph.channels.explain import Explanation, explain_layer, explain_pair
from prunelab.graph.channels.summary import table, table_html
from prunelab.values import Units, WidthPlan, listed, units_of
from prunelab.values.given import as_annotated

FIXED = -1  # a position of an axis that belongs to no unit


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One convolution or linear layer, identified by the name of its weight.

    `out_units` [out channels] and `in_units` [in channels, or in features] give for each position
    the graph-wide number of its unit, FIXED where it belongs to none. `positions` is the number of
    output positions for one input, summed over calls; `applied` is how many times the kernel is
    applied to one input (different for a transposed convolution). `norm` names the BatchNorm that
    follows the layer, if any. `in_axis` is the axis of the weight that reads channels. `computed`
    says that the weight in use is computed from its parameters (a weight norm, a mask). A channel
    selector (`SelectingConv2d`) is a layer too: it issues channels without multiplying, and its
    `in_units` are empty; `weight` is its buffer. A layer whose input has channels as its rows (one
    kernel for all of them) has the units of the rows of one input in `rows`; `positions` and
    `applied` then count for one row. `other` holds the multiply-adds and output elements of calls
    in which the weight is used in another way. `added` are the parameters that are added to the
    weight, each with its axis that reads channels.
    """

    name: str
    weight: str
    out_units: np.ndarray
    in_units: np.ndarray
    kernel: tuple[int, ...]
    conv_groups: int
    in_axis: int
    positions: int
    applied: int
    norm: str | None
    calls: int = 1
    computed: bool = False
    rows: np.ndarray | None = None
    other: tuple[int, int] = (0, 0)
    added: tuple[tuple[str, int], ...] = ()

    @property
    def transposed(self) -> bool:
        """Whether the weight is [in, out, ...], as in a transposed convolution or x @ W."""
        return self.in_axis == 0

    @property
    def dense(self) -> bool:
        """Whether every output depends on every input, so that the layer issues new channels."""
        return self.conv_groups == 1

    @property
    def macs(self) -> int:
        """Multiply-adds for one input."""
        into = len(self.in_units) // self.conv_groups
        times = self.applied * self.row_count
        return times * len(self.out_units) * into * prod(self.kernel) + self.other[0]

    @property
    def elements(self) -> int:
        """Output elements for one input."""
        return self.positions * self.row_count * len(self.out_units) + self.other[1]

    @property
    def row_count(self) -> int:
        """The rows of one input, if these are channels; otherwise 1."""
        return 1 if self.rows is None else len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Units with the same producers; a unit is dropped as a whole, in all layers that share it.

    `width` is the number of units in the original network; `units` are those kept now, in the
    original numbers 0 .. width-1 (the order of the first producer's channels). `first` is the
    graph-wide number of its first unit. Methods keep `min_width` units or more, and a multiple of
    `step`. `residual`: they are the sum of several dense layers' outputs, or the input of a block
    that adds a projection of it to its branch. `inexact`: statistics span the group, so that the
    cut network differs slightly from the masked one. `fully_connected`: linear layers make them,
    at one position an input.
    """

    name: str
    width: int
    units: Units
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    why: str
    first: int
    residual: bool
    min_width: int = 1
    step: int = 1
    inexact: bool = False
    fully_connected: bool = False

    @property
    def span(self) -> slice:
        """The graph-wide numbers of its units, including dropped ones."""
        return slice(self.first, self.first + self.width)

    @property
    def prunable(self) -> bool:
        """Whether units may be dropped; if not, `why` gives the reason."""
        return not self.why

    @property
    def narrowest(self) -> int:
        """The smallest width that methods may leave."""
        return min(len(self.units), -(-self.min_width // self.step) * self.step)

    def __repr__(self) -> str:
        alive = f"{len(self.units)} of {self.width}" if len(self.units) < self.width else self.width
        frozen = f", frozen: {self.why}" if self.why else ""
        return f"<{self.name}: {alive} units, {' + '.join(self.producers)}{frozen}>"


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGraph:
    """The channel groups of a network, in execution order.

    `slots` maps (parameter or buffer, axis) to the graph-wide unit number of each position;
    `couplings` are the operations that coupled layers.
    `unseen` are the layers that never ran; `untrained` says why the network could not be run in
    training mode, where its code differs there. `norms` are weight norms: a direction, its
    length, and the axis that has one length per entry; `bare` gives the unit of each channel that
    a normalisation module without parameters reads; `edits` the units that an integer attribute
    counts, which is rewritten in the cut network ("attn.head_dim", or "mixer.sizes[1]" for one in a
    list). `parts` are the units of parts of an axis that code takes by numbers, until attributes
    are found that hold these. Methods keep widths at multiples of `round_to`. `factors` are the
    layers that have become two, with the kind of factorisation. `inputs` is how many inputs were
    traced (None: unknown, counts are of the call), `left_out` the work that is in no layer.
    `graph[name]` finds a group by its name or by the name of any of its producers.
    """

    groups: tuple[ChannelGroup, ...]
    layers: tuple[Layer, ...]
    slots: Mapping[tuple[str, int], np.ndarray]
    unseen: tuple[str, ...] = ()
    input_shapes: tuple[tuple[int, ...], ...] = ()
    activation_itemsize: int = 4
    sizes: Mapping[str, int] = field(default_factory=dict)  # elements of each parameter
    norms: tuple[tuple[str, str, int], ...] = ()
    bare: Mapping[str, np.ndarray] = field(default_factory=dict)
    round_to: int = 1
    network: Callable[[], nn.Module | None] = lambda: None
    couplings: tuple[Coupling, ...] = ()
    untrained: str = ""
    factors: Mapping[str, str] = field(default_factory=dict)
    inputs: int | None = 1
    left_out: str = ""
    edits: Mapping[str, np.ndarray] = field(default_factory=dict)
    parts: tuple[tuple[np.ndarray, str], ...] = ()
    _names: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = {n: i for i, g in reversed([*enumerate(self.groups)]) for n in g.producers}
        names |= {group.name: i for i, group in enumerate(self.groups)}
        object.__setattr__(self, "_names", names)

    def __getitem__(self, name: str) -> ChannelGroup:
        if name not in self._names:
            raise UnknownName("channel group", name, [group.name for group in self.groups])
        return self.groups[self._names[name]]

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def units(self) -> int:
        """The number of units in the original network."""
        return sum(group.width for group in self.groups)

    def layer(self, name: str) -> Layer:
        """The layer called `name`; raises `UnknownName`."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise UnknownName("layer", name, [layer.name for layer in self.layers])

    def consumers(self, group: ChannelGroup) -> tuple[Layer, ...]:
        """The dense layers that read `group`'s channels."""
        return tuple(layer for layer in self.layers if layer.name in group.consumers)

    def alive(self, plan: WidthPlan) -> np.ndarray:
        """For each graph-wide unit number, whether `plan` keeps the unit [units + 1].

        The last entry is for FIXED and always True.
        """
        if odd := {group.name for group in self.groups} ^ set(plan.kept):
            raise IllegalPlan(
                f"The plan is of another network: {min(odd)!r} is a group of only one of the two. "
                "Give a plan of this graph: WidthPlan.full(graph)."
            )
        kept = np.zeros(self.units + 1, dtype=bool)
        kept[FIXED] = True
        for group in self.groups:
            kept[group.first + np.asarray(plan.kept[group.name], dtype=np.int64)] = True
        return kept

    def gone(self, drop: Mapping[str, Iterable[int]]) -> np.ndarray:
        """For each graph-wide unit number, whether it is one of these units [units + 1].

        Raises `UnknownName` for a group, `IllegalPlan` for a unit that it does not have.
        """
        found = np.zeros(self.units + 1, dtype=bool)  # the last is FIXED
        for name, given in drop.items():
            group, units = self[name], units_of(given)
            if missing := set(units) - set(group.units):
                raise IllegalPlan(
                    f"{group.name} does not have the units {sorted(missing)[:8]}; it has "
                    f"{len(group.units)} of its {group.width}, numbered from 0."
                )
            found[group.first + np.asarray(units, dtype=np.int64)] = True
        return found

    @as_annotated
    def after(self, plan: WidthPlan) -> ChannelGraph:
        """The graph of the network cut to `plan`: same names, same unit numbers."""
        alive = self.alive(plan)
        groups = tuple(replace(group, units=plan.kept[group.name]) for group in self.groups)
        layers = []
        for layer in self.layers:
            outs = layer.out_units[alive[layer.out_units]]
            ins = layer.in_units[alive[layer.in_units]]
            conv_groups = layer.conv_groups
            if not layer.dense:
                conv_groups = conv_groups * len(ins) // len(layer.in_units)
            rows = None if layer.rows is None else layer.rows[alive[layer.rows]]
            made = replace(layer, out_units=outs, in_units=ins, conv_groups=conv_groups, rows=rows)
            layers.append(made)
        slots = {key: units[alive[units]] for key, units in self.slots.items()}
        bare, edits = (
            {name: units[alive[units]] for name, units in counted.items()}
            for counted in (self.bare, self.edits)
        )
        sizes = dict(self.sizes)
        for (name, axis), units in self.slots.items():
            if name in sizes:
                sizes[name] = sizes[name] * len(slots[name, axis]) // len(units)
        return replace(
            self, groups=groups, layers=tuple(layers), slots=slots, sizes=sizes, bare=bare,
            edits=edits,
        )  # fmt: skip

    @as_annotated
    def freeze(self, reasons: Mapping[str, str]) -> ChannelGraph:
        """The same graph with these groups frozen; `reasons` maps names to reasons.

        Raises `UnknownName` for a name that is no group's.
        """
        given = {self[name].name: why for name, why in reasons.items()}
        groups = tuple(
            replace(group, why=group.why or given.get(group.name, "")) for group in self.groups
        )
        return replace(self, groups=groups)

    def rounded(
        self,
        plan: WidthPlan,
        drop: Mapping[str, Iterable[int]],
        order: Mapping[tuple[str, int], float] | None = None,
    ) -> dict[str, Units]:
        """The part of `drop` after which `round_to` and `min_width` allow every width.

        Parameters
        ----------
        plan
            The units kept now. A group's present width is always allowed.
        drop
            The units to drop, by group.
        order
            A value for each (group, unit); the lowest are dropped first (None: the lowest unit
            numbers).
        """
        result = {}
        for given, units in drop.items():
            group, asked = self[given], units_of(units)
            have = len(plan.kept[group.name])
            least = max(have - len(asked), min(group.min_width, have))
            left = -(-least // group.step) * group.step
            if order is not None:
                asked = tuple(sorted(asked, key=lambda unit: order[given, unit]))
            if left < have:
                result[given] = units_of(asked[: have - left])
        return result

    @as_annotated
    def explain(self, a: str, b: str | None = None) -> Explanation:
        """Why the layers `a` and `b` are coupled, or why not; for `a` alone, the groups it is in.

        Raises `UnknownName` for what is neither a layer nor a group.
        """
        return explain_layer(self, a) if b is None else explain_pair(self, a, b)

    def show(self, part: str = "", *, theme: Literal["light", "dark"] = "light") -> Any:
        """A Plotly figure: layers as rows, their widths as bars, couplings as arcs.

        `part` limits the figure to one module. Raises `UnknownName` when no layer is in `part`,
        `MissingPackage` without plotly.
        """
        try:
            from prunelab.figures.graph import coupling
        except ImportError as error:
            raise MissingPackage(
                f"graph.show() needs plotly, and {error.name} is missing: "
                "pip install 'prunelab[lab]', then restart the kernel."
            ) from error
        return coupling(self, part, theme=theme)

    def __str__(self) -> str:
        return table(self)

    def __repr__(self) -> str:
        unseen = f"; {listed(self.unseen, 2)} never ran" if self.unseen else ""
        return f"<ChannelGraph: {len(self)} groups, {self.units} units{unseen}>"

    def _repr_html_(self) -> str:
        return table_html(self)
