"""What happened: events that are only ever appended.

Undo appends too, so a later move opens a branch and nothing is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prunelab.values import Codec, Cost, FrozenMap, Move


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the ledger. `seq` counts from 0; `at` (ISO time, UTC) is not compared."""

    seq: int
    at: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Began(Event):
    """A session began: with which network, method, seed and settings.

    `settings` are `repair`; `higher_is_better`, of the first metric; and `chance`, the accuracy
    of always answering the commonest validation label, where the network classifies. Files from
    before the latter two were kept lack them.
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
    """A method proposed `move` (None: it has nothing more); `seen` is the evidence it showed."""

    method: str
    parameters: FrozenMap
    move: Move | None
    seen: tuple[Any, ...] = ()
    target: float | None = None
    weights: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjusted(Event):
    """The person changed which units the pending move drops."""

    drop: FrozenMap
    move: Move


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected(Event):
    """The person declined the pending move."""

    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Event):
    """An event that changed the network: what it is now. `metrics` are on validation images."""

    kept: FrozenMap
    metrics: FrozenMap
    cost: Cost
    fingerprint: str
    weights: str
    compared: FrozenMap = field(default_factory=FrozenMap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved(Step):
    """The pending move was carried out: the network is smaller.

    `run` is the `target_macs` of the run that decided it (None: the person did). It is not
    compared: a script that replays the session says each approve itself.
    """

    run: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Refit:
    """What a repair gave one layer.

    `choice` is "lstsq" (solved, shrunk by `ridge`, a share of the mean square of an input),
    "bn" (BatchNorm behind it redone) or "kept" (as it was). `errors` maps each choice to what it
    misses of the outputs that the layer should give, a share of their variance, on images that it
    was not solved on; the choice has the least. Without such images it is empty. `samples` were
    solved on, for `entries` weights of each output: fewer do not determine them.
    """

    layer: str
    choice: str
    ridge: float
    errors: FrozenMap
    samples: int
    entries: int

    @property
    def determined(self) -> bool:
        """Whether there were more samples than weights to solve for."""
        return self.samples > self.entries


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired(Step):
    """Weights were repaired without training; `automatic` when it came with the approve.

    `kind` is how. Where that is not what was asked for, because it did worse on the validation
    images, `tried` has the first metric of each kind ("none": as cut). `refits` are what least
    squares did, layer by layer.
    """

    kind: str
    automatic: bool
    tried: FrozenMap = field(default_factory=FrozenMap)
    refits: tuple[Refit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned(Step):
    """Weights were trained; `replayable` when prunelab's own loop did it."""

    steps: int
    by: str
    replayable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted(Event):
    """Something was written down: by the person, a run, or the session; `text` reads as it stands.

    `kind` is "note", "reason", "run" (why one stopped), "tune" (why one was not taken), "data"
    (which images are left out), "prediction" (`value`: name to guess) or "answer" (`value`: the
    answer to exercise `about`).
    """

    text: str
    kind: str = "note"
    about: str = ""
    value: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone(Event):
    """The pending proposal was dropped and step `step` (its seq; None: no step) taken back."""

    step: int | None
    proposal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned(Event):
    """The network became again what it was after event `to`, on this branch or another."""

    to: int


Codec.register(
    Refit, Began, Proposed, Adjusted, Rejected, Approved, Repaired, Tuned, Noted, Undone, Returned
)
