"""The two runs of the probe: the outputs of each layer, in the cut and in the masked network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from prunelab.graph.channels.channel_graph import FIXED, Layer
from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.graph.labels.op_tables import aten

Run = Callable[[nn.Module], Any]
SMALL = 2**20  # elements
DRAWN = {  # draws, and what stands for each number
    **dict.fromkeys([aten.bernoulli, aten.bernoulli_], 1.0),
    **dict.fromkeys(
        [
            aten.rand, aten.rand_like, aten.randn, aten.randn_like, aten.normal, aten.normal_,
            aten.uniform, aten.uniform_, aten.exponential, aten.exponential_, aten.log_normal,
            aten.log_normal_, aten.cauchy, aten.cauchy_,
        ],
        0.5,
    ),
}  # fmt: skip


class Differs(Exception):
    """A layer of the cut network has wrong outputs, or another layer is called."""

    def __init__(self, rounding: bool) -> None:
        super().__init__()
        self.rounding = rounding


@dataclass(frozen=True, slots=True)
class CallRecord:
    """The outputs of one call of the layer `name`: `sums` per channel, all of `out` for a head."""

    name: str
    sums: Tensor
    out: Tensor | None


class _Steady(Watch):
    """Random numbers are constants: two networks of different widths cannot draw the same ones.

    Draws of whole numbers, such as a permutation, stay: their sizes are seldom widths.
    """

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run an operation; a draw gives a constant."""
        packet = func.overloadpacket
        if packet is aten.native_dropout:
            return args[0] / max(1 - args[1], 1e-3), torch.ones_like(args[0], dtype=torch.bool)
        out = func(*args, **kwargs)
        return out.fill_(DRAWN[packet]) if packet in DRAWN else out


class Recorder(_Steady):
    """Records the outputs of each layer of the cut network."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer], alive: np.ndarray) -> None:
        super().__init__(model)
        self.layers, self.alive = layers, alive
        self.seen: list[CallRecord] = []

    def on_call(self, call: Call, out: Tensor) -> None:
        """Record a call."""
        layer = self.layers.get(call.name)
        head = layer is not None and out.numel() < SMALL and self.alive[layer.out_units].all()
        self.seen.append(CallRecord(call.name, _sums(out), out.clone() if head else None))


class MaskedRun(_Steady):
    """Zeroes the dropped units in each layer's input, and stops where outputs differ from `seen`.

    Masking the inputs as they are read, rather than columns of weights, is the definition itself.
    Where a layer that keeps all its channels agrees within `tolerance`, its outputs are replaced
    by the recorded ones, bit for bit, so that code that ranks them (the boxes of a detector)
    makes the same choices in both networks. Without `seen` nothing is compared.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        alive: np.ndarray,
        seen: Sequence[CallRecord] | None,
        tolerance: float | None,
    ) -> None:
        super().__init__(model)
        self.layers, self.alive, self.seen, self.tolerance = layers, alive, seen, tolerance

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Zero the dropped inputs of a dense layer."""
        call = self.call
        layer = self.layers.get(call.name) if call is not None else None
        if call is not None and layer is not None and layer.dense:
            gone = np.flatnonzero(~self.alive[layer.in_units])
            if len(gone) and call.x.shape[1] == len(layer.in_units):
                at = torch.from_numpy(gone).to(call.x.device)
                x = call.x.index_fill(1, at, 0.0)
                place = 1 if func.overloadpacket is aten.addmm else 0
                args = (*args[:place], x, *args[place + 1 :])
        return super().run(func, args, kwargs)

    def on_call(self, call: Call, out: Tensor) -> None:
        """Raise at a difference, in the channels that stay."""
        if self.seen is None:
            return
        note = self.seen[len(self.calls)] if len(self.calls) < len(self.seen) else None
        layer = self.layers.get(call.name)
        if note is None or note.name != call.name:
            raise Differs(rounding=False)
        # a layer that maps the rows of channels has fewer rows in the cut network
        if layer is None or (np.append(layer.in_units, layer.out_units) == FIXED).all():
            return
        if out.shape[1] == len(layer.out_units):
            stays = torch.from_numpy(np.flatnonzero(self.alive[layer.out_units]))
            if len(stays) < out.shape[1]:
                out = out.index_select(1, stays.to(out.device))
        due = _sums(out)
        if due.shape != note.sums.shape:
            raise Differs(rounding=False)
        if self.tolerance is not None and not close(note.sums, due, self.tolerance):
            raise Differs(rounding=True)
        if self.tolerance is not None and note.out is not None and note.out.shape == out.shape:
            out.copy_(note.out)


def _sums(out: Tensor) -> Tensor:
    """The sum of each channel, and that of its squares [2, channels]."""
    axes = [axis for axis in range(out.ndim) if axis != 1]
    return torch.stack([out.sum(axes), out.square().sum(axes)])


# Functions that create tensors of the default dtype where none is given; those of the second set
# only where the values are of that dtype.
NEW = {
    torch.empty, torch.eye, torch.linspace, torch.logspace, torch.ones, torch.rand, torch.randn,
    torch.zeros,
}  # fmt: skip
NEW_OF_VALUES = {torch.arange, torch.as_tensor, torch.full, torch.range, torch.tensor}


class NewInDouble(TorchFunctionMode):
    """Creates float64 tensors where they would have torch's default dtype, on this thread only.

    Setting that default would affect the other threads of the process.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run `func`; a new tensor has float64."""
        kwargs = kwargs or {}
        if kwargs.get("dtype") is not None or func not in NEW | NEW_OF_VALUES:
            return func(*args, **kwargs)
        if func in NEW_OF_VALUES:
            made = func(*args, **kwargs)
            own = any(hasattr(value, "dtype") for value in args)  # such as an array
            if own or made.dtype != torch.get_default_dtype():
                return made
        return func(*args, **{**kwargs, "dtype": torch.float64})


def in_double(run: Run, net: nn.Module) -> Any:
    """Run a float64 network; its inputs and new tensors are converted to float64."""
    hook = net.register_forward_pre_hook(
        lambda _, args, kwargs: tree_map(
            lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x,
            (args, kwargs),
        ),
        with_kwargs=True,
    )
    try:
        with NewInDouble():
            return run(net)
    finally:
        hook.remove()


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two outputs are the same up to a relative error."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return True
    a, b = torch.nan_to_num(a.double()), torch.nan_to_num(b.double())
    return bool((a - b).norm() <= tolerance * max(1e-12, float(b.norm())))
