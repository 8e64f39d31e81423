"""Ridge regression of one layer's targets on its inputs, around its present weights.

Samples come as rows or as second moments; either gives the same solution for any ridge.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunelab.evidence.patch_correlation import symmetric_product

Outputs = Tensor | slice  # indices of outputs
Solution = Callable[[Outputs], Tensor]
DEAD = 1e-3  # of the mean over entries: a smaller mean square counts as this much


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Samples of a regression, in the network's precision.

    `p` [rows, entries] are the inputs, `y` [rows, out] the targets.
    """

    p: Tensor
    y: Tensor

    def __add__(self, other: Rows) -> Rows:
        return Rows(torch.cat([self.p, other.p]), torch.cat([self.y, other.y]))

    def __len__(self) -> int:
        return len(self.p)

    @property
    def variances(self) -> Tensor:
        """The squared deviations of y from its means, summed [out]."""
        y = self.y.double()
        return (y - y.mean(0)).square().sum(0)

    def errors(self, weight: Tensor, constant: Tensor) -> Tensor:
        """||y - p weight - constant||^2 of each output [out].

        In float32 at least: its rounding is far below what a choice between fits turns on.
        """
        p = self.p if self.p.dtype == torch.float64 else self.p.float()
        left = self.y.to(p.dtype) - p @ weight.to(p.dtype) - constant.to(p.dtype)
        return left.double().square().sum(0)

    def of_outputs(self, some: Tensor) -> Rows:
        """The same samples, with the targets of some outputs only."""
        return Rows(self.p, self.y[:, some])

    @property
    def moments(self) -> Moments:
        """The second moments of the samples."""
        ones = self.p.new_ones(len(self.p), 1)
        p, y = torch.cat([self.p, ones], 1).double(), self.y.double()
        return Moments(p.T @ p, p.T @ y, y.square().sum(0))


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Second moments of a regression's samples, summed in float64.

    `second` [entries + 1, entries + 1] sums (p, 1)(p, 1)', `cross` [entries + 1, out] sums
    (p, 1) y', `squares` [out] the squares of y.
    """

    second: Tensor
    cross: Tensor
    squares: Tensor

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.second + other.second, self.cross + other.cross, self.squares + other.squares
        )

    def __len__(self) -> int:
        return round(float(self.second[-1, -1]))

    @property
    def variances(self) -> Tensor:
        """The squared deviations of y from its means, summed [out]."""
        return self.squares - self.cross[-1].square() / max(1, len(self))

    def of_outputs(self, some: Tensor) -> Moments:
        """The same samples, with the targets of some outputs only."""
        return Moments(self.second, self.cross[:, some], self.squares[some])

    def errors(self, weight: Tensor, constant: Tensor) -> Tensor:
        """||y - p weight - constant||^2 of each output [out]."""
        whole = torch.cat([weight, constant[None]])
        errors = self.squares + ((self.second @ whole - 2 * self.cross) * whole).sum(0)
        return errors.clamp_min(0)  # small errors are differences of large numbers


@dataclass(frozen=True, slots=True, eq=False)
class Centre:
    """Means over the samples solved on: inputs [entries], targets and present outputs [out]."""

    entries: Tensor
    target: Tensor
    present: Tensor

    @property
    def shift(self) -> Tensor:
        """The present outputs' means minus the targets' [out]."""
        return self.present - self.target


class Regression(ABC):
    """argmin ||missing - p change||^2 + ridge ||sizes^(1/2) change||^2, for any ridge.

    `missing` is the target minus the present output. Because of the entries' own sizes, scaling a
    channel and unscaling the weights that read it does not change the fit. `variances` [out] are
    those of the present outputs and of the targets.
    """

    centre: Centre
    variances: tuple[Tensor, Tensor]

    def __init__(self, old: Tensor, constant: bool) -> None:
        self.old = old
        self.constant = constant

    @abstractmethod
    def changes(self, ridge: float) -> Solution:
        """Changes of the weights [entries, some] of the outputs that it is called with."""

    def at(self, ridge: float) -> Callable[[Outputs], tuple[Tensor, Tensor]]:
        """Factorise with a ridge; gives the weights [entries, some] and constants of outputs."""
        changes = self.changes(ridge)

        def solution(some: Outputs) -> tuple[Tensor, Tensor]:
            change, shift = changes(some), self.centre.shift[some]
            if not self.constant:
                return self.old[:, some] + change, torch.zeros_like(shift)
            return self.old[:, some] + change, -shift - self.centre.entries @ change

        return solution

    def judged(self, held: Rows | Moments) -> Callable[[float], Tensor]:
        """The squared errors of all outputs on held-out samples [out], for any ridge."""
        return lambda ridge: held.errors(*self.at(ridge)(slice(None)))


class _ByRows(Regression):
    """For fewer samples than entries: from the samples' products, one factorisation a ridge."""

    def __init__(self, solved: Rows, old: Tensor, constant: bool) -> None:
        super().__init__(old, constant)
        p, y = solved.p.double(), solved.y.double()
        present = p @ old
        self.centre = Centre(p.mean(0), y.mean(0), present.mean(0))
        self.variances = present.var(0, correction=0), y.var(0, correction=0)
        missing = y - present
        if constant:
            p, missing = p - self.centre.entries, missing + self.centre.shift
        self._sizes = sizes_of(p.square().mean(0))
        self._p = p / self._sizes.sqrt()
        self._products = symmetric_product(self._p)
        self._missing = missing

    def changes(self, ridge: float) -> Solution:
        solved, sizes = self._dual(ridge), self._sizes.sqrt()[:, None]
        return lambda some: (self._p.T @ solved(some)) / sizes

    def _dual(self, ridge: float) -> Solution:
        """What the samples are multiplied by to give the changes [rows, some]."""
        products = self._products.clone()
        products.diagonal().add_(ridge * len(self._p))
        solved = solver(products)
        return lambda some: solved(self._missing[:, some])

    def judged(self, held: Rows | Moments) -> Callable[[float], Tensor]:
        """As above; of held-out rows by their products with those solved on, without weights."""
        if isinstance(held, Moments):
            return super().judged(held)
        p = held.p.double()
        left = held.y.double() - p @ self.old
        if self.constant:
            p, left = p - self.centre.entries, left + self.centre.shift
        products = (p / self._sizes.sqrt()) @ self._p.T
        return lambda ridge: (left - products @ self._dual(ridge)(slice(None))).square().sum(0)


