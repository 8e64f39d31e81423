"""Aims: what a layer of the pruned network should give, and how its contributions meet that.

Channel Pruning reads the inputs of the network as it is and aims at the outputs of the original,
so that a layer makes good what the layers before it lost; the last layer of a residual branch
aims at Y2 + Y1 - Y1', which makes good what its shortcut lost too (He, Zhang, Sun; ICCV 2017;
released code: `appresb`, and `invBN` where a BatchNorm stands before the sum).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from prunelab.data.batches import apart
from prunelab.data.private_random import private_steps
from prunelab.errors import BadData
from prunelab.evidence.gram_accumulators import Accounts, account_of, by_unit, contributions
from prunelab.evidence.gram_collector import columns_of, distinct_units
from prunelab.evidence.patch_moments import cross_moment
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph, ChannelGroup, Layer
from prunelab.graph.labels.layer_calls import Call, Watch
from prunelab.graph.labels.layout import tensors_in
from prunelab.graph.labels.op_tables import NORMALISES_BATCH, aten
from prunelab.graph.trace import undisturbed
from prunelab.loops.batch import (
    checked,
    guarded,
    run_batch,
)
from prunelab.values import Progress

Array = np.ndarray
FAINTEST = 1e-3  # of the largest: a BatchNorm scale that is not divided by
PICKS = {aten.index, aten.index_select, aten.gather, aten.masked_select}  # rows, out of many


@dataclass(slots=True, eq=False)
class Output:
    """One call of a layer: its input, its output without bias, and what that is added to.

    `y` [N, out, *positions]; `shortcut`, of the same shape, is the other summand where the
    output, perhaps behind a BatchNorm that multiplies it by `scale` [out], enters a sum. `picks`
    counts what was picked out before, see `Outputs`.
    """

    call: Call
    y: Tensor
    picks: int = 0
    scale: Tensor | None = None
    shortcut: Tensor | None = None


class Outputs(Watch):
    """Keeps the outputs of the layers `wanted` (names of weights), call by call, in `found`.

    Without `inputs` the calls that are kept have lost theirs. `picks` are the places that the
    network has picked out so far by what it saw, such as regions of interest: later rows are of
    those. Places that lie in a buffer, such as a sampler's channels, are no picks.
    """

    def __init__(self, model: nn.Module, wanted: Collection[str], inputs: bool = True) -> None:
        super().__init__(model)
        self.inputs = inputs
        self.found: dict[str, list[Output]] = {name: [] for name in wanted}
        self.picks: list[Tensor] = []
        self._followed = WeakTensorKeyDictionary()  # an output, or what BatchNorm made of it

    def on_call(self, call: Call, out: Tensor) -> None:
        """Keep a wanted layer's call; what comes later may write over its tensors."""
        if call.name not in self.found:
            return
        y = out.clone() if call.bias is None else unbiased(call, out)
        x = call.x.clone() if self.inputs else call.x.new_empty(0)
        made = Output(replace(call, x=x), y, len(self.picks))
        self.found[call.name].append(made)
        self._followed[out] = made

    def on_operation(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Note what is picked out, and follow a wanted output into the sum that it enters."""
        if func.overloadpacket in PICKS:
            found = tensors_in(*args[1:], kwargs)
            self.picks += [
                places
                for places in found
                if not places.is_floating_point() and self.origin(places) is None
            ]
        self.follow(func, args, kwargs, out)

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Follow a wanted output through its BatchNorm into the sum that it enters."""
        if func.overloadpacket in NORMALISES_BATCH and args[0] in self._followed:
            made = self._followed.pop(args[0])
            made.scale = batch_norm_scale(args, out)
            self._followed[out[0]] = made
        elif func.overloadpacket in (aten.add, aten.add_):
            a, b = args[:2]
            if not isinstance(b, Tensor) or a.shape != b.shape or kwargs.get("alpha", 1) != 1:
                return
            in_place = func.overloadpacket is aten.add_  # then a is the sum by now
            ours, theirs = (self._followed.pop(x, None) for x in (a, b))
            if ours is not None:
                ours.shortcut = b.clone()
            if theirs is not None:
                theirs.shortcut = a - b if in_place else a.clone()
        elif args and isinstance(out, Tensor) and out is args[0]:
            self._followed.pop(out, None)  # written over: it enters no sum as it was


def meet(there: Outputs, asked: Output, here: Outputs, given: Output) -> bool:
    """Whether two networks' calls of a layer are of the same rows, so that one can be aimed at.

    They are not where the networks have picked out other regions, tokens or points before.
    """
    alike = (asked.picks, len(asked.y), asked.y.shape[2:])
    if alike != (given.picks, len(given.y), given.y.shape[2:]):
        return False
    pairs = zip(there.picks[: asked.picks], here.picks[: given.picks], strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def unbiased(call: Call, out: Tensor) -> Tensor:
    """A layer's output without its bias."""
    if call.bias is None:
        return out
    return out - call.bias.detach().view(1, -1, *([1] * (out.ndim - 2)))


def batch_norm_scale(args: tuple[Any, ...], out: Any) -> Tensor:
    """Gamma / sigma as this very BatchNorm call applied it [channels]."""
    x, gamma, _, _, variance = args[:5]
    invstd = out[2] if args[5] else torch.rsqrt(variance + args[7])  # args[5]: training
    scale = invstd if gamma is None else gamma.detach() * invstd
    return scale.to(x.dtype)


def aim(there: Output, here: Output, channels: Tensor) -> Tensor:
    """What `here` should give: what `there` did, plus what its shortcut has drifted by.

    `channels` are the positions of the outputs that `here` still has among those of `there`.
    With shortcuts s: BN(aim) + s_here = BN(y_there) + s_there. Where BatchNorm all but erases a
    channel, nothing can be made good through it and the drift is left out.
    """
    y = there.y.index_select(1, channels)
    if there.shortcut is None or here.shortcut is None:
        return y
    drift = there.shortcut.index_select(1, channels) - here.shortcut
    if there.scale is None:
        return y + drift
    scale = there.scale.index_select(0, channels)
    steps = torch.where(scale.abs() > FAINTEST * scale.abs().max(), 1 / scale, 0.0)
    return y + drift * steps.view(1, -1, *([1] * (y.ndim - 2)))


@dataclass(frozen=True, slots=True, eq=False)
class AimedGram:
    """One layer's contributions z_i against its aim y, sums over samples, positions, outputs.

    `units` [n] are graph-wide numbers (FIXED, last, for inputs of no unit), `gram` [n, n] holds
    <z_i, z_j>, `cross` [n] holds <z_i, y>, `energy` is ||y||^2. `sums` [n, out] and `aims` [out]
    are the sums of z and y over `rows` samples and positions.
    """

    units: Array
    gram: Array
    cross: Array
    energy: float
    sums: Array
    aims: Array
    rows: int

    @property
    def centred(self) -> AimedGram:
        """The same once every output may shift by a constant, as in `Evidence.centred`."""
        rows = max(1, self.rows)
        return replace(
            self,
            gram=self.gram - self.sums @ self.sums.T / rows,
            cross=self.cross - self.sums @ self.aims / rows,
            energy=self.energy - float(self.aims @ self.aims) / rows,
        )

    def of(self, group: ChannelGroup) -> tuple[Array, Array]:
        """`gram` and `cross` of the group's units; what other inputs give is taken off the aim."""
        own = np.isin(self.units, group.first + np.asarray(group.units, dtype=np.int64))
        return self.gram[np.ix_(own, own)], self.cross[own] - self.gram[np.ix_(own, ~own)].sum(1)

    def __add__(self, other: AimedGram) -> AimedGram:
        return AimedGram(
            self.units,
            self.gram + other.gram,
            self.cross + other.cross,
            self.energy + other.energy,
            self.sums + other.sums,
            self.aims + other.aims,
            self.rows + other.rows,
        )


def aiming(
    model: nn.Module,
    graph: ChannelGraph,
    target: nn.Module,
    target_graph: ChannelGraph,
    batches: Iterable[Any],
    layers: Collection[str],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    expected: int = 0,
) -> Generator[Progress, None, dict[str, AimedGram]]:
    """Measure the contributions of `layers` in `model` against their aims, given by `target`.

    Each graph describes the network before it. Yields Progress in images, of `expected`. Both
    networks are left bitwise as they were. Raises `BadData` for no batches.
    """
    found = yield from aiming_apart(
        model, graph, target, target_graph, batches, layers,
        forward=forward, expected=expected, hold=False,
    )  # fmt: skip
    return {name: gram for name, (gram, _) in found.items() if gram is not None}


@private_steps
@torch.no_grad()
def aiming_apart(
    model: nn.Module,
    graph: ChannelGraph,
    target: nn.Module,
    target_graph: ChannelGraph,
    batches: Iterable[Any],
    layers: Collection[str],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    expected: int = 0,
    hold: bool = True,
) -> Generator[Progress, None, dict[str, tuple[AimedGram | None, AimedGram | None]]]:
    """`aiming` on most of the images and, apart, on those held out; None where there were none.

    Without `hold` none is held out.
    """
    forward = forward or run_batch
    wanted = {graph.layer(name).weight: graph.layer(name) for name in layers}
    channels = {
        key: outputs_in(target_graph.layer(layer.name).out_units, layer.out_units)
        for key, layer in wanted.items()
    }
    found = {key: (_Aiming(layer), _Aiming(layer)) for key, layer in wanted.items()}
    images = 0
    with undisturbed(model), undisturbed(target):
        model.eval()
        target.eval()
        for some in apart(guarded(batches), hold):
            there, here = Outputs(target, wanted), Outputs(model, wanted)
            with there:
                checked(forward, target, some.batch)
            with here:
                checked(forward, model, some.batch)
            for key, accounts in found.items():
                for asked, given in zip(there.found[key], here.found[key], strict=False):
                    if given.y.numel() and meet(there, asked, here, given):
                        y = aim(asked, given, channels[key].to(given.y.device))
                        accounts[some.held].add(given.call, y)
            images = some.stop
            yield Progress(images, max(expected, images), "measuring against the original network")
    if not images:
        raise BadData("There are no batches to measure on; give at least one.")
    return {
        wanted[key].name: (
            one.gram if one.accounts.all else None,
            two.gram if two.accounts.all else None,
        )
        for key, (one, two) in found.items()
    }


def outputs_in(there: Array, here: Array) -> Tensor:
    """The positions of the units `here` among the units `there`."""
    place = {unit: index for index, unit in enumerate(there.tolist())}
    if len(there) == len(here):
        return torch.arange(len(here))  # FIXED may come more than once
    return torch.tensor([place[unit] for unit in here.tolist()])


class _Aiming:
    """Adds up one layer's contributions against its aims, call by call."""

    def __init__(self, layer: Layer) -> None:
        self.units = distinct_units(layer)
        self.columns, self.count = columns_of(layer)
        self.accounts = Accounts(lambda call: account_of(call, self.columns, self.count, None))
        self.cross: Any = 0.0
        self.aims: Any = 0.0
        self.energy = 0.0

    def add(self, call: Call, y: Tensor) -> None:
        """Take in one call, and what it should give."""
        account = self.accounts.add(call)
        weight, conv, columns = account.weight, account.conv, account.columns
        if conv is not None and conv.transposed:
            z = contributions(call.x.to(weight.dtype), weight, conv, columns, self.count)
            cross = (z * y.flatten(2)).double().flatten(1).sum(1)
        else:
            moment = cross_moment(call.x, y, tuple(weight.shape[2:]), conv)[:-1]
            by_entry = (moment * weight.reshape(len(weight), -1).T).sum(1)
            cross = by_unit(by_entry.view(len(columns), -1).sum(1), columns, self.count)
        self.cross = self.cross + cross
        self.aims = self.aims + y.movedim(1, 0).flatten(1).sum(1, dtype=torch.float64)
        self.energy += float(y.double().square().sum())

    @property
    def gram(self) -> AimedGram | None:
        """What came out; None where nothing came in."""
        if not self.accounts.all:
            return None
        return AimedGram(
            units=self.units if self.count == len(self.units) else np.append(self.units, FIXED),
            gram=self.accounts.gram,
            cross=self.cross.cpu().numpy(),
            energy=self.energy,
            sums=self.accounts.sums,
            aims=self.aims.cpu().numpy(),
            rows=self.accounts.rows,
        )


def by_layer(grams: Mapping[str, AimedGram], group: ChannelGroup) -> tuple[Array, Array]:
    """`gram` and `cross` of a group, summed over the layers that read it."""
    parts = [gram.of(group) for name, gram in grams.items() if name in group.consumers]
    if not parts:
        raise BadData(
            f"On these images {' and '.join(group.consumers)} did not run, or on other rows than "
            f"in the original network, so nothing is known of {group.name}. Give other images, or "
            "leave it out of what is pruned."
        )
    found, crosses = zip(*parts, strict=True)
    return np.sum(found, axis=0), np.sum(crosses, axis=0)
