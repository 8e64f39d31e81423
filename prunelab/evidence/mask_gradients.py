"""Mask gradients: the derivative of each image's loss with respect to a mask on each unit.

Put a mask m = 1 on a unit wherever a layer reads it. dL_n/dm is the sum over those places of
input times gradient, and one backward pass has both, at the cost of training without the weights'
gradients. Group Fisher sums the squares over images (Liu et al., ICML 2021, equations 3 and 4),
Taylor the absolute values (Molchanov et al., ICLR 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.errors import BadData, InvalidValue, NotFinite
from prunelab.evidence.backward import BackwardWatch
from prunelab.evidence.row_images import RowImages
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph
from prunelab.graph.labels.layer_calls import Call
from prunelab.loops.batch import Loss
from prunelab.values import Units

Array = np.ndarray
Masks = Literal["readers", "consumers"]
BatchNorm = Literal["running", "batch"]


@dataclass(frozen=True, slots=True, eq=False)
class MaskGradients:
    """dL_n/dm of a group's units, L_n the loss of image n, summed over `images` [units].

    `signed` sums the values, `absolute` their absolute values, `square` their squares. The layers
    that share a mask were summed for each image before.
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
    """Watches a forward pass so that the backward pass collects each image's mask gradients.

    Use `watch.on(batch)` around the forward pass of a batch, run backward, then `add` it to the
    sums, or take its `gradients`. The loss must be a mean over the batch.

    Parameters
    ----------
    model, graph
        The network that will run, and its graph.
    masks
        Where a unit's mask stands: "readers", at every layer that reads it, grouped convolutions
        included (the paper's Algorithm 1); "consumers", at the dense layers only, which removing
        the unit makes smaller.
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
        # input times gradient [rows, in] for each call, and the image of each row
        self._found: list[tuple[str, Tensor, Tensor | None]] = []
        self._images = RowImages((), self.origins)

    def on(self, batch: Any) -> Self:
        """The watch for the forward pass of a batch."""
        self._images = RowImages(batch, self.origins)
        return self

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run an operation, and follow the rows of each image."""
        out = super().run(func, args, kwargs)
        self._images.follow(func, args, kwargs, out)
        return out

    def selects(self, call: Call, out: Tensor) -> bool:
        """Calls of the layers that read prunable units."""
        return call.name in self._units

    def recorder(self, call: Call, out: Tensor) -> Callable[[], None] | None:
        """Hook the call's node, if its input has a gradient."""
        if not call.x.requires_grad:
            return None
        edge = torch.autograd.graph.get_gradient_edge(call.x)
        return partial(self._hook, call, out, edge, self._images.of(call.x))

    def _hook(self, call: Call, out: Tensor, edge: Any, images: Tensor | None) -> None:
        """Keep the gradient that this call's node passes to its input.

        The gradient of the input *tensor* would include its other uses, such as a shortcut.
        """
        node = out.grad_fn
        assert node is not None
        position = [(into, index) for into, index in node.next_functions].index(
            (edge.node, edge.output_nr)
        )
        self._edges.append(edge)

        def keep(gradients: tuple[Tensor | None, ...], _: Any) -> None:
            gradient = gradients[position]
            if gradient is not None:
                product = call.x * gradient
                rows = product.flatten(2).sum(-1) if product.ndim > 2 else product
                self._found.append((call.name, rows, images))

        node.register_hook(keep)

    def measure(self, model: nn.Module, batch: Any, loss: Loss) -> None:
        """Forward, backward and `add` for one batch; the weights' gradients are not computed."""
        value = self.on(batch).forward(model, batch, loss)
        if self._edges:
            torch.autograd.grad(value, self._edges, allow_unused=True)
        self.add()

    def gradients(self) -> Tensor:
        """dL_n/dm of each image of the batch just run backward [images, units + 1].

        Summed over the layers that share a unit's mask, their positions and repeated calls (in
        float64, on the device that computed them). The last column belongs to no unit. Raises
        `BadData` where a layer's rows cannot be told apart by image.
        """
        count = self._images.count
        found, self._found, self._edges = self._found, [], []
        device = found[0][1].device if found else torch.device("cpu")
        gradients = torch.zeros(count, self.sums.shape[1], dtype=torch.float64, device=device)
        for name, rows, images in found:
            if images is None and count > 1:
                raise BadData(
                    f"{name.removesuffix('.weight')} runs on {len(rows)} rows for {count} inputs, "
                    "and which input each row comes from could not be followed. Give batches of "
                    "one input, or name that layer in trace(freeze=...)."
                )
            if images is None:
                images = torch.zeros(len(rows), dtype=torch.long)
            each = gradients.new_zeros(count, rows.shape[1])
            each.index_add_(0, images.to(device), rows.double())
            gradients.index_add_(1, self._units[name].to(device), each)
        gradients *= count  # the loss is a mean over the images
        if not torch.isfinite(gradients).all():
            raise NotFinite(
                "NaN or infinity is in the loss or its gradients. Look for it in the weights and "
                "images, or lower the learning rate."
            )
        return gradients

    def add(self) -> None:
        """Add the images of the batch just run backward to the sums."""
        gradients = self.gradients()
        sums = (gradients.sum(0), gradients.abs().sum(0), gradients.square().sum(0))
        self.sums += torch.stack(sums).cpu()
        self.images += self._images.count


@contextmanager
def differentiable(model: nn.Module, bn: BatchNorm = "running") -> Iterator[None]:
    """Within it every layer gets gradients, frozen ones too; `bn="batch"` trains BatchNorm."""
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
