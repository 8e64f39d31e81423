"""The bench: the original network, its graph, the data, and how to run, judge and repair.

It knows nothing of events: a session brings the networks and keeps what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.cost.counting import Latency
from prunelab.cost.timing import LayerTimes, layer_times
from prunelab.data.batches import batch_size
from prunelab.data.private_random import private_random, privately
from prunelab.data.splits import Splits
from prunelab.errors import BadData, BadModel, InvalidValue, NotFinite
from prunelab.evidence import Evidence
from prunelab.evidence.mask_gradients import Masks
from prunelab.evidence.measure import measuring
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.surgery.editing import cut
from prunelab.graph.trace import copy_of, trace
from prunelab.ledger.events import Refit
from prunelab.loops.batch import cross_entropy, device_of, guarded, run_batch
from prunelab.loops.training import (
    Training,
    answering,
    imitating,
    metrics_of,
    number,
    training,
)
from prunelab.repair.fit import Fit
from prunelab.repair.least_squares import chained, repairing
from prunelab.repair.recalibration import Traced, recalibrating
from prunelab.repair.rescale import rescaling
from prunelab.values import FrozenMap, Progress, WidthPlan
from prunelab.values.paired_comparison import Answers, Trial, by_batch, by_image

REPAIRS = ("lstsq", "rescale", "bn")
REPAIR_IMAGES = 1024  # at most; on resnet18 at 32 px 2,048 gain 0.1 points, 512 lose 1.0
FEW_IMAGES = 512  # enough for BatchNorm statistics, and for one factor a channel
Judgement = tuple[dict[str, float], Answers | None]  # metrics, and the answers to each image


class Bench(Splits):
    """What a session works with; its keywords are those of `Session`."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        graph: ChannelGraph | None,
        forward: Callable[[nn.Module, Any], Any] | None,
        loss: Callable[[nn.Module, Any], Tensor] | None,
        metrics: Mapping[str, Any] | None,
        train: Any,
        example_inputs: Any,
        repair: str | None,
        repair_images: int,
        device: Any,
        seed: int,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise BadModel(f"A session prunes an nn.Module, not a {type(model).__name__}.")
        if repair is not None:
            _check_repair(repair)
        if isinstance(repair_images, bool) or not isinstance(repair_images, int):
            raise InvalidValue(f"repair_images is a whole number, not {repair_images!r}.")
        if repair_images < 1:
            raise InvalidValue(f"repair_images must be at least 1, not {repair_images}.")
        for split in ("train", "val", "test"):
            if not hasattr(data, split):
                raise BadData(
                    f"data has no .{split}; give pl.Data(train=, val=, test=) of batches or "
                    "Datasets, or pl.data.load(...)."
                )
        self.data = data
        self.seed = int(seed)
        self.repair = repair
        self.repair_images = repair_images
        self.custom = forward is not None
        self.forward = forward or run_batch
        self.loss = loss or cross_entropy
        self.classifies = metrics is None and loss is None and forward is None
        self.metrics = metrics_of(metrics, self.loss, self.classifies)
        self.train = train if train is not None else Training()
        if not isinstance(self.train, Training) and not callable(self.train):
            raise InvalidValue(
                "train is a pl.Training or a function (model, data, steps), not "
                f"{type(train).__name__}."
            )
        self.base = _sound(copy_of(model), device)
        if graph is None:
            batch = self.sample() if example_inputs is None else None
            if example_inputs is None:
                example_inputs = batch if forward else self.inputs_of(batch)
            graph = trace(self.base, example_inputs, forward=forward)
        if not any(group.prunable for group in graph.groups):
            reasons = "; ".join(f"{g.name}: {g.why}" for g in graph.groups[:5])
            raise BadModel(f"No channel of this network can be pruned ({reasons}).")
        self.graph = graph
        self.times: LayerTimes | None = None  # of the network measured last
        self.latencies: dict[str, Latency] = {}  # of the session's networks, by fingerprint
        self._batches: tuple[tuple[str, int], list[float]] | None = None  # a metric on each
        self._evidence: dict[tuple[str, ...], tuple[tuple[object, ...], Evidence]] = {}

    # ------------------------------------------------------------ networks

    def plan(self, kept: FrozenMap | None) -> WidthPlan:
        """The plan that keeps these units (None: all)."""
        return WidthPlan.full(self.graph) if kept is None else WidthPlan(kept, self.graph)

    def network(self, plan: WidthPlan, weights: Mapping[str, Tensor]) -> nn.Module:
        """The network of this plan with these weights."""
        network = cut(self.base, self.graph, plan)
        network.load_state_dict(weights)
        return network

    def judged(
        self, network: nn.Module, loader: Any = None
    ) -> Generator[Progress, None, Judgement]:
        """Every metric of `network` on a loader (None: validation)."""
        loader = self.data.val if loader is None else loader
        if self.classifies:
            batches = len(loader) if isinstance(loader, Sized) else 0
            answers, loss = yield from answering(network, self.drawn(loader), batches)
            return {"accuracy": answers.accuracy, "loss": loss}, answers
        values: dict[str, float] = {}
        for name, metric in self.metrics.items():
            yield Progress(len(values), len(self.metrics), f"evaluating {name}")
            with private_random(self.seed):
                values[name] = number(name, metric.function(network, loader))
        return values, None

    def tried(
        self, network: nn.Module, now: nn.Module, mark: str, known: Answers | None, images: int
    ) -> Generator[Progress, None, Trial]:
        """`network` against the one `now`, on the first `images` validation images.

        `known` are the answers of the one now; `mark` is its fingerprint.
        """
        if self.classifies:
            after, _ = yield from answering(network, self.validation(images))
            after = after.first(images)
            before = known.first(images) if known is not None else None
            if before is None or before.labels != after.labels:  # a loader with other images
                before, _ = yield from answering(now, self.validation(images))
                before = before.first(images)
            return by_image(before, after)
        name, metric = next(iter(self.metrics.items()))
        key = (mark, images)
        mine = self._batches[1] if self._batches and self._batches[0] == key else []
        theirs, sizes = [], []
        for place, batch in enumerate(guarded(self.validation(images))):
            with private_random(self.seed):
                if place == len(mine):
                    mine.append(number(name, metric.function(now, [batch])))
                theirs.append(number(name, metric.function(network, [batch])))
            sizes.append(batch_size(batch))
            yield Progress(sum(sizes), max(images, sum(sizes)), f"trying: {name}")
        self._batches = (key, mine)
        return by_batch(name, mine, theirs, sizes, metric.higher_is_better)

    def measured(
        self,
        network: nn.Module,
        graph: ChannelGraph,
        mark: str,
        kinds: Sequence[str],
        at: str,
        images: int,
        masks: Masks,
    ) -> Generator[Progress, None, Evidence]:
        """Evidence of `network`, whose fingerprint is `mark`: at hand, or by one pass."""
        known = self.known(mark, kinds, at, images, masks)
        if known is not None:
            return known
        found = yield from measuring(
            network,
            graph,
            self.images(images),
            kinds,
            at=at,
            forward=self.forward,
            loss=self.loss,
            masks=masks,
            expected=images,
        )
        self._evidence = {**self._evidence, tuple(kinds): ((mark, at, images, masks), found)}
        return found

    def known(
        self, mark: str, kinds: Sequence[str], at: str, images: int, masks: Masks
    ) -> Evidence | None:
        """Evidence of the network `mark`, measured in this very way, if it is at hand."""
        how, evidence = self._evidence.get(tuple(kinds), (None, None))
        return evidence if how == (mark, at, images, masks) else None

    def latest(self, kinds: Sequence[str]) -> Evidence | None:
        """The evidence of these kinds that was measured last, of whatever network."""
        return self._evidence.get(tuple(kinds), (None, None))[1]

    def inputs_of(self, batch: Any) -> Any:
        """One input of a batch, as the network takes it."""
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        return x[:1].to(device_of(self.base)) if isinstance(x, Tensor) else x

    def run_of(self) -> Any:
        """What a timed run is given: one input, or the batch that a forward of your own takes."""
        return self.sample() if self.custom else self.inputs_of(self.sample())

    def clock(self, network: nn.Module, plan: WidthPlan) -> None:
        """Time the layers of the network of this plan, if those of no other were timed since."""
        if self.times is None or self.times.plan != plan:
            inputs = self.run_of()
            self.times = layer_times(
                network, self.graph, plan, lambda: self.forward(network, inputs)
            )

    def mended(
        self,
        small: nn.Module,
        plan: WidthPlan,
        kind: str,
        target: tuple[nn.Module, WidthPlan],
        source: tuple[nn.Module, WidthPlan] | None = None,
    ) -> Generator[Progress, None, tuple[Refit, ...]]:
        """Repair `small`, in place, towards `target`; gives what least squares did, by layer.

        In one pass when it was just cut from `source` and no repair builds on another, else front
        to back; `kind` is one of `REPAIRS`.
        """
        _check_repair(kind)

        def images(most: int) -> tuple[Callable[[], Iterator[Any]], Callable[..., Any], int]:
            most = min(most, self.repair_images)
            return lambda: self.images(most), self.forward, most

        def traced(network: nn.Module, plan: WidthPlan) -> Traced:
            return Traced(network, self.graph.after(plan))

        now, aim = traced(small, plan), traced(*target)
        before = traced(*source) if source else None
        fits: dict[str, Fit] = {}
        settled: set[str | None] = set()
        if kind == "lstsq":
            together = before if before and not chained(before.graph, now.graph) else None
            fits = yield from repairing(now, aim, *images(self.repair_images), together)
            settled = {  # front to back each layer saw what it now reads
                now.graph.layer(name).norm
                for name, found in fits.items()
                if together is None or found.choice == "kept"
            }
        elif kind == "rescale":
            yield from rescaling(now, before or aim, aim, *images(FEW_IMAGES))
        but = {norm for norm in settled if norm is not None}
        yield from recalibrating(now, aim, *images(FEW_IMAGES), but)
        check_finite(small, "the repair")
        return tuple(_refit(name, found) for name, found in fits.items())

    def tuned(
        self, network: nn.Module, steps: int, seed: int, enough: Callable[[], bool]
    ) -> Generator[Progress, None, tuple[int, str, bool]]:
        """Train `network` in place until it is `enough`.

        Gives the steps done, who did them, and whether that can be replayed: a training that was
        ended early cannot, its learning rate was to fall on.
        """
        done, by, replayable = steps, "prunelab", True
        if isinstance(self.train, Training):
            loss = self.loss
            if self.classifies and self.train.imitate:
                loss = imitating(copy_of(self.base).eval(), seed)
            work = training(
                network, lambda epoch: self.shuffled(seed + epoch), steps, loss, self.train
            )
            for progress in privately(work, seed):
                yield progress
                if enough() and progress.done < steps:
                    done, replayable = progress.done, False
                    break
        else:
            with private_random(seed):
                self.train(network, self.data, steps)
            by, replayable = getattr(self.train, "__name__", "your trainer"), False
        check_finite(network, by)
        network.eval()
        return done, by, replayable


def _sound(model: nn.Module, device: Any) -> nn.Module:
    """`model` on `device`; raises `BadModel` where its weights are no numbers."""
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        return model  # tracing says what to do about it
    if device is not None:
        model = model.to(device)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BadModel(
                f"{name} holds NaN or infinity; nothing measured on this network would mean "
                "anything. Load sound weights first."
            )
    return model


def _check_repair(kind: str) -> None:
    if kind not in REPAIRS:
        names = ", ".join(map(repr, REPAIRS))
        raise InvalidValue(f"repair is {names} or None, not {kind!r}.")


def _refit(layer: str, found: Fit) -> Refit:
    errors: dict[str, float] = {
        choice: float(f"{error:.4g}") for choice, error in found.errors.items()
    }
    ridge = found.ridge if found.choice == "lstsq" else 0.0
    return Refit(layer, found.choice, ridge, FrozenMap(errors), found.rows, len(found.weight))


def check_finite(network: nn.Module, by: str) -> None:
    """Raise `NotFinite` when `by` left NaN in a network."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NotFinite(f"{by} left NaN or infinity in {name}; it was discarded.")
