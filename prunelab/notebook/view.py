"""The contents of a screen at one moment, as plain values from which its HTML is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prunelab.cost.counting import Latency
from prunelab.errors import InvalidValue
from prunelab.figures.board import BoardInfo
from prunelab.graph.channels.channel_graph import ChannelGroup
from prunelab.ledger import guard
from prunelab.ledger.events import Event
from prunelab.ledger.state import State
from prunelab.loops.training import STEPS
from prunelab.methods import Method
from prunelab.notebook.channel_inspector import Channel, Tried
from prunelab.session.certificate import Certificate
from prunelab.session.preview import AtHand
from prunelab.values import Cost, Move, Units, WidthPlan

SHARE = 0.05  # of a metric that is not an accuracy: what may be lost
STEP = 8  # channels: processors prefer widths that are multiples of it
End = int | str  # a side of a comparison: an event number, or the path of a plan file


@dataclass(frozen=True, slots=True)
class Aims:
    """The user's aims: MACs in % of the original's, and the allowed loss of the metric.

    `lose` is how far the first metric may become worse, in percentage points of an accuracy and
    otherwise in its own unit; None: no limit. `moves` limits Run, `steps` is for Tune, `reason`
    for Reject, and `repair` says whether Approve repairs.
    """

    macs: float = 50.0
    lose: float | None = 2.0
    moves: int | None = None
    steps: int = STEPS
    reason: str = ""
    repair: bool = True

    def with_typed(self, name: str, value: Any) -> Aims:
        """A copy with the value typed into the box `name`; raises `InvalidValue`."""
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

    @classmethod
    def of(cls, state: State) -> Aims:
        """The aims that a screen begins with.

        Two points of an accuracy may be lost, or a twentieth of another metric; there is no limit
        where the original's value, or which direction is better, is not known.
        """
        name, value = next(iter(state.base.metrics.items()), ("", math.nan))
        lose: float | None = 2.0 if "accuracy" in name else float(f"{SHARE * abs(value):.2g}")
        if not (math.isfinite(value) and value) or guard.higher_is_better(state.began) is None:
            lose = None
        return cls(lose=lose, repair=state.began.settings.get("repair") is not None)

    def floor(self, state: State) -> float | None:
        """The worst allowed value of the first metric; None where nothing is guarded."""
        name = next(iter(state.base.metrics), None)
        higher = guard.higher_is_better(state.began)
        if name is None or higher is None or self.lose is None:
            return None
        lose = self.lose / 100 if "accuracy" in name else self.lose
        best = state.base.metrics[name]
        return best - lose if higher else best + lose


@dataclass(frozen=True, slots=True)
class Table:
    """How the layers are listed: by the column `sorted_by` (empty: in the network's order).

    The widths of `ticked` groups are set together; with `multiples`, chosen widths are rounded.
    """

    sorted_by: str = ""
    ticked: frozenset[str] = frozenset()
    multiples: bool = False

    def sorting(self, column: str) -> Table:
        """A copy that sorts by `column`, or no longer."""
        return replace(self, sorted_by="" if self.sorted_by == column else column)

    def ticking(self, group: str, on: bool) -> Table:
        """A copy in which `group` is ticked or not."""
        return replace(self, ticked=self.ticked | {group} if on else self.ticked - {group})

    def rounded(self, width: int, now: int) -> int:
        """The width, or a multiple of `STEP` near it where these are asked for."""
        if not self.multiples or width >= now:
            return width
        return min(now, max(STEP, round(width / STEP) * STEP))


@dataclass(frozen=True, slots=True)
class Chosen:
    """The user's selection in place of the proposal; it changes nothing yet.

    `by` is its origin: channels selected by hand, a budget spread over layers, or another theta
    (then `seen` is the evidence judged with it). `best` holds, for each group, the best known
    selection of the same size; `seconds` are before and after, where layers were timed.
    """

    by: Literal["person", "budget", "theta"]
    move: Move | None
    seen: tuple[Any, ...]
    best: Mapping[str, Any]
    seconds: tuple[float, float] | None
    theta: float | None = None


@dataclass(frozen=True, slots=True)
class Busy:
    """Running work: the share that is done (0 .. 1), and its description."""

    done: float
    words: str


@dataclass(frozen=True, slots=True)
class View:
    """The contents of a screen.

    `chosen` is the user's selection, which is not the proposal yet; `group` and `unit` are the
    inspected group and channel, `layers` the producers of each prunable group, `known` the names
    of the methods, `at_work` the verbs that are running or queued, `opened` the names of the open
    sections. `at_hand` describes the evidence, `latencies` are measured ones of points; `tried`
    and `repaired` are results of the move on validation images, as cut and repaired (where Approve
    `repairs`), `certificate` bounds its units of the group, `background` is the kind of the
    background job. `channel` is the inspected channel,
    `alone` the share of the signal that it carries by itself. `compared` are two points, by event
    number, or plans, by path in `plans`; `difference` compares the second with the first.
    `step_time` is in seconds, `written` a message about the last exported file and `failed` why it
    was not written. `hint` answers an action that selected nothing, `error` says why a verb or a
    selection failed; `revealed` counts the requests to open the comparison. In the table of layers,
    `layer_costs` and `seconds` are those of each layer of the current network.
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
    hint: str = ""
    failed: str = ""
    revealed: int = 0
    opened: frozenset[str] = frozenset()
    at_hand: AtHand | None = None
    latencies: Mapping[int, Latency] = field(default_factory=dict)
    tried: Tried | None = None
    repaired: Tried | None = None
    certificate: Certificate | None = None
    repairs: bool = False
    background: str = ""
    channel: Channel | None = None
    alone: float | None = None
    compared: tuple[End, End] = (0, 0)
    plans: Mapping[str, WidthPlan] = field(default_factory=dict)
    written: str = ""
    step_time: float | None = None
    layer_costs: Mapping[str, Cost] = field(default_factory=dict)
    seconds: Mapping[str, float] | None = None
    table: Table = Table()
    difference: Any = None
    classes: tuple[str, ...] = ()

    @property
    def move(self) -> Move | None:
        """The move that Approve, or Adjust and Approve, would apply."""
        return self.chosen.move if self.chosen else self.state.pending


def enabled(state: State, busy: bool, chosen: bool = False) -> dict[str, bool]:
    """Which buttons are enabled; `chosen` is whether the selection differs from the proposal."""
    pending = state.pending is not None
    free = not pending or state.stale
    can = {
        "propose": free,
        "approve": pending
        and not state.stale
        and not chosen,  # only the shown proposal is approved
        "adjust": pending or chosen,
        "reject": pending,
        "undo": state.undoable,
        "repair": free and state.now.parent is not None,
        "tune": free,
        "run": free,
    }
    return {**{verb: can[verb] and not busy for verb in can}, "stop": busy}
