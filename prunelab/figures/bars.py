"""Bars: one value for each channel, such as damages, losses or scales."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from prunelab.errors import InvalidValue
from prunelab.figures.style import DROP, HATCH, KEEP, Panel, Theme, axis, figure, level, stride
from prunelab.values.given import as_annotated

ROOM = 64  # characters of numbers that stand side by side below the bars


@as_annotated
def bars(
    values: Sequence[float],
    title: str = "",
    meaning: str = "",
    *,
    units: Sequence[int] = (),
    marked: Collection[int] = (),
    threshold: float | None = None,
    margins: Sequence[float] = (),
    theme: Theme = "light",
) -> go.Figure:
    """A bar for each of `values` [units], smallest first, with the number of its unit below.

    Parameters
    ----------
    values
        A number for each unit [units]; arrays and tensors are accepted.
    title
        The title of the figure.
    meaning
        What the values are, with their unit of measurement.
    units
        The numbers of the units [units]; empty: 0, 1, ...
    marked
        Units whose bars are hatched.
    threshold
        A dashed line is drawn at this value.
    margins
        Half the widths of the values' intervals [units], drawn as whiskers; empty: none.
    theme
        "light" or "dark".

    Raises
    ------
    InvalidValue
        Unless there is a unit, and a margin if any are given, for each value.
    """
    heights = np.asarray(values, dtype=float)
    numbers = list(units) or list(range(len(heights)))
    if heights.ndim != 1 or len(numbers) != len(heights):
        raise InvalidValue(
            f"bars draws one value for each unit; given values {list(heights.shape)} and "
            f"{len(numbers)} units."
        )
    half = np.asarray(margins, dtype=float)
    if half.size and half.shape != heights.shape:
        raise InvalidValue(
            f"bars draws one margin for each value; given {list(half.shape)} margins and "
            f"{len(heights)} values."
        )
    order = np.argsort(heights, kind="stable").tolist()
    places = list(range(len(order)))
    step = stride(len(order), ROOM // max((len(str(number)) for number in numbers), default=1))
    traces = []
    for name, marker, stands_out in (
        ("channels", {"color": KEEP}, False),
        ("marked", {"color": DROP, "pattern": HATCH}, True),
    ):
        chosen = [x for x in places if (numbers[order[x]] in marked) is stands_out]
        traces.append(
            go.Bar(
                x=chosen,
                y=[float(heights[order[x]]) for x in chosen],
                marker=marker,
                name=name,
                error_y=_whiskers([float(half[order[x]]) for x in chosen] if half.size else []),
                hovertext=[
                    f"channel {numbers[order[x]]}: {heights[order[x]]:.3g}"
                    + (f" ± {half[order[x]]:.2g}" if half.size else "")
                    for x in chosen
                ],
                hoverinfo="text",
            )
        )
    ends = (-0.7, len(order) - 0.3)
    label = "" if threshold is None else f"{threshold:g}"
    panel = Panel(
        title=title,
        traces=(*traces, level(threshold, label, ends, "threshold")),
        xaxis=axis(
            "channel, smallest value first",
            range=list(ends),
            tickmode="array",
            tickvals=places[::step],
            ticktext=[str(numbers[i]) for i in order[::step]],
            showgrid=False,
        ),
        yaxis=axis(meaning, nticks=6, zeroline=True),
    )
    return figure(panel, theme, height=320)


def _whiskers(margins: Sequence[float]) -> dict[str, Any]:
    return {"array": list(margins), "visible": bool(margins), "thickness": 1.2, "width": 2}
