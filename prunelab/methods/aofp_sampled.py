"""AOFP as released: random masks on a scoring path while SGD trains the base path.

For every batch, all layers in parallel:                          `search_sampled`
  1. For each layer draw a random half M of its search set S.     `_LayerSearch.draw`
  2. Forward; at each consumer compare the base path u with the
     scoring path v, where M is masked: t <- |u - v|^2 / |u|^2.   `ScoringPath`
  3. T_j += t, C_j += 1 for every j in M.                         `_LayerSearch.add`
  4. Backward from the base path's loss; one step of SGD.         `descend` (in loops)
  5. After b batches, with t_j <- T_j / C_j: remove the better
     half and restart, halve S, or fail and restart.              `_LayerSearch.decide`
     A removed half is masked on the base path at once; as
     outputs of a consumer these units no longer count.

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
from prunelab.errors import BadData
from prunelab.evidence.reconstruction_target import batch_norm_scale
from prunelab.graph.channels.channel_graph import ChannelGraph, ChannelGroup
from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.graph.labels.op_tables import NORMALISES_BATCH, aten
from prunelab.graph.surgery.editing import zero_columns
from prunelab.graph.trace import copy_of
from prunelab.loops.modes import in_training
from prunelab.loops.ranks import ranks, summed
from prunelab.loops.training import descend, forever, momentum_of
from prunelab.methods.aofp_search import judge
from prunelab.methods.aofp_target import STEP
from prunelab.methods.base import Context, Found, Search, parameters
from prunelab.values import Progress, Rung, Units, WidthPlan, units_of

if TYPE_CHECKING:
    from prunelab.methods.aofp import AOFP

BIAS_LR = 2.0  # the factor of the learning rate of biases, as released


def search_sampled(method: AOFP, context: Context) -> Search:
    """Train a private copy and search all layers in parallel; the move brings the trained weights.

    The move ends when it has saved `STEP` of the original MACs, at the target, or when every layer
    has retired; towards a target, layers that all retired with nothing found try twice the theta.
    Search sets, sums, warm-up and momentum go on in the next search.
    """
    targets = method.targets(context)
    if not targets:
        return None
    rng = np.random.default_rng(context.seed)
    network = copy_of(context.model)
    optimiser = replace(context.train, lr=method.lr).optimiser(
        network, bias_lr=BIAS_LR, momentum=context.momentum()
    )
    stream = forever(lambda epoch: context.training_batches(context.seed + epoch))
    searches, first, now = _resumed(method, context, targets)
    removal = _Removal(context)
    step = first
    while True:
        active = [search for search in searches if search.start <= step and not search.retired]
        masks = {search.group.name: search.draw(rng) for search in active}
        path = ScoringPath(
            network, context.graph, masks, method.at or "relu", method.damage, removal.drop
        )
        with in_training(network, context.frozen), private_random(context.seed + step):
            descend(network, next(stream), context.loss, optimiser, watch=path)
        zero_columns(network, context.graph, removal.drop)  # SGD moves the masked columns
        damages = summed({s.group.name: path.damage(s.group.name) / ranks() for s in active})
        for search in active:
            search.add(damages[search.group.name])
            if search.seen < method.batches:
                continue
            rung = search.decide(now.theta)
            yield rung
            if rung.verdict == "take":
                removal.take(rung)
                zero_columns(network, context.graph, removal.drop)
        step += 1
        yield Progress(*removal.progress, f"AOFP trains and searches, batch {step - first}")
        if removal.done:
            break
        if all(search.retired for search in searches):
            looser = None if context.target_macs is None or removal.drop else now.relaxed()
            if looser is None:
                break
            now = looser
            for search in searches:
                search.failures = 0
    if not removal.drop:
        return None
    carry = _state(method, now, searches, step) | {"batches": step - first}
    move = context.move(now, removal.drop, removal.damage, carry)
    return Found(move, network, momentum_of(optimiser, network))


class _Removal:
    """What the move has removed so far, and whether that is enough."""

    def __init__(self, context: Context) -> None:
        self.drop: dict[str, Units] = {}
        self.damage: dict[str, float] = {}  # the worst that was accepted in each layer
        self._found: dict[str, Units] = {}  # more than `drop` at the target, or at rounded widths
        self._order: dict[tuple[str, int], float] = {}
        self._context = context
        start = context.cost(context.plan).macs
        step = STEP * context.cost(WidthPlan.full(context.graph)).macs
        self._wanted = max(1, round(min(step, start - (context.target_macs or 0))))
        self._start, self._saved = start, 0

    def take(self, rung: Rung) -> None:
        """Remove the candidates of a rung, as far as the target needs them."""
        name = rung.group
        self._found[name] = units_of([*self._found.get(name, ()), *rung.candidates])
        self.damage[name] = max(rung.worst, self.damage.get(name, 0.0))
        means = dict(zip(rung.search, rung.damages, strict=True))
        self._order |= {(name, unit): means[unit] for unit in rung.candidates}
        self.drop = self._context.trimmed(self._found, self._order)
        self._saved = self._start - self._context.cost(self._context.plan.drop(self.drop)).macs

    @property
    def done(self) -> bool:
        """Whether the move has removed its share of the MACs."""
        return self._saved >= self._wanted

    @property
    def progress(self) -> tuple[int, int]:
        """MACs removed, and to be removed."""
        return min(self._saved, self._wanted), self._wanted


@dataclass(slots=True)
class _LayerSearch:
    """Steps 1, 3 and 5 for one layer: its search set, and the sums and counts of damages."""

    group: ChannelGroup
    retire_after: int
    start: int  # batches before its first halving
    alive: Units
    search: Units
    halving: int = 0
    seen: int = 0
    failures: int = 0
    mask: Units = ()
    sums: dict[int, float] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    @property
    def retired(self) -> bool:
        """Whether it has failed too often since its last success, or has one unit left."""
        return self.failures >= self.retire_after or len(self.alive) < 2

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

    def decide(self, theta: float) -> Rung:
        """Step 5: take the better half and restart, halve the search set, or fail and restart."""
        means = np.array(
            [
                self.sums[unit] / self.counts[unit] if unit in self.counts else np.inf
                for unit in self.search
            ]
        )
        rung = judge(self.group.name, self.halving, self.search, means, theta, self.seen)
        if rung.verdict == "halve":
            self.search, self.halving = rung.candidates, self.halving + 1
        else:
            took = rung.verdict == "take"
            self.failures = 0 if took else self.failures + 1
            if took:
                self.alive = units_of(set(self.alive) - set(rung.candidates))
            self.search, self.halving = self.alive, 0
        self.sums, self.counts, self.seen = {}, {}, 0
        return rung


# ---------------------------------------------------------------- what goes on in the next search


def _state(method: AOFP, now: AOFP, searches: list[_LayerSearch], step: int) -> dict[str, Any]:
    """The state of a search as plain data, see `_resumed`."""
    layers = {
        search.group.name: {
            "search": search.search,
            "halving": search.halving,
            "seen": search.seen,
            "sums": [[unit, search.sums[unit], search.counts[unit]] for unit in search.sums],
        }
        for search in searches
    }
    return {"asked": parameters(method), "theta": now.theta, "step": step, "layers": layers}


def _resumed(
    method: AOFP, context: Context, targets: list[ChannelGroup]
) -> tuple[list[_LayerSearch], int, AOFP]:
    """Every layer's search, the batches so far, and the method with the theta that it has reached.

    They go on from the last approved move, if it was found with the same parameters. A layer whose
    units are others than its search left, after an adjustment, starts anew.
    """
    carry = context.carry if context.carry.get("asked") == parameters(method) else {}
    stagger = method.batches // len(targets)
    searches = []
    for index, group in enumerate(targets):
        start = method.warmup + index * stagger
        search = _LayerSearch(group, method.retire_after, start, group.units, group.units)
        left = carry.get("layers", {}).get(group.name)
        if left is not None and _fits(left, group.units):
            search.search, search.halving = tuple(left["search"]), left["halving"]
            search.seen = left["seen"]
            search.sums = {unit: total for unit, total, _ in left["sums"]}
            search.counts = {unit: count for unit, _, count in left["sums"]}
        searches.append(search)
    return searches, carry.get("step", 0), replace(method, theta=carry.get("theta", method.theta))


def _fits(left: Any, units: Units) -> bool:
    """Whether a search that was left in the middle can go on in a layer with these units."""
    search = set(left["search"])
    return search <= set(units) if left["halving"] else search == set(units)


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
    damage
        "batch_ratio", or "sample_ratio": the mean of each sample's ratio. A sample is one row of
        the consumers' outputs; where one consumer has more rows, as many of them as make up one.
    gone
        Units that the move has dropped so far: as outputs of a consumer they do not count.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        masks: Mapping[str, Units],
        at: str = "conv",
        damage: str = "batch_ratio",
        gone: Mapping[str, Units] | None = None,
    ) -> None:
        super().__init__(model)
        self.at = at
        self._samples = damage == "sample_ratio"
        self.lost: dict[tuple[str, str], Tensor] = {}  # (group, consumer) -> ||u - v||^2 [rows]
        self.whole: dict[tuple[str, str], Tensor] = {}
        self._masked: dict[str, list[tuple[str, Tensor]]] = {}
        for name, units in masks.items():
            group = graph[name]
            wanted = group.first + np.asarray(units, dtype=np.int64)
            for layer in graph.consumers(group):
                columns = torch.from_numpy(np.flatnonzero(np.isin(layer.in_units, wanted)))
                self._masked.setdefault(layer.weight, []).append((group.name, columns))
        alive = ~graph.gone(gone or {})
        self._counted = {
            layer.weight: torch.from_numpy(np.flatnonzero(alive[layer.out_units]))
            for layer in graph.layers
            if layer.weight in self._masked and not alive[layer.out_units].all()
        }
        # a consumer's output, or that of its BatchNorm -> [(key, u - v, u)] there
        self._followed = WeakTensorKeyDictionary()

    def damage(self, group: str) -> float:
        """The damage of the units masked in `group`, in the last pass."""
        lost, whole = self._total(self.lost, group), self._total(self.whole, group)
        return float((lost / whole.where(whole > 0, torch.inf)).mean())

    def _total(self, found: dict[tuple[str, str], Tensor], group: str) -> Tensor:
        """The sum over the group's consumers [samples], or over the batch as well [1]."""
        parts = [rows for key, rows in found.items() if key[0] == group]
        samples = min((len(rows) for rows in parts), default=1) if self._samples else 1
        if any(len(rows) % max(1, samples) for rows in parts):
            raise BadData(
                f"The layers that read {group} run on different numbers of rows, so these cannot "
                "be told apart by sample. Choose damage='batch_ratio'."
            )
        each = [rows.view(samples, -1).sum(1) for rows in parts]
        return torch.stack(each).sum(0) if each else torch.zeros(1)

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
            counted = self._counted.get(key[1])
            if counted is not None:
                at = counted.to(base.device)
                change, base = change.index_select(1, at), base.index_select(1, at)
            self.lost[key] = change.flatten(1).square().sum(1, dtype=torch.float64)
            self.whole[key] = base.flatten(1).square().sum(1, dtype=torch.float64)


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
