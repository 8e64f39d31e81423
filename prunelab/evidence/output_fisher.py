"""Curvature: the Fisher information of the loss with respect to a layer's outputs.

With g the gradient of an image's loss with respect to a layer's output at one position, C is the
sum of g g' over images and positions: the layer's output factor of K-FAC (Martens, Grosse; ICML
2015). A small output error e changes the loss by g' e to first order and, if e is independent of
g, by e' C e / 2 on average to second order, so that errors of different layers can be compared.
Few gradients, and those of a layer with more than `WIDE` outputs, whose C would be larger than
the network, are kept as a root: rows R with C = R' R.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.data.batches import batch_size
from prunelab.errors import NotFinite
from prunelab.evidence.backward import BackwardWatch
from prunelab.evidence.patch_correlation import symmetric_product
from prunelab.graph.channels.channel_graph import Layer
from prunelab.graph.labels.layer_calls import Call
from prunelab.loops.batch import Loss, run_batch
from prunelab.loops.labels import logits_of

WIDE = 2048  # outputs: the C of a wider layer takes over 32 MB
RANK = 1024  # rows of a root


@dataclass(frozen=True, slots=True, eq=False)
class Root:
    """C = rows' rows; rows [up to RANK, out] in float64.

    Exact for up to RANK gradients. Further ones, of a layer with more than WIDE outputs, are added
    to rows drawn at random, with random signs, so that C is right on average (count sketch:
    Clarkson, Woodruff; STOC 2013).
    """

    rows: np.ndarray

    @property
    def whole(self) -> np.ndarray:
        """C itself."""
        found: np.ndarray = self.rows.T @ self.rows
        return found


Curvature = np.ndarray | Root


def added(one: Curvature, other: Curvature) -> Curvature:
    """The sum of two curvatures of the same layer."""
    if isinstance(one, Root) and isinstance(other, Root):
        count, out = len(one.rows) + len(other.rows), one.rows.shape[1]
        if out > WIDE or 2 * count <= out:
            both = np.zeros((min(RANK, count), out))
            filled = _fill(both, 0, one.rows, np.random.default_rng(0))
            _fill(both, filled, other.rows, np.random.default_rng(filled))
            return Root(both)
    one, other = (part.whole if isinstance(part, Root) else part for part in (one, other))
    return one + other


def _fill(root: np.ndarray, filled: int, rows: np.ndarray, generator: np.random.Generator) -> int:
    """Add gradients to a root of which so many rows are in use; returns how many are then."""
    room = len(root) - filled
    now = filled + len(rows[:room])
    root[filled:now] = rows[:room]
    if len(rest := rows[room:]):
        signs = generator.choice([-1.0, 1.0], len(rest))
        np.add.at(root, generator.integers(now, size=len(rest)), signs[:, None] * rest)
    return now


class OutputFisherWatch(BackwardWatch):
    """Watches a forward pass and sums g g' of the target layers in its backward pass.

    `sums` maps a weight's name to C [out, out] in float64, or its `Root`. The loss must be a mean
    over the batch. Random signs of roots come from `seed`.
    """

    def __init__(self, model: nn.Module, targets: Mapping[str, Layer], seed: int = 0) -> None:
        super().__init__(model)
        self.targets = targets
        self.sums: dict[str, Curvature] = {}
        self._roots: dict[str, np.ndarray] = {}
        self._generator = np.random.default_rng(seed)
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
            of_sum = gradient * batch_size(batch)  # the loss is the mean
            self._add(name, of_sum.movedim(1, -1).flatten(0, -2))

    def _add(self, name: str, rows: Tensor) -> None:
        """Add gradients [n, out] to the sum of a layer."""
        have, out = self.sums.get(name), rows.shape[1]
        if out > WIDE:
            root = self._roots.setdefault(name, np.zeros((RANK, out)))
            filled = len(have.rows) if isinstance(have, Root) else 0
            now = _fill(root, filled, rows.double().cpu().numpy(), self._generator)
            self.sums[name] = Root(root[:now])
        elif isinstance(have, np.ndarray):
            have += symmetric_product(rows.T).cpu().numpy()
        elif 2 * len(rows) <= out:
            new = Root(rows.double().cpu().numpy())
            self.sums[name] = new if have is None else added(have, new)
        else:
            product = symmetric_product(rows.T).double().cpu().numpy()
            self.sums[name] = product if have is None else added(have, product)

    def check(self) -> None:
        """Raise `NotFinite` for the first layer whose gradients have NaN or infinity."""
        for name, value in self.sums.items():
            if not np.isfinite(value.rows if isinstance(value, Root) else value).all():
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
