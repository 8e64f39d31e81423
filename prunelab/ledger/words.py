"""The wording of events: the sentences of screen and report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from prunelab.ledger import guard
from prunelab.ledger.events import (
    Adjusted,
    Approved,
    Event,
    Noted,
    Proposed,
    Rejected,
    Repaired,
    Returned,
    Step,
    Tuned,
    Undone,
)
from prunelab.ledger.state import Point, State
from prunelab.values import Move, as_text, si

METHODS = {
    "aofp": "AOFP",
    "thinet": "ThiNet",
    "group_fisher": "Group Fisher",
    "channel_pruning": "Channel Pruning",
    "batchnorm_scale": "BatchNorm Scale",
    "first_k": "First K",
    "apoz": "APoZ",
    "three_c": "3C",
}
REPAIRS = {
    "lstsq": "least squares",
    "rescale": "per-channel rescaling",
    "bn": "BatchNorm recalibration",
    "none": "nothing",
}
SAID = ("run", "tune", "outcome")  # kinds of notes that say how a verb ended


class GroupInfo(Protocol):
    """The attributes of a channel group that sentences use; `ChannelGroup` has them."""

    @property
    def name(self) -> str:
        """The name of the group."""
        ...

    @property
    def producers(self) -> Sequence[str]:
        """The layers that lose the same channels."""
        ...

    @property
    def consumers(self) -> Sequence[str]:
        """The layers that read these channels; empty where they are not known."""
        ...


def method(name: str) -> str:
    """A method's name as in its paper."""
    return METHODS.get(name, name.replace("_", " ").title())


