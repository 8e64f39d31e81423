"""The desk: a session's ledger, and the network as it is now. All commits are made here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from typing import Any

from torch import nn

from prunelab.cost.counting import Latency, cost, summed_up, timing
from prunelab.data.batches import batch_size
from prunelab.errors import InvalidValue
from prunelab.evidence import AimedGram, Evidence, aiming
from prunelab.evidence.fingerprint import fingerprint
from prunelab.evidence.mask_gradients import Masks
from prunelab.graph.trace import copy_of
from prunelab.ledger.events import Adjusted, Began, Event, Noted, Proposed, Step, Tuned
from prunelab.ledger.ledger import Ledger
from prunelab.ledger.state import Point, State
from prunelab.loops.batch import finish
from prunelab.loops.training import Training
from prunelab.methods import Context, Method
from prunelab.session.evaluator import Bench
from prunelab.session.runner import Work, uninterrupted
from prunelab.values import FrozenMap, Progress, WidthPlan
from prunelab.values.paired_comparison import Answers, by_image

CONTRIBUTION = ("contribution",)
RUNS = 30  # of which a latency is the median


class Desk:
    """The ledger, and the network where its last event left it.

    `network` and `graph` are the network now and its graph; `brought` are the trained weights
    that the pending move brings; `answers` are those to the validation images.
    `tell` hears of every event that was committed.
    """

    def __init__(
        self, bench: Bench, method: Method, ledger: Ledger, tell: Callable[[Event], None]
    ) -> None:
        self.bench = bench
        self.method = method
        self.ledger = ledger
        self.tell = tell
        self.network = copy_of(bench.base)
        self.graph = bench.graph
        self.brought: nn.Module | None = None
        self.answers: Answers | None = None

    def resume(self) -> None:
        """Take up the network where the ledger's last event left it."""
        state = self.state
        self.network = self.network_at(state.now)
        self.graph = self.bench.graph.after(self.plan)
        if state.pending is not None and state.proposed is not None and state.proposed.weights:
            weights = self.ledger.weights(state.proposed.weights)
            self.brought = self.bench.network(self.plan, weights)
        self.answers = finish(self.bench.judged(self.network))[1]

    @property
    def state(self) -> State:
        """Where the session stands: a fold over its events."""
        return self.ledger.state

    @property
    def plan(self) -> WidthPlan:
        """The units kept now, in original numbers."""
        return self.bench.plan(self.state.now.kept)

    def network_at(self, point: Point) -> nn.Module:
        """The network as it was at a point of the trajectory."""
        weights = self.ledger.weights(point.event.weights)
        return self.bench.network(self.bench.plan(point.kept), weights)

    def trained(self) -> tuple[nn.Module, WidthPlan]:
        """The network that was last trained, which repairs aim at.

        It is the original, or what the latest tune made.
        """
        point = [p for p in self.state.path if isinstance(p.event, (Began, Tuned))][-1]
        return self.network_at(point), self.bench.plan(point.kept)

    # ------------------------------------------------------------ what a method may ask

    def goal(self, target: float) -> int:
        """The MACs that `target` stands for: a share of the original when at most 1."""
        base = self.state.base.cost.macs
        if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 < target < inf:
            raise InvalidValue(
                "target_macs is a share of the original between 0 and 1, or a number of MACs; "
                f"not {target!r}."
            )
        return int(target * base) if target <= 1 else int(target)

    def context(self, state: State, goal: int | None) -> Context:
        """What a method may ask about the network now."""
        bench = self.bench
        return Context(
            model=self.network,
            graph=self.graph,
            plan=bench.plan(state.now.kept),
            fingerprint=state.now.event.fingerprint,
            seed=bench.seed_of(state.events),
            carry=state.now.carry,
            target_macs=goal,
            measure=self.measured,
            aimed=self._aimed,
            images=bench.images,
            training_batches=bench.shuffled,
            loss=bench.loss,
            cost=lambda plan: cost(bench.graph, plan),
            train=bench.train if isinstance(bench.train, Training) else Training(),
        )

    def measured(
        self,
        kinds: Sequence[str] = CONTRIBUTION,
        *,
        at: str = "conv",
        images: int = 512,
        masks: Masks = "readers",
    ) -> Generator[Any, None, Evidence]:
        """Evidence of the network now."""
        mark = self.state.now.event.fingerprint
        bench = self.bench
        return (yield from bench.measured(self.network, self.graph, mark, kinds, at, images, masks))

    def _aimed(
        self, layers: Iterable[str], images: int
    ) -> Generator[Any, None, Mapping[str, AimedGram]]:
        """How `layers` meet what the network last trained gives."""
        bench, (target, plan) = self.bench, self.trained()
        work = aiming(
            self.network, self.graph, target, bench.graph.after(plan), bench.images(images),
            tuple(layers), forward=bench.forward, expected=images,
        )  # fmt: skip
        return (yield from work)

    def latency(self, network: nn.Module | None) -> Generator[Progress, None, Latency]:
        """Time `network`; that of the network now (None) is remembered."""
        bench, measured = self.bench, self.network if network is None else network
        inputs = bench.run_of()
        seconds: list[float] = []
        for took in timing(measured, inputs, RUNS, bench.forward):
            seconds.append(took)
            yield Progress(len(seconds), RUNS, "timing")
        found = replace(summed_up(measured, seconds), inputs=batch_size(inputs))
        if network is None:
            bench.latencies[self.state.now.event.fingerprint] = found
        return found

    # ------------------------------------------------------------ commits

    def header(self) -> dict[str, Any]:
        """The number and the time that the next event begins with."""
        return {"seq": len(self.ledger), "at": datetime.now(UTC).isoformat(timespec="seconds")}

    def step(
        self, kind: type[Any], network: nn.Module, plan: WidthPlan, extra: dict[str, Any]
    ) -> Work:
        """Judge `network` and commit it as the step `kind`."""
        measured, answers = yield from self.bench.judged(network)
        self.commit_step(kind, network, plan, extra, measured, answers)

    def commit_step(
        self, kind: type[Any], network: nn.Module, plan: WidthPlan, extra: Mapping[str, Any],
        measured: Mapping[str, float], answers: Answers | None,
    ) -> None:  # fmt: skip
        """Commit `network` as the step `kind`, judged already."""
        mark = fingerprint(network)
        event = kind(
            **self.header(),
            kept=plan.kept,
            metrics=FrozenMap(measured),
            cost=cost(self.bench.graph, plan),
            fingerprint=mark,
            weights=mark,
            compared=FrozenMap(_compared(self.answers, answers)),
            **extra,
        )
        self.commit(event, network, weights=network, answers=answers)

    def commit(
        self,
        event: Event,
        network: nn.Module | None = None,
        *,
        weights: nn.Module | None = None,
        brought: nn.Module | None = None,
        answers: Answers | None = None,
    ) -> None:
        """Append `event` and store `weights` with it; `network` is the network from now on."""
        stored = {}
        if weights is not None:
            assert isinstance(event, (Began, Proposed, Step)) and event.weights is not None
            stored[event.weights] = weights.state_dict()
        with uninterrupted():
            self.ledger.append(event, stored)
            if network is not None:
                self.network, self.answers = network, answers
                self.graph = self.bench.graph.after(self.plan)
            if not isinstance(event, (Adjusted, Noted)):
                self.brought = brought
        self.tell(event)


def _compared(before: Answers | None, after: Answers | None) -> dict[str, int]:
    """How many validation images a step lost and gained."""
    if before is None or after is None or before.labels != after.labels:
        return {}
    trial = by_image(before, after)
    return {"images": trial.images, "lost": len(trial.lost), "gained": len(trial.gained)}
