"""Grading: a hand-in against a rubric, with the lecturer's network and images.

No code of the student is executed and none of their numbers is trusted: the network is built from
the plan, its weights are loaded as safetensors, and its cost and accuracy are measured. What only
the ledger records (predictions, verbs, answers, reasons) counts if nothing that can be recomputed
contradicts the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load as load_tensors
from torch import nn

from prunelab.classroom import handin
from prunelab.classroom.audit import audit, plan_of
from prunelab.classroom.marking import Mark, mark, short
from prunelab.classroom.rubric import Rubric
from prunelab.cost.counting import cost
from prunelab.data import named as images
from prunelab.data import zoo
from prunelab.data.import_spec import call
from prunelab.errors import BadData, BadModel, HandInError, PruneLabError
from prunelab.evidence.fingerprint import fingerprint
from prunelab.graph.surgery.editing import cut
from prunelab.graph.surgery.factorised_graph import Forms
from prunelab.graph.surgery.held_tensors import entries
from prunelab.graph.surgery.network_state import NetworkState, captured, restore
from prunelab.graph.trace import copy_of, trace
from prunelab.ledger.events import Event
from prunelab.ledger.state import State
from prunelab.loops.training import accuracy
from prunelab.session.repairing import check_finite
from prunelab.values import FrozenMap, WidthPlan, factors_in
from prunelab.values.given import as_annotated

TOLERANCE = 0.005  # of accuracy: rounding on another machine may change a few of 1,000 predictions
SPARE = 1 << 20  # bytes for names and shapes, in addition to the weights


@dataclass(frozen=True, slots=True)
class Grade:
    """The grade of a hand-in; prints as a table.

    `measured` has accuracy, macs, params, macs_share and params_share (of the original), all
    recomputed; it is empty when the network could not be built. `claimed` is the validation
    accuracy that the ledger states. `problems` says what could not be read, and what in the ledger
    is wrong.
    """

    name: str
    marks: tuple[Mark, ...]
    measured: FrozenMap[Any]
    claimed: float | None
    problems: tuple[str, ...]

    @property
    def points(self) -> float:
        """The sum of the points earned."""
        return math.fsum(mark.points for mark in self.marks)

    @property
    def of(self) -> float:
        """The sum of the points possible."""
        return math.fsum(mark.of for mark in self.marks)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.points:g} of {self.of:g} points"]
        lines += [f"  {mark.points:g}/{mark.of:g}  {mark.name}: {mark.why}" for mark in self.marks]
        return "\n".join([*lines, *(f"  !!   {problem}" for problem in self.problems)])


@dataclass(slots=True)
class Findings:
    """The findings about a hand-in; `state` is set only if nothing contradicts the ledger."""

    measured: FrozenMap[Any] = field(default_factory=FrozenMap)
    claimed: float | None = None
    events: Sequence[Event] = ()
    state: State | None = None
    problems: list[str] = field(default_factory=list)


@as_annotated
def grade(path: str | Path, rubric: Rubric | str | Path) -> Grade:
    """The grade of the hand-in at `path`, which `submit` wrote; also for use in an nbgrader cell.

    `rubric` is a `Rubric` or its TOML file. Errors in the hand-in are reported in the grade and
    never raised. Raises `PruneLabError` (`InvalidValue`, `UnknownName`, `BadData`, `BadModel`) for
    errors in the rubric, its network or its images. For many hand-ins, `Grader` prepares these
    once.
    """
    made = rubric if isinstance(rubric, Rubric) else Rubric.read(rubric)
    return Grader(made).grade(path)


class Grader:
    """Grades any number of hand-ins with the lecturer's network, traced once, and images.

    `accuracy` is that of the original network on the images used for grading. Raises as `grade`.
    """

    def __init__(self, rubric: Rubric) -> None:
        self.rubric = rubric
        self._data = _data(rubric)
        self._base = _network(rubric, self._data)
        batch = next(iter(getattr(self._data, rubric.split)))
        graph = trace(self._base, batch[0][:1])
        self._forms = Forms(self._base, graph, lambda network: network(batch[0][:1]))
        self._whole = cost(graph, WidthPlan.full(graph))
        state = captured(self._base).packed().values()
        self._most = 2 * sum(tensor.nbytes for tensor in state) + SPARE  # factors may hold more
        self.accuracy = accuracy(self._base, getattr(self._data, rubric.split))

    def grade(self, path: str | Path) -> Grade:
        """The grade of one hand-in."""
        found = Findings()
        try:
            with handin.opened(path) as archive:
                self._look(archive, found)
        except (PruneLabError, UnicodeDecodeError, safetensors.SafetensorError) as error:
            found.problems.append(_first_line(error))
        except (
            Exception
        ) as error:  # a forged file may raise anything, and must not stop the other hand-ins
            found.problems.append(f"it is not what a session writes ({_first_line(error)})")
        marks = tuple(
            mark(check, found.measured, found.state, found.events) for check in self.rubric.checks
        )
        problems = tuple(found.problems)
        return Grade(Path(path).name, marks, found.measured, found.claimed, problems)

    def _look(self, archive: handin.Archive, found: Findings) -> None:
        """Fill in `found`, the most reliable facts first, until an error occurs."""
        text = archive.plan()
        plan = WidthPlan.from_json(text, self._forms.graph(factors_in(text)))
        network = self._rebuilt(archive.read(handin.WEIGHTS, self._most), plan)
        found.measured = self._measured(network, plan)
        found.events = archive.events()
        state = audit(found.events, self._forms.graph)
        found.claimed = _accuracy(state.now.metrics)
        found.problems += self._contradictions(archive, state, network, plan)
        found.state = None if found.problems else state

    def _rebuilt(self, weights: bytes, plan: WidthPlan) -> nn.Module:
        """The lecturer's network cut by `plan`, with these weights: names and shapes must fit."""
        state = NetworkState.unpacked(load_tensors(weights))
        network = cut(*self._forms.of(plan.graph.factors), plan)
        own = {entry.name: entry.tensor for entry in entries(network)}
        for name, found in state.tensors.items():
            wanted = found if name in state.about.get("layout", {}) else own.get(name, found)
            if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
                raise HandInError(
                    f"the weights do not fit the plan: {name} is {tuple(found.shape)} "
                    f"{found.dtype}, it should be {tuple(wanted.shape)} {wanted.dtype}"
                )
        try:
            restore(network, state)
        except BadModel as error:
            raise HandInError(f"the weights are another network's: {error}") from None
        check_finite(network, "the hand-in")
        return network.eval()

    def _measured(self, network: nn.Module, plan: WidthPlan) -> FrozenMap[Any]:
        found = cost(self._forms.graph(plan.graph.factors), plan)
        return FrozenMap(
            {
                "accuracy": accuracy(network, getattr(self._data, self.rubric.split)),
                "macs": found.macs,
                "params": found.params,
                "macs_share": found.macs / self._whole.macs,
                "params_share": found.params / self._whole.params,
            }
        )

    def _contradictions(
        self, archive: handin.Archive, state: State, network: nn.Module, plan: WidthPlan
    ) -> list[str]:
        """What the ledger states wrongly about the network and its weights."""
        found = []
        if self.rubric.same_start and state.began.fingerprint != fingerprint(self._base):
            found.append("the session did not begin with the network of the rubric")
        if plan_of(state, self._forms.graph) != plan:
            found.append("the plan is not the one that the ledger ends with")
        found += self._unlike(state, state.head, network)
        for seq in handin.deciding_steps(state):
            then = plan_of(replace(state, head=seq), self._forms.graph)
            weights = archive.read(handin.step(seq), self._most)
            found += self._unlike(state, seq, self._rebuilt(weights, then))
        return found

    def _unlike(self, state: State, seq: int, network: nn.Module) -> list[str]:
        """What the event at point `seq` states wrongly about `network`."""
        event = state.point(seq).event
        if event.fingerprint != fingerprint(network):
            return [f"event {seq}: the weights handed in are not those of the ledger"]
        said = _accuracy(event.metrics)
        if self.rubric.validation is None or said is None:
            return []
        found = accuracy(network, getattr(self._data, self.rubric.validation))
        if abs(said - found) <= TOLERANCE:
            return []
        return [
            f"event {seq}: the ledger states a validation accuracy of {said:.1%}; recomputed, it "
            f"is {found:.1%}"
        ]


def _accuracy(metrics: Mapping[str, Any]) -> float | None:
    return float(metrics["accuracy"]) if "accuracy" in metrics else None


def _first_line(error: Exception) -> str:
    return short((str(error).strip().splitlines() or [type(error).__name__])[0])


def _data(rubric: Rubric) -> Any:
    if ":" not in rubric.data:
        return images.load(rubric.data)
    data = call(rubric.data, "[data] factory =", rubric.folder)
    for split in (rubric.split, rubric.validation):
        if split is not None and not hasattr(data, split):
            raise BadData(f"{rubric.data} gave {type(data).__name__}, which has no .{split}.")
    return data


def _network(rubric: Rubric, data: Any) -> nn.Module:
    if ":" in rubric.network:
        model = call(rubric.network, "[network] factory =", rubric.folder)
        if not isinstance(model, nn.Module):
            raise BadModel(
                f"{rubric.network} gave {type(model).__name__}; it must give an nn.Module."
            )
        return copy_of(model).eval()
    shape, classes = data.input_shape or (1,), data.classes or range(10)
    return zoo.load(rubric.network, rubric.same_start, shape[0], len(classes))
