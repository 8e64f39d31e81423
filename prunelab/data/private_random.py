"""Random numbers from private generators, on one thread, whatever code draws them.

A user's loader, metric or network draws from torch's global generators, which belong to all
threads. Inside `private_random(seed)` every random operation of PyTorch that is not given a
generator runs with one of ours: the global ones are neither read nor advanced, and no other
thread is affected. `torch.manual_seed(seed)` would give the same numbers.

PyTorch lets a thread switch on a *dispatch key*: a layer of kernels that operations go through
first. Kernels for the random operations are registered under a key that is free; all others fall
through it. So a network costs what it did, and what is scripted or compiled draws here as well.
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
NAME = "TESTING_ONLY_GenericMode"  # which PyTorch uses in its own tests alone
KEY = torch._C._dispatch_key_parse(NAME)
BELOW = torch._C.DispatchKeySet(KEY)  # left out where a kernel calls what it stands for
P = ParamSpec("P")
Y = TypeVar("Y")
R = TypeVar("R")
_here = threading.local()  # `stream`: what this thread draws from


class Stream:
    """One private generator a device, each seeded with `seed` when it is first drawn from."""

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
    """Inside, this thread draws from generators seeded with `seed`, or goes on with a stream.

    Not to be held across a `yield`: see `privately`. An operation that is given a generator keeps
    it, and worker processes of a DataLoader draw as ever, from a base seed that is drawn here.
    So do other threads of the user's, and fused CUDA attention that is called by its own name.
    Code that seeds the global generator does so for all threads, and changes nothing here; Python's
    and NumPy's generators are not PyTorch's, and stay global.

    Raises `BadModel` where `torch.utils.checkpoint` computes random activations anew: it restores
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
    """Do `work` step by step, each inside `private_random`; the numbers go on from step to step."""
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
    """A generator function each call of which is done `privately`, from the same seed."""

    @wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> Generator[Y, None, R]:
        return privately(function(*args, **kwargs), 0)

    return made


def _stream() -> Stream | None:
    """What to draw from; None in a process forked meanwhile, and while code is being compiled."""
    stream: Stream | None = getattr(_here, "stream", None)
    if stream is None or stream.process != os.getpid():
        return None
    traced = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
    return None if traced else stream


def _kernel(op: Any, drawing: Any) -> Callable[..., Any]:
    """What runs in the place of `op`: `drawing`, the overload of it that takes a generator."""
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
                    "computes anew in the backward pass, where they cannot be drawn again. Switch "
                    "activation checkpointing off while it is pruned."
                )
            return drawing(*args, **{**kwargs, "generator": stream.on(device)})

    return run


def _device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """Where an operation draws; None on the meta device, which holds no numbers."""
    tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
    first = next(tensors, None)
    device = kwargs.get("device") if first is None else first.device
    device = torch.get_default_device() if device is None else device
    return None if device.type == "meta" else device


def _native_dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """Dropout as it is defined; the fused one takes no generator."""
    if _stream() is None or train is False or p == 0:
        with torch._C._ExcludeDispatchKeyGuard(BELOW):
            return aten.native_dropout(x, p, train)
    kept = torch.empty_like(x).bernoulli_(1 - p)
    return x * (kept / (1 - p) if p < 1 else kept), kept.bool()


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, p: float = 0.0,
    causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Attention with dropout as it is defined; the fused ones take no generator."""
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
    """`op` if it takes a generator, or else the overload that takes one more; None without."""

    def shape(one: Any) -> list[tuple[str, str]]:
        given = [(a.name, str(a.type)) for a in one._schema.arguments if a.name != "generator"]
        return [*given, *(("", str(made.type)) for made in one._schema.returns)]

    for one in (op, *(getattr(op.overloadpacket, name) for name in op.overloadpacket.overloads())):
        takes = any(argument.name == "generator" for argument in one._schema.arguments)
        if takes and shape(one) == shape(op):
            return one
    return None


def _registered() -> tuple[Library, Library]:
    """The kernels under KEY, which last as long as what is given."""
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
