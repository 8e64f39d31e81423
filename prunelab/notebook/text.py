"""The texts of the screen; sentences about the session are in words.py."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunelab.cost.counting import Latency
from prunelab.errors import InvalidValue
from prunelab.ledger import guard, words
from prunelab.ledger.events import Event
from prunelab.ledger.state import Point, State
from prunelab.notebook.view import Aims, Chosen
from prunelab.values import Cost, Progress, Units, as_text, units_of

VERBS: dict[str, str] = {
    "propose": "Ask the method what to drop next; nothing is changed yet (key p)",
    "approve": "Apply the proposal: the network is cut, then repaired (key a)",
    "adjust": "Make your selection the proposal (key e)",
    "reject": "Decline the proposal; nothing changes. A reason can be given under Settings (key r)",
    "undo": "Discard the proposal; without one, undo the latest step (key u)",
    "repair": "Fit the remaining weights to the lost signal, without training",
    "tune": "Train the network; the number of steps is in Settings",
    "run": "Propose and approve automatically until the aim is met or the loss would be too large",
    "stop": "Stop the running verb; unfinished work changes nothing",
}


def label(verb: str) -> str:
    """A button's text: the verb itself."""
    return verb.capitalize()


# ---------------------------------------------------------------- the form

BLANK = "\N{NO-BREAK SPACE}"  # keeps the place of a line that may come
START = "Which channels can go?"
WELCOME = (
    "Propose asks the method what it would drop first. Nothing changes the network until Approve."
)
NEXT = "What next?"
AIM = "I aim at"
AIM_UNIT = "% of the MACs"
AIM_TIP = (
    "MACs of the network at which Run stops, as a share of the original's. Low is fast. "
    "The widths that would meet it are marked in the list of layers."
)
LOSE = "I may lose"
LOSE_TIP = (
    "How much worse than the original network's the validation metric may become. Run does not "
    "apply a move that would break it: it leaves the decision to you. Empty: no limit."
)
AWAITED = "Evidence is being measured; the aim is answered as soon as it is there."
SETTINGS = "Settings: moves, tuning{}, repair"
SETTINGS_TIP = "How far Run goes, how long Tune trains, why Reject rejects, whether Approve repairs"
ESTIMATE = " ({} steps, about {})"
MOVES = "Run at most"
MOVES_UNIT = "moves"
MOVES_TIP = "Run ends after this many moves, even if the aim is not met; empty: no limit"
STEPS = "Tune for"
STEPS_UNIT = "steps"
STEPS_TIP = "Batches of training images that Tune trains on"
TUNE_TIP = "Train the network: {} steps, about {} on this machine"
REASON = "Reject because"
REASON_TIP = "The reason for a Reject, which is recorded in the history"
REPAIR = "Repair after every Approve"
REPAIR_TIP = (
    "Fit the weights that read the dropped channels to the original's signal, by least squares on "
    "training images. No training; seconds."
)
KEEP_TUNED = "Stop and keep"
KEEP_TUNED_TIP = "End the training now and keep the steps done so far"
LEAVE_TUNED = "Stop and discard"
LEAVE_TUNED_TIP = "End the training now; the network stays as it was before Tune"
STOPPING = "stopping ..."
SILENT = (
    "The kernel has not answered yet: it runs a cell, or it was restarted. After a restart, run "
    "the cells again; pl.Session(..., path=..., resume=True) goes on where it was. If "
    "it is idle, load the page anew."
)
LATE = (
    "The interactive figure (1.5 MB) has not arrived yet. The picture shows the same, and every "
    "button works without it."
)
NO_FIGURE = (
    "The interactive figure could not be loaded ({}). The picture shows the same, and every "
    "button works without it."
)
BROKEN = "The screen could not show this: {}"

# ---------------------------------------------------------------- numbers and their tooltips

