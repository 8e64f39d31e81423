"""Recalibrates BatchNorm statistics by the difference that pruning made, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.data.batches import batch_size
from prunelab.data.private_random import private_steps
from prunelab.errors import BadData
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.surgery.network_state import state_preserved
from prunelab.loops.batch import checked, guarded
from prunelab.loops.modes import by_batch
from prunelab.repair.recordings import Recordings
from prunelab.values import Progress

LEAST_RATIO = 1e-3  # of variances, so that a nearly dead channel is not amplified


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A network, the graph that describes it, and its recordings so far."""

    network: nn.Module
    graph: ChannelGraph
    recordings: Recordings = field(default_factory=Recordings)


def positions_among(units: np.ndarray, among: np.ndarray) -> Tensor:
    """The positions in `among` of `units`, which are some of them [positions]."""
    return torch.from_numpy(np.flatnonzero(np.isin(among, units)))


def recalibrating(
    small: Traced,
    target: Traced,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int = 0,
    but: Collection[str] = (),
) -> Generator[Progress, None, None]:
    """Recalibrate the BatchNorm statistics of `small`, in place.

    Both networks run over the same batches in training-mode BatchNorm; the difference between
    their statistics is applied to the target's running statistics.

    Parameters
    ----------
    small, target
        The pruned network, and the one whose running statistics it starts from.
    batches
        Returns the batches; called once for each network.
    forward
        `forward(model, batch)` runs a network.
    expected
        How many images there are, for Progress.
    but
        Names of BatchNorms that keep their statistics, and normalise by them.

    Yields
    ------
    Progress
        Progress in images.

    Raises
    ------
    BadData
        For no batches, or batches on which a network fails.
    """
    here = yield from _measuring(small.network, batches, forward, expected, but)
    there = yield from _measuring(target.network, batches, forward, expected, but)
    with torch.no_grad():
        for name, (mean, variance) in here.items():
            key = (f"{name}.running_mean", 0)
            channels = torch.arange(len(there[name][0]))
            if key in small.graph.slots and key in target.graph.slots:
                channels = positions_among(small.graph.slots[key], target.graph.slots[key])
            if name not in there:
                continue
            goal, spread = (value[channels.to(value.device)] for value in there[name])
            norms = small.network.get_submodule(name), target.network.get_submodule(name)
            shift_norm(*norms, channels, mean - goal, variance / spread)


def shift_norm(
    norm: nn.Module, target: nn.Module, channels: Tensor, shift: Tensor, ratio: Tensor
) -> None:
    """Give a BatchNorm the target's running statistics, changed as measured.

    So a network that did not change keeps its statistics, whatever images (augmented ones, say)
    they were estimated on. A module without running statistics stays as it is.

    Parameters
    ----------
    norm, target
        The BatchNorm to change, and the one in the target network.
    channels
        The target's channels that `norm` still has [channels].
    shift, ratio
        The measured difference of means and ratio of variances, pruned to target [channels].
    """
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        return
    assert isinstance(target, nn.modules.batchnorm._BatchNorm)
    assert norm.running_var is not None
    assert target.running_mean is not None
    assert target.running_var is not None
    channels = channels.to(norm.running_mean.device)
    ratio = torch.nan_to_num(ratio, nan=1.0, posinf=1.0).clamp_min(LEAST_RATIO)
    norm.running_mean.copy_(target.running_mean[channels] + shift)
    norm.running_var.copy_(target.running_var[channels] * ratio)


@private_steps
@torch.no_grad()
def _measuring(
    model: nn.Module,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int,
    but: Collection[str],
) -> Generator[Progress, None, dict[str, tuple[Tensor, Tensor]]]:
    """The mean and variance of each BatchNorm's input [channels], averaged over batches.

    A batch with a single value for each channel has no variance: there BatchNorm uses its running
    statistics, and if there is no other batch it is left out.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_mean is not None
        and name not in but
    }
    if not norms:
        return {}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    count = 0
    with state_preserved(model):
        model.eval()
        hooks = [norm.register_forward_pre_hook(by_batch) for norm in norms.values()]
        try:
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative average
            for batch in guarded(batches()):
                checked(forward, model, batch)
                count += batch_size(batch)
                yield Progress(count, max(expected, count), "measuring BatchNorm statistics")
            found = {
                name: (norm.running_mean.clone(), norm.running_var.clone())  # type: ignore[union-attr]
                for name, norm in norms.items()
                if int(norm.num_batches_tracked or 0)
            }
        finally:
            for hook in hooks:
                hook.remove()
            for name, norm in norms.items():
                norm.momentum = momenta[name]
    if not count:
        raise BadData("There are no batches to measure BatchNorm on; give at least one.")
    return found
