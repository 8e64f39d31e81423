"""`run`: propose and approve until a target is met, above a floor."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

from prunelab.cost.counting import cost
from prunelab.errors import BudgetUnreachable, InvalidValue
from prunelab.ledger import guard, words
from prunelab.loops.training import Metric
from prunelab.methods.base import factorises, relaxed, spares
from prunelab.session.context import macs_of
from prunelab.session.parts import Parts
from prunelab.session.runner import Work
from prunelab.session.verbs import approve, propose
from prunelab.values import WidthPlan


def run(
    parts: Parts,
    target: float,
    least: float | str | None,
    moves: int | None,
    repair: bool,
    latency: float | None = None,
) -> Work[None]:
    """Propose and approve until the target is met, or a move would break the floor.

    Parameters
    ----------
    target
        A share of the original's MACs, or a number of MACs.
    least
        The worst value of the first metric that may be committed; "auto" or None, see
        `Session.run`.
    moves
        The largest number of moves; None: no limit.
    repair
        Whether each move is repaired with the session's `repair`.
    latency
        A share of the original's estimated seconds, in place of `target`.
    """
    history = parts.history
    if latency is not None:
        yield from _run_for_latency(parts, latency, least, moves, repair)
        return
    goal, floor = macs_of(history.state, target), _floor(parts, least)
    if moves is not None and (isinstance(moves, bool) or not isinstance(moves, int)):
        raise InvalidValue(f"moves is a whole number or None, not {moves!r}.")
    if moves is not None and moves < 0:
        raise InvalidValue(f"moves is the largest number of moves, 0 or more, not {moves}.")
    name, metric = parts.evaluator.settings.guard

    def allows(metrics: Mapping[str, float]) -> bool:
        if floor is None or _keeps(metric, metrics[name], floor):
            return True
        text = words.stop_reason(history.state, metrics[name], floor, metric.higher_is_better)
        history.note({"text": text, "kind": "run"})
        return False

    if moves is None and least in ("auto", None) and history.state.now.cost.macs > goal:
        _check_within_reach(parts, goal)  # otherwise it may mean to go as far as these allow
    last = None if moves is None else history.state.moves + moves
    while history.state.now.cost.macs > goal and history.state.moves != last:
        if history.state.pending is None or history.state.stale:
            move = yield from propose(parts, target)
            if move is None:
                _relax(parts, goal)
                continue
        if not (yield from approve(parts, repair=repair, run=target, allows=allows)):
            return


def _run_for_latency(
    parts: Parts, share: float, least: float | str | None, moves: int | None, repair: bool
) -> Work[None]:
    """Run towards fewer and fewer MACs until the estimated seconds are within `share`.

    Each leg asks for the MACs that would do if seconds fell with them from here on.
    """
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share < 1:
        raise InvalidValue(
            f"target_latency is a share of the original's seconds between 0 and 1, not {share!r}."
        )
    history, evaluator = parts.history, parts.evaluator
    last = None if moves is None else history.state.moves + moves

    def spent() -> float:
        table = evaluator.latency_table(history.plan)
        return table(history.plan) / table(WidthPlan.full(table.graph))

    while (now := spent()) > share:
        before, base = history.state.now, history.state.base.cost.macs
        macs = before.cost.macs * min(0.99, float(share) / now)
        rest = None if last is None else last - history.state.moves
        yield from run(parts, macs / base, least, rest, repair)
        if history.state.now == before or history.state.moves == last:
            return


def _check_within_reach(parts: Parts, goal: int) -> None:
    """Raise `BudgetUnreachable` where all that the method may prune, at its narrowest, is over."""
    if factorises(parts.method):
        return
    prunable = [group for group in parts.history.graph.groups if group.prunable]
    groups = [group for group in prunable if not spares(parts.method, group)]
    plan = parts.history.plan
    narrowest = plan.drop({group.name: group.units[group.narrowest :] for group in groups})
    least, base = (
        cost(parts.evaluator.graph_of(narrowest), narrowest).macs,
        parts.history.state.base.cost.macs,
    )
    if least > goal:
        more = ""
        if len(groups) < len(prunable):
            spared = any(group.fully_connected for group in set(prunable) - set(groups))
            kinds = "residual streams" + (" and fully connected layers" if spared else "")
            more = f"Its groups='internal' leaves {kinds} whole; 'all' prunes them too. "
        raise BudgetUnreachable(
            f"{parts.method.name} cannot reach {goal / base:.1%} of the MACs: with all groups that "
            f"it may prune at their smallest width, {least / base:.1%} are left. {more}"
            "Give a larger target, or freeze less.",
            plan,
        )


def _relax(parts: Parts, goal: int) -> None:
    """Relax the method; raises `BudgetUnreachable` where it cannot be relaxed."""
    method, state = relaxed(parts.method), parts.history.state
    if method is None:
        base, now = state.base.cost.macs, state.now.cost.macs
        why = f" ({state.proposed.why})" if state.proposed and state.proposed.why else ""
        advice = ["Allow more damage (max_theta)."] * hasattr(parts.method, "max_theta")
        advice += ["groups='all' prunes residual streams too."] * any(
            spares(parts.method, group) for group in parts.history.graph.groups
        )
        raise BudgetUnreachable(
            f"{parts.method.name} has no further moves at {now / base:.0%} of the MACs{why}; the "
            f"target is {goal / base:.0%}. {' '.join([*advice, 'Give a larger target.'])}",
            parts.history.plan,
        )
    parts.method = method


def _floor(parts: Parts, least: float | str | None) -> float | None:
    """The worst value that a run may commit: `least`, or the meaning of "auto"."""
    name, metric = parts.evaluator.settings.guard
    if isinstance(least, str) and least == "auto":
        answers = parts.history.answers
        chance = None if answers is None else guard.commonest(answers.labels)
        base = parts.history.state.base.metrics[name]
        return guard.floor(base, metric.higher_is_better, chance)
    if least is None:
        return None
    if isinstance(least, Real) and not isinstance(least, bool) and least == least:
        return float(least)
    raise InvalidValue(
        f"min_accuracy is a value of {name}, not {least!r}; or 'auto', or None for no floor."
    )


def _keeps(metric: Metric, value: float, floor: float) -> bool:
    """Whether `value` respects the floor; NaN does not."""
    return value >= floor if metric.higher_is_better else value <= floor
