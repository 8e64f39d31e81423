"""ThiNet's refit: one factor for each input channel that a layer still has.

A small repair beside full least squares: as many numbers as channels, so it needs few images. May
import recalibration, evidence, channels, values.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from prunelab.evidence.gram_collector import columns_of
from prunelab.evidence.reconstruction_target import AimedGram, aiming_apart
from prunelab.graph.channels.channel_graph import FIXED
from prunelab.repair.fit import Moments, fit
from prunelab.repair.recalibration import Traced
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
    """Multiply the input channels of `small`, in place, by the factors that fit `target` best.

    Front to back, for each layer that has fewer inputs than it has in `before`; biases are left
    out of the fit and stay (Luo, Wu, Lin; ICCV 2017). ThiNet's released code aims at the network
    before the cut; this aims at the one last trained, which is the same where one tunes after
    every layer, as it does. One pass over the batches a layer. BatchNorm should be recalibrated
    afterwards.
    """
    for layer in small.graph.layers:
        if not layer.dense or len(layer.in_units) == len(before.graph.layer(layer.name).in_units):
            continue
        found = yield from aiming_apart(
            small.network, small.graph, target.network, target.graph, batches(), [layer.name],
            forward=forward, expected=expected,
        )  # fmt: skip
        solved, held = found[layer.name]
        if solved is None:
            continue  # it was not called
        by_row = torch.from_numpy(factors(solved, held))
        weight = dict(small.network.named_parameters())[layer.weight]
        shape = [-1 if axis == 1 - layer.transposed else 1 for axis in range(weight.ndim)]
        with torch.no_grad():
            weight.mul_(by_row[columns_of(layer)[0]].to(weight).view(shape))


def factors(solved: AimedGram, held: AimedGram | None) -> Array:
    """argmin_w ||y - sum_i w_i z_i||^2, aligned with `solved.units`; inputs of no unit keep 1.

    A ridge pulls towards 1: a dead channel keeps its factor, collinear ones share the change. The
    ridge is the one that fits the images `held` out best; where none fits them better than factors
    of 1 do, or there are no such images, all keep 1.
    """
    own = solved.units != FIXED
    ones = torch.ones(int(own.sum()), 1, dtype=torch.float64)
    judges = None if held is None else _moments(held, own)
    best = fit(_moments(solved, own), judges, ones, constant=False)
    found = np.ones(len(solved.units))
    if best.choice == "lstsq":
        found[own] = best.weight[:, 0].numpy()
    return found


def _moments(gram: AimedGram, own: Array) -> Moments:
    """The regression of what the aim lacks without these inputs on what each of them gives."""
    size = int(own.sum())
    second = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    second[:-1, :-1] = torch.from_numpy(gram.gram[np.ix_(own, own)])
    second[-1, -1] = max(1, gram.rows)
    cross = torch.zeros(size + 1, 1, dtype=torch.float64)
    cross[:-1, 0] = torch.from_numpy(gram.cross[own] - gram.gram[np.ix_(own, ~own)].sum(1))
    rest = gram.gram[np.ix_(~own, ~own)].sum() - 2 * gram.cross[~own].sum()
    return Moments(second, cross, torch.tensor([gram.energy + rest], dtype=torch.float64))
