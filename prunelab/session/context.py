"""The context of a method's search, built from a session's network and data."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from math import inf
from typing import Any

from torch import nn

from prunelab.cost.counting import cost
from prunelab.errors import InvalidValue
from prunelab.evidence import AimedGram, Evidence, aiming
from prunelab.evidence.mask_gradients import Masks
from prunelab.evidence.reach import where_reached
from prunelab.ledger.state import State
from prunelab.loops.training import Training
from prunelab.methods import Context
from prunelab.session.evaluator import Evaluator
from prunelab.session.history import History
from prunelab.session.measurements import CONTRIBUTION, ApartRequest, Request


def macs_of(state: State, target: float) -> int:
    """The MACs that `target` stands for: a share of the original when at most 1."""
    if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 < target < inf:
        raise InvalidValue(
            "target_macs is a share of the original between 0 and 1, or a number of MACs; "
            f"not {target!r}."
        )
    if 1 < target <= 100:
        raise InvalidValue(
            f"target_macs={target:g} would be {target:g} multiply-adds. A share is at most 1: "
            f"{target / 100:g} is {target:g}%."
        )
    return int(target * state.base.cost.macs) if target <= 1 else int(target)


def search_context(
    evaluator: Evaluator, history: History, state: State, target_macs: int | None, model: nn.Module
) -> Context:
    """The context of a search on the network of `state`, which is the current one.

    `model` is a copy of it, for the method: what a method does to it stays there.
    """
    settings, splits = evaluator.settings, evaluator.splits

    def measure(
        kinds: Sequence[str] = CONTRIBUTION,
        *,
        at: str = "conv",
        images: int = 512,
        masks: Masks = "readers",
    ) -> Generator[Any, None, Evidence]:
        return measuring(evaluator, history, Request(tuple(kinds), at, images, masks))

    def apart(
        kinds: Sequence[str], images: int, layers: Sequence[str]
    ) -> Generator[Any, None, tuple[Evidence, Evidence | None]]:
        mark, seed = state.now.event.fingerprint, splits.seed_of(state.now.seq + 1)
        request = ApartRequest(mark, tuple(kinds), images, tuple(layers), seed)
        return evaluator.measurements.apart(history.network, history.graph, request)

    def aimed(layers: Iterable[str], images: int) -> Generator[Any, None, Mapping[str, AimedGram]]:
        target, plan = evaluator.factorised(history.trained(), (history.network, history.plan))
        return aiming(
            history.network, history.graph, target, evaluator.graph_of(plan).after(plan),
            splits.images(images), tuple(layers), forward=settings.forward, expected=images,
        )  # fmt: skip

    return Context(
        model=model,
        graph=where_reached(history.graph, evaluator.reached),
        plan=history.plan_at(state.now),
        fingerprint=state.now.event.fingerprint,
        seed=splits.seed_of(state.events),
        carry=state.now.carry,
        target_macs=target_macs,
        measure=measure,
        apart=apart,
        aimed=aimed,
        images=splits.images,
        training_batches=splits.shuffled,
        loss=settings.loss,
        forward=settings.forward,
        cost=lambda plan: cost(evaluator.graph_of(plan), plan),
        form=lambda factors: evaluator.form({**history.graph.factors, **factors})[1],
        train=settings.train if isinstance(settings.train, Training) else Training(),
        memory=settings.memory,
        latency_table=lambda: evaluator.latency_table(history.plan_at(state.now)),
        momentum=history.momentum,
        frozen=evaluator.frozen,
    )


def measuring(
    evaluator: Evaluator, history: History, request: Request
) -> Generator[Any, None, Evidence]:
    """Measure evidence of the current network, or reuse it."""
    mark = history.state.now.event.fingerprint
    measurements = evaluator.measurements
    return (yield from measurements.measure(history.network, history.graph, mark, request))
