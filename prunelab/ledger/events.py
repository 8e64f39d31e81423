"""The events of a session, which are only ever appended.

Undo also appends an event, so that a later move begins a branch and nothing is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prunelab.values import Codec, Cost, FrozenMap, Move


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry of the ledger. `seq` counts from 0; `at` (ISO time, UTC) is not compared."""

    seq: int
    at: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Began(Event):
    """A session began, with this network, method, seed and settings.

    `settings` are `repair`; `higher_is_better`, for the first metric; and, for a classifier,
    `chance`, the accuracy of always predicting the most frequent validation label. The latter two
    are missing in older files.
    """

    network: str
    fingerprint: str
    seed: int
    method: str
    parameters: FrozenMap
    settings: FrozenMap
    widths: FrozenMap
    metrics: FrozenMap
    cost: Cost
    weights: str
    versions: FrozenMap = field(default_factory=FrozenMap, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed(Event):
    """A method proposed `move` (None: it has no more moves); `seen` is the evidence it yielded."""

    method: str
    parameters: FrozenMap
    move: Move | None
    seen: tuple[Any, ...] = ()
    target: float | None = None
    weights: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjusted(Event):
    """The user changed the units that the pending move drops."""

    drop: FrozenMap
    move: Move


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected(Event):
    """The user rejected the pending move."""

    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Event):
    """An event that changed the network, and its new state; `metrics` are on validation images."""

    kept: FrozenMap
    metrics: FrozenMap
    cost: Cost
    fingerprint: str
    weights: str
    compared: FrozenMap = field(default_factory=FrozenMap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved(Step):
    """The pending move was carried out, so the network is smaller.

    `run` is the `target_macs` of the run that approved it (None: the user did). It is not compared,
    because a script that replays the session calls each approve itself.
    """

    run: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Refit:
    """The result of a repair for one layer.

    `choice` is "lstsq" (least squares with the ridge `ridge`, a share of the mean square of an
    input), "bn" (the following BatchNorm recalibrated) or "kept" (unchanged). `errors` maps each
    choice to its reconstruction error on held-out images, as a share of the variance of the target
    outputs; the choice has the smallest. It is empty without such images. The solution used
    `samples` for `entries` weights of each output; fewer samples than entries do not determine it.
    """

    layer: str
    choice: str
    ridge: float
    errors: FrozenMap
    samples: int
    entries: int

    @property
    def determined(self) -> bool:
        """Whether there were more samples than weights per output."""
        return self.samples > self.entries


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired(Step):
    """The weights were repaired without training; `automatic` if as part of an approve.

    `kind` is the kind of repair. Where it is not the one requested, because that one was worse on
    the validation images, `tried` has the first metric of each kind ("none": as cut). `refits` are
    the results of least squares, layer by layer.
    """

    kind: str
    automatic: bool
    tried: FrozenMap = field(default_factory=FrozenMap)
    refits: tuple[Refit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned(Step):
    """The weights were trained; `replayable` if by prunelab's own training loop."""

    steps: int
    by: str
    replayable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted(Event):
    """A note by the user, a run, or the session; `text` is complete by itself.

    `kind` is "note", "reason", "run" (why a run stopped), "tune" (why a tune was rejected), "data"
    (which images are excluded), "prediction" (`value`: name to predicted value) or "answer"
    (`value`: the answer to exercise `about`).
    """

    text: str
    kind: str = "note"
    about: str = ""
    value: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone(Event):
    """The pending proposal (if `proposal`) and step `step` (its seq; None: no step) were undone."""

    step: int | None
    proposal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned(Event):
    """The network was set back to its state after event `to`, on this branch or another."""

    to: int


Codec.register(
    Refit, Began, Proposed, Adjusted, Rejected, Approved, Repaired, Tuned, Noted, Undone, Returned
)
