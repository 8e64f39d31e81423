"""Several processes that work as one, started by `torchrun`: the only use of torch.distributed.

Every process, a *rank*, runs the same program and makes the same calls. Batches are `sharded`: each
rank runs its own. Sums over them are `summed`, lists over them put `in_order`, gradients
`averaged`; so all ranks know the same. What rank 0 decides or trains the others take (`followed`,
`follow`), and it alone writes files. In a single process each of these returns what it is given.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn

from prunelab.data.splits import Pass
from prunelab.errors import RankLost

T = TypeVar("T")
PATIENCE = timedelta(minutes=10)  # how long a rank waits for another


def join() -> None:
    """Join the other processes where `torchrun` started this one, unless that was done already.

    With CUDA, "cuda" is then the GPU of this rank.
    """
    started = {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if started and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _joined():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        with _told():
            distributed.init_process_group(timeout=PATIENCE)


def ranks() -> int:
    """How many processes work together."""
    return distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """Which of them this is; 0 decides and writes files."""
    return distributed.get_rank() if _joined() else 0


def sharded(batches: Iterable[T]) -> Iterable[T]:
    """The batches of this rank: every `ranks()`-th, so that whole batches stay whole.

    Of a session's passes it alone is read, where the loader allows it.
    """
    if ranks() == 1:
        return batches
    if isinstance(batches, Pass):
        return batches.part(rank(), ranks())
    return itertools.islice(batches, rank(), None, ranks())


def in_order(mine: Sequence[T]) -> list[T]:
    """What all ranks made of their batches, one item a batch, in the order of the batches."""
    every = gathered(list(mine))
    longest = max(map(len, every))
    return [some[at] for at in range(longest) for some in every if at < len(some)]


def summed(mine: Mapping[str, Any]) -> dict[str, Any]:
    """The sum over ranks of each value, an array or anything else that adds up, by name.

    A name that a rank lacks counts as zero there.
    """
    if ranks() == 1:
        return dict(mine)
    about = gathered({name: _Shape.of(value) for name, value in mine.items()})
    found: dict[str, Any] = {}
    for name in dict.fromkeys(itertools.chain.from_iterable(about)):
        given = [some[name] for some in about if name in some]
        whole = isinstance(given[0], _Shape)
        found[name] = given[0].sum_of(mine.get(name)) if whole else reduce(add, given)
    return found


def averaged(value: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Average the gradients over ranks in place, as DistributedDataParallel; returns the mean loss.

    A parameter without a gradient on some ranks counts as zero there, on all it is left without.
    """
    if ranks() == 1:
        return value
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    have = value.new_tensor([p.grad is not None for p in parameters])
    flat = _all_reduce(torch.cat([value[None], have, *(part.flatten() for part in parts)]))
    mean = flat / ranks()
    start = 1 + len(have)
    for p, anywhere in zip(parameters, flat[1:start].tolist(), strict=True):
        if anywhere:
            p.grad = mean[start : start + p.numel()].view_as(p).to(p.dtype)
        start += p.numel()
    return mean[0]


def gathered(mine: T) -> list[T]:
    """The objects of all ranks, by rank."""
    if ranks() == 1:
        return [mine]
    every: list[Any] = [None] * ranks()
    with _told():
        distributed.all_gather_object(every, mine)
    return every


def followed(mine: T) -> T:
    """The object of rank 0."""
    if ranks() == 1:
        return mine
    box = [mine]
    with _told():
        distributed.broadcast_object_list(box)
    return box[0]


def follow(network: nn.Module) -> nn.Module:
    """Give `network` the parameters and buffers that it has on rank 0, in place."""
    if ranks() > 1:
        with torch.no_grad(), _told():
            for tensor in itertools.chain(network.parameters(), network.buffers()):
                here = _movable(tensor.detach())
                distributed.broadcast(here, 0)
                tensor.copy_(here)
    return network


def own_file(path: str | Path) -> Path:
    """The path on rank 0; on the others one in a temporary folder, with a copy of a session there.

    So rank 0 alone writes to `path`, and no file system needs to be shared.
    """
    if ranks() == 1:
        return Path(path)
    content = followed(_session_in(Path(path)) if rank() == 0 else None)
    if rank() == 0:
        return Path(path)
    folder = tempfile.mkdtemp(prefix="prunelab-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    own = Path(folder) / Path(path).name
    if content is not None:
        own.write_bytes(content)
    return own


def _session_in(path: Path) -> bytes | None:
    """A session file's content, without what another program is about to write."""
    if path.suffix != ".prunelab" or not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(path)) as database:
            return database.serialize()
    except sqlite3.Error:
        return path.read_bytes()  # opening it will say what is wrong


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@dataclass(frozen=True, slots=True)
class _Shape:
    """What an array looks like, so that a rank without it can take part in its sum."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    numpy: bool

    @classmethod
    def of(cls, value: Any) -> Any:
        """The shape of an array; any other value itself."""
        if not isinstance(value, Tensor | np.ndarray):
            return value
        return cls(tuple(value.shape), torch.as_tensor(value).dtype, isinstance(value, np.ndarray))

    def sum_of(self, mine: Any) -> Any:
        """The sum over ranks; `mine` is this rank's array, or None."""
        if mine is None:
            total = torch.zeros(self.shape, dtype=self.dtype)
        else:
            total = torch.as_tensor(mine).clone(memory_format=torch.contiguous_format)
        total = _all_reduce(total)
        return total.numpy() if self.numpy else total


def _all_reduce(total: Tensor) -> Tensor:
    """Sum a tensor over ranks, in place."""
    here = _movable(total)
    with _told():
        distributed.all_reduce(here)
    return total.copy_(here)


def _movable(tensor: Tensor) -> Tensor:
    """The tensor where the ranks' backend can send it, in one piece."""
    if distributed.get_backend() == "nccl":
        tensor = tensor.cuda()
    return tensor.contiguous()


@contextmanager
def _told() -> Iterator[None]:
    """Errors of torch.distributed as `RankLost`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        said = next(iter(str(error).splitlines()), "")
        raise RankLost(
            f"Another of the processes that work together has ended, or took more than "
            f"{PATIENCE.seconds // 60} minutes ({type(error).__name__}: {said}). Look for its own "
            "error, and start all again: a session with path='run.prunelab' and resume=True goes "
            "on after its last event."
        ) from error
