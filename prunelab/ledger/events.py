"""What happened: events that are only ever appended.

Undo appends too, so a later move opens a branch and nothing is lost. A new kind of event is
written here, with what a script says for it; `state.advance` says what it does to a session,
`words` how it reads, and `classroom.audit` whether it can be true.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from prunelab.values import Codec, Cost, FrozenMap, Move, thaw


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the ledger. `seq` counts from 0; `at` (ISO time, UTC) is not compared.

    `verb` is the session's that writes it; `keeps_proposal` says that what is pending stays
    pending, `changes_network` that the network is another one after it.
    """

    verb: ClassVar[str] = ""
    keeps_proposal: ClassVar[bool] = False
    changes_network: ClassVar[bool] = False

    seq: int
    at: str = field(default="", compare=False)

    def script(self) -> tuple[str, ...]:
        """The lines of a script that do it again; none where the session does it by itself."""
        return ()


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
    verb: ClassVar[str] = "propose"

    move: Move | None
    seen: tuple[Any, ...] = ()
    target: float | None = None
    weights: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjusted(Event):
    """The person changed which units the pending move drops."""

    verb: ClassVar[str] = "adjust"
    keeps_proposal: ClassVar[bool] = True
    retired: ClassVar[tuple[str, ...]] = ("drop",)  # older files repeat `move.drop` under it

    move: Move

    def script(self) -> tuple[str, ...]:
        """The lines of a script that do it again."""
        drop = {name: list(units) for name, units in self.move.drop.items()}
        return (f"session.adjust(drop={drop!r})",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected(Event):
    """The person declined the pending move."""

    verb: ClassVar[str] = "reject"

    reason: str = ""

    def script(self) -> tuple[str, ...]:
        """The lines of a script that do it again."""
        return (f"session.reject({self.reason!r})",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Event):
    """An event that changed the network: what it is now. `metrics` are on validation images."""

    changes_network: ClassVar[bool] = True

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

    verb: ClassVar[str] = "approve"

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

    verb: ClassVar[str] = "repair"

    kind: str
    automatic: bool
    tried: FrozenMap = field(default_factory=FrozenMap)
    refits: tuple[Refit, ...] = ()

    def script(self) -> tuple[str, ...]:
        """The lines of a script that do it again; none of one that comes with its approve."""
        return () if self.automatic else (f"session.repair({self.kind!r})",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned(Step):
    """Weights were trained; `replayable` when prunelab's own loop did it."""

    verb: ClassVar[str] = "tune"

    steps: int
    by: str
    replayable: bool

    def script(self) -> tuple[str, ...]:
        """The lines of a script that do it again, where that can be done."""
        if self.replayable:
            return (f"session.tune(steps={self.steps})",)
        return (
            f"with session.tuning({self.by!r}) as network:",
            f"    raise NotImplementedError('train it with {self.by} here; not bitwise')",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted(Event):
    """Something was written down: by the person, a run, or the session; `text` reads as it stands.

    `kind` is "note", "reason", "run" (why one stopped), "tune" (why one was not taken), "data"
    (which images are left out), "prediction" (`value`: name to guess) or "answer" (`value`: the
    answer to exercise `about`).
    """

    keeps_proposal: ClassVar[bool] = True

    text: str
    kind: str = "note"
    about: str = ""
    value: Any = None

    def script(self) -> tuple[str, ...]:
        """The lines of a script that do it again; none of what the session notes by itself."""
        if self.kind == "data":
            return ()
        if self.kind == "prediction":
            return (f"session.predict(**{thaw(self.value)!r})",)
        if self.kind == "answer":
            return (f"session.answer({self.about!r}, {thaw(self.value)!r})",)
        return (f"session.note({self.text!r}, kind={self.kind!r})",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone(Event):
    """The pending proposal was dropped and step `step` (its seq; None: no step) taken back."""

    verb: ClassVar[str] = "undo"
    changes_network: ClassVar[bool] = True

    step: int | None
    proposal: bool

    def script(self) -> tuple[str, ...]:
        """The lines of a script that do it again."""
        return ("session.undo()",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned(Event):
    """The network became again what it was after event `to`, on this branch or another."""

    verb: ClassVar[str] = "go"
    changes_network: ClassVar[bool] = True

    to: int

    def script(self) -> tuple[str, ...]:
        """The lines of a script that do it again."""
        return (f"session.go({self.to})",)


KINDS: tuple[type[Event], ...] = (
    *(Began, Proposed, Adjusted, Rejected, Approved, Repaired, Tuned, Noted, Undone, Returned),
)
Codec.register(Refit, *KINDS)
