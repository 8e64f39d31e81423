"""A picture as a PNG in a data URI: small enough to stand in a page."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from prunelab.errors import InvalidValue


def data_uri(picture: np.ndarray) -> str:
    """`picture` [height, width], or [channels, height, width] with 1 or 3 channels.

    Its smallest value becomes black, its largest white. Raises `InvalidValue` for another shape.
    """
    pixels = np.asarray(picture, dtype=np.float32)
    if pixels.ndim == 3 and len(pixels) in (1, 3):
        pixels = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    elif pixels.ndim != 2:
        raise InvalidValue(
            "A picture is [height, width], or [channels, height, width] with 1 or 3 channels; "
            f"not {list(pixels.shape)}."
        )
    low, high = float(pixels.min()), float(pixels.max())
    levels = np.round(255 * (pixels - low) / ((high - low) or 1.0)).astype(np.uint8)
    return address(levels)


def address(levels: np.ndarray) -> str:
    """Bytes [height, width] or [height, width, 3] as an address that holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(png(levels)).decode()


def png(levels: np.ndarray) -> bytes:
    """Bytes [height, width], grey, or [height, width, 3], red, green and blue, as a PNG file."""
    height, width = levels.shape[:2]
    kind = 0 if levels.ndim == 2 else 2  # grey, or red, green and blue
    rows = levels.reshape(height, -1)
    data = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(data, 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
