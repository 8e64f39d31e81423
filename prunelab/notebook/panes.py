"""Contents of sections: effects of a move, one channel, costs, comparison, export."""

from __future__ import annotations

from html import escape

import numpy as np

from prunelab.cost.counting import cost
from prunelab.figures.class_recall import class_recall_info
from prunelab.figures.plan_comparison import Side, plan_side, point_side
from prunelab.figures.png import address
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.ledger import words
from prunelab.notebook import text
from prunelab.notebook.channel_inspector import Channel, Flipped
from prunelab.notebook.markup import box, choose, number, say, table, tag
from prunelab.notebook.rows import bar
from prunelab.notebook.view import End, View
from prunelab.values import as_text, si
from prunelab.values.paired_comparison import PairedComparison

MOST = 6  # pairs of classes listed

# ---------------------------------------------------------------- what would change


def changes(view: View) -> str:
    """Per-class recall before and after, and images whose answer changes."""
    found = view.repaired or view.tried
    if found is None:
        return say(text.TRYING if view.background == "tried" else text.UNTRIED, "hint")
    compared = found.compared
    if view.repaired is None:
        told = say(text.trial(compared), "trial", title=text.TRIAL_TIP)
    else:
        told = say(text.repaired(compared, alone=True), "trial", title=text.REPAIRED_TIP)
    if compared.answers is None:
        return told
    flipped = "".join(_flipped(each, view.classes) for each in found.flipped)
    if flipped:
        head = say(text.FLIPPED, "hint", title=text.FLIPPED_TIP)
        flipped = head + tag("div", flipped, kind="pl-tiles")
    left = _recalls(compared, view.classes) + _confused(compared, view.classes)
    return told + tag("div", tag("div", left) + tag("div", flipped), kind="pl-side")


def _recalls(compared: PairedComparison, classes: tuple[str, ...]) -> str:
    assert compared.answers is not None
    before, after = compared.answers
    labels = np.asarray(before.labels)
    rows = []
    for label in np.unique(labels):
        here = labels == label
        was, now = before.right[here].mean(), after.right[here].mean()
        name = classes[label] if label < len(classes) else str(label)
        rows.append((
            escape(name), str(int(here.sum())), f"{was:.1%}", f"{now:.1%}",
            number(text.points("accuracy", now - was), text.RECALL_TIP),
        ))  # fmt: skip
    return table(text.RECALL_HEADS, rows)


def _confused(compared: PairedComparison, classes: tuple[str, ...]) -> str:
    """The pairs of classes that are confused more or less often than before."""
    assert compared.answers is not None
    info = class_recall_info(*compared.answers, classes)
    pairs = [
        (more, truth, given)
        for truth, row in zip(info.classes, info.confused, strict=True)
        for given, more in zip(info.classes, row, strict=True)
        if more and truth != given
    ]
    pairs.sort(key=lambda pair: -abs(pair[0]))
    return say(text.confused(pairs[:MOST]), "hint", title=text.CONFUSED_TIP)


def _flipped(each: Flipped, classes: tuple[str, ...]) -> str:
    def name(label: int) -> str:
        return classes[label] if label < len(classes) else str(label)

    told = text.flip(name(each.label), name(each.before), name(each.after))
    image = "" if each.picture is None else _image(each.picture, told, 64)
    kind = "pl-lost" if each.before == each.label else "pl-gained"
    return tag("figure", image, tag("figcaption", escape(told)), kind=f"pl-flip {kind}")


def _image(pixels: np.ndarray, told: str, px: int) -> str:
    return tag("img", src=address(pixels), alt=told, width=px, height=px, kind="pl-pixels")


# ---------------------------------------------------------------- one channel


def channel(view: View) -> str:
    """The inspected channel: its kernels, its maps, its couplings."""
    kept = view.state.now.kept
    units = range(view.group.width) if kept is None else kept[view.group.name]
    chosen = "" if view.unit is None else str(view.unit)
    options = [("", ""), *((f"{text.CHANNEL} {unit}", str(unit)) for unit in units)]
    head = choose(
        "unit", text.CHANNEL_OF.format(view.group.name), text.CHANNEL_TIP, options, chosen
    )
    look = view.channel
    if look is None or (look.group, look.unit) != (view.group.name, view.unit):
        return head + say(text.NO_CHANNEL if view.unit is None else text.LOOKING, "hint")
    coupled = text.coupled(view.group.producers, view.group.consumers)
    return head + _facts(view, look) + "".join((
        _row(text.KERNELS, text.KERNELS_TIP, look.kernels, 48),
        _row(text.INPUTS, text.INPUTS_TIP, look.inputs, 64),
        _row(text.MAPS, text.MAPS_TIP, look.maps, 64),
        say(coupled, "hint"),
    ))  # fmt: skip


def _facts(view: View, look: Channel) -> str:
    facts = [(text.NORM, f"{look.norm:.3g}", text.NORM_TIP)]
    if look.maps:
        facts.append((text.ZEROS, f"{look.zeros:.0%}", text.ZEROS_TIP))
    if view.alone is not None:
        facts.append((text.ALONE, words.share(view.alone), text.LOSS_TIP))
    return tag("div", *(
        tag("span", escape(f"{name} "), number(value, tip)) for name, value, tip in facts
    ), kind="pl-line")  # fmt: skip


