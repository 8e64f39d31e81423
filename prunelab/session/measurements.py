"""Cache of a session's measurements: evidence, layer times, latencies."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from prunelab.cost.counting import Latency, summed_up, timing
from prunelab.cost.timing import LayerTimes, layer_times
from prunelab.data.batches import batch_size
from prunelab.data.splits import Splits
from prunelab.evidence import Evidence
from prunelab.evidence.mask_gradients import Masks
from prunelab.evidence.measure import measuring
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.trace import copy_of
from prunelab.loops.ranks import sharded
from prunelab.session.settings import Settings
from prunelab.values import Progress, WidthPlan

CONTRIBUTION = ("contribution",)
RUNS = 30  # of which a latency is the median


@dataclass(frozen=True, slots=True)
class Request:
    """A request for evidence: its kinds, where, on how many images, with which masks."""

    kinds: tuple[str, ...] = CONTRIBUTION
    at: str = "conv"
    images: int = 512
    masks: Masks = "readers"


class Measurements:
    """Measures, and caches the latest result of each kind with its network's fingerprint.

    Readers on other threads see whole results only: cached values are replaced, never changed.
    """

    def __init__(self, splits: Splits, settings: Settings, inputs: Callable[[], Any]) -> None:
        self._splits = splits
        self._settings = settings
        self._inputs = inputs  # what one run is given
        self._evidence: dict[tuple[str, ...], tuple[str, Request, Evidence]] = {}
        self.layer_times: LayerTimes | None = None  # of the network timed last
        self.latencies: dict[str, Latency] = {}  # by fingerprint

    def measure(
        self, network: nn.Module, graph: ChannelGraph, mark: str, request: Request
    ) -> Generator[Progress, None, Evidence]:
        """Evidence of `network`, whose fingerprint is `mark`: from the cache, or by one pass."""
        known = self.known(mark, request)
        if known is not None:
            return known
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
