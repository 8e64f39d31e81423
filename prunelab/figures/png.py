"""Arrays as pictures, and pictures as PNG data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from prunelab.errors import InvalidValue
from prunelab.figures.style import DROP, KEEP


def data_uri(picture: np.ndarray) -> str:
    """`picture`, in the form that `grey` takes, as a data URI."""
    return address(grey(picture))


def grey(picture: np.ndarray) -> np.ndarray:
    """`picture` [height, width], or [channels, height, width] with 1 or 3 channels, as bytes.

    Its smallest value becomes black, its largest white. Three channels are red, green and blue,
    and come last in what is given. Raises `InvalidValue` for another shape.
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
    return np.round(255 * (pixels - low) / ((high - low) or 1.0)).astype(np.uint8)


def shown(image: np.ndarray) -> np.ndarray:
    """An input [channels, height, width] as a picture; of 2 or over 3 channels, the first."""
    return grey(image if len(image) == 3 else image[0])


def signed(values: np.ndarray, most: float) -> np.ndarray:
    """Values [height, width]: vermilion at -most, white at 0, blue at most [height, width, 3]."""
    ends = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (DROP, KEEP)], float)
    share = np.clip(values / (most or 1), -1, 1)[..., None]
    colour = np.where(share < 0, ends[0], ends[1])
    return np.round(255 + np.abs(share) * (colour - 255)).astype(np.uint8)


def address(levels: np.ndarray) -> str:
    """Bytes [height, width] or [height, width, 3] as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png(levels)).decode()


def png(levels: np.ndarray) -> bytes:
    """Bytes [height, width], grey, or [height, width, 3], red, green and blue, as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG", optimize=True)
    return out.getvalue()
