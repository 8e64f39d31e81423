"""Random numbers from private generators on one thread, also in the user's code.

A user's loader, metric or network draws from torch's global generators, which all threads share.
Inside `private_random(seed)` every random operation of PyTorch without an explicit generator uses
a private one: the global ones are neither read nor advanced, and no other thread is affected. The
numbers are those after `torch.manual_seed(seed)`.

PyTorch lets a thread switch on a *dispatch key*: a layer of kernels that operations go through
first. Kernels for the random operations are registered under an unused key; all other operations
fall through it. So a network runs at its usual speed, and scripted or compiled code is covered too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.library import Library, fallthrough_kernel

from prunelab.errors import BadModel

aten = torch.ops.aten
NAME = "TESTING_ONLY_GenericMode"  # PyTorch uses it in its own tests only
KEY = torch._C._dispatch_key_parse(NAME)
BELOW = torch._C.DispatchKeySet(KEY)  # excluded where a kernel calls the original operation
P = ParamSpec("P")
Y = TypeVar("Y")
R = TypeVar("R")
_here = threading.local()  # `stream`: the generators of this thread


class Stream:
    """One private generator per device, seeded with `seed` at its first use."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.process = os.getpid()
        self._generators: dict[torch.device, torch.Generator] = {}

    def on(self, device: torch.device) -> torch.Generator:
        """The generator of a device."""
        if device.type != "cpu" and device.index is None:
            device = torch.device(device.type, torch.accelerator.current_device_index())
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]


@contextmanager
def private_random(seed: int | Stream = 0) -> Iterator[None]:
    """Inside, this thread draws from generators seeded with `seed`, or continues a stream.

    Do not hold it across a `yield`: see `privately`. Operations with an explicit generator keep
    it. Worker processes of a DataLoader draw as usual, from a base seed that is drawn here; other
    threads of the user and fused CUDA attention called by its own name draw as usual too. Seeding
    the global generator inside affects all threads, and nothing here. Python's and NumPy's
    generators stay global.

    Raises `BadModel` where `torch.utils.checkpoint` recomputes random activations: it restores
    the global generator, from which nothing was drawn.
    """
    outer = getattr(_here, "stream", None)
    _here.stream = seed if isinstance(seed, Stream) else Stream(seed)
    try:
        with torch._C._IncludeDispatchKeyGuard(KEY):
            yield
    finally:
        _here.stream = outer


def privately(work: Generator[Y, None, R], seed: int) -> Generator[Y, None, R]:
    """Run each step of `work` inside `private_random`; all steps share one stream."""
    stream = Stream(seed)
    try:
        while True:
            with private_random(stream):
                try:
                    item = next(work)
                except StopIteration as end:
                    return end.value
            yield item
    finally:
        work.close()


def private_steps(
    function: Callable[P, Generator[Y, None, R]],
) -> Callable[P, Generator[Y, None, R]]:
    """Decorate a generator function: each call runs `privately`, from the same seed."""

    @wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> Generator[Y, None, R]:
        return privately(function(*args, **kwargs), 0)

    return made


def _stream() -> Stream | None:
    """The current stream; None in a forked process, and while code is being compiled."""
    stream: Stream | None = getattr(_here, "stream", None)
    if stream is None or stream.process != os.getpid():
        return None
    traced = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
    return None if traced else stream


def _kernel(op: Any, drawing: Any) -> Callable[..., Any]:
    """The kernel that replaces `op` by `drawing`, its overload that takes a generator."""
    arguments = drawing._schema.arguments
    place = next(i for i, argument in enumerate(arguments) if argument.name == "generator")

    def run(*args: Any, **kwargs: Any) -> Any:
        stream = _stream()
        given = op is drawing and (len(args) > place or kwargs.get("generator") is not None)
        with torch._C._ExcludeDispatchKeyGuard(BELOW):
            device = None if stream is None or given else _device(args, kwargs)
            if stream is None or device is None:
                return op(*args, **kwargs)
            if torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1:
                raise BadModel(
                    "The network draws random numbers in a part that torch.utils.checkpoint "
                    "recomputes in the backward pass, where they cannot be drawn again. Switch "
                    "activation checkpointing off while it is pruned."
                )
            return drawing(*args, **{**kwargs, "generator": stream.on(device)})

    return run


def _device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device of an operation; None on the meta device, which holds no values."""
    tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
    first = next(tensors, None)
    device = kwargs.get("device") if first is None else first.device
    device = torch.get_default_device() if device is None else device
    return None if device.type == "meta" else device


def _native_dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """Dropout by its definition; the fused kernel takes no generator."""
    if _stream() is None or train is False or p == 0:
        with torch._C._ExcludeDispatchKeyGuard(BELOW):
            return aten.native_dropout(x, p, train)
    kept = torch.empty_like(x).bernoulli_(1 - p)
    return x * (kept / (1 - p) if p < 1 else kept), kept.bool()


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, p: float = 0.0,
    causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Attention with dropout by its definition; the fused kernels take no generator."""
    if p > 0 and _stream() is not None:
        out: Tensor = aten._scaled_dot_product_attention_math(
            query, key, value, mask, p, causal, scale=scale, enable_gqa=enable_gqa
        )[0]
        return out
    with torch._C._ExcludeDispatchKeyGuard(BELOW):
        return aten.scaled_dot_product_attention(
            query, key, value, mask, p, causal, scale=scale, enable_gqa=enable_gqa
        )


def _with_generator(op: Any) -> Any:
    """`op` if it takes a generator, otherwise its overload that does; None where there is none."""

    def shape(one: Any) -> list[tuple[str, str]]:
        given = [(a.name, str(a.type)) for a in one._schema.arguments if a.name != "generator"]
        return [*given, *(("", str(made.type)) for made in one._schema.returns)]

    for one in (op, *(getattr(op.overloadpacket, name) for name in op.overloadpacket.overloads())):
        takes = any(argument.name == "generator" for argument in one._schema.arguments)
        if takes and shape(one) == shape(op):
            return one
    return None


def _registered() -> tuple[Library, Library]:
    """Register the kernels under KEY; they last as long as the returned libraries."""
    every, own = Library("_", "IMPL", NAME), Library("aten", "IMPL", NAME)
    every.fallback(fallthrough_kernel)
    own.impl("native_dropout", _native_dropout)
    own.impl("scaled_dot_product_attention", _attention)
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        if space != "aten":
            continue
        op = getattr(getattr(aten, packet), overload or "default")
        if (
            torch.Tag.nondeterministic_seeded in op.tags
            and (drawing := _with_generator(op)) is not None
        ):
            own.impl(op, _kernel(op, drawing))
    return every, own


_LIBRARIES = _registered()
