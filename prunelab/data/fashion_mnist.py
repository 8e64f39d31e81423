"""Fashion-MNIST as bytes: the subset that ships, and the full set where it is installed.

Xiao, Rasul & Vollgraf, 2017; 28x28 grey images of ten kinds of clothing. `prunelab doctor` checks
whether the full set is installed, so numpy is imported only where images are read.
"""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from prunelab.errors import BadData

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
MEAN, STD = 0.2860, 0.3530
TRAIN, VAL, TEST = 4000, 1000, 1500  # images of the shipped subset
ASSET = "fashion-mnist.npy.xz"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist

IMAGES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
LABELS = {"train": "train-labels-idx1-ubyte", "test": "t10k-labels-idx1-ubyte"}


@dataclass(frozen=True, slots=True, eq=False)
class OfficialSplit:
    """Images [N, 28, 28] and labels [N] of one split, both uint8, in the official order."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def cut(self, start: int, stop: int | None = None) -> OfficialSplit:
        """The images from `start` up to `stop`."""
        return OfficialSplit(self.images[start:stop], self.labels[start:stop])


def find(root: str | Path | None = None) -> Path | None:
    """The folder with the four files of the full set, or None.

    `root` is such a folder or a torchvision root; None means Debian's folder.
    """
    given = DEBIAN if root is None else Path(root)
    for folder in (given, given / "FashionMNIST" / "raw"):
        if all(_file(folder, name) for name in (*IMAGES.values(), *LABELS.values())):
            return folder
    return None


def full(folder: Path) -> tuple[OfficialSplit, OfficialSplit]:
    """All 60,000 training and 10,000 test images in `folder`."""
    train, test = (
        OfficialSplit(_read(folder, IMAGES[part]), _read(folder, LABELS[part]))
        for part in ("train", "test")
    )
    return train, test


def subset() -> tuple[OfficialSplit, OfficialSplit]:
    """The first 4,000 official training images and 2,500 test images, which ship with prunelab."""
    import numpy as np

    packed = (resources.files("prunelab") / "assets" / ASSET).read_bytes()
    rows = np.load(io.BytesIO(lzma.decompress(packed)), allow_pickle=False)
    part = OfficialSplit(rows[:, 1:].reshape(-1, 28, 28).transpose(0, 2, 1), rows[:, 0])
    return part.cut(0, TRAIN), part.cut(TRAIN)


def _file(folder: Path, name: str) -> Path | None:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    return None


def _read(folder: Path, name: str) -> NDArray[np.uint8]:
    import numpy as np

    path = _file(folder, name)
    assert path is not None
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        dims = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(dims)).reshape(dims)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise BadData(
            f"{path} is not a readable IDX file ({error}); it may be incomplete. "
            'Delete it and fetch it again, or use load("fashion", subset=True).'
        ) from None
