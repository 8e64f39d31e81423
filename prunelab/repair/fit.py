"""One layer's least squares: regularised by its own data, judged on images it was not solved on.

Later layers of a real network have thousands of inputs and, on a few hundred small images, fewer
rows than inputs: there least squares fits the sample, and everything behind it is ruined. So the
change from the present weights is shrunk by a ridge, the ridge is the one that reconstructs
held-out images best, and where even that does not beat BatchNorm measured anew or the weights as
they are, these are taken instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

import torch
from torch import Tensor

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of each entry's mean square
NEARLY = 1.1  # times the least error
CAUTIOUS = 1e-2  # where nothing tells which ridge is right
DEAD = 1e-3  # of the mean: the mean square below which an entry counts as this much
LEAST_RATIO = 1e-3  # of variances: a channel that all but died is not blown up
Choice = Literal["lstsq", "bn", "kept"]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Samples of a regression, in the network's precision.

    `p` [rows, entries] is what is read, `y` [rows, out] what to give.
    """

    p: Tensor
    y: Tensor

    def __add__(self, other: Rows) -> Rows:
        return Rows(torch.cat([self.p, other.p]), torch.cat([self.y, other.y]))

    def __len__(self) -> int:
        return len(self.p)

    @property
    def variances(self) -> Tensor:
        """The squares of y about its means, summed [out]."""
        y = self.y.double()
        return (y - y.mean(0)).square().sum(0)

    def missed(self, weight: Tensor, constant: Tensor) -> Tensor:
        """||y - p weight - constant||^2 of each output [out]."""
        return (self.y.double() - self.p.double() @ weight - constant).square().sum(0)

    @property
    def moments(self) -> Moments:
        """The same samples, summed up."""
        ones = self.p.new_ones(len(self.p), 1)
        p, y = torch.cat([self.p, ones], 1).double(), self.y.double()
        return Moments(p.T @ p, p.T @ y, y.square().sum(0))


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Sums over samples in float64: (p, 1)(p, 1)' and (p, 1) y', the squares of y [out].

    `second` [entries + 1, entries + 1], `cross` [entries + 1, out].
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
        """The squares of y about its means, summed [out]."""
        return self.squares - self.cross[-1].square() / max(1, len(self))

    def missed(self, weight: Tensor, constant: Tensor) -> Tensor:
        """||y - p weight - constant||^2 of each output [out]."""
        whole = torch.cat([weight, constant[None]])
        missed = self.squares + ((self.second @ whole - 2 * self.cross) * whole).sum(0)
        return missed.clamp_min(0)  # a difference of large numbers where hardly anything is missed


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What a layer gets, and how well each choice did on held-out samples.

    `choice` is "lstsq" (the `weight` [entries, out] and `constant` [out] that were solved, with
    this `ridge`), "bn" (the outputs' `shift` of the mean, present less wanted, and `ratio` of the
    variance, present to wanted, both [out]) or "kept" (nothing is changed). `rows` samples were
    solved on. `errors` are the held-out squared errors, as a share of the variance that is to be
    given there; empty where nothing was held out.
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
    """The best of least squares, BatchNorm redone and the weights as they are.

    Parameters
    ----------
    solved
        The samples to solve on.
    held
        Samples of other images, which judge. Without them nothing can be known of a solution, and
        none is taken.
    old
        The present weights [entries, out], in float64; the ridge shrinks the change from them.
    constant
        Whether each output may shift by a constant.
    normed
        Whether BatchNorm follows, so that its statistics can be redone.
    importance
        What a squared error of each output counts [out]; None: all alike.
    """
    problem = _problem(solved, old, constant)
    centre, zero = problem.centre, torch.zeros_like(problem.centre.wanted)
    ratio = torch.nan_to_num(problem.variances[0] / problem.variances[1], nan=1.0, posinf=1.0)
    ratio = ratio.clamp_min(LEAST_RATIO)
    if held is None:
        choice: Choice = "bn" if normed else "kept"
        return Fit(choice, 0.0, old, zero, centre.shift, ratio, len(solved), {})

    weigh = torch.ones_like(ratio) if importance is None else importance
    whole = float((held.variances * weigh).sum())

    def error_of(weight: Tensor, constant: Tensor) -> float:
        error = float((held.missed(weight, constant) * weigh).sum())
        error = error / whole if whole > 0 else error
        return error if isfinite(error) else inf

    errors: dict[Choice, float] = {"kept": error_of(old, zero)}
    if normed:
        scale = ratio.rsqrt()
        errors["bn"] = error_of(old * scale, centre.wanted - centre.present * scale)
    best: tuple[float, Tensor, Tensor] = (inf, old, zero)  # no other is kept: they are large

    def error_at(place: int) -> float:
        nonlocal best
        solution = problem.solution(RIDGES[place])
        error = error_of(*solution)
        if error < best[0]:
            best = (error, *solution)
        return error

    place, errors["lstsq"] = _least(error_at)
    choice = min(errors, key=errors.__getitem__)
    return Fit(choice, RIDGES[place], *best[1:], centre.shift, ratio, len(solved), errors)


