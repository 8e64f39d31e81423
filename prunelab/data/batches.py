"""Functions on batches: their sizes, their samples, the first few of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from copy import copy
from itertools import chain, compress
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from prunelab.errors import InvalidValue
from prunelab.values.given import as_annotated


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


def nonempty(batches: Iterable[Any]) -> Iterator[Any] | None:
    """An iterator over the batches, or None if there are none."""
    iterator = iter(batches)
    first = next(iterator, None)
    return None if first is None else chain([first], iterator)


def batch_size(batch: Any) -> int:
    """The number of samples in a batch.

    A batch is a tensor, or a tuple, list or mapping of columns: tensors, lists with one entry per
    sample (such as images of different sizes), or several inputs in a tuple or mapping. A list of
    mappings is a list of samples. For any other type the first tensor in it counts.
    """
    if _is_listed(batch):
        return len(batch)
    columns = columns_of(batch)
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
    columns = columns_of(batch) if divisible(batch) else []
    lengths = [length for column in columns if (length := _length_of(column)) is not None]
    return lengths[0] if len(lengths) > 1 and len(set(lengths)) == 1 else None


def sample_lists(batch: Any) -> list[Any]:
    """The lists in a batch that have one entry for each sample, such as images of other sizes."""
    if _is_listed(batch):
        return [batch]
    size = batch_size(batch)
    return [column for column in columns_of(batch) if is_sample_list(column, size)]


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
    if is_sample_list(column, len(samples)):
        return type(column)(compress(column, samples.tolist()))
    return selected(column, samples)


def is_sample_list(column: Any, size: int) -> bool:
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


def columns_of(batch: Any) -> list[Any]:
    """The inputs and targets of a batch; of a dict its values."""
    if isinstance(batch, MutableMapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, list | tuple) else [batch]
