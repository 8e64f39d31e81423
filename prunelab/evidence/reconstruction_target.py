"""Reconstruction targets: the outputs that a layer of the pruned network should reproduce.

Channel Pruning takes the inputs of the network as pruned so far and the outputs of the original,
so that a layer corrects the error of the layers before it. The last layer of a residual branch
targets Y2 + Y1 - Y1', which corrects the error of its shortcut too (He, Zhang, Sun; ICCV 2017;
released code: `appresb`, and `invBN` where a BatchNorm stands before the sum).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.graph.labels.layout import tensors_in
from prunelab.graph.labels.op_tables import NORMALISES_BATCH, aten

Array = np.ndarray
LEAST_SCALE = 1e-3  # of the largest BatchNorm scale: a smaller one is not divided by
SELECTING = {aten.index, aten.index_select, aten.gather, aten.masked_select}


@dataclass(slots=True, eq=False)
class LayerOutput:
    """One call of a layer, with its output and what that is added to.

    Attributes
    ----------
    call
        The call, with the layer's input.
    y
        The output without bias [N, out, *positions].
    selections
        How many selections the network had made before this call, see `OutputWatch`.
    scale
        What a BatchNorm behind the layer multiplies the output by [out]; None: there is none.
    shortcut
        The other summand, of y's shape, where the output enters a sum; None: it enters none.
    """

    call: Call
    y: Tensor
    selections: int = 0
    scale: Tensor | None = None
    shortcut: Tensor | None = None


class OutputWatch(Watch):
    """Keeps the outputs of the layers `wanted` (names of weights), call by call, in `found`.

    With `inputs=False` the kept calls have an empty input. `selections` are the indices by which
    the network has selected rows so far depending on what it computed, such as regions of
    interest: the rows of later calls are those. Indices stored in a buffer, such as a channel
    selector's, are not among them.
    """

    def __init__(self, model: nn.Module, wanted: Collection[str], inputs: bool = True) -> None:
        super().__init__(model)
        self.inputs = inputs
        self.found: dict[str, list[LayerOutput]] = {name: [] for name in wanted}
        self.selections: list[Tensor] = []
        self._followed = WeakTensorKeyDictionary()  # an output, or its BatchNorm's -> LayerOutput

    def on_call(self, call: Call, out: Tensor) -> None:
        """Keep a wanted layer's call, copied because later operations may overwrite it."""
        if call.name not in self.found:
            return
        y = out.clone() if call.bias is None else unbiased(call, out)
        x = call.x.clone() if self.inputs else call.x.new_empty(0)
        made = LayerOutput(replace(call, x=x), y, len(self.selections))
        self.found[call.name].append(made)
        self._followed[out] = made

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Record selections, and follow a wanted output into the sum that it enters."""
        if func.overloadpacket in SELECTING:
            found = tensors_in(*args[1:], kwargs)
            self.selections += [
                indices
                for indices in found
                if not indices.is_floating_point() and self.origin(indices) is None
            ]
        self.follow(func, args, kwargs, out)

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Follow a wanted output through its BatchNorm into the sum that it enters."""
        if func.overloadpacket in NORMALISES_BATCH and args[0] in self._followed:
            made = self._followed.pop(args[0])
            made.scale = batch_norm_scale(args, out)
            self._followed[out[0]] = made
        elif func.overloadpacket in (aten.add, aten.add_):
            a, b = args[:2]
            same = isinstance(b, Tensor) and a.shape == b.shape
            if not same or kwargs.get("alpha", 1) != 1 or "out" in kwargs:
                return
            in_place = func.overloadpacket is aten.add_  # a is the sum by now
            ours, theirs = (self._followed.pop(x, None) for x in (a, b))
            if ours is not None:
                ours.shortcut = b.clone()
            if theirs is not None:
                theirs.shortcut = a - b if in_place else a.clone()
        elif args and isinstance(out, Tensor) and out is args[0]:
            self._followed.pop(out, None)  # overwritten


def same_rows(
    target: OutputWatch, wanted: LayerOutput, model: OutputWatch, given: LayerOutput
) -> bool:
    """Whether two networks' calls of a layer are on the same rows, so that one can be a target.

    They are not where the networks have selected different regions, tokens or points before.

    Parameters
    ----------
    target, wanted
        The watch of the target network and one of its calls.
    model, given
        The watch of the pruned network and one of its calls.
    """
    shape = (wanted.selections, len(wanted.y), wanted.y.shape[2:])
    if shape != (given.selections, len(given.y), given.y.shape[2:]):
        return False
    pairs = zip(
        target.selections[: wanted.selections], model.selections[: given.selections], strict=True
    )
    return all(torch.equal(a, b) for a, b in pairs)


def unbiased(call: Call, out: Tensor) -> Tensor:
    """A layer's output without its bias."""
    if call.bias is None:
        return out
    return out - call.bias.detach().view(1, -1, *([1] * (out.ndim - 2)))


def batch_norm_scale(args: tuple[Any, ...], out: Any) -> Tensor:
    """Gamma / sigma as this BatchNorm call applied it [channels]."""
    x, gamma, _, _, variance = args[:5]
    invstd = out[2] if args[5] else torch.rsqrt(variance + args[7])  # args[5]: training
    scale = invstd if gamma is None else gamma.detach() * invstd
    return scale.to(x.dtype)


def reconstruction_target(target: LayerOutput, given: LayerOutput, channels: Tensor) -> Tensor:
    """What a layer of the pruned network should output (ICCV 2017, section 3.2; `appresb`).

    Its output in the target network plus the drift of the shortcut: with shortcuts s,
    BN(result) + s_given = BN(y_target) + s_target. Where BatchNorm's scale is nearly 0 nothing can
    be corrected through it, and the drift is left out.

    Parameters
    ----------
    target, given
        The layer's call in the target network and in the pruned one.
    channels
        Which of the target's output channels the pruned layer still has [out].

    Returns
    -------
    Tensor
        The target, shaped as `given.y`.
    """
    y = target.y.index_select(1, channels)
    if target.shortcut is None or given.shortcut is None:
        return y
    drift = target.shortcut.index_select(1, channels) - given.shortcut
    if target.scale is None:
        return y + drift
    scale = target.scale.index_select(0, channels)
    inverse = torch.where(scale.abs() > LEAST_SCALE * scale.abs().max(), 1 / scale, 0.0)
    return y + drift * inverse.view(1, -1, *([1] * (y.ndim - 2)))
