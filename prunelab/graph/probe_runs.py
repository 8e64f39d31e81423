"""A cut network beside the masked one: what each layer of the one gives, and of the other."""

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
SMALL = 2**20  # numbers


class Differs(Exception):
    """A layer of the cut network gives other numbers than it should, or another layer runs."""

    def __init__(self, rounding: bool) -> None:
        super().__init__()
        self.rounding = rounding


@dataclass(frozen=True, slots=True)
class Note:
    """What a call of the layer `name` gave: `sums` of each channel, and all of `out` of a head."""

    name: str
    sums: Tensor
    out: Tensor | None


class Noted(Watch):
    """Notes what each layer of the cut network gives."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer], alive: np.ndarray) -> None:
        super().__init__(model)
        self.layers, self.alive = layers, alive
        self.seen: list[Note] = []

    def on_call(self, call: Call, out: Tensor) -> None:
        """Note a call."""
        layer = self.layers.get(call.name)
        head = layer is not None and out.numel() < SMALL and self.alive[layer.out_units].all()
        self.seen.append(Note(call.name, _sums(out), out.clone() if head else None))


class Masked(Watch):
    """Zeroes what each layer reads of dropped units, and ends where it gives not what is `seen`.

    Masking inputs as they are read, rather than columns of weights, is the definition itself.
    Where a whole layer is as it should be, its numbers are taken over to the last bit: code that
    ranks them (the boxes of a detector) then takes the same way in both networks.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        alive: np.ndarray,
        seen: Sequence[Note],
        tolerance: float | None,
    ) -> None:
        super().__init__(model)
        self.layers, self.alive, self.seen, self.tolerance = layers, alive, seen, tolerance

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Zero the dropped inputs of a dense layer."""
        call = self.read(func, args)
        layer = self.layers.get(call.name) if call is not None else None
        if call is not None and layer is not None and layer.dense:
            gone = np.flatnonzero(~self.alive[layer.in_units])
            if len(gone) and call.x.shape[1] == len(layer.in_units):
                at = torch.from_numpy(gone).to(call.x.device)
                x = call.x.index_fill(1, at, 0.0)
                place = 1 if func.overloadpacket is aten.addmm else 0
                args = (*args[:place], x, *args[place + 1 :])
        return func(*args, **kwargs)

    def on_call(self, call: Call, out: Tensor) -> None:
        """Raise at a difference, in the channels that stay."""
        note = self.seen[len(self.calls)] if len(self.calls) < len(self.seen) else None
        layer = self.layers.get(call.name)
        if note is None or note.name != call.name:
            raise Differs(rounding=False)
        # a layer that works on the rows of channels gives fewer of them
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


# What makes new tensors of the default dtype where none is given; the latter where its values are.
NEW = {
    torch.empty, torch.eye, torch.linspace, torch.logspace, torch.ones, torch.rand, torch.randn,
    torch.zeros,
}  # fmt: skip
NEW_OF_VALUES = {torch.arange, torch.as_tensor, torch.full, torch.range, torch.tensor}


class NewInDouble(TorchFunctionMode):
    """New tensors are float64 where they would be of torch's default dtype, on this thread alone.

    To set that default would change what other threads get meanwhile.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run `func`; a new tensor is made of float64."""
        kwargs = kwargs or {}
        if kwargs.get("dtype") is not None or func not in NEW | NEW_OF_VALUES:
            return func(*args, **kwargs)
        if func in NEW_OF_VALUES:
            made = func(*args, **kwargs)
            own = any(hasattr(value, "dtype") for value in args)  # an array's, say
            if own or made.dtype != torch.get_default_dtype():
                return made
        return func(*args, **{**kwargs, "dtype": torch.float64})


def in_double(run: Run, net: nn.Module) -> Any:
    """Run a network of float64 on inputs made float64 on their way in, as are new tensors."""
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
