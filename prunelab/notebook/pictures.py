"""Small pictures as PNG, written by numpy and zlib alone."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence

import numpy as np

from prunelab.figures.style import DROP, KEEP


def png(pixels: np.ndarray) -> bytes:
    """A picture [height, width] or [height, width, 3] of bytes as a PNG file."""
    height, width = pixels.shape[:2]
    kind = 0 if pixels.ndim == 2 else 2  # grey, or red green blue
    lines = pixels.astype(np.uint8).reshape(height, -1)
    raw = np.hstack([np.zeros((height, 1), np.uint8), lines]).tobytes()  # filter 0 on every line
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def address(pixels: np.ndarray) -> str:
    """A picture as an address that a page shows without asking anybody."""
    return "data:image/png;base64," + b64encode(png(pixels)).decode()


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


def apart(pictures: Sequence[np.ndarray], least: int) -> int:
    """By how much to enlarge pictures so that each is at least `least` px wide."""
    return max(1, -(-least // max(picture.shape[1] for picture in pictures)))
