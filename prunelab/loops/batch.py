"""Running a network on batches, with clear errors for batches that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from prunelab.errors import BadData, PruneLabError
from prunelab.loops.labels import logits_of, targets_of

Loss = Callable[[nn.Module, Any], Tensor]
Forward = Callable[[nn.Module, Any], Any]


def device_of(model: nn.Module) -> torch.device:
    """The device of the weights of `model`."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def run_batch(model: nn.Module, batch: Any) -> Any:
    """`model(x)` for a batch that is x or (x, ...), on the network's device."""
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    return model(on_device(x, device_of(model)))


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch, or a part of one, with its tensors on `device`."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, batch)


def guarded(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; errors of the loader are raised as `BadData`."""
    try:
        iterator = iter(batches)
    except TypeError:
        raise BadData(
            f"Batches must be iterable; a {type(batches).__name__} is not. Give a DataLoader or "
            "a list of batches."
        ) from None
    count = 0
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except PruneLabError:
            raise
        except Exception as error:
            raise BadData(
                f"The loader raised {type(error).__name__} at batch {count}: {error}. "
                "Nothing was changed; fix the loader and try again."
            ) from error
        count += 1
        yield batch


def checked(forward: Forward, model: nn.Module, batch: Any) -> Any:
    """`forward(model, batch)`; raises `BadData` for a batch of the wrong shape or type."""
    try:
        return forward(model, batch)
    except PruneLabError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        shapes = [tuple(x.shape) for x in tree_leaves(batch) if isinstance(x, Tensor)]
        raise BadData(
            f"The network cannot run on this batch (shapes {shapes}): "
            f"{type(error).__name__}: {error}. Give batches like the example inputs, or forward=."
        ) from error


def finish(steps: Generator[Any, None, Any]) -> Any:
    """Run a generator to its end and return its result; it is closed at once where that fails."""
    try:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value
    finally:
        steps.close()


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """The default loss, for batches of (images, labels), see `targets_of`."""
    logits = logits_of(run_batch(model, batch))
    return F.cross_entropy(logits, targets_of(batch, logits))
