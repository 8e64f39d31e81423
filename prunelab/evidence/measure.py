"""`measure`: one streaming pass over batches; what it finds adds up over passes and machines."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunelab.calls import Call, Watch
from prunelab.channels import FIXED, ChannelGraph, Layer
from prunelab.errors import BadData, InvalidValue, NotFinite, StaleEvidence, UnknownName
from prunelab.evidence.contribution import (
    ConsumerGram,
    ContributionGram,
    call_gram,
    call_sums,
)
from prunelab.evidence.moments import PatchMoments, patch_moments
from prunelab.evidence.sampling import sampled_rows
from prunelab.fingerprint import fingerprint
from prunelab.tracing import undisturbed
from prunelab.values import Progress

KINDS = ("contribution", "patches")
AT = ("conv", "bn")


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """The sums of a layer's contributions over `rows` samples and positions [units, out]."""

    sums: np.ndarray
    rows: int

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.sums + other.sums, self.rows + other.rows)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What one pass measured; `evidence[group]` answers for a channel group.

    `grams` maps a layer to G over the distinct units that it reads (the last row and column
    stand for all that belongs to none). `images` is how many inputs were seen; `fingerprint`
    names the network that was measured; `sums` maps a layer to what its contributions add up to.
    Evidence of the same network adds up with +.
    """

    graph: ChannelGraph
    fingerprint: str
    images: int
    at: str
    grams: Mapping[str, np.ndarray] = field(default_factory=dict)
    moments: Mapping[str, PatchMoments] = field(default_factory=dict)
    sums: Mapping[str, Sums] = field(default_factory=dict)

    def __getitem__(self, name: str) -> ContributionGram:
        group = self.graph[name]
        wanted = group.first + np.asarray(group.units, dtype=np.int64)
        consumers = {}
        for layer in self.graph.consumers(group):
            if layer.name not in self.grams:
                continue
            gram = self.grams[layer.name]
            rows = np.searchsorted(distinct_units(layer), wanted)
            consumers[layer.name] = ConsumerGram(
                name=layer.name,
                units=group.units,
                gram=gram[np.ix_(rows, rows)],
                cross=gram[rows].sum(1),
                energy=float(gram.sum()),
            )
        if not consumers and group.consumers:
            raise UnknownName("measured group", name, self.groups)
        return ContributionGram(group.name, group.units, consumers)

    @property
    def groups(self) -> list[str]:
        """The prunable groups that were measured."""
        return [
            group.name
            for group in self.graph.groups
            if group.prunable and any(name in self.grams for name in group.consumers)
        ]

    @property
    def centred(self) -> Evidence:
        """The same evidence about what is left once every output may shift by a constant.

        A bias or a BatchNorm behind the consumer makes such a shift good, so least squares with
        an intercept is least squares on this evidence.
        """
        grams = {}
        for name, gram in self.grams.items():
            total = self.sums[name]
            grams[name] = gram - total.sums @ total.sums.T / max(1, total.rows)
        return replace(self, grams=grams)

    def __add__(self, other: Evidence) -> Evidence:
        if (self.fingerprint, self.at) != (other.fingerprint, other.at):
            raise StaleEvidence(
                "Only evidence of the very same network, measured at the same place, adds up; "
                f"these were measured on {self.fingerprint} at {self.at!r} and "
                f"{other.fingerprint} at {other.at!r}. Measure again."
            )
        return Evidence(
            self.graph,
            self.fingerprint,
            self.images + other.images,
            self.at,
            {name: self.grams[name] + other.grams[name] for name in self.grams},
            {name: self.moments[name] + other.moments[name] for name in self.moments},
            {name: self.sums[name] + other.sums[name] for name in self.sums},
        )

    def __repr__(self) -> str:
        return f"<Evidence on {self.images} images of network {self.fingerprint}, at {self.at!r}>"


def measure(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    kinds: Sequence[str] = ("contribution",),
    *,
    at: str = "conv",
    layers: Sequence[str] | None = None,
    positions: int | None = None,
    seed: int = 0,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Evidence:
    """Run `model` once over `batches` and measure; memory does not grow with their number.

    `kinds` are "contribution" (G of every consumer of prunable channels) and "patches" (patch
    moments of `layers`). `at="bn"` measures behind an evaluation-mode BatchNorm where one
    follows the consumer. `positions` samples the contributions as ThiNet does: that many scalars
    of each consumer's output an image, drawn from `seed`; None takes all of them, exactly. A
    batch is an input, or a tuple whose first entry is; or whatever
    `forward(model, batch)` takes. The network is left bitwise as it was. Raises `BadData` for
    no batches or batches that the network does not take, `NotFinite` for NaN in the signal.
    """
    return finish(
        measuring(
            model, graph, batches, kinds, at=at, layers=layers, positions=positions, seed=seed,
            forward=forward,
        )
    )  # fmt: skip


def finish(steps: Iterator[Any]) -> Any:
    """Run a generator to its end and give what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def measuring(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    kinds: Sequence[str] = ("contribution",),
    *,
    at: str = "conv",
    layers: Sequence[str] | None = None,
    positions: int | None = None,
    seed: int = 0,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    expected: int = 0,
) -> Generator[Progress, None, Evidence]:
    """`measure` as a generator: yields Progress in images, of `expected`; gives the Evidence."""
    if unknown := set(kinds) - set(KINDS):
        raise InvalidValue(f"kinds can be {', '.join(KINDS)}; not {', '.join(sorted(unknown))}.")
    if at not in AT:
        raise InvalidValue(f"at can be {' or '.join(map(repr, AT))}, not {at!r}.")
    if positions is not None and positions < 1:
        raise InvalidValue(f"positions is a number of scalars from 1 up, or None; not {positions}.")
    read = {name for group in graph.groups if group.prunable for name in group.consumers}
    targets = {
        layer.weight: layer
        for layer in graph.layers
        if layer.dense and (layer.name in read if layers is None else layer.name in layers)
    }
    forward = forward or run_batch
    sample = None if positions is None else (positions, torch.Generator().manual_seed(seed))
    meter = _Meter(model, targets, kinds, at, sample)
    images = 0
    mark = fingerprint(model)
    with undisturbed(model), torch.no_grad():
        model.eval()
        for batch in guarded(batches):
            with meter:
                checked(forward, model, batch)
            meter.check()
            images += batch_size(batch)
            yield Progress(images, max(expected, images), "measuring on training images")
    if not images:
        raise BadData("There are no batches to measure on; give at least one.")
    names = {layer.weight: layer.name for layer in targets.values()}
    return Evidence(
        graph,
        mark,
        images,
        at,
        {names[key]: value.cpu().numpy() for key, value in meter.grams.items()},
        {names[key]: value for key, value in meter.moments.items()},
        {names[key]: value for key, value in meter.sums.items()},
    )


