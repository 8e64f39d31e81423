"""The list of layers: a row with a width slider for each; grouped by module if there are many."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from prunelab.figures.row_grouping import modules
from prunelab.figures.widths import DIAMOND, WidthRow
from prunelab.notebook import text
from prunelab.notebook.markup import box, number, say, tag
from prunelab.notebook.view import View

MANY = 30  # rows; more of them are grouped
MODULES = 16  # the largest number of modules


def layers(view: View) -> str:
    """A search box, the rows, and a box for the channels of the selected layer."""
    rows = view.info.widths.rows
    widest = max((row.original for row in rows), default=1)
    search = tag("input", type="search", placeholder=text.SEARCH, data_filter="layers",
                 aria_label=text.SEARCH, kind="pl-search")  # fmt: skip
    head = tag("div", *(
        tag("span", escape(name), title=tip) for name, tip in text.HEADS
    ), kind="pl-row pl-heads")  # fmt: skip
    if len(rows) <= MANY:
        body = "".join(_row(view, row, widest) for row in rows)
    else:
        part = modules([row.name for row in rows], MODULES)
        body = "".join(
            _module(view, name, list(inside), widest)
            for name, inside in groupby(rows, key=lambda row: part[row.name])
        )
    chosen = ", ".join(map(str, view.drop.get(view.group.name, ())))
    typed = box("units", text.UNITS, text.UNITS_TIP, f"({view.group.name})", type="text",
                value=chosen)  # fmt: skip
    return search + tag("div", head + body, kind="pl-rows", role="list") + typed


def _module(view: View, name: str, rows: Sequence[WidthRow], widest: float) -> str:
    now, proposed = sum(row.now for row in rows), sum(row.proposed for row in rows)
    label = text.module(name, len(rows), now, proposed)
    body = "".join(_row(view, row, widest, row.name.removeprefix(f"{name}.")) for row in rows)
    opened = any(row.name == view.group.name for row in rows)
    return tag(
        "details", tag("summary", escape(label)), body, kind="pl-module", data_key=name, open=opened
    )


def _row(view: View, row: WidthRow, widest: float, short: str = "") -> str:
    """One layer, by its `short` name where it is inside a module."""
    chosen = row.name == view.group.name
    mark = f" {DIAMOND}" if row.coupled else ""
    tip = text.COUPLED_TIP.format(", ".join(row.layers)) if row.coupled else row.name
    name = tag(
        "button", escape((short or row.name) + mark), kind="pl-name", type="button",
        data_do="group", data_arg=row.name, title=tip, aria_pressed="true" if chosen else "false",
    )  # fmt: skip
    move = view.move
    loses = text.little(move.damage[row.name]) if move and row.name in move.damage else ""
    parts = (
        name,
        say(text.change(row.now, row.proposed, row.original), "width", "span"),
        bar(row.proposed, row.now, row.original, widest),
        tag(
            "input", type="range", min="1", max=row.now, step="1", value=row.proposed,
            data_do="width", data_arg=row.name, data_live=True, title=text.COUNT_TIP,
            aria_label=f"{text.COUNT}: {row.name}", disabled=row.now < 2 or bool(view.at_work),
        ),
        number(loses, text.LOSS_TIP) if loses else "<b></b>",
    )  # fmt: skip
    kind = "pl-row pl-chosen" if chosen else "pl-row"
    return tag("div", *parts, kind=kind, role="listitem", data_row=row.name, data_key=row.name)


def bar(kept: float, now: float, original: float, widest: float) -> str:
    """A bar of the channels kept, those to be dropped, and those dropped before."""

    def part(kind: str, channels: float) -> str:
        return tag("i", kind=f"pl-{kind}", style=f"width:{100 * channels / widest:.2f}%")

    parts = part("kept", kept), part("going", now - kept), part("gone", original - now)
    return tag("span", *parts, kind="pl-bar")
