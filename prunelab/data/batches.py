"""`Data`: training batches for evidence, val for decisions, test for reports.

Takes whatever gives its batches again and again, and says what is wrong with what does not. May
import errors and torch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import chain, compress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from prunelab.data.private_random import private_random
from prunelab.errors import BadData, InvalidValue

HOLD = 4  # of so many samples one is held out
PIXELS = 16  # of an image at least, to say that it is blank


class Data:
    """Three re-iterables of batches: `train`, `val` and `test`.

    Parameters
    ----------
    train, val, test
        Anything that gives its batches every time it is iterated, such as a DataLoader or a list
        of (images, labels); a torch Dataset is put into a DataLoader that does not shuffle.
        Without `test`, reports are made on `val`, and `test_is_val` is True.
    classes
        The names of the classes.
    input_shape
        The shape of one input, without the batch; looked up in the first batch when not given.
    batch_size
        For Datasets.
    name
        What the data is called in reports.
    """

    def __init__(
        self,
        train: Iterable[Any] | Dataset[Any],
        val: Iterable[Any] | Dataset[Any],
        test: Iterable[Any] | Dataset[Any] | None = None,
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

    def shuffled(self, seed: int) -> Iterator[Any]:
        """One pass over the training batches in an order drawn from `seed`; see `shuffled`."""
        return shuffled(self.train, seed)

    def __repr__(self) -> str:
        parts = [f"train {_size(self.train)}", f"val {_size(self.val)}"]
        parts.append("test = val" if self.test_is_val else f"test {_size(self.test)}")
        return f"Data({self.name}: {', '.join(parts)})"


def shuffled(batches: Iterable[Any], seed: int) -> Iterator[Any]:
    """One pass over `batches` in an order drawn from `seed`.

    A DataLoader in plain or random order is drawn anew from a private generator. One with a
    sampler of its own, an iterable dataset, or batches that are no DataLoader's come in the order
    that they give themselves.
    """
    if not (isinstance(batches, DataLoader) and _reorderable(batches)):
        return iter(batches)
    return iter(
        DataLoader(
            batches.dataset,
            batch_size=batches.batch_size,
            shuffle=True,
            num_workers=batches.num_workers,
            collate_fn=batches.collate_fn,
            pin_memory=batches.pin_memory,
            drop_last=batches.drop_last,
            timeout=batches.timeout,
            worker_init_fn=batches.worker_init_fn,
            multiprocessing_context=batches.multiprocessing_context,
            generator=torch.Generator().manual_seed(seed),
        )
    )


def take(batches: Iterable[Any], images: int) -> Iterator[Any]:
    """The batches that hold the first `images` samples, the last of them cut to size.

    What counts as a sample says `batch_size`; a batch that `divisible` says no to stays whole.
    """
    for batch in batches:
        size = batch_size(batch)
        if size >= images:
            yield selected(batch, torch.arange(size) < images) if size > images else batch
            return
        images -= size
        yield batch


def held_out(start: int, size: int) -> Tensor:
    """Which of `size` samples are not fitted but judge the fit, the first being sample `start`."""
    return torch.arange(start, start + size) % HOLD == HOLD - 1


def part(batches: Iterable[Any], held: bool) -> Iterator[Any]:
    """The batches without the samples that are held out, or these alone."""
    return (some.batch for some in apart(batches) if some.held == held)


def nonempty(batches: Iterable[Any]) -> Iterator[Any] | None:
    """An iterator over the batches, or None if there are none."""
    iterator = iter(batches)
    first = next(iterator, None)
    return None if first is None else chain([first], iterator)


class Part(NamedTuple):
    """Those samples of a batch that are held out, or the others.

    The batch began at sample `start` and ended before `stop`.
    """

    start: int
    stop: int
    batch: Any
    held: bool


def apart(batches: Iterable[Any], hold: bool = True) -> Iterator[Part]:
    """Of one batch after the other the samples that are not held out, and those that are.

    Without `hold` none is. Of batches that cannot be divided one in HOLD is held out whole.
    """
    start = undivided = 0
    for batch in batches:
        stop = start + batch_size(batch)
        held = held_out(start, stop - start) & hold
        if not divisible(batch):
            held[:] = bool(held_out(undivided, 1)) and hold
            undivided += 1
        for judges in (False, True):
            wanted = held == judges
            if bool(wanted.any()):
                some = batch if bool(wanted.all()) else selected(batch, wanted)
                yield Part(start, stop, some, judges)
        start = stop


def usable(batch: Any) -> tuple[Any, Counter[str]]:
    """A batch without broken and blank images (None: nothing is left), and how many there were.

    Images are what comes first among the floating-point tensors. "nan" are those with NaN or
    infinity; "blank" are those of one colour all over, which are told from what a network is for
    by being few: where they are half of a batch or more, they stay.
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
    for column in _columns(batch) if divisible(batch) else ():
        if _lists(column, size):
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


