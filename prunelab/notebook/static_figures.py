"""The panels as a static SVG, for pages whose figure has not arrived and pages without widgets.

The same state gives the same SVG.
"""

from __future__ import annotations

import base64
from html import escape
from textwrap import wrap

from prunelab.figures.board import BoardInfo, panels
from prunelab.figures.style import INK
from prunelab.figures.svg import HATCHING
from prunelab.figures.svg import svg as panel_as_svg

WIDE, TALL, GAP = 440, 260, 20  # of one panel, px, and between two
ORDER = ("widths", "importance", "trajectory", "search")
FIRST, HIGH = {"widths": 250, "importance": 350, "trajectory": 220}, 312  # px
LINE_PX = 17


def svg(info: BoardInfo, line: str, sentence: str) -> str:
    """The four panels of `info` under the state `line` and a `sentence`, on white."""
    told = [(words, ' font-weight="bold"') for words in wrap(line, 120)]
    told += [(words, "") for words in wrap(sentence, 145)]
    head = '<rect width="100%" height="100%" rx="6" fill="white"/>' + "".join(
        f'<text x="{GAP}" y="{22 + LINE_PX * i}" fill="currentColor"{weight}>{escape(words)}</text>'
        for i, (words, weight) in enumerate(told[:4])
    )
    return _sheet(info, ORDER, line, head, top=100)


def still(picture: str, line: str) -> str:
    """The SVG `picture` as HTML, for a notebook that is opened without its kernel.

    The style hides JupyterLab's "model not found" beside it; the screen's own hides the picture
    while the screen lives.
    """
    data = base64.b64encode(picture.encode()).decode()
    return (
        "<style>.jp-OutputArea:has(.prunelab-still):not(:has(.prunelab-screen)) .jupyter-widgets "
        "{ display: none; }</style>"
        f'<img class="prunelab-still" alt="{escape(line)}" src="data:image/svg+xml;base64,{data}">'
    )


def picture(info: BoardInfo) -> str:
    """The panels that the figure shows first, as wide as there."""
    drawn = panels(info)
    return "".join(
        f'<svg viewBox="0 0 {wide} {HIGH}" style="flex:{wide} 1 0" font-family="sans-serif" '
        f'font-size="12" role="img"><title>{escape(drawn[name].title)}</title>{HATCHING}'
        f"{panel_as_svg(drawn[name], wide, HIGH, tips=False)}</svg>"
        for name, wide in FIRST.items()
    )


def _sheet(
    info: BoardInfo, names: tuple[str, ...], title: str, head: str = "", top: int = GAP
) -> str:
    """The panels `names` two by two, from `top` on."""
    drawn = panels(info)
    places = [
        f'<svg x="{GAP + i % 2 * (WIDE + GAP)}" y="{top + i // 2 * (TALL + GAP)}" '
        f'width="{WIDE}" height="{TALL}">{panel_as_svg(drawn[name], WIDE, TALL, tips=False)}</svg>'
        for i, name in enumerate(names)
    ]
    across, down = 2 * WIDE + 3 * GAP, top + len(names) // 2 * (TALL + GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" '
        f'width="{across}" height="{down}" font-family="sans-serif" font-size="12" '
        f'color="{INK["light"]}" role="img">'
        f"<title>{escape(title)}</title>{HATCHING}{head}{''.join(places)}</svg>"
    )
