"""`redesign`: widen a network, prune it back to its cost, and read the widths off what is left.

AOFP's destructive re-design (Ding, Ding, Guo, Han, Yan; ICML 2019): what a search removes from a
network that is too wide everywhere says where width is worth its cost. The idea is the paper's;
the recipe, and what is compared with what, are ours.
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
from prunelab.ledger.words import said
from prunelab.loops.training import STEPS, Training
from prunelab.methods import Method, make_method
from prunelab.session.session import Session
from prunelab.values import FrozenMap, Progress, WidthPlan, table

Init = Callable[[nn.Module], Any]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Redesign:
    """The widths that were found, and the networks of these widths; prints as two tables.

    `model` is the fine-tuned network, `session` all that led to it, from the widened network on.
    `plan` is of the widened network. `widths` gives for each group its units in the original,
    after widening, and now. `comparison` holds the new and the original widths at equal cost and
    equal steps.
    """

    model: nn.Module
    plan: WidthPlan
    widths: FrozenMap
    comparison: Comparison
    session: Session

    def architecture(self, seed: int = 0, init: Init | None = None) -> nn.Module:
        """A new network of these widths with fresh weights; `init` is as in `redesign`."""
        return _fresh(rebuild(self.session.original(), self.plan), init, seed)

    def __repr__(self) -> str:
        rows = [("", "original", "widened", "now", "  of the original")]
        for name, (first, wide, now) in self.widths.items():
            rows.append((name, str(first), str(wide), str(now), f"  {now / first:.0%}"))
        return f"{table(rows, numbers=3)}\n\n{self.comparison!r}"


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
    split: str = "test",
    listen: Callable[[Any], None] | None = None,
    **session: Any,
) -> Redesign:
    """Widen `model`, train it, prune it back to `target_macs` by `method`, and fine-tune.

    Parameters
    ----------
    model, data
        As for `Session`; the network is never touched.
    widen
        By which factor `groups` are widened; see `widened`, which also says what `noise` is.
    target_macs
        What is left at the end: a share of the *original* network's MACs when at most 1, else a
        number. 1.0 gives other widths at the same cost.
    method
        Prunes the widened network: a method object or its name.
    steps, tune, scratch
        Batches of training: of the widened network, after the search, and from fresh weights
        (0: none).
    seeds
        How many, or which. Each fine-tunes the network found, trains the original on for as many
        steps in all (`steps` + `tune`), and trains both architectures from fresh weights for
        `scratch` steps. Widening and search are done once, from the first seed.
    groups
        What is widened (None: the groups that the method prunes; inner layers only for one with
        groups="internal").
    init
        Gives a network fresh weights in place; None calls `reset_parameters` of every module.
    train
        As for `Session`, for all networks alike; None is `Training(lr=0.05)`. Nobody is imitated.
    split, listen, session
        As in `compare`; `repair` and `path` (of the session kept in the result) are keywords too.

    The comparison's rows: "redesigned, tuned" beside "original, trained on", and "redesigned,
    fresh" beside "original, fresh". Raises `InvalidValue` for numbers that make no sense,
    `BadModel` where nothing can be widened or fresh weights are not to be had,
    `BudgetUnreachable` where the search cannot come down to the target.
    """
    numbers, chosen = seeds_of(seeds), make_method(method)
    _check(widen, target_macs, {"steps": steps, "tune": tune, "scratch": scratch}, session)
    training = Training(lr=0.05) if train is None else train
    if isinstance(training, Training):  # fresh weights have nobody to imitate
        training = replace(training, imitate=False)
    path = session.pop("path", None)
    stages = 2 + len(numbers) * (4 if scratch else 2)
    seats = _Seats(data, chosen, split, {**session, "train": training}, listen, stages)
    first = seats.session(model, numbers[0])
    base, graph = first.original(), first.graph
    if scratch:
        _fresh(base, init, 0)  # what cannot be had is known before anything is trained
    names = _widening(first) if groups is None else list(groups)
    wide = widened(base, graph, widen, groups=names, noise=noise, seed=numbers[0])
    work = seats.session(wide, numbers[0], path=path)
    seats.begin("training the widened network")
    if steps:
        work.tune(steps)
    seats.begin("pruning it back")
    macs = first.state.base.cost.macs
    goal = max(2, round(target_macs * macs)) if target_macs <= 1 else target_macs
    work.run(target_macs=goal, min_accuracy=None)  # its widths are wanted; it is tuned afterwards
    plan, found, shape = work.plan, copy_of(work.model), rebuild(wide, work.plan)
    outcomes = []
    for seed in numbers:
        at_work = work if seed == numbers[0] else None
        outcomes.append(seats.outcome("redesigned, tuned", found, tune, seed, at_work))
        outcomes.append(seats.outcome("original, trained on", base, steps + tune, seed))
        for name, network in (("redesigned, fresh", shape), ("original, fresh", base)):
            if scratch:
                outcomes.append(seats.outcome(name, _fresh(network, init, seed), scratch, seed))
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


class _Seats:
    """Where the networks of a redesign are trained and judged: sessions that differ in a network.

    `told` hears what they tell, every Outcome, and Progress over all `stages`.
    """

    def __init__(
        self, data: Any, method: Method, split: str, settings: Mapping[str, Any],
        told: Callable[[Any], None] | None, stages: int,
    ) -> None:  # fmt: skip
        self.data, self.method, self.split = data, method, split
        self.settings, self.told = settings, told or (lambda _: None)
        self.stages, self.begun = stages, 0

    def begin(self, what: str) -> None:
        """Tell that a stage begins."""
        self.told(Progress(self.begun, self.stages, what))
        self.begun += 1

    def session(self, network: nn.Module, seed: int, path: Any = None) -> Session:
        """A session on `network`."""
        made = Session(network, self.data, self.method, seed=seed, path=path, **self.settings)
        made.listen(self.told)
        return made

    def outcome(
        self, name: str, network: nn.Module, steps: int, seed: int, session: Session | None = None
    ) -> Outcome:
        """Train `network`, or the one in `session`, for `steps` batches, and judge it."""
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
        self.told(made)
        return made


def _widening(session: Session) -> list[str]:
    """The groups that the session's method prunes."""
    inner = getattr(session.method, "groups", "all") == "internal"
    names = [g.name for g in session.graph.groups if g.prunable and not (inner and g.residual)]
    if not names:
        raise BadModel(
            f"{session.method.name} prunes no group of this network, so there is nothing to widen. "
            "Name the groups: groups=[...]."
        )
    return names


def _fresh(network: nn.Module, init: Init | None, seed: int) -> nn.Module:
    """A copy of `network` with new weights drawn from `seed`."""
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
