"""AOFP's halvings as bands behind the bars of the importance panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from prunelab.figures.style import FAINT, INVISIBLE, TEXT_PX
from prunelab.values import Rung, Units

ROOM = 0.26  # of the bars: left of them, for what is said of the lowest band


@dataclass(frozen=True, slots=True)
class Band:
    """Channels that left a search in the same halving: bars `first` to `last` of the panel.

    `searched` channels were in the search and `tested` of them, the better half, stood against
    `theta`; `worst` is the largest mean damage among those, `mean` the mean over the band. `better`
    says whether the band is that half: true of the last halving only, whose halves are two bands.
    """

    first: int
    last: int
    searched: int
    tested: int
    worst: float
    mean: float
    theta: float
    better: bool
    taken: bool

    @property
    def words(self) -> str:
        """Its mean damage, against theta where theta decided on it."""
        sign = "<" if self.mean < self.theta else "≥"
        return f"{self.mean:.2g} {sign} θ" if self.better else f"{self.mean:.2g}"

    @property
    def why(self) -> str:
        """Why its channels go or stay."""
        halving = f"of {self.searched} searched, the better {self.tested}"
        if self.better and self.taken:
            return f"{halving} go: mean damage at most {self.worst:.2g}, below theta {self.theta:g}"
        lost = f"mean damage up to {self.worst:.2g}, not below theta {self.theta:g}"
        if self.better:
            return f"{halving} stay: {lost}, and nothing is left to halve"
        if self.taken:
            return f"{halving} go; these, the worse half, stay whatever their damage is"
        return f"{halving} were searched on ({lost}); these, the worse half, stay"


def halved(rungs: Sequence[Rung]) -> tuple[Units, tuple[float, ...], tuple[Band, ...]]:
    """Units, their mean damages, and the bands: those that stayed in the search longest first."""
    units: list[int] = []
    values: list[float] = []
    bands: list[Band] = []
    for rung in reversed(rungs):
        better, means = set(rung.candidates), dict(zip(rung.search, rung.damages, strict=True))
        halves = [rung.candidates] if rung is rungs[-1] else []
        halves.append(tuple(unit for unit in rung.search if unit not in better))
        for half in halves:
            ranked = sorted(half, key=lambda unit: (means[unit], unit))
            first, found = len(units), [means[unit] for unit in ranked]
            if not ranked:
                continue
            units += ranked
            values += found
            bands.append(
                Band(
                    first=first,
                    last=len(units) - 1,
                    searched=len(rung.search),
                    tested=len(rung.candidates),
                    worst=rung.worst,
                    mean=sum(found) / len(found),
                    theta=rung.theta,
                    better=half is rung.candidates,
                    taken=rung.verdict == "take",
                )
            )
    return tuple(units), tuple(values), tuple(bands)


def draw_bands(bands: Sequence[Band], high: float) -> go.Bar:
    """Every other band on grey, up to `high`."""
    return go.Bar(
        x=[(band.first + band.last) / 2 for band in bands],
        y=[high] * len(bands),
        width=[band.last - band.first + 1 for band in bands],
        marker={"color": [INVISIBLE if i % 2 else FAINT for i in range(len(bands))]},
        name="halvings",
        hoverinfo="skip",
    )


def label_bands(bands: Sequence[Band], tops: Sequence[float], room: bool) -> go.Scatter:
    """The mean damage of each band: left of the lowest, above the others, where bars are lower.

    The lowest one's is below its top, where there is `room` for that, and so is clear of the next.
    """
    beside = "bottom left" if room else "middle left"
    left = -0.6 - 0.01 * sum(band.last - band.first + 1 for band in bands)
    return go.Scatter(
        x=[band.last + 0.5 if i else left for i, band in enumerate(bands)],
        y=list(tops),
        mode="text",
        text=[band.words for band in bands],
        textposition=["top left" if i else beside for i in range(len(bands))],
        textfont={"size": TEXT_PX},
        name="mean damage",
        hoverinfo="skip",
    )
