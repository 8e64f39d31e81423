"""Second moments of layers' outputs: what their responses have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.data.batches import batch_size
from prunelab.data.private_random import private_steps
from prunelab.evidence.reconstruction_target import unbiased
from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.graph.surgery.network_state import state_preserved
from prunelab.loops.batch import checked, guarded
from prunelab.values import Progress


@private_steps
@torch.no_grad()
def output_moments(
    model: nn.Module,
    layers: Collection[str],
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    expected: int = 0,
) -> Generator[Progress, None, dict[str, Tensor]]:
    """Sum y y' over all samples and positions, in float64; y is without bias.

    Parameters
    ----------
    model
        The network; it stays as it is.
    layers
        Names of convolutions; of each the sum is [out, out].
    batches, forward
        What it runs on, and `forward(model, batch)`.
    expected
        How many images there are, for Progress.
    """
    watch, count = _Outputs(model, layers), 0
    with state_preserved(model):
        model.eval()
        for batch in guarded(batches):
            with watch:
                checked(forward, model, batch)
            count += batch_size(batch)
            yield Progress(count, max(expected, count), "measuring the layers' outputs")
    return watch.found


class _Outputs(Watch):
    def __init__(self, model: nn.Module, layers: Collection[str]) -> None:
        super().__init__(model)
        weights = dict(model.named_parameters())
        self.names = {f"{name}.weight": name for name in layers}
        self.found = {
            name: torch.zeros(len(weights[w]), len(weights[w]), dtype=torch.float64)
            for w, name in self.names.items()
        }

    def on_call(self, call: Call, out: Tensor) -> None:
        if call.name in self.names:
            y = unbiased(call, out).movedim(1, 0).flatten(1).double()
            self.found[self.names[call.name]] += (y @ y.T).cpu()