MACS = "MACs"
MACS_TIP = (
    "Multiply-adds of one input through the network, now and (→) if the proposal is approved, as "
    "a share of the original's. Counted, not measured. Low is good."
)
PARAMS = "Parameters"
PARAMS_TIP = "Weights of the network now, as a share of the original's. Low is good."
MEASURED = "Measured latency"
MEASURED_TIP = (
    "One run of {} through the network on this machine: the median of {} runs on {}, half of "
    "which took {} to {}. It ran in turn with the original network. Low is good."
)
UNMEASURED_TIP = "It is measured on this machine while nothing else is at work"
NOISE = 0.5  # of the median: the widest middle half from which a latency is told
TOO_NOISY = "too noisy"
HERE = "here to say"
UNKNOWN = "\N{EN DASH}"
LATENCY = "Estimated latency"
LATENCY_TIP = (
    "One run of one input on this machine, now and (→) as chosen: estimated from the time that "
    "every layer took when evidence was measured. Low is good."
)
MOVE = "Moves"
MOVE_TIP = "Approved moves in effect; undone ones do not count."


def metric(name: str) -> str:
    """A metric's name as it heads its number."""
    return name.replace("_", " ").capitalize()


def metric_tip(name: str, state: State) -> str:
    """The explanation of the metric's number."""
    higher = guard.higher_is_better(state.began) if name == next(iter(state.base.metrics)) else None
    good = {
        True: "High is good",
        False: "Low is good",
        None: "Whether high or low is good depends on the metric",
    }[higher]
    return (
        f"The {name} of the network after move {state.moves}, on all validation images, and how "
        f"far it is from the original network's. {good}. Test images are read by evaluate() only."
    )


def ms(seconds: float) -> str:
    """A latency."""
    return f"{1000 * seconds:.3g} ms"


def spread(found: Latency) -> str:
    """A measured latency, with half the width of the middle half of its runs."""
    return f"{1000 * found.median:.3g} ± {500 * (found.high - found.low):.1g} ms"


def noisy(*found: Latency) -> bool:
    """Whether runs of the same network differ too much to tell a latency or compare two."""
    wide = any(one.high - one.low > NOISE * one.median for one in found)
    low, high = max(one.low for one in found), min(one.high for one in found)
    return wide or (len(found) > 1 and low < high)


def measured_tip(found: Latency) -> str:
    """How a latency was measured."""
    inputs = words.plural(found.inputs or 1, "input")
    return MEASURED_TIP.format(inputs, found.runs, found.device, ms(found.low), ms(found.high))


def was(found: Latency) -> str:
    """The original network's latency, shown beside the current one."""
    return f"was {spread(found)}"


def settings(steps: int, step_time: float | None) -> str:
    """The title of the settings, with how long Tune would take where that is known."""
    if step_time is None:
        return SETTINGS.format("")
    return SETTINGS.format(ESTIMATE.format(steps, duration(step_time * steps)))


def points(name: str, value: float) -> str:
    """A difference of a metric: points where it is a percentage."""
    if "accuracy" in name:
        return f"{100 * value:+.1f} points".replace("-", "\N{MINUS SIGN}")
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}")


def lose(name: str, higher: bool) -> tuple[str, str]:
    """What may be lost: the words before and after the number."""
    if not higher:
        return f"{metric(name)} may rise by", ""
    return LOSE, f"points of {name}" if "accuracy" in name else f"of {name}"


# ---------------------------------------------------------------- the question


def question(state: State, group: words.GroupInfo, chosen: Chosen | None) -> str:
    """The question that the screen asks."""
    move = chosen.move if chosen else state.pending
    if move is None:
        if chosen is not None:
            return f"With theta {two_digits(chosen.theta or 0)}, nothing goes"
        return START if state.now.parent is None else NEXT
    here = move.drop.get(group.name, ())
    rest = {name: units for name, units in move.drop.items() if name != group.name}
    elsewhere = words.plural(sum(map(len, rest.values())), "channel")
    if not here and move.adds:
        text = f"Split {words.plural(len(move.adds), 'layer')} into two each"
    elif not here:
        text = f"Remove {elsewhere} in {words.plural(len(rest), 'layer')}" if rest else NOTHING
    else:
        alive = state.widths()[group.name]
        text = f"Remove {len(here)} of {words.plural(alive, 'channel')} in {group.name}"
        if group.name in move.adds:
            layer = group.name.removesuffix(".0")
            text = f"Split {layer} into two layers of rank {alive - len(here)}"
            elsewhere = "split"
        else:
            elsewhere += " in"
        text += f", and {elsewhere} {words.plural(len(rest), 'other layer')}" if rest else ""
    return text + (" instead?" if chosen is not None and state.pending is not None else "?")


