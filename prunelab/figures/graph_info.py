"""The contents of the coupling figure: the layers of a channel graph and their couplings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunelab.errors import UnknownName
from prunelab.figures.style import wrap
from prunelab.values import listed
from prunelab.values.given import as_annotated

if TYPE_CHECKING:
    from prunelab.graph.channels.channel_graph import ChannelGraph, ChannelGroup, Layer

STAGES = 4  # names are truncated to the smallest depth with this many stages
WIDE = 60  # characters of a line that shows on hover


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer: output channels now and before any cut, and the group that they are in.

    `turn` numbers the groups of several layers in order; None for a layer that is alone.
    """

    name: str
    stage: str
    now: int
    original: int
    turn: int | None
    members: int
    first: bool
    why: str
    hover: str


@dataclass(frozen=True, slots=True)
class Arc:
    """The rows `a` < `b` are coupled by the operations `kinds`; `text` describes them."""

    a: int
    b: int
    turn: int
    kinds: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class CouplingInfo:
    """The contents of the figure; `part` is the module that it is limited to, "" for all."""

    rows: tuple[LayerRow, ...]
    arcs: tuple[Arc, ...]
    unseen: tuple[str, ...] = ()
    part: str = ""


@as_annotated
def coupling_info(graph: ChannelGraph, part: str = "") -> CouplingInfo:
    """The layers of `graph` inside the module `part`, and the couplings among them.

    Raises `UnknownName` when no layer is in `part`.
    """
    stage = _stages([layer.name for layer in graph.layers])
    layers = [layer for layer in graph.layers if _inside(layer.name, part)]
    if not layers:
        raise UnknownName("part of the network", part, sorted({*stage.values()}))
    turns: dict[str, int] = {}
    for group in graph.groups:
        if len(group.producers) > 1:
            turns[group.name] = len(turns)
    groups: dict[str, list[ChannelGroup]] = {}
    for group in graph.groups:
        for name in group.producers:
            groups.setdefault(name, []).append(group)
    rows = [_row(layer, groups[layer.name], turns, stage[layer.name]) for layer in layers]
    place = {row.name: index for index, row in enumerate(rows)}
    met: dict[tuple[int, int], list[Any]] = {}
    for coupling in graph.couplings:
        if coupling.a != coupling.b and coupling.a in place and coupling.b in place:
            a, b = sorted((place[coupling.a], place[coupling.b]))
            met.setdefault((a, b), []).append(coupling)
    arcs = tuple(
        Arc(
            a,
            b,
            turns[couplings[0].group],
            tuple(dict.fromkeys(coupling.kind for coupling in couplings)),
            "<br>".join(dict.fromkeys(wrap(str(coupling), WIDE) for coupling in couplings)),
        )
        for (a, b), couplings in met.items()
    )
    unseen = tuple(name for name in graph.unseen if _inside(name, part))
    return CouplingInfo(tuple(rows), arcs, unseen, part)


def _inside(name: str, part: str) -> bool:
    return not part or name == part or name.startswith(f"{part}.")


def _stages(names: list[str]) -> dict[str, str]:
    """The stage of each layer: its name, truncated to a common depth."""
    deepest = max(name.count(".") for name in names) + 1
    for depth in range(1, deepest + 1):
        cut = {name: ".".join(name.split(".")[:depth]) for name in names}
        if len({*cut.values()}) >= STAGES:
            break
    return cut


def _row(layer: Layer, groups: list[ChannelGroup], turns: dict[str, int], stage: str) -> LayerRow:
    group = max(groups, key=lambda group: len(group.units))
    now = len(layer.out_units)
    before = 0.0
    for one in groups:
        ours = (layer.out_units >= one.first) & (layer.out_units < one.first + one.width)
        before += float(ours.sum()) * one.width / max(1, len(one.units))
    members = [name for one in groups for name in one.producers if name != layer.name]
    kind = "linear" if not layer.kernel else "x".join(map(str, layer.kernel)) + " convolution"
    if not layer.dense:
        kind += " (depth-wise)" if layer.conv_groups == len(layer.in_units) else " (grouped)"
    said = [
        f"<b>{layer.name}</b>: {kind}",
        f"{len(layer.in_units)} channels in, {now} out" + (f" of {before:.0f}" * (now < before)),
        wrap(f"shares them with {listed(members, 4)}", WIDE)
        if members
        else "shares them with none",
        wrap(f"read by {listed(group.consumers, 4) or 'no layer'}", WIDE),
    ]
    if group.why:
        said.append(wrap(f"frozen: {group.why}", WIDE))
    return LayerRow(
        name=layer.name,
        stage=stage,
        now=now,
        original=max(now, round(before)),
        turn=turns.get(group.name),
        members=len(group.producers),
        first=group.producers[0] == layer.name,
        why=group.why,
        hover="<br>".join(said),
    )


def spans(rows: tuple[LayerRow, ...]) -> list[tuple[str, int, int]]:
    """Runs of rows of one stage: its name, its first and its last row."""
    runs: list[tuple[str, int, int]] = []
    for index, row in enumerate(rows):
        if runs and runs[-1][0] == row.stage:
            runs[-1] = (row.stage, runs[-1][1], index)
        else:
            runs.append((row.stage, index, index))
    return runs
