"""The best set of channels of a size: how far a chosen one can be from it.

Which k of n channels are removed with the least damage is a problem of 0 and 1:
minimise x'Gx over x in {0, 1}^n with 1'x = k. Greedy choices are good but not always best. Two
things are computed here:

1. `swapped`: exchange one chosen channel for another while that lowers the damage.
2. A lower bound that holds for every set of the size, so that "within 2% of the best" is a fact.

The bound. Let d be any vector for which S = G - diag(d) has no negative curvature along directions
whose entries sum to zero. As x_i^2 = x_i, every set has x'Gx = q(x) := x'Sx + d'x, and q is convex
where 1'x = k. So for any point z of P = {0 <= x <= 1, 1'x = k}, each x of P has
q(x) >= q(z) + grad q(z)'(x - z), and the least value of the right side on P is reached by the k
smallest entries of the gradient: it is a bound, whatever z and d are. z is found by an interior
point method, which raises it to the minimum of q on P; d by steps that raise that minimum, whose
slope with respect to d_i is z_i (1 - z_i), with log det as a barrier. This is the quadratic
convex reformulation of Billionnet, Elloumi and Plateau (Discrete Applied Mathematics 157, 2009).

Branch and bound then fixes channels as removed or kept until the bound meets the best known set.
Submatrices of S have the same property, so each branch has its bound by the same steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np

from prunelab.errors import InvalidValue
from prunelab.evidence.contribution import ContributionGram
from prunelab.evidence.damage_curves import damage_curve
from prunelab.loops.batch import finish
from prunelab.values import Progress, Units, many, units_of
from prunelab.values.given import as_annotated

Array = np.ndarray
NODES = 100  # branches that are looked at
ROUNDING = 1e-9  # of the damage: how much of a gain is none
PROVED = 1e-6  # of the damage: how near a bound has met it
NEWTON_STEPS = 50
TINY = 1e-300
INSIDE = 1e-12  # how far the interior point method stays from 0 and 1, where it would divide by 0
SHIFT_STEPS = 40
NEAR = 1e-3  # of a bound: how close the steps of z and of d come to their best


@dataclass(frozen=True, slots=True)
class BestSet:
    """The best set of units known of its size, and how far it can be from the best there is.

    `damage` is the share of the consumers' signal that is lost without `units`; no set of as many
    units of the group loses less than `bound`.
    """

    group: str
    units: Units
    damage: float
    bound: float

    @property
    def proved(self) -> bool:
        """Whether no set of this size is better."""
        return self.damage - self.bound <= PROVED * self.damage

    def excess(self, damage: float | None = None) -> float:
        """How far `damage` (None: that of this set) is at most above the best set's, as a share."""
        damage = self.damage if damage is None else damage
        if damage <= self.bound:
            return 0.0
        return damage / self.bound - 1 if self.bound > 0 else np.inf

    def __str__(self) -> str:
        best = f"the best set of {many(len(self.units), 'unit')}"
        how = f"{best}, proved" if self.proved else f"within {self.excess():.1%} of {best}"
        return f"{self.group}: {self.damage:.2%} of the signal lost, {how}"


@as_annotated
def best_set(gram: ContributionGram, count: int, *, nodes: int = NODES) -> BestSet:
    """The best set of `count` units to remove that is found, with a proved bound.

    Parameters
    ----------
    gram
        The contributions of a group, `evidence["conv1"]`.
    count
        The number of units to remove, less than the group has.
    nodes
        The number of branches that are looked at; 0: greedy choice and swaps, with the bound of
        the whole problem.

    Raises
    ------
    InvalidValue
        For a count or number of branches that is out of range.
    """
    found: BestSet = finish(searching_best(gram, count, nodes))
    return found


