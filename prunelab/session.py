"""The session: the verbs, and the only object with side effects.

Every verb computes first and commits last: an error, a Stop or a kernel interrupt on the way
leaves model, ledger and state as they were.
"""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from prunelab.channels import ChannelGraph
from prunelab.cost import cost
from prunelab.errors import (
    BadData,
    BadModel,
    BudgetUnreachable,
    InvalidValue,
    NotFinite,
    SessionBusy,
    SessionFileError,
    StaleEvidence,
    Stopped,
    WrongState,
)
from prunelab.evidence import Evidence
from prunelab.evidence.measure import batch_size, finish, measuring, run_batch
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
from prunelab.repair import KINDS, repairing
from prunelab.store import FileStore
from prunelab.surgery import cut
from prunelab.tracing import copy_of, trace, undisturbed
from prunelab.training import Metric, Training, cross_entropy, hitting, metrics_of, training
from prunelab.values import FrozenMap, Move, Progress, WidthPlan, units_of

REPAIR_IMAGES = 1024


class Session:
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
        self._settle(
            model, data, method, graph=graph, forward=forward, loss=loss, metrics=metrics,
            train=train, example_inputs=example_inputs, repair=repair, device=device, seed=seed,
        )  # fmt: skip
        store: Store = MemoryStore() if path is None else FileStore.create(path)
        self._ledger = Ledger(store)
        try:
            self._begin(type(model).__name__)
        except BaseException:
            if path is not None:
                Path(path).unlink(missing_ok=True)
            raise

    def _begin(self, network: str) -> None:
        measured, self._hits = finish(self._judged(self._base))
        mark = fingerprint(self._base)
        self._commit(
            Began(
                seq=0,
                at=_now(),
                network=network,
                fingerprint=mark,
                seed=self._seed,
                method=self._method.name,
                parameters=parameters(self._method),
                settings=FrozenMap({"repair": self._repair_kind}),
                widths=FrozenMap({group.name: group.width for group in self._graph.groups}),
                metrics=FrozenMap(measured),
                cost=cost(self._graph, WidthPlan.full(self._graph)),
                weights=mark,
                versions=FrozenMap(_versions()),
            ),
            self._base,
        )

    def _settle(
        self, model: nn.Module, data: Any, method: Any, *, graph: ChannelGraph | None,
        forward: Any, loss: Any, metrics: Any, train: Any, example_inputs: Any,
        repair: str | None, device: Any, seed: int,
    ) -> None:  # fmt: skip
        """Check what the user gave and set up what does not change over a session."""
        if not isinstance(model, nn.Module):
            raise BadModel(f"A session prunes an nn.Module, not a {type(model).__name__}.")
        if repair is not None and repair not in KINDS:
            raise InvalidValue(f"repair is {', '.join(map(repr, KINDS))} or None, not {repair!r}.")
        for split in ("train", "val", "test"):
            if not hasattr(data, split):
                raise BadData(
                    f"data has no .{split}; give pl.Data(train=, val=, test=) of batches or "
                    "Datasets, or pl.data.load(...)."
                )
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._busy: str | None = None
        self._listeners: list[Callable[[Any], None]] = []
        self._method = make_method(method)
        self._data = data
        self._seed = int(seed)
        self._repair_kind = repair
        self._forward = forward or run_batch
        self._loss = loss or cross_entropy
        self._classifies = metrics is None and loss is None and forward is None
        self._metrics = metrics_of(metrics, self._loss, self._classifies)
        self._train = train if train is not None else Training()
        if not isinstance(self._train, Training) and not callable(self._train):
            raise InvalidValue(
                "train is a pl.Training or a function (model, data, steps), not "
                f"{type(train).__name__}."
            )
        base = copy_of(model)
        meta = [name for name, tensor in base.state_dict().items() if tensor.is_meta]
        if not meta:
            if device is not None:
                base = base.to(device)
            for name, tensor in base.state_dict().items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise BadModel(
                        f"{name} holds NaN or infinity; nothing measured on this network would "
                        "mean anything. Load sound weights first."
                    )
        if graph is None:
            if example_inputs is None:
                first = next(self._images(1), None)
                if first is None:
                    raise BadData("data.train has no batches; give at least one.")
                example_inputs = first if forward else _inputs_of(first, base)
            graph = trace(base, example_inputs, forward=forward)
        if not any(group.prunable for group in graph.groups):
            reasons = "; ".join(f"{g.name}: {g.why}" for g in graph.groups[:5])
            raise BadModel(f"No channel of this network can be pruned ({reasons}).")
        self._base = base
        self._graph = graph
        self._model = copy_of(base)
        self._now_graph = graph
        self._evidence: dict[tuple[Any, ...], Evidence] = {}
        self._brought: nn.Module | None = None  # trained weights that the pending move brings
        self._hits: Tensor | None = None

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
        return self._plan_at(self.state.now)

    @property
    def graph(self) -> ChannelGraph:
        """The channel graph of the network now; groups and units keep their names and numbers."""
        return self._now_graph

    @property
    def data(self) -> Any:
        """The data that the session was given."""
        return self._data

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name; the first guards `run`."""
        return dict(self._metrics)

    @property
    def method(self) -> Method:
        """The method that proposes; set it to an object or a name to change it."""
        return self._method

    @method.setter
    def method(self, method: Any) -> None:
        made = make_method(method)
        with self._verb("method"):
            self._method = made

    @property
    def busy(self) -> str | None:
        """The verb at work, if any."""
        return self._busy

    def __repr__(self) -> str:
        return f"<Session of {self.state.began.network}: {self.state.line()}>"

    def listen(self, callback: Callable[[Any], None]) -> Callable[[], None]:
        """Call `callback` with every Event, and with Progress and evidence while a verb works,
        on the verb's thread; gives a function that ends it."""
        self._listeners.append(callback)

        def end() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return end

    def stop(self) -> None:
        """Ask the verb at work to stop at its next step: it raises `Stopped`, changing nothing."""
        if self._busy is not None:
            self._stop.set()

    # ------------------------------------------------------------ verbs

    def propose(self, target_macs: float | None = None) -> Move | None:
        """Let the method look for a move; None when it has nothing more.

        With `target_macs` (as in `run`) the move takes no more than the target needs. Raises `WrongState` while a proposal is pending (approve, adjust or reject it first),
        `SessionBusy`, `Stopped`, `BadData`, `NotFinite`.
        """
        return self._drive("propose", self._propose(target_macs))  # type: ignore[no-any-return]

    def proposing(
        self, target_macs: float | None = None
    ) -> Generator[Any, None, Move | None]:
        """`propose` as a generator that yields what the method sees, for a live view."""
        with self._verb("propose"):
            return (yield from self._telling(self._propose(target_macs)))

    def adjust(self, drop: Mapping[str, Iterable[int]]) -> Move:
        """Change the pending move: it now drops exactly these units, of these groups.

        Raises `WrongState` when nothing is pending, `IllegalPlan` or `UnknownName` for units
        that cannot be dropped; the proposal then stays as it was.
        """
        return self._drive("adjust", self._adjust(drop))  # type: ignore[no-any-return]

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
            self._brought = None
            self._commit(Rejected(seq=len(self._ledger), at=_now(), reason=str(reason)))
        return self.state

    def undo(self) -> State:
        """Drop a pending proposal and take back the latest approve (with the repair that came
        with it), repair or tune; raises `WrongState` when there is neither."""
        with self._verb("undo"):
            state = self.state
            if not state.undoable:
                raise WrongState("There is nothing to undo: no move was approved, none is pending.")
            step, head = state.undo_target()
            network = self._network_at(state.point(head)) if step is not None else self._model
            event = Undone(
                seq=len(self._ledger), at=_now(), step=step, proposal=state.pending is not None
            )
            hits = finish(self._judged(network))[1] if step is not None else self._hits
            self._brought = None
            self._commit(event, network, store=False, hits=hits)
        return self.state

    def repair(self, kind: str | None = None) -> State:
        """Repair without training: "lstsq" right after an approve that was not repaired, "bn"
        (BatchNorm statistics) any time. None takes the best that is possible now."""
        self._drive("repair", self._repair(kind))
        return self.state

    def tune(self, steps: int = 200) -> State:
        """Train the network for `steps` batches; committed when they are done, or nothing is.

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
            _check_finite(network, "your trainer")
            finish(self._telling(self._tuned(network, 0, by, replayable=False)))

    def evaluate(self, split: str = "test") -> dict[str, float]:
        """Metric to value on the test split (or "val", "train"); changes nothing."""
        if split not in ("train", "val", "test"):
            raise InvalidValue(f"split is 'train', 'val' or 'test', not {split!r}.")
        loader = getattr(self._data, split)
        return self._drive("evaluate", self._judged(self._model, loader))[0]  # type: ignore[no-any-return]

    def run(self, target_macs: float = 0.5, min_accuracy: float | None = None) -> State:
        """Propose and approve until the network has `target_macs`: a share of the original when
        at most 1, else a number. Where the method finds nothing it is relaxed (AOFP doubles
        theta).

        `min_accuracy` guards the first metric on the validation images: a move that would break
        it is left pending and the run ends. Raises `BudgetUnreachable`, with the best plan so
        far, when nothing is left to propose.
        """
        self._drive("run", self._run(target_macs, min_accuracy))
        return self.state

    def note(self, text: str) -> State:
        """Write something down in the ledger."""
        with self._verb("note"):
            self._commit(Noted(seq=len(self._ledger), at=_now(), text=str(text)))
        return self.state

    def what_if(self, drop: Mapping[str, Iterable[int]]) -> Move:
        """The move that would drop these units, with its predicted damage and costs; no event.

        Answers from the evidence at hand; measures only when there is none of this network.
        """
        with self._verb("what_if"):
            return finish(self._telling(self._imagined(drop)))  # type: ignore[no-any-return]

    def export(self, path: str | Path) -> Path:
        """Write the network (.safetensors, with its card), the plan (.json) or the script (.py)."""
        from prunelab.export import export

        with self._verb("export"):
            return export(self, Path(path))

    # ------------------------------------------------------------ for reports

    @property
    def example(self) -> Any:
        """One training input, as the network takes it."""
        return _inputs_of(self.sample(), self._base)

    def sample(self) -> Any:
        """The first training batch."""
        return next(self._images(1))

    def outputs(self, network: nn.Module, batch: Any) -> Any:
        """What `network` gives for a batch, in evaluation mode."""
        with undisturbed(network), torch.no_grad():
            network.eval()
            return self._forward(network, batch)

    def judge(self, network: nn.Module, split: str) -> dict[str, float]:
        """Metric to value of any network on a split; changes nothing."""
        return finish(self._judged(network, getattr(self._data, split)))[0]  # type: ignore[no-any-return]

    def fresh(self) -> nn.Module:
        """A new copy of the network that the session began with."""
        return copy_of(self._base)

    # ------------------------------------------------------------ the verbs' work

    def _propose(self, target: float | None = None) -> Generator[Any, None, Move | None]:
        state = self.state
        goal = None if target is None else self._goal(target)
        if state.pending is not None and not state.stale:
            raise WrongState(
                f"{state.pending} is pending; approve, adjust or reject it before the next."
            )
        context = Context(
            model=self._model,
            graph=self._now_graph,
            plan=self.plan,
            fingerprint=state.now.event.fingerprint,
            seed=self._seed_of(len(self._ledger)),
            carry=state.now.carry,
            target_macs=goal,
            measure=self._measured,
            training_batches=self._shuffled,
            loss=self._loss,
            cost=lambda plan: cost(self._graph, plan),
            train=self._train if isinstance(self._train, Training) else Training(),
        )
        seen = []
        search = self._method.search(context)
        move = None
        while True:
            try:
                item = next(search)
            except StopIteration as end:
                move = end.value
                break
            if not isinstance(item, Progress):
                seen.append(item)
            yield item
        if move is not None and not move.drop:
            move = None
        brought = context.weights if move is not None else None
        self._commit(
            Proposed(
                seq=len(self._ledger),
                at=_now(),
                method=self._method.name,
                parameters=parameters(self._method),
                move=move,
                seen=tuple(seen),
                target=target,
                weights=fingerprint(brought) if brought is not None else None,
            ),
            brought=brought,
        )
        return move

    def _imagined(self, drop: Mapping[str, Iterable[int]]) -> Generator[Any, None, Move]:
        wanted = {self._graph[name].name: units_of(units) for name, units in drop.items()}
        wanted = {name: units for name, units in wanted.items() if units}
        after = self.plan.drop(wanted)
        evidence = yield from self._measured(**self._measuring_of_method())
        pending = self.state.pending
        return Move(
            drop=FrozenMap(wanted),
            method=pending.method if pending else self._method.name,
            parameters=pending.parameters if pending else parameters(self._method),
            seed=pending.seed if pending else self._seed_of(len(self._ledger)),
            damage=FrozenMap({name: evidence[name].damage(u) for name, u in wanted.items()}),
            before=cost(self._graph, self.plan),
            after=cost(self._graph, after),
            fingerprint=self.state.now.event.fingerprint,
            carry=pending.carry if pending else FrozenMap(),
        )

    def _adjust(self, drop: Mapping[str, Iterable[int]]) -> Generator[Any, None, Move]:
        self._pending("adjust")
        move = yield from self._imagined(drop)
        self._commit(Adjusted(seq=len(self._ledger), at=_now(), drop=move.drop, move=move))
        return move

    def _approve(self, floor: float | None = None) -> Generator[Any, None, bool]:
        move = self._pending("approve")
        if self.state.stale:
            raise StaleEvidence(
                "The network has changed since this move was measured; propose again."
            )
        source = self._brought if self._brought is not None else self._model
        plan = self.plan.drop(move.drop)
        small = cut(source, self._now_graph, plan)
        steps: list[tuple[type[Any], dict[str, Any], nn.Module, Any, Any]] = []
        measured, hits = yield from self._judged(small)
        steps.append((Approved, {}, small, measured, hits))
        if self._repair_kind is not None:
            fixed = copy_of(small)
            yield from self._mended(fixed, plan, source, self._now_graph, self._repair_kind)
            _check_finite(fixed, "the repair")
            measured, hits = yield from self._judged(fixed)
            extra = {"kind": self._repair_kind, "automatic": True}
            steps.append((Repaired, extra, fixed, measured, hits))
        if floor is not None and self._breaks(measured, floor):
            return False
        self._commit_steps(steps, plan)
        return True

    def _repair(self, kind: str | None) -> Generator[Any, None, None]:
        fresh = self.state.unrepaired
        if kind is None:
            kind = "lstsq" if fresh is not None else "bn"
        if kind == "lstsq" and fresh is None:
            raise WrongState(
                "Least squares needs the network from before the cut, right after an approve "
                "that was not repaired; now use repair('bn') or tune."
            )
        small = copy_of(self._model)
        source, graph = self._model, self._now_graph
        if fresh is not None:
            assert fresh.parent is not None
            parent = self.state.point(fresh.parent)
            source, graph = self._network_at(parent), self._graph.after(self._plan_at(parent))
        yield from self._mended(small, self.plan, source, graph, kind)
        _check_finite(small, "the repair")
        measured, hits = yield from self._judged(small)
        extra = {"kind": kind, "automatic": False}
        self._commit_steps([(Repaired, extra, small, measured, hits)], self.plan)

    def _mended(
        self, small: nn.Module, plan: WidthPlan, source: nn.Module, graph: ChannelGraph, kind: str
    ) -> Generator[Any, None, None]:
        """Repair `small`, cut from `source` to `plan`, towards the network that was last trained:
        the original, or what the latest tune made."""
        trained = [p for p in self.state.path if isinstance(p.event, (Began, Tuned))][-1]
        target, target_plan = self._network_at(trained), self._plan_at(trained)
        if self._brought is not None and source is self._brought:
            target, target_plan = source, self.plan
        yield from repairing(
            small, self._graph.after(plan), source, graph, target, self._graph.after(target_plan),
            lambda: self._images(REPAIR_IMAGES), self._forward, kind,
        )  # fmt: skip

    def _tune(self, steps: int) -> Generator[Any, None, None]:
        if not isinstance(steps, int) or steps < 1:
            raise InvalidValue(f"steps must be a whole number of at least 1, not {steps!r}.")
        network = copy_of(self._model)
        if isinstance(self._train, Training):
            seed = self._seed_of(len(self._ledger))
            yield from training(
                network, lambda epoch: self._shuffled(seed + epoch), steps, self._loss, self._train
            )
            _check_finite(network, "tuning")
            yield from self._tuned(network, steps, "prunelab", replayable=True)
        else:
            self._train(network, self._data, steps)
            _check_finite(network, "your trainer")
            by = getattr(self._train, "__name__", "your trainer")
            yield from self._tuned(network, steps, by, replayable=False)

    def _tuned(
        self, network: nn.Module, steps: int, by: str, *, replayable: bool
    ) -> Generator[Any, None, None]:
        network.eval()
        measured, hits = yield from self._judged(network)
        extra = {"steps": steps, "by": by, "replayable": replayable}
        self._commit_steps([(Tuned, extra, network, measured, hits)], self.plan)

    def _run(self, target: float, floor: float | None) -> Generator[Any, None, None]:
        goal = self._goal(target)
        name = next(iter(self._metrics))
        if floor is not None and not isinstance(floor, (int, float)):
            raise InvalidValue(f"min_accuracy is a value of {name}, not {floor!r}.")
        while self.state.now.cost.macs > goal:
            if self.state.pending is None or self.state.stale:
                move = yield from self._propose(target)
                if move is None:
                    relaxed = getattr(self._method, "relaxed", lambda: None)()
                    if relaxed is None:
                        now = self.state.now.cost.macs / self.state.base.cost.macs
                        raise BudgetUnreachable(
                            f"{self._method.name} has nothing more to propose at {now:.0%} of the "
                            f"MACs; {goal / self.state.base.cost.macs:.0%} was asked for. Allow "
                            "more damage (max_theta), more groups, or a larger target.",
                            self.plan,
                        )
                    self._method = relaxed
                    continue
            if not (yield from self._approve(floor)):
                return

    def _goal(self, target: float) -> int:
        base = self.state.base.cost.macs
        if isinstance(target, bool) or not isinstance(target, (int, float)) or not target > 0:
            raise InvalidValue(
                f"target_macs is a share of the original between 0 and 1, or a number of MACs; "
                f"not {target!r}."
            )
        return int(target * base) if target <= 1 else int(target)

    def _breaks(self, measured: Mapping[str, float], floor: float) -> bool:
        name, metric = next(iter(self._metrics.items()))
        value = measured[name]
        return value < floor if metric.higher_is_better else value > floor

    # ------------------------------------------------------------ measuring and judging

    def _measuring_of_method(self) -> dict[str, Any]:
        place = getattr(self._method, "at", None) or "conv"
        return {
            "at": "conv" if place == "relu" else place,
            "images": getattr(self._method, "images", 512),
        }

    def _measured(self, at: str = "conv", images: int = 512) -> Generator[Any, None, Evidence]:
        """Evidence of the network now: what is at hand, or one pass over training images."""
        key = (self.state.now.event.fingerprint, at, images)
        if key not in self._evidence:
            found = yield from measuring(
                self._model, self._now_graph, self._images(images), at=at, forward=self._forward
            )
            self._evidence = {key: found}  # of the latest network only
        return self._evidence[key]

    def _judged(
        self, network: nn.Module, loader: Any = None
    ) -> Generator[Any, None, tuple[dict[str, float], Tensor | None]]:
        """Every metric of `network` on a loader (default: validation), and which images it
        gets right where the metric is accuracy."""
        loader = self._data.val if loader is None else loader
        if self._classifies:
            with _private_rng(self._seed):
                right, loss = yield from hitting(network, loader)
            return {"accuracy": float(right.double().mean()), "loss": loss}, right
        values = {}
        for name, metric in self._metrics.items():
            yield Progress(len(values), len(self._metrics), f"evaluating {name}")
            with _private_rng(self._seed):
                values[name] = float(metric.function(network, loader))
        return values, None

    def _images(self, images: int) -> Iterator[Any]:
        """Training batches up to `images` images, the same ones at every call."""
        return _under_private_rng(lambda: _take(self._data.train, images), self._seed)

    def _shuffled(self, seed: int) -> Iterator[Any]:
        """One epoch of training batches, shuffled by `seed`."""
        shuffled = getattr(self._data, "shuffled", lambda _: iter(self._data.train))
        return _under_private_rng(lambda: shuffled(seed), seed)

    def _seed_of(self, event: int) -> int:
        """The seed of what event number `event` draws at random."""
        return int(torch.Generator().manual_seed(self._seed * 1_000_003 + event).initial_seed())

    # ------------------------------------------------------------ networks and commits

    def _plan_at(self, point: Point) -> WidthPlan:
        if point.kept is None:
            return WidthPlan.full(self._graph)
        return WidthPlan(point.kept, self._graph)

    def _network_at(self, point: Point) -> nn.Module:
        network = cut(self._base, self._graph, self._plan_at(point))
        network.load_state_dict(load_tensors(self._ledger.blob(point.event.weights)))
        return network

    def _pending(self, verb: str) -> Move:
        if self.state.pending is None:
            raise WrongState(f"There is nothing to {verb}: no move is pending. Propose first.")
        return self.state.pending

    def _commit_steps(self, steps: list[Any], plan: WidthPlan) -> None:
        with _uninterrupted():
            for kind, extra, network, measured, hits in steps:
                mark = fingerprint(network)
                event = kind(
                    seq=len(self._ledger),
                    at=_now(),
                    kept=plan.kept,
                    metrics=FrozenMap(measured),
                    cost=cost(self._graph, plan),
                    fingerprint=mark,
                    weights=mark,
                    compared=FrozenMap(_compared(self._hits, hits)),
                    **extra,
                )
                self._brought = None
                self._commit(event, network, hits=hits)

    def _commit(
        self,
        event: Event,
        network: nn.Module | None = None,
        *,
        store: bool = True,
        brought: nn.Module | None = None,
        hits: Tensor | None = None,
    ) -> None:
        """Append `event`, with the weights it brings, and let the session follow."""
        carried = brought if brought is not None else network if store else None
        blobs = {}
        if carried is not None:
            blobs[fingerprint(carried)] = save_tensors(
                {key: value.detach().cpu().clone() for key, value in carried.state_dict().items()}
            )
        with _uninterrupted():
            self._ledger.append(event, blobs)
            if network is not None:
                self._model = network
                self._now_graph = self._graph.after(self.plan)
                self._hits = hits if hits is not None else self._hits
            if brought is not None:
                self._brought = brought
        self._tell(event)

    # ------------------------------------------------------------ one verb at a time

    @contextmanager
    def _verb(self, name: str) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise SessionBusy(f"{self._busy} is at work; wait for it, or stop it.")
        self._busy = name
        self._stop.clear()
        try:
            yield
        finally:
            self._busy = None
            self._lock.release()

    def _drive(self, name: str, work: Generator[Any, None, Any]) -> Any:
        with self._verb(name):
            return finish(self._telling(work))

    def _telling(self, work: Generator[Any, None, Any]) -> Generator[Any, None, Any]:
        """Pass on what `work` yields to the listeners; Stop ends it between two steps."""
        while True:
            try:
                item = next(work)
            except StopIteration as end:
                return end.value
            self._tell(item)
            if self._stop.is_set():
                work.close()
                raise Stopped(f"{self._busy} was stopped; what it had not finished is discarded.")
            yield item

    def _tell(self, item: Any) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(item)
            except Exception as error:  # a broken view must not break the work
                self._listeners.remove(listener)
                warnings.warn(f"A listener failed and was dropped: {error!r}", stacklevel=2)

    # ------------------------------------------------------------ resume

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: nn.Module,
        data: Any,
        method: Any = None,
        **own: Any,
    ) -> Session:
        """Resume the session in the file `path`.

        `model` supplies the architecture only: base weights, events and settings come from the
        file. `own` takes the keywords of `Session` that a file cannot hold (forward, loss,
        metrics, train, example_inputs, device). Raises `SessionFileError` for a file that is not
        a session, is damaged, of a newer format, or of another network.
        """
        ledger = Ledger(FileStore.open(path))
        if not len(ledger):
            raise SessionFileError(f"{path} holds no events; it is no session to resume.")
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
        if method is None:
            last = ledger.state.proposed or began
            method = make_method(last.method, **dict(last.parameters))
        session = cls.__new__(cls)
        session._settle(
            base, data, method, graph=own.pop("graph", None), forward=own.pop("forward", None),
            loss=own.pop("loss", None), metrics=own.pop("metrics", None),
            train=own.pop("train", None), example_inputs=own.pop("example_inputs", None),
            repair=began.settings["repair"], device=own.pop("device", None), seed=began.seed,
        )  # fmt: skip
        if own:
            raise InvalidValue(f"Session.open does not take {', '.join(sorted(own))}.")
        widths = {group.name: group.width for group in session._graph.groups}
        if widths != dict(began.widths):
            raise SessionFileError(f"{path} is a session of another network: its groups differ.")
        session._ledger = ledger
        session._model = session._network_at(ledger.state.now)
        session._now_graph = session._graph.after(session.plan)
        pending, proposed = ledger.state.pending, ledger.state.proposed
        if pending is not None and proposed is not None and proposed.weights is not None:
            session._brought = copy_of(session._model)
            session._brought.load_state_dict(load_tensors(ledger.blob(proposed.weights)))
        session._hits = finish(session._judged(session._model))[1]
        return session


# ---------------------------------------------------------------- helpers


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    from prunelab import __version__

    return {"prunelab": __version__, "torch": torch.__version__}


def _inputs_of(batch: Any, model: nn.Module) -> Any:
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return x[:1].to(device) if isinstance(x, Tensor) else x


def _check_finite(network: nn.Module, by: str) -> None:
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NotFinite(f"{by} left NaN or infinity in {name}; it was discarded.")


def _compared(before: Tensor | None, after: Tensor | None) -> dict[str, int]:
    """How many validation images were lost and gained by a step."""
    if before is None or after is None or len(before) != len(after):
        return {}
    return {
        "images": len(after),
        "lost": int((before & ~after).sum()),
        "gained": int((~before & after).sum()),
    }


def _take(batches: Iterable[Any], images: int) -> Iterator[Any]:
    """Whole batches until `images` images have come."""
    count = 0
    for batch in batches:
        yield batch
        count += batch_size(batch)
        if count >= images:
            return


@contextmanager
def _private_rng(seed: int) -> Iterator[None]:
    """The user's loaders and functions draw from here; the caller's generators stay untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _under_private_rng(make: Callable[[], Iterable[Any]], seed: int) -> Iterator[Any]:
    """The items of `make()`, each drawn under a generator of our own."""
    outside = torch.get_rng_state()
    torch.manual_seed(seed)
    inside = torch.get_rng_state()
    torch.set_rng_state(outside)
    iterator: Iterator[Any] | None = None
    while True:
        outside = torch.get_rng_state()
        torch.set_rng_state(inside)
        try:
            if iterator is None:
                iterator = iter(make())
            item = next(iterator)
        except StopIteration:
            return
        finally:
            inside = torch.get_rng_state()
            torch.set_rng_state(outside)
        yield item


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C while a commit is half done; it comes through right after."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[Any] = []
    previous = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, lambda *args: caught.append(args))
    except (ValueError, TypeError):  # not allowed here, as in a subinterpreter
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if caught and callable(previous):
        previous(*caught[0])