def reason(state: State, last: Event | None, chosen: Chosen | None, group: words.GroupInfo) -> str:
    """The reason and cost of the selection, the proposal, or the latest event."""
    if chosen is None or chosen.move is None:
        return words.sentence(state, last, group) or WELCOME
    who = {
        "person": "Your choice: ",
        "budget": "Widths that spread your aim over the layers: ",
        "theta": f"With theta {two_digits(chosen.theta or 0)} the method would ",
    }[chosen.by]
    move = chosen.move
    if group.name in move.drop:
        what = words.loss(move, group, state)
    else:
        what = words.elsewhere(move, group)
    return f"{who}{what}. {words.macs(state, move)}"


def better(chosen: Chosen | None, group: str) -> str:
    """What the best selection of the same size would lose, where it beats the chosen one."""
    if chosen is None or chosen.move is None or group not in chosen.best:
        return ""
    best, lost = chosen.best[group], chosen.move.damage[group]
    if not best.damage < 0.995 * lost:
        return ""
    return f"The best {len(best.units)} would remove {words.share(best.damage)}."


TAKE_BEST = "Take the best"
BEST_TIP = "The best known selection of this size: greedy, as in ThiNet"
BACK = "Back to the proposal"
CLEAR = "Clear selection"
BACK_TIP = "Discard the selection; nothing has been changed"
NOTHING = "Remove nothing"


def trial(found: Any) -> str:
    """The result of the move on validation images before any repair (a `PairedComparison`)."""
    return f"{_images(found)}, as cut: {_typeset(found)}"


def repaired(found: Any, alone: bool = False) -> str:
    """The result after repair: shown below `trial`, or `alone`."""
    how = f"{_images(found)}, repaired" if alone else "Repaired"
    return f"{how}: {_typeset(found)}"


def difference(found: Any) -> str:
    """The comparison of the second point with the first on validation images."""
    return f"{_images(found)}: {_typeset(found)}"


def _images(found: Any) -> str:
    return f"On {words.plural(found.images, 'validation image')}"


def _typeset(found: Any) -> str:
    return str(found).replace("->", "→").replace("+-", "±").replace("-", "\N{MINUS SIGN}")


def parted(told: str) -> tuple[str, str, str]:
    """A result in three: what was tried, the metric before and after, and how sure that is."""
    match = re.fullmatch(r"(.*?: )?(.*?)( \(.*)?", told)
    assert match is not None
    before, found, after = match.groups("")
    return before, found, after


COMPARED_TIP = (
    "The second network against the first, on the same validation images; that of a plan is the "
    "original cut to it, and repaired with the session's repair. ± is the 95% interval: a smaller "
    "difference may be chance. High is good."
)
TRYING = "Trying it on validation images ..."
REPAIRING = "Repairing a copy, to try that too ..."
_PAIRED = (
    "against the current network, on the same validation images. ± is the 95% interval: a smaller "
    "difference may be chance. High is good; lost and gained are images that only one of the two "
    "classifies correctly."
)
TRIAL_TIP = f"The network without these channels, before any repair, {_PAIRED}"
REPAIRED_TIP = (
    "The network after Approve: without these channels, its weights repaired on "
    f"training images, {_PAIRED}"
)


LOSS_TIP = (
    "The share of the next layer's input signal that the dropped channels carry, on training "
    "images, in the current network. 0% would change nothing; low is good."
)

# ---------------------------------------------------------------- the method's parameters

METHOD_LABEL = "method"
METHOD_TIP = "The method that proposes; its parameters are beside and below"
PARAMETER_TIP = "A parameter of the method; help(type(session.method)) explains it"
THETA_LABEL = "theta"
THETA_TIP = (
    "The share of its signal that a layer may lose in one move, on training images, in the current "
    "network. Low is careful. Dragging shows the effect; nothing is changed."
)
INSTEAD = "proposed again with theta {}"
BEYOND = "goes beyond the aim of {:g}% of the MACs; proposed again within it"
OFFER = "Propose this instead"
OFFER_TIP = "Reject the proposal, and propose with this theta"
OUTDATED = "The proposal was made with other parameters: Reject it, then Propose, to use these."


def parameter(name: str) -> str:
    """A parameter's name beside its box."""
    return name.replace("_", " ")


def choice(value: Any) -> str:
    """One of the values that a parameter may have."""
    return "default" if value is None else str(value)


