"""AOFP as released: random masks on a scoring path while SGD trains the base path.

For every batch, all layers in parallel:                          `search_sampled`
  1. For each layer draw a random half M of its search set S.     `_LayerSearch.draw`
  2. Forward; at each consumer compare the base path u with the
     scoring path v, where M is masked: t <- |u - v|^2 / |u|^2.   `ScoringPath`
  3. T_j += t, C_j += 1 for every j in M.                         `_LayerSearch.add`
  4. Backward from the base path's loss; one step of SGD.         `descend` (in loops)
  5. After b batches, with t_j <- T_j / C_j: remove the better
     half, halve S, or fail and restart.                          `_LayerSearch.decide`
     A removed half is masked on the base path at once.

The scoring path shares the base path's weights and BatchNorm statistics and runs outside autograd,
so it changes neither gradients, nor buffers, nor the base path's outputs. Released code:
`aofp_conv.py`, `aofp_train.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from prunelab.data.private_random import private_random
from prunelab.evidence.reconstruction_target import batch_norm_scale
from prunelab.graph.channels.channel_graph import ChannelGraph, ChannelGroup
from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.graph.labels.op_tables import NORMALISES_BATCH, aten
from prunelab.graph.surgery.editing import zero_columns
from prunelab.graph.trace import copy_of
from prunelab.loops.training import descend, forever
from prunelab.methods.aofp_search import judge
from prunelab.methods.base import Context, Found, Search
from prunelab.values import Progress, Rung, Units

if TYPE_CHECKING:
    from prunelab.methods.aofp import AOFP


def search_sampled(method: AOFP, context: Context) -> Search:
    """Train a private copy and search all layers in parallel; the move brings the trained weights.

    The move ends when every layer has succeeded once or retired, or when the target is met.
    """
    targets = method.targets(context)
    if not targets:
        return None
    rng = np.random.default_rng(context.seed)
    network = copy_of(context.model)
    network.train()
    settings = replace(context.train, lr=method.lr)
    optimiser = settings.optimiser(network)
    stream = forever(lambda epoch: context.training_batches(context.seed + epoch))
    stagger = method.batches // len(targets)
    searches = [
        _LayerSearch(group, method.warmup + index * stagger, group.units)
        for index, group in enumerate(targets)
    ]
    drop: dict[str, Units] = {}
    damage: dict[str, float] = {}
    order: dict[tuple[str, int], float] = {}
    step = 0
    while not all(search.done for search in searches):
        active = [search for search in searches if search.start <= step and not search.done]
        masks = {search.group.name: search.draw(rng) for search in active}
        path = ScoringPath(network, context.graph, masks, method.at or "relu")
        with private_random(context.seed + step):
            descend(network, next(stream), context.loss, optimiser, watch=path)
        zero_columns(network, context.graph, drop)  # SGD moves the masked columns
        for search in active:
            search.add(path.damage(search.group.name))
            if search.seen < method.batches:
                continue
            rung = search.decide(method.theta, method.retire_after)
            yield rung
            if search.taken:
                name = search.group.name
                drop[name], damage[name] = search.taken, rung.worst
                means = dict(zip(rung.search, rung.damages, strict=True))
                order |= {(name, unit): means[unit] for unit in search.taken}
                zero_columns(network, context.graph, drop)
        step += 1
        rungs = sum(search.done for search in searches)
        yield Progress(rungs, len(searches), f"AOFP trains and searches, batch {step}")
        goal = context.target_macs
        if drop and goal is not None and context.cost(context.plan.drop(drop)).macs <= goal:
            break
    drop = context.trimmed(drop, order)
    if not drop:
        return None
    return Found(context.move(method, drop, damage, {"batches": step}), network.eval())


@dataclass(slots=True)
class _LayerSearch:
    """Steps 1, 3 and 5 for one layer: its search set, and the sums and counts of damages."""

    group: ChannelGroup
    start: int  # batches before its first halving
    search: Units
    failures: int = 0
    halving: int = 0
    seen: int = 0
    mask: Units = ()
    taken: Units = ()
    retired: bool = False
    sums: dict[int, float] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether the layer has succeeded or retired."""
        return bool(self.taken) or self.retired

    def draw(self, rng: np.random.Generator) -> Units:
        """Step 1: a random half of the search set, to be masked now."""
        half = rng.choice(self.search, size=len(self.search) // 2, replace=False)
        self.mask = tuple(int(unit) for unit in half)
        return self.mask

    def add(self, damage: float) -> None:
        """Step 3: add the damage of the mask to every unit that it held."""
        for unit in self.mask:
            self.sums[unit] = self.sums.get(unit, 0.0) + damage
            self.counts[unit] = self.counts.get(unit, 0) + 1
        self.seen += 1

    def decide(self, theta: float, retire_after: int) -> Rung:
        """Step 5: take the better half, halve the search set, or fail and restart."""
        means = np.array(
            [
                self.sums[unit] / self.counts[unit] if unit in self.counts else np.inf
                for unit in self.search
            ]
        )
        rung = judge(self.group.name, self.halving, self.search, means, theta, self.seen)
        if rung.verdict == "take":
            self.taken = rung.candidates
        elif rung.verdict == "halve":
            self.search, self.halving = rung.candidates, self.halving + 1
        else:
            self.failures += 1
            self.retired = self.failures >= retire_after
            self.search, self.halving = self.group.units, 0
        self.sums, self.counts, self.seen = {}, {}, 0
        return rung


class ScoringPath(Watch):
    """Step 2: watches a forward pass and measures the damage of masking units.

    After the pass `damage(group)` is ||u - v||^2 / ||u||^2, sums over the batch and over the
    group's consumers: u the consumer's output on the base path, v with the units masked at its
    input. BatchNorm uses the base path's statistics.

    Parameters
    ----------
    model, graph
        The network that will run, and its graph.
    masks
        The units to mask, by group.
    at
        Where u and v are compared: "conv" before bias and BatchNorm, "bn" behind BatchNorm's
        scaling, "relu" behind the BatchNorm and activation that follow (as released).
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, masks: Mapping[str, Units], at: str = "conv"
    ) -> None:
        super().__init__(model)
        self.at = at
        self.lost: dict[tuple[str, str], Tensor] = {}  # (group, consumer) -> ||u - v||^2
        self.whole: dict[tuple[str, str], Tensor] = {}
        self._masked: dict[str, list[tuple[str, Tensor]]] = {}
        for name, units in masks.items():
            group = graph[name]
            wanted = group.first + np.asarray(units, dtype=np.int64)
            for layer in graph.consumers(group):
                columns = torch.from_numpy(np.flatnonzero(np.isin(layer.in_units, wanted)))
                self._masked.setdefault(layer.weight, []).append((group.name, columns))
        # a consumer's output, or that of its BatchNorm -> [(key, u - v, u)] there
        self._followed = WeakTensorKeyDictionary()

    def damage(self, group: str) -> float:
        """The damage of the units masked in `group`, in the last pass."""
        lost = sum(float(v) for key, v in self.lost.items() if key[0] == group)
        whole = sum(float(v) for key, v in self.whole.items() if key[0] == group)
        return lost / whole if whole > 0 else 0.0

    def on_call(self, call: Call, out: Tensor) -> None:
        """Score a consumer that reads masked units."""
        follow = []
        for group, columns in self._masked.get(call.name, ()):
            change = _partial(call, columns.to(out.device))  # u - v, at half the cost of v
            base = out
            if call.bias is not None and self.at != "relu":
                base = out - call.bias.detach().view(1, -1, *([1] * (out.ndim - 2)))
            follow.append(((group, call.name), change, base))
        self._record(follow)
        if follow and self.at != "conv":
            self._followed[out] = follow

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Follow a scored output through its BatchNorm and activation."""
        if not args or not isinstance(args[0], Tensor):
            return
        follow = self._followed.get(args[0])
        if follow is None:
            return
        if func.overloadpacket in NORMALISES_BATCH:
            made = out[0]
            scale = batch_norm_scale(args, out).view(1, -1, *([1] * (made.ndim - 2)))
            if self.at == "bn":
                self._record([(key, change * scale, base * scale) for key, change, base in follow])
                return
            then = [(key, change * scale, made.clone()) for key, change, _ in follow]
            self._record(then)
            self._followed[made] = then
        elif self.at == "relu" and _is_activation(func, args, out):
            after = [
                (key, out - func(base - change, *args[1:], **kwargs), out)
                for key, change, base in follow
            ]
            self._record(after)
            del self._followed[args[0]]

    def _record(self, found: list[tuple[tuple[str, str], Tensor, Tensor]]) -> None:
        for key, change, base in found:
            self.lost[key] = change.square().sum(dtype=torch.float64)
            self.whole[key] = base.square().sum(dtype=torch.float64)


def _partial(call: Call, columns: Tensor) -> Tensor:
    """The contribution of the input channels `columns` to a dense layer's output, without bias."""
    x = call.x.index_select(1, columns)
    conv = call.conv
    if conv is None:
        return x @ call.weight.index_select(1, columns).T
    weight = call.weight.index_select(0 if conv.transposed else 1, columns)
    padding = [0] * len(conv.stride)
    out: Tensor = torch.convolution(
        x, weight, None, conv.stride, conv.padding, conv.dilation, conv.transposed, padding, 1
    )
    return out


def _is_activation(func: Any, args: tuple[Any, ...], out: Any) -> bool:
    """Whether the operation is elementwise on this one tensor."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    pointwise = torch.Tag.pointwise in func.tags or func.overloadpacket in (
        aten.hardswish, aten.hardswish_,
    )  # fmt: skip
    return pointwise and len(tensors) == 1 and isinstance(out, Tensor) and out.ndim > 1
