"""`redesign`: widen a network, prune it back to its original cost, and compare the new widths.

AOFP's destructive re-design (Ding, Ding, Guo, Han, Yan; ICML 2019): what a search removes from a
network that is too wide everywhere shows where width is worth its cost. The idea is the paper's;
the recipe and the comparison are prunelab's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from prunelab.data.private_random import private_random
from prunelab.errors import BadModel, InvalidValue
from prunelab.experiments.compare import seeds_of
from prunelab.experiments.results import Comparison, Outcome
from prunelab.graph.surgery.editing import rebuild
from prunelab.graph.surgery.widening import NOISE, widened
from prunelab.graph.trace import copy_of
from prunelab.ledger.events import Proposed
from prunelab.ledger.words import said
from prunelab.loops.training import STEPS, Training
from prunelab.methods import Method, make_method
from prunelab.methods.base import spares
from prunelab.session.session import Session
from prunelab.session.settings import Split
from prunelab.values import FrozenMap, Progress, WidthPlan, table
from prunelab.values.given import as_annotated

Init = Callable[[nn.Module], Any]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Redesign:
    """The new widths, and the networks of these widths; prints as two tables.

    `model` is the fine-tuned network, `session` its history, from the widened network on. `plan`
    refers to the widened network. `widths` gives for each group its units in the original network,
    after widening, and now. `comparison` compares the new with the original widths at equal cost
    and an equal number of steps.
    """

    model: nn.Module
    plan: WidthPlan
    widths: FrozenMap[tuple[int, int, int]]
    comparison: Comparison
    session: Session

    def architecture(self, seed: int = 0, init: Init | None = None) -> nn.Module:
        """A new network of these widths with fresh weights; `init` as in `redesign`."""
        return _fresh(rebuild(self.session.original(), self.plan), init, seed)

    def __repr__(self) -> str:
        rows = [("", "original", "widened", "now", "  of the original")]
        for name, (first, wide, now) in self.widths.items():
            rows.append((name, str(first), str(wide), str(now), f"  {now / first:.0%}"))
        return f"{table(rows, numbers=3)}\n\n{self.comparison!r}"


@as_annotated
def redesign(
    model: nn.Module,
    data: Any,
    widen: float = 1.5,
    target_macs: float = 1.0,
    method: Any = "aofp",
    *,
    steps: int = STEPS,
    tune: int = STEPS,
    scratch: int = 0,
    seeds: int | Iterable[int] = 3,
    groups: Iterable[str] | None = None,
    noise: float = NOISE,
    init: Init | None = None,
    train: Any = None,
    split: Split = "test",
    listen: Callable[[Any], None] | None = None,
    **session: Any,
) -> Redesign:
    """Widen `model`, train it, prune it back to `target_macs` by `method`, and fine-tune.

    Parameters
    ----------
    model, data
        As for `Session`; the network is not changed.
    widen
        The factor by which `groups` are widened; see `widened`, also for `noise`.
    target_macs
        The final cost: a share of the *original* network's MACs when at most 1, else a number of
        MACs. 1.0 gives new widths at the same cost.
    method
        The method that prunes the widened network: an object or a name.
    steps, tune, scratch
        Batches of training: of the widened network, after the search, and from fresh weights
        (0: none).
    seeds
        How many, or which. Each seed fine-tunes the network found, trains the original further
        for as many batches in all (`steps`, those of the search where the method trains while it
        searches, and `tune`), and trains both architectures from fresh
        weights for `scratch` steps. Widening and search are done once, with the first seed.
    groups
        The groups to widen (None: those that the method prunes; for groups="internal" these are
        the inner layers).
    init
        Sets fresh weights in place; None calls `reset_parameters` of every module.
    train
        As for `Session`, the same for all networks; None is `Training(lr=0.05)`. No distillation
        is used.
    split, listen, session
        As in `compare`; `repair` and `path` (of the session kept in the result) are keywords too.

    The rows of the comparison: "redesigned, tuned" with "original, trained on", and "redesigned,
    fresh" with "original, fresh". Raises `InvalidValue` for invalid numbers, `BadModel` where
    nothing can be widened or fresh weights cannot be drawn, `BudgetUnreachable` where the search
    cannot reach the target.
    """
    numbers, chosen = seeds_of(seeds), make_method(method)
    _check(widen, target_macs, {"steps": steps, "tune": tune, "scratch": scratch}, session)
    training = Training(lr=0.05) if train is None else train
    if isinstance(training, Training):  # fresh weights have no teacher
        training = replace(training, distil=False)
    path = session.pop("path", None)
    stages = 2 + len(numbers) * (4 if scratch else 2)
    trainer = _Trainer(data, chosen, split, {**session, "train": training}, listen, stages)
    first = trainer.session(model, numbers[0])
    base, graph = first.original(), first.graph
    if scratch:
        _fresh(base, init, 0)  # fail before any training if fresh weights cannot be drawn
    names = _groups_to_widen(first) if groups is None else list(groups)
    wide = widened(base, graph, widen, groups=names, noise=noise, seed=numbers[0])
    work = trainer.session(wide, numbers[0], path=path)
    trainer.begin("training the widened network")
    if steps:
        work.tune(steps)
    trainer.begin("pruning it back")
    macs = first.state.base.cost.macs
    goal = max(2, round(target_macs * macs)) if target_macs <= 1 else target_macs
    work.run(target_macs=goal, min_accuracy=None)  # only its widths matter; it is tuned afterwards
    plan, found, shape = work.plan, copy_of(work.model), rebuild(wide, work.plan)
    searched = sum(
        event.move.trained for event in work.ledger if isinstance(event, Proposed) and event.move
    )
    outcomes = []
    for seed in numbers:
        at_work = work if seed == numbers[0] else None
        outcomes.append(trainer.outcome("redesigned, tuned", found, tune, seed, at_work))
        outcomes.append(
            trainer.outcome("original, trained on", base, steps + searched + tune, seed)
        )
        for name, network in (("redesigned, fresh", shape), ("original, fresh", base)):
            if scratch:
                outcomes.append(trainer.outcome(name, _fresh(network, init, seed), scratch, seed))
    start = Outcome(
        "original",
        1.0,
        None,
        numbers[0],
        cost=first.state.base.cost,
        metrics=FrozenMap(first.evaluate(split)),
        widths=first.state.began.widths,
    )
    return Redesign(
        model=work.model,
        plan=plan,
        widths=FrozenMap({
            group.name: (group.width, work.graph[group.name].width, plan.widths[group.name])
            for group in graph.groups
            if group.prunable
        }),
        comparison=Comparison(
            first.state.began.network, split, next(iter(start.metrics)), start, tuple(outcomes),
            control="original, trained on",
        ),
        session=work,
    )  # fmt: skip


class _Trainer:
    """Trains and evaluates the networks of a re-design, each in a session of its own.

    `listen` is called with the messages of the sessions, with every Outcome, and with Progress
    over all `stages`.
    """

    def __init__(
        self, data: Any, method: Method, split: Split, settings: Mapping[str, Any],
        listen: Callable[[Any], None] | None, stages: int,
    ) -> None:  # fmt: skip
        self.data, self.method, self.split = data, method, split
        self.settings, self.listen = settings, listen or (lambda _: None)
        self.stages, self.begun = stages, 0

    def begin(self, what: str) -> None:
        """Report that a stage begins."""
        self.listen(Progress(self.begun, self.stages, what))
        self.begun += 1

    def session(self, network: nn.Module, seed: int, path: Any = None) -> Session:
        """A session on `network`."""
        made = Session(network, self.data, self.method, seed=seed, path=path, **self.settings)
        made.listen(self.listen)
        return made

    def outcome(
        self, name: str, network: nn.Module, steps: int, seed: int, session: Session | None = None
    ) -> Outcome:
        """Train `network`, or that of `session`, for `steps` batches, and evaluate it."""
        self.begin(f"{name}, seed {seed}")
        session = session or self.session(network, seed)
        started = time.perf_counter()
        refused = ""
        if steps:
            session.tune(steps)
            refused = said(session.ledger[-1])
        made = Outcome(
            name, 1.0, None, seed, cost=session.state.now.cost,
            metrics=FrozenMap(session.evaluate(self.split)),
            seconds=time.perf_counter() - started, widths=FrozenMap(session.plan.widths),
            note=refused and f"{name}, seed {seed}: {refused}",
        )  # fmt: skip
        self.listen(made)
        return made


def _groups_to_widen(session: Session) -> list[str]:
    """The groups that the session's method prunes."""
    prunable = (group for group in session.graph.groups if group.prunable)
    names = [group.name for group in prunable if not spares(session.method, group)]
    if not names:
        raise BadModel(
            f"{session.method.name} prunes no group of this network, so there is nothing to widen. "
            "Name the groups: groups=[...]."
        )
    return names


