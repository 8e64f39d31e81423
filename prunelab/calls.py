"""Watching a network run: which convolution or linear layer is called, by weight identity.

A layer is a *parameter*, not a module: functional calls, shared modules and parametrised copies
are seen all the same. May import torch and errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten

VIEWS = {
    aten.t, aten.transpose, aten.permute, aten.view, aten._unsafe_view, aten.reshape,
    aten.unsqueeze, aten.squeeze, aten.expand, aten.slice, aten.select, aten.split,
    aten.split_with_sizes, aten.unbind, aten.alias, aten.detach,
}  # fmt: skip
CASTS = {aten._to_copy, aten.clone, aten.contiguous}


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
    passed, [out, in/groups, *kernel] (transposed: [in, out/groups, *kernel]) or [out, in].
    """

    name: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    conv: Conv | None

    def applied(self, out: Tensor) -> int:
        """How many times the kernel is applied: at each position of `out`.

        A transposed convolution applies it at each position of its input.
        """
        at = self.x if self.conv is not None and self.conv.transposed else out
        return at.numel() // max(1, at.shape[1])


@dataclass(frozen=True, slots=True)
class Origin:
    """Which parameter or buffer a tensor was made from, and by which operations."""

    name: str
    steps: tuple[tuple[Any, tuple[Any, ...], dict[str, Any]], ...] = ()

    @property
    def transposed(self) -> bool:
        """Whether a matrix was turned by the one operation that linear layers use."""
        turns = [step for step in self.steps if step[0].overloadpacket not in (*CASTS, aten.detach)]
        if len(turns) != 1:
            return False
        func, args, _ = turns[0]
        return func.overloadpacket is aten.t or (
            func.overloadpacket in (aten.transpose, aten.permute)
            and (args in ((0, 1), (1, 0)) or [tuple(a) for a in args if a] == [(1, 0)])
        )

    @property
    def plain(self) -> bool:
        """Whether it is the parameter itself, perhaps cast or copied."""
        return all(step[0].overloadpacket in (*CASTS, aten.detach) for step in self.steps)


class Watch(TorchDispatchMode):
    """Runs operations unchanged and reports each layer call to `on_call`.

    Works below autograd: what `on_call` computes is never recorded for a backward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.origins = WeakTensorKeyDictionary()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self.origins[tensor] = Origin(name)

    def on_call(self, call: Call, out: Tensor) -> None:
        """A layer was called and gave `out`."""

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Any other operation ran."""

    def origin(self, tensor: Any) -> Origin | None:
        """Where `tensor` comes from, if it is a parameter or buffer or made from just one."""
        return self.origins.get(tensor) if isinstance(tensor, Tensor) else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        ):  # inference mode hands these over whole
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if func.overloadpacket in VIEWS | CASTS:
            origin = self.origin(args[0])
            if origin is not None:
                step = (func, args[1:], kwargs)
                for made in tree_leaves(out):
                    self.origins[made] = Origin(origin.name, (*origin.steps, step))
        call = self.read(func, args)
        if call is not None:
            self.on_call(call, out)
        else:
            self.on_operation(func, args, kwargs, out)
        return out

    def read(self, func: Any, args: tuple[Any, ...]) -> Call | None:
        """The layer call that this operation is, if it is one."""
        packet = func.overloadpacket
        if packet is aten.convolution:
            x, weight, bias, stride, padding, dilation, transposed, _, groups = args
            origin = self.origin(weight)
            if origin is None or not origin.plain:
                return None
            conv = Conv(tuple(stride), tuple(padding), tuple(dilation), transposed, groups)
            return Call(origin.name, x, weight, bias, conv)
        if packet is aten.addmm or packet is aten.mm:
            bias, x, matrix = args[:3] if packet is aten.addmm else (None, *args[:2])
            origin = self.origin(matrix)
            if origin is None or not origin.transposed:
                return None
            return Call(origin.name, x, matrix.t(), bias, None)
        return None