def method_title(name: str, values: Mapping[str, Any]) -> str:
    """The title of the method's section: the method and its first parameter."""
    title = f"Method: {words.method(name)}"
    for key, value in [*values.items()][:1]:
        title += f" · {parameter(key)} {f'{value:g}' if isinstance(value, float) else value}"
    return title


def about(doc: str | None) -> str:
    """The first line of a class's docstring; empty where the dataclass generated it."""
    first = (doc or "").strip().split("\n")[0]
    return "" if re.match(r"\w+\(", first) else first


def theta(value: float) -> str:
    """Theta in words."""
    percent = two_digits(100 * value)
    return f"{two_digits(value)} = stop where a layer would lose more than {percent}% of its signal"


def two_digits(value: float) -> str:
    """A number with at least two significant digits: 0.020, 0.125, 12."""
    short = f"{value:#.2g}".rstrip(".")
    return short if float(short) == value and "e" not in short else f"{value:.6g}"


UNMEASURED = "No evidence for what-if answers yet: it is measured while nothing else is at work."


def evidence(at_hand: Any) -> str:
    """The evidence, and when it was measured."""
    return f"What-if: evidence {at_hand}."


# ---------------------------------------------------------------- the layers

LAYERS = "Layers: costs, and widths by hand"
LAYERS_TIP = "Every group of layers that lose the same channels, with its costs and its width"
SEARCH = "Find a layer"
COUNT = "Keep"
COUNT_TIP = (
    "How many channels to keep; the least important are dropped first. Drag, or use the arrow keys"
)
UNITS = "Drop the channels"
UNITS_TIP = "Which channels of this layer to drop, by number, for example 3, 7, 10-12"
COUPLED_TIP = "These layers lose the same channels: {}"
HEADS = (  # what it sorts by, its name, its tooltip
    ("", "", ""),
    ("", "layer", "The first layer of the group; ◆ marks coupled layers. Click to look at it"),
    ("macs", "MACs", "Multiply-adds of the group's layers now, as a share of all layers'"),
    ("params", "params", "Parameters of the group's layers now"),
    ("seconds", "time", "Time of the group's layers in one run on this machine, as measured"),
    ("now", "now", "Channels now, of the original's"),
    ("keep", "keep", COUNT_TIP),
    ("", "", "Grey: original. Blue: kept. Hatched: to be dropped"),
    ("loses", "loses", LOSS_TIP.rstrip(".")),
)
SORT_TIP = "Click to sort by it, largest first; again for the network's order"
TICK = "Select"
TICK_TIP = "Tick layers to set the widths of several at once"
MULTIPLES = "widths in multiples of 8"
MULTIPLES_TIP = "Widths chosen here become multiples of 8, which many processors prefer"
SEVERAL_UNIT = "channels, or % of the width"
SEVERAL_TIP = "What each of the ticked layers keeps, such as 48 or 75%"


def several(count: int) -> str:
    """Before the box that sets the widths of ticked layers."""
    return f"Keep in {words.plural(count, 'ticked layer')}" if count else "Keep in ticked layers"


def parse_width(typed: str, now: int) -> int:
    """A width such as 48, or 75% of `now`; raises InvalidValue."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", typed)
    if match is None:
        raise InvalidValue(f"{typed!r} is not a width; write a number such as 48, or 75%.")
    value = float(match[1])
    return max(1, min(now, round(value * now / 100 if match[2] else value)))


# ---------------------------------------------------------------- what would change

CHANGES = "What would change"
CHANGES_TIP = "Recall of every class, and validation images whose answer changes"
UNTRIED = "Propose, or select channels: after a moment the move is tried on validation images."
RECALL_TIP = "Percentage points of recall, after minus before. High is good."
RECALL_HEADS = (
    ("class", "The right answer of the images"),
    ("images", "Validation images of this class that were tried"),
    (
        "recall now",
        "The share of them that the current network classifies correctly. High is good",
    ),
    ("after", "The same without these channels. High is good"),
    ("change", RECALL_TIP),
)
FLIPPED = "Images lost (dashed) and gained (solid):"
FLIPPED_TIP = "The first validation images that only one of the two networks classifies correctly"


def flip(label: str, before: str, after: str) -> str:
    """The change of an image's answer."""
    return f"{label}: {before} → {after}"


# ---------------------------------------------------------------- one channel

