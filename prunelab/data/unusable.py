"""Broken and blank images, which are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunelab.data.batches import batch_size, columns_of, divisible, is_sample_list, selected

PIXELS = 16  # smaller images are never called blank


def usable(batch: Any) -> tuple[Any, Counter[str]]:
    """A batch without broken and blank images (None: none is left), and the number of each.

    The images are the first floating-point tensors of the batch. "nan" counts those with NaN or
    infinity; "blank" counts those of a single colour. Blank images are kept where they are half of
    the batch or more, because they are then normal for this data.
    """
    size = batch_size(batch)
    images = _images(batch, size)
    if images is None:
        return batch, Counter()
    broken = torch.tensor([not bool(torch.isfinite(image).all()) for image in images])
    blank = torch.tensor([_blank(image) for image in images]) & ~broken
    if 2 * int(blank.sum()) >= size:
        blank = torch.zeros_like(blank)
    found = Counter({"nan": int(broken.sum()), "blank": int(blank.sum())})
    if not found.total():
        return batch, found
    good = ~(broken | blank)
    return (selected(batch, good) if bool(good.any()) else None), found


def _images(batch: Any, size: int) -> Tensor | Sequence[Tensor] | None:
    """The first column of floating-point tensors, one for each of `size` samples."""
    if isinstance(batch, Tensor):
        there = batch.is_floating_point() and batch.ndim and len(batch) == size
        return batch if there else None
    for column in columns_of(batch) if divisible(batch) else ():
        if is_sample_list(column, size):
            first = column[0]
            images = column if isinstance(first, Tensor) and first.is_floating_point() else None
        else:
            images = _images(column, size)
        if images is not None:
            return images
    return None


def _blank(image: Tensor) -> bool:
    """Whether each channel of an image [channels, *positions] has one value at all positions."""
    if image.ndim < 2 or image[0].numel() < PIXELS:
        return False
    flat = image.flatten(1)
    return bool((flat.amax(1) == flat.amin(1)).all())
