"""`compare`: several methods, targets and seeds, each combination in a session of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from prunelab.errors import BadModel, BudgetUnreachable, InvalidValue, NotFinite
from prunelab.experiments.results import Comparison, Outcome
from prunelab.ledger.words import said
from prunelab.loops.batch import finish
from prunelab.methods import Method, Random, make_method
from prunelab.session.session import Session
from prunelab.session.settings import Split
from prunelab.values import FrozenMap, Progress
from prunelab.values.given import as_annotated

CONTROL = Random()
Made = BudgetUnreachable, BadModel, InvalidValue, NotFinite  # reported in the table, not raised


@as_annotated
def compare(
    model: nn.Module,
    data: Any,
    methods: Iterable[Any] | Mapping[str, Any],
    targets: float | Iterable[float] = (0.5,),
    *,
    seeds: int | Iterable[int] = 3,
    repair: str | None = "lstsq",
    tune: int | None = 0,
    split: Split = "test",
    listen: Callable[[Any], None] | None = None,
    **session: Any,
) -> Comparison:
    """Prune `model` by each of `methods` to each of `targets`, and evaluate the results.

    Parameters
    ----------
    model, data
        As for `Session`; the network is not changed.
    methods
        Method objects or names, or a mapping from your own labels to them. The table always
        contains random choice as the control, with the same repair, and with least squares as
        well where the others have another repair: the merit of a method is its gain over random.
    targets
        Shares of the original MACs when at most 1, else numbers of MACs; every run starts from
        the original network.
    seeds
        How many (0, 1, ...), or which. A seed determines the random choices of a method, the
        order of a loader that shuffles, and tuning; a deterministic method gives the same result
        for every seed.
    repair, tune
        The repair after every move and the tuning after the last, as in `prune`, the same for
        all. Methods that train while they search (sampled AOFP, Group Fisher) get more steps.
    split
        The images for the evaluation: "test", "val" or "train".
    listen
        Called with Progress over the outcomes, with every Outcome as it is finished, and with the
        messages of each session.
    session
        Other keywords of `Session`.

    No floor ends a run early (`min_accuracy=None`), so that failures are in the table, too. A
    method that ends before its target, or does not work on this network, has a row with a note.
    Raises what `Session` raises for an unsuitable network or data, and `InvalidValue` for invalid
    methods, targets or seeds.
    """
    work = comparing(
        model, data, methods, targets, seeds=seeds, repair=repair, tune=tune, split=split,
        listen=listen, **session,
    )  # fmt: skip
    return finish(work if listen is None else _heard(work, listen))


def comparing(
    model: nn.Module,
    data: Any,
    methods: Iterable[Any] | Mapping[str, Any],
    targets: float | Iterable[float] = (0.5,),
    *,
    seeds: int | Iterable[int] = 3,
    repair: str | None = "lstsq",
    tune: int | None = 0,
    split: Split = "test",
    listen: Callable[[Any], None] | None = None,
    **session: Any,
) -> Generator[Any, None, Comparison]:
    """`compare` as a generator: yields Progress and every Outcome; returns the Comparison."""
    named, goals, numbers = _methods(methods), _targets(targets), seeds_of(seeds)
    if odd := sorted({"path", "seed"} & set(session)):
        raise InvalidValue(f"compare creates one session per seed: give seeds=, not {odd[0]}=.")
    if tune is not None and (isinstance(tune, bool) or not isinstance(tune, int) or tune < 0):
        raise InvalidValue(f"tune counts batches: 0 for none, None for the default; not {tune!r}.")
    first = Session(model, data, CONTROL, repair=repair, **session)
    session = {**session, "graph": first.graph}
    state = first.state
    judged: FrozenMap[float] = FrozenMap(first.evaluate(split))
    base = Outcome(
        "original", 1.0, None, 0, cost=state.base.cost, metrics=judged, widths=state.began.widths
    )
    jobs = [(label, method, repair) for label, method in named.items()]
    if repair != "lstsq":
        jobs.append((CONTROL.name, CONTROL, "lstsq"))
    plan = [(*job, goal, seed) for goal in goals for job in jobs for seed in numbers]
    outcomes: list[Outcome] = []
    for count, (label, method, how, goal, seed) in enumerate(plan):
        yield Progress(count, len(plan), f"{label} to {_goal(goal)}, seed {seed}")
        work = Session(model, data, method, **{**session, "repair": how, "seed": seed})
        if listen is not None:
            work.listen(listen)
        outcomes.append(_outcome(label, work, goal, tune, split, seed, how))
        yield outcomes[-1]
    yield Progress(len(plan), len(plan), "compared")
    network, metric = type(model).__name__, next(iter(base.metrics))
    return Comparison(network, split, metric, base, tuple(outcomes), CONTROL.name)


def _outcome(
    label: str, work: Session, goal: float, tune: int | None, split: Split, seed: int,
    repair: str | None,
) -> Outcome:  # fmt: skip
    """Run a session to its goal, tune it, and evaluate it."""
    started, note = time.perf_counter(), ""
    try:
        work.run(
            target_macs=goal, min_accuracy=None
        )  # to the same target as the others, at any accuracy
    except Made as error:
        reached = work.state.now.cost.macs / work.state.base.cost.macs
        note = str(error) if isinstance(error, BudgetUnreachable) else f"{label} failed: {error}"
        if not isinstance(error, BudgetUnreachable):
            return Outcome(label, goal, repair, seed, cost=work.state.now.cost, note=note)
        note = f"{label} ended at {reached:.0%} of the MACs: {note}"
    if tune != 0:
        work.tune(**({} if tune is None else {"steps": tune}))
        if refused := said(work.ledger[-1]):
            note = f"{note} {label}: {refused}".strip()
    seconds = time.perf_counter() - started
    return Outcome(
        label, goal, repair, seed, cost=work.state.now.cost, seconds=seconds, note=note,
        metrics=FrozenMap(work.evaluate(split)), widths=FrozenMap(work.plan.widths),
    )  # fmt: skip


def _heard(work: Generator[Any, None, Comparison], listen: Callable[[Any], None]) -> Any:
    """Call `listen` with every item that `work` yields."""
    while True:
        try:
            item = next(work)
        except StopIteration as end:
            return end.value
        listen(item)
        yield item


def _methods(given: Any) -> dict[str, Method]:
    """Methods by label, the control last."""
    if isinstance(given, Mapping):
        named = {str(label): make_method(method) for label, method in given.items()}
    elif isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidValue(
            f"methods is a list of methods or names, such as ['aofp']; not {given!r}."
        )
    else:
        made = [make_method(method) for method in given]
        named = {_label(method): method for method in made}
        if len(named) < len(made):
            raise InvalidValue(
                f"methods contains a duplicate: {', '.join(map(_label, made))}. Give each its own "
                "label: methods={'label': method, ...}."
            )
    control = named.pop(CONTROL.name, CONTROL)
    if control != CONTROL:
        raise InvalidValue(
            f"The label {CONTROL.name!r} is the control's, which is always in the table; "
            "choose another."
        )
    return {**named, CONTROL.name: CONTROL}


def _label(method: Method) -> str:
    """The name of a method, and its parameters that differ from their defaults."""
    if not is_dataclass(method):
        return method.name
    own = [
        f"{f.name}={getattr(method, f.name)!r}"
        for f in fields(method)
        if getattr(method, f.name) != f.default
    ]
    return f"{method.name}({', '.join(own)})" if own else method.name


def _targets(given: Any) -> list[float]:
    goals = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    for goal in goals:
        if isinstance(goal, bool) or not isinstance(goal, (int, float)) or not goal > 0:
            raise InvalidValue(
                "targets are shares of the original MACs between 0 and 1, or numbers of MACs; "
                f"not {goal!r}."
            )
        if 1 < goal <= 100:
            raise InvalidValue(f"targets: {goal:g} is no share; {goal:g}% is {goal / 100:g}.")
    if not goals or len(set(goals)) < len(goals):
        raise InvalidValue(f"targets needs at least one target, each once; not {given!r}.")
    return goals


def seeds_of(given: int | Iterable[int]) -> Sequence[int]:
    """The seeds 0, 1, ... of a number of them, or those given; raises `InvalidValue`."""
    if isinstance(given, int):
        seeds = [] if isinstance(given, bool) else list(range(given))
    else:
        seeds = list(given) if isinstance(given, Iterable) else []
    if not seeds or len(set(seeds)) < len(seeds) or any(not isinstance(s, int) for s in seeds):
        raise InvalidValue(
            f"seeds is a number of seeds, or different whole numbers; not {given!r}."
        )
    return seeds


def _goal(target: float) -> str:
    return f"{target:.0%} of the MACs" if target <= 1 else f"{target:,.0f} MACs"