ONE = "One channel"
ONE_TIP = "Its kernels, its feature maps on a few images, and its couplings"
CHANNEL = "channel"
CHANNEL_OF = "Channel of {}"
CHANNEL_TIP = "A channel by its number in the original network; clicking a bar does the same"
NO_CHANNEL = "Select a channel, or click a bar of the importance panel."
LOOKING = "Looking ..."
KERNELS = "Heaviest kernels"
KERNELS_TIP = "Weights that read the layer's inputs: blue is positive, orange negative, white zero"
INPUTS = "Validation images"
INPUTS_TIP = "The first images of the validation set"
MAPS = "Its map on each"
MAPS_TIP = (
    "The channel's output, before normalisation: black is the smallest value, white the largest"
)
NORM = "norm of its weights"
NORM_TIP = "The L2 norm of the channel's weights in the current network, without a unit"
ZEROS = "map at or below zero"
ZEROS_TIP = "The share of its feature map's pixels that are not positive, on the images shown"
ALONE = "alone it carries"


def coupled(producers: Sequence[str], consumers: Sequence[str]) -> str:
    """The layers with which a channel is coupled, and those that read it."""
    text = f"Read by {words.listed(consumers) or 'no layer that is known'}."
    if len(producers) > 1:
        text = f"It is coupled with the same channel of {words.listed(producers[1:])}. {text}"
    return text


# ---------------------------------------------------------------- costs, two points

COST = "Costs"
COST_TIP = "MACs, parameters, activation memory and latency"
COSTS = (
    (
        "MACs",
        "Multiply-adds of one input; some papers count two FLOPs for each. Low is good",
        "macs",
    ),
    ("Parameters", "Numbers in the network's file. Low is good", "params"),
    (
        "Activations, bytes",
        "The outputs of all convolutions and linear layers for one input. Low is good",
        "activation_bytes",
    ),
)
COST_HEADS = (
    ("", ""),
    ("original", "The network that the session began with"),
    ("now", "The current network"),
    ("then", "If the proposal or selection is approved"),
)
COMPARE = "Compare"
COMPARE_TIP = "Any two points of the trajectory, on any branch, or plans read from files"
COMPARE_HEADS = (
    ("", "Metrics on validation images, costs of one input, and the widths that differ"),
    ("first", "The network at the first point, or of the first plan"),
    ("second", "The network at the second point, or of the second plan"),
    ("difference", "Second minus first; points are percentage points"),
)
ENDS = ("Compare", "with")
PLAN = "or a plan file"
PLAN_TIP = (
    "The path, on the kernel's machine, of a plan written by export (.json); it becomes the second"
)
NO_PLAN = (
    "{!r} cannot be read: {}. Give the path of a plan, as session.export('plan.json') writes it."
)
GO = "Go to the second"
GO_TIP = "Restore the network of that point; nothing is lost, and the next step starts a branch"


def at(cost: Cost) -> str:
    """At which input costs are counted, and what they leave out."""
    text = f"For one input of {cost.at}." if cost.at else ""
    return f"{text} Without {cost.left_out}." if cost.left_out else text


def point(point: Point, state: State) -> str:
    """A point of the trajectory in a list."""
    share = f"{point.cost.macs / state.base.cost.macs:.0%} of the MACs"
    undone = "" if point in state.path else ", undone"
    name = words.step(state, point.seq) if point.parent is not None else "the original"
    return f"{name}{undone}: {share}"


# ---------------------------------------------------------------- how a verb ended

RUN_STOPPED = "it was stopped."
STOPPED = {
    "propose": "The search was stopped: nothing is proposed.",
    "tune": "Tuning was stopped{} and discarded: the network is as before.",
}


def stopped(verb: str, progress: Progress | None) -> str:
    """That a verb was stopped, and what became of its work."""
    after = f" after {progress.done:,} of {progress.total:,} steps" if progress else ""
    told = STOPPED.get(verb, f"{label(verb)} was stopped: nothing was changed.")
    return told.format(after)


