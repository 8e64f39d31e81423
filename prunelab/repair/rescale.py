"""ThiNet's refit: one least-squares factor for each input channel that a layer still has.

It has as many unknowns as channels, far fewer than a full least-squares kernel, so it needs few
images (Luo, Wu, Lin; ICCV 2017, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from prunelab.data.batches import nonempty
from prunelab.data.holding_out import HOLD, part
from prunelab.evidence import AimedGram, aiming
from prunelab.evidence.gram_collector import columns_of
from prunelab.graph.channels.channel_graph import FIXED
from prunelab.loops.batch import guarded
from prunelab.repair.fit import fit
from prunelab.repair.recalibration import Traced
from prunelab.repair.regression import Moments
from prunelab.values import Progress

Array = np.ndarray


def rescaling(
    small: Traced,
    before: Traced,
    target: Traced,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int = 0,
) -> Generator[Progress, None, None]:
    """Multiply the input channels of `small`, in place, by least-squares factors.

    Front to back, for each layer that has fewer inputs than it has in `before`; biases are left
    out of the fit and stay. ThiNet's released code targets the network before the cut; this one
    targets the network last trained, which is the same where one fine-tunes after every layer, as
    it does. BatchNorm should be recalibrated afterwards.

    Parameters
    ----------
    small, before, target
        The pruned network, the one before the cut, and the one whose outputs are the targets.
    batches
        Returns the batches; called twice for each layer: to solve, and for held-out images.
    forward
        `forward(model, batch)` runs a network.
    expected
        How many images there are, for Progress.

    Yields
    ------
    Progress
        Progress in images.

    Raises
    ------
    BadData
        For no batches, or batches on which a network fails.
    """
    for layer in small.graph.layers:
        if not layer.dense or len(layer.in_units) == len(before.graph.layer(layer.name).in_units):
            continue
        found: list[AimedGram | None] = []
        for held in (False, True):
            apart = nonempty(part(guarded(batches()), held))
            if apart is None and held:
                found.append(None)
                continue
            grams = yield from aiming(
                small.network, small.graph, target.network, target.graph, apart or (),
                [layer.name], forward=forward,
                expected=expected // HOLD if held else expected - expected // HOLD,
            )  # fmt: skip
            found.append(grams.get(layer.name))
        solved, judges = found
        if solved is None:
            continue  # it was not called
        by_row = torch.from_numpy(factors(solved, judges))
        weight = dict(small.network.named_parameters())[layer.weight]
        shape = [-1 if axis == 1 - layer.transposed else 1 for axis in range(weight.ndim)]
        with torch.no_grad():
            weight.mul_(by_row[columns_of(layer)[0]].to(weight).view(shape))


def factors(solved: AimedGram, held: AimedGram | None) -> Array:
    """argmin_w ||y - sum_i w_i z_i||^2, aligned with `solved.units`; inputs of no unit keep 1.

    A ridge pulls the factors towards 1: a dead channel keeps its factor, collinear ones share the
    change. The ridge is the one that fits the held-out images best. If none fits them better than
    factors of 1, or there are none, all factors are 1.
    """
    own = solved.units != FIXED
    ones = torch.ones(int(own.sum()), 1, dtype=torch.float64)
    others = None if held is None else _moments(held, own)
    best = fit(_moments(solved, own), others, ones, constant=False)
    found = np.ones(len(solved.units))
    if best.choice == "lstsq":
        found[own] = best.weight[:, 0].numpy()
    return found


def _moments(gram: AimedGram, own: Array) -> Moments:
    """The regression of the target on the contributions of `own`, others subtracted from it."""
    size = int(own.sum())
    second = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    second[:-1, :-1] = torch.from_numpy(gram.gram[np.ix_(own, own)])
    second[-1, -1] = max(1, gram.rows)
    cross = torch.zeros(size + 1, 1, dtype=torch.float64)
    cross[:-1, 0] = torch.from_numpy(gram.cross[own] - gram.gram[np.ix_(own, ~own)].sum(1))
    rest = gram.gram[np.ix_(~own, ~own)].sum() - 2 * gram.cross[~own].sum()
    return Moments(second, cross, torch.tensor([gram.energy + rest], dtype=torch.float64))
