"""Fused operations, run as the layers and sums that they are made of.

Fused attention and fused recurrent layers, which depend on dtype and device, hide the layers
inside them. `torch.export` takes them apart in the same way. Other threads are not affected.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._decomp import decompositions
from torch.overrides import BaseTorchFunctionMode

aten = torch.ops.aten
RECURRENT = {
    torch.gru: aten.gru, torch.lstm: aten.lstm,
    torch.rnn_relu: aten.rnn_relu, torch.rnn_tanh: aten.rnn_tanh,
}  # fmt: skip


class Unfused(BaseTorchFunctionMode):
    """Inside the `with` block nothing hides a layer; attention is not fused under any such mode."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in RECURRENT and not kwargs:
            return _recurrent(func, args)
        return func(*args, **(kwargs or {}))


def _recurrent(func: Any, args: tuple[Any, ...]) -> Any:
    """A recurrent layer, step by step; one with dropout in training runs as it is."""
    packed = isinstance(args[3], tuple | list)  # parameters, behind the sizes of batches
    dropout, training = args[6:8] if packed else args[5:7]
    if dropout and training:
        return func(*args)
    if func == torch.lstm and not packed:
        return _lstm(*args)
    overload = RECURRENT[func].data if packed else RECURRENT[func].input
    return overload.py_kernels[DispatchKey.CompositeImplicitAutograd](*args)


def _lstm(
    x: Tensor, hx: tuple[Tensor, Tensor], params: list[Tensor], biases: bool, layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """PyTorch's decomposition, without its choice of a fused layer."""
    weights = decompositions.gather_params(params, biases, hx[0].size(2) != hx[1].size(2))
    out, last = decompositions._rnn_helper(
        x, list(zip(*hx, strict=True)), weights, biases, layers, dropout, train, bidirectional,
        batch_first, decompositions.one_layer_lstm,
    )  # fmt: skip
    hidden, cells = zip(*last, strict=True)
    return out, torch.stack(hidden), torch.stack(cells)
