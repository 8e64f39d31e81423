"""The form at the top: numbers, question, aims, theta, buttons, and what is at work."""

from __future__ import annotations

from html import escape

from prunelab.ledger import guard
from prunelab.notebook import text
from prunelab.notebook.markup import box, button, choose, number, say, tag, tick
from prunelab.notebook.parameters import lead
from prunelab.notebook.view import View, enabled
from prunelab.values import as_text, si

LOUD = {"propose": "pl-first", "approve": "pl-yes", "stop": "pl-stop"}
GROUPS = (("propose", "approve", "adjust", "reject", "undo"), ("repair", "tune", "run", "stop"))


def form(view: View) -> str:
    """Everything above the figure."""
    question = text.question(view.state, view.group, view.chosen)
    told = "".join((
        say(question, "question", "h2"),
        say(view.error, "error", role="alert"),
        say(view.hint, "hint", role="status"),
        say(reason(view), "reason", title=text.LOSS_TIP if view.move else None),
        tried(view),
    ))  # fmt: skip
    asked = aims(view) + lead(view) + group_choice(view)
    return "".join((
        tag("div", tiles(view), kind="pl-tiles"),
        tag("div", tag("div", told, kind="pl-told"), tag("div", asked, kind="pl-asked"),
            kind="pl-top"),
        buttons(view),
        tag("div", progress(view) or otherwise(view) or age(view), kind="pl-does"),
    ))  # fmt: skip


def reason(view: View) -> str:
    """The reason and the cost, in a sentence."""
    return text.reason(view.state, view.last, view.chosen, view.group)


def age(view: View) -> str:
    """How old the evidence is, and how far by it the move is from the best one."""
    words = text.UNMEASURED if view.at_hand is None else text.evidence(view.at_hand)
    bound = view.certificate
    proved = tag("span", escape(f" {bound}"), kind="pl-proved", title=bound.tip) if bound else ""
    return tag("p", escape(words) + proved, kind="pl-line")


def otherwise(view: View) -> str:
    """Alternatives to the current selection."""
    if view.chosen is None:
        return ""
    back = text.BACK if view.state.pending else text.CLEAR
    inside = button("back", back, text.BACK_TIP, kind="pl-small", data_do="back", data_arg=None)
    better = text.better(view.chosen, view.group.name)
    if better:
        best = button("best", text.TAKE_BEST, text.BEST_TIP, kind="pl-small", data_do="best",
                      data_arg=view.group.name)  # fmt: skip
        inside = say(better, "hint", "span", title=text.BEST_TIP) + best + inside
    if view.chosen.by == "theta" and view.chosen.move is not None and view.state.pending:
        offer = button("instead", text.OFFER, text.OFFER_TIP, on=not view.at_work,
                       kind="pl-small", data_do="instead", data_arg=None)  # fmt: skip
        inside = offer + inside
    return tag("div", inside, kind="pl-line")


def tried(view: View) -> str:
    """The result of the move on validation images, as cut and repaired, when it is known."""
    if view.tried is None:
        return say(text.TRYING, "trial pl-hint") if view.background == "tried" else ""
    told = _trial(text.trial(view.tried.compared), text.TRIAL_TIP)
    if view.repaired is not None:
        told += _trial(text.repaired(view.repaired.compared), text.REPAIRED_TIP)
    elif view.background == "repaired":
        told += say(text.REPAIRING, "trial pl-hint")
    return told


def _trial(words: str, tip: str) -> str:
    """A result, with what it says of the metric in bold."""
    before, found, after = text.parted(words)
    inside = escape(before) + tag("b", escape(found)) + escape(after)
    return tag("p", inside, kind="pl-trial", title=tip, aria_live="polite")


def group_choice(view: View) -> str:
    """The list in which the user picks the layer whose evidence is shown."""
    rows = view.info.widths.rows
    options = [(text.option(row.name, row.now, row.proposed), row.name) for row in rows]
    chosen = choose("group", text.GROUP, text.GROUP_TIP, options, view.group.name)
    return tag("div", chosen, kind="pl-looking")


def warnings() -> str:
    """Messages that the page itself shows while it waits for the kernel or the figure."""
    return say(text.SILENT, "no-reply", role="status") + say(text.LATE, "lateness", role="status")


def line(view: View) -> str:
    """The state in one line, which screen readers say whenever it changes."""
    return say(view.state.line(), "line", role="status", aria_live="polite")


