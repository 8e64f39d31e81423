"""A network's recordings, one for each shape of batch that it has met."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.graph.surgery.network_state import state_preserved
from prunelab.loops.batch import checked
from prunelab.repair.dataflow import NotReplayable, Recording, signature
from prunelab.repair.recorder import record

SHAPES = 32  # of batches whose recordings are kept, the latest ones
Sums = Mapping[str, tuple[float, float]]


@dataclass(slots=True, eq=False)
class Recordings:
    """The recordings of one network, which keeps its tensors and its code; values may change."""

    _made: dict[Hashable, Recording] = field(default_factory=dict)

    def of(
        self,
        network: nn.Module,
        batch: Any,
        forward: Callable[[nn.Module, Any], Any],
        wanted: Iterable[str] = (),
    ) -> tuple[Recording, Sums]:
        """The recording for batches like this one; the network runs on it first if there is none.

        Parameters
        ----------
        network
            Always the same one.
        forward
            `forward(network, batch)` runs it; always the same one.
        wanted
            Layers whose last output is summed up when the network runs.

        Returns
        -------
        The recording and, if the network ran, the sums of sizes and of squares of what each wanted
        layer gave last: its replay must give the same.

        Raises
        ------
        NotReplayable
            As `record` does.
        """
        key = signature(batch)
        if key in self._made:
            return self._made[key], {}
        sums = _Sums(network, wanted)
        with state_preserved(network), sums, torch.no_grad():
            network.eval()
            checked(forward, network, batch)
        like = next(iter(self._made.values()), None)
        made = record(network, batch, forward, like)
        if len(self._made) == SHAPES:
            self._made.pop(next(iter(self._made)))
        self._made[key] = made
        return made, sums.found


class _Sums(Watch):
    """Sums over the last output of each wanted layer."""

    def __init__(self, model: nn.Module, wanted: Iterable[str]) -> None:
        super().__init__(model)
        self.found = dict.fromkeys(wanted, (0.0, 0.0))

    def on_call(self, call: Call, out: Tensor) -> None:
        """Sum a wanted layer's output."""
        if isinstance(out, FakeTensor):
            raise NotReplayable("the network keeps tensors without data")
        if call.name in self.found:
            self.found[call.name] = sums_of(out)


def sums_of(out: Tensor) -> tuple[float, float]:
    """The sums of sizes and of squares; a run and its replay add them up in the same order."""
    out = out if out.dtype in (torch.float32, torch.float64) else out.double()
    return float(out.abs().sum()), float(out.square().sum())