def plural(count: int, noun: str) -> str:
    """`count` and the noun, in the plural where needed."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def listed(names: Sequence[str]) -> str:
    """One or two names, or the first name and the number of others."""
    if len(names) <= 2:
        return " and ".join(names)
    return f"{names[0]} and {len(names) - 1} more layers"


def share(value: float) -> str:
    """A share as a percentage with two significant digits: 1.8%, 0.042%."""
    return f"{float(f'{100 * value:.2g}'):g}%"


def sentence(state: State, last: Event | None, group: GroupInfo) -> str:
    """The pending proposal, described by its effect on `group`; otherwise the latest event."""
    if state.pending is None or (last and said(last)):
        return outcome(state, last)
    found = state.proposed.move if state.proposed else None
    own = isinstance(last, Adjusted) or state.pending != found
    who = None if own else method(state.pending.method)
    return proposal(state, state.pending, group, who)


def loss(move: Move, group: GroupInfo, state: State) -> str:
    """What `move` drops in one group, and the share of the signal that this removes."""
    gone, alive = len(move.drop.get(group.name, ())), state.widths()[group.name]
    text = f"drop {gone} of {plural(alive, 'channel')} in {group.name}"
    if group.name in move.adds:
        layer = group.name.removesuffix(".0")
        text = f"make two layers of {layer}, of rank {alive - gone} instead of {alive}"
    if group.name in move.damage:
        readers = listed(group.consumers) or "the layers that read it"
        text += f": removes {share(move.damage[group.name])} of the signal entering {readers}"
    return text


def proposal(state: State, move: Move, group: GroupInfo, who: str | None) -> str:
    """What `who` (None: the user) proposes, in `group` and elsewhere."""
    text = f"{who} proposes to " if who else "You propose to "
    more = len(move.drop) - 1
    if group.name in move.drop:
        text += loss(move, group, state)
        text += f" ... and {plural(more, 'more layer')}" if more else ""
    else:
        text += elsewhere(move, group)
    text += f". {macs(state, move)}"
    if state.proposed and (told := guessed(state, state.proposed.seq)):
        text += told.removeprefix(".") + "."
    if len(group.producers) > 1 and group.name in move.drop:
        text += f" Coupled: {len(group.producers)} layers lose the same channels."
    return text


def elsewhere(move: Move, group: GroupInfo) -> str:
    """What a move does that leaves `group` alone."""
    if move.factors:
        return f"make two layers of each of {plural(len(move.factors), 'layer')}"
    layers = plural(len(move.drop), "layer")
    return f"drop {plural(move.units, 'channel')} in {layers}, none in {group.name}"


def macs(state: State, move: Move) -> str:
    """How the MACs would change."""
    base = state.base.cost.macs
    return f"MACs {state.now.cost.macs / base:.1%} → {move.after.macs / base:.1%} of the original."


def outcome(state: State, last: Event | None) -> str:
    """The result of the latest event, with an alarm if it cost too much; empty before any step."""
    if last and (why := said(last)):
        alarm = state.alarm() if isinstance(last, Noted) and last.kind == "outcome" else None
        return f"{why} {alarm.sentence(state.now.event)}" if alarm else why
    if state.exhausted:
        return nothing(state.proposed)
    if isinstance(last, Rejected):
        why = f" ({last.reason})" if last.reason else ""
        return f"Rejected{why}: nothing was changed."
    if isinstance(last, Returned):
        return f"The network is {as_at(state, state.head)} again."
    if isinstance(last, Undone) and last.step is None:
        return "The proposal is discarded; the network is unchanged."
    if isinstance(last, Undone):
        return f"Undone: {undone(state, last)}; the network is {as_at(state, state.head)} again."
    if not isinstance(state.now.event, Step):
        return ""
    text = f"{done(state)}: {change(state)}{guessed(state, state.head)}"
    alarm = state.alarm()
    return f"{text}. {alarm.sentence(state.now.event)}" if alarm else text


def nothing(proposed: Proposed | None) -> str:
    """That the latest search found no move, and what can be done about it."""
    if proposed is None:
        return "The method has no further moves."
    theta = proposed.parameters.get("theta")
    text = f"{method(proposed.method)} has no further moves"
    if proposed.why and not (isinstance(theta, float) and "theta" in proposed.why):
        text += f": {proposed.why}"
    elif isinstance(theta, float):
        text += f": in every layer, what it would drop carries more than {share(theta)} of the "
        return f"{text}signal. Raise theta, or choose widths by hand."
    return f"{text}. Change its parameters, take another method, or choose widths by hand."


def step(state: State, seq: int) -> str:
    """The step of event `seq` in the words of the screen: move 3, the tuning, the repair."""
    event = state.point(seq).event
    if isinstance(event, Tuned):
        return f"the tuning after move {state.moves_at(seq)}"
    if isinstance(event, Repaired) and not event.automatic:
        return f"the repair after move {state.moves_at(seq)}"
    return f"move {state.moves_at(seq)}"


def as_at(state: State, seq: int) -> str:
    """The network at the point of event `seq`: as after move 3, as after the tuning."""
    return f"as after {step(state, seq)}" if state.point(seq).parent is not None else "the original"


def undone(state: State, event: Undone) -> str:
    """What an undo took back."""
    parts = ["the proposal"] * event.proposal
    parts += [step(state, event.step)] if event.step is not None else []
    return " and ".join(parts)


def stopped(event: Event) -> str:
    """Why a run stopped before its target, if `event` is such a note; otherwise empty."""
    return event.text if isinstance(event, Noted) and event.kind == "run" else ""


def said(event: Event) -> str:
    """The note that says how a verb ended; otherwise empty."""
    return event.text if isinstance(event, Noted) and event.kind in SAID else ""


def worse(state: State, steps: int, after: float) -> str:
    """Why a tune was rejected: the first metric would be `after`."""
    name, before = next(iter(state.now.metrics.items()))
    return (
        f"Tuned for {plural(steps, 'step')}; rejected: validation {name} would go from "
        f"{as_text(name, before)} to {as_text(name, after)}. Nothing was changed. Give more "
        "training images or a smaller learning rate: Session(train=pl.Training(lr=...))."
    )


def stop_reason(state: State, after: float, floor: float, higher_is_better: bool) -> str:
    """Why a run stops before the pending move, after which the first metric would be `after`."""
    name, before = next(iter(state.now.metrics.items()))
    left = state.now.cost.macs / state.base.cost.macs
    text = f"The run stopped at {left:.0%} of the MACs: the next move would take validation {name}"
    limit = "below the floor of" if higher_is_better else "above the limit of"
    limit = "which breaks the floor of" if math.isnan(after) else limit
    return (
        f"{text} from {as_text(name, before)} to {as_text(name, after)}, {limit} "
        f"{as_text(name, floor)}. Tune, prune less, or run with another min_accuracy "
        "(None: no floor)."
    )


def at_chance(state: State) -> str:
    """A sentence saying that the network is at chance; otherwise empty."""
    began, now = state.began, state.now
    if not guard.at_chance(began, now.metrics):
        return ""
    name = next(iter(now.metrics))
    return (
        f"The pruned network is at chance: validation {name} {as_text(name, now.metrics[name])}, "
        f"where the commonest label alone gives {as_text(name, began.settings['chance'])} and the "
        f"original network {as_text(name, state.base.metrics[name])}. Prune less, repair, or tune."
    )


def guessed(state: State, seq: int) -> str:
    """The results that event `seq` gave to predictions; empty where there were none."""
    text = ""
    for p in state.predictions:
        if p.settled == seq and p.error is not None:
            off = quantity(p.name, abs(p.error)).replace("%", " points")
            text += f". Predicted {p.name} {quantity(p.name, p.guess)}: off by {off}"
    return text


def quantity(name: str, value: float) -> str:
    """A predicted quantity as text."""
    return f"{value:.1%}" if name in ("macs", "params") else as_text(name, value)


def done(state: State) -> str:
    """The step that produced the present network."""
    match state.now.event:
        case Tuned(steps=steps):
            return f"Tuned for {plural(steps, 'step')}"
        case Repaired(automatic=True) as event:
            return f"{_approved(state, state.path[-2])} and {repaired(event)}"
        case Repaired() as event:
            return repaired(event).capitalize()
        case Approved():
            return _approved(state, state.now)
        case event:
            return type(event).__name__


def repaired(event: Repaired) -> str:
    """How the network was repaired, with the reason if not as requested."""
    if not event.tried:
        return "repaired"
    values = [
        f"{REPAIRS[kind]} {value:.4g}" for kind, value in event.tried.items() if kind != event.kind
    ]
    verb = "was" if len(values) == 1 else "were"
    how = "not repaired" if event.kind == "none" else f"repaired by {REPAIRS[event.kind]}"
    return f"{how} ({' and '.join(values)} {verb} worse on validation images)"


def refitted(event: Repaired) -> str:
    """The results of a repair, with the number of layers for each."""
    parts = [] if event.refits else [REPAIRS[event.kind]]
    ridges = [refit.ridge for refit in event.refits if refit.choice == "lstsq"]
    if ridges:
        low, high = min(ridges), max(ridges)
        ridge = f"ridge {low:g}" if low == high else f"ridge {low:g} to {high:g}"
        parts.append(f"least squares in {plural(len(ridges), 'layer')} ({ridge})")
    for choice, text in (("bn", "BatchNorm recalibrated in"), ("kept", "weights kept in")):
        if count := sum(refit.choice == choice for refit in event.refits):
            parts.append(f"{text} {plural(count, 'layer')}")
    if short := [refit for refit in event.refits if not refit.determined]:
        samples = min(refit.samples for refit in short)
        layers = plural(len(short), "layer")
        parts.append(f"{layers} underdetermined by the images (as few as {samples:,} samples)")
    return ", ".join(parts)


def _approved(state: State, point: Point) -> str:
    """Who approved; for a run of AOFP also its theta, which the run may have doubled."""
    if not (isinstance(point.event, Approved) and point.event.run is not None):
        return "Approved"
    move = state.proposed.move if state.proposed else None
    theta = move.parameters.get("theta") if move else None
    return "Approved by a run" if theta is None else f"Approved by a run (theta {theta:g})"


def change(state: State) -> str:
    """The metric before and after the latest step, and the numbers of lost and gained images."""
    now, before = state.now, state.before(state.head)
    assert now.parent is not None
    name = next(iter(now.metrics), None)
    if name is None:
        return f"MACs {si(before.cost.macs)} → {si(now.cost.macs)}"
    was, is_ = before.metrics[name], now.metrics[name]
    text = f"validation {name} {as_text(name, was)} → {as_text(name, is_)}"
    seen = now.event.compared if isinstance(now.event, Step) else {}
    if "images" in seen:
        text += f" on {plural(seen['images'], 'image')}"
    if "lost" in seen and "gained" in seen:
        flips = f"{seen['lost']} lost, {seen['gained']} gained"
        cut = state.point(now.parent).event
        if before.seq != now.parent and isinstance(cut, Step) and "lost" in cut.compared:
            # both steps change predictions, so the counts of the two cannot be added
            first = f"{cut.compared['lost']} lost, {cut.compared['gained']} gained"
            flips = f"cut {first}; repair {flips}"
        text += f": {flips}"
    return text
