"""Mask gradients: what the loss would say if a unit were faded out, one image at a time.

Put a mask m (all ones) on a unit wherever a layer reads it. dL_n/dm is the sum over those places
of input times gradient, and both are at hand in one backward pass: the cost is that of training
without the weights' gradients. Group Fisher sums the squares over images (Liu et al., ICML 2021,
equations 3 and 4), Taylor the absolute values (Molchanov et al., ICLR 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.data.batches import batch_size
from prunelab.errors import BadData, InvalidValue, NotFinite
from prunelab.evidence.backward import BackwardWatch
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph
from prunelab.graph.labels.layer_calls import Call
from prunelab.loops.batch import Loss
from prunelab.values import Units

Array = np.ndarray
Masks = Literal["readers", "consumers"]
BatchNorm = Literal["running", "batch"]


@dataclass(frozen=True, slots=True, eq=False)
class MaskGradients:
    """dL_n/dm of a group's units, summed over `images` in three ways, each [units].

    `signed` is the sum over images, `absolute` that of absolute values, `square` that of squares;
    the places where one mask stands were added up before. L_n is the loss of image n alone.
    """

    group: str
    units: Units
    images: int
    signed: Array
    absolute: Array
    square: Array

    @property
    def fisher(self) -> Array:
        """The mean over images of (dL_n/dm)^2 [units]: Group Fisher's importance, times two."""
        return self.square / self.images

    @property
    def taylor(self) -> Array:
        """The mean over images of `|dL_n/dm|` [units]."""
        return self.absolute / self.images

    @property
    def slope(self) -> Array:
        """The gradient of the mean loss [units]; -slope is the loss change to first order."""
        return self.signed / self.images


class MaskWatch(BackwardWatch):
    """Watches a forward pass so that its backward pass leaves each image's mask gradients.

    Use it around the forward pass, go backward, then `add` the batch to the sums. `masks` says
    where a unit's mask stands: at every layer that reads it, grouped convolutions too ("readers",
    as in the paper's Algorithm 1), or at the dense layers only ("consumers"), where removing the
    unit acts. The loss must be a mean over the batch.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, masks: Masks = "readers") -> None:
        super().__init__(model)
        if masks not in ("readers", "consumers"):
            raise InvalidValue(f"masks is 'readers' or 'consumers', not {masks!r}.")
        prunable = np.zeros(graph.units + 1, dtype=bool)
        for group in graph.groups:
            prunable[group.first : group.first + group.width] = group.prunable
        self.images = 0
        self.sums = torch.zeros(3, graph.units + 1, dtype=torch.float64)
        self._units = {
            layer.weight: torch.from_numpy(
                np.where(layer.in_units == FIXED, graph.units, layer.in_units)
            )
            for layer in graph.layers
            if prunable[layer.in_units].any() and (layer.dense or masks == "readers")
        }
        self._edges: list[Any] = []  # where in autograd's graph the readers' inputs come from
        self._found: list[tuple[str, Tensor]] = []  # input times gradient, [rows, in] per call

    def wants(self, call: Call, out: Tensor) -> bool:
        """Calls of the layers that read what may be pruned."""
        return call.name in self._units

    def noting(self, call: Call, out: Tensor) -> Callable[[], None] | None:
        """Hook the call's node, if a gradient comes to its input."""
        if not call.x.requires_grad:
            return None
        return partial(self._hook, call, out, torch.autograd.graph.get_gradient_edge(call.x))

    def _hook(self, call: Call, out: Tensor, edge: Any) -> None:
        """Let the call's node hand over the gradient of its very input.

        The gradient of the input *tensor* would hold all its other uses, such as a shortcut.
        """
        node = out.grad_fn
        assert node is not None
        way = [(into, index) for into, index in node.next_functions].index(
            (edge.node, edge.output_nr)
        )
        self._edges.append(edge)

        def keep(gradients: tuple[Tensor | None, ...], _: Any) -> None:
            gradient = gradients[way]
            if gradient is not None:
                product = call.x * gradient
                rows = product.flatten(2).sum(-1) if product.ndim > 2 else product
                self._found.append((call.name, rows))

        node.register_hook(keep)

    def measure(self, model: nn.Module, batch: Any, loss: Loss) -> None:
        """Forward, backward and `add` one batch; the weights' gradients are not computed."""
        value = self.forward(model, batch, loss)
        if self._edges:
            torch.autograd.grad(value, self._edges, allow_unused=True)
        self.add(batch_size(batch))

    def add(self, count: int) -> None:
        """Add the images of the batch just gone back through, `count` of them, to the sums."""
        found, self._found, self._edges = self._found, [], []
        device = found[0][1].device if found else torch.device("cpu")
        gradient = torch.zeros(count, self.sums.shape[1], dtype=torch.float64, device=device)
        for name, rows in found:
            if len(rows) % count:
                raise BadData(
                    f"{name.removesuffix('.weight')} runs on {len(rows)} rows for {count} inputs, "
                    "so rows cannot be told apart by input. Give batches of one input."
                )
            each = rows.double().view(count, len(rows) // count, rows.shape[1]).sum(1)
            gradient.index_add_(1, self._units[name].to(device), each)
        gradient *= count  # the loss is a mean over them
        if not torch.isfinite(gradient).all():
            raise NotFinite(
                "NaN or infinity is in the loss or its gradients. Look for it in the weights and "
                "images, or lower the learning rate."
            )
        sums = (gradient.sum(0), gradient.abs().sum(0), gradient.square().sum(0))
        self.sums += torch.stack(sums).cpu()
        self.images += count

    def restart(self) -> None:
        """Forget the sums."""
        self.sums.zero_()
        self.images = 0


@contextmanager
def differentiable(model: nn.Module, bn: BatchNorm = "running") -> Iterator[None]:
    """Let gradients reach every layer, frozen ones too; `bn="batch"` lets BatchNorm train."""
    wanted = [(p, p.requires_grad) for p in model.parameters() if p.is_floating_point()]
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    training = [norm.training for norm in norms]
    for parameter, _ in wanted:
        parameter.requires_grad_(True)
    for norm in norms if bn == "batch" else ():
        norm.train()
    try:
        yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        for norm, flag in zip(norms, training, strict=True):
            norm.training = flag
