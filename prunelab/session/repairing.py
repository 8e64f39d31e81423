"""Repair of a network that was cut: the target network, and the choice among repairs.

The generators yield Progress.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from math import inf
from typing import Any

from torch import nn

from prunelab.errors import NotFinite
from prunelab.graph.surgery.held_tensors import not_finite
from prunelab.graph.trace import copy_of
from prunelab.ledger import guard
from prunelab.ledger.events import Refit
from prunelab.ledger.state import State
from prunelab.repair.fit import Fit
from prunelab.repair.least_squares import repairing
from prunelab.repair.recalibration import recalibrating
from prunelab.repair.rescale import rescaling
from prunelab.session.evaluator import Evaluator, Judgement
from prunelab.session.history import History
from prunelab.session.settings import check_repair
from prunelab.values import FrozenMap, Progress, WidthPlan

FEW_IMAGES = 512  # enough for BatchNorm statistics, and for one factor per channel
Planned = tuple[nn.Module, WidthPlan]  # a network and its plan


def repair_towards(
    evaluator: Evaluator, small: Planned, kind: str, target: Planned, source: Planned | None = None
) -> Generator[Progress, None, tuple[Refit, ...]]:
    """Repair the network `small`, in place, towards `target`.

    Parameters
    ----------
    kind
        "lstsq", "rescale" or "bn"; each also recalibrates BatchNorm statistics.
    source
        The network from which `small` was just cut; None: `target`. "rescale" takes the outputs
        to rescale from it.

    Returns
    -------
    The result of least squares for each layer.

    Raises
    ------
    InvalidValue
        For another `kind`.
    NotFinite
        Where the repaired network holds NaN or infinity.
    """
    check_repair(kind)
    settings, splits = evaluator.settings, evaluator.splits

    def images(most: int) -> tuple[Callable[[], Iterator[Any]], Callable[..., Any], int]:
        most = min(most, settings.repair_images)
        return lambda: splits.images(most), settings.forward, most

    target = evaluator.factorised(target, source or small)
    now, aim = evaluator.traced(small), evaluator.traced(target)
    before = evaluator.traced(source) if source else aim
    fits: dict[str, Fit] = {}
    settled: set[str | None] = set()
    if kind == "lstsq":
        fits = yield from repairing(now, aim, *images(settings.repair_images))
        settled = {now.graph.layer(name).norm for name in fits}  # they saw what they now read
    elif kind == "rescale":
        yield from rescaling(now, before, aim, *images(FEW_IMAGES))
    but = {norm for norm in settled if norm is not None}
    yield from recalibrating(now, aim, *images(FEW_IMAGES), but)
    check_finite(small[0], "the repair")
    return tuple(_refit(name, found) for name, found in fits.items())


def repair_cut(
    evaluator: Evaluator, history: History, small: Planned, kind: str
) -> Generator[Progress, None, tuple[Refit, ...]]:
    """Repair `small`, in place; it was just cut from the pending move's network."""
    source = (copy_of(history.source), history.source_plan)
    pending = history.state.pending
    trained = history.brought is not None and not (pending and pending.factors)
    target = source if trained else history.trained()
    return (yield from repair_towards(evaluator, small, kind, target, source))


def best_repair(
    evaluator: Evaluator,
    history: History,
    small: Planned,
    kind: str,
    as_cut: Judgement,
) -> Generator[Progress, None, tuple[nn.Module, dict[str, Any], Judgement]]:
    """Repair a copy of `small`, which was just cut, in the way that validates best.

    Least squares is judged layer by layer on training images. These may be few, or of one class
    only. So BatchNorm recalibration alone and no repair are tried too, and the best of the three on
    the validation images is used, where the repaired network is worse than before the move or than
    as cut, or where the images determine at most half of the layers.

    Parameters
    ----------
    kind
        The first repair to try, as in `repair_towards`.
    as_cut
        The metrics and answers of `small` on the validation images.

    Returns
    -------
    The repaired network, the fields of `Repaired` that describe it, and its metrics and
    answers.
    """
    fixed = copy_of(small[0])
    refits = yield from repair_cut(evaluator, history, (fixed, small[1]), kind)
    fixed = history.settled(fixed, small[1])
    judged = yield from evaluator.judge(fixed)
    found = {kind: (fixed, refits, judged)}
    if kind == "bn" or not _doubtful(history.state, refits, judged, as_cut):
        return fixed, {"kind": kind, "refits": refits}, judged
    alone = copy_of(small[0])
    yield from repair_cut(evaluator, history, (alone, small[1]), "bn")
    alone = history.settled(alone, small[1])
    found["bn"] = (alone, (), (yield from evaluator.judge(alone)))
    found["none"] = (small[0], (), as_cut)
    name, metric = evaluator.settings.guard
    tried = {kind: judged[0][name] for kind, (_, _, judged) in found.items()}

    def rank(kind: str) -> float:
        value = tried[kind] if metric.higher_is_better else -tried[kind]
        return value if value == value else -inf

    best = max(found, key=rank)
    fixed, refits, judged = found[best]
    extra = {"kind": best, "refits": refits}
    return fixed, extra if best == kind else {**extra, "tried": FrozenMap(tried)}, judged


def _doubtful(
    state: State, refits: tuple[Refit, ...], judged: Judgement, as_cut: Judgement
) -> bool:
    """Whether a repaired network is to be compared with BatchNorm recalibration alone."""
    for before in (state.now.metrics, as_cut[0]):
        if guard.alarm(state.began, before, judged[0], guard.NOTICEABLE):
            return True
    return bool(refits) and 2 * sum(refit.determined for refit in refits) <= len(refits)


def check_finite(network: nn.Module, by: str) -> None:
    """Raise `NotFinite` where `by` left NaN or infinity in a network."""
    if (name := not_finite(network)) is not None:
        raise NotFinite(f"{by} left NaN or infinity in {name}; it was discarded.")


def _refit(layer: str, found: Fit) -> Refit:
    errors: dict[str, float] = {
        choice: float(f"{error:.4g}") for choice, error in found.errors.items()
    }
    ridge = found.ridge if found.choice == "lstsq" else 0.0
    return Refit(layer, found.choice, ridge, FrozenMap(errors), found.rows, len(found.weight))