def searching_best(
    gram: ContributionGram, count: int, nodes: int = NODES
) -> Generator[Progress, None, BestSet]:
    """`best_set` as a generator: yields Progress after every branch."""
    size = len(gram.units)
    if not 0 < count < size:
        raise InvalidValue(
            f"count is a whole number from 1 to {size - 1}, as {gram.group} has {size} units; not "
            f"{count}."
        )
    if nodes < 0:
        raise InvalidValue(f"nodes is a whole number of at least 0, not {nodes}.")
    matrix = gram.gram
    place = {unit: index for index, unit in enumerate(gram.units)}
    chosen = swapped(matrix, [place[unit] for unit in damage_curve(gram).first(count)])
    if gram.energy <= 0 or _lost(matrix, chosen) <= 0:
        return BestSet(gram.group, units_of(gram.units[i] for i in chosen), 0.0, 0.0)
    search = _Search(matrix, count, chosen)
    for done in range(nodes):
        yield Progress(done, nodes, f"bounding {many(count, 'unit')} of {gram.group}")
        if not search.branch():
            break
    lost = _lost(matrix, search.chosen)
    return BestSet(
        gram.group,
        units_of(gram.units[i] for i in search.chosen),
        lost / gram.energy,
        min(lost, search.bound) / gram.energy,
    )


def exchanged(gram: ContributionGram, units: Units) -> Units:
    """`units` of a group after the best exchanges of one for another, until none helps."""
    place = {unit: index for index, unit in enumerate(gram.units)}
    after = swapped(gram.gram, [place[unit] for unit in units])
    return units_of(gram.units[index] for index in after)


def swapped(matrix: Array, chosen: list[int]) -> list[int]:
    """`chosen` after the best exchanges of one of its channels for another, until none helps.

    With t = G 1_S, exchanging a of S for b changes the damage by
    G_aa - 2 t_a + G_bb + 2 t_b - 2 G_ab.
    """
    inside = np.zeros(len(matrix), dtype=bool)
    inside[chosen] = True
    cross, own = matrix @ inside, np.diagonal(matrix)
    least = ROUNDING * float(np.trace(matrix))
    while True:
        into, out = np.flatnonzero(~inside), np.flatnonzero(inside)
        change = (own - 2 * cross)[out, None] + (own + 2 * cross)[into] - 2 * matrix[out][:, into]
        row, column = np.unravel_index(np.argmin(change), change.shape) if change.size else (0, 0)
        if not change.size or change[row, column] >= -least:
            return np.flatnonzero(inside).tolist()
        a, b = out[row], into[column]
        inside[a], inside[b] = False, True
        cross += matrix[b] - matrix[a]


def _lost(matrix: Array, chosen: list[int]) -> float:
    return float(matrix[np.ix_(chosen, chosen)].sum())


# ---------------------------------------------------------------- the bound


def _relaxed(
    curved: Array, linear: Array, count: int, enough: float = np.inf
) -> tuple[float, Array]:
    """A lower bound of x'Sx + c'x on P, and the point whose tangent gives about the highest one.

    Newton steps on the problem with the barrier -nu sum(log x + log(1 - x)), for a falling nu. It
    ends where the bound is `enough`.
    """
    size = len(linear)
    if count in (0, size):
        x = np.full(size, float(count > 0))
        return float(x @ curved @ x + linear @ x), x
    x = np.full(size, count / size)
    system = np.ones((size + 1, size + 1))  # the last row keeps the sum of x
    system[-1, -1] = 0
    best, at = -np.inf, x
    for _ in range(NEWTON_STEPS):
        slope = 2 * curved @ x + linear
        value = float(x @ curved @ x + linear @ x)
        bound = value - float(slope @ x) + float(np.partition(slope, count - 1)[:count].sum())
        if bound > best:
            best, at = bound, x
        if best >= enough or value - best <= NEAR * abs(value):
            break
        nu = 0.1 * (value - bound) / size
        system[:-1, :-1] = 2 * curved
        system[range(size), range(size)] += nu / x**2 + nu / (1 - x) ** 2
        force = np.append(nu / x - nu / (1 - x) - slope, 0)
        step = np.linalg.solve(system, force)[:-1]
        room = np.where(step > 0, (1 - x) / np.maximum(step, TINY), -x / np.minimum(step, -TINY))
        x = x + min(1.0, 0.9 * float(room.min())) * step
        x = np.clip(x, INSIDE, 1 - INSIDE)
    return best, at


