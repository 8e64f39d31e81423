"""A channel graph as a short table, in plain text and for notebooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from prunelab.values import listed, many, si

if TYPE_CHECKING:
    from prunelab.graph.channels.channel_graph import ChannelGraph, ChannelGroup

ROWS = 32  # groups shown in a table; the rest is counted
WIDE = 60  # characters of the last column, where the names are short enough
COLUMNS = ("group", "units", "made by", "read by, or why it stays")


def table(graph: ChannelGraph) -> str:
    """The groups as aligned lines, with totals above and the reasons for frozen ones below."""
    shown, left = _shown(graph.groups)
    rows = [COLUMNS, *(_row(group) for group in shown)]
    wide = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        f"  {name:<{wide[0]}}  {units:>{wide[1]}}  {made:<{wide[2]}}  {last}".rstrip()
        for name, units, made, last in rows
    ]
    return "\n".join(
        [_totals(graph), *lines, *([f"  ... and {left} more"] if left else []), *_reasons(graph)]
    )


def table_html(graph: ChannelGraph) -> str:
    """The same table for a notebook."""
    shown, left = _shown(graph.groups)
    head = "".join(f'<th style="text-align:left">{title}</th>' for title in COLUMNS)
    body = "".join(
        f'<tr style="{"opacity:0.6" if group.why else ""}">'
        + "".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in _row(group))
        + "</tr>"
        for group in shown
    )
    foot = [f"... and {left} more"] if left else []
    foot += [line.strip() for line in _reasons(graph)]
    return (
        f"<div><b>{escape(_totals(graph))}</b>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        + "<br>".join(escape(line) for line in foot)
        + "</div>"
    )


def prunable_share(graph: ChannelGraph) -> float:
    """The share of the parameters that belong to a prunable unit along some axis."""
    free = np.zeros(graph.units + 1, dtype=bool)  # the last entry is for what belongs to no unit
    for group in graph.groups:
        free[group.first : group.first + group.width] = group.prunable
    stays: dict[str, float] = dict.fromkeys(graph.sizes, 1.0)
    for (name, _), units in graph.slots.items():
        if name in stays:
            stays[name] *= 1 - float(free[units].mean())
    total = sum(graph.sizes.values())
    fixed = sum(size * stays[name] for name, size in graph.sizes.items())
    return 1 - fixed / total if total else 0.0


def _totals(graph: ChannelGraph) -> str:
    free = [group for group in graph.groups if group.prunable]
    now = sum(len(group.units) for group in free)
    text = (
        f"ChannelGraph: {many(len(free), 'prunable group')} of {len(graph.groups)}, "
        f"{many(now, 'unit')}"
    )
    if (original := sum(group.width for group in free)) != now:
        text += f" of {original}"
    params = sum(graph.sizes.values())
    return f"{text}; {prunable_share(graph):.1%} of {si(params)} parameters belong to them"


def _shown(groups: Sequence[ChannelGroup]) -> tuple[Sequence[ChannelGroup], int]:
    """The groups to list, and how many are left out."""
    return (groups, 0) if len(groups) <= ROWS else (groups[:ROWS], len(groups) - ROWS)


def _row(group: ChannelGroup) -> tuple[str, str, str, str]:
    now = len(group.units)
    units = str(now) if now == group.width else f"{now} of {group.width}"
    made = "itself" if len(group.producers) == 1 else many(len(group.producers), "layer")
    readers = listed(group.consumers, 2)
    if len(readers) > WIDE:
        readers = listed(group.consumers, 1)
    last = f"frozen: {group.why}" if group.why else readers
    return group.name, units, made, last


def _reasons(graph: ChannelGraph) -> list[str]:
    """Frozen groups counted by reason, and the layers that never ran."""
    counts = Counter(group.why for group in graph.groups if group.why)
    lines = [f"  frozen: {many(count, 'group')} ({why})" for why, count in counts.most_common(3)]
    if len(counts) > 3:
        lines.append(f"  ... and {many(len(counts) - 3, 'more reason')}")
    if not graph.groups:
        lines.append("  no convolution or linear layer ran whose weight is a parameter")
    if graph.untrained:
        lines.append(f"  did not run in training mode ({graph.untrained}): give train_inputs=")
    if graph.edits:
        lines.append(
            f"  a cut rewrites {many(len(graph.edits), 'attribute')}: {listed([*graph.edits], 3)}"
        )
    if graph.unseen:
        lines.append(f"  never ran: {listed(graph.unseen, 3)}")
    return lines
