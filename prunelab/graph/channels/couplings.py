"""Which operations coupled which layers, and their description in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prunelab.graph.labels.axis_parts import PARTS
from prunelab.graph.labels.label_mode import Trace, layer_name

OPERATIONS = {"add": "the add", "sub": "the subtraction", "mul": "the multiplication"}
GATE = "the mul"
DEPTHWISE = "the depth-wise convolution "
GROUPED = "the grouped convolution "
SHARED = "the shared layer "
SHARED_NORM = "a shared "
NO_LAYER = -1  # owner of a label that no layer issued


@dataclass(frozen=True, slots=True)
class Coupling:
    """Channels of the layers `a` and `b` are coupled by the operation `why`.

    `where` is the qualified name of the module that was running ("" is the network itself),
    `group` the name of their channel group. `channels` is the number of coupled channels, of
    whichever layer has more, in the traced network; `units` are the coupled units of the group as
    ranges (first, one past the last). `a` is executed first; where `a` is `b`, channels of one
    layer are coupled with each other.
    """

    a: str
    b: str
    why: str
    where: str
    group: str
    channels: int
    units: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        a, b, why = self.a, self.b, self.why
        if why.startswith((DEPTHWISE, GROUPED)):
            if not why.endswith(f" {b}"):
                both = f"channels of {a}" if a == b else f"{a} and {b}"
                return f"{both} enter the same filters of {why}"
            if why.startswith(DEPTHWISE):
                return f"{why} gives every channel of {a} its own filter"
            return f"{why} computes each of its channel groups from one group of {a}"
        if why.startswith(SHARED):
            layer = why.removeprefix(SHARED)
            return f"{layer} runs more than once: it reads {a} and {b} through the same weights"
        if why.startswith(SHARED_NORM):
            return (
                f"{a} and {b} pass through the same {why.removeprefix(SHARED_NORM)}, {self.where}"
            )
        if why == PARTS:
            both = f"the channels of {a}" if a == b else f"{a} and {b}"
            return f"{self._place} splits {both} into equal parts"
        at = OPERATIONS.get(why.removeprefix("the "), why)
        if a == b:
            return f"{at} in {self._place} combines channels of {a} with each other"
        return f"{at} in {self._place} combines {a} and {b}"

    @property
    def _place(self) -> str:
        return self.where or "the network's own forward"

    @property
    def kind(self) -> str:
        """The operation in a word or two: "add", "depth-wise", "shared" ..."""
        for start, kind in ((DEPTHWISE, "depth-wise"), (GROUPED, "grouped"), (SHARED, "shared")):
            if self.why.startswith(start):
                return kind
        if self.why.startswith(SHARED_NORM):
            return "shared"
        if self.why == PARTS:
            return "equal parts"
        word = self.why.removeprefix("the ")
        return OPERATIONS.get(word, word).removeprefix("the ")

    @property
    def reason(self) -> str:
        """The general rule by which such an operation couples channels."""
        why = self.why
        if why.startswith(DEPTHWISE):
            return (
                "A depth-wise convolution computes each channel from one channel alone, so input "
                "and output channels are coupled."
            )
        if why.startswith(GROUPED):
            return (
                "A grouped convolution is several small convolutions of the same size side by "
                "side: one of them stays or goes as a whole, with its inputs and its outputs."
            )
        if why.startswith(SHARED):
            return (
                "One weight serves every call of a shared layer: what is column i for one input is "
                "column i for the other, so both channels i stay or both go."
            )
        if why.startswith(SHARED_NORM):
            return "One scale and one shift serve both, so both channels i stay or both go."
        if why == PARTS:
            return (
                "The code will split into equal parts again, however few channels are left: the "
                "i-th channels of all parts stay or go together."
            )
        if why == GATE:
            return (
                "A multiplication scales channel i of one by channel i of the other (a gate, as in "
                "squeeze-and-excitation): neither is of use without the other."
            )
        return (
            "It works channel by channel: channel i of one is paired with channel i of the other, "
            "so both stay or both go."
        )


def find_couplings(
    trace: Trace, unit: np.ndarray, groups: Sequence[tuple[str, int]]
) -> tuple[Coupling, ...]:
    """All couplings in `trace`, in execution order of the layers.

    Parameters
    ----------
    trace
        The finished trace.
    unit
        The graph-wide unit number of each label [labels].
    groups
        The name and the first unit of each group.
    """
    layers = sorted(trace.layers.values(), key=lambda layer: layer.order)
    names = [layer_name(layer.name) for layer in layers]
    owner = np.full(trace.count, NO_LAYER, dtype=np.int64)
    for index, layer in enumerate(layers):
        owner[layer.out.numpy()] = index
    group_of = np.searchsorted([first for _, first in groups], unit, side="right") - 1

    places: dict[tuple[str, str], list[np.ndarray]] = {}
    for edge in _between_layers(trace, owner):
        places.setdefault((edge.why, edge.where), []).append(edge.a * trace.count + edge.b)

    found = []
    for (why, where), parts in places.items():
        met = distinct(np.concatenate(parts))  # a module may run more than once
        a, b = met // trace.count, met % trace.count
        kinds, which = np.unique(
            (owner[a] * len(layers) + owner[b]) * len(groups) + group_of[a], return_inverse=True
        )
        ours = [distinct(which * trace.count + side) // trace.count for side in (a, b)]
        counts = np.maximum(*[np.bincount(side, minlength=len(kinds)) for side in ours])
        order = np.argsort(which, kind="stable")
        units = np.split(unit[a][order], np.cumsum(np.bincount(which))[:-1])
        for kind, count, some in zip(kinds.tolist(), counts.tolist(), units, strict=True):
            pair, group = divmod(kind, len(groups))
            one, other = divmod(pair, len(layers))
            name, first = groups[group]
            met_in = ranges(distinct(some - first))
            coupling = Coupling(names[one], names[other], why, where, name, count, met_in)
            found.append((one, other, coupling))
    return tuple(coupling for *_, coupling in sorted(found, key=lambda item: item[:2]))


@dataclass(frozen=True, slots=True, eq=False)
class _MetLabels:
    """Labels `a` and `b` coupled pair by pair, all of them channels of layers."""

    a: np.ndarray
    b: np.ndarray
    why: str
    where: str


def _between_layers(trace: Trace, owner: np.ndarray) -> Iterator[_MetLabels]:
    """The edges of `trace`, where the channels of an initial state are replaced.

    Each is represented by the first layer channel that it is coupled with.
    """
    stands_for = np.arange(trace.count)
    waiting = [(edge.a.numpy(), edge.b.numpy(), edge) for edge in trace.edges]
    before = -1
    while waiting and before != (before := sum(len(a) for a, *_ in waiting)):
        left = []
        for a, b, edge in waiting:
            for state, other in ((a, b), (b, a)):
                new = (owner[stands_for[state]] == NO_LAYER) & (
                    owner[stands_for[other]] != NO_LAYER
                )
                stands_for[state[new]] = stands_for[other[new]]
            one, two = stands_for[a], stands_for[b]
            known = (owner[one] != NO_LAYER) & (owner[two] != NO_LAYER)
            if (met := known & (one != two)).any():
                low, high = np.minimum(one, two)[met], np.maximum(one, two)[met]
                yield _MetLabels(low, high, edge.why, edge.where)
            if not known.all():
                left.append((a[~known], b[~known], edge))
        waiting = left


def distinct(numbers: np.ndarray) -> np.ndarray:
    """The sorted unique `numbers`: faster than `np.unique` for a few thousand."""
    numbers = np.sort(numbers)
    return numbers[np.append(True, numbers[1:] != numbers[:-1])[: len(numbers)]]


def ranges(units: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Sorted `units` as ranges (first, one past the last)."""
    gaps = np.flatnonzero(np.diff(units) != 1) + 1
    starts, ends = units[[0, *gaps]], units[[*(gaps - 1), -1]] + 1
    return tuple(zip(starts.tolist(), ends.tolist(), strict=True))
