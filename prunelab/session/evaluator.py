"""The original network, its graph and its data: builds the network of a plan and evaluates it.

It knows nothing of events: a session passes the networks and keeps the results.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence, Sized
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from prunelab.data.batches import agreed_size, batch_size
from prunelab.data.private_random import private_random
from prunelab.data.splits import Splits
from prunelab.errors import BadData, BadModel
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.surgery.editing import copy_with, cut
from prunelab.graph.surgery.factorisation import (
    extended,
    factorised,
    factorised_graph,
    factorised_like,
)
from prunelab.graph.surgery.network_state import (
    NetworkState,
    not_finite,
    restore,
    state_preserved,
    without_values,
)
from prunelab.graph.trace import copy_of, restricted, trace
from prunelab.loops.batch import device_of, guarded
from prunelab.loops.modes import frozen_modules
from prunelab.loops.own import measured
from prunelab.loops.training import answering
from prunelab.session.measurements import Measurements
from prunelab.session.settings import Settings
from prunelab.values import FrozenMap, Progress, Units, WidthPlan
from prunelab.values.paired_comparison import Answers, PairedComparison, by_batch, by_image

Planned = tuple[nn.Module, WidthPlan]  # a network and its plan
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
        freeze: Sequence[str] = (),
        round_to: int = 1,
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
        self.frozen = frozen_modules(self.base)
        self._least = 1 if settings.own_forward else self._least_inputs()
        if graph is None:
            given = self.run_inputs() if example_inputs is None else example_inputs
            forward = settings.forward if settings.own_forward else None
            graph = trace(self.base, given, forward=forward)
            size = agreed_size(given)
            if graph.inputs is None and size is not None:
                graph = trace(self.base, given, forward=forward, batch_size=size)
        graph = restricted(graph, freeze, round_to)
        if not any(group.prunable for group in graph.groups):
            reasons = "; ".join(f"{g.name}: {g.why}" for g in graph.groups[:5])
            raise BadModel(f"No channel of this network can be pruned ({reasons}).")
        self.graph = graph
        self._forms: dict[tuple[tuple[str, Any], ...], tuple[nn.Module, ChannelGraph]] = {
            (): (self.base, graph)
        }
        self.measurements = Measurements(self.splits, settings, self.run_inputs)
        self._batches: tuple[tuple[str, int], list[float]] | None = None  # a metric on each

    # ------------------------------------------------------------ networks

    def form(self, factors: Mapping[str, Any]) -> tuple[nn.Module, ChannelGraph]:
        """The original network with these layers factorised, at full rank, and its graph.

        Raises `IllegalPlan` for a layer that cannot be factorised.
        """
        key = tuple(sorted(factors.items()))
        if key not in self._forms:
            self._forms[key] = factorised_graph(self.graph, self.base, factors, self.run_once)
        return self._forms[key]

    def plan(self, kept: FrozenMap[Units] | None, factors: Mapping[str, Any]) -> WidthPlan:
        """The plan that keeps these units (None: all), with these layers factorised."""
        graph = self.form(factors)[1]
        return WidthPlan.full(graph) if kept is None else WidthPlan(kept, graph)

    def graph_of(self, plan: WidthPlan) -> ChannelGraph:
        """The graph of the uncut network of a plan."""
        return self.form(plan.graph.factors)[1]

    def network(self, plan: WidthPlan, state: NetworkState) -> nn.Module:
        """The network of this plan in this state."""
        network = cut(*self.form(plan.graph.factors), plan)
        restore(network, state)
        return network

    def cut_to(self, plan: WidthPlan) -> nn.Module:
        """The original network cut to this plan, ranks by energy."""
        graph = self.graph_of(plan)
        kinds: Mapping[str, Any] = graph.factors
        network = factorised(self.base, kinds) if kinds else self.base
        return cut(network, graph, plan)

    def factorised(self, planned: Planned, like: Planned) -> Planned:
        """A network and its plan with the layers factorised that are in `like`, at full rank."""
        network, plan = planned
        if plan.graph.factors == like[1].graph.factors:
            return planned
        graph = self.graph_of(like[1])
        whole = extended(plan, graph)
        made = factorised_like(network, graph.after(whole), like[0], graph.after(like[1]))
        return made, whole

    # ------------------------------------------------------------ inputs and outputs

    def _least_inputs(self) -> int:
        """The fewest inputs that the network runs on: 1, unless it needs 2 or a whole batch."""
        batch = self.splits.sample()
        x = batch[0] if isinstance(batch, tuple | list) else batch
        if not isinstance(x, Tensor) or not x.ndim:
            return 1
        for count in (1, 2, len(x)):
            network = copy_with(self.base, {}, share=True).eval()
            with suppress(Exception), state_preserved(network), private_random(), torch.no_grad():
                self.settings.forward(network, x[:count])
                return count
        return 1  # tracing says why it does not run

    def example(self) -> Any:
        """One training input, or as few as the network runs on, in the form that it expects."""
        return self._first_of(self.splits.sample())

    def run_inputs(self) -> Any:
        """The input of one run: see `example`; a batch for a forward of the user's."""
        batch = self.splits.sample()
        return batch if self.settings.own_forward else self._first_of(batch)

    def _first_of(self, batch: Any) -> Any:
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        return x[: self._least].to(device_of(self.base)) if isinstance(x, Tensor) else x

    def outputs(self, network: nn.Module) -> Any:
        """The outputs of `network` for the first training batch, in evaluation mode."""
        return self._run(network, self.splits.sample())

    def run_once(self, network: nn.Module) -> Any:
        """The outputs of `network` for the input of one run, in evaluation mode."""
        return self._run(network, self.run_inputs())

    def _run(self, network: nn.Module, inputs: Any) -> Any:
        with private_random(), torch.no_grad():
            return self.settings.forward(copy_of(network).eval(), inputs)

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
                values[name] = measured(name, metric.function, copy_of(network), loader)
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
                    mine.append(measured(name, metric.function, copy_of(now), [batch]))
                theirs.append(measured(name, metric.function, copy_of(network), [batch]))
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
