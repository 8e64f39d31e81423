"""The fingerprint of a network's exact state, by which stale evidence is recognised."""

from __future__ import annotations

import hashlib
import json

from torch import nn

from prunelab.graph.surgery.network_state import captured
from prunelab.ledger.content import raw


def fingerprint(model: nn.Module) -> str:
    """A hash of all that its outputs in evaluation mode depend on, 16 hex digits.

    That is the names, shapes and bytes of all parameters and buffers, and extra state. Modes and
    memory formats are not in it.
    """
    state = captured(model)
    digest = hashlib.blake2b(digest_size=8)
    unsaved = state.about["unsaved"]  # after what the fingerprints of earlier versions covered
    for name in [*(name for name in state.tensors if name not in unsaved), *unsaved]:
        tensor = state.tensors[name]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(raw(tensor)[-1])
    if extra := state.about["extra"]:
        digest.update(json.dumps(extra).encode())
    return digest.hexdigest()
