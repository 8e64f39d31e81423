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

from prunelab.channels import FIXED
from prunelab.evidence.aim import AimedGram, aiming
from prunelab.evidence.meter import columns_of
from prunelab.repair.recalibration import Traced
from prunelab.values import Progress

Array = np.ndarray
RIDGE = 1e-6  # of the mean energy of a channel


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
        found = yield from aiming(
            small.network, small.graph, target.network, target.graph, batches(), [layer.name],
            forward=forward, expected=expected,
        )  # fmt: skip
        if layer.name not in found:
            continue  # it was not called
        by_row = torch.from_numpy(factors(found[layer.name]))
        weight = dict(small.network.named_parameters())[layer.weight]
        shape = [-1 if axis == 1 - layer.transposed else 1 for axis in range(weight.ndim)]
        with torch.no_grad():
            weight.mul_(by_row[columns_of(layer)[0]].to(weight).view(shape))


def factors(gram: AimedGram) -> Array:
    """argmin_w ||y - sum_i w_i z_i||^2, aligned with `gram.units`; inputs of no unit keep 1.

    A ridge pulls towards 1: a dead channel keeps its factor, collinear ones share the change.
    """
    own = gram.units != FIXED
    matrix = gram.gram[np.ix_(own, own)]
    missing = gram.cross[own] - gram.gram[own].sum(1)
    ridge = RIDGE * max(float(np.trace(matrix)) / max(1, len(matrix)), np.finfo(float).tiny)
    found = np.ones(len(gram.units))
    found[own] += np.linalg.solve(matrix + ridge * np.eye(len(matrix)), missing)
    return found
