"""Explanations in words: why channels are coupled, or why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prunelab.errors import UnknownName
from prunelab.graph.channels.couplings import Coupling, ranges
from prunelab.values import listed, many

if TYPE_CHECKING:
    from prunelab.graph.channels.channel_graph import ChannelGraph, ChannelGroup

SHOWN = 5  # items of a long list that are named; the rest is counted


@dataclass(frozen=True, slots=True, repr=False)
class Explanation:
    """An answer in words: `answer` in one sentence, the `facts` behind it, and `steps`.

    For two coupled layers the steps are a shortest chain of couplings from one to the other; for a
    single layer they are its couplings.
    """

    answer: str
    facts: tuple[str, ...] = ()
    steps: tuple[Coupling, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """The rules by which these operations couple channels, each once."""
        return tuple(dict.fromkeys(step.reason for step in self.steps))

    def __str__(self) -> str:
        steps = [f"  {number}. {step}" for number, step in enumerate(self.steps, start=1)]
        return "\n".join(
            [self.answer, *(f"  {fact}" for fact in self.facts), *steps, *self.reasons]
        )

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        facts = "\n".join(f"- {fact}" for fact in self.facts)
        steps = "\n".join(f"{number}. {step}" for number, step in enumerate(self.steps, start=1))
        parts = [f"**{self.answer}**", facts, steps, *(f"*{reason}*" for reason in self.reasons)]
        return "\n\n".join(part for part in parts if part)


def explain_layer(graph: ChannelGraph, name: str) -> Explanation:
    """The groups that `name` is in: their producers, their consumers, and why they are frozen."""
    if name in graph.unseen:
        return Explanation(_never_ran(name))
    layer, groups = _find(graph, name)
    if len(groups) == 1:
        (group,) = groups
        others = [producer for producer in group.producers if producer != layer]
        shares = f"shares its channels with {listed(others, SHOWN)}" if others else "is alone"
        answer = f"{name} {shares}: {_size(group)}, {_fate(group)}."
    else:
        answer = f"The channels of {name} are in {many(len(groups), 'group')}."
    facts = []
    for group in groups:
        if len(groups) > 1:
            facts.append(f"{group.name}: {_size(group)}, {_fate(group)}")
            facts.append(f"made by {listed(group.producers, SHOWN)}")
        facts.append(_read_by(group))
    steps = [c for c in graph.couplings if layer in (c.a, c.b) and c.group in _names(groups)]
    return Explanation(answer, tuple(facts), tuple(steps))


def explain_pair(graph: ChannelGraph, a: str, b: str) -> Explanation:
    """The operations that couple channels of `a` with channels of `b`, or why none does."""
    for name in (a, b):
        if name in graph.unseen:
            return Explanation(_never_ran(name))
    (one, ours), (other, theirs) = _find(graph, a), _find(graph, b)
    common = [group for group in ours if group in theirs]
    if not common:
        return _apart(graph, a, ours, b, theirs)
    group = max(common, key=lambda group: len(group.units))
    facts = []
    if len(common) > 1:
        facts.append(f"They share {len(common)} groups; this is the chain in {group.name}.")
    if group.why:
        facts.append(f"The group is frozen: {group.why}.")
    if one == other:
        return Explanation(f"{a} and {b} are the same layer, {_size(group)}.", tuple(facts))
    steps, led = _path(graph, group, one, other)
    if len(led) < len(group.units):
        spans = [f"{first}-{end - 1}" for first, end in ranges(led)]
        facts.append(
            f"This chain holds for units {listed(spans, SHOWN)}; others are coupled elsewhere."
        )
    return Explanation(
        f"{a} and {b} are coupled: they share {sum(len(group.units) for group in common)} units "
        f"of {_names(common)[0] if len(common) == 1 else 'several groups'}.",
        tuple(facts),
        steps,
    )


def _apart(
    graph: ChannelGraph,
    a: str,
    ours: tuple[ChannelGroup, ...],
    b: str,
    theirs: tuple[ChannelGroup, ...],
) -> Explanation:
    facts = []
    for name, groups in ((a, ours), (b, theirs)):
        readers = dict.fromkeys(reader for group in groups for reader in group.consumers)
        which = f"the group {groups[0].name}" if len(groups) == 1 else f"{len(groups)} groups"
        facts.append(f"{name} is in {which}, read by {listed(readers, SHOWN) or 'no layer'}.")
    reads_a = {reader for group in ours for reader in group.consumers}
    reads_b = {reader for group in theirs for reader in group.consumers}
    order = {layer.name: index for index, layer in enumerate(graph.layers)}
    for reader, read in ((b, a), (a, b)):
        if reader in (reads_a if read == a else reads_b) and order.get(read, -1) < order[reader]:
            facts.append(
                f"{reader} reads {read}: each of its outputs is a weighted sum of all inputs, so "
                "an input can be removed without removing an output."
            )
    both = [layer.name for layer in graph.layers if layer.name in reads_a & reads_b]
    if both:
        facts.append(
            f"{listed(both, 3)} {'reads' if len(both) == 1 else 'read'} both, side by side: a "
            "concatenation couples nothing; later channels only shift."
        )
    else:
        facts.append("No operation pairs a channel of one with a channel of the other.")
    return Explanation(f"{a} and {b} are not coupled.", tuple(facts))


def _path(
    graph: ChannelGraph, group: ChannelGroup, a: str, b: str
) -> tuple[tuple[Coupling, ...], np.ndarray]:
    """A shortest chain of couplings from `a` to `b` in `group`, and the units it holds for.

    All couplings of a chain must hold for one and the same unit.
    """
    ways = [c for c in graph.couplings if c.group == group.name and c.a != c.b]
    met = np.zeros((len(ways), group.width), dtype=bool)
    for row, coupling in zip(met, ways, strict=True):
        for first, end in coupling.units:
            row[first:end] = True
    here = np.asarray(group.units)
    kinds = np.unique(met[:, here], axis=1)  # units coupled by the same operations
    found = [_chain(group, [ways[i] for i in np.flatnonzero(kind)], a, b) for kind in kinds.T]
    row_of = {id(coupling): row for row, coupling in zip(met, ways, strict=True)}
    led = [here[np.all([row_of[id(c)][here] for c in chain], axis=0)] for chain in found]
    best = min(range(len(found)), key=lambda i: (len(found[i]), -len(led[i])))
    return found[best], led[best]


def _chain(group: ChannelGroup, ways: list[Coupling], a: str, b: str) -> tuple[Coupling, ...]:
    """A shortest chain of `ways` from `a` to `b`; all of them hold for one unit."""
    from scipy.sparse import csr_array  # slow to import, seldom needed
    from scipy.sparse.csgraph import breadth_first_order

    place = {name: index for index, name in enumerate(group.producers)}
    between = {(c.a, c.b): c for c in reversed(ways)}
    ends = np.array([(place[x], place[y]) for x, y in between])
    links = csr_array((np.ones(len(ends)), tuple(ends.T)), shape=(len(place), len(place)))
    _, before = breadth_first_order(links, place[a], directed=False)
    chain = [b]
    while chain[-1] != a:
        chain.append(group.producers[before[place[chain[-1]]]])
    return tuple(
        between[x, y] if (x, y) in between else between[y, x]
        for x, y in zip(chain[:0:-1], chain[-2::-1], strict=True)
    )


def _find(graph: ChannelGraph, name: str) -> tuple[str, tuple[ChannelGroup, ...]]:
    """The layer called `name` and its groups; a group's name means its first producer."""
    groups = tuple(group for group in graph.groups if name in group.producers)
    if groups:
        return name, groups
    for group in graph.groups:
        if group.name == name:
            return group.producers[0], (group,)
    raise UnknownName("layer", name, [layer.name for layer in graph.layers])


def _names(groups: tuple[ChannelGroup, ...] | list[ChannelGroup]) -> tuple[str, ...]:
    return tuple(group.name for group in groups)


def _size(group: ChannelGroup) -> str:
    now = len(group.units)
    return many(now, "unit") if now == group.width else f"{now} of {group.width} units left"


def _fate(group: ChannelGroup) -> str:
    return f"frozen: {group.why}" if group.why else "prunable"


def _read_by(group: ChannelGroup) -> str:
    return f"read by {listed(group.consumers, SHOWN)}" if group.consumers else "read by no layer"


def _never_ran(name: str) -> str:
    return f"{name} never ran on the example inputs, so its channels are not known and must stay."