def ran(before: State, now: State, aims: Aims, why: str) -> str:
    """How a run from `before` to `now` ended: `why`, or at its aim, or after its last move."""
    left, aim = now.now.cost.macs / now.base.cost.macs, f"the aim of {aims.macs:g}% of the MACs"
    made = now.moves - before.moves
    text = f"Run ended after {words.plural(made, 'move')}"
    if why:
        text += f" at {left:.1%} of the MACs: {why.rstrip('.')}"
    elif now.now.cost.macs <= int(aims.macs / 100 * now.base.cost.macs):
        text = "Run changed nothing" if not made else text
        text += f": {aim} is {'met' if made else 'already met'}, with {left:.1%}"
    else:
        text += f", as many as Settings allow: {left:.1%} of the MACs are left, {aim} is not met"
    name = next(iter(now.base.metrics), None)
    if name is not None and made:
        was, is_ = (as_text(name, state.now.metrics[name]) for state in (before, now))
        text += f". Validation {name} {was} → {is_}"
    return f"{text}."


def met(state: State, target: float) -> str:
    """That the aim is met already."""
    left = state.now.cost.macs / state.base.cost.macs
    return f"The aim of {100 * target:g}% of the MACs is met already, with {left:.1%}."


# ---------------------------------------------------------------- the other sections

CONFUSED_TIP = (
    "Images of the first class that are classified as the second: how many more or fewer than now. "
    "Fewer is good"
)


def confused(pairs: Sequence[tuple[int, str, str]]) -> str:
    """The pairs of classes that are confused more or less often than before."""
    if not pairs:
        return ""
    signed = [f"{more:+d}".replace("-", "\N{MINUS SIGN}") for more, _, _ in pairs]
    told = (f"{t} as {g} {n}" for n, (_, t, g) in zip(signed, pairs, strict=True))
    return f"Confused: {', '.join(told)}."


EXPORT = "Export"
EXPORT_TIP = "Write the result to files, into the folder in which the kernel runs"
FILES = (
    ("Network", "pruned.safetensors", "Weights and plan, for pl.load_pruned: pruned.safetensors"),
    ("Plan", "plan.json", "Which channels are kept: plan.json"),
    ("Script", "run.py", "A script that does all of this again: run.py"),
    ("Report", "run.html", "A page to step through, which needs no network: run.html"),
)
OTHER_NAME = "or as"
OTHER_NAME_TIP = "A path of your own that ends in .safetensors, .json, .py or .html"


def written(path: Path) -> str:
    """What was exported."""
    return f"Written: {path.resolve()} ({path.stat().st_size / 1000:,.0f} kB)."


MORE = "Show the search"
LESS = "Hide the search"
MORE_TIP = "One more panel: the steps of the method's search, of all layers"
HISTORY = "History"
HISTORY_TIP = "Every event, newest first; undone steps are struck through"
GROUP = "Look at"
GROUP_TIP = "The layer whose evidence is shown; clicking its bar does the same"


def option(name: str, now: float, proposed: float) -> str:
    """A group in the list of groups: its channels now, and after the proposal."""
    return f"{name} · {now}" + (f" → {proposed}" if proposed != now else "")


def time_left(done: int, total: int, elapsed: float) -> str:
    """The progress of work and, after a second, an estimate of the time left."""
    text = f"{done:,} of {total:,}"
    if elapsed > 1 and 0 < done < total:
        text += f", about {duration(elapsed / done * (total - done))} left"
    return text


def duration(seconds: float) -> str:
    """Seconds, or minutes where there are many."""
    return f"{max(1, round(seconds))} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def trouble(error: Exception, ours: bool) -> str:
    """An error in one line; one that is not prunelab's starts with its class."""
    message = " ".join(str(error).split())
    return message if ours else f"{type(error).__name__}: {message}"


# ---------------------------------------------------------------- typed input


def parse_units(text: str) -> Units:
    """Channels from a list such as "3, 7, 10-12"; raises InvalidValue with the invalid part."""
    units: set[int] = set()
    for part in re.split(r"[,\s]+", text.strip()):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if part and not match:
            raise InvalidValue(f"{part!r} is not a channel; write numbers such as 3, 7, 10-12.")
        if match:
            units.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return units_of(units)


def module(name: str, layers: int, now: float, proposed: float) -> str:
    """A module with its number of layers and their channels in total."""
    return f"{name}: {words.plural(layers, 'layer')}, {change(now, proposed)} channels"


def little(share: float) -> str:
    """A share as a percentage that fits a column."""
    return "<0.001%" if 0 < share < 1e-5 else words.share(share)


def change(now: float, proposed: float, original: float | None = None) -> str:
    """A width now, of the original's, and what is proposed."""
    text = str(now) if original in (None, now) else f"{now} of {original}"
    return text + (f" → {proposed}" if proposed != now else "")