def _row(title: str, tip: str, pictures: tuple[np.ndarray, ...], px: int) -> str:
    if not pictures:
        return ""
    images = (_image(pixels, f"{title} {i + 1}", px) for i, pixels in enumerate(pictures))
    return tag("div", say(title, "head", "div", title=tip), *images, kind="pl-strip")


# ---------------------------------------------------------------- costs and comparisons


def costs(view: View) -> str:
    """What one input costs: the original, now, and after the move."""
    state, move = view.state, view.move
    columns = [state.base.cost, state.now.cost, *([move.after] if move else [])]
    rows = []
    for name, tip, kind in text.COSTS:
        values = [getattr(cost, kind) for cost in columns]
        rows.append([
            tag("span", escape(name), title=tip),
            *(f"{si(v)} ({v / values[0]:.0%})" for v in values),
        ])  # fmt: skip
    timed = [_measured(view, point.seq) for point in (state.base, state.now)]
    if any(timed):
        rows.append([escape(text.MEASURED), *timed, *([""] if move else [])])
    seconds = view.chosen.seconds if view.chosen else None
    if seconds:
        rows.append([
            tag("span", text.LATENCY, title=text.LATENCY_TIP), "", *map(text.ms, seconds)
        ])  # fmt: skip
    heads = text.COST_HEADS[: 1 + len(columns)]
    return table(heads, rows) + say(text.at(state.base.cost), "hint")


def _measured(view: View, end: End) -> str:
    """The latency measured at a point, if it was."""
    found = view.latencies.get(end) if isinstance(end, int) else None
    return "" if found is None else number(text.spread(found), text.measured_tip(found))


def comparison(view: View) -> str:
    """Two points or plans side by side: metrics, costs, and the widths that differ."""
    options = [(text.point(p, view.state), str(p.seq)) for p in view.state.points]
    options += [(path, path) for path in view.plans]
    lists = "".join(
        choose("compare", label, text.COMPARE_TIP, options, str(end), data_arg=str(i))
        for i, (label, end) in enumerate(zip(text.ENDS, view.compared, strict=True))
    )
    one, two = (_side(view, end) for end in view.compared)
    rows = [
        [escape(name), as_text(name, one.metrics[name]), as_text(name, two.metrics[name]),
         number(text.points(name, two.metrics[name] - one.metrics[name]),
                text.metric_tip(name, view.state))]
        for name in one.metrics if name in two.metrics
    ]  # fmt: skip
    for name, tip, kind in text.COSTS:
        a, b = getattr(one.cost, kind), getattr(two.cost, kind)
        rows.append([tag("span", escape(name), title=tip), si(a), si(b), f"{b / a - 1:+.0%}"])
    timed = [_measured(view, end) for end in view.compared]
    if any(timed):
        rows.append([escape(text.MEASURED), *timed, ""])
    full = view.state.full_widths
    widest = max(full.values())
    for name in one.widths:
        a, b = one.widths[name], two.widths[name]
        if a != b:
            overlaid = bar(min(a, b), max(a, b), full[name], widest)
            rows.append([escape(name), str(a), str(b), f"{b - a:+d} {overlaid}"])
    second = view.compared[1]
    buttons = tag(
        "button", escape(text.GO), kind="pl-button pl-small", type="button", title=text.GO_TIP,
        data_do="go", data_arg=str(second),
        disabled=second in (view.state.head, *view.plans) or bool(view.at_work),
    )  # fmt: skip
    told = "" if view.difference is None else text.difference(view.difference)
    plan = box("plan", text.PLAN, text.PLAN_TIP, type="text", value="", size="24")
    head = tag("div", lists + plan + buttons, kind="pl-line")
    return head + say(told, "trial", title=text.COMPARED_TIP) + table(text.COMPARE_HEADS, rows)


def _side(view: View, end: End) -> Side:
    plan = view.plans.get(end) if isinstance(end, str) else None
    if plan is None:
        return point_side(view.state, int(end))
    assert isinstance(plan.graph, ChannelGraph)
    return plan_side(str(end), plan, cost(plan.graph, plan))


def export_form(view: View) -> str:
    """A button for each kind of file, a box for another name, and the file written last."""
    off = bool(view.at_work)
    buttons = "".join(
        tag(
            "button", escape(label), kind="pl-button pl-small", type="button", title=tip,
            data_do="export", data_arg=name, disabled=off,
        )
        for label, name, tip in text.FILES
    )  # fmt: skip
    own = box(
        "export", text.OTHER_NAME, text.OTHER_NAME_TIP, type="text", value="", size="24",
        disabled=off,
    )  # fmt: skip
    told = say(view.failed, "error", role="alert") or say(
        view.written or text.BLANK, "line", role="status"
    )
    return tag("div", buttons + own, kind="pl-line") + told
