"""Classification by default: logits and classes, from outputs and labels in their usual forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunelab.errors import BadData

OTHERS = "for other networks give loss= (nn.BCEWithLogitsLoss(), say) and metrics="


def described(value: Any) -> str:
    """A value in words: a tensor's shape and type, what a container holds, else its type."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {kind} of {', '.join(map(repr, value))}"
    if isinstance(value, list | tuple):
        return f"a {kind} of {len(value)}"
    return "None" if value is None else f"a {kind}"


def logits_of(outputs: Any) -> Tensor:
    """The logits [N, classes] of a network's outputs.

    A single logit z, [N, 1] or [N], is that of the second of two classes: 0 and z. Raises `BadData`
    for other outputs.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim not in (1, 2):
        raise BadData(
            "The default loss and metric take one output, logits [N, classes] or a single logit "
            f"[N, 1] for each image; this network gives {described(outputs)}: {OTHERS}, or a "
            "forward= that picks the logits."
        )
    logits = outputs if outputs.ndim == 2 else outputs[:, None]
    return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)


def targets_of(batch: Any, logits: Tensor) -> Tensor:
    """The classes [N] of a batch, or their probabilities [N, classes], on the network's device.

    Labels are class indices of any integer type, [N] or [N, 1]; for two classes also bool or
    floating-point zeros and ones; or rows of class probabilities, one-hot ones included. Raises
    `BadData` for other batches and labels.
    """
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor)):
        what = f"({', '.join(map(described, batch))})" if isinstance(batch, tuple | list) else batch
        raise BadData(
            "The default loss and metric take batches of (images, labels), both tensors, not "
            f"{what if isinstance(what, str) else described(what)}; for other batches give loss= "
            "and metrics=."
        )
    given, (count, classes) = batch[1].to(logits.device), logits.shape
    told = f"The labels are {described(given)}, for logits [{count}, {classes}]"
    labels = given[:, 0] if given.ndim == 2 and given.shape[1] == 1 else given
    if len(labels.shape) == 0 or len(labels) != count:
        raise BadData(f"{told}: there must be one label for each image.")
    if labels.ndim == 1:
        return _indices(labels, classes, told)
    if labels.shape != logits.shape or labels.is_complex():
        raise BadData(f"{told}. Give class indices [N], or {OTHERS}.")
    shares = labels.to(logits.dtype)
    if bool((shares < 0).any()) or bool(((shares.sum(1) - 1).abs() > 1e-3).any()):
        raise BadData(
            f"{told}, and their rows do not sum to 1, so they are no class probabilities. For "
            "several classes in an image give loss=nn.BCEWithLogitsLoss() and metrics=, with "
            "labels of floating point."
        )
    return shares


def _indices(labels: Tensor, classes: int, told: str) -> Tensor:
    """Class indices of type long; raises `BadData`, beginning with `told`, for other labels."""
    whole = not (labels.is_floating_point() or labels.is_complex())
    if classes > 2 and labels.dtype == torch.bool:
        raise BadData(f"{told}: true and false name two classes. Give class indices, or {OTHERS}.")
    if not whole and (classes > 2 or not bool(((labels == 0) | (labels == 1)).all())):
        raise BadData(
            f"{told}. Give class indices as integers, labels.long(); for values to predict give "
            "loss=nn.MSELoss() and metrics=."
        )
    found = labels.long()
    if len(found) and not (int(found.min()) >= 0 and int(found.max()) < classes):
        raise BadData(
            f"{told}. They run from {int(found.min())} to {int(found.max())}, but the network has "
            f"{classes} classes; they must lie in 0 .. {classes - 1}."
        )
    return found
