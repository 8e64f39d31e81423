"""The units that the probe keeps of each group, where it cuts it; always the same."""

from __future__ import annotations

from math import gcd

import numpy as np

from prunelab.graph.channels.channel_graph import ChannelGraph, ChannelGroup

WIDE = 64  # units


def thinned_units(graph: ChannelGraph, seed: int = 0) -> np.ndarray:
    """Drop about a third of the units of every prunable group at random, and more of wide groups.

    The remaining width has no divisor in common with the original one, so that code that
    needs a multiple of something (heads, groups) fails. The cut copy of a large network,
    whose groups are wide, is small and fast. Groups of one width lose different units, so
    that none look coupled by chance. With a `seed`, any number of units is dropped, so that groups
    of one width differ in it. Returned as by `ChannelGraph.alive`.
    """
    rng = np.random.default_rng(seed)
    alive = np.ones(graph.units + 1, dtype=bool)
    orders: dict[int, np.ndarray] = {}
    for group in _prunable(graph):
        order = np.roll(orders.get(group.width, rng.permutation(group.width)), 1)
        orders[group.width] = order
        share = rng.uniform(0.2, 0.45) if group.width < WIDE else rng.uniform(0.6, 0.75)
        most = max(1, int(group.width * share))
        fits = (n for n in range(most, 0, -1) if gcd(group.width - n, group.width) == 1)
        count = int(rng.integers(1, group.width)) if seed else next(fits, 1)
        alive[group.first + order[:count]] = False
    return alive


def single_units(graph: ChannelGraph, alive: np.ndarray) -> np.ndarray:
    """Keep one of the units in `alive` of every prunable group."""
    kept = alive.copy()
    for place, group in enumerate(_prunable(graph)):
        own = slice(group.first, group.first + group.width)
        units = np.flatnonzero(alive[own])
        kept[own] = False
        kept[group.first + units[place % len(units)]] = True
    return kept


def _prunable(graph: ChannelGraph) -> list[ChannelGroup]:
    return [group for group in graph.groups if group.prunable]
