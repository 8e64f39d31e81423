"""Recall of each class before and after, confused classes, and images whose answer changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from prunelab.errors import InvalidValue
from prunelab.figures.png import data_uri
from prunelab.figures.style import (
    DROP,
    FAINT,
    GHOST,
    HATCH,
    KEEP,
    TEXT_PX,
    TITLE_PX,
    Panel,
    Theme,
    axis,
    caption,
    figure,
    paper,
    row_axis,
    shorten,
)
from prunelab.values.given import as_annotated
from prunelab.values.paired_comparison import Answers

CLASSES = 20  # most classes shown: those whose recall changes most
PICTURES = 12


@dataclass(frozen=True, slots=True)
class Flip:
    """An image, by its index in the split, that the two networks classify differently."""

    image: int
    label: str
    before: str
    after: str
    kind: str  # "lost", "gained" or "other": both are wrong


@dataclass(frozen=True, slots=True)
class ClassRecallInfo:
    """The contents of the figure, for the shown classes in order.

    `before` and `after` are recalls, NaN for a class without images; `images` are their numbers.
    `confused[i][j]` is the change in the number of images of class i that are classified as j.
    """

    classes: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    images: tuple[int, ...]
    confused: tuple[tuple[int, ...], ...]
    flips: tuple[Flip, ...]
    left_out: int = 0  # classes not shown


@dataclass(frozen=True, slots=True)
class BatchesInfo:
    """The contents of the figure without classification: two networks' metric on each batch."""

    metric: str
    before: tuple[float, ...]
    after: tuple[float, ...]


@as_annotated
def class_recall_info(
    before: Answers, after: Answers, classes: Sequence[str] = (), most: int = CLASSES
) -> ClassRecallInfo:
    """Two networks' answers to the same images, class by class.

    Parameters
    ----------
    before, after
        The answers of the two networks.
    classes
        The names of the classes, in the order of their numbers.
    most
        The number of classes shown: those whose recall changes most.

    Raises
    ------
    InvalidValue
        Where the answers are for different images.
    """
    if before.labels != after.labels:
        raise InvalidValue(
            "class_recall compares answers to the same images; these have other labels."
        )
    labels = np.asarray(before.labels)
    given = [np.asarray(answers.given) for answers in (before, after)]
    count = 1 + max(int(numbers.max(initial=0)) for numbers in (labels, *given))
    names = [*classes, *map(str, range(len(classes), count))]
    matrices = [np.zeros((count, count), dtype=np.int64) for _ in given]
    for matrix, answers in zip(matrices, given, strict=True):
        np.add.at(matrix, (labels, answers), 1)
    images = matrices[0].sum(1)
    with np.errstate(invalid="ignore"):
        recalls = [np.diagonal(matrix) / images for matrix in matrices]
    change = np.nan_to_num(np.abs(recalls[1] - recalls[0]), nan=-1.0)
    shown = np.sort(np.argsort(-change, kind="stable")[:most])
    difference = matrices[1] - matrices[0]
    return ClassRecallInfo(
        classes=tuple(names[i] for i in shown),
        before=tuple(recalls[0][shown].tolist()),
        after=tuple(recalls[1][shown].tolist()),
        images=tuple(images[shown].tolist()),
        confused=tuple(map(tuple, difference[np.ix_(shown, shown)].tolist())),
        flips=_flips(labels, given[0], given[1], names),
        left_out=count - len(shown),
    )


def _flips(
    labels: np.ndarray, before: np.ndarray, after: np.ndarray, names: Sequence[str]
) -> tuple[Flip, ...]:
    """All images whose answer changes: first those lost, then those gained."""
    kinds = np.where(before == labels, 0, np.where(after == labels, 1, 2))
    places = np.flatnonzero(before != after)
    order = places[np.argsort(kinds[places], kind="stable")]
    words = ("lost", "gained", "other")
    return tuple(
        Flip(int(i), names[labels[i]], names[before[i]], names[after[i]], words[kinds[i]])
        for i in order
    )


