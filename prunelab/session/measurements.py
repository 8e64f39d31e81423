"""Cache of a session's measurements: evidence, layer times, latencies."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from prunelab.cost.counting import Latency, summed_up, timing
from prunelab.cost.timing import LayerTimes, layer_times
from prunelab.data.batches import batch_size, nonempty, take
from prunelab.data.holding_out import HOLD, part
from prunelab.data.splits import Splits
from prunelab.evidence import Evidence
from prunelab.evidence.mask_gradients import Masks
from prunelab.evidence.measure import evidence_bytes, measured_layers, measuring
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.trace import copy_of
from prunelab.loops.ranks import sharded
from prunelab.session.settings import Settings
from prunelab.values import Progress, WidthPlan, many

CONTRIBUTION = ("contribution",)
RUNS = 30  # of which a latency is the median


@dataclass(frozen=True, slots=True)
class Request:
    """A request for evidence: its kinds, where, on how many images, with which masks."""

    kinds: tuple[str, ...] = CONTRIBUTION
    at: str = "conv"
    images: int = 512
    masks: Masks = "readers"


@dataclass(frozen=True, slots=True)
class ApartRequest:
    """A request for evidence of training images drawn from `seed`, a part of them held out."""

    mark: str
    kinds: tuple[str, ...]
    images: int
    layers: tuple[str, ...]
    seed: int


class Measurements:
    """Measures, and caches the latest result of each kind with its network's fingerprint.

    Readers on other threads see whole results only: cached values are replaced, never changed.
    """

    def __init__(self, splits: Splits, settings: Settings, inputs: Callable[[], Any]) -> None:
        self._splits = splits
        self._settings = settings
        self._inputs = inputs  # what one run is given
        self._evidence: dict[tuple[str, ...], tuple[str, Request, Evidence]] = {}
        self._apart: tuple[ApartRequest, tuple[Evidence, Evidence | None]] | None = None
        self.layer_times: LayerTimes | None = None  # of the network timed last
        self.latencies: dict[str, Latency] = {}  # by fingerprint

    def measure(
        self, network: nn.Module, graph: ChannelGraph, mark: str, request: Request
    ) -> Generator[Progress, None, Evidence]:
        """Evidence of `network`, whose fingerprint is `mark`: from the cache, or by one pass."""
        known = self.known(mark, request)
        if known is not None:
            return known
        self._ask(graph, request.kinds, request.images, None)
        found = yield from measuring(
            network,
            graph,
            sharded(self._splits.images(request.images)),
            request.kinds,
            at=request.at,
            forward=self._settings.forward,
            loss=self._settings.loss,
            masks=request.masks,
            expected=request.images,
            mark=mark,
        )
        found = found.all_reduce()
        self._evidence = {**self._evidence, request.kinds: (mark, request, found)}
        return found

    def apart(
        self, network: nn.Module, graph: ChannelGraph, request: ApartRequest
    ) -> Generator[Progress, None, tuple[Evidence, Evidence | None]]:
        """Evidence to solve on, and that on held-out images (None: there are none)."""
        if self._apart is not None and self._apart[0] == request:
            return self._apart[1]
        self._apart = None
        self._ask(graph, request.kinds, request.images, request.layers, parts=2)
        found: list[Evidence | None] = []
        held = request.images // HOLD
        for judges, expected in ((False, request.images - held), (True, held)):
            images = take(self._splits.shuffled(request.seed), request.images)
            batches = nonempty(part(images, judges))
            if batches is None and judges:
                found.append(None)
                continue
            found.append(
                (
                    yield from measuring(
                        network,
                        graph,
                        batches or (),
                        request.kinds,
                        layers=request.layers,
                        seed=request.seed,
                        forward=self._settings.forward,
                        loss=self._settings.loss,
                        expected=expected,
                        mark=request.mark,
                    )
                )
            )
        solved, apart = found
        assert solved is not None
        self._apart = request, (solved, apart)
        return solved, apart

    def _ask(
        self,
        graph: ChannelGraph,
        kinds: Sequence[str],
        images: int,
        layers: Sequence[str] | None,
        parts: int = 1,
    ) -> None:
        """Raise `OverBudget` where the evidence would take more than the session's memory."""
        wanted = measured_layers(graph, layers)
        self._settings.memory.ask(
            parts * evidence_bytes(wanted, kinds, images),
            f"Measuring {' and '.join(kinds)} of {many(len(wanted), 'layer')}",
            "freeze= the widest layers, or choose a method that measures one layer a move.",
        )

    def known(self, mark: str, request: Request) -> Evidence | None:
        """Evidence of the network `mark` for exactly this request, if it is in the cache."""
        found = self._evidence.get(request.kinds)
        return found[2] if found is not None and found[:2] == (mark, request) else None

    def latest(self, kinds: Sequence[str]) -> Evidence | None:
        """The evidence of these kinds that was measured last, of any network."""
        found = self._evidence.get(tuple(kinds))
        return None if found is None else found[2]

    def time_layers(self, network: nn.Module, graph: ChannelGraph, plan: WidthPlan) -> None:
        """Time the layers of the network of this plan, unless they were timed last.

        `graph` is that of the uncut network.
        """
        if self.layer_times is None or self.layer_times.plan != plan:
            inputs, forward = self._inputs(), self._settings.forward
            network = copy_of(network)
            self.layer_times = layer_times(network, graph, plan, lambda: forward(network, inputs))

    def time_runs(
        self, networks: Mapping[str | None, nn.Module]
    ) -> Generator[Progress, None, dict[str | None, Latency]]:
        """Measure seconds of one run of each network, by its fingerprint (None: not cached).

        Their runs alternate, so that other load on the machine meets all of them.
        """
        inputs = self._inputs()
        with ExitStack() as ends:
            clocks = {
                mark: ends.enter_context(closing(self._clock(network, inputs)))
                for mark, network in networks.items()
            }
            seconds: dict[str | None, list[float]] = {mark: [] for mark in networks}
            for run in range(RUNS):
                for mark, clock in clocks.items():
                    seconds[mark].append(next(clock))
                yield Progress(run + 1, RUNS, "timing")
        found = {
            mark: replace(summed_up(networks[mark], took), inputs=batch_size(inputs))
            for mark, took in seconds.items()
        }
        known = {mark: one for mark, one in found.items() if mark is not None}
        self.latencies = {**self.latencies, **known}
        return found

    def _clock(self, network: nn.Module, inputs: Any) -> Generator[float, None, None]:
        yield from timing(network, inputs, RUNS, self._settings.forward)
