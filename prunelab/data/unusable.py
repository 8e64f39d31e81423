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
    if images is None or not size:
        return batch, Counter()
    parts = [images] if isinstance(images, Tensor) else [image[None] for image in images]
    broken = torch.cat([_broken(part) for part in parts]).cpu()
    blank = torch.cat([_blank(part) for part in parts]).cpu() & ~broken
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


def _broken(images: Tensor) -> Tensor:
    """Whether each of the images [images, ...] holds NaN or infinity [images]."""
    return ~torch.isfinite(images).unsqueeze(-1).flatten(1).all(1)


def _blank(images: Tensor) -> Tensor:
    """Whether each channel of an image [images, channels, *positions] has one value [images]."""
    if images.ndim < 3 or images.shape[2:].numel() < PIXELS:
        return torch.zeros(len(images), dtype=torch.bool, device=images.device)
    flat = images.flatten(2)
    return (flat.amax(2) == flat.amin(2)).all(1)
