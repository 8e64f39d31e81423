"""ThiNet's sample: a few images of every class, a few scalars of the consumer's output of each.

A scalar is one output channel at one position, both drawn at random, so it is the sum of one
number per input channel (Luo, Wu, Lin; ICCV 2017; released code: 10 images a class, 10 scalars
an image). May import calls, errors, moments, contribution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from prunelab.calls import Call
from prunelab.errors import BadData
from prunelab.evidence.contribution import contributions
from prunelab.evidence.moments import patches


def sampled_rows(
    call: Call,
    columns: Tensor,
    count: int,
    scale: Tensor | None,
    positions: int,
    generator: torch.Generator,
) -> Tensor:
    """What each unit contributes to `positions` scalars of every input's output [rows, count].

    `columns`, `count` and `scale` are as in `call_gram`. Drawn with replacement, as released.
    """
    weight = call.weight.detach()
    if call.conv is not None and call.conv.transposed:
        z = contributions(call, columns, count, scale).flatten(2).permute(1, 2, 0)
        image, scalar = _drawn(len(z), z.shape[1], positions, generator)
        return z[image, scalar].double()
    rows = patches(call.x, tuple(weight.shape[2:]), call.conv)
    places = len(rows) // len(call.x)
    image, scalar = _drawn(len(call.x), places * len(weight), positions, generator)
    place, output = scalar // len(weight), scalar % len(weight)
    products = rows[image * places + place] * weight.reshape(len(weight), -1)[output]
    if scale is not None:
        products = products * scale[output, None]
    by_channel = products.view(len(products), len(columns), -1).sum(2, dtype=torch.float64)
    found = torch.zeros(len(products), count, dtype=torch.float64, device=rows.device)
    return found.index_add_(1, columns, by_channel)


def _drawn(
    images: int, scalars: int, positions: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """For each of `images` inputs which of its `scalars`, `positions` times."""
    drawn = torch.randint(scalars, (images * positions,), generator=generator)
    return torch.arange(images).repeat_interleave(positions), drawn


def stratified(batches: Iterable[Any], per_class: int) -> Iterator[Any]:
    """The first `per_class` images of every class that come, as batches of (images, labels).

    Reads `batches` to the end, as the classes are not known before. Raises `BadData` for batches
    without class indices.
    """
    seen: Counter[int] = Counter()
    for batch in batches:
        labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
        if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
            raise BadData(
                "Images can be counted by class only in batches of (images, class indices); "
                "leave per_class=None for other batches."
            )
        chosen = []
        for index, label in enumerate(labels.tolist()):
            if seen[label] < per_class:
                seen[label] += 1
                chosen.append(index)
        if chosen:
            yield batch[0][chosen], labels[chosen]
