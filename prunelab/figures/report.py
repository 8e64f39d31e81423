"""The report: a session as one page that opens anywhere and steps through its moves.

A pure function of what it is given. Its pictures are SVG, stored once each, so that the page loads
nothing and stays small.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from importlib import resources
from typing import Any

from prunelab.errors import InvalidValue
from prunelab.figures.board import LEGEND, BoardInfo, board_info
from prunelab.figures.costs import KINDS, costs_info, draw_costs
from prunelab.figures.importance import draw_importance
from prunelab.figures.ladder import draw_ladder, searches
from prunelab.figures.lasso_path import draw_path, path_info
from prunelab.figures.style import COSTS, row_height
from prunelab.figures.svg import DEFS, svg
from prunelab.figures.trajectory import draw_trajectory
from prunelab.figures.what_if import WhatIf, networks, packed
from prunelab.figures.widths import draw_widths, gathered
from prunelab.ledger.events import Approved, Event, Noted, Repaired
from prunelab.ledger.history_words import history, told
from prunelab.ledger.state import State, fold
from prunelab.ledger.words import sentence, share
from prunelab.values import Cost, FrozenMap, Units, as_text, si
from prunelab.values.given import as_annotated

START = "The network before the first move."
LayerCosts = Callable[[FrozenMap[Units] | None, FrozenMap[str]], Mapping[str, Cost]]


@dataclass(frozen=True, slots=True)
class Scene:
    """The contents of the page at one step, after event `seq`.

    `costs` are rows of (name, original, now, proposed), `groups` of (channel
    group, original, now, as proposed, damage, search). `pictures` and `layers` are SVG elements:
    the evidence, widths and trajectory, and the costs by layer.
    """

    seq: int
    line: str
    sentence: str
    costs: tuple[tuple[str, str, str, str], ...]
    groups: tuple[tuple[str, str, str, str, str, str], ...]
    pictures: tuple[str, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """The attributes of a channel group that a ledger knows."""

    name: str
    producers: Sequence[str]
    consumers: Sequence[str] = ()


@as_annotated
def report(
    events: Iterable[Event],
    layers: Mapping[str, Sequence[str]] | None = None,
    costs: LayerCosts | None = None,
    what_if: WhatIf | None = None,
) -> str:
    """The session of `events` as an HTML page.

    Parameters
    ----------
    events
        The events of the session, in order.
    layers
        The groups to show, name to producing layers; None: every group, with one layer.
    costs
        Returns the cost of each layer for the kept units of each group (None: all units). Without
        it the page shows no costs by layer.
    what_if
        With it the page says what goes with any channels of the last network.
    """
    past = list(events)
    if not past:
        raise InvalidValue("events is empty: give the events of a session, list(session.ledger).")
    state = fold(past)
    began = state.began
    left = state.now.cost.macs / state.base.cost.macs
    made = (began.at, f"seed {began.seed}", *(" ".join(item) for item in began.versions.items()))
    drawn: dict[str, int] = {}  # every picture once: most stay the same from step to step
    steps = []
    for scene in scenes(past, layers, costs):
        step: dict[str, Any] = asdict(scene)
        for name in ("pictures", "layers"):
            step[name] = [drawn.setdefault(picture, len(drawn)) for picture in step[name]]
        steps.append(step)
    held = {
        "steps": steps,
        "pictures": list(drawn),
        "networks": networks(state),
        "whatIf": what_if and packed(what_if),
    }
    data = json.dumps(held, separators=(",", ":"))
    assets = resources.files("prunelab") / "assets"
    parts = {
        "title": escape(f"{began.network}, pruned to {left:.1%} of its MACs"),
        "from": escape(" · ".join(filter(None, made))),
        "legend": LEGEND,
        "defs": DEFS,
        "history": history(state, past),
        "data": data.replace("<", "\\u003c"),  # a text with </script> must not end the data
        "decide": (assets / "what_if.js").read_text(encoding="utf-8"),
    }
    page = assets / "report.html"
    # in one pass: nothing that a person wrote is taken for a place to fill
    return re.sub(r"{{(\w+)}}", lambda place: parts[place[1]], page.read_text(encoding="utf-8"))


def scenes(
    events: Sequence[Event],
    layers: Mapping[str, Sequence[str]] | None = None,
    costs: LayerCosts | None = None,
) -> list[Scene]:
    """A scene for every event; a repair that came with an approve shares its scene."""
    made = []
    group = ""
    for place, event in enumerate(events):
        after = events[place + 1] if place + 1 < len(events) else None
        if isinstance(event, Approved) and isinstance(after, Repaired) and after.automatic:
            continue
        state = fold(events[: place + 1])
        group = _chosen(state, group or next(iter(layers or state.full_widths)))
        about = _Group(group, (layers or {}).get(group, (group,)))
        words = told(event) if isinstance(event, Noted) else sentence(state, event, about)
        info = board_info(state, group, layers=layers)
        made.append(
            Scene(
                seq=event.seq,
                line=state.line(),
                sentence=words or START,
                costs=_costs(state),
                groups=_groups(state, info),
                pictures=_pictures(state, info, group),
                layers=() if costs is None else _by_layer(state, costs),
            )
        )
    return made


def _chosen(state: State, group: str) -> str:
    """The group that loses most by the proposal, or the one shown before."""
    drop = state.pending.drop if state.pending else {}
    return max(drop, key=lambda name: len(drop[name]), default=group)


def _pictures(state: State, info: BoardInfo, group: str) -> tuple[str, ...]:
    """The panels of the evidence, then widths and trajectory."""
    wide = gathered(info.widths)
    rows = len(wide.rows)
    found = [svg(draw_importance(info.importance))] if info.importance.units else []
    if info.ladder.sizes:
        found.append(svg(draw_ladder(info.ladder)))
    path = path_info(state, group)
    if path.penalties:
        found.append(svg(draw_path(path)))
    found.append(svg(draw_widths(replace(wide, room=rows)), height=row_height(rows)))
    return (*found, svg(draw_trajectory(info.trajectory)))


def _by_layer(state: State, costs: LayerCosts) -> tuple[str, ...]:
    now, move = state.now, state.pending
    ahead: FrozenMap[Units] | None = None
    if move is not None:
        full = {name: range(width) for name, width in state.full_widths.items()}
        left = {**full, **(now.kept or {})}
        gone = {name: set(units) for name, units in move.drop.items()}
        ahead = FrozenMap(
            {name: tuple(u for u in left[name] if u not in gone.get(name, ())) for name in full}
        )
    found = []
    for kind in KINDS:
        if kind != "seconds":
            then = None
            if ahead is not None and move is not None:
                then = costs(ahead, FrozenMap({**now.factors, **move.factors}))
            was, is_ = costs(None, FrozenMap()), costs(now.kept, now.factors)
            info = costs_info(was, is_, then, kind)
            found.append(svg(draw_costs(info), height=row_height(len(info.rows))))
    return tuple(found)


def _groups(state: State, info: BoardInfo) -> tuple[tuple[str, str, str, str, str, str], ...]:
    """A row per channel group: its widths, predicted damage, and search."""
    pending = state.pending
    search = (
        searches(state.proposed.seen) if state.proposed and (pending or state.exhausted) else {}
    )
    rows = []
    for row in info.widths.rows:
        damage = pending.damage.get(row.name) if pending else None
        rungs = search.get(row.name, ())
        said = " → ".join(str(len(rung.search)) for rung in rungs)
        if rungs:
            last = rungs[-1]
            sign = "<" if last.verdict == "take" else "≥"
            said += f": {last.worst:.3g} {sign} theta {last.theta:g}"
        name = row.name + (f" ({len(row.layers)} layers)" if row.coupled else "")
        rows.append(
            (
                name,
                str(row.original),
                str(row.now),
                str(row.proposed) if row.proposed != row.now else "",
                "" if damage is None else share(damage),
                said,
            )
        )
    return tuple(rows)


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
        (f"validation {name}", as_text(name, base.metrics[name]), as_text(name, value), "")
        for name, value in now.metrics.items()
    ]
    return tuple(rows)
