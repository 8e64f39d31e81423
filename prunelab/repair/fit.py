"""One layer's least squares, with a ridge chosen on held-out images.

Late layers have thousands of inputs and, on a few hundred small images, fewer samples than inputs:
there plain least squares overfits and ruins every layer behind. So a ridge penalises the change
from the present weights, and the ridge is the one that reconstructs held-out images best. If the
solution does not beat recalibrated BatchNorm statistics, or the weights as they are, the better of
these is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

import torch
from torch import Tensor

from prunelab.repair.recalibration import LEAST_RATIO
from prunelab.repair.regression import Moments, Outputs, Rows, regression

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of each entry's mean square
NEARLY = 1.1  # times the smallest error
OUTPUTS = 64  # of a layer, evenly spread, that choose its ridge
DEFAULT_RIDGE = 1e-2  # where there are no held-out samples, and where the search begins
Choice = Literal["lstsq", "bn", "kept"]


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """The best choice for a layer, and how well each choice did on held-out samples.

    Attributes
    ----------
    choice
        "lstsq" (the solution), "bn" (recalibrated statistics) or "kept" (nothing is changed).
    ridge, weight, constant
        The solution [entries, out] and [out], and its ridge.
    shift, ratio
        Of the outputs' means, present minus target, and variances, present to target [out].
    rows
        How many samples were solved on.
    errors
        By choice, the squared error on held-out samples as a share of the targets' variance;
        empty where nothing was held out.
    """

    choice: Choice
    ridge: float
    weight: Tensor
    constant: Tensor
    shift: Tensor
    ratio: Tensor
    rows: int
    errors: Mapping[Choice, float]


def fit(
    solved: Rows | Moments,
    held: Rows | Moments | None,
    old: Tensor,
    *,
    constant: bool,
    normed: bool = False,
    importance: Tensor | None = None,
) -> Fit:
    """The best of least squares, recalibrated BatchNorm and the weights as they are.

    Parameters
    ----------
    solved
        The samples to solve on.
    held
        Samples of other images, to choose by. Without them least squares is not used.
    old
        The present weights [entries, out], in float64; the ridge shrinks the change from them.
    constant
        Whether each output may shift by a constant.
    normed
        Whether a BatchNorm follows, whose statistics can be recalibrated.
    importance
        Weights of the outputs' squared errors [out]; None: all 1.
    """
    problem = regression(solved, old, constant)
    centre, zero = problem.centre, torch.zeros_like(problem.centre.target)
    ratio = torch.nan_to_num(problem.variances[0] / problem.variances[1], nan=1.0, posinf=1.0)
    ratio = ratio.clamp_min(LEAST_RATIO)
    if held is None:
        choice: Choice = "bn" if normed else "kept"
        return Fit(choice, 0.0, old, zero, centre.shift, ratio, len(solved), {})

    weights = torch.ones_like(ratio) if importance is None else importance

    def error_of(weight: Tensor, constant: Tensor) -> float:
        return _error(held, weights, weight, constant)

    errors: dict[Choice, float] = {"kept": error_of(old, zero)}
    if normed:
        scale = ratio.rsqrt()
        errors["bn"] = error_of(old * scale, centre.target - centre.present * scale)
    few = torch.arange(0, len(zero), -(-len(zero) // OUTPUTS), device=old.device)
    held_few = held.of_outputs(few)
    best: tuple[float, float, Callable[[Outputs], tuple[Tensor, Tensor]]]
    best = inf, RIDGES[-1], lambda some: (old[:, some], torch.full_like(zero[some], torch.nan))

    def error_at(place: int) -> float:
        nonlocal best
        solution = problem.at(RIDGES[place])
        error = _error(held_few, weights[few], *solution(few))
        if error < best[0]:
            best = error, RIDGES[place], solution  # the others' factors are not kept
        return error

    _smallest(error_at)
    _, ridge, solution = best
    weight, constants = solution(slice(None))
    errors["lstsq"] = error_of(weight, constants)
    choice = min(errors, key=errors.__getitem__)
    return Fit(choice, ridge, weight, constants, centre.shift, ratio, len(solved), errors)


def _error(held: Rows | Moments, weights: Tensor, weight: Tensor, constant: Tensor) -> float:
    """The held-out error as a share of the targets' variance, outputs weighted by `weights`."""
    whole = float((held.variances * weights).sum())
    error = float((held.errors(weight, constant) * weights).sum())
    error = error / whole if whole > 0 else error
    return error if isfinite(error) else inf


def ridge_without(
    gone: Tensor, weight: Tensor, solved: Tensor, held: Tensor | None = None, *, constant: bool
) -> float:
    """The weakest ridge that reconstructs a layer well from part of its entries.

    That is, within `NEARLY` of the best on held-out samples. With enough samples hardly any ridge
    is needed, and duplicates among the entries are recognised. A ridge that is right without some
    entries is right without others.

    Parameters
    ----------
    gone
        Marks the entries to do without [entries].
    weight
        The layer's weights [entries, out].
    solved, held
        The samples to solve on and held-out ones [rows, entries], or the second moments of
        (entries, 1) over them; without the latter the ridge is `DEFAULT_RIDGE`.
    constant
        Whether each output may shift by a constant.
    """
    if held is None:
        return DEFAULT_RIDGE
    rest = (~gone).nonzero()[:, 0]
    own = torch.cat([rest, rest.new_tensor([len(gone)])])

    def without(second: Tensor) -> Rows | Moments:
        if second.shape[1] == len(gone):
            return Rows(second[:, rest].double(), second.double() @ weight)
        given = second[:, :-1] @ weight
        return Moments(second[own[:, None], own], given[own], (given[:-1] * weight).sum(0))

    judged = regression(without(solved), weight[rest], constant).judged(without(held))
    errors = [float(judged(ridge).sum()) for ridge in RIDGES]
    errors = [error if isfinite(error) else inf for error in errors]
    if min(errors) == inf:  # none has a solution
        return DEFAULT_RIDGE
    good = [error <= NEARLY * min(errors) for error in errors]
    return RIDGES[good.index(True)]


def _smallest(error_at: Callable[[int], float]) -> tuple[int, float]:
    """The index of the ridge in RIDGES with the smallest error, and that error.

    The error is assumed to fall with the ridge and then to rise, so the search descends from
    `DEFAULT_RIDGE`, near which most layers choose theirs, and tries two besides the best. A weak
    ridge may have no solution, which counts as an infinite error.
    """
    place = min(sum(ridge < DEFAULT_RIDGE for ridge in RIDGES), len(RIDGES) - 1)
    least = error_at(place)
    for step in (1, -1):
        start = place
        while 0 <= place + step < len(RIDGES):
            error = error_at(place + step)
            if error >= least < inf:
                break
            place, least = place + step, error
        if place != start:
            break
    return place, least
