"""What one run of a network shows beside its channels: how many inputs it holds, other products.

The number of inputs is never guessed: where neither the layers nor the outputs show it, it is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunelab.errors import InvalidValue
from prunelab.graph.labels.derived_sizes import Derived, MarkedSizes
from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.graph.labels.leaving import Leaving
from prunelab.graph.labels.op_tables import aten
from prunelab.graph.labels.shape_run import NeedsValues, needs_values, shapes_only

ATTENTION = "attention and other products of activations"
RECURRENT = "recurrent layers"
COMPUTED = "convolutions that are no layers"
WEIGHTS = "products of weights alone"


class Survey(Watch):
    """Watches one run: `first` is the input of its first layer, `left` the MACs of no layer.

    Without `numbers`, heavy operations return zeros, and `NeedsValues` is raised where code depends
    on values.
    """

    def __init__(self, model: nn.Module, numbers: bool = True) -> None:
        super().__init__(model)
        self.numbers = numbers
        self._unfused = Leaving(self._leave)
        self.first: tuple[int, ...] | None = None
        self.left: dict[str, int] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run an operation, as `numbers` says."""
        if self.numbers:
            return func(*args, **kwargs)
        if needs_values(func, args):
            raise NeedsValues
        return shapes_only(func, args, kwargs)

    def _leave(self, tensor: Tensor) -> None:
        if not self.numbers:
            raise NeedsValues

    def on_call(self, call: Call, out: Tensor) -> None:
        """Keep the shape of the first layer's input."""
        self.first = self.first or tuple(call.x.shape)

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Sum the multiply-adds of an operation that is no layer."""
        found = self._left_out(func, args, out)
        if found is not None:
            kind = found[0] if self.origin(out) is None else WEIGHTS
            self.left[kind] = self.left.get(kind, 0) + found[1]

    def deformable(self, func: Any, args: tuple[Any, ...]) -> str | None:
        """The weight of a deformable convolution that is a layer; None for other operations."""
        if func.overloadpacket._qualified_op_name != "torchvision::deform_conv2d":
            return None
        origin = self.origin(args[1])
        return origin.name if origin is not None and origin.plain else None

    def _left_out(self, func: Any, args: tuple[Any, ...], out: Any) -> tuple[str, int] | None:
        """The kind and the multiply-adds of a product of matrices; None for other operations."""
        packet, name = func.overloadpacket, func.name()
        if packet in (aten.mm, aten.bmm):
            return ATTENTION, out.numel() * args[0].shape[-1]
        if packet in (aten.addmm, aten.baddbmm):
            return ATTENTION, out.numel() * args[1].shape[-1]
        if "scaled_dot_product" in name:
            query, key = args[:2]
            made = out[0] if isinstance(out, tuple) else out
            return ATTENTION, (query.numel() + made.numel()) * key.shape[-2]
        if "rnn_layer" in name or "_cudnn_rnn" in name:
            weights = [x for x in tree_leaves(args[1:]) if self.origin(x) is not None]
            each = sum(weight.numel() for weight in weights if weight.ndim > 1)
            return RECURRENT, args[0].numel() // args[0].shape[-1] * each
        if self.deformable(func, args) is not None:
            return None
        if packet is aten.convolution or "deform_conv2d" in name:
            return COMPUTED, out.numel() * args[1][0].numel()
        return None


def told(left: Mapping[str, int], count: int) -> str:
    """The multiply-adds, of one of `count` inputs, that a sum over layers leaves out, in words."""
    return " and ".join(f"{kind} ({macs // count:,} MACs)" for kind, macs in left.items())


def inputs_of(given: Any, outputs: Any, first: tuple[int, ...] | None) -> int | None:
    """How many inputs a call holds; None where that cannot be known.

    A list of images, or of mappings, holds as many as it has items, if there are as many outputs.
    The leading axes of a tensor are known from the first layer, which sees them as its one batch
    axis; of two, such as time and batch, the outputs show which is left.

    Parameters
    ----------
    given
        What the network, or `forward`, was called with.
    outputs
        What it returned.
    first
        The shape of the first layer's input.
    """
    if first is None:
        return None
    made = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.ndim]
    sizes = {x.shape[0] for x in made}
    listed = len(outputs) if isinstance(outputs, list | tuple) else None
    for one in [given, *given] if isinstance(given, list | tuple) else [given]:
        if _is_list_of_inputs(one, len(first) - 1) and len(one) in {*sizes, listed}:
            return len(one)
    for leaf in (x for x in tree_leaves(given) if isinstance(x, Tensor) and x.ndim):
        shape = tuple(leaf.shape)
        axes = _folded(shape, first)
        if axes == 0 or (axes == 1 and shape[0] == 1):
            return 1
        if axes == 1:
            apart = listed == shape[0] and not any(isinstance(x, Tensor) for x in outputs)
            return shape[0] if shape[0] in sizes or apart else None
        if axes == 2 and len(sizes) == 1:
            kept = any(tuple(x.shape[:2]) == shape[:2] for x in made) and shape[:2] != (1, 1)
            left = sizes & set(shape[:2])
            return None if kept or not left else left.pop()
    return None


def _is_list_of_inputs(one: Any, axes: int) -> bool:
    """Whether it is a list of tensors of so many axes, or of mappings: one for each input."""
    if not isinstance(one, list | tuple) or not one:
        return False
    tensors = all(isinstance(x, Tensor) and x.ndim == axes for x in one)
    return tensors or (isinstance(one, list) and all(isinstance(x, Mapping) for x in one))


def _folded(shape: tuple[int, ...], first: tuple[int, ...]) -> int | None:
    """How many leading axes of a tensor are the first axis of the first layer's input."""
    exact = [n for n in range(3) if shape[n:] == first[1:] and prod(shape[:n]) == first[0]]
    near = [n for n in (1, 2) if len(shape) - n == len(first) - 1 and prod(shape[:n]) == first[0]]
    return next(iter([*exact, *near]), None)


def checked_size(batch_size: int | None) -> int | None:
    """`batch_size`; raises `InvalidValue` where it is neither None nor a number of inputs."""
    if batch_size is not None and (
        isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
    ):
        raise InvalidValue(f"batch_size counts inputs, a whole number from 1; not {batch_size!r}.")
    return batch_size


def unknown(shapes: Any, how: str) -> InvalidValue:
    """The error that asks for the number of inputs of a call on tensors of these shapes."""
    return InvalidValue(
        "Costs are those of one input, and how many inputs a call on tensors "
        f"{[list(shape) for shape in shapes]} holds cannot be known. Say it: {how}."
    )


@torch.no_grad()
def surveyed(
    fresh: Callable[[], nn.Module], run: Any, given: Any
) -> tuple[int | None, Mapping[str, int], bool, Derived]:
    """The number of inputs of one run (None: unknown), and the multiply-adds of no layer in it.

    Each run has a `fresh` network. Also returns whether its code depends on values, and which sizes
    of views it derives from shapes, as far as it runs without values.
    """
    sizes = MarkedSizes()
    try:
        with sizes:
            return (*_surveyed(fresh(), run, given, numbers=False), False, sizes.found)
    except Exception:  # code may branch on zeros
        return (*_surveyed(fresh(), run, given, numbers=True), True, sizes.found)


def _surveyed(
    model: nn.Module, run: Any, given: Any, numbers: bool
) -> tuple[int | None, Mapping[str, int]]:
    survey = Survey(model, numbers)
    with survey:
        outputs = run(model)
    return inputs_of(given, outputs, survey.first), survey.left
