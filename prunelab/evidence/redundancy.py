"""Why a channel is redundant: the few other channels that it is nearly a combination of.

From the second moments of what a layer reads, channel i is regressed on others, with an intercept
(a bias or BatchNorm absorbs it), and these are chosen by orthogonal matching pursuit: each time the
channel that explains most of what is left, then all weights anew (Pati, Rezaiifar, Krishnaprasad,
Asilomar 1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunelab.errors import InvalidValue, UnknownName
from prunelab.evidence.evidence import Evidence
from prunelab.graph.channels.channel_graph import ChannelGroup, Layer
from prunelab.values.given import as_annotated

Array = np.ndarray
DEAD = 1e-12  # of the mean variance of the group's channels: this channel is constant
ENOUGH = 0.999  # of the variance: no further channel is added


@dataclass(frozen=True, slots=True)
class Redundancy:
    """A unit as a combination of others of its group: `weights` times `others`, plus a constant.

    `explained` is the share of its variance over images and positions; 1 for a constant unit.
    """

    group: str
    unit: int
    others: tuple[int, ...]
    weights: tuple[float, ...]
    explained: float

    def __str__(self) -> str:
        if not self.others:
            what = "is constant" if self.explained == 1 else "goes with no other channel"
            return f"channel {self.unit} {what}"
        terms = " ".join(
            f"{'-' if weight < 0 else '+'} {abs(weight):.2g} x {other}"
            for other, weight in zip(self.others, self.weights, strict=True)
        ).removeprefix("+ ")
        return f"channel {self.unit} = {terms}, {self.explained:.0%} of its variance"


@as_annotated
def redundancy(evidence: Evidence, group: str, terms: int = 2) -> tuple[Redundancy, ...]:
    """Each unit of a group as a combination of at most `terms` others.

    Parameters
    ----------
    evidence
        Measured with kinds=("patches",), of a layer that reads the group.
    group
        The group's name, or that of a layer in it.
    terms
        The largest number of other units in a combination.

    Returns
    -------
    tuple[Redundancy, ...]
        In the order of the group's units.

    Raises
    ------
    InvalidValue
        For less than one term.
    UnknownName
        Where no layer that reads the group was measured with patches.
    """
    if terms < 1:
        raise InvalidValue(f"terms is a whole number of at least 1, not {terms}.")
    found = evidence.graph[group]
    covariance = _covariance(evidence, found)
    own = np.diagonal(covariance)
    least = DEAD * float(own.mean())
    made = []
    for index, unit in enumerate(found.units):
        if own[index] <= least:
            made.append(Redundancy(found.name, unit, (), (), 1.0))
            continue
        others, weights, explained = _combination(covariance, index, terms, least)
        units = tuple(found.units[other] for other in others)
        made.append(Redundancy(found.name, unit, units, weights, explained))
    return tuple(made)


def _combination(
    covariance: Array, index: int, terms: int, least: float
) -> tuple[list[int], tuple[float, ...], float]:
    """The others of unit `index`, their weights, and the share of its variance explained."""
    own, cross = np.diagonal(covariance), covariance[index]
    usable = own > least
    usable[index] = False
    others: list[int] = []
    weights, explained = np.zeros(0), 0.0
    while len(others) < terms and usable.any() and explained < ENOUGH:
        left = cross - covariance[:, others] @ weights  # with what is not explained yet
        gain = np.where(usable, left**2 / np.where(usable, own, 1), -1.0)
        best = int(np.argmax(gain))
        usable[best] = False
        tried = [*others, best]
        solved = np.linalg.lstsq(covariance[np.ix_(tried, tried)], cross[tried], rcond=1e-10)[0]
        better = float(solved @ cross[tried]) / own[index]
        if better <= explained + 1e-6:
            break
        others, weights, explained = tried, solved, better
    return others, tuple(weights.tolist()), min(1.0, explained)


def _covariance(evidence: Evidence, group: ChannelGroup) -> Array:
    """The covariance of a group's units over images and positions [units, units]."""
    for layer in evidence.graph.consumers(group):
        if layer.name in evidence.moments:
            return _of_units(evidence.moments[layer.name].moment.numpy(), layer, group)
    raise UnknownName('group measured with kinds=("patches",)', group.name, ())


def _of_units(moment: Array, layer: Layer, group: ChannelGroup) -> Array:
    """The covariance of units from the moments of a layer's patches [c k + 1, c k + 1].

    A unit's values are all entries of its channels' patches, in the same order for each unit.
    """
    entries = (len(moment) - 1) // len(layer.in_units)
    wanted = group.first + np.asarray(group.units)
    channels = np.array([np.flatnonzero(layer.in_units == unit) for unit in wanted])
    places = (channels[:, :, None] * entries + np.arange(entries)).reshape(len(wanted), -1)
    products = sum(moment[np.ix_(column, column)] for column in places.T)
    count = moment[-1, -1] * places.shape[1]
    means = moment[places, -1].sum(axis=1) / count
    covariance: Array = products / count - np.outer(means, means)
    return covariance