def batch_size(batch: Any) -> int:
    """How many samples a batch holds.

    A batch is a tensor, or a tuple, list or mapping of columns: tensors, lists with one entry a
    sample (images of their own sizes, say), or several inputs in a tuple or mapping. A list of
    mappings is one of samples. Of anything else the first tensor in it counts.
    """
    if _is_listed(batch):
        return len(batch)
    columns = _columns(batch)
    lengths = [length for column in columns if (length := _length_of(column)) is not None]
    if not lengths:
        leaves = (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim)
        return next((len(leaf) for leaf in leaves), 1)
    first = next(column for column in columns if _length_of(column) is not None)
    if isinstance(first, list | tuple) and lengths[0] not in lengths[1:]:
        each = batch_size(first)
        if each in lengths[1:]:
            return each  # several inputs: as many samples as each of them has
    return lengths[0]


def _length_of(column: Any) -> int | None:
    if isinstance(column, Tensor):
        return len(column) if column.ndim else None
    if isinstance(column, MutableMapping):
        lengths = map(_length_of, column.values())
        return next((length for length in lengths if length is not None), None)
    return len(column) if isinstance(column, list | tuple) else None


def divisible(batch: Any) -> bool:
    """Whether samples can be taken out of a batch: not out of a class of somebody's own."""
    return isinstance(batch, Tensor | list | tuple | MutableMapping)


def selected(batch: Any, samples: Tensor) -> Any:
    """The samples of a batch that a mask [samples] marks; columns of another length stay whole."""
    if isinstance(batch, Tensor) or _is_listed(batch):
        return _of_column(batch, samples)
    if isinstance(batch, MutableMapping):
        made = copy(batch)
        made.update({name: _of_column(column, samples) for name, column in batch.items()})
        return made
    if isinstance(batch, list | tuple):
        columns = [_of_column(column, samples) for column in batch]
        return type(batch)(*columns) if hasattr(batch, "_fields") else type(batch)(columns)
    return batch


def _of_column(column: Any, samples: Tensor) -> Any:
    if isinstance(column, Tensor):
        whole = column.ndim and len(column) == len(samples)
        return column[samples.to(column.device)] if whole else column
    if _lists(column, len(samples)):
        return type(column)(compress(column, samples.tolist()))
    return selected(column, samples)


def _lists(column: Any, size: int) -> bool:
    """Whether a column is a list of `size` samples, not of inputs that hold as many each."""
    if not isinstance(column, list | tuple) or hasattr(column, "_fields"):
        return False
    if not column or len(column) != size:
        return False
    inputs = (isinstance(one, Tensor) and one.ndim > 3 and len(one) == size for one in column)
    return not all(inputs)


def _is_listed(batch: Any) -> bool:
    """Whether a batch is a list of samples, each a mapping."""
    some = isinstance(batch, list | tuple) and bool(batch)
    return some and all(isinstance(sample, MutableMapping) for sample in batch)


def _columns(batch: Any) -> list[Any]:
    if isinstance(batch, MutableMapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, list | tuple) else [batch]


def _batches(given: Any, part: str, batch_size: int) -> Iterable[Any]:
    """`given` as a re-iterable of batches, with at least one."""
    if isinstance(given, Dataset):
        # The private generator keeps an iteration from drawing on the global one.
        given = DataLoader(given, batch_size=batch_size, generator=torch.Generator())
    if isinstance(given, str | bytes | dict | Tensor) or not hasattr(given, "__iter__"):
        raise BadData(
            f"{part}= is {type(given).__name__}; it must be a DataLoader, a torch Dataset, or "
            "anything that gives (images, labels) batches every time it is iterated, such as a "
            "list of them."
        )
    if not isinstance(given, DataLoader) and iter(given) is iter(given):
        raise BadData(
            f"{part}= is a one-shot {type(given).__name__}: it gives its batches once, and "
            "prunelab reads them many times. Hand over list(...) of it, a DataLoader, or an "
            "object whose __iter__ starts anew."
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
    """The first batch; the global random generators are left as they were."""
    with _rng_kept():
        for batch in batches:
            return batch
    raise BadData(f"{part}= has no batches: iterating it gave nothing at all.")


@contextmanager
def _rng_kept() -> Iterator[None]:
    """PyTorch draws privately; Python's and NumPy's generators, which cannot, are put back."""
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


def _reorderable(loader: DataLoader[Any]) -> bool:
    """Whether another order of its samples is as good as the one that it has."""
    sampler = loader.sampler
    plain = type(sampler) is SequentialSampler
    drawn = type(sampler) is RandomSampler and not sampler.replacement and _all_of(sampler)
    return (
        not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
        and (plain or drawn)
    )


def _all_of(sampler: RandomSampler) -> bool:
    return sampler.num_samples == len(sampler.data_source)
