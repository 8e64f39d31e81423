"""The verbs of a session, as generators.

Each computes first and commits last, so a verb that is ended before its commit leaves ledger and
network unchanged.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import prunelab
from prunelab.cost.counting import Latency, cost
from prunelab.data.private_random import private_random, privately
from prunelab.errors import InvalidValue, StaleEvidence, WrongState
from prunelab.evidence.fingerprint import fingerprint
from prunelab.graph.surgery.editing import cut
from prunelab.graph.trace import ASKED, copy_of
from prunelab.ledger import guard, words
from prunelab.ledger.events import (
    Adjusted,
    Approved,
    Began,
    Noted,
    Proposed,
    Rejected,
    Repaired,
    Returned,
    Tuned,
    Undone,
)
from prunelab.loops.own import name_of, train_by
from prunelab.loops.ranks import followed
from prunelab.loops.training import Training, distillation_loss, training
from prunelab.methods.base import found, parameters
from prunelab.methods.reasons import why_none
from prunelab.session.context import macs_of, measuring, search_context
from prunelab.session.evaluator import Evaluator, Judgement
from prunelab.session.parts import Parts
from prunelab.session.preview import wanted
from prunelab.session.repairing import best_repair, check_finite, repair_towards
from prunelab.session.runner import Work
from prunelab.values import FrozenMap, Move, Progress, WidthPlan


def begin(parts: Parts) -> Work[None]:
    """Evaluate the original network and commit the first event."""
    evaluator, history = parts.evaluator, parts.history
    settings, graph, base = evaluator.settings, evaluator.graph, evaluator.base
    metrics, answers = yield from evaluator.judge(base)
    chance = {} if answers is None else {"chance": guard.commonest(answers.labels)}
    header = history.header()
    began = Began(
        **header,
        network=type(base).__name__,
        fingerprint=fingerprint(base),
        seed=evaluator.splits.seed,
        method=parts.method.name,
        parameters=parameters(parts.method),
        settings=FrozenMap({
            "repair": settings.repair,
            "repair_images": settings.repair_images,
            "higher_is_better": settings.guard[1].higher_is_better,
            "freeze": tuple(group.name for group in graph.groups if group.why == ASKED),
            "round_to": graph.round_to,
            **chance,
        }),
        widths=FrozenMap({group.name: group.width for group in graph.groups}),
        metrics=FrozenMap(metrics),
        cost=cost(graph, WidthPlan.full(graph)),
        weights=str(header["seq"]),
        unseen=graph.unseen,
        versions=FrozenMap({"prunelab": prunelab.__version__, "torch": torch.__version__}),
    )  # fmt: skip
    history.commit(began, weights=base)
    history.answers = answers


# ---------------------------------------------------------------- proposals


def propose(parts: Parts, target: float | None = None) -> Work[Move | None]:
    """Search for one move, and commit it with the evidence of the search."""
    history, method = parts.history, parts.method
    state = history.state
    goal = None if target is None else macs_of(state, target)
    if state.pending is not None and not state.stale:
        raise WrongState(f"{state.pending} is pending; approve, adjust or reject it first.")
    seen = []
    model = copy_of(history.network)
    context = search_context(parts.evaluator, history, state, goal, model)
    search = privately(method.search(context), context.seed)
    while True:
        try:
            item = next(search)
        except StopIteration as end:
            result = found(end.value)
            result = replace(result, move=followed(result.move))
            break
        if not isinstance(item, Progress):
            seen.append(item)
        yield item
    _note_unusable(parts)
    trained, header = result.weights, history.header()
    if trained is not None:
        trained = history.settled(trained, history.plan_under(state, result.move))
    event = Proposed(
        **header,
        method=method.name,
        parameters=parameters(method),
        move=result.move,
        seen=tuple(seen),
        target=target,
        weights=None if trained is None else str(header["seq"]),
        momentum=None if result.momentum is None else f"{header['seq']} momentum",
        why="" if result.move is not None else why_none(method, context, seen),
    )
    history.commit(event, weights=trained, momentum=result.momentum, brought=trained)
    return result.move


def propose_given(parts: Parts, drop: Mapping[str, Iterable[int]]) -> Work[Move]:
    """Commit the move that drops exactly these units, without a search."""
    history, method = parts.history, parts.method
    if history.state.pending is not None and not history.state.stale:
        raise WrongState(f"{history.state.pending} is pending; approve, adjust or reject it first.")
    move = yield from imagine(parts, drop)
    event = Proposed(
        **history.header(),
        method=method.name,
        parameters=parameters(method),
        move=move,
        given=True,
    )
    history.commit(event)
    return move


def imagine(parts: Parts, drop: Mapping[str, Iterable[int]]) -> Work[Move]:
    """The move that would drop these units; measures if needed, and commits nothing."""
    state = parts.history.state
    asked = parts.preview.asked(state, drop)  # illegal units raise before anything is measured
    evidence = yield from measuring(parts.evaluator, parts.history, wanted(parts.method))
    return parts.preview.move(state, parts.method, asked, evidence)


def adjust(parts: Parts, drop: Mapping[str, Iterable[int]]) -> Work[Move]:
    """Make the pending move drop exactly these units."""
    fresh(parts, "adjust")
    move = yield from imagine(parts, drop)
    parts.history.commit(Adjusted(**parts.history.header(), move=move))
    return move


def reject(parts: Parts, reason: str) -> None:
    """Reject the pending move."""
    pending(parts, "reject")
    parts.history.commit(Rejected(**parts.history.header(), reason=reason))


# ---------------------------------------------------------------- steps


def approve(
    parts: Parts,
    *,
    repair: bool = True,
    run: float | None = None,
    allows: Callable[[Mapping[str, float]], bool] = lambda metrics: True,
) -> Work[bool]:
    """Apply the pending move, and repair with the session's `repair`.

    Parameters
    ----------
    run
        The target of the run that approves it; None: a person approves it.
    allows
        Whether a network with these metrics may be committed; if not, nothing is committed.

    Returns
    -------
    Whether it was committed.
    """
    evaluator, history = parts.evaluator, parts.history
    move, whole = fresh(parts, "approve"), history.source_plan
    plan = whole.drop(move.drop)
    small = cut(history.source, history.source_graph, plan)
    as_cut = yield from evaluator.judge(small)
    steps: list[tuple[type[Any], dict[str, Any], nn.Module, Judgement]]
    steps = [(Approved, {"run": run}, small, as_cut)]
    kind = evaluator.settings.repair_after(parts.method)
    if repair and kind is not None:
        fixed, extra, judged = yield from best_repair(
            evaluator, history, (small, plan), kind, as_cut
        )
        steps.append((Repaired, {**extra, "automatic": True}, fixed, judged))
    if not allows(steps[-1][3][0]):
        return False
    _note_unusable(parts)
    history.commit_steps(steps, plan)
    return True


def undo(parts: Parts, only_proposal: bool = False) -> Work[None]:
    """Discard the pending move and undo the latest step, or do the former only."""
    history, state = parts.history, parts.history.state
    if only_proposal:
        pending(parts, "undo")
        history.commit(Undone(**history.header(), step=None, proposal=True))
        return
    if not state.undoable:
        raise WrongState("There is nothing to undo: no move was approved, none is pending.")
    step, head = state.undo_target()
    event = Undone(**history.header(), step=step, proposal=state.pending is not None)
    if step is None:
        history.commit(event)
        return
    yield from history.commit_return(event, state.point(head))


def go(parts: Parts, seq: int) -> Work[None]:
    """Restore the network after event `seq`."""
    history, state = parts.history, parts.history.state
    known = [point.seq for point in state.points if point.seq != state.head]
    if seq not in known:
        raise InvalidValue(
            f"There is no other network at event {seq!r} to go to; there is one at "
            f"{', '.join(map(str, known)) or 'none yet'}."
        )
    yield from history.commit_return(Returned(**history.header(), to=seq), state.point(seq))


def repair(parts: Parts, kind: str) -> Work[None]:
    """Repair the network front to back, and commit it."""
    evaluator, history = parts.evaluator, parts.history
    small, plan = copy_of(history.network), history.plan
    refits = yield from repair_towards(evaluator, (small, plan), kind, history.trained())
    small = history.settled(small, plan)
    judged = yield from evaluator.judge(small)
    extra = {"kind": kind, "automatic": False, "refits": refits}
    history.commit_steps([(Repaired, extra, small, judged)], plan)


def tune(parts: Parts, steps: int, enough: Callable[[], bool]) -> Work[None]:
    """Train a copy of the network for `steps` batches or until `enough()`, and commit it."""
    if steps < 1:
        raise InvalidValue(f"steps must be a whole number of at least 1, not {steps!r}.")
    evaluator, history = parts.evaluator, parts.history
    network = copy_of(history.network)
    seed = evaluator.splits.seed_of(len(history.ledger))
    done, by, replayable = yield from _trained(evaluator, network, steps, seed, enough)
    network = history.settled(network, history.plan)
    judged = yield from evaluator.judge(network)
    state, after = history.state, judged[0]
    own = isinstance(evaluator.settings.train, Training)
    if own and guard.alarm(state.began, state.now.metrics, after, guard.NOTICEABLE):
        text = words.worse(state, done, next(iter(after.values())))
        history.note({"text": text, "kind": "tune"})
        return
    extra = {"steps": done, "by": by, "replayable": replayable}
    history.commit_steps([(Tuned, extra, network, judged)], history.plan)


def adopt(parts: Parts, network: nn.Module, by: str) -> Work[None]:
    """Commit `network`, trained by the user's trainer `by`."""
    history = parts.history
    network = history.settled(network, history.plan)
    judged = yield from parts.evaluator.judge(network)
    extra = {"steps": 0, "by": by, "replayable": False}
    history.commit_steps([(Tuned, extra, network, judged)], history.plan)


