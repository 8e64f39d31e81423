"""Repairing a network that was cut: towards which network, and which repair is taken.

The generators yield Progress; those that are given a network change it in place.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from math import inf
from typing import Any

import torch
from torch import nn

from prunelab.errors import NotFinite
from prunelab.graph.trace import copy_of
from prunelab.ledger import guard
from prunelab.ledger.events import Refit
from prunelab.repair.fit import Fit
from prunelab.repair.least_squares import chained, repairing
from prunelab.repair.recalibration import Traced, recalibrating
from prunelab.repair.rescale import rescaling
from prunelab.session.evaluator import Evaluator, Judgement
from prunelab.session.history import History
from prunelab.session.settings import check_repair
from prunelab.values import FrozenMap, Progress, WidthPlan

FEW_IMAGES = 512  # enough for BatchNorm statistics, and for one factor a channel
Planned = tuple[nn.Module, WidthPlan]  # a network and the plan that it is


def repair_towards(
    evaluator: Evaluator, small: Planned, kind: str, target: Planned, source: Planned | None = None
) -> Generator[Progress, None, tuple[Refit, ...]]:
    """Repair the network `small`, in place, towards `target`.

    Parameters
    ----------
    kind
        "lstsq", "rescale" or "bn"; BatchNorm statistics are measured anew with each.
    source
        The network that `small` was just cut from. Then one pass is enough where no repaired
        layer feeds another; without it, layers are solved front to back.

    Returns
    -------
    What least squares did, layer by layer.

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

    def traced(network: nn.Module, plan: WidthPlan) -> Traced:
        return Traced(network, evaluator.graph.after(plan))

    now, aim = traced(*small), traced(*target)
    before = traced(*source) if source else None
    fits: dict[str, Fit] = {}
    settled: set[str | None] = set()
    if kind == "lstsq":
        together = before if before and not chained(before.graph, now.graph) else None
        fits = yield from repairing(now, aim, *images(settings.repair_images), together)
        settled = {  # front to back each layer saw what it now reads
            now.graph.layer(name).norm
            for name, found in fits.items()
            if together is None or found.choice == "kept"
        }
    elif kind == "rescale":
        yield from rescaling(now, before or aim, aim, *images(FEW_IMAGES))
    but = {norm for norm in settled if norm is not None}
    yield from recalibrating(now, aim, *images(FEW_IMAGES), but)
    check_finite(small[0], "the repair")
    return tuple(_refit(name, found) for name, found in fits.items())


def repair_cut(
    evaluator: Evaluator, history: History, small: Planned, kind: str
) -> Generator[Progress, None, tuple[Refit, ...]]:
    """Repair `small`, in place, which was just cut from the network of the pending move."""
    source = (history.source, history.plan)
    target = source if history.brought is not None else history.trained()
    return (yield from repair_towards(evaluator, small, kind, target, source))


def best_repair(
    evaluator: Evaluator,
    history: History,
    small: Planned,
    kind: str,
    as_cut: Judgement | None = None,
) -> Generator[Progress, None, tuple[nn.Module, dict[str, Any], Judgement]]:
    """Repair a copy of `small`, just cut, as does it good on the validation images.

    Least squares is judged layer by layer on training images. Those may be of one class or
    otherwise unlike what the network is for; so where it costs something on the validation
    images, BatchNorm alone and the network as cut are tried as well, and the best is taken.

    Parameters
    ----------
    kind
        The repair to begin with, as in `repair_towards`.
    as_cut
        What `small` itself came to on the validation images, if it was judged.

    Returns
    -------
    The repaired network, the fields of `Repaired` that say how, and what it came to.
    """
    fixed = copy_of(small[0])
    refits = yield from repair_cut(evaluator, history, (fixed, small[1]), kind)
    judged = yield from evaluator.judge(fixed)
    found = {kind: (fixed, refits, judged)}
    state = history.state
    costs = guard.alarm(state.began, state.now.metrics, judged[0], guard.NOTICEABLE)
    if kind == "bn" or not costs:
        return fixed, {"kind": kind, "refits": refits}, judged
    alone = copy_of(small[0])
    yield from repair_cut(evaluator, history, (alone, small[1]), "bn")
    found["bn"] = (alone, (), (yield from evaluator.judge(alone)))
    found["none"] = (small[0], (), as_cut or (yield from evaluator.judge(small[0])))
    name, metric = evaluator.settings.guard
    tried = {kind: judged[0][name] for kind, (_, _, judged) in found.items()}

    def rank(kind: str) -> float:
        value = tried[kind] if metric.higher_is_better else -tried[kind]
        return value if value == value else -inf

    best = max(found, key=rank)
    fixed, refits, judged = found[best]
    extra = {"kind": best, "refits": refits}
    return fixed, extra if best == kind else {**extra, "tried": FrozenMap(tried)}, judged


def check_finite(network: nn.Module, by: str) -> None:
    """Raise `NotFinite` when `by` left NaN in a network."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NotFinite(f"{by} left NaN or infinity in {name}; it was discarded.")


def _refit(layer: str, found: Fit) -> Refit:
    errors: dict[str, float] = {
        choice: float(f"{error:.4g}") for choice, error in found.errors.items()
    }
    ridge = found.ridge if found.choice == "lstsq" else 0.0
    return Refit(layer, found.choice, ridge, FrozenMap(errors), found.rows, len(found.weight))
