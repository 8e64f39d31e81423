"""A panel as SVG, for pages without plotly, such as the report and a committed notebook.

It supports the part of plotly that the panels use: bars and scatters, linear and logarithmic axes.
It takes the colour of the surrounding text, so that one picture fits light and dark pages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from prunelab.figures.style import COUPLED, DROP, GRID, INVISIBLE, TEXT_PX, TITLE_PX, Panel
from prunelab.figures.ticks import decades, round_numbers
from prunelab.values import si
from prunelab.values.given import as_annotated

CHAR_PX = 6.6  # of text, on average
HOVERED = 160  # more bars than this carry no tooltip each: the page would grow large
SIZED = 8.0  # a marker's size where none is given
LINE_PX = 14
THOUSANDS = 10_000  # from here on numbers are written with k, M or G
Scale = Callable[[float], float]

HATCHING = (
    '<defs><pattern id="prunelab-hatch" width="7" height="7" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect width="2" height="7" fill="white" opacity="0.85"/>'
    "</pattern></defs>"
)
# On every page that holds such pictures, once.
DEFS = f'<svg width="0" height="0" style="position:absolute" aria-hidden="true">{HATCHING}</svg>'


@as_annotated
def svg(panel: Panel, width: int = 480, height: int = 300, *, tips: bool = True) -> str:
    """`panel` as an SVG element, for a page that contains `HATCHING` once.

    Parameters
    ----------
    panel
        What a `draw_...` function returns.
    width, height
        The size in px; the element scales with its container.
    tips
        Whether plotly's hover texts become tooltips.
    """
    across, up = _Axis(panel.xaxis, True), _Axis(panel.yaxis, False)
    labels = [text for _, text in up.ticks(height / 40)]
    left = 26 + LINE_PX * (len(up.title) - 1) + CHAR_PX * max(map(len, labels), default=0)
    box = _Box(left, 34, width - left - 12, height - 34 - 30 - LINE_PX * len(across.title))
    x, y = across.scale(box.x, box.x + box.w), up.scale(box.y + box.h, box.y)
    title = panel.title.replace("<br>", ", ")
    parts = [_text(0, 16, title, size=TITLE_PX, bold=True)]
    parts += _grid(box, across, up, x, y)
    for trace in panel.traces:
        given = trace.to_plotly_json()
        if not given.get("visible", True):
            continue
        if not tips:
            given["hovertext"] = None
        marks = _bars(given, x, y) if given["type"] == "bar" else _scatter(given, x, y)
        parts.append(f'<g opacity="{given.get("opacity", 1)}">{"".join(marks)}</g>')
    for line, words in enumerate(panel.note.split("<br>") if panel.note else ()):
        at = box.y + box.h / 2 + line * LINE_PX
        parts.append(_text(box.x + box.w / 2, at, words, anchor="middle", size=TEXT_PX + 1))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="sans-serif" font-size="{TEXT_PX}" fill="currentColor">'
        f"<title>{escape(_plain(title))}</title>{''.join(parts)}</svg>"
    )


@dataclass(frozen=True, slots=True)
class _Box:
    x: float
    y: float
    w: float
    h: float


class _Axis:
    """An axis, from its plotly layout."""

    def __init__(self, given: dict[str, Any], across: bool) -> None:
        self.given = given
        self.across = across
        self.log = given.get("type") == "log"
        self.low, self.high = (float(end) for end in given["range"])
        self.title = given["title"]["text"].split("<br>")

    def scale(self, start: float, end: float) -> Scale:
        """From values to px."""
        run = (self.high - self.low) or 1.0

        def place(value: float) -> float:
            if self.log:
                value = math.log10(value) if value > 0 else self.low
            return start + (end - start) * (value - self.low) / run

        return place

    def ticks(self, room: float) -> list[tuple[float, str]]:
        """The positions and texts of the axis labels; about `room` of them fit."""
        low, high = sorted((self.low, self.high))
        if self.given.get("tickmode") == "array":
            pairs = zip(self.given["tickvals"], self.given["ticktext"], strict=True)
            inside = [(v, _plain(t)) for v, t in pairs if low <= self._at(v) <= high]
            every = -(-len(inside) // max(2, int(room * (2 if self.across else 3))))
            return inside[:: max(1, every)]
        values = decades(low, high, room) if self.log else round_numbers(low, high, room)
        return [(v, si(v) if abs(v) >= THOUSANDS else f"{v:.6g}") for v in values]

    def _at(self, value: float) -> float:
        return math.log10(value) if self.log and value > 0 else value


def _grid(box: _Box, across: _Axis, up: _Axis, x: Scale, y: Scale) -> Iterator[str]:
    """Grid lines, labels and titles."""
    bottom = box.y + box.h
    lines = []
    for value, text in across.ticks(box.w / 70):
        if across.given.get("showgrid", True):
            lines.append(f"M{x(value):.1f} {box.y:.1f}V{bottom:.1f}")
        yield _text(x(value), bottom + 16, text, anchor="middle")
    for value, text in up.ticks(box.h / 40):
        if up.given.get("showgrid", True):
            lines.append(f"M{box.x:.1f} {y(value):.1f}H{box.x + box.w:.1f}")
        yield _text(box.x - 5, y(value) + 4, text, anchor="end")
    yield f'<path d="{"".join(lines)}" stroke="{GRID}" fill="none"/>'
    yield f'<path d="M{box.x:.1f} {box.y}V{bottom:.1f}h{box.w:.1f}" stroke="{GRID}" fill="none"/>'
    for line, words in enumerate(across.title):
        yield _text(box.x + box.w / 2, bottom + 32 + line * LINE_PX, words, anchor="middle")
    for line, words in enumerate(up.title):
        at = f"rotate(-90) translate({-(box.y + box.h / 2):.1f} {12 + line * LINE_PX})"
        yield f'<text text-anchor="middle" transform="{at}">{escape(_plain(words))}</text>'


def _each(value: Any, count: int, default: Any = None) -> list[Any]:
    """A property of `count` marks, given as one value for all or one for each."""
    if isinstance(value, (list, tuple)):
        return [*value, *[default] * (count - len(value))]
    return [default if value is None else value] * count


def _bars(given: dict[str, Any], x: Scale, y: Scale) -> Iterator[str]:
    """Bars of one colour are one path, unless each has a tooltip."""
    flat = given.get("orientation") == "h"
    places, lengths = (given["y"], given["x"]) if flat else (given["x"], given["y"])
    count = len(places)
    marker = given["marker"]
    colours = _each(marker.get("color"), count)
    patterns = _each(marker.get("pattern", {}).get("shape"), count, "")
    told = _each(given.get("hovertext"), count) if count <= HOVERED else [None] * count
    widths = _each(given.get("width"), count, 0.85)
    paths: dict[tuple[str, str], list[str]] = {}
    bases = _each(given.get("base"), count, 0)
    for place, length, width, base, colour, pattern, words in zip(
        places, lengths, widths, bases, colours, patterns, told, strict=True
    ):
        half = width / 2
        if flat:
            x0, x1, y0, y1 = x(base), x(base + length), y(place - half), y(place + half)
        else:
            x0, x1, y0, y1 = x(place - half), x(place + half), y(base), y(base + length)
        w, h = abs(x1 - x0), abs(y1 - y0)
        if not w or not h or not math.isfinite(w + h):
            continue
        at = f"M{min(x0, x1):.1f} {min(y0, y1):.1f}h{w:.1f}v{h:.1f}h-{w:.1f}z"
        if words:
            yield f'<path d="{at}" {_fill(colour)}>{_tip(words)}</path>'
        elif colour != INVISIBLE:
            paths.setdefault((colour, pattern), []).append(at)
    for (colour, pattern), drawn in paths.items():
        outline = "".join(drawn)
        yield f'<path d="{outline}" {_fill(colour)}/>'
        if pattern:
            yield f'<path d="{outline}" fill="url(#prunelab-hatch)"/>'


def _scatter(given: dict[str, Any], x: Scale, y: Scale) -> Iterator[str]:
    """Lines, markers and text, as `mode` says."""
    mode, marker = given["mode"], given.get("marker", {})
    xs, ys = list(given["x"]), list(given["y"])
    count = len(xs)
    whole = [_real(a) and _real(b) for a, b in zip(xs, ys, strict=True)]
    if "lines" in mode:
        line = given.get("line", {})
        dash = {"dash": "6 4", "dot": "2 3"}.get(line.get("dash", ""), "none")
        for run in _runs(whole):
            points = [(x(xs[i]), y(ys[i])) for i in run]
            if line.get("shape") == "hv":
                turns = pairwise(points)
                points = [points[0], *(p for a, b in turns for p in ((b[0], a[1]), b))]
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            yield (
                f'<polyline points="{path}" fill="none" stroke="{line.get("color")}" '
                f'stroke-width="{line.get("width", 2)}" stroke-dasharray="{dash}"/>'
            )
    sizes = _each(marker.get("size"), count, SIZED)
    texts = _each(given.get("text"), count, "")
    places = _each(given.get("textposition"), count, "middle center")
    font = given.get("textfont", {})
    colours = _each(marker.get("color"), count, COUPLED)
    symbols = _each(marker.get("symbol"), count, "circle")
    for i, words in enumerate(_each(given.get("hovertext"), count)):
        if not whole[i]:
            continue
        px, py = x(xs[i]), y(ys[i])
        if "markers" in mode:
            path = _symbol(symbols[i], px, py, sizes[i] / 2)
            yield f'<path d="{path}" {_fill(colours[i])}>{_tip(words) if words else ""}</path>'
        if "text" in mode and texts[i]:
            ink = _each(font.get("color"), count)[i]
            yield _label(texts[i], px, py, places[i], sizes[i] / 2, font.get("size"), ink)


def _real(value: float | None) -> bool:
    """Whether a value can be drawn; gaps in a line and values that are not finite cannot."""
    return value is not None and math.isfinite(value)


def _runs(whole: Sequence[bool]) -> Iterator[list[int]]:
    """The segments of a line between gaps."""
    run: list[int] = []
    for index, good in enumerate(whole):
        if good:
            run.append(index)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _symbol(name: str, x: float, y: float, r: float) -> str:
    """A marker's outline."""
    shapes: dict[str, list[tuple[float, float]]] = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "triangle-up": [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        "star": [
            (k * math.sin(math.pi * i / 5), -k * math.cos(math.pi * i / 5))
            for i, k in enumerate((1.4, 0.55) * 5)
        ],
        "x": [
            *((-1, -0.4), (-0.4, -1), (0, -0.6), (0.4, -1), (1, -0.4), (0.6, 0)),
            *((1, 0.4), (0.4, 1), (0, 0.6), (-0.4, 1), (-1, 0.4), (-0.6, 0)),
        ],
    }
    corners = shapes.get(name)
    if corners is None:
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    return "M" + "L".join(f"{x + r * a:.1f} {y + r * b:.1f}" for a, b in corners) + "z"