# ---------------------------------------------------------------- measuring


def measure(parts: Parts) -> Work[None]:
    """Measure the evidence for `foresee`, and compute in advance what it will need."""
    evaluator, history = parts.evaluator, parts.history
    yield from measuring(evaluator, history, wanted(parts.method))
    plan = history.plan
    evaluator.measurements.time_layers(history.network, evaluator.graph_of(plan), plan)
    with suppress(WrongState):
        parts.preview.foresee(parts.method, None, None)
        parts.preview.foresee(parts.method, None, history.state.now.cost.macs)


def latency(parts: Parts, network: nn.Module | None) -> Work[Latency]:
    """Time `network`, or the current network (None) in turn with the original, which are cached."""
    history, measurements = parts.history, parts.evaluator.measurements
    if network is not None:
        return (yield from measurements.time_runs({None: network}))[None]
    mark, first = (point.event.fingerprint for point in (history.state.now, history.state.base))
    networks: dict[str | None, nn.Module] = {first: parts.evaluator.base, mark: history.network}
    return (yield from measurements.time_runs(networks))[mark]


def step_time(parts: Parts) -> Work[float | None]:
    """Seconds of one tuning step, measured on a copy; None for the user's own trainer."""
    evaluator = parts.evaluator
    if not isinstance(evaluator.settings.train, Training):
        return None
    copy = copy_of(parts.history.network)
    times = [time.perf_counter()]
    for progress in _trained(evaluator, copy, 3, evaluator.splits.seed, lambda: False):
        times.append(time.perf_counter())
        yield progress
    return min(after - before for before, after in itertools.pairwise(times))