def _shift(matrix: Array, count: int, known: float) -> Array:
    """The vector d that raises the bound, by Newton steps on bound + mu log det(S + a 11').

    `known` is the damage of the best known set, which the bound cannot exceed.
    """
    size, scale = len(matrix), float(np.trace(matrix)) / len(matrix)
    matrix = matrix / scale
    lifted = matrix + 10.0  # only directions that sum to zero matter
    least = float(np.linalg.eigvalsh(lifted)[0])
    shift = np.full(size, least - 0.1 * abs(least) - 1e-6)

    def valued(shift: Array) -> tuple[float, float, Array] | None:
        try:
            root = np.linalg.cholesky(lifted - np.diag(shift))
        except np.linalg.LinAlgError:
            return None
        bound, x = _relaxed(matrix - np.diag(shift), shift, count)
        return bound, 2 * float(np.log(np.diagonal(root)).sum()), x

    now = valued(shift)
    assert now is not None  # the first shift lies below the least eigenvalue
    best, mu = (now[0], shift), 0.1 * known / scale / size
    last = NEAR / 100 * mu
    for _ in range(SHIFT_STEPS):
        inverse = np.linalg.inv(lifted - np.diag(shift))
        x = now[2]
        slope = x * (1 - x) - mu * np.diagonal(inverse)
        step = np.linalg.solve(mu * inverse * inverse, slope)
        length = 1.0
        while length > 1e-3:
            then = valued(shift + length * step)
            if then is not None and then[0] + mu * then[1] > now[0] + mu * now[1]:
                break
            length /= 3
        else:
            mu /= 4
            if mu < last:
                break
            continue
        shift, now = shift + length * step, then
        best = max(best, (now[0], shift), key=lambda pair: pair[0])
        if length * float(slope @ step) < mu:
            mu /= 4
    return best[1] * scale


# ---------------------------------------------------------------- branch and bound


@dataclass(order=True, slots=True)
class _Node:
    """Channels that are removed or free, the rest kept; at a minimum of the relaxed problem."""

    bound: float
    removed: Array = field(compare=False)
    free: Array = field(compare=False)
    at: Array = field(compare=False)


class _Search:
    """Branches in the order of their bounds; `bound` holds for every set."""

    def __init__(self, matrix: Array, count: int, chosen: list[int]) -> None:
        self._matrix, self._count = matrix, count
        self._shift = _shift(matrix, count, _lost(matrix, chosen))
        self._curved = matrix - np.diag(self._shift)
        self._open: list[_Node] = []
        self.chosen, self._least = chosen, _lost(matrix, chosen)
        every = np.arange(len(matrix))
        self._add(every[:0], every)

    @property
    def bound(self) -> float:
        """The least bound of what is open; the best known damage where nothing is."""
        return min((node.bound for node in self._open[:1]), default=self._least)

    def branch(self) -> bool:
        """Split the open part with the lowest bound; False where none is left."""
        while self._open and self._open[0].bound >= self._near:
            heapq.heappop(self._open)
        if not self._open:
            return False
        node = heapq.heappop(self._open)
        index = int(np.argmin(np.abs(node.at - 0.5)))
        unit = node.free[index : index + 1]
        free = np.delete(node.free, index)
        self._add(np.concatenate([node.removed, unit]), free)
        self._add(node.removed, free)
        return True

    @property
    def _near(self) -> float:
        """From here on a bound meets the best known damage."""
        return self._least * (1 - PROVED)

    def _add(self, removed: Array, free: Array) -> None:
        """Bound a part, keep it open where it may hold a better set, and look for one in it."""
        count = self._count - len(removed)
        if not 0 <= count <= len(free):
            return
        curved = self._curved
        linear = self._shift[free] + 2 * curved[np.ix_(free, removed)].sum(axis=1)
        fixed = float(curved[np.ix_(removed, removed)].sum() + self._shift[removed].sum())
        bound, x = _relaxed(curved[np.ix_(free, free)], linear, count, self._near - fixed)
        rounded = [*removed.tolist(), *free[np.argsort(-x, kind="stable")[:count]].tolist()]
        tried = swapped(self._matrix, rounded)
        if (lost := _lost(self._matrix, tried)) < self._least * (1 - ROUNDING):
            self.chosen, self._least = tried, lost
        if bound + fixed < self._near and 0 < count < len(free):
            heapq.heappush(self._open, _Node(bound + fixed, removed, free, x))
