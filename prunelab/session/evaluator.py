"""The original network, its graph and its data: builds the network of a plan and evaluates it.

It knows nothing of events: a session passes the networks and keeps the results.
"""

from __future__ import annotations

from collections.abc import Generator, Sized
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.data.batches import batch_size
from prunelab.data.private_random import private_random
from prunelab.data.splits import Splits
from prunelab.errors import BadData, BadModel
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.surgery.editing import cut
from prunelab.graph.surgery.held_tensors import not_finite, without_values
from prunelab.graph.surgery.network_state import NetworkState, restore
from prunelab.graph.trace import copy_of, trace
from prunelab.loops.batch import device_of, guarded
from prunelab.loops.training import answering, number
from prunelab.session.measurements import Measurements
from prunelab.session.settings import Settings
from prunelab.values import FrozenMap, Progress, Units, WidthPlan
from prunelab.values.paired_comparison import Answers, PairedComparison, by_batch, by_image

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
        for split in ("train", "val", "test"):
            if not hasattr(data, split):
                raise BadData(
                    f"data has no .{split}; give pl.Data(train=, val=, test=) of batches or "
                    "Datasets, or pl.data.load(...)."
                )
        self.settings = settings
        self.splits = Splits(data, int(seed))
        self.base = _sound(copy_of(model), device)
        if graph is None:
            if example_inputs is None:
                example_inputs = self.run_inputs()
            forward = settings.forward if settings.own_forward else None
            graph = trace(self.base, example_inputs, forward=forward)
        if not any(group.prunable for group in graph.groups):
            reasons = "; ".join(f"{g.name}: {g.why}" for g in graph.groups[:5])
            raise BadModel(f"No channel of this network can be pruned ({reasons}).")
        self.graph = graph
        self.measurements = Measurements(self.splits, settings, graph, self.run_inputs)
        self._batches: tuple[tuple[str, int], list[float]] | None = None  # a metric on each

    # ------------------------------------------------------------ networks

    def plan(self, kept: FrozenMap[Units] | None) -> WidthPlan:
        """The plan that keeps these units (None: all)."""
        return WidthPlan.full(self.graph) if kept is None else WidthPlan(kept, self.graph)

    def network(self, plan: WidthPlan, state: NetworkState) -> nn.Module:
        """The network of this plan in this state."""
        network = cut(self.base, self.graph, plan)
        restore(network, state)
        return network

    # ------------------------------------------------------------ inputs and outputs

    def example(self) -> Any:
        """One training input, in the form that the network expects."""
        return self._first_of(self.splits.sample())

    def run_inputs(self) -> Any:
        """The input of one run: one sample, or a batch for a forward of the user's."""
        batch = self.splits.sample()
        return batch if self.settings.own_forward else self._first_of(batch)

    def _first_of(self, batch: Any) -> Any:
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        return x[:1].to(device_of(self.base)) if isinstance(x, Tensor) else x

    def outputs(self, network: nn.Module) -> Any:
        """The outputs of `network` for the first training batch, in evaluation mode."""
        with private_random(), torch.no_grad():
            return self.settings.forward(copy_of(network).eval(), self.splits.sample())

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
                values[name] = number(name, metric.function(copy_of(network), loader))
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
        network, now = copy_of(network), copy_of(now)
        for place, batch in enumerate(guarded(self.splits.validation(images))):
            with private_random(self.splits.seed):
                if place == len(mine):
                    mine.append(number(name, metric.function(now, [batch])))
                theirs.append(number(name, metric.function(network, [batch])))
            sizes.append(batch_size(batch))
            yield Progress(sum(sizes), max(images, sum(sizes)), f"trying: {name}")
        self._batches = (key, mine)
        return by_batch(name, mine, theirs, sizes, metric.higher_is_better)


def _sound(model: nn.Module, device: Any) -> nn.Module:
    """`model` on `device`; raises `BadModel` for weights that are not finite."""
    if without_values(model) is not None:
        return model  # tracing says what to do about it
    if device is not None:
        model = model.to(device)
    if (name := not_finite(model)) is not None:
        raise BadModel(
            f"{name} holds NaN or infinity, so no measurement of this network would be "
            "meaningful. Load finite weights first."
        )
    return model
