"""Sensitivity of a network's groups to pruning, and the frontier of what pruning leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunelab.errors import InvalidValue, UnknownName
from prunelab.values.search import Cost
from prunelab.values.wording import table


@dataclass(frozen=True, slots=True)
class GroupSensitivity:
    """What the network loses as more and more units of one group are removed.

    The k-th entries belong together: `removed[k]` of the group's `width` units are removed, least
    needed first; `damages[k]` is the share of its consumers' signal that is lost (measured on
    training images), `losses[k]` the mean loss on the validation images. Nothing is repaired.
    """

    group: str
    width: int
    removed: tuple[int, ...]
    damages: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """The removed shares of the units."""
        return tuple(count / self.width for count in self.removed)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How sensitive each group is: one `GroupSensitivity` each, in execution order.

    `loss` is the mean loss of the whole network on the same `images` validation images.
    """

    groups: tuple[GroupSensitivity, ...]
    loss: float
    images: int

    def __getitem__(self, group: str) -> GroupSensitivity:
        """The sensitivity of one group, by its name."""
        for one in self.groups:
            if one.group == group:
                return one
        raise UnknownName("measured group", group, (one.group for one in self.groups))

    def rise(self, group: str) -> tuple[float, ...]:
        """How much the loss rises at each width of a group."""
        return tuple(loss - self.loss for loss in self[group].losses)

    def __str__(self) -> str:
        """A table: the rise of the loss at each share, one row for each group."""
        rows = [("group", "units", f"share removed, and the rise of the loss of {self.loss:.3f}")]
        for one in self.groups:
            pairs = zip(one.shares, self.rise(one.group), strict=True)
            cells = "   ".join(f"{share:.0%} {rise:+.3f}" for share, rise in pairs)
            rows.append((one.group, str(one.width), cells))
        return table(rows, numbers=1)


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One network of a frontier: `session.go(seq)` returns to it.

    `metrics` are on the validation images; `seconds` is the median of one run.
    """

    seq: int
    cost: Cost
    metrics: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Frontier:
    """The networks that one method leaves on its way to fewer multiply-adds, largest first.

    The first is the network at which the search began, `base` the cost of the original. `why` says
    why it ended before the smallest share that was asked for; "" where it did not.
    """

    method: str
    base: Cost
    points: tuple[FrontierPoint, ...]
    why: str = ""

    def within(self, *, macs: float | None = None, seconds: float | None = None) -> FrontierPoint:
        """The largest network with at most `macs`, a share of the original's, and `seconds` a run.

        Raises `InvalidValue` where there is none.
        """
        for point in self.points:
            if macs is not None and point.cost.macs > macs * self.base.macs:
                continue
            if seconds is not None and point.seconds > seconds:
                continue
            return point
        last = self.points[-1]
        raise InvalidValue(
            f"No network of this frontier is that small; the smallest has "
            f"{last.cost.macs / self.base.macs:.1%} of the MACs and takes {1e3 * last.seconds:.3g} "
            "ms. Ask for a larger one, or give frontier() smaller shares."
        )

    def __str__(self) -> str:
        """A table, one row for each network."""
        metric = next(iter(self.points[0].metrics))
        rows = [("event", "MACs", "parameters", metric, "ms")]
        rows += [
            (
                str(point.seq),
                f"{point.cost.macs / self.base.macs:.1%}",
                f"{point.cost.params / self.base.params:.1%}",
                f"{point.metrics[metric]:.4g}",
                f"{1e3 * point.seconds:.3g}",
            )
            for point in self.points
        ]
        return table(rows, numbers=4)
