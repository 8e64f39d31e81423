"""The original network, its graph and its data: builds the network of a plan and evaluates it.

It knows nothing of events: a session passes the networks and keeps the results.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence, Sized
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from prunelab.cost.latency_table import LatencyTable, latency_table
from prunelab.data.batches import agreed_size, batch_size, selected
from prunelab.data.private_random import private_random
from prunelab.data.splits import Splits
from prunelab.errors import BadData, BadModel, InvalidValue, TraceError
from prunelab.evidence.reach import reached, where_reached
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.given import check_network
from prunelab.graph.independence import check_copies
from prunelab.graph.surgery.editing import check_fit, cut
from prunelab.graph.surgery.factorisation import factorised
from prunelab.graph.surgery.factorised_graph import Forms, extended, factorised_like
from prunelab.graph.surgery.held_tensors import not_finite
from prunelab.graph.surgery.network_state import NetworkState, restore, state_preserved
from prunelab.graph.trace import copy_of, restricted, runner, running_on, trace
from prunelab.loops.batch import device_of, guarded, on_device
from prunelab.loops.modes import frozen_modules
from prunelab.loops.own import measured
from prunelab.loops.ranks import follow, followed
from prunelab.loops.training import answering
from prunelab.repair.recalibration import Traced
from prunelab.repair.recordings import Recordings
from prunelab.session.measurements import Measurements
from prunelab.session.portable import Call
from prunelab.session.settings import Settings
from prunelab.values import FrozenMap, Progress, Units, WidthPlan, listed
from prunelab.values.paired_comparison import Answers, PairedComparison, by_batch, by_image

IMAGES = 512  # of training: as many as most methods measure
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
        freeze: str | Sequence[str] = (),
        round_to: int = 1,
    ) -> None:
        check_network(model)
        for split in ("train", "val", "test"):
            if not hasattr(data, split):
                raise BadData(
                    f"data has no .{split}; give pl.Data(train=, val=, test=) of batches or "
                    "Datasets, or pl.data.load(...)."
                )
        self.settings = settings
        if not 0 <= seed < 1 << 63:
            raise InvalidValue(f"seed is a whole number from 0 to 2**63 - 1, not {seed}.")
        self.splits = Splits(data, seed)
        self.base = follow(_sound(copy_of(model), checked_device(device)))
        self.frozen = frozen_modules(self.base)
        self.fewest = self._fewest()
        if example_inputs is None:
            example_inputs = self.run_inputs()
        forward = settings.forward if settings.own_forward else None
        with state_preserved(model):
            check_copies(model, runner(example_inputs, forward), forward is not None)
        if graph is None:
            graph = self._traced(example_inputs)
            size = agreed_size(example_inputs)
            if graph.inputs is None and size is not None:
                graph = self._traced(example_inputs, batch_size=size)
        check_fit(self.base, graph)
        graph = restricted(graph, freeze, round_to)
        images = self.splits.samples(IMAGES)
        self.reached = reached(self.base, graph, settings.forward, images)
        found = where_reached(graph, self.reached)
        self.graph = graph = graph.freeze({group.name: group.why for group in found if group.why})
        if not any(group.prunable for group in graph.groups):
            raise BadModel(f"No channel of this network can be pruned: {_hindrances(graph)}.")
        self._forms = Forms(self.base, graph, self.run_once)
        self.measurements = Measurements(self.splits, settings, self.run_inputs)
        self._table: LatencyTable | None = None
        self._batches: tuple[tuple[str, int], list[float]] | None = None  # a metric on each
        self._recordings: WeakKeyDictionary[nn.Module, Recordings] = WeakKeyDictionary()

    def _traced(self, inputs: Any, **more: Any) -> ChannelGraph:
        """The graph; a network that takes its targets in training is given a batch to train on."""
        forward = self.settings.forward if self.settings.own_forward else None
        graph = trace(self.base, inputs, forward=forward, **more)
        batch = self.splits.sample()
        if not graph.untrained or forward is not None or not isinstance(batch, tuple | list):
            return graph
        train_inputs = on_device(tuple(_some_of(batch, 1)), device_of(self.base))
        with suppress(TraceError):
            return trace(self.base, inputs, train_inputs=train_inputs, **more)
        return graph

    # ------------------------------------------------------------ networks

    def form(self, factors: Mapping[str, Any]) -> tuple[nn.Module, ChannelGraph]:
        """The original network with these layers factorised, at full rank, and its graph.

        Raises `IllegalPlan` for a layer that cannot be factorised.
        """
        return self._forms.of(factors)

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

    def traced(self, planned: Planned) -> Traced:
        """A network with its graph and its recordings, kept as long as it is."""
        network, plan = planned
        recordings = self._recordings.setdefault(network, Recordings())
        return Traced(network, self.graph_of(plan).after(plan), recordings)

    def latency_table(self, plan: WidthPlan) -> LatencyTable:
        """The latency table of the uncut network of this plan's form; measured once."""
        graph = self.graph_of(plan)
        if self._table is None or self._table.graph is not graph:
            self._table = latency_table(self.form(graph.factors)[0], graph, self.example())
        return self._table

    # ------------------------------------------------------------ inputs and outputs

    def example(self) -> Any:
        """One training input, or `fewest`, in the form that the network expects."""
        return self._first(self.fewest)

    def run_inputs(self) -> Any:
        """The input of one run: an example, or a batch for a forward of the user's."""
        return self.splits.sample() if self.settings.own_forward else self.example()

    def _first(self, count: int) -> Any:
        one = _some_of(self.splits.sample(), count)
        x = one[0] if isinstance(one, (tuple, list)) else one
        if isinstance(x, (tuple, list)):
            x = (x,)  # a single argument, such as a detector's list of images
        return on_device(x, device_of(self.base))

    def _fewest(self) -> int:
        """How many inputs the network takes at least: 2 where it squeezes a batch of one."""
        counts = 1, 2, batch_size(self.splits.sample())
        for count in () if self.settings.own_forward else counts:
            run = runner(self._first(count))
            with suppress(Exception), state_preserved(self.base), private_random(), torch.no_grad():
                run(self.base.eval())
                return count
        return 1  # the trace says what is wrong

    def outputs(self, network: nn.Module) -> Any:
        """The outputs of `network` for the first training batch, in evaluation mode."""
        return self._run(network, self.splits.sample())

    def run_once(self, network: nn.Module) -> Any:
        """The outputs of `network` for the input of one run, in evaluation mode."""
        return self._run(network, self.run_inputs())

    def _run(self, network: nn.Module, inputs: Any) -> Any:
        network = copy_of(network).eval()
        with running_on(inputs), private_random(), torch.no_grad():
            return self.settings.forward(network, inputs)

    def call_of(self, network: nn.Module) -> Call:
        """How the session's forward calls `network` on the first training batch."""
        batch, calls = self.splits.sample(), []

        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(Call(args, kwargs, batch_size(batch)))

        hook = network.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with private_random(), torch.no_grad():
                self.settings.forward(network, batch)
        finally:
            hook.remove()
        if len(calls) != 1:
            raise BadModel(
                f"forward called the network {len(calls)} times on a batch, so no single program "
                "does what it does. Export .safetensors instead."
            )
        return calls[0]

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
        return followed(values), None

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
                    mine.append(measured(name, metric.function, now, [batch]))
                theirs.append(measured(name, metric.function, network, [batch]))
            sizes.append(batch_size(batch))
            yield Progress(sum(sizes), max(images, sum(sizes)), f"trying: {name}")
        self._batches = (key, mine)
        return by_batch(name, mine, theirs, sizes, metric.higher_is_better)


