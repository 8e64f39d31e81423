"""Exchanges of removed units for kept ones while that lowers the error after a refit.

Backward elimination never takes a unit back. Here one removed unit at a time is taken back and a
kept one removed instead, always the pair that lowers the error most, until none does: the set is
then a local optimum, whose error all exchanges of one unit only raise.

All pairs are computed from one matrix for each least squares, by the sweep operator (Goodnight,
The American Statistician 33, 1979). Of H, the inverse of the patches' second moment, and the
weights W, [H W] swept by the removed entries S holds, in the rows of S, B = (H_SS)^-1, V = B H and
Z = B W_S; in the others, H_R = H - H'_S V and W_R = W - H'_S Z, whose error is tr(W_S' Z). Where a
of S is taken back its error falls by tr(Z_a' (B_aa)^-1 Z_a); where b is removed then it rises by
tr(X' P^-1 X) with P = H_R,bb + V_ab' (B_aa)^-1 V_ab and X = W_R,b + V_ab' (B_aa)^-1 Z_a.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from prunelab.methods.refit import RefitProblem

Array = np.ndarray
WIDEST = 2304  # patch entries, 256 channels of 3 x 3: above, a matrix takes seconds to sweep
LEAST = 1e-9  # of the error: how much of a gain is none


def exchanged(
    problems: Callable[[], Sequence[RefitProblem]], units: Sequence[int], removed: Sequence[int]
) -> list[int]:
    """The units to remove instead of `removed`, as many, after the best exchanges.

    `removed` itself where a least squares is wider than `WIDEST`, has units with different numbers
    of entries, or is singular.

    Parameters
    ----------
    problems
        Makes the least squares of the layers that read the units, from which none is removed.
    units
        All the units' numbers in the graph, of which the others are kept.
    removed
        The units that are to be exchanged.
    """
    given = problems()
    gone, kept = list(removed), [unit for unit in units if unit not in set(removed)]
    if given and all(map(_exchangeable, given)):
        # it is singular where a layer is dead: its patches are all zero
        with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            _exchange([_Swept(problem, gone) for problem in given], gone, kept)
    return gone


def _exchange(swept: Sequence[_Swept], gone: list[int], kept: list[int]) -> None:
    """Make the best exchanges between `gone` and `kept`, in place."""
    error = sum(one.error(gone) for one in swept)
    for _ in range(len(gone)):
        changes: Array = np.sum([one.changes(gone, kept) for one in swept], axis=0)
        out, into = np.unravel_index(int(np.argmin(changes)), changes.shape)
        if not changes[out, into] < -LEAST * error:
            break
        for one in swept:
            one.exchange(gone[out], kept[into])
        gone[out], kept[into] = kept[into], gone[out]


def _exchangeable(problem: RefitProblem) -> bool:
    sizes = {len(own) for own in problem.entries.values()}
    return len(sizes) == 1 and problem.size <= WIDEST


class _Swept:
    """[H W] of one least squares, swept by the entries of the removed units [n, n + out]."""

    def __init__(self, problem: RefitProblem, removed: Sequence[int]) -> None:
        self._entries = {unit: torch.from_numpy(own) for unit, own in problem.entries.items()}
        self._size = problem.size
        self._start = problem.table()
        self._matrix = self._start.clone()
        self._sweep(torch.cat([self._entries[unit] for unit in removed]))

    def error(self, removed: Sequence[int]) -> float:
        """The squared error that a refit leaves."""
        own = torch.cat([self._entries[unit] for unit in removed])
        return float((self._start[own, self._size :] * self._matrix[own, self._size :]).sum())

    def changes(self, removed: Sequence[int], kept: Sequence[int]) -> Array:
        """By how much each exchange changes the error [removed, kept]."""
        n, matrix = self._size, self._matrix
        gone, stay = (torch.stack([self._entries[u] for u in some]) for some in (removed, kept))
        weights, rest = matrix[stay, n:], matrix[stay[:, :, None], stay[:, None, :]]
        squares = weights @ weights.transpose(1, 2)
        found = matrix.new_empty(len(gone), len(stay))
        for row, own in enumerate(gone):
            back = torch.linalg.inv(matrix[own[:, None], own])
            z = matrix[own, n:]
            v = matrix[own][:, stay].transpose(0, 1)  # [kept, entries of a, entries of b]
            lift = v.transpose(1, 2) @ back
            part = weights @ (lift @ z).transpose(1, 2)
            whole = lift @ (z @ z.T) @ lift.transpose(1, 2)
            square = squares + part + part.transpose(1, 2) + whole
            rises = torch.linalg.solve(rest + lift @ v, square).diagonal(dim1=1, dim2=2).sum(1)
            found[row] = rises - (back * (z @ z.T)).sum()
        changes: Array = found.numpy()
        return changes

    def exchange(self, removed: int, kept: int) -> None:
        """Take a removed unit back, and remove a kept one."""
        self._sweep(self._entries[removed])  # a second sweep undoes the first
        self._sweep(self._entries[kept])

    def _sweep(self, own: Tensor) -> None:
        """Gauss-Jordan elimination of the entries `own`, in place."""
        matrix = self._matrix
        pivot = torch.linalg.inv(matrix[own[:, None], own])
        rows, columns = pivot @ matrix[own], matrix[:, own]
        matrix.addmm_(columns, rows, alpha=-1)
        matrix[:, own] = -columns @ pivot
        matrix[own] = rows
        matrix[own[:, None], own] = pivot
