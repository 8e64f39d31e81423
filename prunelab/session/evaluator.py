"""The original network, its graph and its data: builds the network of a plan and evaluates it.

It knows nothing of events: a session passes the networks and keeps the results.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sized
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.data.batches import batch_size
from prunelab.data.private_random import private_random
from prunelab.data.splits import Splits
from prunelab.errors import BadData, BadModel
from prunelab.evidence.reach import reached, where_reached
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.given import check_network
from prunelab.graph.independence import check_copies
from prunelab.graph.surgery.editing import cut
from prunelab.graph.trace import copy_of, runner, state_preserved, trace
from prunelab.loops.batch import device_of, guarded
from prunelab.loops.training import answering, number
from prunelab.session.measurements import Measurements
from prunelab.session.settings import Settings
from prunelab.values import FrozenMap, Progress, Units, WidthPlan, listed
from prunelab.values.paired_comparison import Answers, PairedComparison, by_batch, by_image

IMAGES = 512  # of training: as many as most methods measure
Judgement = tuple[dict[str, float], Answers | None]  # metrics, and the answers to each image


class Evaluator:
    """Evaluates networks that are cut from `base`, whose channels `graph` describes."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        settings: Settings,
        *,
        graph: ChannelGraph | None,
        example_inputs: Any,
        device: Any,
        seed: int,
    ) -> None:
        check_network(model)
        for split in ("train", "val", "test"):
            if not hasattr(data, split):
                raise BadData(
                    f"data has no .{split}; give pl.Data(train=, val=, test=) of batches or "
                    "Datasets, or pl.data.load(...)."
                )
        self.settings = settings
        self.splits = Splits(data, int(seed))
        self.base = _sound(copy_of(model), device)
        self.fewest = self._fewest()
        if example_inputs is None:
            example_inputs = self.run_inputs()
        forward = settings.forward if settings.own_forward else None
        with state_preserved(model):
            check_copies(model, runner(example_inputs, forward), forward is not None)
        if graph is None:
            graph = trace(self.base, example_inputs, forward=forward)
        images = self.splits.samples(IMAGES)
        self.reached = reached(self.base, graph, settings.forward, images)
        found = where_reached(graph, self.reached)
        self.graph = graph = graph.freeze({group.name: group.why for group in found if group.why})
        if not any(group.prunable for group in graph.groups):
            raise BadModel(f"No channel of this network can be pruned: {_hindrances(graph)}.")
        self.measurements = Measurements(self.splits, settings, graph, self.run_inputs)
        self._batches: tuple[tuple[str, int], list[float]] | None = None  # a metric on each

    # ------------------------------------------------------------ networks

    def plan(self, kept: FrozenMap[Units] | None) -> WidthPlan:
        """The plan that keeps these units (None: all)."""
        return WidthPlan.full(self.graph) if kept is None else WidthPlan(kept, self.graph)

    def network(self, plan: WidthPlan, weights: Mapping[str, Tensor]) -> nn.Module:
        """The network of this plan with these weights."""
        network = cut(self.base, self.graph, plan)
        network.load_state_dict(weights)
        return network

    # ------------------------------------------------------------ inputs and outputs

    def example(self) -> Any:
        """One training input, or `fewest`, in the form that the network expects."""
        return self._first(self.fewest)

    def run_inputs(self) -> Any:
        """The input of one run: an example, or a batch for a forward of the user's."""
        return self.splits.sample() if self.settings.own_forward else self.example()

    def _first(self, count: int) -> Any:
        batch = self.splits.sample()
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        return x[:count].to(device_of(self.base)) if isinstance(x, Tensor) else x

    def _fewest(self) -> int:
        """How many inputs the network takes at least: 2 where it squeezes a batch of one."""
        for count in () if self.settings.own_forward else (1, 2):
            run = runner(self._first(count))
            with suppress(Exception), state_preserved(self.base), private_random(), torch.no_grad():
                run(self.base.eval())
                return count
        return 1  # the trace says what is wrong

    def outputs(self, network: nn.Module) -> Any:
        """The outputs of `network` for the first training batch, in evaluation mode."""
        with state_preserved(network), private_random(), torch.no_grad():
            network.eval()
            return self.settings.forward(network, self.splits.sample())

    # ------------------------------------------------------------ judging

    def judge(self, network: nn.Module, loader: Any = None) -> Generator[Progress, None, Judgement]:
        """Compute every metric of `network` on a loader (None: validation)."""
        loader = self.splits.data.val if loader is None else loader
        seed, metrics = self.splits.seed, self.settings.metrics
        if self.settings.classifies:
            batches = len(loader) if isinstance(loader, Sized) else 0
            answers, loss = yield from answering(network, self.splits.drawn(loader), batches)
            return {"accuracy": answers.accuracy, "loss": loss}, answers
        values: dict[str, float] = {}
        for name, metric in metrics.items():
            yield Progress(len(values), len(metrics), f"evaluating {name}")
            with private_random(seed):
                values[name] = number(name, metric.function(network, loader))
        return values, None

    def compare(
        self, network: nn.Module, now: nn.Module, mark: str, known: Answers | None, images: int
    ) -> Generator[Progress, None, PairedComparison]:
        """Compare `network` with the network `now` on the first validation images.

        Parameters
        ----------
        mark
            The fingerprint of `now`.
        known
            The answers of `now` to the validation images, if they are known.
        images
            How many validation images; a metric other than accuracy sees whole batches.
        """
        if self.settings.classifies:
            after, _ = yield from answering(network, self.splits.validation(images))
            after = after.first(images)
            before = known.first(images) if known is not None else None
            if before is None or before.labels != after.labels:  # a loader with other images
                before, _ = yield from answering(now, self.splits.validation(images))
                before = before.first(images)
            return by_image(before, after)
        name, metric = self.settings.guard
        key = (mark, images)
        mine = self._batches[1] if self._batches and self._batches[0] == key else []
        theirs, sizes = [], []
        for place, batch in enumerate(guarded(self.splits.validation(images))):
            with private_random(self.splits.seed):
                if place == len(mine):
                    mine.append(number(name, metric.function(now, [batch])))
                theirs.append(number(name, metric.function(network, [batch])))
            sizes.append(batch_size(batch))
            yield Progress(sum(sizes), max(images, sum(sizes)), f"trying: {name}")
        self._batches = (key, mine)
        return by_batch(name, mine, theirs, sizes, metric.higher_is_better)


def _hindrances(graph: ChannelGraph) -> str:
    """Why no group of a graph can be pruned."""
    if graph.groups:
        reasons = (f"{group.name}: {group.why}" for group in graph.groups[:5])
        return "; ".join(reasons)
    return "on these inputs no convolution and no linear layer ran whose weight is a parameter" + (
        f" ({listed(graph.unseen, 5)} never ran)" if graph.unseen else ""
    )


def _sound(model: nn.Module, device: Any) -> nn.Module:
    """`model` on `device`; raises `BadModel` for weights that are not finite."""
    if device is not None:
        model = model.to(device)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BadModel(
                f"{name} holds NaN or infinity, so no measurement of this network would be "
                "meaningful. Load finite weights first."
            )
    return model