def _some_of(batch: Any, count: int) -> Any:
    """The first samples of a batch, as a batch."""
    return selected(batch, torch.arange(batch_size(batch)) < count)


def _hindrances(graph: ChannelGraph) -> str:
    """Why no group of a graph can be pruned."""
    if graph.groups:
        reasons = (f"{group.name}: {group.why}" for group in graph.groups[:5])
        return "; ".join(reasons)
    return "on these inputs no convolution and no linear layer ran whose weight is a parameter" + (
        f" ({listed(graph.unseen, 5)} never ran)" if graph.unseen else ""
    )


def checked_device(given: Any) -> torch.device | None:
    """The device that `given` names; raises `InvalidValue` where there is none that works."""
    try:
        return None if given is None else torch.empty(0, device=given).device
    except (RuntimeError, TypeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise InvalidValue(
            f"device={given!r} cannot be used here: {why} Give 'cpu' or None."
        ) from None


def _sound(model: nn.Module, device: Any) -> nn.Module:
    """`model` on `device`; raises `BadModel` for weights that are not finite."""
    if device is not None:
        model = model.to(device)
    if (name := not_finite(model)) is not None:
        raise BadModel(
            f"{name} holds NaN or infinity, so no measurement of this network would be "
            "meaningful. Load finite weights first."
        )
    return model