def draw_recall(info: ClassRecallInfo) -> Panel:
    """A bar per class from the recall before to the one after: hatched where it falls."""
    rows = list(range(len(info.classes)))
    pairs = list(zip(np.nan_to_num(info.before), np.nan_to_num(info.after), strict=True))
    low = [float(min(pair)) for pair in pairs]
    least = max(0.0, min([1.0, *low]) - 0.08)
    bars = []
    for name, marker, falls in (
        ("fell", {"color": DROP, "pattern": HATCH}, True),
        ("rose", {"color": KEEP}, False),
    ):
        chosen = [i for i in rows if bool(pairs[i][1] < pairs[i][0]) is falls]
        bars.append(
            go.Bar(
                y=chosen,
                x=[float(abs(pairs[i][1] - pairs[i][0])) for i in chosen],
                base=[low[i] for i in chosen],
                width=0.5,
                orientation="h",
                marker=marker,
                name=name,
                hoverinfo="skip",
            )
        )
    marks = [
        go.Scatter(
            x=[float(pair[side]) for pair in pairs],
            y=rows,
            mode="markers",
            marker={"symbol": symbol, "size": size, "color": colour},
            name=name,
            hovertext=[
                f"{info.classes[i]}: {pairs[i][0]:.1%} → {pairs[i][1]:.1%} "
                f"of {info.images[i]} images"
                for i in rows
            ],
            hoverinfo="text",
        )
        for side, (name, symbol, size, colour) in enumerate(
            (("before", "circle", 9, GHOST), ("after", "diamond", 10, KEEP))
        )
    ]
    more = f" ({info.left_out} classes change less)" if info.left_out else ""
    return Panel(
        title=f"Recall: ● before, ◆ after{more}",
        traces=(*bars, *marks),
        xaxis=axis("share of the class's images classified right", range=[least, 1.02], nticks=6),
        yaxis=_classes(info),
    )


def draw_confused(info: ClassRecallInfo) -> Panel:
    """A square for each pair of classes: the change in the number of confused images."""
    cells = [
        (row, column, value)
        for row, values in enumerate(info.confused)
        for column, value in enumerate(values)
        if value
    ]
    most = max((abs(value) for _, _, value in cells), default=1)
    count = len(info.classes)
    # an answer that is right is good news, any other is bad
    good = [(row == column) == (value > 0) for row, column, value in cells]
    return Panel(
        title="Answers, images: ■ better, ◆ worse",
        traces=(
            go.Scatter(
                x=[column for _, column, _ in cells],
                y=[row for row, _, _ in cells],
                mode="markers+text",
                marker={
                    "symbol": ["square" if fine else "diamond" for fine in good],
                    "size": [7 + 7 * (abs(value) / most) ** 0.5 for _, _, value in cells],
                    "color": [KEEP if fine else DROP for fine in good],
                    "opacity": 1,
                },
                text=[f"{value:+d}" for _, _, value in cells],
                textposition="bottom center",
                textfont={"size": TEXT_PX},
                name="difference",
                hovertext=[
                    f"{value:+d} images of {info.classes[row]} answered {info.classes[column]}"
                    for row, column, value in cells
                ],
                hoverinfo="text",
                cliponaxis=False,
            ),
        ),
        xaxis=axis(
            "answer",
            range=[-0.6, count - 0.4],
            tickmode="array",
            tickvals=list(range(count)),
            ticktext=[shorten(name, 12) for name in info.classes],
            tickangle=-45,  # to the left, where there is room for the last one too
        ),
        yaxis=_classes(info),
        note="" if cells else "no answer changes",
    )


def _classes(info: ClassRecallInfo) -> dict[str, Any]:
    count = len(info.classes)
    labels = [f"{shorten(name, 12)} " for name in info.classes]
    return {**row_axis("right answer", count, range(count), labels), "showgrid": True}