class _Meter(Watch):
    """Adds up G and patch moments of the target layers, call by call."""

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, Layer],
        kinds: Sequence[str],
        at: str,
        sample: tuple[int, torch.Generator] | None,
    ) -> None:
        super().__init__(model)
        self.targets = targets
        self.kinds = kinds
        self.sample = sample
        self.sums: dict[str, Sums] = {}
        self.grams: dict[str, Tensor] = {}
        self.moments: dict[str, PatchMoments] = {}
        self.columns = {key: columns_of(layer) for key, layer in targets.items()}
        self.scales = {key: _scale(model, layer, at) for key, layer in targets.items()}

    def on_call(self, call: Call, out: Tensor) -> None:
        layer = self.targets.get(call.name)
        if layer is None or not out.numel():
            return
        if "contribution" in self.kinds:
            gram, sums = self._contributions(call, out.device)
            have = self.grams.get(call.name)
            self.grams[call.name] = gram if have is None else have + gram
            so_far = self.sums.get(call.name)
            self.sums[call.name] = sums if so_far is None else so_far + sums
        if "patches" in self.kinds:
            found = patch_moments(call.x, layer.kernel, call.conv)
            before = self.moments.get(call.name)
            self.moments[call.name] = found if before is None else before + found

    def _contributions(self, call: Call, device: torch.device) -> tuple[Tensor, Sums]:
        """G of one call, and the sums of its contributions."""
        columns, count = self.columns[call.name]
        columns, scale = columns.to(device), self.scales[call.name]
        if self.sample is not None:
            rows = sampled_rows(call, columns, count, scale, *self.sample)
            return rows.T @ rows, Sums(rows.sum(0)[:, None].cpu().numpy(), len(rows))
        sums, number = call_sums(call, columns, count, scale)
        return call_gram(call, columns, count, scale), Sums(sums.cpu().numpy(), number)

    def check(self) -> None:
        """Raise `NotFinite` for the first layer whose signal is not a number."""
        found = [*self.grams.items(), *((k, m.moment) for k, m in self.moments.items())]
        for name, value in found:
            if not torch.isfinite(value).all():
                raise NotFinite(
                    f"NaN or infinity reaches {name.removesuffix('.weight')}: its signal cannot "
                    "be measured. Look for NaN in the weights before it, or in the images."
                )


