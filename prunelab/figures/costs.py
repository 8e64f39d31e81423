"""The costs panel: the cost of each layer in the original network, now, and after the proposal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from prunelab.errors import UnknownName
from prunelab.figures.row_grouping import modules
from prunelab.figures.style import (
    DROP,
    FAINT,
    HATCH,
    INVISIBLE,
    KEEP,
    Panel,
    Theme,
    axis,
    figure,
    row_axis,
    row_bars,
    row_height,
    shorten,
)
from prunelab.values import parts_of, si
from prunelab.values.given import as_annotated

KINDS: dict[str, str] = {
    "macs": "multiply-adds for one input",
    "params": "parameters",
    "activation_bytes": "bytes of activations for one input",
    "seconds": "seconds of one run, estimated",
}


@dataclass(frozen=True, slots=True)
class CostRow:
    """The cost of one layer, or of `layers` layers in one module."""

    name: str
    original: float
    now: float
    proposed: float
    layers: int = 1


@dataclass(frozen=True, slots=True)
class CostsInfo:
    """The contents of the panel: a row per layer or module, in the unit of `kind`."""

    kind: str
    rows: tuple[CostRow, ...]


@as_annotated
def costs_info(
    original: Mapping[str, Any],
    now: Mapping[str, Any],
    proposed: Mapping[str, Any] | None = None,
    kind: str = "macs",
) -> CostsInfo:
    """The costs of each layer, or of each module in a network of many layers.

    Parameters
    ----------
    original, now
        Cost (or seconds) by layer, of the original and the current network, as `Session.costs` (or
        `Session.seconds`) returns it.
    proposed
        The same after the proposal; None where there is none.
    kind
        The quantity drawn: a field of `Cost`, or "seconds".

    Raises
    ------
    UnknownName
        For another kind.
    """
    if kind not in KINDS:
        raise UnknownName("kind of cost", kind, KINDS)
    ahead = now if proposed is None else proposed

    def value(costs: Mapping[str, Any], name: str) -> float:
        if kind == "seconds":
            return float(costs[name])
        return float(sum(getattr(costs[part], kind) for part in parts_of(costs, name)))

    rows: dict[str, list[str]] = {}
    for name, row in modules([name for name in original if name]).items():
        rows.setdefault(row, []).append(name)
    if "" in original:
        rows["everything else"] = [""]
    made = []
    for row, names in rows.items():
        was, is_, then = (
            sum(value(costs, name) for name in names) for costs in (original, now, ahead)
        )
        made.append(CostRow(row, was, is_, then, len(names)))
    return CostsInfo(kind, tuple(made))


def draw_costs(info: CostsInfo) -> Panel:
    """Horizontal bars, first layer on top; the transparent rows, last, take hover."""
    rows = info.rows
    most = max((row.original for row in rows), default=1.0) or 1.0
    return Panel(
        title=f"Costs by layer: {KINDS[info.kind].split(' for')[0]}",
        traces=(
            row_bars([row.original for row in rows], "original", {"color": FAINT}),
            row_bars([row.proposed for row in rows], "left", {"color": KEEP}),
            row_bars(
                [row.now - row.proposed for row in rows],
                "proposed to drop",
                {"color": DROP, "pattern": HATCH},
                base=[row.proposed for row in rows],
            ),
            row_bars(
                [1.08 * most] * len(rows),
                "layer",
                {"color": INVISIBLE},
                width=1,
                hovertext=[_hover(row, info.kind) for row in rows],
                hoverinfo="text",
            ),
        ),
        xaxis=axis(KINDS[info.kind], range=[0, 1.08 * most], nticks=6),
        yaxis=row_axis(
            "layer", len(rows), range(len(rows)), [f"{shorten(row.name)} " for row in rows]
        ),
        note="" if rows else "no costs to show",
    )


def _hover(row: CostRow, kind: str) -> str:
    unit = {"activation_bytes": "B", "seconds": "s", "macs": "MACs"}.get(kind, "parameters")
    steps = [row.original, row.now, *([row.proposed] if row.proposed != row.now else [])]
    inside = f" ({row.layers} layers)" if row.layers > 1 else ""
    return f"{row.name}{inside}: {' → '.join(si(value) for value in steps)} {unit}"


@as_annotated
def costs(
    original: Mapping[str, Any],
    now: Mapping[str, Any],
    proposed: Mapping[str, Any] | None = None,
    kind: str = "macs",
    *,
    theme: Theme = "light",
) -> go.Figure:
    """The cost of each layer: in the original network, now, and after a proposal.

    Parameters
    ----------
    original, now
        Cost (or seconds) by layer, of the original and the current network, as `Session.costs` (or
        `Session.seconds`) returns it.
    proposed
        The same after the proposal; None where there is none.
    kind
        The quantity drawn: a field of `Cost`, or "seconds".
    theme
        "light" or "dark".

    Raises
    ------
    UnknownName
        For another kind.
    """
    info = costs_info(original, now, proposed, kind)
    return figure(draw_costs(info), theme, height=row_height(len(info.rows)))
