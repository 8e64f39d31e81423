"""One layer's least squares: regularised by its own data, judged on images it was not solved on.

Later layers of a real network have thousands of inputs and, on a few hundred small images, fewer
rows than inputs: there least squares fits the sample, and everything behind it is ruined. So the
change from the present weights is shrunk by a ridge, the ridge is the one that reconstructs
held-out images best, and where even that does not beat BatchNorm measured anew or the weights as
they are, these are taken instead. May import torch only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal

import torch
from torch import Tensor

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean square of an entry
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

    @property
    def determined(self) -> bool:
        """Whether there were more samples than entries to solve for."""
        return self.rows > len(self.weight)


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
    solutions: dict[int, tuple[Tensor, Tensor]] = {}

    def error_at(place: int) -> float:
        change = problem.change(RIDGES[place])
        shift = -centre.shift - centre.entries @ change if constant else zero
        solutions[place] = old + change, shift
        return error_of(*solutions[place])

    place, errors["lstsq"] = _least(error_at)
    choice = min(errors, key=errors.__getitem__)
    return Fit(choice, RIDGES[place], *solutions[place], centre.shift, ratio, len(solved), errors)


def _least(error_at: Callable[[int], float]) -> tuple[int, float]:
    """Which of RIDGES has the least error, and that error: it falls with the ridge, then rises.

    From the middle it walks downhill, so two or three of them are tried besides the best.
    """
    place = len(RIDGES) // 2
    least = error_at(place)
    for step in (1, -1):
        start = place
        while 0 <= place + step < len(RIDGES) and (error := error_at(place + step)) < least:
            place, least = place + step, error
        if place != start:
            break
    return place, least


@dataclass(frozen=True, slots=True, eq=False)
class _Centre:
    """Means over the samples solved on: what is read [entries], wanted, and given now [out].

    `entries` is zero where there is no constant, and everything is measured from zero.
    """

    entries: Tensor
    wanted: Tensor
    present: Tensor

    @property
    def shift(self) -> Tensor:
        """By how much the outputs' means are off now [out]."""
        return self.present - self.wanted


class _Problem(ABC):
    """argmin ||missing - p change||^2 + ridge ||change||^2 for any ridge.

    A ridge is a share of the mean square of an entry. `variances` [out] are of the outputs as
    given now and as wanted.
    """

    centre: _Centre
    variances: tuple[Tensor, Tensor]

    @abstractmethod
    def change(self, ridge: float) -> Tensor:
        """The change of the weights [entries, out]."""


class _ByRows(_Problem):
    """Fewer samples than entries: one decomposition of the samples' products gives all ridges."""

    def __init__(self, solved: Rows, old: Tensor, constant: bool) -> None:
        p, y = solved.p.double(), solved.y.double()
        given = p @ old
        mean = p.mean(0) if constant else p.new_zeros(p.shape[1])
        self.centre = _Centre(mean, y.mean(0), given.mean(0))
        self.variances = given.var(0, correction=0), y.var(0, correction=0)
        missing = y - given + self.centre.shift if constant else y - given
        self._p = p - mean
        values, self._vectors = torch.linalg.eigh(self._p @ self._p.T)
        self._values = values.clamp_min(0)
        self._size = self._values.sum() / p.shape[1]
        self._missing = self._vectors.T @ missing

    def change(self, ridge: float) -> Tensor:
        loaded = self._values + ridge * self._size
        turned = torch.where(loaded > 0, 1 / loaded, 0.0)[:, None] * self._missing
        return self._p.T @ (self._vectors @ turned)


class _ByMoments(_Problem):
    """From second moments, whose size does not grow with the samples: a factorisation a ridge."""

    def __init__(self, solved: Moments, old: Tensor, constant: bool) -> None:
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
        self.centre = _Centre(mean if constant else torch.zeros_like(mean), wanted, present)
        self._second = second
        self._size = second.diagonal().mean()
        self._missing = cross - second @ old

    def change(self, ridge: float) -> Tensor:
        loaded = self._second.clone()
        loaded.diagonal().add_(ridge * self._size)
        factor, info = torch.linalg.cholesky_ex(loaded)
        if int(info):  # not positive by rounding: no solution at this ridge
            return torch.full_like(self._missing, torch.nan)
        return torch.cholesky_solve(self._missing, factor)


def _problem(solved: Rows | Moments, old: Tensor, constant: bool) -> _Problem:
    if isinstance(solved, Rows):
        return _ByRows(solved, old, constant)
    return _ByMoments(solved, old, constant)
