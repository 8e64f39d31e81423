"""Steps 3 and 4 of Channel Pruning: the LASSO on second moments.

min over beta of 1/2 ||y - sum_i beta_i z_i||^2 + penalty ||beta||_1 needs only `gram`, <z_i, z_j>
[n, n], and `cross`, <z_i, y> [n]. The number of nonzeros does not always grow as the penalty
falls, so each search has a termination rule.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

Array = np.ndarray
CAP = 60  # bisections; the released code has no limit
WINDOW = 1.1  # times the wanted number of channels: what the released code accepts
NEGLIGIBLE = 1e-7  # of the largest ||z_i||^2: less is rounding of float32 products
ROUNDING = 1e-10  # of the largest term: a smaller coefficient counts as zero
FIRST = 1e-3  # the share of the largest penalty that bisection tries first


class _Inside(threading.local):
    """The message of a warnings filter: any, on a thread that is inside `_unwarned`."""

    inside = False

    def match(self, _: str) -> bool:
        return self.inside


_INSIDE = _Inside()
_FILTER = ("ignore", _INSIDE, Warning, None, 0)


@contextmanager
def _unwarned() -> Iterator[None]:
    """No warnings on this thread.

    `catch_warnings` swaps the filters of all threads and may put back old ones. Instead, one filter
    that matches nothing on other threads is put first, and stays.
    """
    filters = cast("list[Any]", warnings.filters)
    if filters[:1] != [_FILTER]:
        filters.insert(0, _FILTER)
    _INSIDE.inside = True
    try:
        yield
    finally:
        _INSIDE.inside = False


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """The coefficients [n] at `penalty`, a share of the smallest that makes them all zero."""

    penalty: float
    coefficients: Array

    @property
    def kept(self) -> int:
        """How many coefficients are not zero."""
        return int(np.count_nonzero(self.coefficients))


def _without_negligible(gram: Array, cross: Array) -> tuple[Array, Array, float]:
    """The problem without channels that are only rounding error, and its largest |<z_i, y>|."""
    own = np.diagonal(gram)
    used = own > NEGLIGIBLE * own.max(initial=0.0)
    cross = np.where(used, cross, 0.0)
    gram = np.where(np.outer(used, used), gram, 0.0)
    return gram, cross, float(np.abs(cross).max(initial=0.0))


def lars(gram: Array, cross: Array) -> list[Solution]:
    """Step 3: the exact path of solutions, from the penalty that keeps nothing down to zero.

    Least angle regression. Solutions are at the knots, where a coefficient becomes or stops being
    nonzero; in between the coefficients are linear in the penalty.
    """
    from sklearn.linear_model import lars_path_gram

    gram, cross, top = _without_negligible(gram, cross)
    if top <= 0:
        return []
    with _unwarned():  # collinear channels are left out, as they should be
        penalties, _, coefficients = lars_path_gram(
            Xy=cross / top, Gram=gram / top, n_samples=1, method="lasso", max_iter=8 * len(gram)
        )
    sizes = np.sqrt(np.diagonal(gram))[:, None] * np.abs(coefficients)
    coefficients[sizes <= ROUNDING * sizes.max(0)] = (
        0.0  # at the knot where it leaves: rarely exact
    )
    return [Solution(float(p), beta) for p, beta in zip(penalties, coefficients.T, strict=True)]


def bisect(gram: Array, cross: Array, count: int, seed: int) -> list[Solution]:
    """Step 3 as released (`lib/decompose.py`): bisect the penalty until about `count` are kept.

    The penalty is doubled until fewer than `count` channels are kept, then bisected until `count`
    to 1.1 `count` are, at most 60 times. Each trial is coordinate descent in random order, warm
    started, on a square problem with the same normal equations in place of samples.

    Parameters
    ----------
    gram, cross
        The normal equations [n, n] and [n].
    count
        How many channels to keep.
    seed
        Where the order of coordinate descent comes from.

    Returns
    -------
    list of Solution
        The solutions of all trials, the largest penalty first.
    """
    from sklearn.linear_model import Lasso

    gram, cross, top = _without_negligible(gram, cross)
    if top <= 0:
        return []
    rows, targets = _as_samples(gram / top, cross / top)
    model = Lasso(
        fit_intercept=False, warm_start=True, selection="random",
        random_state=seed % 2**32, tol=1e-8, max_iter=2000,
    )  # fmt: skip

    def solve(penalty: float) -> Solution:
        model.set_params(alpha=penalty / len(rows))
        with _unwarned():  # a count of nonzeros does not need full convergence
            model.fit(rows, targets)
        return Solution(penalty, model.coef_.copy())

    return sorted(_iter_trials(solve, count), key=lambda solution: -solution.penalty)


def _iter_trials(solve: Callable[[float], Solution], count: int) -> Iterator[Solution]:
    low, high = 0.0, FIRST
    while (trial := solve(high)).kept >= count and high < 1:
        yield trial
        high *= 2
    yield trial
    for _ in range(CAP):
        trial = solve((low + high) / 2)
        yield trial
        if count <= trial.kept <= WINDOW * count:
            return
        low, high = (trial.penalty, high) if trial.kept > count else (low, trial.penalty)


def _as_samples(gram: Array, cross: Array) -> tuple[Array, Array]:
    """Rows A [n, n] and targets b [n] with A'A = gram and A'b = cross."""
    values, vectors = np.linalg.eigh(gram)
    roots = np.sqrt(np.maximum(values, 0.0))
    used = roots > 1e-9 * roots.max()
    targets = np.zeros(len(gram))
    targets[used] = (vectors.T @ cross)[used] / roots[used]
    return roots[:, None] * vectors.T, targets


def ranked(gram: Array, path: list[Solution], count: int) -> list[int]:
    """Step 4: all indices in the order of removal; the last `count` are the channels to keep.

    They are the nonzeros at the largest penalty that keeps at least `count`. If it keeps more,
    those with the smallest |beta_i| ||z_i|| are removed; if no penalty keeps as many, because the
    other channels explain nothing, those with the largest ||z_i|| are added.

    Parameters
    ----------
    gram
        <z_i, z_j> [n, n].
    path
        The solutions of the search, the largest penalty first.
    count
        How many channels to keep.
    """
    sizes = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    most = max(path, key=lambda solution: solution.kept, default=Solution(1.0, np.zeros(len(gram))))
    best = next((solution for solution in path if solution.kept >= count), most)
    weight = np.abs(best.coefficients) * sizes
    return sorted(range(len(gram)), key=lambda i: (weight[i], sizes[i], -i))