def distinct_units(layer: Layer) -> np.ndarray:
    """The graph-wide numbers of the units that a layer reads, ascending."""
    units = np.unique(layer.in_units)
    return units[units != FIXED]


def columns_of(layer: Layer) -> tuple[Tensor, int]:
    """For each input position of a layer its row in G, and how many rows G has.

    Rows follow `distinct_units`; one more stands for positions that belong to no unit.
    """
    distinct = distinct_units(layer)
    fixed = layer.in_units == FIXED
    rows = np.where(fixed, len(distinct), np.searchsorted(distinct, layer.in_units))
    return torch.from_numpy(rows), len(distinct) + bool(fixed.any())


def _scale(model: nn.Module, layer: Layer, at: str) -> Tensor | None:
    if at == "conv" or layer.norm is None:
        return None
    norm = model.get_submodule(layer.norm)
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_var is None:
        return None
    gamma = norm.weight.detach() if norm.weight is not None else torch.ones_like(norm.running_var)
    return gamma / torch.sqrt(norm.running_var + norm.eps)


# ---------------------------------------------------------------- batches


def run_batch(model: nn.Module, batch: Any) -> Any:
    """`model(x)` for a batch that is x or (x, ...), on the network's device."""
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return model(x.to(device) if isinstance(x, Tensor) else x)


def batch_size(batch: Any) -> int:
    """How many inputs a batch holds."""
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return int(leaf.shape[0])
    return 1


def guarded(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; what the loader raises comes out as `BadData`."""
    try:
        iterator = iter(batches)
    except TypeError:
        raise BadData(
            f"Batches must be iterable; a {type(batches).__name__} is not. Give a DataLoader or "
            "a list of batches."
        ) from None
    count = 0
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise BadData(
                f"The loader raised {type(error).__name__} at batch {count}: {error}. "
                "Nothing was changed; mend the loader and try again."
            ) from error
        count += 1
        yield batch


def checked(forward: Callable[[nn.Module, Any], Any], model: nn.Module, batch: Any) -> Any:
    """`forward(model, batch)`; a batch of the wrong shape or type comes out as `BadData`."""
    try:
        return forward(model, batch)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        shapes = [tuple(x.shape) for x in tree_leaves(batch) if isinstance(x, Tensor)]
        raise BadData(
            f"The network does not take this batch (shapes {shapes}): "
            f"{type(error).__name__}: {error}. Give batches like the example inputs, or forward=."
        ) from error
