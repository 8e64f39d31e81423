"""What a session shows: its state, its network, and what is known of them; nothing changes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from prunelab.cost.counting import Latency, layer_costs
from prunelab.data.private_random import private_random
from prunelab.errors import InvalidValue
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.trace import copy_of, undisturbed
from prunelab.ledger.ledger import Ledger
from prunelab.ledger.state import State
from prunelab.loops.training import Metric
from prunelab.methods import Method, make_method
from prunelab.session.evaluator import Bench
from prunelab.session.preview import AtHand, Foresight
from prunelab.session.runner import Verbs
from prunelab.session.verbs import Engine
from prunelab.values import Cost, WidthPlan


class Shown(Verbs):
    """What can be seen of a session without a verb."""

    _bench: Bench
    _engine: Engine

    @property
    def state(self) -> State:
        """Where the session stands: a fold over its events."""
        return self._engine.state

    @property
    def ledger(self) -> Ledger:
        """Everything that happened; iterate for the events."""
        return self._engine.ledger

    @property
    def model(self) -> nn.Module:
        """The network now: always plain and, after approved moves, really smaller."""
        return self._engine.network

    @property
    def plan(self) -> WidthPlan:
        """The units kept now, in original numbers."""
        return self._engine.plan

    @property
    def graph(self) -> ChannelGraph:
        """The channel graph of the network now; groups and units keep their names and numbers."""
        return self._engine.graph

    @property
    def data(self) -> Any:
        """The data that the session was given."""
        return self._bench.data

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name; the first guards `run`."""
        return dict(self._bench.metrics)

    @property
    def example(self) -> Any:
        """One training input, as the network takes it."""
        return self._bench.inputs_of(self._bench.sample())

    @property
    def evidence(self) -> AtHand | None:
        """The evidence that `foresee` answers from: when it was measured, and whether it is stale.

        None before anything was measured.
        """
        return self._engine.at_hand()

    @property
    def method(self) -> Method:
        """The method that proposes."""
        return self._engine.method

    def __repr__(self) -> str:
        return f"<Session of {self.state.began.network}: {self.state.line()}>"

    def original(self) -> nn.Module:
        """A new copy of the network that the session began with."""
        return copy_of(self._bench.base)

    def outputs(self, network: nn.Module) -> Any:
        """What `network` gives for the first training batch, in evaluation mode."""
        with undisturbed(network), private_random(), torch.no_grad():
            network.eval()
            return self._bench.forward(network, self._bench.sample())

    @property
    def latencies(self) -> dict[int, Latency]:
        """What `latency` measured of the points of the trajectory, by the number of their event."""
        known = self._bench.latencies
        marks = {point.seq: point.event.fingerprint for point in self.state.points}
        return {seq: known[mark] for seq, mark in marks.items() if mark in known}

    def costs(self, plan: WidthPlan | None = None) -> dict[str, Cost]:
        """What each convolution and linear layer costs with `plan` (None: as it is now)."""
        return layer_costs(self._bench.graph, self.plan if plan is None else plan)

    def seconds(self, plan: WidthPlan | None = None) -> dict[str, float] | None:
        """Seconds of each layer in one run with `plan` (None: as it is now); "" is all else.

        Estimated from the times that `measure` took, see `LayerTimes.scaled`; None before it did.
        """
        times = self._bench.times
        return None if times is None else times.scaled(self._bench.graph, plan or self.plan)

    def pictures(self, images: Iterable[int]) -> dict[int, np.ndarray]:
        """Validation images by their place in the split, as the loader gives them.

        Such as those that a trial lost; [channels, height, width] each. Raises `InvalidValue` for
        batches that do not begin with images.
        """
        return self._bench.pictures(set(images))

    def foresee(
        self,
        drop: Mapping[str, Iterable[int]] | None = None,
        *,
        theta: float | None = None,
        method: Any = None,
        target_macs: float | None = None,
    ) -> Foresight:
        """What would happen, from the evidence at hand: no run of the network, no event, no lock.

        With `drop` what dropping these units does; with `theta` or `method` what the session's
        method with this theta, or that method, would propose now; with `target_macs` (as in `run`)
        the widths that spread such a budget over the layers, a sketch of what `allocate` finds;
        with nothing what the session's method would propose. Answers while a verb is at work.

        Raises `WrongState` where there is no evidence of the network as it is now (see `measure`)
        or where the method has to run the network, `InvalidValue` for more than one question,
        `BudgetUnreachable`, and what `adjust` raises for a `drop`.
        """
        asked = {"drop": drop, "theta": theta, "method": method, "target_macs": target_macs}
        given = [name for name, value in asked.items() if value is not None]
        if len(given) > 1:
            raise InvalidValue(
                f"foresee answers one question at a time, not {' and '.join(given)}."
            )
        made = None if method is None else make_method(method)
        if theta is not None:
            if not hasattr(self.method, "theta"):
                raise InvalidValue(f"{self.method.name} has no theta; give method=, or drop=.")
            made = replace(self.method, theta=theta)  # type: ignore[type-var]
        return self._engine.foresee(drop, made, target_macs)
