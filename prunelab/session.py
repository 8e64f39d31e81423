"""The session: the verbs, and the only object with side effects.

Every verb computes first and commits last: an error, a Stop or a kernel interrupt on the way
leaves model, ledger and state as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from prunelab.bench import Bench, check_finite
from prunelab.channels import ChannelGraph
from prunelab.cost import cost
from prunelab.errors import (
    BadModel,
    BudgetUnreachable,
    InvalidValue,
    SessionFileError,
    StaleEvidence,
    WrongState,
)
from prunelab.evidence import Evidence
from prunelab.evidence.batch import finish
from prunelab.evidence.gradient import Masks
from prunelab.fingerprint import fingerprint
from prunelab.ledger import (
    Adjusted,
    Approved,
    Began,
    Event,
    Ledger,
    MemoryStore,
    Noted,
    Point,
    Proposed,
    Rejected,
    Repaired,
    State,
    Store,
    Tuned,
    Undone,
)
from prunelab.methods import Context, Method, make_method
from prunelab.methods.contract import parameters
from prunelab.store import FileStore
from prunelab.surgery import cut
from prunelab.tracing import copy_of, undisturbed
from prunelab.training import Metric, Training
from prunelab.values import FrozenMap, Move, Progress, WidthPlan, units_of
from prunelab.verbs import Verbs, Work, uninterrupted


class Session(Verbs):
    """A network being pruned move by move: propose, look, adjust, approve or reject, undo.

    `model` is copied and never touched. `data` has `.train` (evidence and tuning are made on
    it), `.val` (decisions) and `.test` (reports), each a re-iterable of batches. `method` is a
    method object or its lower-case name. `forward(model, batch)` runs the network on a batch,
    `loss(model, batch)` gives a scalar, `metrics` maps names to functions (model, loader) ->
    float, with "lower" in a pair where lower is better; the first guards `run`. `train` is a
    `Training`, or a function (model, data, steps) of your own. `repair` follows every approve:
    "lstsq", "bn" or None. `path` keeps the session in a file that `Session.open` resumes.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        method: Any = "aofp",
        *,
        graph: ChannelGraph | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        metrics: Mapping[str, Any] | None = None,
        train: Any = None,
        example_inputs: Any = None,
        repair: str | None = "lstsq",
        device: Any = None,
        seed: int = 0,
        path: str | Path | None = None,
    ) -> None:
        bench = Bench(
            model, data, graph=graph, forward=forward, loss=loss, metrics=metrics, train=train,
            example_inputs=example_inputs, repair=repair, device=device, seed=seed,
        )  # fmt: skip
        made = make_method(method)
        store: Store = MemoryStore() if path is None else FileStore.create(path)
        try:
            self._settle(bench, made, Ledger(store))
            self._begin()
        except BaseException:
            if path is not None:
                Path(path).unlink(missing_ok=True)
            raise

    def _settle(self, bench: Bench, method: Method, ledger: Ledger) -> None:
        super().__init__()
        self._bench = bench
        self._method = method
        self._ledger = ledger
        self._model = copy_of(bench.base)
        self._graph = bench.graph
        self._brought: nn.Module | None = None  # trained weights that the pending move brings
        self._hits: Tensor | None = None  # which validation images are classified right now

    def _begin(self) -> None:
        bench = self._bench
        measured, hits = finish(bench.judged(bench.base))
        mark = fingerprint(bench.base)
        began = Began(
            **self._header(),
            network=type(bench.base).__name__,
            fingerprint=mark,
            seed=bench.seed,
            method=self._method.name,
            parameters=parameters(self._method),
            settings=FrozenMap({"repair": bench.repair}),
            widths=FrozenMap({group.name: group.width for group in bench.graph.groups}),
            metrics=FrozenMap(measured),
            cost=cost(bench.graph, WidthPlan.full(bench.graph)),
            weights=mark,
            versions=FrozenMap(_versions()),
        )
        self._commit(began, self._model, weights=bench.base, hits=hits)

    @classmethod
    def open(
        cls, path: str | Path, *, model: nn.Module, data: Any, method: Any = None, **own: Any
    ) -> Session:
        """Resume the session in the file `path`.

        `model` supplies the architecture only: base weights, events and settings come from the
        file. `own` takes the keywords of `Session` that a file cannot hold (forward, loss,
        metrics, train, example_inputs, graph, device). Raises `SessionFileError` for a file that
        is not a session, is damaged, of a newer format, or of another network.
        """
        ledger = Ledger(FileStore.open(path))
        if not len(ledger):
            raise SessionFileError(f"{path} holds no events; it is no session to resume.")
        known = ("graph", "forward", "loss", "metrics", "train", "example_inputs", "device")
        if unknown := set(own) - set(known):
            raise InvalidValue(
                f"Session.open takes {', '.join(known)}; not {', '.join(sorted(unknown))}, "
                "which the file holds."
            )
        began = ledger.state.began
        base = copy_of(model)
        try:
            base.load_state_dict(load_tensors(ledger.blob(began.weights)))
        except (RuntimeError, KeyError) as error:
            raise SessionFileError(
                f"{path} is a session of a {began.network} whose weights do not fit the given "
                f"{type(model).__name__}: {str(error).splitlines()[0]} Give a network of the same "
                "architecture."
            ) from None
        bench = Bench(
            base, data, repair=began.settings["repair"], seed=began.seed,
            **{name: own.get(name) for name in known},
        )  # fmt: skip
        if {group.name: group.width for group in bench.graph.groups} != dict(began.widths):
            raise SessionFileError(f"{path} is a session of another network: its groups differ.")
        if method is None:
            last = ledger.state.proposed or began
            method = make_method(last.method, **dict(last.parameters))
        session = cls.__new__(cls)
        session._settle(bench, make_method(method), ledger)
        state = ledger.state
        session._model = session._network_at(state.now)
        session._graph = bench.graph.after(session.plan)
        if state.pending is not None and state.proposed is not None and state.proposed.weights:
            weights = load_tensors(ledger.blob(state.proposed.weights))
            session._brought = bench.network(session.plan, weights)
        session._hits = finish(bench.judged(session._model))[1]
        return session

    # ------------------------------------------------------------ what a session shows

    @property
    def state(self) -> State:
        """Where the session stands: a fold over its events."""
        return self._ledger.state

    @property
    def ledger(self) -> Ledger:
        """Everything that happened; iterate for the events."""
        return self._ledger

    @property
    def model(self) -> nn.Module:
        """The network now: always plain and, after approved moves, really smaller."""
        return self._model

    @property
    def plan(self) -> WidthPlan:
        """The units kept now, in original numbers."""
        return self._bench.plan(self.state.now.kept)

    @property
    def graph(self) -> ChannelGraph:
        """The channel graph of the network now; groups and units keep their names and numbers."""
        return self._graph

    @property
    def data(self) -> Any:
        """The data that the session was given."""
        return self._bench.data

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name; the first guards `run`."""
        return dict(self._bench.metrics)

    @property
    def example(self) -> Any:
        """One training input, as the network takes it."""
        return self._bench.inputs_of(self._bench.sample())

    @property
    def method(self) -> Method:
        """The method that proposes; set it to an object or a name to change it."""
        return self._method

    @method.setter
    def method(self, method: Any) -> None:
        made = make_method(method)
        with self._verb("method"):
            self._method = made

    def __repr__(self) -> str:
        return f"<Session of {self.state.began.network}: {self.state.line()}>"

    def original(self) -> nn.Module:
        """A new copy of the network that the session began with."""
        return copy_of(self._bench.base)

    def outputs(self, network: nn.Module) -> Any:
        """What `network` gives for the first training batch, in evaluation mode."""
        with undisturbed(network), torch.no_grad():
            network.eval()
            return self._bench.forward(network, self._bench.sample())

    # ------------------------------------------------------------ verbs

    def propose(self, target_macs: float | None = None) -> Move | None:
        """Let the method look for a move; None when it has nothing more.

        With `target_macs` (as in `run`) the move takes no more than the target needs. Raises
        `WrongState` while a proposal is pending (approve, adjust or reject it first),
        `SessionBusy`, `Stopped`, `BadData`, `NotFinite`.
        """
        return self._drive("propose", self._propose(target_macs))

    def proposing(self, target_macs: float | None = None) -> Generator[Any, None, Move | None]:
        """`propose` as a generator that yields what the method sees, for a live view."""
        with self._verb("propose"):
            return (yield from self._telling(self._propose(target_macs)))

    def adjust(self, drop: Mapping[str, Iterable[int]]) -> Move:
        """Change the pending move: it now drops exactly these units, and no others.

        Raises `WrongState` when nothing is pending, `StaleEvidence` when the network has changed
        since, `IllegalPlan` or `UnknownName` for units that cannot be dropped; the proposal then
        stays as it was.
        """
        return self._drive("adjust", self._adjust(drop))

    def approve(self) -> State:
        """Carry out the pending move: cut, then repair unless the session says `repair=None`.

        Raises `WrongState` when nothing is pending, `StaleEvidence` when the network has changed
        since it was measured.
        """
        self._drive("approve", self._approve())
        return self.state

    def reject(self, reason: str = "") -> State:
        """Decline the pending move; raises `WrongState` when there is none."""
        with self._verb("reject"):
            self._pending("reject")
            self._commit(Rejected(**self._header(), reason=str(reason)))
        return self.state

    def undo(self) -> State:
        """Drop a pending proposal and take back the latest step.

        A step is an approve (with the repair that came with it), a repair or a tune. Raises
        `WrongState` when there is neither.
        """
        self._drive("undo", self._undo())
        return self.state

    def repair(self, kind: str = "lstsq") -> State:
        """Repair without training, front to back.

        "lstsq" solves every layer that has lost inputs since the original, or the latest tune;
        "bn" measures BatchNorm statistics anew.
        """
        self._drive("repair", self._repair(kind))
        return self.state

    def tune(self, steps: int = 200) -> State:
        """Train the network for `steps` batches; committed when they are done, or nothing is.

        The session's `train` says how; `Training` imitates the original network by default.
        Raises `NotFinite` when the loss is, naming the layer; `Stopped` on Stop.
        """
        self._drive("tune", self._tune(steps))
        return self.state

    @contextmanager
    def tuning(self, by: str) -> Iterator[nn.Module]:
        """Hand over a copy of the plain small network to a trainer of your own, named `by`.

        On exit it is validated and recorded; an exception on the way discards it. A replay
        cannot be bitwise and says so.
        """
        with self._verb("tune"):
            network = copy_of(self._model)
            shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
            yield network
            found = {name: tensor.shape for name, tensor in network.state_dict().items()}
            if found != shapes:
                odd = next(n for n in {**shapes, **found} if shapes.get(n) != found.get(n))
                raise BadModel(
                    f"The trainer changed the network's shape at {odd}; only weights may change."
                )
            check_finite(network, "your trainer")
            network.eval()
            extra = {"steps": 0, "by": by, "replayable": False}
            finish(self._telling(self._step(Tuned, network, self.plan, extra)))

    def evaluate(self, split: str = "test", network: nn.Module | None = None) -> dict[str, float]:
        """Metric to value on the test split (or "val", "train"); changes nothing.

        Of the network now, or of another `network`.
        """
        if split not in ("train", "val", "test"):
            raise InvalidValue(f"split is 'train', 'val' or 'test', not {split!r}.")
        loader = getattr(self.data, split)
        judged = self._bench.judged(self._model if network is None else network, loader)
        return self._drive("evaluate", judged)[0]

    def run(self, target_macs: float = 0.5, min_accuracy: float | None = None) -> State:
        """Propose and approve until the network has `target_macs`.

        That is a share of the original when at most 1, else a number. Where the method finds
        nothing it is relaxed (AOFP doubles theta).

        `min_accuracy` guards the first metric on the validation images: a move that would break
        it is left pending and the run ends. Raises `BudgetUnreachable`, with the best plan so
        far, when nothing is left to propose.
        """
        self._drive("run", self._run(target_macs, min_accuracy))
        return self.state

    def note(self, text: str) -> State:
        """Write something down in the ledger."""
        with self._verb("note"):
            self._commit(Noted(**self._header(), text=str(text)))
        return self.state

    def what_if(self, drop: Mapping[str, Iterable[int]]) -> Move:
        """The move that would drop these units, with its predicted damage and costs; no event.

        Answers from the evidence at hand; measures only when there is none of this network.
        """
        return self._drive("what_if", self._imagined(drop))

    def export(self, path: str | Path) -> Path:
        """Write the network (.safetensors, with its card), the plan (.json) or the script (.py)."""
        from prunelab.export import export

        return export(self, Path(path))

    # ------------------------------------------------------------ the verbs' work

    def _propose(self, target: float | None = None) -> Generator[Any, None, Move | None]:
        state, bench = self.state, self._bench
        goal = None if target is None else self._goal(target)
        if state.pending is not None and not state.stale:
            raise WrongState(
                f"{state.pending} is pending; approve, adjust or reject it before the next."
            )
        context = Context(
            model=self._model,
            graph=self._graph,
            plan=self.plan,
            fingerprint=state.now.event.fingerprint,
            seed=bench.seed_of(len(self._ledger)),
            carry=state.now.carry,
            target_macs=goal,
            measure=self._measured,
            images=bench.images,
            training_batches=bench.shuffled,
            loss=bench.loss,
            cost=lambda plan: cost(bench.graph, plan),
            train=bench.train if isinstance(bench.train, Training) else Training(),
        )
        seen = []
        search = self._method.search(context)
        while True:
            try:
                item = next(search)
            except StopIteration as end:
                move: Move | None = end.value
                break
            if not isinstance(item, Progress):
                seen.append(item)
            yield item
        if move is not None and not move.drop:
            move = None
        brought = context.weights if move is not None else None
        event = Proposed(
            **self._header(),
            method=self._method.name,
            parameters=parameters(self._method),
            move=move,
            seen=tuple(seen),
            target=target,
            weights=fingerprint(brought) if brought is not None else None,
        )
        self._commit(event, weights=brought, brought=brought)
        return move

    def _measured(
        self,
        kinds: Sequence[str] = ("contribution",),
        *,
        at: str = "conv",
        images: int = 512,
        masks: Masks = "readers",
    ) -> Generator[Any, None, Evidence]:
        mark = self.state.now.event.fingerprint
        work = self._bench.measured(self._model, self._graph, mark, kinds, at, images, masks)
        return (yield from work)

    def _imagined(self, drop: Mapping[str, Iterable[int]]) -> Generator[Any, None, Move]:
        graph, state = self._bench.graph, self.state
        wanted = {graph[name].name: units_of(units) for name, units in drop.items()}
        wanted = {name: units for name, units in wanted.items() if units}
        after = self.plan.drop(wanted)
        place = getattr(self._method, "at", None)
        evidence = yield from self._measured(
            at="bn" if place == "bn" else "conv", images=getattr(self._method, "images", 512)
        )
        pending = None if state.stale else state.pending
        return Move(
            drop=FrozenMap(wanted),
            method=pending.method if pending else self._method.name,
            parameters=pending.parameters if pending else parameters(self._method),
            seed=pending.seed if pending else self._bench.seed_of(len(self._ledger)),
            damage=FrozenMap({name: evidence[name].damage(u) for name, u in wanted.items()}),
            before=cost(graph, self.plan),
            after=cost(graph, after),
            fingerprint=state.now.event.fingerprint,
            carry=pending.carry if pending else FrozenMap(),
        )

    def _adjust(self, drop: Mapping[str, Iterable[int]]) -> Generator[Any, None, Move]:
        self._fresh("adjust")
        move = yield from self._imagined(drop)
        self._commit(Adjusted(**self._header(), drop=move.drop, move=move))
        return move

    def _approve(self, floor: float | None = None) -> Generator[Any, None, bool]:
        move, bench = self._fresh("approve"), self._bench
        source = self._brought if self._brought is not None else self._model
        before, plan = self.plan, self.plan.drop(move.drop)
        small = cut(source, self._graph, plan)
        steps: list[tuple[type[Any], dict[str, Any], nn.Module, Any, Any]]
        steps = [(Approved, {}, small, *(yield from bench.judged(small)))]
        if bench.repair is not None:
            fixed = copy_of(small)
            target = (source, before) if self._brought is not None else self._trained()
            yield from bench.mended(fixed, plan, bench.repair, target, (source, before))
            extra = {"kind": bench.repair, "automatic": True}
            steps.append((Repaired, extra, fixed, *(yield from bench.judged(fixed))))
        if floor is not None and self._breaks(steps[-1][3], floor):
            return False
        with uninterrupted():
            for kind, extra, network, measured, hits in steps:
                self._commit_step(kind, network, plan, extra, measured, hits)
        return True

    def _undo(self) -> Generator[Any, None, None]:
        state = self.state
        if not state.undoable:
            raise WrongState("There is nothing to undo: no move was approved, none is pending.")
        step, head = state.undo_target()
        event = Undone(**self._header(), step=step, proposal=state.pending is not None)
        if step is None:
            self._commit(event)
            return
        network = self._network_at(state.point(head))
        _, hits = yield from self._bench.judged(network)
        self._commit(event, network, hits=hits)

    def _repair(self, kind: str) -> Generator[Any, None, None]:
        small = copy_of(self._model)
        yield from self._bench.mended(small, self.plan, kind, self._trained())
        yield from self._step(Repaired, small, self.plan, {"kind": kind, "automatic": False})

    def _tune(self, steps: int) -> Generator[Any, None, None]:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InvalidValue(f"steps must be a whole number of at least 1, not {steps!r}.")
        network = copy_of(self._model)
        seed = self._bench.seed_of(len(self._ledger))
        by, replayable = yield from self._bench.tuned(network, steps, seed)
        extra = {"steps": steps, "by": by, "replayable": replayable}
        yield from self._step(Tuned, network, self.plan, extra)

    def _run(self, target: float, floor: float | None) -> Work:
        goal = self._goal(target)
        if floor is not None and (isinstance(floor, bool) or not isinstance(floor, (int, float))):
            name = next(iter(self._bench.metrics))
            raise InvalidValue(f"min_accuracy is a value of {name}, not {floor!r}.")
        while self.state.now.cost.macs > goal:
            if self.state.pending is None or self.state.stale:
                move = yield from self._propose(target)
                if move is None:
                    self._relax(goal)
                    continue
            if not (yield from self._approve(floor)):
                return

    def _relax(self, goal: int) -> None:
        relaxed = getattr(self._method, "relaxed", lambda: None)()
        if relaxed is None:
            base, now = self.state.base.cost.macs, self.state.now.cost.macs
            raise BudgetUnreachable(
                f"{self._method.name} has nothing more to propose at {now / base:.0%} of the "
                f"MACs; {goal / base:.0%} was asked for. Allow more damage (max_theta), more "
                "groups, or a larger target.",
                self.plan,
            )
        self._method = relaxed

    def _goal(self, target: float) -> int:
        base = self.state.base.cost.macs
        if isinstance(target, bool) or not isinstance(target, (int, float)) or not target > 0:
            raise InvalidValue(
                "target_macs is a share of the original between 0 and 1, or a number of MACs; "
                f"not {target!r}."
            )
        return int(target * base) if target <= 1 else int(target)

    def _breaks(self, measured: Mapping[str, float], floor: float) -> bool:
        name, metric = next(iter(self._bench.metrics.items()))
        value = measured[name]
        return value < floor if metric.higher_is_better else value > floor

    # ------------------------------------------------------------ networks and commits

    def _network_at(self, point: Point) -> nn.Module:
        weights = load_tensors(self._ledger.blob(point.event.weights))
        return self._bench.network(self._bench.plan(point.kept), weights)

    def _trained(self) -> tuple[nn.Module, WidthPlan]:
        """The network that was last trained, which repairs aim at.

        It is the original, or what the latest tune made.
        """
        point = [p for p in self.state.path if isinstance(p.event, (Began, Tuned))][-1]
        return self._network_at(point), self._bench.plan(point.kept)

    def _pending(self, verb: str) -> Move:
        if self.state.pending is None:
            raise WrongState(f"There is nothing to {verb}: no move is pending. Propose first.")
        return self.state.pending

    def _fresh(self, verb: str) -> Move:
        move = self._pending(verb)
        if self.state.stale:
            raise StaleEvidence(
                "The network has changed since this move was measured; propose again."
            )
        return move

    def _header(self) -> dict[str, Any]:
        return {"seq": len(self._ledger), "at": datetime.now(UTC).isoformat(timespec="seconds")}

    def _step(
        self, kind: type[Any], network: nn.Module, plan: WidthPlan, extra: dict[str, Any]
    ) -> Work:
        """Judge `network` and commit it as the step `kind`."""
        measured, hits = yield from self._bench.judged(network)
        self._commit_step(kind, network, plan, extra, measured, hits)

    def _commit_step(
        self, kind: type[Any], network: nn.Module, plan: WidthPlan, extra: Mapping[str, Any],
        measured: Mapping[str, float], hits: Tensor | None,
    ) -> None:  # fmt: skip
        mark = fingerprint(network)
        event = kind(
            **self._header(),
            kept=plan.kept,
            metrics=FrozenMap(measured),
            cost=cost(self._bench.graph, plan),
            fingerprint=mark,
            weights=mark,
            compared=FrozenMap(_compared(self._hits, hits)),
            **extra,
        )
        self._commit(event, network, weights=network, hits=hits)

    def _commit(
        self,
        event: Event,
        network: nn.Module | None = None,
        *,
        weights: nn.Module | None = None,
        brought: nn.Module | None = None,
        hits: Tensor | None = None,
    ) -> None:
        """Append `event` and store `weights` with it; `network` is the network from now on."""
        blobs = {}
        if weights is not None:
            state = {name: t.detach().cpu().clone() for name, t in weights.state_dict().items()}
            blobs[fingerprint(weights)] = save_tensors(state)
        with uninterrupted():
            self._ledger.append(event, blobs)
            if network is not None:
                self._model, self._hits = network, hits
                self._graph = self._bench.graph.after(self.plan)
            if not isinstance(event, (Adjusted, Noted)):
                self._brought = brought
        self._tell(event)


def _versions() -> dict[str, str]:
    from prunelab import __version__

    return {"prunelab": __version__, "torch": torch.__version__}


def _compared(before: Tensor | None, after: Tensor | None) -> dict[str, int]:
    """How many validation images a step lost and gained."""
    if before is None or after is None or len(before) != len(after):
        return {}
    return {
        "images": len(after),
        "lost": int((before & ~after).sum()),
        "gained": int((~before & after).sum()),
    }
