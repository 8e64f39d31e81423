"""The trajectory panel: the validation metric against MACs, with the branches undone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import plotly.graph_objects as go

from prunelab.figures.style import (
    DROP,
    GHOST,
    INVISIBLE,
    KEEP,
    TARGET,
    TEXT_PX,
    Panel,
    Theme,
    axis,
    figure,
    stride,
)
from prunelab.ledger.events import Approved, Began, Repaired, Tuned
from prunelab.ledger.predictions import Prediction
from prunelab.ledger.state import Point, State
from prunelab.values.given import as_annotated

SYMBOLS = {Began: "square", Approved: "circle", Repaired: "diamond", Tuned: "triangle-up"}


class Timed(Protocol):
    """The attribute of a latency that is used; `prunelab.Latency` has it."""

    @property
    def median(self) -> float:
        """Seconds."""
        ...


Latencies = Mapping[int, Timed]  # by the number of the event that made the network


@dataclass(frozen=True, slots=True)
class Dot:
    """The network after one step: `macs` in percent of the original, `value` of the metric.

    `kind` is the event's name; `move` counts the approved moves so far. `seconds` is the measured
    latency, if any.
    """

    seq: int
    macs: float
    value: float
    kind: str
    move: int
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Guess:
    """A prediction of the metric where the network was, or would be, at `macs` percent.

    `result` is None while it is open.
    """

    macs: float
    value: float
    result: float | None


@dataclass(frozen=True, slots=True)
class TrajectoryInfo:
    """What the panel draws; accuracies are in percent.

    `path` runs from the start to now. `undone` holds a (from, to) pair for every step that is
    not on it. `pending` is the percentage of MACs that the proposal would leave. `guesses` are the
    predictions that were not withdrawn.
    """

    metric: str
    percent: bool
    path: tuple[Dot, ...]
    undone: tuple[tuple[Dot, Dot], ...] = ()
    pending: float | None = None
    guesses: tuple[Guess, ...] = ()


@as_annotated
def trajectory_info(state: State, latencies: Latencies | None = None) -> TrajectoryInfo:
    """The steps of `state` by their MACs and first validation metric.

    `latencies` are measured ones by event number, as `Session.latencies` holds them.
    """
    timed = latencies or {}
    metric = next(iter(state.base.metrics), "")
    percent = "accuracy" in metric
    base = state.base.cost.macs
    moves: dict[int, int] = {}

    def dot(point: Point) -> Dot:
        before = moves.get(point.parent, 0) if point.parent is not None else 0
        moves[point.seq] = before + isinstance(point.event, Approved)
        value = point.metrics.get(metric, 0.0)
        return Dot(
            seq=point.seq,
            macs=100 * point.cost.macs / base,
            value=100 * value if percent else value,
            kind=type(point.event).__name__,
            move=moves[point.seq],
            seconds=timed[point.seq].median if point.seq in timed else None,
        )

    def guess(prediction: Prediction) -> Guess:
        ahead = state.pending.after if state.pending else state.now.cost
        at = ahead if prediction.settled is None else state.point(prediction.settled).cost
        scale = 100 if percent else 1
        result = None if prediction.result is None else scale * prediction.result
        return Guess(100 * at.macs / base, scale * prediction.guess, result)

    dots = {point.seq: dot(point) for point in state.points}
    on_path = {point.seq for point in state.path}
    return TrajectoryInfo(
        metric=metric,
        percent=percent,
        path=tuple(dots[point.seq] for point in state.path),
        undone=tuple(
            (dots[point.parent], dots[point.seq])
            for point in state.points
            if point.seq not in on_path and point.parent is not None
        ),
        pending=100 * state.pending.after.macs / base if state.pending else None,
        guesses=tuple(guess(p) for p in state.predictions if p.name == metric and not p.withdrawn),
    )


def draw_trajectory(info: TrajectoryInfo) -> Panel:
    """From the original network on the left to fewer MACs on the right.

    The transparent points, last, take hover and clicks, on every branch.
    """
    now = info.path[-1]
    grey_x: list[float | None] = []
    grey_y: list[float | None] = []
    for start, end in info.undone:
        grey_x += [start.macs, end.macs, None]
        grey_y += [start.value, end.value, None]
    ahead = [] if info.pending is None else [now.macs, info.pending]
    dots = [*info.path, *(dot for pair in info.undone for dot in pair)]
    points = list({dot.seq: dot for dot in dots}.values())
    macs = [*(dot.macs for dot in dots), *ahead]
    values = [
        value
        for value in (*(dot.value for dot in dots), *(guess.value for guess in info.guesses))
        if math.isfinite(value)
    ] or [0.0]
    wide = max(0.12 * (max(macs) - min(macs)), 1.0)
    tall = max(
        0.18 * (max(values) - min(values)), 0.2 if info.percent else 0.004 * max(map(abs, values))
    )
    tall = tall or 1.0
    every = stride(now.move, 12)
    name = f"validation {info.metric}" + (", %" if info.percent else "")
    return Panel(
        title="Trajectory",
        traces=(
            go.Scatter(
                x=grey_x,
                y=grey_y,
                mode="lines+markers",
                line={"color": GHOST, "dash": "dot", "width": 1.5},
                marker={"color": GHOST, "size": 7},
                name="undone",
                hoverinfo="skip",
            ),
            go.Scatter(
                x=ahead,
                y=[now.value] * len(ahead),
                mode="lines+text",
                text=["", "<b>?</b>"] if ahead else [],
                textposition="middle right",
                textfont={"size": 20, "color": DROP},
                line={"color": DROP, "dash": "dash", "width": 2},
                name="proposed",
                hoverinfo="skip",
            ),
            _guessed(info),
            go.Scatter(
                x=[dot.macs for dot in info.path],
                y=[dot.value for dot in info.path],
                mode="lines+markers+text",
                line={"color": KEEP, "width": 2},
                marker={
                    "color": KEEP,
                    "opacity": 1,  # plotly fades markers whose sizes differ
                    "size": [13 if dot is now else 9 for dot in info.path],
                    "symbol": [_symbol(dot) for dot in info.path],
                },
                text=[
                    str(dot.move)
                    if dot.kind in ("Began", "Approved") and (dot.move % every == 0 or dot is now)
                    else ""
                    for dot in info.path
                ],
                textposition="bottom center",
                textfont={"size": TEXT_PX},
                name="path",
                hoverinfo="skip",
            ),
            go.Scatter(
                x=[dot.macs for dot in points],
                y=[dot.value for dot in points],
                mode="markers",
                marker={"color": INVISIBLE, "size": 18},
                name="point",
                customdata=[dot.seq for dot in points],
                hovertext=[_hover(dot, info) for dot in points],
                hoverinfo="text",
            ),
        ),
        xaxis=axis(
            "MACs, % of the original",
            range=[max(macs) + wide, min(macs) - 1.4 * wide],
            nticks=5,
        ),
        yaxis=axis(name, range=[min(values) - tall, max(values) + tall], nticks=6),
    )


def _hover(dot: Dot, info: TrajectoryInfo) -> str:
    text = f"{dot.kind.lower()}, move {dot.move}: {dot.macs:.1f}% of the MACs, "
    text += f"{info.metric} {dot.value:.4g}{'%' * info.percent}"
    if dot.seconds is not None:
        text += f", measured {1000 * dot.seconds:.3g} ms"
    return text + ("" if dot in info.path else "; undone")


def _guessed(info: TrajectoryInfo) -> go.Scatter:
    """A cross for each prediction, with a line to its result."""
    sign = "%" * info.percent
    x: list[float | None] = []
    y: list[float | None] = []
    said = []
    for guess in info.guesses:
        x += [guess.macs, guess.macs, None]
        y += [guess.value, guess.result, None]
        out = "open" if guess.result is None else f"it became {guess.result:.4g}{sign}"
        said += [f"predicted {guess.value:.4g}{sign}, {out}", "", ""]
    return go.Scatter(
        x=x,
        y=y,
        mode="lines+markers",
        line={"color": TARGET, "dash": "dot", "width": 1.5},
        marker={
            "color": TARGET,
            "opacity": 1,
            "size": [10, 0, 0] * len(info.guesses),
            "symbol": "x",
        },
        name="predicted",
        hovertext=said,
        hoverinfo="text",
    )


def _symbol(dot: Dot) -> str:
    return {kind.__name__: symbol for kind, symbol in SYMBOLS.items()}[dot.kind]


@as_annotated
def trajectory(
    state: State, latencies: Latencies | None = None, *, theme: Theme = "light"
) -> go.Figure:
    """The validation metric after every step against the MACs left.

    Parameters
    ----------
    state
        The state to draw.
    latencies
        Measured latencies by event number (`Session.latencies`), which are shown on hover.
    theme
        "light" or "dark".
    """
    return figure(draw_trajectory(trajectory_info(state, latencies)), theme)
