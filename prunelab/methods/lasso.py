"""The LASSO of Channel Pruning, on second moments: which channels carry the next layer's output.

min over beta of 1/2 ||y - sum_i beta_i z_i||^2 + penalty ||beta||_1 needs only <z_i, z_j> and
<z_i, y>. The number of nonzeros need not grow as the penalty falls, so both searches say how
they end.
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
WINDOW = 1.1  # the released code is content with up to a tenth too many
FAINTEST = 1e-7  # of the largest ||z_i||^2: moments are summed from float32 products
ROUNDING = 1e-10  # of the largest term: no coefficient
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


def _sound(gram: Array, cross: Array) -> tuple[Array, Array, float]:
    """The problem without channels too faint to be told from rounding, and its largest <z_i, y>."""
    own = np.diagonal(gram)
    loud = own > FAINTEST * own.max(initial=0.0)
    cross = np.where(loud, cross, 0.0)
    gram = np.where(np.outer(loud, loud), gram, 0.0)
    return gram, cross, float(np.abs(cross).max(initial=0.0))


def lars(gram: Array, cross: Array) -> list[Solution]:
    """The exact path, from the penalty that keeps nothing down to zero.

    Least angle regression; between two of its knots, where a coefficient comes or goes, the
    coefficients are linear in the penalty.
    """
    from sklearn.linear_model import lars_path_gram

    gram, cross, top = _sound(gram, cross)
    if top <= 0:
        return []
    with _unwarned():  # collinear channels are left out, which is as it should be
        penalties, _, coefficients = lars_path_gram(
            Xy=cross / top, Gram=gram / top, n_samples=1, method="lasso", max_iter=8 * len(gram)
        )
    sizes = np.sqrt(np.diagonal(gram))[:, None] * np.abs(coefficients)
    coefficients[sizes <= ROUNDING * sizes.max(0)] = 0.0  # what leaves at a knot is rarely exact
    return [Solution(float(p), beta) for p, beta in zip(penalties, coefficients.T, strict=True)]


def bisect(gram: Array, cross: Array, count: int, seed: int) -> list[Solution]:
    """The trials of the released search (channel-pruning, `lib/decompose.py`), largest first.

    The penalty is doubled until fewer than `count` are kept, then halved in between until `count`
    to 1.1 `count` are, at most 60 times. Coordinate descent in random order, from the solution
    before, on a square problem with the same normal equations instead of on samples.
    """
    from sklearn.linear_model import Lasso

    gram, cross, top = _sound(gram, cross)
    if top <= 0:
        return []
    rows, aims = _same_problem(gram / top, cross / top)
    model = Lasso(
        fit_intercept=False, warm_start=True, selection="random",
        random_state=seed % 2**32, tol=1e-8, max_iter=2000,
    )  # fmt: skip

    def solve(penalty: float) -> Solution:
        model.set_params(alpha=penalty / len(rows))
        with _unwarned():  # not fully converged is good enough to count
            model.fit(rows, aims)
        return Solution(penalty, model.coef_.copy())

    return sorted(_bisected(solve, count), key=lambda solution: -solution.penalty)


def _bisected(solve: Callable[[float], Solution], count: int) -> Iterator[Solution]:
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


def _same_problem(gram: Array, cross: Array) -> tuple[Array, Array]:
    """Rows A [n, n] and aims b [n] with A'A = gram and A'b = cross."""
    values, vectors = np.linalg.eigh(gram)
    roots = np.sqrt(np.maximum(values, 0.0))
    sound = roots > 1e-9 * roots.max()
    aims = np.zeros(len(gram))
    aims[sound] = (vectors.T @ cross)[sound] / roots[sound]
    return roots[:, None] * vectors.T, aims


def ranked(gram: Array, path: list[Solution], count: int) -> list[int]:
    """All indices, the safest to drop first; the last `count` are what the LASSO keeps.

    They are those of the largest penalty that keeps as many. Where it keeps more, the smallest
    |beta_i| ||z_i|| go; where none keeps as many, as the rest explains nothing, the largest
    ||z_i|| fill up.
    """
    sizes = np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    most = max(path, key=lambda solution: solution.kept, default=Solution(1.0, np.zeros(len(gram))))
    best = next((solution for solution in path if solution.kept >= count), most)
    weight = np.abs(best.coefficients) * sizes
    return sorted(range(len(gram)), key=lambda i: (weight[i], sizes[i], -i))
