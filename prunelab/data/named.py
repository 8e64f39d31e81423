"""Named sets of labelled images, including those that ship: `load("fashion")`.

Nothing is downloaded unless the caller says `download=True`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from prunelab.data import fashion_mnist as fashion
from prunelab.data.batches import take
from prunelab.data.data import Data
from prunelab.data.shuffling import shuffled
from prunelab.errors import BadData, InvalidValue, UnknownName
from prunelab.values.given import as_annotated

__all__ = ["Data", "Images", "load", "shuffled", "take"]


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images kept as bytes [N, C, H, W] and normalised as they are fetched; labels [N].

    `mean` and `std` are per channel, in the units of the bytes.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.images = images
        self.labels = labels.long()
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return (self.images[index] - self.mean) / self.std, self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """The images of a batch, for a DataLoader, with one normalisation instead of many."""
        images, labels = self[indices]  # type: ignore[index]
        return list(zip(images, labels, strict=True))


@as_annotated
def load(
    name: str,
    root: str | Path | None = None,
    subset: bool | None = None,
    batch_size: int = 128,
    download: bool = False,
) -> Data:
    """A named set of images, normalised, in a fixed order.

    Parameters
    ----------
    name
        "fashion" (Fashion-MNIST, 1x28x28), "cifar10" (3x32x32) or "digits" (scikit-learn's 8x8
        digits enlarged to 1x28x28, the input size of the zoo networks).
    root
        A torchvision root; for "fashion" also a folder with the four official files.
    subset
        For "fashion": True is the subset that ships with prunelab, False the full set, None the
        full set if `root` or Debian's dataset-fashion-mnist has it, otherwise the subset. Both
        come from the official splits: `val` is the first 1,000 test images in either case, `test`
        the next 1,500 (subset) or the other 9,000 (full set).
    batch_size
        Images in a batch.
    download
        Download a missing set into `root`. Without it, nothing is ever downloaded.

    Raises `UnknownName` for another name, `InvalidValue` for arguments that do not go together,
    `BadData` where the set is missing or cannot be read.
    """
    if name not in LOADERS:
        raise UnknownName("data set", name, LOADERS)
    if download and root is None:
        raise InvalidValue(
            f'download=True needs root=: load({name!r}, root="a/folder", download=True).'
        )
    return LOADERS[name](root, subset, batch_size, download)


def _fashion(root: str | Path | None, subset: bool | None, batch_size: int, download: bool) -> Data:
    folder = None if subset else fashion.find(root)
    if folder is None and download and not subset:
        folder = _download_fashion(Path(str(root)))
    if folder is None and not subset and (root is not None or subset is False):
        place = f"in {root}" if root is not None else "on this machine"
        raise BadData(
            f"The full Fashion-MNIST is not {place}. Install Debian's dataset-fashion-mnist, name "
            "the folder of the four official files or a torchvision root with root=, add "
            'download=True, or take the subset that ships: load("fashion", subset=True).'
        )
    train, test = fashion.subset() if folder is None else fashion.full(folder)
    kind = "the shipped subset" if folder is None else "the full set"
    sets = [
        Images(
            torch.from_numpy(part.images.copy())[:, None],
            torch.from_numpy(part.labels.copy()),
            [255 * fashion.MEAN],
            [255 * fashion.STD],
        )
        for part in (train, test.cut(0, fashion.VAL), test.cut(fashion.VAL))
    ]
    return _three(f"Fashion-MNIST, {kind}", sets, fashion.CLASSES, batch_size)


def _download_fashion(root: Path) -> Path | None:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(root, download=True)
    except (RuntimeError, OSError) as error:
        raise BadData(
            f"Fashion-MNIST could not be downloaded into {root}: {error}. The subset that ships "
            'needs no network: load("fashion", subset=True).'
        ) from None
    return fashion.find(root)


def _cifar10(root: str | Path | None, subset: bool | None, batch_size: int, download: bool) -> Data:
    """CIFAR-10 (Krizhevsky, 2009): val is the first 5,000 test images, test the rest."""
    from torchvision.datasets import CIFAR10

    _whole("cifar10", subset)
    if root is None:
        raise InvalidValue('load("cifar10") needs a torchvision root: root="a/folder".')
    try:
        train, test = (CIFAR10(root, train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError) as error:
        raise BadData(
            f"CIFAR-10 is not in {root} ({error}). Name the folder that holds "
            "cifar-10-batches-py, or add download=True."
        ) from None
    sets = [
        Images(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(part.targets),
            [255 * mean for mean in (0.4914, 0.4822, 0.4465)],
            [255 * std for std in (0.2470, 0.2435, 0.2616)],
        )
        for part in (train, test)
    ]
    sets = [sets[0], _cut(sets[1], 0, 5000), _cut(sets[1], 5000, None)]
    return _three("CIFAR-10", sets, train.classes, batch_size)


def _digits(root: str | Path | None, subset: bool | None, batch_size: int, download: bool) -> Data:
    """The 1,797 digits of scikit-learn: 1,197 for train, 300 for val, 300 for test."""
    from sklearn.datasets import load_digits

    _whole("digits", subset)
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    images = F.interpolate(images, size=(28, 28), mode="nearest")
    every = Images(images, torch.from_numpy(bunch.target), [4.88], [6.02])  # pixels are 0 to 16
    sets = [_cut(every, 0, 1197), _cut(every, 1197, 1497), _cut(every, 1497, None)]
    return _three("digits", sets, map(str, range(10)), batch_size)


LOADERS = {"fashion": _fashion, "cifar10": _cifar10, "digits": _digits}


def _whole(name: str, subset: bool | None) -> None:
    if subset:
        raise InvalidValue(f'subset=True is for "fashion"; {name!r} has only the whole set.')


def _cut(images: Images, start: int, stop: int | None) -> Images:
    part = Images(images.images[start:stop], images.labels[start:stop], (), ())
    part.mean, part.std = images.mean, images.std
    return part


def _three(name: str, sets: Sequence[Images], classes: Iterable[str], batch_size: int) -> Data:
    train, val, test = sets
    return Data(train, val, test, classes=classes, batch_size=batch_size, name=name)
