"""What a screen shows at one moment: plain values that form, sections and picture are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prunelab.cost.counting import Latency
from prunelab.errors import InvalidValue
from prunelab.figures.board import BoardInfo
from prunelab.graph.channels.channel_graph import ChannelGroup
from prunelab.ledger.events import Event
from prunelab.ledger.state import State
from prunelab.loops.training import STEPS
from prunelab.methods import Method
from prunelab.notebook.channel_inspector import Channel, Tried
from prunelab.session.preview import AtHand
from prunelab.values import Move, Units, WidthPlan

End = int | str  # what is compared: a point, by its event, or a plan file, by its path


@dataclass(frozen=True, slots=True)
class Aims:
    """What the person wants: MACs in % of the original's, and what the metric may lose.

    `lose` counts in percentage points where the metric is an accuracy, else in its own unit;
    None: no limit. `moves` limits Run, `steps` are Tune's, `reason` is Reject's, and `repair`
    says whether Approve repairs.
    """

    macs: float = 50.0
    lose: float | None = 2.0
    moves: int | None = None
    steps: int = STEPS
    reason: str = ""
    repair: bool = True

    def with_typed(self, name: str, value: Any) -> Aims:
        """A copy with what was typed into the box `name`; raises `InvalidValue`."""
        changed: dict[str, Any] = {}
        if name in ("reason", "repair"):
            changed[name] = value
            return replace(self, **changed)
        if str(value).strip() == "" and name in ("lose", "moves"):
            changed[name] = None
            return replace(self, **changed)
        low, high = {"macs": (0.1, 100), "lose": (0, 1e9)}.get(name, (1, 1e7))
        try:
            number = (float if name in ("macs", "lose") else int)(value)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise InvalidValue(f"{name} is a number from {low:g} to {high:g}, not {value!r}.")
        changed[name] = number
        return replace(self, **changed)

    def floor(self, state: State, higher_is_better: bool) -> float | None:
        """The worst value that the first metric may have."""
        name = next(iter(state.base.metrics), None)
        if name is None or self.lose is None:
            return None
        lose = self.lose / 100 if "accuracy" in name else self.lose
        best = state.base.metrics[name]
        return best - lose if higher_is_better else best + lose


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the person chose, or only looks at, instead of the proposal: it changes nothing.

    `by` says how: channel by channel, as the spread of a budget, or by a theta that the method
    has not searched with yet (then `seen` is what it would show). `best` holds, of each group,
    the best selection of that size; `seconds` are before and after, where layers were timed.
    """

    by: Literal["person", "budget", "theta"]
    move: Move | None
    seen: tuple[Any, ...]
    best: Mapping[str, Any]
    seconds: tuple[float, float] | None
    theta: float | None = None


@dataclass(frozen=True, slots=True)
class Busy:
    """Work under way: how much of it is done (0 .. 1), and what it is in words."""

    done: float
    words: str


@dataclass(frozen=True, slots=True)
class View:
    """The moment. `chosen` is what the person chose, which is not yet the proposal.

    `group` and `unit` are the group and the channel looked at, `layers` the producers of every
    prunable group, `known` the names of the methods there are, `at_work` the verbs under way or
    queued, `opened` the names of the unfolded sections. `at_hand` says what evidence there is,
    `latencies` what was measured of which points, `tried` how the move does on validation images as
    it is cut, `repaired` how it does once repaired, where Approve `repairs`; `background` the kind
    of job that runs meanwhile. `channel` is a look at the channel, `alone` the share of the signal
    that it carries by itself, `compared` two points, by the events that made them, or two of the
    `plans` read from files, by their paths; `difference` is how the second does against the first,
    `step_time` the seconds that a step of tuning takes, `written` the file exported last.
    """

    state: State
    group: ChannelGroup
    layers: Mapping[str, tuple[str, ...]]
    info: BoardInfo
    aims: Aims
    method: Method
    unit: int | None = None
    known: tuple[str, ...] = ()
    last: Event | None = None
    chosen: Chosen | None = None
    drop: Mapping[str, Units] = field(default_factory=dict)
    at_work: tuple[str, ...] = ()
    busy: Busy | None = None
    error: str = ""
    opened: frozenset[str] = frozenset()
    at_hand: AtHand | None = None
    latencies: Mapping[int, Latency] = field(default_factory=dict)
    tried: Tried | None = None
    repaired: Tried | None = None
    repairs: bool = False
    background: str = ""
    channel: Channel | None = None
    alone: float | None = None
    compared: tuple[End, End] = (0, 0)
    plans: Mapping[str, WidthPlan] = field(default_factory=dict)
    written: str = ""
    step_time: float | None = None
    difference: Any = None
    classes: tuple[str, ...] = ()

    @property
    def move(self) -> Move | None:
        """What Approve, or Adjust and then Approve, would carry out."""
        return self.chosen.move if self.chosen else self.state.pending


def enabled(state: State, busy: bool, chosen: bool = False) -> dict[str, bool]:
    """Which buttons can be pressed; `chosen` is whether the person chose otherwise."""
    pending = state.pending is not None
    free = not pending or state.stale
    can = {
        "propose": free,
        "approve": pending and not state.stale and not chosen,  # only what is shown is approved
        "adjust": pending or chosen,
        "reject": pending,
        "undo": state.undoable,
        "repair": free and state.now.parent is not None,
        "tune": free,
        "run": free,
    }
    return {**{verb: can[verb] and not busy for verb in can}, "stop": busy}
