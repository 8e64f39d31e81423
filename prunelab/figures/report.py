"""The report: a whole session as one page that opens anywhere and steps through its moves.

A pure function of the events; plotly.js stands inside, so the page loads nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib import resources
from typing import Any

from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from prunelab.figures.board import HEIGHTS, LEGEND, NARROW, board_info, frame, panels, traces
from prunelab.ledger import Approved, Event, Noted, Repaired, State, fold, show
from prunelab.values import Cost, si
from prunelab.words import history, sentence, told

START = "The network before the first move."
COSTS = {"macs": "MACs", "params": "parameters", "activation_bytes": "activations, bytes"}


@dataclass(frozen=True, slots=True)
class Scene:
    """What the page shows at one step, after event `seq`.

    `costs` are rows of (what, in the original network, now, as proposed). `traces` are plotly's,
    `grid` and `stack` its layouts for wide and narrow pages.
    """

    seq: int
    line: str
    sentence: str
    costs: tuple[tuple[str, str, str, str], ...]
    traces: list[dict[str, Any]]
    grid: dict[str, Any]
    stack: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Group:
    """A channel group as far as a ledger knows it."""

    name: str
    producers: Sequence[str]
    consumers: Sequence[str] = ()


def report(events: Iterable[Event], layers: Mapping[str, Sequence[str]] | None = None) -> str:
    """The session of `events` as an HTML page.

    `layers` are the groups to show, name to producing layers; default: every group, one layer.
    """
    past = list(events)
    state = fold(past)
    began = state.began
    share = state.now.cost.macs / state.base.cost.macs
    made = (began.at, f"seed {began.seed}", *(" ".join(item) for item in began.versions.items()))
    steps = json.dumps([asdict(scene) for scene in scenes(past, layers)], cls=PlotlyJSONEncoder)
    parts = {
        "title": escape(f"{began.network}, pruned to {share:.1%} of its MACs"),
        "from": escape(" · ".join(filter(None, made))),
        "legend": LEGEND,
        "history": history(state, past),
        "narrow": str(NARROW),
        "grid": str(HEIGHTS["grid"]),
        "stack": str(HEIGHTS["stack"]),
        "plotly": get_plotlyjs(),
        "steps": steps.replace("<", "\\u003c"),  # a text with </script> must not end the data
    }
    page = resources.files("prunelab") / "assets" / "report.html"
    # in one pass: nothing that a person wrote is taken for a place to fill
    return re.sub(r"{{(\w+)}}", lambda place: parts[place[1]], page.read_text(encoding="utf-8"))


def scenes(
    events: Sequence[Event], layers: Mapping[str, Sequence[str]] | None = None
) -> list[Scene]:
    """A scene for every event; a repair that came with an approve shares its scene."""
    made = []
    group = ""
    for place, event in enumerate(events):
        after = events[place + 1] if place + 1 < len(events) else None
        if isinstance(event, Approved) and isinstance(after, Repaired) and after.automatic:
            continue
        state = fold(events[: place + 1])
        group = _chosen(state, group or next(iter(layers or state.began.widths)))
        made.append(_scene(state, event, group, layers))
    return made


def _chosen(state: State, group: str) -> str:
    """The group that loses most by the proposal, or the one shown before."""
    drop = state.pending.drop if state.pending else {}
    return max(drop, key=lambda name: len(drop[name]), default=group)


def _scene(
    state: State, event: Event, group: str, layers: Mapping[str, Sequence[str]] | None
) -> Scene:
    about = _Group(group, (layers or {}).get(group, (group,)))
    words = told(event) if isinstance(event, Noted) else sentence(state, event, about)
    drawn = panels(board_info(state, group, layers=layers))
    return Scene(
        seq=event.seq,
        line=state.line(),
        sentence=words or START,
        costs=_costs(state),
        traces=[trace.to_plotly_json() for trace in traces(drawn)],
        grid=frame(drawn, "grid"),
        stack=frame(drawn, "stack"),
    )


def _costs(state: State) -> tuple[tuple[str, str, str, str], ...]:
    base, now = state.base, state.now
    ahead = state.pending.after if state.pending else None

    def cell(cost: Cost | None, name: str) -> str:
        if cost is None:
            return ""
        value = getattr(cost, name)
        return f"{si(value)} ({value / getattr(base.cost, name):.1%})"

    rows = [
        (words, si(getattr(base.cost, name)), cell(now.cost, name), cell(ahead, name))
        for name, words in COSTS.items()
    ]
    rows += [
        (f"validation {name}", show(name, base.metrics[name]), show(name, value), "")
        for name, value in now.metrics.items()
    ]
    return tuple(rows)
