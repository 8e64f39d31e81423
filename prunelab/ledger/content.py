"""Tensors as bytes, and names of tensors that are hashes of their content.

The bytes are the elements in order, in the machine's byte order: only type and shape are needed to
read them, and nothing is ever unpickled. Torch is imported only where tensors are handled, so that
a ledger can be read without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def raw(tensor: Tensor) -> tuple[str, list[int], memoryview]:
    """The type, shape and bytes of a tensor; the bytes share its memory where possible."""
    import torch

    plain = tensor.detach().cpu().contiguous()
    flat = plain.as_strided((plain.numel(),), (1,))  # a tensor of one element may have any stride
    kind = str(tensor.dtype).removeprefix("torch.")
    return kind, list(tensor.shape), flat.view(torch.uint8).numpy().data


def tensor_of(kind: str, shape: Sequence[int], data: bytearray) -> Tensor:
    """The tensor in `data`, which becomes its memory.

    Raises `ValueError` where type, shape and bytes do not match.
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


def content_hash(kind: str, shape: Sequence[int], data: memoryview | bytearray) -> str:
    """A hash of type, shape and bytes (32 hex digits), which identifies equal tensors."""
    digest = hashlib.blake2b(f"{kind} {list(shape)}".encode(), digest_size=16)
    digest.update(data)
    return digest.hexdigest()
