"""Limits: when a step costs too much, which floor a run keeps, when a network is at chance.

Pure functions of the first event of a session and of its metrics.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunelab.ledger.events import Approved, Began, Event, Repaired, Tuned

# The largest allowed cost of one step:
POINTS = 0.05  # of an accuracy, as a share of the images
DROP = 0.1  # of another metric where higher is better, as a share of the original's value
RISE = 0.2  # of a metric where lower is better, as a share of its value before the step
NOTICEABLE = 0.2  # as a share of these: a repair that costs more is compared with the others

# The default floor of a run, for a network that is not a classifier:
KEPT = 0.5  # of the original's value, where higher is better
TIMES = 4.0  # the original's value, where lower is better

# Accuracies above chance, as shares of the images:
CLEAR = 0.05  # up to here, the original network counts as untrained
AT_CHANCE = 0.02  # up to here, a pruned network counts as being at chance


@dataclass(frozen=True, slots=True)
class Alarm:
    """A step that took `metric` from `before` to `after`, worse by more than `allowed`."""

    metric: str
    before: float
    after: float
    allowed: float

    @property
    def mark(self) -> str:
        """A short description, such as "lost 48.1 points in the last step"."""
        if not math.isfinite(self.after):
            return f"{self.metric} is not finite after the last step"
        if self.after < self.before:
            return f"lost {self._amount} in the last step"
        return f"{self.metric} rose by {self._amount} in the last step"

    def sentence(self, event: Event) -> str:
        """A sentence about the step `event`, with advice."""
        match event:
            case Tuned():
                advice = "Undo it, or tune with a smaller learning rate."
            case Repaired(automatic=False):
                advice = "Undo it, or tune."
            case Approved():  # as cut
                advice = "Repair it, or undo it and prune less (a smaller theta, fewer channels)."
            case _:
                advice = "Undo it and prune less (a smaller theta, fewer channels), or tune."
        if not math.isfinite(self.after):
            return f"The {self.metric} is no longer finite. {advice}"
        what = "loss" if self.after < self.before else "rise"
        allowed = f"{100 * self.allowed:g}" if _percent(self.metric) else f"{self.allowed:.3g}"
        limit = f"above the limit of {allowed} per step"
        return f"A {what} of {self._amount}, {limit}. {advice}"

    @property
    def _amount(self) -> str:
        change = abs(self.after - self.before)
        return f"{100 * change:.1f} points" if _percent(self.metric) else f"{change:.3g}"


def alarm(
    began: Began, before: Mapping[str, float], after: Mapping[str, float], share: float = 1.0
) -> Alarm | None:
    """The alarm for a step between these metrics; None where it did not cost too much.

    Parameters
    ----------
    began
        The first event of the session.
    before, after
        The metrics before and after the step; the first metric counts.
    share
        Scales the allowed cost.

    None also where the original network is at chance, or where it is not known which direction of
    the metric is better.
    """
    name = next(iter(began.metrics), "")
    higher = higher_is_better(began)
    if higher is None or name not in before or name not in after or _untrained(began):
        return None
    worse = before[name] - after[name] if higher else after[name] - before[name]
    if not higher:
        allowed = RISE * abs(before[name])
    else:
        allowed = POINTS if _percent(name) else DROP * abs(began.metrics[name])
    allowed *= share
    rounding = 1e-9  # 90% → 85% is no more than 5 points
    if not math.isfinite(before[name]) or worse <= allowed + rounding * abs(before[name]):
        return None
    return Alarm(name, before[name], after[name], allowed)


def higher_is_better(began: Began) -> bool | None:
    """Whether a higher first metric is better; None where an older file does not say."""
    if (known := began.settings.get("higher_is_better")) is not None:
        return bool(known)
    name = next(iter(began.metrics), "")
    if "accuracy" in name:
        return True
    return False if "loss" in name or "error" in name else None


def commonest(labels: Sequence[int]) -> float:
    """Chance: the share of the most frequent of `labels`."""
    return max(Counter(labels).values()) / len(labels)


def floor(original: float, higher: bool, chance: float | None) -> float | None:
    """The default floor of a run for the first metric; None where there is none.

    Parameters
    ----------
    original
        The value of the original network.
    higher
        Whether higher values are better.
    chance
        The accuracy at chance; None for a network that is not a classifier.
    """
    if chance is not None:
        return (chance + original) / 2 if original > chance + CLEAR else None
    if not (math.isfinite(original) and original > 0):
        return None
    return KEPT * original if higher else TIMES * original


def at_chance(began: Began, metrics: Mapping[str, float]) -> bool:
    """Whether a classifier that was above chance is now at chance."""
    chance = began.settings.get("chance")
    if chance is None or _untrained(began):
        return False
    name = next(iter(began.metrics))
    return not metrics[name] > chance + AT_CHANCE


def _untrained(began: Began) -> bool:
    chance = began.settings.get("chance")
    return chance is not None and not next(iter(began.metrics.values())) > chance + CLEAR


def _percent(name: str) -> bool:
    return "accuracy" in name