def ridge_without(
    gone: Tensor, weight: Tensor, solved: Tensor, held: Tensor | None, *, constant: bool
) -> float:
    """The weakest ridge with which the rest of a layer's entries give what all of them gave.

    As well as with any, or nearly so (`NEARLY`), on samples that judge: where there are enough of
    them hardly any ridge is needed, and copies among the entries are seen for what they are. `gone`
    [entries] marks the entries to do without, `weight` [entries, out] is the layer's, `solved` and
    `held` are second moments of (entries, 1) over the samples to solve on and those that judge. A
    ridge that serves without some entries serves without others. Without samples that judge it is
    `CAUTIOUS`.
    """
    if held is None:
        return CAUTIOUS
    rest = (~gone).nonzero()[:, 0]
    own = torch.cat([rest, rest.new_tensor([len(gone)])])

    def regression(second: Tensor) -> Moments:
        given = second[:, :-1] @ weight
        return Moments(second[own][:, own], given[own], (given[:-1] * weight).sum(0))

    problem, judges = _problem(regression(solved), weight[rest], constant), regression(held)
    errors = []
    for ridge in RIDGES:
        error = float(judges.missed(*problem.solution(ridge)).sum())
        errors.append(error if isfinite(error) else inf)
    if min(errors) == inf:  # nothing is known of any
        return CAUTIOUS
    good = [error <= NEARLY * min(errors) for error in errors]
    return RIDGES[good.index(True)]


def _least(error_at: Callable[[int], float]) -> tuple[int, float]:
    """Which of RIDGES has the least error, and that error: it falls with the ridge, then rises.

    From the middle it walks downhill, so two or three of them are tried besides the best. The
    weaker ones may have no solution, which counts as an infinite error.
    """
    place = len(RIDGES) // 2
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


@dataclass(frozen=True, slots=True, eq=False)
class _Centre:
    """Means over the samples solved on: what is read [entries], wanted, and given now [out]."""

    entries: Tensor
    wanted: Tensor
    present: Tensor

    @property
    def shift(self) -> Tensor:
        """By how much the outputs' means are off now [out]."""
        return self.present - self.wanted


class _Problem(ABC):
    """argmin ||missing - p change||^2 + ridge ||sizes^(1/2) change||^2, for any ridge.

    With the entries' own sizes the fit stays the same where a channel is scaled and its readers
    are scaled back. `variances` [out] are those of the outputs as given now and as wanted.
    """

    centre: _Centre
    variances: tuple[Tensor, Tensor]

    def __init__(self, old: Tensor, constant: bool) -> None:
        self.old = old
        self.constant = constant

    @abstractmethod
    def change(self, ridge: float) -> Tensor:
        """The change of the weights [entries, out]."""

    def solution(self, ridge: float) -> tuple[Tensor, Tensor]:
        """The weights [entries, out] and the constants [out]."""
        change = self.change(ridge)
        if not self.constant:
            return self.old + change, torch.zeros_like(self.centre.shift)
        return self.old + change, -self.centre.shift - self.centre.entries @ change


class _ByRows(_Problem):
    """Fewer samples than entries: from the samples' products, a factorisation a ridge."""

    def __init__(self, solved: Rows, old: Tensor, constant: bool) -> None:
        super().__init__(old, constant)
        p, y = solved.p.double(), solved.y.double()
        given = p @ old
        self.centre = _Centre(p.mean(0), y.mean(0), given.mean(0))
        self.variances = given.var(0, correction=0), y.var(0, correction=0)
        missing = y - given
        if constant:
            p, missing = p - self.centre.entries, missing + self.centre.shift
        self._sizes = _sizes(p.square().mean(0))
        self._p = p / self._sizes.sqrt()
        self._products = self._p @ self._p.T
        self._missing = missing

    def change(self, ridge: float) -> Tensor:
        with_ridge = self._products.clone()
        with_ridge.diagonal().add_(ridge * len(self._p))
        return (self._p.T @ _solved(with_ridge, self._missing)) / self._sizes.sqrt()[:, None]


class _ByMoments(_Problem):
    """From second moments, whose size does not grow with the samples: a factorisation a ridge."""

    def __init__(self, solved: Moments, old: Tensor, constant: bool) -> None:
        super().__init__(old, constant)
        count = len(solved)
        second, mean = solved.second[:-1, :-1] / count, solved.second[-1, :-1] / count
        cross, wanted = solved.cross[:-1] / count, solved.cross[-1] / count
        present = mean @ old
        square = ((second @ old) * old).sum(0)
        self.variances = (
            (square - present.square()).clamp_min(0),
            (solved.squares / count - wanted.square()).clamp_min(0),
        )
        if constant:
            second = second - torch.outer(mean, mean)
            cross = cross - torch.outer(mean, wanted)
        self.centre = _Centre(mean, wanted, present)
        self._second = second
        self._missing = cross - second @ old

    def change(self, ridge: float) -> Tensor:
        return _solved(loaded(self._second, ridge), self._missing)


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution for a positive matrix; NaN for one that is none, by rounding."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        return torch.full_like(right, torch.nan)
    return torch.cholesky_solve(right, factor)


def loaded(second: Tensor, ridge: float) -> Tensor:
    """A second moment [entries, entries] with a ridge on its diagonal."""
    with_ridge = second.clone()
    with_ridge.diagonal().add_(ridge * _sizes(second.diagonal()))
    return with_ridge


def _sizes(squares: Tensor) -> Tensor:
    """What a ridge is a share of, for each entry: its mean square, so that units do not matter.

    A dead entry has a little of the others'.
    """
    return squares.clamp_min(DEAD * float(squares.mean())).clamp_min(
        torch.finfo(squares.dtype).tiny
    )


def _problem(solved: Rows | Moments, old: Tensor, constant: bool) -> _Problem:
    if isinstance(solved, Rows):
        return _ByRows(solved, old, constant)
    return _ByMoments(solved, old, constant)
