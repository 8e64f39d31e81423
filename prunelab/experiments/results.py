"""Results of a comparison: the outcomes of methods at targets, and their table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isnan, nan
from statistics import fmean, stdev
from typing import Any, Literal

from prunelab.errors import InvalidValue, MissingPackage, UnknownName
from prunelab.values import Codec, Cost, FrozenMap, as_text, revive, si, table, thaw


@dataclass(frozen=True, slots=True)
class Outcome:
    """One pruned and evaluated network: its method, target and seed.

    `metrics` are on the images of the comparison's split, `seconds` is the wall time of pruning
    and tuning. `widths` is the number of units kept in each group. `note` gives the reason where a
    method ended before its target, failed (it then has no metrics), or a tune was rejected.
    """

    name: str
    target: float
    repair: str | None
    seed: int
    cost: Cost
    metrics: FrozenMap[float] = field(default_factory=FrozenMap)
    seconds: float = 0.0
    widths: FrozenMap[int] = field(default_factory=FrozenMap)
    note: str = ""


@dataclass(frozen=True, slots=True)
class ResultRow:
    """The outcomes of one method at one target, for several seeds."""

    name: str
    target: float
    repair: str | None
    outcomes: tuple[Outcome, ...]

    def mean(self, metric: str) -> float:
        """The mean of a metric over the seeds; NaN where no outcome has it."""
        return _mean([outcome.metrics.get(metric, nan) for outcome in self.outcomes])

    def spread(self, metric: str) -> float:
        """The standard deviation of a metric over the seeds; NaN for fewer than two."""
        values = [outcome.metrics.get(metric, nan) for outcome in self.outcomes]
        known = [value for value in values if not isnan(value)]
        return stdev(known) if len(known) > 1 else nan

    @property
    def macs(self) -> float:
        """Multiply-adds, the mean over the seeds."""
        return fmean(outcome.cost.macs for outcome in self.outcomes)

    @property
    def params(self) -> float:
        """Parameters, the mean over the seeds."""
        return fmean(outcome.cost.params for outcome in self.outcomes)

    @property
    def seconds(self) -> float:
        """Seconds to make one network, the mean over the seeds."""
        return fmean(outcome.seconds for outcome in self.outcomes)

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the outcomes, each once."""
        return tuple(dict.fromkeys(outcome.note for outcome in self.outcomes if outcome.note))


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """Networks side by side, with their costs; prints as a table, converts to JSON and back.

    `base` is the original network, `outcomes` are all networks made from it, `metric` is the first
    metric, on the images of `split`. `control` names the rows that every method has to beat.
    """

    network: str
    split: str
    metric: str
    base: Outcome
    outcomes: tuple[Outcome, ...]
    control: str = "random"

    @property
    def rows(self) -> tuple[ResultRow, ...]:
        """One row for each target and method, by target, then in the order of the outcomes."""
        found: dict[tuple[float, str, str | None], list[Outcome]] = {}
        for outcome in sorted(self.outcomes, key=lambda outcome: -outcome.target):
            found.setdefault((outcome.target, outcome.name, outcome.repair), []).append(outcome)
        return tuple(ResultRow(n, t, r, tuple(some)) for (t, n, r), some in found.items())

    def __getitem__(self, name: str) -> tuple[ResultRow, ...]:
        """The rows of a method, one for each target; raises `UnknownName`."""
        rows = tuple(row for row in self.rows if row.name == name)
        if not rows:
            raise UnknownName("compared method", name, dict.fromkeys(t.name for t in self.outcomes))
        return rows

    def __repr__(self) -> str:
        whole = ResultRow("original", 1.0, None, (self.base,))
        head = ("", "MACs", "of original", "parameters", f"{self.split} {self.metric}", "seconds")
        rows = [(*head, "  repair"), self._cells(whole)]
        notes: list[str] = []
        for row in self.rows:
            mark = f" [{len(notes) + 1}]" if row.notes else ""
            notes += [f"[{len(notes) + 1}] {'; '.join(row.notes)}"] if row.notes else []
            rows.append(self._cells(row, mark))
        seeds = len({outcome.seed for outcome in self.outcomes})
        said = f"{self.network}: mean and standard deviation over {seeds} seeds"
        text = table(rows, numbers=5)
        return "\n".join([said if seeds > 1 else f"{self.network}: one seed", text, *notes])

    def _cells(self, row: ResultRow, mark: str = "") -> tuple[str, ...]:
        value, spread = row.mean(self.metric), row.spread(self.metric)
        shown = "-" if isnan(value) else as_text(self.metric, value)
        if not isnan(spread):
            shown += f" ± {as_text(self.metric, spread).removesuffix('%')}"
        return (
            row.name, si(row.macs), f"{row.macs / self.base.cost.macs:.1%}", si(row.params), shown,
            f"{row.seconds:.1f}" if row.seconds else "", f"  {row.repair or ''}{mark}",
        )  # fmt: skip

    def to_json(self) -> str:
        """All outcomes as JSON text; `from_json` reads it back."""
        return json.dumps({"format": 1, "comparison": thaw(self)})

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """The comparison in `text`; raises `InvalidValue` for any other text."""
        try:
            found = revive(json.loads(text)["comparison"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InvalidValue(f"This text is not a comparison in JSON: {error}.") from None
        if not isinstance(found, cls):
            raise InvalidValue("This text is not a comparison in JSON; write one by to_json().")
        return found

    def figure(self, *, theme: Literal["light", "dark"] = "light") -> Any:
        """A Plotly figure: the metric against MACs, a line for each method, spread as bars.

        Raises `MissingPackage` without plotly.
        """
        draw: Callable[..., Any]
        try:
            from prunelab.figures.method_comparison import methods as draw
        except ImportError as error:
            raise MissingPackage(
                f"A comparison's figure needs plotly, and {error.name} is missing: "
                "pip install 'prunelab[lab]', then restart the kernel."
            ) from error
        return draw(self, theme=theme)


def _mean(values: list[float]) -> float:
    known = [value for value in values if not isnan(value)]
    return fmean(known) if known else nan


Codec.register(Outcome, Comparison)
