"""Training mode for pruning: what the user froze stays frozen, and a batch of one image runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def frozen_modules(model: nn.Module) -> frozenset[str]:
    """The modules that training must leave in evaluation mode, by name.

    Those in evaluation mode inside a network that is in training mode, and BatchNorms none of
    whose parameters requires gradients while others do.
    """
    trains = any(parameter.requires_grad for parameter in model.parameters())

    def frozen(module: nn.Module) -> bool:
        own = list(module.parameters(recurse=False))
        still = bool(own) and not any(parameter.requires_grad for parameter in own)
        norm = isinstance(module, _BatchNorm) and trains and still
        return norm or (model.training and not module.training)

    return frozenset(name for name, module in model.named_modules() if frozen(module))


@contextmanager
def in_training(model: nn.Module, frozen: Collection[str] = ()) -> Iterator[None]:
    """Within it `model` is in training mode, but for the modules named in `frozen`.

    A BatchNorm that is given a single value for each channel, as behind global pooling with one
    image, normalises by its running statistics: there is no variance. Afterwards the network is in
    evaluation mode.
    """
    model.train()
    parts = dict(model.named_modules())
    for name in parts.keys() & set(frozen):
        parts[name].training = False
    norms = [part for part in parts.values() if isinstance(part, _BatchNorm) and part.training]
    hooks = [norm.register_forward_pre_hook(by_batch) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.eval()


def by_batch(norm: Any, given: tuple[Tensor, ...]) -> None:
    """Normalise by the batch if it has more than one value for each channel."""
    x = given[0]
    norm.train(x.numel() > x.shape[1])