def tiles(view: View) -> str:
    """Numbers in large type: MACs, parameters, the metric, moves."""
    state = view.state
    base, now, move = state.base, state.now, view.move
    parts = [
        _tile(
            text.MACS,
            f"{now.cost.macs / base.cost.macs:.0%}",
            f"→ {move.after.macs / base.cost.macs:.0%}" if move else si(now.cost.macs),
            text.MACS_TIP,
        ),
        _tile(
            text.PARAMS,
            f"{now.cost.params / base.cost.params:.0%}",
            f"→ {move.after.params / base.cost.params:.0%}" if move else si(now.cost.params),
            text.PARAMS_TIP,
        ),
    ]
    for name, value in [*now.metrics.items()][:1]:
        by = value - base.metrics[name]
        beside = text.points(name, by) if now.parent is not None else ""
        tip = text.metric_tip(name, state)
        parts.append(_tile(text.metric(name), as_text(name, value), beside, tip))
    parts.append(_latency(view))
    parts.append(_tile(text.MOVE, str(state.moves), "", text.MOVE_TIP))
    return "".join(parts)


def _latency(view: View) -> str:
    """The latency: as estimated for a selection, or as measured, where runs tell it."""
    base, now = view.state.base, view.state.now
    if view.chosen and view.chosen.seconds:
        before, after = map(text.ms, view.chosen.seconds)
        return _tile(text.LATENCY, before, f"→ {after}", text.LATENCY_TIP, "pl-broad")
    found = view.latencies.get(now.seq)
    if found is None:
        return _tile(text.MEASURED, text.UNKNOWN, "", text.UNMEASURED_TIP, "pl-broad")
    first = None if now is base else view.latencies.get(base.seq)
    tip = text.measured_tip(found)
    if text.noisy(*filter(None, (found, first))):
        return _tile(text.MEASURED, text.TOO_NOISY, text.HERE, tip, "pl-broad")
    beside = text.was(first) if first else ""
    return _tile(text.MEASURED, text.spread(found), beside, tip, "pl-broad")


def _tile(head: str, shown: str, beside: str, tip: str, kind: str = "") -> str:
    inside = say(head, "head", "span") + number(shown, "") + say(beside, "beside", "span")
    return tag("div", inside, kind=f"pl-tile {kind}".strip(), title=tip)


def buttons(view: View) -> str:
    """The verbs; those that are not valid now are disabled."""
    can = enabled(view.state, bool(view.at_work), view.chosen is not None)
    rows = []
    for verbs in GROUPS:
        made = [
            button(verb, text.label(verb), _tip(verb, view), on=can[verb], kind=LOUD.get(verb, ""))
            for verb in verbs
        ]
        rows.append(tag("div", *made, kind="pl-verbs"))
    return tag("div", *rows, kind="pl-buttons")


def _tip(verb: str, view: View) -> str:
    if verb != "tune" or view.step_time is None:
        return text.VERBS[verb]
    return text.TUNE_TIP.format(view.aims.steps, text.duration(view.step_time * view.aims.steps))


def progress(view: View) -> str:
    """The progress of the running verb; a tune can be ended early and kept."""
    if view.busy is None:
        return ""
    bar = tag("progress", value=f"{view.busy.done:.3f}", max="1")
    inside = bar + say(view.busy.words, "work", "span")
    if view.at_work[:1] == ("tune",):
        keep, leave = (text.KEEP_TUNED, text.KEEP_TUNED_TIP), (text.LEAVE_TUNED,
                                                                text.LEAVE_TUNED_TIP)  # fmt: skip
        inside += button("stop", *keep, kind="pl-small", data_do="keep", data_arg=None)
        inside += button("stop", *leave, kind="pl-small")
    return tag("div", inside, kind="pl-working")


def aims(view: View) -> str:
    """The two aims."""
    wanted, metric = view.aims, next(iter(view.state.base.metrics), None)
    parts = [
        box("aim", text.AIM, text.AIM_TIP, text.AIM_UNIT, data_arg="macs", data_live=True,
            value=f"{wanted.macs:g}", min=1, max=100, step=1)
    ]  # fmt: skip
    higher = guard.higher_is_better(view.state.began)
    if metric is not None and higher is not None:
        lose = "" if wanted.lose is None else f"{wanted.lose:g}"
        before, unit = text.lose(metric, higher)
        parts.append(
            box("aim", before, text.LOSE_TIP, unit, data_arg="lose", value=lose, min=0, step="any")
        )
    return tag("div", *parts, kind="pl-aims")


def settings(view: View) -> str:
    """Moves, tuning, reason and repair."""
    wanted = view.aims
    inside = "".join((
        box("aim", text.MOVES, text.MOVES_TIP, text.MOVES_UNIT, data_arg="moves",
            value=wanted.moves or "", min=1, step=1),
        box("aim", text.STEPS, text.STEPS_TIP, text.STEPS_UNIT, data_arg="steps",
            value=wanted.steps, min=1, step=1),
        tick("aim", text.REPAIR, text.REPAIR_TIP, wanted.repair, data_arg="repair"),
        box("aim", text.REASON, text.REASON_TIP, data_arg="reason", type="text",
            value=wanted.reason),
    ))  # fmt: skip
    return tag("div", inside, kind="pl-line")
