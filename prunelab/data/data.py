"""`Data`: batches for training, validation and test.

Any re-iterable of batches is accepted; errors say why another object is not.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prunelab.data.private_random import private_random
from prunelab.data.shuffling import shuffled
from prunelab.errors import BadData, InvalidValue
from prunelab.values.given import as_annotated


@as_annotated
class Data:
    """Three re-iterables of batches: `train`, `val` and `test`.

    Parameters
    ----------
    train, val, test
        Re-iterables of batches, such as a DataLoader or a list of (images, labels); a torch
        Dataset is wrapped in a DataLoader that does not shuffle. Without `test`, reports use
        `val`, and `test_is_val` is True.
    classes
        The names of the classes.
    input_shape
        The shape of one input, without the batch axis; None takes that of the first batch.
    batch_size
        For Datasets.
    name
        The name of the data in reports.
    """

    def __init__(
        self,
        train: Any,
        val: Any,
        test: Any = None,
        classes: Iterable[str] | None = None,
        input_shape: Iterable[int] | None = None,
        *,
        batch_size: int = 128,
        name: str = "your data",
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InvalidValue(f"batch_size={batch_size!r}: it must be a whole number from 1 up.")
        self.name = name
        self.train = _batches(train, "train", batch_size)
        self.val = _batches(val, "val", batch_size)
        self.test_is_val = test is None
        self.test = self.val if test is None else _batches(test, "test", batch_size)
        self.classes = None if classes is None else tuple(str(kind) for kind in classes)
        first = _first(self.train, "train")
        self.input_shape = _shape(first) if input_shape is None else tuple(input_shape)

    @as_annotated
    def shuffled(self, seed: int, part: int = 0, parts: int = 1) -> Iterator[Any]:
        """One pass over the training batches in an order drawn from `seed`; see `shuffled`."""
        return shuffled(self.train, seed, part, parts)

    def __repr__(self) -> str:
        parts = [f"train {_size(self.train)}", f"val {_size(self.val)}"]
        parts.append("test = val" if self.test_is_val else f"test {_size(self.test)}")
        return f"Data({self.name}: {', '.join(parts)})"


def _batches(given: Any, part: str, batch_size: int) -> Iterable[Any]:
    """`given` as a re-iterable of batches, with at least one."""
    if isinstance(given, Dataset):
        # Its own generator, so that iterating does not draw from the global one.
        given = DataLoader(given, batch_size=batch_size, generator=torch.Generator())
    if isinstance(given, str | bytes | dict | Tensor) or not hasattr(given, "__iter__"):
        raise BadData(
            f"{part}= is {type(given).__name__}; it must be a DataLoader, a torch Dataset, or a "
            "re-iterable of (images, labels) batches, such as a list of them."
        )
    if not isinstance(given, DataLoader) and iter(given) is iter(given):
        raise BadData(
            f"{part}= is a one-shot {type(given).__name__}: it yields its batches once, and "
            "prunelab reads them many times. Give list(...) of it, a DataLoader, or an object "
            "whose __iter__ starts again."
        )
    if _length(given) == 0:
        raise BadData(
            f"{part}= has no batches. Is its dataset empty, or smaller than one batch with "
            "drop_last=True?"
        )
    if _length(given) is None:
        _first(given, part)
    return given


def _first(batches: Iterable[Any], part: str) -> Any:
    """The first batch; the global random generators stay unchanged."""
    with _rng_kept():
        for batch in batches:
            return batch
    raise BadData(f"{part}= has no batches: iterating over it yielded nothing.")


@contextmanager
def _rng_kept() -> Iterator[None]:
    """Draw PyTorch's numbers privately; restore Python's and NumPy's generators afterwards."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with private_random():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:  # a DataLoader over an iterable dataset has __len__ and raises this
        return None


def _shape(batch: Any) -> tuple[int, ...] | None:
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor):
        return tuple(batch[0].shape[1:])
    return None


def _size(batches: Any) -> str:
    if isinstance(batches, DataLoader) and (images := _length(batches.dataset)) is not None:
        return f"{images:,} images"
    count = _length(batches)
    return "batches" if count is None else f"{count:,} batches"
