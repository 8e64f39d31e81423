"""Watching a network run: which convolution or linear layer is called, by weight identity.

A layer is a *parameter*, not a module: functional calls, shared modules, and weights that are
computed from parameters are seen all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from prunelab.graph.labels.layout import tensors_in
from prunelab.graph.labels.op_tables import aten
from prunelab.graph.labels.provenance import Origin, origin_after


@dataclass(frozen=True, slots=True)
class Conv:
    """How a convolution is called; a linear layer has none."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    groups: int


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the layer `name` (its weight's qualified name) on input `x`.

    `x` is [N, in, *space] for a convolution and [rows, in] for a linear layer; `weight` is as
    passed, [out, in/groups, *kernel] (transposed: [in, out/groups, *kernel]) or [out, in], and
    `origin` says which entries of which parameters it is made of.
    """

    name: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    conv: Conv | None
    origin: Origin

    def applied(self, out: Tensor) -> int:
        """How many times the kernel is applied: at each position of `out`.

        A transposed convolution applies it at each position of its input.
        """
        at = self.x if self.conv is not None and self.conv.transposed else out
        return at.numel() // max(1, at.shape[1])


@cache
def _composite(func: Any) -> bool:
    """Whether an operation is made of others by definition."""
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    )


class Watch(TorchDispatchMode):
    """Runs operations unchanged and reports each layer call to `on_call`.

    `calls` names the layers in the order of their calls. Works below autograd: what `on_call`
    computes is never recorded for a backward pass. Fused attention, which hides the layers
    inside, is switched off meanwhile, on this thread alone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[str] = []
        self._aside = False
        self._unfused = BaseTorchFunctionMode()  # under any such mode attention is not fused
        self._depth = 0  # it is entered again for operations that are made of others
        self.origins = WeakTensorKeyDictionary()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self.origins[tensor] = Origin.of(name, tensor)

    def __enter__(self) -> Any:
        if not self._depth:
            self._unfused.__enter__()
        self._depth += 1
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *given: Any) -> None:
        super().__exit__(*given)  # type: ignore[no-untyped-call]
        self._depth -= 1
        if not self._depth:
            self._unfused.__exit__(*given)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, operations are none of the network's: for what a hook computes."""
        self._aside = True
        try:
            yield
        finally:
            self._aside = False

    def on_call(self, call: Call, out: Tensor) -> None:
        """A layer was called and gave `out`."""

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Any other operation ran."""

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run an operation."""
        return func(*args, **kwargs)

    def origin(self, tensor: Any) -> Origin | None:
        """What `tensor` was computed from, if from parameters and buffers alone."""
        return self.origins.get(tensor) if isinstance(tensor, Tensor) else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._aside:
            return func(*args, **kwargs)
        if _composite(func):  # inference mode hands these over whole
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if func.overloadpacket in (aten.mm, aten.bmm):
            out = self._as_layer(func.overloadpacket, *args[:2])
            if out is not None:
                return out
        out = self.run(func, args, kwargs)
        self._follow(func, args, kwargs, out)
        call = self.read(func, args)
        if call is not None:
            self.on_call(call, out)
            self.calls.append(call.name)
        else:
            self.on_operation(func, args, kwargs, out)
        return out

    def _as_layer(self, packet: Any, a: Tensor, b: Tensor) -> Tensor | None:
        """A product with a parameter, written as the product of rows that a layer is."""
        left, right = self.origin(a), self.origin(b)
        if (left is None) == (right is None) or (packet is aten.mm and left is None):
            return None
        with self:
            if packet is aten.mm:
                return aten.mm(b.t(), a.t()).t()
            if any(index.shape[0] > 1 for index in (left or right or Origin("", {})).axes.values()):
                return None
            if left is None:
                rows = aten.mm(a.reshape(-1, a.shape[2]), b.select(0, 0))
                return rows.view(*a.shape[:2], b.shape[2])
            rows = aten.mm(b.transpose(1, 2).reshape(-1, b.shape[1]), a.select(0, 0).t())
            return rows.view(b.shape[0], b.shape[2], a.shape[1]).transpose(1, 2)

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Note the origin of what was computed from parameters and buffers alone."""
        inputs = []
        for tensor in tensors_in(*args, kwargs):
            origin = self.origins.get(tensor)
            if origin is not None:
                inputs.append((tensor, origin))
            elif tensor.ndim:
                return
        if not inputs or out is args[0]:
            return
        origin = origin_after(func, args, kwargs, inputs, out)
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and made not in self.origins:
                self.origins[made] = origin

    def read(self, func: Any, args: tuple[Any, ...]) -> Call | None:
        """The layer call that this operation is, if it is one."""
        packet = func.overloadpacket
        if packet is aten.convolution:
            x, weight, bias, stride, padding, dilation, transposed, _, groups = args
            origin = self.origin(weight)
            if origin is None or self.origin(x) is not None:
                return None
            conv = Conv(tuple(stride), tuple(padding), tuple(dilation), transposed, groups)
            return Call(origin.name, x, weight, bias, conv, origin)
        if packet is aten.addmm or packet is aten.mm:
            bias, x, matrix = args[:3] if packet is aten.addmm else (None, *args[:2])
            origin = self.origin(matrix)
            if origin is None or self.origin(x) is not None:
                return None
            turned = origin.carried(lambda index: index.t())
            return Call(origin.name, x, matrix.t(), bias, None, turned)
        return None