def _fresh(network: nn.Module, init: Init | None, seed: int) -> nn.Module:
    """A copy of `network` with new weights, drawn with `seed`."""
    made = copy_of(network)
    with private_random(seed):
        if init is not None:
            init(made)
            return made
        for name, module in made.named_modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if hasattr(module, "parametrizations") or (
                own and not callable(getattr(module, "reset_parameters", None))
            ):
                raise BadModel(
                    f"{name or type(module).__name__} has no reset_parameters, so fresh weights "
                    "cannot be drawn for it. Give init=, a function that does it for the whole "
                    "network, or scratch=0."
                )
            if own:
                module.reset_parameters()
    return made


def _check(
    widen: float, target: float, batches: Mapping[str, int], session: Mapping[str, Any]
) -> None:
    if isinstance(widen, bool) or not isinstance(widen, (int, float)) or not widen > 1:
        raise InvalidValue(f"widen is a factor above 1, such as 1.5; not {widen!r}.")
    if isinstance(target, bool) or not isinstance(target, (int, float)) or not target > 0:
        raise InvalidValue(
            f"target_macs is a share of the original MACs, or a number of them; not {target!r}."
        )
    for name, count in batches.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise InvalidValue(f"{name} counts batches of training, 0 for none; not {count!r}.")
    if odd := {"seed", "graph"} & set(session):
        raise InvalidValue(
            f"redesign traces its networks itself and takes seeds=; leave {', '.join(odd)} out."
        )
