"""The table of layers: a row for each group, with its costs and its width, which can be typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import groupby

from prunelab.figures.row_grouping import modules
from prunelab.figures.style import shorten
from prunelab.figures.widths import DIAMOND, WidthRow
from prunelab.notebook import text
from prunelab.notebook.markup import box, number, say, tag, tick
from prunelab.notebook.view import View
from prunelab.values import si

MANY = 30  # rows; more of them are grouped, in the network's order
MODULES = 16  # the largest number of modules
NAME = 30  # characters of a layer's name


def layers(view: View) -> str:
    """What acts on several rows, the rows, and a box for the channels of the selected layer."""
    rows = view.info.widths.rows
    widest = max((row.original for row in rows), default=1)
    if view.table.sorted_by:
        value = values(view)[view.table.sorted_by]
        rows = tuple(sorted(rows, key=lambda row: -value(row)))
    if len(rows) <= MANY or view.table.sorted_by:
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
    return _above(view) + tag("div", _heads(view) + body, kind="pl-rows", role="list") + typed


def values(view: View) -> Mapping[str, Callable[[WidthRow], float]]:
    """By what rows can be sorted, largest first: a number of each row, by the column's name."""
    move = view.move
    return {
        "macs": lambda row: _of(view, row, "macs"),
        "params": lambda row: _of(view, row, "params"),
        "seconds": lambda row: sum((view.seconds or {}).get(layer, 0.0) for layer in row.layers),
        "now": lambda row: row.now,
        "keep": lambda row: row.proposed,
        "loses": lambda row: move.damage.get(row.name, 0.0) if move else 0.0,
    }


def _of(view: View, row: WidthRow, kind: str) -> float:
    """A cost of the layers of a row."""
    costs = view.layer_costs
    return sum(getattr(costs[layer], kind) for layer in row.layers if layer in costs)


def _above(view: View) -> str:
    """The search, and what acts on several rows."""
    off = bool(view.at_work)
    search = tag("input", type="search", placeholder=text.SEARCH, data_filter="layers",
                 aria_label=text.SEARCH, kind="pl-search")  # fmt: skip
    ticked = len(view.table.ticked)
    return tag("div", search + "".join((
        tick("multiples", text.MULTIPLES, text.MULTIPLES_TIP, view.table.multiples, disabled=off),
        box("several", text.several(ticked), text.SEVERAL_TIP, text.SEVERAL_UNIT, type="text",
            value="", size="6", disabled=off or not ticked),
    )), kind="pl-line")  # fmt: skip


def _heads(view: View) -> str:
    """The names of the columns; a click on one sorts by it."""
    heads = []
    for key, name, tip in text.HEADS:
        if not key:
            heads.append(tag("span", escape(name), title=tip or None))
            continue
        on = view.table.sorted_by == key
        heads.append(tag(
            "button", escape(name) + (" ▾" if on else ""), kind="pl-sort", type="button",
            data_do="sort", data_arg=key, title=f"{tip}. {text.SORT_TIP}",
            aria_pressed="true" if on else "false",
        ))  # fmt: skip
    return tag("div", *heads, kind="pl-row pl-heads")


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
    chosen, off = row.name == view.group.name, row.now < 2 or bool(view.at_work)
    mark = f" {DIAMOND}" if row.coupled else ""
    tip = text.COUPLED_TIP.format(", ".join(row.layers)) if row.coupled else row.name
    name = tag(
        "button", escape((short or shorten(row.name, NAME)) + mark), kind="pl-name", type="button",
        data_do="group", data_arg=row.name, title=tip, aria_pressed="true" if chosen else "false",
    )  # fmt: skip
    move = view.move
    loses = text.little(move.damage[row.name]) if move and row.name in move.damage else ""
    label = f"{text.COUNT}: {row.name}"
    parts = (
        tag("input", type="checkbox", data_do="tick", data_arg=row.name, title=text.TICK_TIP,
            checked=row.name in view.table.ticked, aria_label=f"{text.TICK}: {row.name}"),
        name,
        *_costs(view, row),
        say(text.change(row.now, row.now, row.original), "width", "span"),
        tag("input", type="number", min="1", max=row.now, step="1", value=row.proposed,
            data_do="typed", data_arg=row.name, title=text.COUNT_TIP, aria_label=label,
            disabled=off, kind="pl-changed" if row.proposed != row.now else None),
        tag("span", bar(row.proposed, row.now, row.original, widest), tag(
            "input", type="range", min="1", max=row.now, step="1", value=row.proposed,
            data_do="width", data_arg=row.name, data_live=True, title=text.COUNT_TIP,
            aria_label=label, disabled=off), kind="pl-slide"),
        number(loses, text.LOSS_TIP) if loses else "<b></b>",
    )  # fmt: skip
    kind = "pl-row pl-chosen" if chosen else "pl-row"
    return tag("div", *parts, kind=kind, role="listitem", data_row=row.name, data_key=row.name)


def _costs(view: View, row: WidthRow) -> tuple[str, str, str]:
    """The share of the multiply-adds, the parameters and the time of a row's layers."""
    total = sum(cost.macs for cost in view.layer_costs.values())
    if not total:
        return "<b></b>", "<b></b>", "<b></b>"
    seconds = values(view)["seconds"](row)
    shown = (
        f"{_of(view, row, 'macs') / total:.1%}",
        si(_of(view, row, "params")),
        text.ms(seconds) if seconds else text.UNKNOWN,
    )
    made = [tag("span", escape(words), kind="pl-cost") for words in shown]
    return made[0], made[1], made[2]


def bar(kept: float, now: float, original: float, widest: float) -> str:
    """A bar of the channels kept, those to be dropped, and those dropped before."""

    def part(kind: str, channels: float) -> str:
        return tag("i", kind=f"pl-{kind}", style=f"width:{100 * channels / widest:.2f}%")

    parts = part("kept", kept), part("going", now - kept), part("gone", original - now)
    return tag("span", *parts, kind="pl-bar")
