"""ThiNet's training examples as released: a few scalars of the next layer's output an image.

A scalar is one output channel at one position, both drawn at random, so it is the sum of one
number x_c for each input channel (Luo, Wu, Lin; ICCV 2017, section 3.2; released code: 10 images a
class, 10 scalars an image). One pass over all scalars gives G exactly, which is the default; this
is the published estimate of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from prunelab.errors import BadData
from prunelab.evidence.few_positions import (
    CreateAccumulator,
    patches_at,
    positions_per_image,
)
from prunelab.evidence.gram_accumulators import StoredGram
from prunelab.evidence.patch_correlation import symmetric_product
from prunelab.evidence.unit_sums import by_unit, contributions
from prunelab.graph.labels.layer_calls import Call, Conv


def iter_stratified(batches: Iterable[Any], per_class: int) -> Iterator[Any]:
    """Yield the first `per_class` images of every class, as batches of (images, labels).

    Reads `batches` to the end, because the classes are not known in advance. Raises `BadData` for
    batches without class indices.
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


def scalar_samples(number: int, seed: int) -> CreateAccumulator:
    """What creates accumulators of `number` scalars of every image, drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)

    def create(call: Call, columns: Tensor, count: int, scale: Tensor | None) -> ScalarSamples:
        return ScalarSamples(call, columns, count, scale, number, generator)

    return create


class ScalarSamples(StoredGram):
    """G and sums [count, 1] of what each unit contributes to `number` scalars of every image.

    The other parameters are those of `GramAccumulator`.
    """

    def __init__(
        self,
        call: Call,
        columns: Tensor,
        count: int,
        scale: Tensor | None,
        number: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(call, columns, count, scale, out=1)
        self.number = number
        self.generator = generator

    def add(self, x: Tensor) -> None:
        """Add one call."""
        rows, scalars = scalar_rows(
            x.to(self.weight.dtype), self.weight, self.conv, self.columns, self.count,
            self.number, self.generator,
        )  # fmt: skip
        share = self.number / scalars
        self._gram += symmetric_product(rows.T) / share
        self._sums += rows.sum(0, dtype=torch.float64)[:, None] / share
        self.rows += len(x) * scalars


def scalar_rows(
    x: Tensor,
    weight: Tensor,
    conv: Conv | None,
    columns: Tensor,
    count: int,
    number: int,
    generator: torch.Generator,
) -> tuple[Tensor, int]:
    """Draw scalars of a layer's output and split each into its units' contributions.

    Parameters
    ----------
    x, weight, conv
        The layer's input, its weight and how the convolution is applied (None: linear).
    columns, count
        The row of each input channel's unit and how many rows there are, see `GramAccumulator`.
    number
        Scalars to draw for each image, with replacement as in the released code.
    generator
        What draws them.

    Returns
    -------
    tuple of Tensor and int
        The contributions x_c [images * number, count], and how many scalars an image's output has.
    """
    if conv is not None and conv.transposed:
        z = contributions(x, weight, conv, columns, count).flatten(2).permute(1, 2, 0)
        image, scalar = draw_scalars(len(z), z.shape[1], number, generator)
        return z[image, scalar], z.shape[1]
    scalars = positions_per_image(x, weight, conv) * len(weight)
    _, scalar = draw_scalars(len(x), scalars, number, generator)
    at, output = (a.view(len(x), -1) for a in (scalar // len(weight), scalar % len(weight)))
    found = patches_at(x, tuple(weight.shape[2:]), conv, at)
    kernels = weight.flatten(2) if weight.ndim > 2 else weight[..., None]
    by_channel = torch.einsum("ncpk,npck->cnp", found, kernels[output.to(x.device)])
    return by_unit(by_channel.flatten(1), columns, count).T, scalars


def draw_scalars(
    images: int, scalars: int, number: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw scalars with replacement.

    Parameters
    ----------
    images, scalars
        How many images there are, and how many scalars the output has for each.
    number
        How many to draw for each image.
    generator
        What draws them.

    Returns
    -------
    tuple of Tensor
        Image indices and scalar indices, both [images * number].
    """
    drawn = torch.randint(scalars, (images * number,), generator=generator)
    return torch.arange(images).repeat_interleave(number), drawn
