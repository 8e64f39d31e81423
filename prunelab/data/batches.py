"""`Data` (batches for training, validation and test), and functions on single batches.

Any re-iterable of batches is accepted; errors say why another object is not.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import chain, compress, islice
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
    Sampler,
    SequentialSampler,
)

from prunelab.data.private_random import private_random
from prunelab.errors import BadData, InvalidValue
from prunelab.values.given import as_annotated

HOLD = 4  # one of this many samples is held out
PIXELS = 16  # smaller images are never called blank


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


@as_annotated
def shuffled(batches: Iterable[Any], seed: int, part: int = 0, parts: int = 1) -> Iterator[Any]:
    """One pass over `batches` in an order drawn from `seed`, or over one of several parts of it.

    A DataLoader in sequential or random order is shuffled by a private generator. A custom sampler,
    an iterable dataset, and batches that are not a DataLoader's keep their own order.
    """
    return part_of(batches, part, parts, torch.Generator().manual_seed(seed))


def part_of(
    batches: Iterable[Any], part: int, parts: int, generator: torch.Generator | None = None
) -> Iterator[Any]:
    """Every batch whose number leaves `part` when divided by `parts`.

    Of a DataLoader in an order of its own or, with a `generator`, a random one, no others are read.
    """
    if not (isinstance(batches, DataLoader) and _reorderable(batches)):
        return islice(batches, part, None, parts)
    order, dataset = batches.sampler, batches.dataset
    if generator is not None:
        order = RandomSampler(dataset, generator=generator)  # type: ignore[arg-type]
    elif type(order) is not SequentialSampler:
        return islice(batches, part, None, parts)
    every = BatchSampler(order, batches.batch_size or 1, batches.drop_last)
    return iter(
        DataLoader(
            batches.dataset,
            batch_sampler=_Part(every, part, parts),
            num_workers=batches.num_workers,
            collate_fn=batches.collate_fn,
            pin_memory=batches.pin_memory,
            timeout=batches.timeout,
            worker_init_fn=batches.worker_init_fn,
            multiprocessing_context=batches.multiprocessing_context,
            generator=generator or batches.generator,
        )
    )


@dataclass(frozen=True)
class _Part(Sampler[list[int]]):
    """Every so many of a sampler's batches, in its order."""

    every: BatchSampler
    part: int
    parts: int

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self.every, self.part, None, self.parts)

    def __len__(self) -> int:
        return len(range(self.part, len(self.every), self.parts))


@as_annotated
def take(batches: Iterable[Any], images: int) -> Iterator[Any]:
    """The batches that hold the first `images` samples, the last one truncated.

    Samples are counted by `batch_size`; a batch that is not `divisible` stays whole.
    """
    if images < 1:
        raise InvalidValue(f"images is a whole number from 1 up, not {images}.")
    for batch in batches:
        size = batch_size(batch)
        if size >= images:
            yield selected(batch, torch.arange(size) < images) if size > images else batch
            return
        images -= size
        yield batch


def held_out(start: int, size: int) -> Tensor:
    """Mask of the samples that are held out to judge a fit [size]; the first is number `start`."""
    return torch.arange(start, start + size) % HOLD == HOLD - 1


def part(batches: Iterable[Any], held: bool) -> Iterator[Any]:
    """The batches without the held-out samples or, with `held`, those samples alone."""
    return (some.batch for some in apart(batches) if some.held == held)


def nonempty(batches: Iterable[Any]) -> Iterator[Any] | None:
    """An iterator over the batches, or None if there are none."""
    iterator = iter(batches)
    first = next(iterator, None)
    return None if first is None else chain([first], iterator)


class Part(NamedTuple):
    """The held-out samples of a batch, or the others.

    The batch holds the samples from `start` up to, but not including, `stop`.
    """

    start: int
    stop: int
    batch: Any
    held: bool


def apart(batches: Iterable[Any], hold: bool = True) -> Iterator[Part]:
    """Yield, for each batch, the samples that are not held out and those that are.

    Without `hold` none are. Of indivisible batches, one in HOLD is held out as a whole.
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
    """The number of samples in a batch.

    A batch is a tensor, or a tuple, list or mapping of columns: tensors, lists with one entry per
    sample (such as images of different sizes), or several inputs in a tuple or mapping. A list of
    mappings is a list of samples. For any other type the first tensor in it counts.
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
            return each  # several inputs, each with this many samples
    return lengths[0]


def agreed_size(batch: Any) -> int | None:
    """The number of samples in a batch of which two columns or more hold as many; else None."""
    if _is_listed(batch):
        return len(batch)
    columns = _columns(batch) if divisible(batch) else []
    lengths = [length for column in columns if (length := _length_of(column)) is not None]
    return lengths[0] if len(lengths) > 1 and len(set(lengths)) == 1 else None


def sample_lists(batch: Any) -> list[Any]:
    """The lists in a batch that have one entry for each sample, such as images of other sizes."""
    if _is_listed(batch):
        return [batch]
    size = batch_size(batch)
    return [column for column in _columns(batch) if _lists(column, size)]


def _length_of(column: Any) -> int | None:
    if isinstance(column, Tensor):
        return len(column) if column.ndim else None
    if isinstance(column, MutableMapping):
        lengths = map(_length_of, column.values())
        return next((length for length in lengths if length is not None), None)
    return len(column) if isinstance(column, list | tuple) else None


def divisible(batch: Any) -> bool:
    """Whether a batch can be split into samples; instances of the user's own classes cannot."""
    return isinstance(batch, Tensor | list | tuple | MutableMapping)


def selected(batch: Any, samples: Tensor) -> Any:
    """The samples of a batch where a mask [samples] is true; other columns stay whole."""
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
    """Whether a column is a list of `size` samples, and not of inputs with `size` samples each."""
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


def _reorderable(loader: DataLoader[Any]) -> bool:
    """Whether its samples may be put in another order."""
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
