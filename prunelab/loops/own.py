"""The user's own functions, loss, metrics and trainer: called, and what they return checked.

An error in one is raised as `InvalidValue`, which names the function and chains their traceback.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunelab.errors import BadModel, InvalidValue, PruneLabError
from prunelab.loops.batch import Forward, Loss, checked, cross_entropy, run_batch
from prunelab.loops.labels import described

TARGETS = {"target", "targets", "label", "labels", "truth", "gt", "y", "y_true"}
MODELS = {"model", "network", "net", "module"}


def name_of(function: Any) -> str:
    """What the user calls a function of theirs: its name, or that of its class."""
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def called(role: str, function: Callable[..., Any], *given: Any) -> Any:
    """`function(*given)`; raises `InvalidValue` for an error in it, with its traceback."""
    try:
        return function(*given)
    except PruneLabError:
        raise
    except Exception as error:
        shapes = [list(x.shape) for x in tree_leaves(given) if isinstance(x, Tensor)]
        on = f" on tensors {shapes}" if shapes else ""
        raise InvalidValue(
            f"Your {role} ({name_of(function)}) raised {type(error).__name__}{on}: {error}. "
            "Nothing was changed; the traceback above this one is that of your function."
        ) from error


# ---------------------------------------------------------------- loss


def loss_of(given: Any, forward: Forward = run_batch) -> Loss:
    """A loss as `loss(model, batch)`, which checks what `given` returns.

    A `given` of `(outputs, targets)` is called with `forward(model, batch)` and the second item of
    the batch: a loss module, or a function whose second parameter has one of the names in TARGETS,
    or whose first is annotated as Tensor. Any other is called with (model, batch). Raises
    `InvalidValue` for what cannot be called.
    """
    if given is cross_entropy or isinstance(given, OwnLoss):
        return given
    if not callable(given):
        raise InvalidValue(
            f"loss is a function of (model, batch) or of (outputs, targets), such as "
            f"nn.CrossEntropyLoss(); not {given!r}."
        )
    return OwnLoss(given, forward, _takes_outputs(given))


def _takes_outputs(given: Callable[..., Any]) -> bool:
    """Whether a loss is one of (outputs, targets)."""
    module = isinstance(given, nn.Module)
    try:
        what = given.forward if isinstance(given, nn.Module) else given
        parameters = inspect.signature(what).parameters.values()
    except (TypeError, ValueError):  # a built-in function
        return module
    names = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY][:2]
    if names and names[0] in MODELS:
        return False
    first = next(iter(parameters)).annotation if names else None
    typed = first is Tensor or first in ("Tensor", "torch.Tensor")
    return module or typed or (len(names) == 2 and names[1] in TARGETS)


class OwnLoss:
    """A user's loss as a function of (model, batch); `natural`: it takes (outputs, targets)."""

    def __init__(self, given: Callable[..., Any], forward: Forward, natural: bool) -> None:
        self.given = given
        self.forward = forward
        self.natural = natural

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss; raises `InvalidValue` where it is not one number, with a gradient if needed."""
        if self.natural:
            outputs = checked(self.forward, model, batch)
            value = called("loss", self.given, outputs, self._targets(batch, outputs))
        else:
            value = called("loss", self.given, model, batch)
        name = name_of(self.given)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            mean = " Take its mean." * (isinstance(value, Tensor) and value.numel() > 1)
            raise InvalidValue(
                f"Your loss ({name}) returned {described(value)}; it must return one number, a "
                f"tensor that is differentiable.{mean}"
            )
        if torch.is_grad_enabled() and not value.requires_grad:
            raise InvalidValue(
                f"Your loss ({name}) returned a tensor without a gradient; it must return one "
                "number that is differentiable, so without detach, item or no_grad."
            )
        return value.reshape(())

    def _targets(self, batch: Any, outputs: Any) -> Any:
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise InvalidValue(
                f"Your loss ({name_of(self.given)}) takes (outputs, targets), but a batch is "
                f"{described(batch)}, not (inputs, targets). Give a loss of (model, batch)."
            )
        device = next((x.device for x in tree_leaves(outputs) if isinstance(x, Tensor)), None)
        targets = batch[1]
        return targets.to(device) if isinstance(targets, Tensor) and device else targets


# ---------------------------------------------------------------- metrics


def measured(
    name: str, function: Callable[[nn.Module, Any], Any], model: nn.Module, loader: Any
) -> float:
    """The metric `name` of a network; raises `InvalidValue` where it is not a number."""
    value = called(f"metric {name!r}", function, model, loader)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidValue(
            f"The metric {name!r} returned {value!r}; a metric ({name_of(function)}) returns one "
            "number for a network and a loader."
        ) from None


# ---------------------------------------------------------------- trainer


def train_by(
    train: Callable[[nn.Module, Any, int], Any], model: nn.Module, data: Any, steps: int
) -> None:
    """Call the user's trainer, which trains `model` in place, or returns a trained copy of it.

    Raises `InvalidValue` for an error in it, `BadModel` where it changed more than values.
    """
    by = f"train ({name_of(train)})"
    before, device = tensors(model), next((p.device for p in model.parameters()), None)
    found = called("train", train, model, data, steps)
    if isinstance(found, nn.Module) and all(part is not model for part in found.modules()):
        only_values(by, before, tensors(found))
        own = dict(_tensors(model))
        with torch.no_grad():
            for name, tensor in _tensors(found):
                own[name].copy_(tensor)
    only_values(by, before, tensors(model))
    if device is not None:
        model.to(device)


def tensors(model: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The shape and type of every parameter and buffer of a network."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _tensors(model)}


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def only_values(by: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise `BadModel` where a trainer changed the names, shapes or types of a network's tensors.

    Parameters
    ----------
    by
        What the trainer is called.
    before, after
        The `tensors` of the network.
    """
    odd = next((n for n in {**before, **after} if before.get(n) != after.get(n)), None)
    if odd is not None:
        was, now = (" ".join(map(str, of[odd])) if odd in of else "none" for of in (before, after))
        raise BadModel(
            f"{by} changed the network's shape at {odd}, from {was} to {now}; only weights may "
            "change. Nothing was changed in the session."
        )
