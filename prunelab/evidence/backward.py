"""Watching a forward pass for the sake of the backward pass that follows it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.errors import BadModel, InvalidValue
from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.loops.batch import Loss, checked


class BackwardWatch(Watch):
    """A watch that notes where in autograd's graph the layers that it wants stand."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._later: Callable[[], None] | None = None

    @abstractmethod
    def wants(self, call: Call, out: Tensor) -> bool:
        """Whether this call is of use."""

    @abstractmethod
    def noting(self, call: Call, out: Tensor) -> Callable[[], None] | None:
        """What to do as soon as autograd has given `out` its node, which it has not yet."""

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._note()
        super().__exit__(*error)

    def on_call(self, call: Call, out: Tensor) -> None:
        """See whether a call is wanted; `BadModel` where no gradient can reach it."""
        self._note()
        if self.wants(call, out):
            if not torch.is_grad_enabled():
                raise BadModel(
                    f"{call.name.removesuffix('.weight')} runs below torch.no_grad, so the loss "
                    "has no gradient there. Name that part in trace(freeze=...), or choose a "
                    "method that needs no gradients."
                )
            self._later = self.noting(call, out)

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Any operation comes after the node of the call before it was made."""
        self._note()

    def _note(self) -> None:
        later, self._later = self._later, None
        if later is not None:
            later()

    def forward(self, model: nn.Module, batch: Any, loss: Loss) -> Tensor:
        """The loss of one batch, watched; raises `InvalidValue` for what cannot be gone back."""
        with torch.enable_grad(), self:
            value = checked(loss, model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise InvalidValue(
                "loss(model, batch) must give one number that autograd can follow back; it gave "
                f"{value if not isinstance(value, Tensor) else tuple(value.shape)!r}."
            )
        return value
