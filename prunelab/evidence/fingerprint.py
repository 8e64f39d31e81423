"""The name of a network's exact state: evidence carries it, so that stale evidence is known."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from prunelab.ledger.content import raw


def fingerprint(model: nn.Module) -> str:
    """Sixteen hex digits over the names, shapes and bytes of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(raw(tensor)[-1])
    return digest.hexdigest()
