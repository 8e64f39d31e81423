"""Observing the layer calls of a running network, identified by their weights.

A layer is a *parameter*, not a module, so that functional calls, shared modules, and weights that
are computed from parameters are all observed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from prunelab.graph.labels.layout import tensors_in
from prunelab.graph.labels.op_tables import aten
from prunelab.graph.labels.provenance import Origin, origin_after
from prunelab.graph.labels.unfused import Unfused
from prunelab.graph.modules.dispatch_mode import DispatchMode
from prunelab.graph.modules.walk import tensors_by_name


@dataclass(frozen=True, slots=True)
class Conv:
    """The arguments of a convolution; a linear layer has none."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    groups: int


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the layer `name` (the qualified name of its weight) on input `x`.

    `x` is [N, in, *space] for a convolution and [rows, in] for a linear layer; `weight` is as
    passed, [out, in/groups, *kernel] (transposed: [in, out/groups, *kernel]) or [out, in], and
    `origin` gives the parameter entries from which it is computed.
    """

    name: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    conv: Conv | None
    origin: Origin

    def applied(self, out: Tensor) -> int:
        """The number of applications of the kernel: one for each position of `out`.

        A transposed convolution applies it once for each position of its input.
        """
        at = self.x if self.conv is not None and self.conv.transposed else out
        return at.numel() // max(1, at.shape[1])


@cache
def _composite(func: Any) -> bool:
    """Whether an operation is defined as a composition of others."""
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    )


class Origins:
    """The origin of each tensor that comes from parameters and buffers of `model` alone."""

    def __init__(self, model: nn.Module) -> None:
        named = tensors_by_name(model).items()
        self._own = {id(tensor): (name, tensor) for name, tensor in named}  # held: ids stay theirs
        self._found: dict[int, Origin] = {}
        self._computed = WeakTensorKeyDictionary()

    def get(self, tensor: Tensor) -> Origin | None:
        """The origin of `tensor`; None where it comes from the inputs."""
        key = id(tensor)
        if key in self._own:
            if key not in self._found:
                self._found[key] = Origin.of(*self._own[key])
            return self._found[key]
        return self._computed.get(tensor) if self._computed.data else None

    def __contains__(self, tensor: Tensor) -> bool:
        return self.get(tensor) is not None

    def __setitem__(self, tensor: Tensor, origin: Origin) -> None:
        self._computed[tensor] = origin


class Watch(DispatchMode):
    """Runs operations unchanged and reports each layer call to `on_call`.

    `calls` names the layers in the order of their calls. It works below autograd: what `on_call`
    computes is never recorded for a backward pass. Operations that hide layers inside them are
    taken apart, see `Unfused`. `call` is the layer call that is being run.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[str] = []
        self._suspended = False
        self._unfused: Any = Unfused()
        self._depth = 0  # it is entered again for operations that are made of others
        self.call: Call | None = None
        self.origins = Origins(model)

    def __enter__(self) -> Any:
        if not self._depth:
            self._unfused.__enter__()
        self._depth += 1
        return super().__enter__()

    def __exit__(self, *given: Any) -> None:
        super().__exit__(*given)  # type: ignore[no-untyped-call]
        self._depth -= 1
        if not self._depth:
            self._unfused.__exit__(*given)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Ignore operations inside the `with` block, such as those of a hook."""
        self._suspended = True
        try:
            yield
        finally:
            self._suspended = False

    def on_call(self, call: Call, out: Tensor) -> None:
        """Called after each layer call, with its output."""

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Called after each other operation, with its output."""

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run an operation; subclasses may change its arguments or its result."""
        return func(*args, **kwargs)

    def origin(self, tensor: Any) -> Origin | None:
        """The origin of `tensor`, if it was computed from parameters and buffers alone."""
        return self.origins.get(tensor) if isinstance(tensor, Tensor) else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._suspended:
            return func(*args, **kwargs)
        if _composite(func):  # inference mode does not decompose these
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if func.overloadpacket in (aten.mm, aten.bmm):
            out = self._as_layer(func.overloadpacket, *args[:2])
            if out is not None:
                return out
        call = self.call = self.read(func, args)
        out = self.run(func, args, kwargs)
        self._follow(func, args, kwargs, out)
        if call is not None:
            self.on_call(call, out)
            self.calls.append(call.name)
        else:
            self.on_operation(func, args, kwargs, out)
        return out

    def _as_layer(self, packet: Any, a: Tensor, b: Tensor) -> Tensor | None:
        """Rewrite a product with a parameter as the row product of a linear layer."""
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
        """Record the origin of what was computed from parameters and buffers alone."""
        if args and isinstance(args[0], Tensor) and args[0].ndim and args[0] not in self.origins:
            return
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
        """The layer call that this operation performs; None for other operations."""
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