# ---------------------------------------------------------------- shared by several verbs


def pending(parts: Parts, verb: str) -> Move:
    """The pending move; raises `WrongState` where there is none to `verb`."""
    move = parts.history.state.pending
    if move is None:
        raise WrongState(f"There is nothing to {verb}: no move is pending. Propose first.")
    return move


def fresh(parts: Parts, verb: str) -> Move:
    """The pending move, measured on the network as it is; raises `StaleEvidence` otherwise."""
    move = pending(parts, verb)
    if parts.history.state.stale:
        raise StaleEvidence("The network has changed since this move was measured; propose again.")
    return move


def _trained(
    evaluator: Evaluator, network: nn.Module, steps: int, seed: int, enough: Callable[[], bool]
) -> Generator[Progress, None, tuple[int, str, bool]]:
    """Train `network` in place for `steps` batches or until `enough()`.

    Returns the steps done, the trainer's name, and whether they can be replayed: training that
    ended early cannot, because its learning rate had not reached zero.
    """
    settings, splits = evaluator.settings, evaluator.splits
    done, by, replayable = steps, "prunelab", True
    if isinstance(settings.train, Training):
        loss = settings.loss
        if settings.classifies and settings.train.distil:
            loss = distillation_loss(copy_of(evaluator.base).eval(), seed)
        work = training(
            network, lambda epoch: splits.shuffled(seed + epoch), steps, loss, settings.train,
            evaluator.frozen,
        )  # fmt: skip
        for progress in privately(work, seed):
            yield progress
            if enough() and progress.done < steps:
                done, replayable = progress.done, False
                break
    else:
        with private_random(seed):
            train_by(settings.train, network, splits.data, steps)
        by, replayable = name_of(settings.train), False
    check_finite(network, by)
    network.eval()
    return done, by, replayable


def _note_unusable(parts: Parts) -> None:
    """Note which training images are excluded, whenever more of them are known."""
    unusable, history = followed(parts.evaluator.splits.unusable), parts.history
    known = [e.text for e in history.ledger if isinstance(e, Noted) and e.kind == "data"]
    if unusable and str(unusable) not in known:
        history.note({"kind": "data", "text": str(unusable)})
