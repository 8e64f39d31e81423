"""Which operations coupled which layers, and how to say it.

May import coupling.labels and coupling.rearrange.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunelab.coupling.labels import Trace, layer_name
from prunelab.coupling.rearrange import PARTS

OPERATIONS = {"add": "the add", "sub": "the subtraction", "mul": "the multiplication"}
DEPTHWISE = "the depth-wise convolution "
GROUPED = "the grouped convolution "
SHARED = "the shared layer "
SHARED_NORM = "a shared "


@dataclass(frozen=True, slots=True)
class Coupling:
    """Channels of the layers `a` and `b` live and die together, because they met at `why`.

    `where` is the qualified name of the module that was running ("" is the network itself),
    `group` names the channel group that they are in. `channels` counts those of the one of the two
    layers that brought more, in the traced network. `a` came first; where `a` is `b`, channels of
    one layer met each other.
    """

    a: str
    b: str
    why: str
    where: str
    group: str
    channels: int

    def __str__(self) -> str:
        a, b, why = self.a, self.b, self.why
        if why.startswith((DEPTHWISE, GROUPED)):
            if not why.endswith(f" {b}"):
                both = f"channels of {a}" if a == b else f"{a} and {b}"
                return f"{both} enter the same filters of {why}"
            if why.startswith(DEPTHWISE):
                return f"{why} gives every channel of {a} its own filter"
            return f"{why} makes groups of its channels from groups of {a}'s"
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
            return f"channels of {a} meet each other at {at} in {self._place}"
        return f"{b} meets {a} at {at} in {self._place}"

    @property
    def _place(self) -> str:
        return self.where or "the network's own forward"

    @property
    def kind(self) -> str:
        """What met, in a word or two: "add", "depth-wise", "shared" ..."""
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
        """Why such a meeting couples, as a rule."""
        why = self.why
        if why.startswith(DEPTHWISE):
            return (
                "A depth-wise convolution makes each channel from one channel alone, so input and "
                "output live and die together."
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
        if why == "the mul":
            return (
                "A multiplication scales channel i of one by channel i of the other (a gate, as in "
                "squeeze-and-excitation): neither is of use without the other."
            )
        return (
            "It works channel by channel: channel i of one has channel i of the other for a "
            "partner, so both stay or both go."
        )


def find_couplings(
    trace: Trace, group_of: np.ndarray, groups: tuple[str, ...]
) -> tuple[Coupling, ...]:
    """Every coupling that `trace` met, in execution order of the layers.

    `group_of` [labels] is the index into `groups` of the group that each label ended up in.
    """
    layers = sorted(trace.layers.values(), key=lambda layer: layer.order)
    names = [layer_name(layer.name) for layer in layers]
    owner = np.zeros(trace.count, dtype=np.int64)
    for index, layer in enumerate(layers):
        owner[layer.out.numpy()] = index

    places: dict[tuple[str, str], list[np.ndarray]] = {}
    for edge in trace.edges:
        pairs = np.stack([edge.a.numpy(), edge.b.numpy()])
        places.setdefault((edge.why, edge.where), []).append(pairs)

    found = []
    for (why, where), parts in places.items():
        met = np.unique(np.concatenate(parts, axis=1), axis=1)  # a module may run twice
        keys = np.stack([*owner[met], group_of[met[0]]])
        kinds, which = np.unique(keys, axis=1, return_inverse=True)
        for index, (a, b, group) in enumerate(kinds.T.tolist()):
            ours = met[:, which.reshape(-1) == index]
            count = max(len(np.unique(side)) for side in ([ours] if a == b else ours))
            found.append((a, b, Coupling(names[a], names[b], why, where, groups[group], count)))
    return tuple(coupling for *_, coupling in sorted(found, key=lambda item: item[:2]))
