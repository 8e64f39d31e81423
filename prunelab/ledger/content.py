"""Tensors as bytes, and the name that a tensor has from its content.

The bytes are the elements in order, as this machine lays them out: no more is needed to read them
back than type and shape, and nothing is ever unpickled. Torch is imported where a tensor is at
hand: a ledger is read without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def raw(tensor: Tensor) -> tuple[str, list[int], memoryview]:
    """Type, shape and bytes of a tensor; the bytes are its own memory wherever they can be."""
    import torch

    plain = tensor.detach().cpu().contiguous()
    flat = plain.as_strided((plain.numel(),), (1,))  # of one element any stride is contiguous
    kind = str(tensor.dtype).removeprefix("torch.")
    return kind, list(tensor.shape), flat.view(torch.uint8).numpy().data


def tensor_of(kind: str, shape: Sequence[int], data: bytearray) -> Tensor:
    """The tensor in `data`, which is its memory from now on.

    Raises `ValueError` where type, shape and bytes do not go together.
    """
    import torch

    dtype = getattr(torch, kind, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"this torch knows no type {kind!r}")
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    try:
        return flat.reshape(shape)
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def named(kind: str, shape: Sequence[int], data: memoryview | bytearray) -> str:
    """32 hex digits over type, shape and bytes: the same for equal tensors, and only for them."""
    digest = hashlib.blake2b(f"{kind} {list(shape)}".encode(), digest_size=16)
    digest.update(data)
    return digest.hexdigest()
