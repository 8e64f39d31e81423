"""The panels as an SVG: what a page shows before the figure has come, and where nothing runs.

The same state gives the same text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from textwrap import wrap

from prunelab.figures.board import BoardInfo
from prunelab.figures.ladder import LadderInfo, verdict_label
from prunelab.figures.style import DROP, GHOST, KEEP, TARGET, shorten

WIDE, TALL = 900, 560
INK = "#222222"
PLOT_W, PLOT_H = 340, 165  # of one panel, px
FATES = {"keep": KEEP, "drop": "url(#prunelab-hatch)", "gone": GHOST}
Scale = Callable[[float], float]


HATCHING = (
    '<defs><pattern id="prunelab-hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
    f'patternTransform="rotate(45)"><rect width="6" height="6" fill="{DROP}"/>'
    '<rect width="2" height="6" fill="white"/></pattern></defs>'
)


def svg(info: BoardInfo, line: str, sentence: str) -> str:
    """The four panels of `info` under the state `line` and a `sentence`, on white."""
    told = [(words, 'font-weight="bold"') for words in wrap(line, 120)]
    told += [(words, "") for words in wrap(sentence, 145)]
    body = f'<rect width="{WIDE}" height="{TALL}" rx="6" fill="white"/>' + "".join(
        _text(20, 22 + 17 * i, words, weight) for i, (words, weight) in enumerate(told[:4])
    )
    return _drawing(
        TALL,
        line,
        body
        + _upper(info, 100)
        + _panel(140, 350, _measure(info), _trajectory(info))
        + _panel(530, 350, f"Binary search in {info.ladder.group}", _ladder(info.ladder)),
    )


def picture(info: BoardInfo) -> str:
    """The first two panels of `info` alone, without a ground of their own."""
    return _drawing(PLOT_H + 60, f"Widths, and importance in {info.importance.group}",
                    _upper(info, 30))  # fmt: skip


def _upper(info: BoardInfo, y: int) -> str:
    return _panel(140, y, f"Widths ({len(info.widths.rows)} groups)", _widths(info)) + _panel(
        530, y, f"Importance in {info.importance.group}", _bars(info)
    )


def _drawing(tall: int, title: str, body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {tall}" width="{WIDE}" '
        f'height="{tall}" font-family="sans-serif" font-size="12" fill="{INK}" role="img">'
        f"<title>{escape(title)}</title>{HATCHING}{body}</svg>"
    )


def _panel(x: int, y: int, title: str, body: str) -> str:
    return (
        f'<g transform="translate({x} {y})">{_text(0, -8, title)}'
        f'<path d="M0 0V{PLOT_H}H{PLOT_W}" fill="none" stroke="{GHOST}"/>{body}</g>'
    )


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'


def _rect(x: float, y: float, w: float, h: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{fill}"/>'


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'


def _line(points: list[tuple[float, float]], colour: str, dash: str = "none") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
        f'stroke-dasharray="{dash}"/>'
    )


def _scale(values: list[float], start: float, end: float) -> Scale:
    """A linear map of the span of `values` onto start .. end px, with a margin of a tenth."""
    low, high = min(values), max(values)
    pad = 0.1 * (high - low) or 1.0
    return lambda value: start + (end - start) * (value - low + pad) / (high - low + 2 * pad)


def _widths(info: BoardInfo) -> str:
    rows = info.widths.rows
    step = PLOT_H / max(len(rows), 1)
    widest = max((row.original for row in rows), default=1)
    body = []
    for i, row in enumerate(rows):
        if len(rows) * 13 < PLOT_H:
            body.append(_text(-6, (i + 0.5) * step + 4, shorten(row.name), 'text-anchor="end"'))
        y, h, px = i * step + 0.1 * step, 0.8 * step, PLOT_W / widest
        body.append(_rect(0, y, row.original * px, h, "#dddddd"))
        body.append(_rect(0, y, row.proposed * px, h, KEEP))
        if row.now > row.proposed:
            body.append(
                _rect(row.proposed * px, y, (row.now - row.proposed) * px, h, FATES["drop"])
            )
    return "".join(body) + _text(0, PLOT_H + 16, f"0 to {widest} channels")


def _bars(info: BoardInfo) -> str:
    shown = info.importance
    if not shown.units:
        return _text(20, PLOT_H / 2, "no scores of this group yet")
    least = min((value for value in shown.values if value > 0), default=1.0)
    scaled = [math.log10(max(v, least)) if shown.log else v for v in shown.values]
    top = _scale([*scaled, *([] if shown.log else [0.0])], PLOT_H, 0)
    step = PLOT_W / len(scaled)
    body = [
        _rect(i * step + 0.1 * step, top(v), 0.8 * step, PLOT_H - top(v), FATES[fate])
        for i, (v, fate) in enumerate(zip(scaled, shown.fates, strict=True))
    ]
    dropped = sum(fate == "drop" for fate in shown.fates)
    return "".join(body) + _text(
        0, PLOT_H + 16, f"{len(scaled)} channels, least important first; {dropped} to drop"
    )


def _ladder(info: LadderInfo) -> str:
    if not info.sizes or not info.theta:
        return _text(20, PLOT_H / 2, "no binary search to show")
    floor = min(value for value in (*info.worst, info.theta) if value > 0)
    heights = [math.log10(max(value, floor)) for value in info.worst]
    theta = math.log10(info.theta)
    up = _scale([*heights, theta], PLOT_H, 0)
    step = PLOT_W / len(heights)
    dots = [((i + 0.3) * step, up(height)) for i, height in enumerate(heights)]
    body = [_line([(0, up(theta)), (PLOT_W, up(theta))], TARGET, "6 4"), _line(dots, KEEP)]
    for (x, y), verdict, taken, size in zip(
        dots, info.verdicts, info.taken, info.sizes, strict=True
    ):
        body += [_dot(x, y, TARGET if verdict == "take" else KEEP)]
        body += [_text(x + 7, y - 6, verdict_label(verdict, taken))]
        body += [_text(x, PLOT_H + 16, str(size), 'text-anchor="middle"')]
    body.append(_text(PLOT_W, up(theta) - 5, f"theta {info.theta:g}", 'text-anchor="end"'))
    return "".join(body)


def _measure(info: BoardInfo) -> str:
    shown = info.trajectory
    return f"Validation {shown.metric}{', %' * shown.percent} against MACs, %"


def _trajectory(info: BoardInfo) -> str:
    shown = info.trajectory
    dots = [*shown.path, *(dot for pair in shown.undone for dot in pair)]
    ahead = [] if shown.pending is None else [shown.pending]
    across = _scale([*(dot.macs for dot in dots), *ahead], PLOT_W, 0)
    up = _scale([dot.value for dot in dots], PLOT_H, 0)
    body = [
        _line([(across(dot.macs), up(dot.value)) for dot in pair], GHOST, "3 3")
        for pair in shown.undone
    ]
    path = [(across(dot.macs), up(dot.value)) for dot in shown.path]
    body.append(_line(path, KEEP))
    body += [_dot(x, y, KEEP) for x, y in path]
    x, y = path[-1]
    for macs in ahead:
        body.append(_line([(x, y), (across(macs), y)], DROP, "6 4"))
        body.append(_text(across(macs) + 3, y + 5, "?", 'font-size="18" font-weight="bold"'))
    now = shown.path[-1]
    body.append(_text(0, PLOT_H + 16, f"now {now.macs:.1f}% of the MACs, {now.value:.4g}"))
    return "".join(body)