def draw_batches(info: BatchesInfo) -> Panel:
    """A mark for the metric on each batch before and after, joined by a line."""
    rows = list(range(len(info.before)))
    values = [*info.before, *info.after]
    low, high = min(values, default=0.0), max(values, default=1.0)
    pad = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    joined_x: list[int | None] = []
    joined_y: list[float | None] = []
    for i in rows:
        joined_x += [i, i, None]
        joined_y += [info.before[i], info.after[i], None]
    return Panel(
        title=f"{info.metric} of every batch: ● before, ◆ after",
        traces=(
            go.Scatter(
                x=joined_x, y=joined_y, mode="lines", line={"color": FAINT, "width": 3},
                name="batch", hoverinfo="skip",
            ),
            *(
                go.Scatter(
                    x=rows, y=list(side), mode="markers", name=name,
                    marker={"symbol": symbol, "size": 9, "color": colour},
                    hovertext=[f"batch {i}, {name}: {value:.4g}" for i, value in enumerate(side)],
                    hoverinfo="text",
                )
                for name, side, symbol, colour in (
                    ("before", info.before, "circle", GHOST),
                    ("after", info.after, "diamond", KEEP),
                )
            ),
        ),
        xaxis=axis("batch of validation images", range=[-0.6, len(rows) - 0.4], nticks=7),
        yaxis=axis(info.metric, range=[low - pad, high + pad], nticks=6),
    )  # fmt: skip


@as_annotated
def class_recall(
    before: Answers | Sequence[float],
    after: Answers | Sequence[float],
    classes: Sequence[str] = (),
    pictures: Mapping[int, np.ndarray] | None = None,
    *,
    metric: str = "metric",
    theme: Theme = "light",
) -> go.Figure:
    """The differences between two networks' answers to the same images.

    It shows the recall of each class, the confusion of classes, and images whose answer changes.

    Parameters
    ----------
    before, after
        The answers of the two networks (`PairedComparison.answers`) or, without classification,
        the metric on each batch (`PairedComparison.batches`).
    classes
        The names of the classes, in the order of their numbers.
    pictures
        Images by their index in the split, as `Session.pictures` returns them; up to twelve of
        those whose answer changes are shown.
    metric
        The name of the metric on batches.
    theme
        "light" or "dark".

    Raises
    ------
    InvalidValue
        For answers to different images, or answers and batches together.
    """
    if not (isinstance(before, Answers) and isinstance(after, Answers)):
        if isinstance(before, Answers) or isinstance(after, Answers):
            raise InvalidValue(
                "class_recall compares answers with answers, or batches with batches."
            )
        info = BatchesInfo(metric, tuple(before), tuple(after))
        return figure(draw_batches(info), theme)
    found = class_recall_info(before, after, classes)
    recall, confused = draw_recall(found), draw_confused(found)
    seen = pictures or {}
    shown = [flip for flip in found.flips if flip.image in seen][:PICTURES]
    rows = -(-len(shown) // 6)
    tall, tile = 150 + 32 * len(found.classes), 128
    height = tall + rows * tile + (40 if rows else 0)
    floor = 1 - (tall - 60) / height  # where the two panels end
    place = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    made = go.Figure(
        [*recall.traces, *(trace.update(xaxis="x2", yaxis="y2") for trace in confused.traces)],
        {
            **paper(theme),
            "height": height,
            "margin": {"l": 90, "r": 16, "t": 48, "b": 24},
            "xaxis": {**recall.xaxis, "domain": [0, 0.44]},
            "yaxis": {**recall.yaxis, "domain": [floor, 1]},
            "xaxis2": {**confused.xaxis, "domain": [0.58, 1], "anchor": "y2"},
            "yaxis2": {**confused.yaxis, "domain": [floor, 1], "anchor": "x2"},
            "annotations": [
                caption(f"<b>{panel.title}</b>", TITLE_PX, x=x, y=1, yshift=6, **place)
                for panel, x in ((recall, 0), (confused, 0.58))
            ],
        },
    )
    for index, flip in enumerate(shown):
        x, y = (index % 6) / 6, (rows - index // 6) * tile / height
        made.add_layout_image(
            source=data_uri(seen[flip.image]), xref="paper", yref="paper",
            x=x, y=y - 40 / height, sizex=0.14, sizey=80 / height, xanchor="left", yanchor="top",
        )  # fmt: skip
        words = f"<b>{flip.kind}</b>: {shorten(flip.label, 12)}<br>{flip.before} → {flip.after}"
        made.add_annotation(caption(words, TEXT_PX, x=x, y=y - 36 / height, align="left", **place))
    if not found.flips:
        made.add_annotation(caption("no answer changes", TEXT_PX, x=0.58, y=floor, **place))
    return made
