"""Watches a forward pass to collect gradients in the backward pass that follows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.errors import BadModel
from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.loops.batch import Loss, checked


class BackwardWatch(Watch):
    """A watch that records the autograd nodes of the layers that a subclass selects."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._pending: Callable[[], None] | None = None

    @abstractmethod
    def selects(self, call: Call, out: Tensor) -> bool:
        """Whether to record this call."""

    @abstractmethod
    def recorder(self, call: Call, out: Tensor) -> Callable[[], None] | None:
        """What to run once autograd has given `out` its node; None: nothing."""

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._record()
        super().__exit__(*error)

    def on_call(self, call: Call, out: Tensor) -> None:
        """Record a selected call; raises `BadModel` where no gradient can reach it."""
        self._record()
        if self.selects(call, out):
            if not torch.is_grad_enabled():
                raise BadModel(
                    f"{call.name.removesuffix('.weight')} runs below torch.no_grad, so the loss "
                    "has no gradient there. Name that part in trace(freeze=...), or choose a "
                    "method that needs no gradients."
                )
            self._pending = self.recorder(call, out)

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Run what is pending: autograd has made the node of the call before this operation."""
        self._record()

    def _record(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending()

    def forward(self, model: nn.Module, batch: Any, loss: Loss) -> Tensor:
        """The loss of one batch, watched.

        Parameters
        ----------
        model, batch
            The network, and what `loss` takes.
        loss
            `loss(model, batch)`.

        Raises
        ------
        InvalidValue
            For a loss that is not one differentiable number.
        """
        with torch.enable_grad(), self:
            value: Tensor = checked(loss, model, batch)
        return value
