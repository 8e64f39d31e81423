"""Kernels, feature maps and images as bytes that a page can show."""

from __future__ import annotations

import numpy as np

from prunelab.figures.style import DROP, KEEP


def grey(values: np.ndarray) -> np.ndarray:
    """Values [height, width] from black (least) to white (most), as bytes."""
    low, high = float(values.min()), float(values.max())
    return np.round(255 * (values - low) / ((high - low) or 1)).astype(np.uint8)


def signed(values: np.ndarray, most: float) -> np.ndarray:
    """Values [height, width]: vermilion at -most, white at 0, blue at most [height, width, 3]."""
    ends = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (DROP, KEEP)], float)
    share = np.clip(values / (most or 1), -1, 1)[..., None]
    colour = np.where(share < 0, ends[0], ends[1])
    return np.round(255 + np.abs(share) * (colour - 255)).astype(np.uint8)


def shown(image: np.ndarray) -> np.ndarray:
    """An input [channels, height, width] as a picture, whatever its scale."""
    if image.shape[0] == 3:
        return grey(image.reshape(3, -1)).reshape(image.shape).transpose(1, 2, 0)
    return grey(image[0])
