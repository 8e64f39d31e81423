"""The fingerprint of a network's exact state, by which stale evidence is recognised."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from prunelab.ledger.content import raw


def fingerprint(model: nn.Module) -> str:
    """A hash of the names, shapes and bytes of all parameters and buffers, 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(raw(tensor)[-1])
    return digest.hexdigest()