class _ByMoments(Regression):
    """From second moments, whose size is that of the entries: one factorisation a ridge."""

    def __init__(self, solved: Moments, old: Tensor, constant: bool) -> None:
        super().__init__(old, constant)
        count = len(solved)
        second, mean = solved.second[:-1, :-1] / count, solved.second[-1, :-1] / count
        cross, target = solved.cross[:-1] / count, solved.cross[-1] / count
        present = mean @ old
        square = ((second @ old) * old).sum(0)
        self.variances = (
            (square - present.square()).clamp_min(0),
            (solved.squares / count - target.square()).clamp_min(0),
        )
        if constant:
            second = second - torch.outer(mean, mean)
            cross = cross - torch.outer(mean, target)
        self.centre = Centre(mean, target, present)
        self._second = second
        self._missing = cross - second @ old

    def changes(self, ridge: float) -> Solution:
        solved = solver(with_ridge(self._second, ridge))
        return lambda some: solved(self._missing[:, some])


def solver(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """Solves for a positive definite matrix; gives NaN if rounding has made it indefinite."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        return lambda right: torch.full_like(right, torch.nan)
    return lambda right: torch.cholesky_solve(right, factor)


def with_ridge(second: Tensor, ridge: float) -> Tensor:
    """A second moment [entries, entries] plus a ridge on its diagonal."""
    ridged = second.clone()
    ridged.diagonal().add_(ridge * sizes_of(second.diagonal()))
    return ridged


def sizes_of(squares: Tensor) -> Tensor:
    """What the ridge is a share of, for each entry: its mean square, so that scale cancels.

    A dead entry gets a small share of the others'.
    """
    return squares.clamp_min(DEAD * float(squares.mean())).clamp_min(
        torch.finfo(squares.dtype).tiny
    )


def regression(solved: Rows | Moments, old: Tensor, constant: bool) -> Regression:
    """The regression on these samples around the present weights.

    Parameters
    ----------
    solved
        The samples to solve on.
    old
        The present weights [entries, out], in float64.
    constant
        Whether each output may shift by a constant.
    """
    if isinstance(solved, Rows):
        return _ByRows(solved, old, constant)
    return _ByMoments(solved, old, constant)
