"""How a method chose the channels of one group, in a sentence."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from prunelab.figures.halvings import Band
from prunelab.ledger import words
from prunelab.ledger.events import Proposed
from prunelab.ledger.state import State

ALONE = "share of the next layer's signal that the channel carries alone"
UNDECIDED = (
    "Each bar is the share of the next layer's input signal that a channel carries alone. No "
    "method has decided in this layer yet."
)
# By the method's name: what it does, in the terms of its paper.
LASSO = (
    "Channel Pruning raises the penalty of a LASSO that rebuilds the next layer's output: a "
    "channel goes when its coefficient becomes zero"
)
RULES = {
    "thinet": "ThiNet adds channel after channel to those that go: always the one with which the "
    "sum that the next layer would miss stays smallest",
    "thinet_omp": "ThiNet keeps channel after channel, always the one that explains most of what "
    "is left of the next layer's output (matching pursuit)",
    "thinet_swaps": "ThiNet adds channel after channel to those that go, then exchanges one of "
    "them for another while the sum that the next layer would miss gets smaller",
    "channel_pruning": LASSO,
    "three_c": LASSO,  # its last step; of the others see `how_split`
    "group_fisher": "Group Fisher removes channel after channel, in all layers: always the one "
    "with the least Fisher information for what its removal saves",
    "surgeon": "The surgeon removes channel after channel, in all layers: always the one with the "
    "least predicted rise of the loss, after a refit, for what its removal saves",
    "elimination": "Elimination removes channel after channel: always the one without which the "
    "refitted next layer misses least",
    "oracle": "The oracle leaves out each channel and measures the loss: those go without which "
    "it is lowest",
    "random": "Chance decides, as a control",
}


def how_chosen(
    state: State, group: str, meaning: str, bands: Sequence[Band], live: bool = False
) -> str:
    """How the channels of `group` were chosen; empty where nothing is known.

    Parameters
    ----------
    state
        The state, whose pending move, or else latest proposal, is what is asked about.
    group
        The name of a channel group.
    meaning
        What the scores of the panel are; empty where there are none.
    bands
        The halvings of the search.
    live
        Whether scores and halvings are those of a search that runs, or is foreseen.
    """
    if meaning == ALONE:
        return UNDECIDED
    if not meaning:
        return ""
    proposed, pending = state.proposed, state.pending
    found = proposed.move if proposed else None
    move = pending if live or pending else found
    drop = len(move.drop.get(group, ())) if move else bands[0].tested if bands else 0
    by_hand = not live and pending is not None and pending != found
    text = _searched(bands, drop) if bands else _ranked(proposed, meaning, drop, live or by_hand)
    if by_hand:
        return f"{text} Hatched is your choice: {words.plural(drop, 'channel')}."
    return f"The latest proposal: {text}" if not live and pending is None else text


def how_split(values: Mapping[int, float], kept: Collection[int], meaning: str) -> str:
    """How the rank of a layer's factorisation was chosen: `values` are shares of the energy."""
    energy = sum(values[unit] for unit in kept)
    return (
        f"Each bar is a component (a singular value): its {meaning}. The {len(kept)} largest of "
        f"{len(values)} stay, which is the rank, and hold {100 * energy:.4g}% of it."
    )


def _searched(bands: Sequence[Band], drop: int) -> str:
    """AOFP's search in one group."""
    lowest = bands[0]
    sizes = list(dict.fromkeys(band.searched for band in reversed(bands)))
    text = "AOFP masks random halves and searches on in the one that is missed less"
    text += f" ({' → '.join(map(str, sizes))} channels)" if len(sizes) > 1 else ""
    against = f"mean damage at most {lowest.worst:.2g}, against theta {lowest.theta:g}"
    if not lowest.taken:
        return f"{text}. No half passes ({against}): all stay."
    if not drop:
        return f"{text}. The better {lowest.tested} of {lowest.searched} pass ({against}) and wait."
    goes = "goes" if lowest.tested == 1 else "go"
    text += f". The better {lowest.tested} of the last {lowest.searched} {goes} ({against})"
    return f"{text}; the others stay, whatever their damage."


def _ranked(proposed: Proposed | None, meaning: str, drop: int, rule_alone: bool) -> str:
    """A choice by scores."""
    if proposed is None:
        return f"Each bar: {meaning}."
    given: Mapping[str, Any] = proposed.parameters
    name = proposed.method
    rule = RULES.get(f"{name}_{given.get('selection')}") or RULES.get(name)
    where = "of all layers together" if given.get("scope") == "global" else "of each layer"
    rule = rule or f"{words.method(name)} ranks channels by their {meaning}: the lowest {where} go"
    if rule_alone:
        return f"{rule}."
    ratio = given.get("pruning_ratio")
    wanted = f", of pruning ratio {ratio:g}" if isinstance(ratio, (int, float)) else ""
    return f"{rule}. Here {drop or 'none'} {'goes' if drop == 1 else 'go'}{wanted}."