def _label(
    words: str, x: float, y: float, place: str, clear: float, size: int | None, ink: str | None
) -> str:
    vertical, _, across = place.partition(" ")
    y += {"top": -clear - 4, "bottom": clear + TEXT_PX}.get(vertical, 4)
    x += {"left": -clear - 3, "right": clear + 3}.get(across, 0)
    anchor = {"left": "end", "right": "start"}.get(across, "middle")
    return _text(x, y, words, anchor=anchor, size=size or TEXT_PX, ink=ink)


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    size: int = TEXT_PX,
    bold: bool = False,
    ink: str | None = None,
) -> str:
    look = f'text-anchor="{anchor}"' if anchor != "start" else ""
    if size != TEXT_PX:
        look += f' font-size="{size}"'
    if bold or "<b>" in words:
        look += ' font-weight="bold"'
    if ink is not None:
        look += f' fill="{ink}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(_plain(words))}</text>'


def _tip(words: str) -> str:
    return f"<title>{escape(_plain(words.replace('<br>', ', ')))}</title>"


def _fill(colour: str | None) -> str:
    if colour == INVISIBLE:
        return 'fill="transparent"'
    return f'fill="{colour or DROP}"'


def _plain(words: str) -> str:
    """Text without the few tags that plotly reads."""
    return re.sub(r"</?(b|i|br|span)( [^>]*)?>", "", words)
