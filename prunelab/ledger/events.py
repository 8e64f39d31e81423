"""The events of a session, which are only ever appended.

Undo also appends an event, so that a later move begins a branch and nothing is lost. A new kind of
event is defined here, with the lines that a script repeats it by; `state.advance` says what it does
to a session, `words` how it reads, and `classroom.audit` whether it can be true.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import NoneType
from typing import Any, ClassVar

from prunelab.errors import InvalidValue
from prunelab.values import Codec, Cost, FrozenMap, Move, Units, thaw


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry of the ledger. `seq` counts from 0; `at` (ISO time, UTC) is not compared.

    `verb` is the verb of the session that writes it. With `keeps_proposal` a pending move stays
    pending; with `changes_network` the network is another one after the event.
    """

    verb: ClassVar[str] = ""
    keeps_proposal: ClassVar[bool] = False
    changes_network: ClassVar[bool] = False

    seq: int
    at: str = field(default="", compare=False)

    def script(self) -> tuple[str, ...]:
        """The lines of a script that do it again; none where the session does it by itself."""
        return ()


SETTINGS: dict[str, tuple[type, ...]] = {  # what each may be, where a file has it
    "repair": (str, NoneType),
    "repair_images": (int,),
    "freeze": (tuple,),
    "round_to": (int,),
    "higher_is_better": (bool, NoneType),
    "chance": (float, int, NoneType),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Began(Event):
    """A session began, with this network, method, seed and settings.

    `settings` are `repair`; `freeze` and `round_to`, what the graph was given;
    `higher_is_better`, for the first metric; and, for a classifier, `chance`, the accuracy of
    always predicting the most frequent validation label. All but the first are missing in older
    files. `unseen` are the layers that never ran when it was traced.
    """

    verb: ClassVar[str] = "begin"

    network: str
    fingerprint: str
    seed: int
    method: str
    parameters: FrozenMap[Any]
    settings: FrozenMap[Any]
    widths: FrozenMap[int]
    metrics: FrozenMap[float]
    cost: Cost
    weights: str
    unseen: tuple[str, ...] = ()
    versions: FrozenMap[str] = field(default_factory=FrozenMap, compare=False)

    def __post_init__(self) -> None:
        for name, value in self.settings.items():
            fits = type(value) in SETTINGS.get(name, (type(value),))
            if fits and (name != "freeze" or all(isinstance(layer, str) for layer in value)):
                continue
            raise InvalidValue(f"No session has the setting {name}={value!r:.60}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed(Event):
    """A method proposed `move` (None: it has no more, `why`); `seen` is the evidence it yielded.

    `weights` and `momentum` name what a method that trains has stored: the network that the move
    cuts, and the optimiser's momentum for the next search. A move that is `given` was not searched.
    """

    method: str
    parameters: FrozenMap[Any]
    verb: ClassVar[str] = "propose"

    move: Move | None
    seen: tuple[Any, ...] = ()
    target: float | None = None
    weights: str | None = None
    why: str = ""
    momentum: str | None = None
    given: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjusted(Event):
    """The user changed the units that the pending move drops."""

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
    """The user rejected the pending move."""

    verb: ClassVar[str] = "reject"

    reason: str = ""

    def script(self) -> tuple[str, ...]:
        """The lines of a script that do it again."""
        return (f"session.reject({self.reason!r})",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Event):
    """An event that changed the network, and its new state; `metrics` are on validation images."""

    changes_network: ClassVar[bool] = True

    kept: FrozenMap[Units]
    metrics: FrozenMap[float]
    cost: Cost
    fingerprint: str
    weights: str
    compared: FrozenMap[int] = field(default_factory=FrozenMap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved(Step):
    """The pending move was carried out, so the network is smaller.

    `run` is the `target_macs` of the run that approved it (None: the user did). It is not compared,
    because a script that replays the session calls each approve itself.
    """

    verb: ClassVar[str] = "approve"

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
    errors: FrozenMap[float]
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

    verb: ClassVar[str] = "repair"

    kind: str
    automatic: bool
    tried: FrozenMap[float] = field(default_factory=FrozenMap)
    refits: tuple[Refit, ...] = ()

    def script(self) -> tuple[str, ...]:
        """The lines of a script that do it again; none of one that comes with its approve."""
        return () if self.automatic else (f"session.repair({self.kind!r})",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned(Step):
    """The weights were trained by `by`.

    `replayable` if by prunelab's own training loop, whose schedule it completed.
    """

    verb: ClassVar[str] = "tune"

    steps: int
    by: str
    replayable: bool

    def unlike(self) -> str:
        """Why a script cannot repeat it bitwise; empty where it can."""
        if self.replayable:
            return ""
        if self.by == "prunelab":
            return f"a tune that was ended early, after {self.steps} steps, is trained to its end"
        return f"a tune by {self.by} has to be put in by hand"

    def script(self) -> tuple[str, ...]:
        """The lines of a script that do it again, where that can be done."""
        if self.replayable or self.by == "prunelab":
            return (f"session.tune(steps={self.steps})",)
        return (
            f"with session.tuning({self.by!r}) as network:",
            f"    raise NotImplementedError({f'train it with {self.by} here; not bitwise'!r})",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted(Event):
    """A note by the user, a run, or the session; `text` is complete by itself.

    `kind` is "note", "reason", "run" (why a run stopped), "tune" (why a tune was rejected),
    "outcome" (how another verb ended), "data" (which images are excluded), "prediction" (`value`:
    name to predicted value) or "answer" (`value`: the answer to exercise `about`).
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
    """The pending proposal (if `proposal`) and step `step` (its seq; None: no step) were undone."""

    verb: ClassVar[str] = "undo"
    changes_network: ClassVar[bool] = True

    step: int | None
    proposal: bool

    def script(self) -> tuple[str, ...]:
        """The lines of a script that do it again."""
        return ("session.undo(only_proposal=True)" if self.step is None else "session.undo()",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned(Event):
    """The network was set back to its state after event `to`, on this branch or another."""

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
