"""Curvature: the Fisher information of the loss with respect to a layer's outputs.

With g the gradient of an image's loss with respect to a layer's output at one position, C is the
sum of g g' over images and positions: the layer's output factor of K-FAC (Martens, Grosse; ICML
2015). A small output error e changes the loss by g' e to first order and, if e is independent of
g, by e' C e / 2 on average to second order, so that errors of different layers can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.data.batches import batch_size
from prunelab.errors import NotFinite
from prunelab.evidence.backward import BackwardWatch
from prunelab.graph.channels.channel_graph import Layer
from prunelab.graph.labels.layer_calls import Call
from prunelab.loops.batch import Loss, run_batch
from prunelab.loops.labels import logits_of


class OutputFisherWatch(BackwardWatch):
    """Watches a forward pass and sums g g' of the target layers in its backward pass.

    `sums` maps a weight's name to C [out, out] in float64. The loss must be a mean over the batch.
    """

    def __init__(self, model: nn.Module, targets: Mapping[str, Layer]) -> None:
        super().__init__(model)
        self.targets = targets
        self.sums: dict[str, Tensor] = {}
        self._outputs: list[tuple[str, Any]] = []  # a layer and its output's gradient edge

    def selects(self, call: Call, out: Tensor) -> bool:
        """Calls of the target layers."""
        return call.name in self.targets and out.numel() > 0

    def recorder(self, call: Call, out: Tensor) -> Callable[[], None]:
        """Record the gradient edge of the output."""

        def record() -> None:
            if out.requires_grad:
                edge = torch.autograd.graph.get_gradient_edge(out)
                self._outputs.append((call.name, edge))

        return record

    def measure(self, model: nn.Module, batch: Any, loss: Loss) -> None:
        """Forward and backward over one batch; the weights' gradients are not computed."""
        self._outputs = []
        value = self.forward(model, batch, loss)
        names = [name for name, _ in self._outputs]
        edges = [edge for _, edge in self._outputs]
        found = torch.autograd.grad(value, edges, allow_unused=True) if edges else ()
        self._outputs = []
        for name, gradient in zip(names, found, strict=True):
            if gradient is None:
                continue
            rows = gradient.movedim(1, -1).flatten(0, -2) * batch_size(
                batch
            )  # of the sum, not the mean
            product = (rows.T @ rows).double()
            have = self.sums.get(name)
            self.sums[name] = product if have is None else have + product

    def check(self) -> None:
        """Raise `NotFinite` for the first layer whose gradients have NaN or infinity."""
        for name, value in self.sums.items():
            if not torch.isfinite(value).all():
                raise NotFinite(
                    f"NaN or infinity is in the gradients at {name.removesuffix('.weight')}. Look "
                    "for it in the weights, the loss and the images."
                )


def fisher_loss(generator: torch.Generator) -> Loss:
    """A loss without labels whose gradients have the Fisher information as their second moment.

    The logits are projected on a random direction with covariance diag(p) - p p', p the predicted
    probabilities: the covariance of the cross entropy's gradient for a label drawn from p. The
    estimate needs fewer images than with labels drawn.
    """

    def loss(model: nn.Module, batch: Any) -> Tensor:
        logits = logits_of(run_batch(model, batch))
        root = logits.detach().softmax(1).sqrt()
        drawn = root * torch.randn(root.shape, generator=generator).to(root)
        direction = drawn - root.square() * drawn.sum(1, keepdim=True)
        return (logits * direction).sum() / len(logits)

    return loss
