"""Tiles: small pictures side by side, such as kernels, feature maps and images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from prunelab.errors import InvalidValue
from prunelab.figures.style import (
    DROP,
    INVISIBLE,
    KEEP,
    TEXT_PX,
    TITLE_PX,
    Theme,
    caption,
    paper,
)
from prunelab.values.given import as_annotated

TILE_PX, LINE_PX, GAP = 84, 17, 0.08  # the gap is a share of a tile
SIGNED = ((0.0, DROP), (0.5, "#ffffff"), (1.0, KEEP))
UNSIGNED = ((0.0, "#ffffff"), (1.0, "#222222"))


@as_annotated
def tiles(
    pictures: Sequence[np.ndarray],
    labels: Sequence[str] = (),
    title: str = "",
    *,
    columns: int = 8,
    alike: bool = False,
    theme: Theme = "light",
) -> go.Figure:
    """`pictures` [n, height, width] in rows of `columns`, each under its label.

    Values share one scale: white to black or, where some are negative, vermilion through white
    (zero) to blue.

    Parameters
    ----------
    pictures
        Arrays or tensors of one size.
    labels
        A label for each picture, or none; its lines are separated by <br>.
    title
        The title of the figure.
    columns
        The number of pictures in a row.
    alike
        Whether each picture is scaled by its own largest value.
    theme
        "light" or "dark".

    Raises
    ------
    InvalidValue
        For pictures of different sizes, or another number of labels.
    """
    stack: np.ndarray = np.asarray(pictures, dtype=np.float32)
    if stack.ndim != 3 or not stack.size:
        raise InvalidValue(
            f"pictures are [n, height, width], all of one size; given {list(stack.shape)}."
        )
    if labels and len(labels) != len(stack):
        raise InvalidValue(f"{len(labels)} labels for {len(stack)} pictures; give one for each.")
    if columns < 1:
        raise InvalidValue(f"columns must be at least 1, not {columns}.")
    signed = bool((stack < 0).any())
    size = np.abs(stack).max(axis=(1, 2), keepdims=True) if alike else np.abs(stack).max()
    stack = stack / np.where(size > 0, size, 1)
    columns = min(columns, len(stack))
    rows = -(-len(stack) // columns)
    lines = max((label.count("<br>") + 1 for label in labels), default=0)
    across, down = 1 + GAP, 1 + GAP + lines * LINE_PX / TILE_PX
    figure = go.Figure(layout={
        **paper(theme),
        "width": round(columns * across * TILE_PX) + 24,
        "height": round(rows * down * TILE_PX) + (52 if title else 20),
        "margin": {"l": 12, "r": 12, "t": 40 if title else 8, "b": 12},
        "title": {"text": title, "font": {"size": TITLE_PX}, "x": 0, "xref": "paper"},
        "xaxis": {"visible": False, "range": [-GAP, columns * across], "fixedrange": True},
        "yaxis": {"visible": False, "range": [rows * down, 0], "fixedrange": True},
    })  # fmt: skip
    height, width = stack.shape[1:]
    for index, picture in enumerate(stack):
        x, y = (index % columns) * across, (index // columns + 1) * down - 1 - GAP
        figure.add_trace(go.Heatmap(
            z=_bytes(picture),
            x0=x + 0.5 / width, dx=1 / width, y0=y + 0.5 / height, dy=1 / height,
            zmin=-127 if signed else 0, zmax=127,
            colorscale=SIGNED if signed else UNSIGNED,
            showscale=False, hoverinfo="skip",
        ))  # fmt: skip
        figure.add_shape(
            type="rect", x0=x, x1=x + 1, y0=y, y1=y + 1, fillcolor=INVISIBLE,
            line={"color": "#999999", "width": 1},
        )  # fmt: skip
        if labels:
            figure.add_annotation(
                caption(labels[index], TEXT_PX, x=x + 0.5, y=y, yanchor="bottom", yshift=-2)
            )
    return figure


def _bytes(picture: np.ndarray) -> np.ndarray:
    """Map -1 .. 1 to one byte per value, which keeps the page small."""
    return np.round(127 * picture).astype(np.int8)
