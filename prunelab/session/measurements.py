"""Cache of a session's measurements: evidence, layer times, latencies."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
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
            self._splits.images(request.images),
            request.kinds,
            at=request.at,
            forward=self._settings.forward,
            loss=self._settings.loss,
            masks=request.masks,
            expected=request.images,
            mark=mark,
        )
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

    def time_runs(self, network: nn.Module, mark: str | None) -> Generator[Progress, None, Latency]:
        """Measure seconds of one run; cached under the fingerprint `mark` (None: not cached)."""
        inputs = self._inputs()
        seconds: list[float] = []
        for took in timing(network, inputs, RUNS, self._settings.forward):
            seconds.append(took)
            yield Progress(len(seconds), RUNS, "timing")
        found = replace(summed_up(network, seconds), inputs=batch_size(inputs))
        if mark is not None:
            self.latencies = {**self.latencies, mark: found}
        return found
