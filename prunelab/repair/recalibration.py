"""BatchNorm statistics after pruning: changed by what pruning changed, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.data.batches import batch_size
from prunelab.data.private_random import private_steps
from prunelab.errors import BadData
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.trace import undisturbed
from prunelab.loops.batch import checked, guarded
from prunelab.values import Progress


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A network and the graph that describes it."""

    network: nn.Module
    graph: ChannelGraph


def places(units: np.ndarray, among: np.ndarray) -> Tensor:
    """Where the positions of `units`, some of those of `among`, stand in it [positions]."""
    return torch.from_numpy(np.flatnonzero(np.isin(among, units)))


def recalibrating(
    small: Traced,
    target: Traced,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int = 0,
    but: Collection[str] = (),
) -> Generator[Progress, None, None]:
    """Change the BatchNorm statistics of `small`, in place, by what pruning changed.

    Both networks run over the same batches, normalising by each batch; the difference between
    what they measure is applied to the target's statistics. The modules `but` keep theirs, and
    normalise by them.
    """
    here = yield from _statistics(small.network, batches, forward, expected, but)
    there = yield from _statistics(target.network, batches, forward, expected, but)
    with torch.no_grad():
        for name, (mean, variance) in here.items():
            key = (f"{name}.running_mean", 0)
            channels = torch.arange(len(there[name][0]))
            if key in small.graph.slots and key in target.graph.slots:
                channels = places(small.graph.slots[key], target.graph.slots[key])
            if name not in there:
                continue
            aim, spread = (value[channels.to(value.device)] for value in there[name])
            norms = small.network.get_submodule(name), target.network.get_submodule(name)
            shift_norm(*norms, channels, mean - aim, variance / spread)


def shift_norm(
    norm: nn.Module, target: nn.Module, channels: Tensor, shift: Tensor, ratio: Tensor
) -> None:
    """Give a BatchNorm the statistics of its target's `channels`, changed as measured.

    `shift` is the measured difference of means and `ratio` that of variances, small to target,
    on the same images. So a network that did not change keeps its statistics, whatever images
    (augmented ones, say) they were made on.
    """
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        return
    assert isinstance(target, nn.modules.batchnorm._BatchNorm)
    assert norm.running_var is not None
    assert target.running_mean is not None
    assert target.running_var is not None
    channels = channels.to(norm.running_mean.device)
    ratio = torch.nan_to_num(ratio, nan=1.0, posinf=1.0).clamp_min(1e-3)
    norm.running_mean.copy_(target.running_mean[channels] + shift)
    norm.running_var.copy_(target.running_var[channels] * ratio)


@private_steps
@torch.no_grad()
def _statistics(
    model: nn.Module,
    batches: Callable[[], Iterable[Any]],
    forward: Callable[[nn.Module, Any], Any],
    expected: int,
    but: Collection[str],
) -> Generator[Progress, None, dict[str, tuple[Tensor, Tensor]]]:
    """The mean and variance that each BatchNorm sees [channels], averaged over batches.

    One value a channel has no variance: there BatchNorm normalises by what it has, and where it
    never sees more it is left out.
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
    with undisturbed(model):
        model.eval()
        hooks = [norm.register_forward_pre_hook(_by_batch) for norm in norms.values()]
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


def _by_batch(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
    x = given[0]
    norm.train(x.numel() > x.shape[1])
