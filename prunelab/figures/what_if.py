"""What a page without Python needs to answer "what if these channels go?".

For each group the Gram matrix of its contributions, so that the damage of any set is a sum; the
greedy order, so that a threshold gives widths; and the polynomial of the costs.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunelab.ledger.state import State
from prunelab.values import Units, as_text

WIDEST = 512  # units of a group whose matrix is in the page; of wider ones the order alone


@dataclass(frozen=True, slots=True, eq=False)
class WhatIfGroup:
    """A group's units and what they carry.

    `shares` [units, units] is the Gram matrix of the contributions over their energy: the sum over
    a set's rows and columns is the share of the signal that the set carries. `order` lists the
    units as greedy removal takes them, `lost` the share that is gone after each. `least` is the
    smallest width, `step` what widths are multiples of.
    """

    name: str
    layers: Sequence[str]
    original: int
    units: Units
    least: int
    step: int
    shares: np.ndarray
    order: Units
    lost: Sequence[float]


@dataclass(frozen=True, slots=True, eq=False)
class WhatIf:
    """All groups, the cost polynomial (None: not known), and what the evidence was measured on."""

    groups: Sequence[WhatIfGroup]
    start: tuple[float, float] | None
    linear: Mapping[str, tuple[float, float]]
    pairs: Mapping[tuple[str, str], tuple[float, float]]
    measured: str


def packed(info: WhatIf) -> dict[str, Any]:
    """The JSON that the page reads; groups are given by their place."""
    place = {group.name: index for index, group in enumerate(info.groups)}
    return {
        "measured": info.measured,
        "start": info.start,
        "groups": [_group(group, info.linear.get(group.name, (0.0, 0.0))) for group in info.groups],
        "pairs": [
            [place[one], place[other], *each]
            for (one, other), each in info.pairs.items()
            if one in place and other in place
        ],
    }


def _group(group: WhatIfGroup, linear: tuple[float, float]) -> dict[str, Any]:
    at = {unit: index for index, unit in enumerate(group.units)}
    found = group.shares if len(group.units) <= WIDEST else None
    return {
        "name": group.name,
        "layers": list(group.layers),
        "original": group.original,
        "units": list(group.units),
        "least": group.least,
        "step": group.step,
        "alone": _halves(np.diagonal(group.shares)),
        "gram": None if found is None else _halves(found[np.tril_indices(len(found))]),
        "order": [at[unit] for unit in group.order],
        "lost": [float(f"{share:.5g}") for share in group.lost],
        "linear": linear,
    }


def _halves(values: np.ndarray) -> str:
    """Numbers as float16, over the largest of them, which comes first as float32; in base 64."""
    top = np.float32(max(float(np.abs(values).max(initial=0.0)), 1e-30))
    halves = (values / top).astype("<f2")
    return base64.b64encode(top.astype("<f4").tobytes() + halves.tobytes()).decode("ascii")


def networks(state: State) -> dict[str, Any]:
    """The networks of a session, the largest first: costs, metrics, and widths by group."""
    full = state.full_widths
    found: list[dict[str, Any]] = [
        {
            "seq": point.seq,
            "macs": point.cost.macs,
            "params": point.cost.params,
            "metrics": {name: as_text(name, value) for name, value in point.metrics.items()},
            "widths": [
                width if point.kept is None else len(point.kept.get(name, range(width)))
                for name, width in full.items()
            ],
        }
        for point in state.points
    ]
    found.sort(key=lambda one: (-one["macs"], one["seq"]))
    return {"groups": list(full), "original": list(full.values()), "points": found}
