"""The evidence that a method yields while it searches, and the move that it proposes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prunelab.errors import InvalidValue
from prunelab.values.frozen import Codec, FrozenMap
from prunelab.values.plan import Units
from prunelab.values.wording import many, si


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one input: multiply-adds, the network's parameters, bytes of activations.

    `macs` counts convolutions and linear layers; a paper's "FLOPs" are often 2 x MACs.
    `activation_bytes` is the sum of their outputs; `at` is the size of the input, as 1x28x28.
    `left_out` says which work of the original network, such as attention, is in no layer.
    `weights` are the parameters without biases and normalisation, as the papers' tables count them
    (0: not counted).
    """

    macs: int
    params: int
    activation_bytes: int
    at: str = field(default="", compare=False)
    left_out: str = field(default="", compare=False)
    weights: int = field(default=0, compare=False)

    def __str__(self) -> str:
        without = f" (without {self.left_out})" if self.left_out else ""
        return f"{si(self.macs)} MACs{without}, {si(self.params)} parameters"


@dataclass(frozen=True, slots=True)
class Importance:
    """One score per unit of a group: the lower, the safer to drop.

    `values` align with `units`; `meaning` names the score and its unit in plain words.
    """

    group: str
    units: Units
    values: tuple[float, ...]
    meaning: str

    def __post_init__(self) -> None:
        _check_aligned(self, self.units, self.values)

    def __str__(self) -> str:
        return f"Importance({self.group}: {len(self.units)} units, {self.meaning})"


def _check_aligned(seen: Any, units: Units, values: tuple[float, ...]) -> None:
    if len(units) != len(values):
        raise InvalidValue(
            f"{type(seen).__name__} of {seen.group!r} has {len(values)} values for {len(units)} "
            "units; give one for each."
        )


Verdict = Literal["take", "halve", "fail"]


def verdict_of(worst: float, candidates: int, theta: float) -> Verdict:
    """The verdict of a halving with `candidates` units, the worst of which has damage `worst`."""
    return "take" if worst < theta else "halve" if candidates > 1 else "fail"


@dataclass(frozen=True, slots=True)
class Rung:
    """One halving of AOFP's binary search in one group (Ding et al., ICML 2019).

    `search` is the set under search, `damages` aligned with it: the mean share of the consumer's
    signal lost while a random half that contains the unit is masked. `candidates` are the half with
    the smallest means, `worst` the largest mean among them. The verdict is "take" when
    `worst < theta`, else "halve" (search on in the candidates) or "fail" (nothing left to halve).
    `batches` is 0 for exact expectations.
    """

    group: str
    halving: int
    search: Units
    damages: tuple[float, ...]
    candidates: Units
    worst: float
    theta: float
    verdict: Verdict
    batches: int = 0

    def __post_init__(self) -> None:
        _check_aligned(self, self.search, self.damages)

    def at(self, theta: float) -> Rung:
        """The same measurement, judged with another theta."""
        verdict = verdict_of(self.worst, len(self.candidates), theta)
        return replace(self, theta=theta, verdict=verdict)

    def __str__(self) -> str:
        return (
            f"Rung({self.group}: {len(self.search)} -> {len(self.candidates)}, "
            f"worst {self.worst:.4f} against theta {self.theta:g}: {self.verdict})"
        )


@dataclass(frozen=True, slots=True)
class PathPoint:
    """One penalty of Channel Pruning's LASSO in one group (He, Zhang, Sun; ICCV 2017).

    `penalty` is lambda as a share of the smallest that keeps nothing; `kept` counts the channels
    with a coefficient at it, `unexplained` is the share of the consumers' signal that their
    weighted sum misses, before any refit. The search looks for `wanted` channels.
    """

    group: str
    penalty: float
    kept: int
    unexplained: float
    wanted: int

    def __str__(self) -> str:
        return (
            f"PathPoint({self.group}: lambda {self.penalty:.3g} keeps {self.kept}, "
            f"{self.wanted} wanted)"
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of some work: `done` of `total` steps, and a description.

    `loss` is that of a step of training.
    """

    done: int
    total: int
    what: str
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A verb has ended (done, stopped or failed), and the session is free again."""

    verb: str


@dataclass(frozen=True, slots=True)
class Move:
    """The units to drop of each group it touches, proposed by one method; it changes nothing.

    `damage` predicts, per group, the share of the consumers' signal that is lost (0 = none);
    `fingerprint` identifies the network on which it was measured. `carry` is data for the
    method's next search. `factors` are layers that become two first, with the kind of their
    factorisation, and `adds` the groups between these two, with their full rank.
    """

    drop: FrozenMap[Units]
    method: str
    parameters: FrozenMap[Any]
    seed: int
    damage: FrozenMap[float]
    before: Cost
    after: Cost
    fingerprint: str
    carry: FrozenMap[Any] = field(default_factory=FrozenMap)
    factors: FrozenMap[str] = field(default_factory=FrozenMap)
    adds: FrozenMap[int] = field(default_factory=FrozenMap)

    @property
    def units(self) -> int:
        """The total number of units that it drops."""
        return sum(len(units) for units in self.drop.values())

    @property
    def splits(self) -> str:
        """How many layers it factorises, in words; empty for none."""
        return f"factorise {many(len(self.factors), 'layer')}, " if self.factors else ""

    @property
    def trained(self) -> int:
        """How many batches its search trained on, which the method notes in `carry["batches"]`."""
        return int(self.carry.get("batches", 0))

    def __str__(self) -> str:
        return (
            f"Move({self.method}: {self.splits}drop {many(self.units, 'unit')} in "
            f"{many(len(self.drop), 'group')}, MACs {si(self.before.macs)} -> "
            f"{si(self.after.macs)})"
        )


Codec.register(Cost, Importance, PathPoint, Rung, Move)
