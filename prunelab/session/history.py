"""A session's ledger and its current network. All commits are made here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from torch import Tensor, nn

from prunelab.cost.counting import cost
from prunelab.evidence.fingerprint import fingerprint
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.surgery.editing import copy_with, cut, take_columns
from prunelab.graph.surgery.factorised_graph import extended
from prunelab.graph.surgery.network_state import NetworkState, captured
from prunelab.graph.trace import copy_of
from prunelab.ledger.events import Began, Event, Noted, Proposed, Tuned
from prunelab.ledger.ledger import Ledger, understood
from prunelab.ledger.state import Point, State
from prunelab.loops.batch import finish
from prunelab.loops.ranks import follow
from prunelab.session.evaluator import Evaluator, Judgement
from prunelab.session.runner import Work, uninterrupted
from prunelab.values import FrozenMap, Move, WidthPlan
from prunelab.values.paired_comparison import Answers, by_image


class History:
    """The ledger, and the network after its last event.

    `network` and `graph` are the current network and its graph; `brought` is the trained network
    that comes with the pending move; `answers` are the network's on the validation images. `tell`
    is called with every event after it is committed.
    """

    def __init__(self, evaluator: Evaluator, ledger: Ledger, tell: Callable[[Event], None]) -> None:
        self._evaluator = evaluator
        self._tell = tell
        self.ledger = ledger
        self.network = copy_of(evaluator.base)
        self.graph = evaluator.graph
        self.brought: nn.Module | None = None
        self.answers: Answers | None = None
        self._shown: tuple[nn.Module, nn.Module] | None = None
        self._trained: tuple[int, nn.Module] | None = None  # by the seq of its event

    def resume(self) -> None:
        """Restore the network after the ledger's last event."""
        state = self.state
        with understood(self.ledger):
            self.network = self.network_at(state.now)
            plan = self.plan
            self.graph = self._evaluator.graph_of(plan).after(plan)
            if state.pending is not None and state.proposed is not None and state.proposed.weights:
                self.brought = self._stored(state.proposed.weights, self.source_plan)
        self.answers = finish(self._evaluator.judge(self.network))[1]

    # ------------------------------------------------------------ points

    @property
    def state(self) -> State:
        """The current state: a fold over the events."""
        return self.ledger.state

    @property
    def plan(self) -> WidthPlan:
        """The units that are currently kept, in original numbers."""
        return self.plan_at(self.state.now)

    def plan_at(self, point: Point) -> WidthPlan:
        """The plan at a point of the trajectory."""
        return self._evaluator.plan(point.kept, point.factors)

    @property
    def source_plan(self) -> WidthPlan:
        """The plan of `source`: the current one, with layers that a move factorises whole."""
        return self.plan_under(self.state, self.state.pending)

    @property
    def source_graph(self) -> ChannelGraph:
        """The graph of `source`."""
        move = self.state.pending
        if move is None or not move.factors:
            return self.graph
        plan = self.source_plan
        return self._evaluator.graph_of(plan).after(plan)

    def plan_under(self, state: State, move: Move | None) -> WidthPlan:
        """The plan that a move drops units from: that of `state`, factorised as the move is."""
        plan = self.plan_at(state.now)
        if move is None or not move.factors:
            return plan
        return extended(plan, self._evaluator.form({**plan.graph.factors, **move.factors})[1])

    @property
    def source(self) -> nn.Module:
        """The network that a move cuts: the current one, or the trained one that comes with it.

        The method that trained it has masked the units that it proposed to drop, and those that
        were put back since are read again as they were before the training.
        """
        state = self.state
        if self.brought is None:
            return self.network
        proposed = state.proposed.move if state.proposed else None
        if proposed is None or state.pending is None or proposed.drop == state.pending.drop:
            return self.brought
        if proposed.factors:  # every rank is there, none is masked
            return self.brought
        back = {
            name: set(units) - set(state.pending.drop.get(name, ()))
            for name, units in proposed.drop.items()
        }
        source = copy_of(self.brought)
        take_columns(source, self.network, self.graph, back)
        return source

    def network_at(self, point: Point) -> nn.Module:
        """The network as it was at a point of the trajectory."""
        return self._stored(point.event.weights, self.plan_at(point))

    def settled(self, network: nn.Module, plan: WidthPlan) -> nn.Module:
        """`network` as a file will give it back: the original cut to `plan`, in its state.

        So what the network has kept while it was trained or measured does not stay, and all ranks
        have the network of the first.
        """
        return follow(self._evaluator.network(plan, captured(network)))

    def _stored(self, key: str, plan: WidthPlan) -> nn.Module:
        with understood(self.ledger):
            state = NetworkState.unpacked(self.ledger.weights(key))
            return self._evaluator.network(plan, state)

    def shown(self) -> nn.Module:
        """A copy of the network for the user, the same one until the network changes."""
        network = self.network
        if self._shown is None or self._shown[0] is not network:
            self._shown = network, copy_of(network)
        return self._shown[1]

    def trained(self) -> tuple[nn.Module, WidthPlan]:
        """The network that was trained last, which is the target of repairs.

        It is the original, or the result of the latest tune; it must not be changed.
        """
        point = [p for p in self.state.path if isinstance(p.event, (Began, Tuned))][-1]
        if self._trained is None or self._trained[0] != point.seq:
            if isinstance(point.event, Began):  # not the base itself, which others read meanwhile
                network = copy_with(self._evaluator.base, {}, share=True)
            else:
                network = self.network_at(point)
            self._trained = point.seq, network
        return self._trained[1], self.plan_at(point)

    def momentum(self) -> nn.Module | None:
        """The momentum that the latest approved search left, cut to the current plan."""
        found = self.state.now.momentum
        if found is None:
            return None
        key, kept = found
        plan = self._evaluator.plan(kept, self.state.now.factors)
        moving = self._stored(key, plan)
        return cut(moving, self._evaluator.graph_of(plan).after(plan), self.plan)

    # ------------------------------------------------------------ commits

    def header(self, ahead: int = 0) -> dict[str, Any]:
        """The number and time of the next event, or of one that is so many ahead."""
        return {
            "seq": len(self.ledger) + ahead,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def commit(
        self,
        event: Event,
        *,
        weights: nn.Module | None = None,
        momentum: nn.Module | None = None,
        brought: nn.Module | None = None,
    ) -> None:
        """Append `event`, which leaves the network as it is.

        Parameters
        ----------
        weights
            The network whose weights are stored, under the name in the event.
        momentum
            The momentum that is stored with a proposed move.
        brought
            The trained network that comes with a proposed move.
        """
        stored = {}
        if weights is not None:
            assert isinstance(event, (Began, Proposed)) and event.weights is not None
            stored[event.weights] = captured(weights).packed()
        if momentum is not None:
            assert isinstance(event, Proposed) and event.momentum is not None
            stored[event.momentum] = captured(momentum).packed()
        with uninterrupted():
            self.ledger.append(event, stored)
            if not event.keeps_proposal:
                self.brought = brought
        self._tell(event)

    def commit_return(self, event: Event, point: Point) -> Work[None]:
        """Restore the network of `point`, and append `event`, which returns to it."""
        plan, network = self.plan_at(point), self.network_at(point)
        _, answers = yield from self._evaluator.judge(network)
        self._commit([event], {}, network, plan, answers)

    def commit_steps(
        self,
        steps: Sequence[tuple[type[Any], Mapping[str, Any], nn.Module, Judgement]],
        plan: WidthPlan,
    ) -> None:
        """Commit steps that follow each other, all or none: networks with this `plan`.

        A step is the class of its event, the fields that only this class has, the network, and what
        it was judged.
        """
        events: list[Event] = []
        stored = {}
        graph, before = self._evaluator.graph_of(plan), self.answers
        network: nn.Module
        for kind, extra, network, (metrics, answers) in steps:
            header = self.header(len(events))
            event = kind(
                **header,
                kept=plan.kept,
                metrics=FrozenMap(metrics),
                cost=cost(graph, plan),
                fingerprint=fingerprint(network),
                weights=str(header["seq"]),
                compared=FrozenMap(_compared(before, answers)),
                **extra,
            )
            stored[event.weights] = captured(network).packed()
            events.append(event)
            before = answers
        self._commit(events, stored, network, plan, before)

    def _commit(
        self,
        events: Sequence[Event],
        stored: Mapping[str, Mapping[str, Tensor]],
        network: nn.Module,
        plan: WidthPlan,
        answers: Answers | None,
    ) -> None:
        """Append `events`, after which the network is `network`: all that can fail comes first."""
        graph = self._evaluator.graph_of(plan).after(plan)
        with uninterrupted():
            self.ledger.extend(events, stored)
            self.network, self.graph, self.answers = network, graph, answers
            if self.state.pending is None:  # a repair or tune leaves it, and what came with it
                self.brought = None
        for event in events:
            self._tell(event)

    def note(self, fields: Mapping[str, Any]) -> None:
        """Commit a note with these fields of `Noted`."""
        self.commit(Noted(**self.header(), **fields))


def _compared(before: Answers | None, after: Answers | None) -> dict[str, int]:
    """How many validation images a step lost and gained."""
    if before is None or after is None or before.labels != after.labels:
        return {}
    found = by_image(before, after)
    return {"images": found.images, "lost": len(found.lost), "gained": len(found.gained)}
