"""A session's ledger, and the network as it is now. All commits are made here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from torch import nn

from prunelab.cost.counting import cost
from prunelab.evidence.fingerprint import fingerprint
from prunelab.graph.trace import copy_of
from prunelab.ledger.events import Began, Event, Noted, Proposed, Step, Tuned
from prunelab.ledger.ledger import Ledger
from prunelab.ledger.state import Point, State
from prunelab.loops.batch import finish
from prunelab.session.evaluator import Evaluator, Judgement
from prunelab.session.runner import uninterrupted
from prunelab.values import FrozenMap, WidthPlan
from prunelab.values.paired_comparison import Answers, by_image


class History:
    """The ledger, and the network where its last event left it.

    `network` and `graph` are the network now and its graph; `brought` is the trained network that
    the pending move brings; `answers` are those to the validation images. `tell` is called with
    every event once it is committed.
    """

    def __init__(self, evaluator: Evaluator, ledger: Ledger, tell: Callable[[Event], None]) -> None:
        self._evaluator = evaluator
        self._tell = tell
        self.ledger = ledger
        self.network = copy_of(evaluator.base)
        self.graph = evaluator.graph
        self.brought: nn.Module | None = None
        self.answers: Answers | None = None

    def resume(self) -> None:
        """Take up the network where the ledger's last event left it."""
        state = self.state
        self.network = self.network_at(state.now)
        self.graph = self._evaluator.graph.after(self.plan)
        if state.pending is not None and state.proposed is not None and state.proposed.weights:
            weights = self.ledger.weights(state.proposed.weights)
            self.brought = self._evaluator.network(self.plan, weights)
        self.answers = finish(self._evaluator.judge(self.network))[1]

    # ------------------------------------------------------------ points

    @property
    def state(self) -> State:
        """Where the session stands: a fold over its events."""
        return self.ledger.state

    @property
    def plan(self) -> WidthPlan:
        """The units kept now, in original numbers."""
        return self._evaluator.plan(self.state.now.kept)

    @property
    def source(self) -> nn.Module:
        """What a move is cut from: the network now, or the trained one that the move brings."""
        return self.brought if self.brought is not None else self.network

    def network_at(self, point: Point) -> nn.Module:
        """The network as it was at a point of the trajectory."""
        weights = self.ledger.weights(point.event.weights)
        return self._evaluator.network(self._evaluator.plan(point.kept), weights)

    def trained(self) -> tuple[nn.Module, WidthPlan]:
        """The network that was last trained, which repairs aim at.

        It is the original, or what the latest tune made.
        """
        point = [p for p in self.state.path if isinstance(p.event, (Began, Tuned))][-1]
        return self.network_at(point), self._evaluator.plan(point.kept)

    # ------------------------------------------------------------ commits

    def header(self) -> dict[str, Any]:
        """The number and the time that the next event begins with."""
        return {"seq": len(self.ledger), "at": datetime.now(UTC).isoformat(timespec="seconds")}

    def commit(
        self,
        event: Event,
        network: nn.Module | None = None,
        *,
        weights: nn.Module | None = None,
        brought: nn.Module | None = None,
        answers: Answers | None = None,
    ) -> None:
        """Append `event`; the session is then as it says.

        Parameters
        ----------
        network
            The network from now on, with its `answers` to the validation images; None: as it was.
        weights
            The network whose weights are stored under the name that the event gives them.
        brought
            The trained network that a proposed move brings.
        """
        stored = {}
        if weights is not None:
            assert isinstance(event, (Began, Proposed, Step)) and event.weights is not None
            stored[event.weights] = weights.state_dict()
        with uninterrupted():
            self.ledger.append(event, stored)
            if network is not None:
                self.network, self.answers = network, answers
                self.graph = self._evaluator.graph.after(self.plan)
            if not event.keeps_proposal:
                self.brought = brought
        self._tell(event)

    def commit_step(
        self,
        kind: type[Any],
        network: nn.Module,
        plan: WidthPlan,
        extra: Mapping[str, Any],
        judged: Judgement,
    ) -> None:
        """Commit `network`, which is that of `plan` and came to `judged`, as the step `kind`.

        `extra` are the fields that only this kind of event has.
        """
        metrics, answers = judged
        mark = fingerprint(network)
        event = kind(
            **self.header(),
            kept=plan.kept,
            metrics=FrozenMap(metrics),
            cost=cost(self._evaluator.graph, plan),
            fingerprint=mark,
            weights=mark,
            compared=FrozenMap(_compared(self.answers, answers)),
            **extra,
        )
        self.commit(event, network, weights=network, answers=answers)

    def note(self, fields: Mapping[str, Any]) -> None:
        """Write something down: the fields of `Noted`."""
        self.commit(Noted(**self.header(), **fields))


def _compared(before: Answers | None, after: Answers | None) -> dict[str, int]:
    """How many validation images a step lost and gained."""
    if before is None or after is None or before.labels != after.labels:
        return {}
    found = by_image(before, after)
    return {"images": found.images, "lost": len(found.lost), "gained": len(found.gained)}
