"""The session: the verbs, and the only object with side effects.

Every verb computes first and commits last: an error, a Stop or a kernel interrupt before the
commit leaves model, ledger and state unchanged. `Session` is a facade over four parts: `Runner`
runs one verb at a time, `Evaluator` holds network and data, `History` commits, `Preview` answers
what-if questions. Each verb calls the generator of its name in `verbs`, `run`, `comparing` or
`surveys` with these parts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from torch import nn

from prunelab.cost.counting import Latency, layer_costs
from prunelab.errors import InvalidValue, SessionFileError
from prunelab.evidence.best_set import NODES, BestSet
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.surgery.network_state import wrapped
from prunelab.graph.trace import copy_of, restricted
from prunelab.ledger import notes
from prunelab.ledger.ledger import Ledger, Store, understood
from prunelab.ledger.state import State
from prunelab.ledger.store import FileStore, TemporaryStore
from prunelab.loops.batch import finish
from prunelab.loops.own import only_values, tensors
from prunelab.loops.ranks import followed, join, own_file, rank
from prunelab.loops.training import STEPS, Metric
from prunelab.methods import Method, make_method
from prunelab.methods.base import with_theta
from prunelab.session import comparing, run, surveys, verbs
from prunelab.session.evaluator import Evaluator
from prunelab.session.export import export
from prunelab.session.history import History
from prunelab.session.hub import pusher
from prunelab.session.parts import Parts
from prunelab.session.preview import AtHand, Foresight, Preview
from prunelab.session.repairing import check_finite
from prunelab.session.replay import original_of
from prunelab.session.runner import Runner
from prunelab.session.settings import REPAIR_IMAGES, Settings, Split
from prunelab.values import Cost, Move, WidthPlan
from prunelab.values.given import as_annotated
from prunelab.values.paired_comparison import PairedComparison
from prunelab.values.sensitivity import Frontier, Sensitivity


@as_annotated
class Session:
    """A network that is pruned move by move: propose, look, adjust, approve or reject, undo.

    Parameters
    ----------
    model
        The network; it is copied and never changed.
    data
        Has `.train` (for evidence, repair and tuning), `.val` (for decisions) and `.test` (for
        reports), each a re-iterable of batches.
    method
        A method object or its lower-case name.
    graph
        The channel graph of `model`; None traces it.
    forward
        `forward(model, batch)` runs the network on a batch; None: on the batch's first item.
    loss
        Returns a scalar. `loss(model, batch)`, or the usual loss of (outputs, targets) for
        batches of (inputs, targets): a module such as `nn.BCEWithLogitsLoss()`, or a function
        whose second parameter is called target, targets, label, labels, truth, gt, y or y_true, or
        whose first is annotated as Tensor. None: cross entropy, for labels that are class indices
        of any integer type, [N] or [N, 1], or class probabilities, one-hot ones included; a
        network with a single logit [N, 1] tells two classes apart.
    metrics
        Name to function (model, loader) -> float, or to a pair of it and "lower" where lower is
        better. The first one guards `run`. None: accuracy and loss.
    train
        A `Training`, or your own function (model, data, steps), which trains the network in place
        or returns a trained copy. Modules in evaluation mode inside a network given in training
        mode, and BatchNorms whose parameters require no gradients, stay in evaluation mode in
        prunelab's own training.
    example_inputs
        Inputs for the trace, as `trace` takes them, also several calls; None takes a training
        input, or two where the network takes no batch of one.
    repair
        Follows every approve: "lstsq", "rescale", "bn" (see `repair`) or None; "published" is that
        of the method's paper: ThiNet's factors ("rescale"), none for AOFP and Group Fisher, which
        train instead, else "lstsq".
    repair_images
        A repair uses as many training images as determine its layers, at most this number.
    device
        Where the copy of the network runs; None: where `model` is.
    seed
        All randomness derives from it and the event number.
    path
        The file that stores the session; `Session.open` resumes it. None: a temporary file, which
        is deleted with the session.
    resume
        Resume the session in `path` where that file exists, as `Session.open` does, so that a
        notebook can be run again: weights, events and the method that proposed last come from the
        file.
    freeze
        Layers, or parts of the network ("layer1", "head"), whose channels must all stay.
    round_to
        Every method leaves a group as it is or at a multiple of this many channels.
    memory
        What evidence and a method's search may hold at once, the network and its activations
        aside: a share of the machine's memory when at most 1, else bytes. None: half of it. What
        would need more raises `OverBudget` before it is allocated.

    Raises
    ------
    BadModel
        For a network that cannot be copied, traced or pruned, or has weights that are not finite.
    BadData
        For data without the three splits, or without batches.
    InvalidValue
        For another keyword that is not valid, or to `resume` without a `path` or with another seed
        or repair than the file's.
    SessionFileError
        Where `path` exists already or cannot be created; with `resume`, as `Session.open`.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        method: Any = "aofp",
        *,
        graph: ChannelGraph | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        loss: Any = None,  # both are checked where they are understood, see `Settings.of`
        metrics: Any = None,
        train: Any = None,
        example_inputs: Any = None,
        repair: str | None = "lstsq",
        repair_images: int = REPAIR_IMAGES,
        device: Any = None,
        seed: int = 0,
        path: str | Path | None = None,
        resume: bool = False,
        freeze: str | Sequence[str] = (),
        round_to: int = 1,
        memory: float | None = None,
    ) -> None:
        join()
        settings = Settings.of(forward, loss, metrics, train, repair, repair_images, memory)
        path = None if path is None else own_file(path)
        if resume and path is None:
            raise InvalidValue(
                "resume=True needs the path of the session's file: path='run.prunelab'."
            )
        if resume and path is not None and Path(path).exists():
            own: dict[str, Any] = {"graph": graph, "forward": forward, "loss": loss}
            own |= {"metrics": metrics, "train": train, "example_inputs": example_inputs}
            own |= {"device": device, "freeze": freeze, "round_to": round_to, "memory": memory}
            given = {"repair": repair, "repair_images": repair_images, "seed": seed}
            self._resume(path, model, data, None, own, given)
            return
        evaluator = Evaluator(
            model, data, settings, graph=graph, example_inputs=example_inputs, device=device,
            seed=seed, freeze=freeze, round_to=round_to,
        )  # fmt: skip
        made = make_method(method)
        store: Store = TemporaryStore() if path is None else FileStore.create(path)
        try:
            self._assemble(evaluator, made, Ledger(store))
            finish(verbs.begin(self._parts))
        except BaseException:
            if path is not None:
                Path(path).unlink(missing_ok=True)
            raise

    def _assemble(self, evaluator: Evaluator, method: Method, ledger: Ledger) -> None:
        self._runner = Runner()
        self._evaluator = evaluator
        self._history = History(evaluator, ledger, self._runner.tell)
        self._preview = Preview(evaluator, self._history)
        self._parts = Parts(evaluator, self._history, self._preview, method)

    @classmethod
    @as_annotated
    def open(
        cls, path: str | Path, *, model: nn.Module, data: Any, method: Any = None, **own: Any
    ) -> Session:
        """Resume the session in the file `path`.

        Parameters
        ----------
        path
            The session's file.
        model
            Supplies the architecture only: base weights, events and settings come from the file.
        data
            As for `Session`.
        method
            The method from now on; None: the one that proposed last.
        own
            The keywords of `Session` that a file cannot hold: forward, loss, metrics, train,
            example_inputs, graph, device, memory.

        Raises
        ------
        SessionFileError
            For a file that is not a session, is damaged, has a newer format, or belongs to another
            network.
        InvalidValue
            For a keyword that the file holds.
        """
        known = (
            "graph", "forward", "loss", "metrics", "train", "example_inputs", "device", "memory",
        )  # fmt: skip
        if unknown := set(own) - set(known):
            raise InvalidValue(
                f"Session.open takes {', '.join(known)}; not {', '.join(sorted(unknown))}, "
                "which the file holds."
            )
        join()
        session = cls.__new__(cls)
        session._resume(own_file(path), model, data, method, own, {})
        return session

    def _resume(
        self,
        path: str | Path,
        model: nn.Module,
        data: Any,
        method: Any,
        own: Mapping[str, Any],
        given: Mapping[str, Any],
    ) -> None:
        """Resume the session in `path`, which must have begun with the settings `given`."""
        ledger = Ledger(FileStore.open(path))
        if not len(ledger):
            raise SessionFileError(f"{path} holds no events, so it cannot be resumed.")
        with understood(path):
            began = ledger.state.began
            repair = began.settings["repair"]
        began_with = {"repair_images": REPAIR_IMAGES, **began.settings, "seed": began.seed}
        for name, value in given.items():
            if value != began_with[name]:
                raise InvalidValue(
                    f"The session in {path} began with {name}={began_with[name]!r}, not {value!r}. "
                    "Give that, or another path for a new session."
                )
        base = original_of(ledger, model, path)
        settings = Settings.of(
            own.get("forward"), own.get("loss"), own.get("metrics"), own.get("train"),
            repair, began.settings.get("repair_images", REPAIR_IMAGES),
            own.get("memory"),
        )  # fmt: skip
        evaluator = Evaluator(
            base, data, settings, graph=own.get("graph"), seed=began.seed,
            example_inputs=own.get("example_inputs"), device=own.get("device"),
            freeze=began.settings.get("freeze", ()), round_to=began.settings.get("round_to", 1),
        )  # fmt: skip
        graph = evaluator.graph
        now = restricted(graph, own.get("freeze", ()), own.get("round_to", 1))
        if [g.why for g in now] != [g.why for g in graph] or now.round_to != graph.round_to:
            frozen = list(began.settings.get("freeze", ()))
            raise InvalidValue(
                f"The session in {path} began with freeze={frozen}, round_to={graph.round_to}. "
                "Give that, or another path for a new session."
            )
        if (widths := {g.name: g.width for g in evaluator.graph.groups}) != dict(began.widths):
            raise SessionFileError(
                f"{path} is a session of another network: its groups differ"
                f"{wrapped(widths, began.widths)}."
            )
        if method is None:
            last = ledger.state.proposed or began
            method = make_method(last.method, **dict(last.parameters))
        self._assemble(evaluator, make_method(method), ledger)
        self._history.resume()

    def __repr__(self) -> str:
        return f"<Session of {self.state.began.network}: {self.state.line()}>"

    # ------------------------------------------------------------ state

    @property
    def state(self) -> State:
        """The current state: a fold over the events."""
        return self._history.state

    @property
    def ledger(self) -> Ledger:
        """The ledger; iterate over it for the events."""
        return self._history.ledger

    @property
    def model(self) -> nn.Module:
        """The current network: a plain module, smaller after each approved move.

        It is a copy, the same one until the network changes: the session does not see what you do
        with it. To train the network yourself, see `tuning`.
        """
        return self._history.shown()

    @property
    def plan(self) -> WidthPlan:
        """The units that are currently kept, in original numbers."""
        return self._history.plan

    @property
    def graph(self) -> ChannelGraph:
        """The channel graph of the current network; groups and units keep their original names."""
        return self._history.graph

    @property
    def proposal_graph(self) -> ChannelGraph:
        """The graph that the pending move drops units from.

        It is `graph`, but that layers which the move factorises are two, at full rank.
        """
        return self._history.source_graph

    @property
    def data(self) -> Any:
        """The data that the session was given."""
        return self._evaluator.splits.data

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name; the first guards `run`."""
        return dict(self._evaluator.settings.metrics)

    @property
    def example(self) -> Any:
        """One training input, or as few as the network runs on, in the form that it expects."""
        return self._evaluator.example()

    @property
    def method(self) -> Method:
        """The method that proposes; assign an object or a name to change it."""
        return self._parts.method

    @method.setter
    def method(self, method: Any) -> None:
        made = make_method(method)
        with self._runner.hold("method"):
            self._parts.method = made

    @property
    def busy(self) -> str | None:
        """The verb that is running, if any."""
        return self._runner.busy

    @property
    def aside(self) -> bool:
        """Whether that verb runs in the background, so that any other one preempts it."""
        return self._runner.aside

    @as_annotated
    def listen(self, callback: Callable[[Any], None]) -> Callable[[], None]:
        """Call `callback` with every Event, and with Progress and evidence while a verb runs.

        After a verb has ended, successfully or not, and the session is free again, it is called
        with `Ended`. It runs on the verb's thread. Returns a function that removes the callback.
        """
        return self._runner.listen(callback)

    def stop(self, keep: bool = False) -> None:
        """Stop the running verb at its next step: it raises `Stopped` and changes nothing.

        With `keep` a tune ends early and commits the steps done so far.
        """
        self._runner.stop(keep)

    def preempt(self) -> None:
        """Stop a verb that runs in the background: it raises `Stopped` at its next step."""
        self._runner.preempt()

    def original(self) -> nn.Module:
        """A new copy of the network that the session began with."""
        return copy_of(self._evaluator.base)

    def outputs(self, network: nn.Module) -> Any:
        """The outputs of `network` for the first training batch, in evaluation mode."""
        return self._evaluator.outputs(network)

    @property
    def latencies(self) -> dict[int, Latency]:
        """The latencies measured at points of the trajectory, by event number."""
        known = self._evaluator.measurements.latencies
        marks = {point.seq: point.event.fingerprint for point in self.state.points}
        return {seq: known[mark] for seq, mark in marks.items() if mark in known}

    @as_annotated
    def costs(self, plan: WidthPlan | None = None) -> dict[str, Cost]:
        """The cost of each convolution and linear layer with `plan` (None: the current one)."""
        plan = self.plan if plan is None else plan
        return layer_costs(self._evaluator.graph_of(plan), plan)

    @as_annotated
    def seconds(self, plan: WidthPlan | None = None) -> dict[str, float] | None:
        """Seconds of each layer in one run with `plan` (None: the current one); "" is the rest.

        Estimated from the times measured by `measure`, see `LayerTimes.scaled`; None before that.
        """
        times = self._evaluator.measurements.layer_times
        plan = plan or self.plan
        return None if times is None else times.scaled(self._evaluator.graph_of(plan), plan)

    @as_annotated
    def pictures(self, images: Iterable[int]) -> dict[int, np.ndarray]:
        """Validation images by their index in the split, such as those that a comparison lost.

        Each is [channels, height, width], as the loader returns it. Raises `InvalidValue` for
        batches whose first item is not images.
        """
        return self._evaluator.splits.pictures(set(images))

    # ------------------------------------------------------------ what-if

    @property
    def evidence(self) -> AtHand | None:
        """The evidence used by `foresee`: when it was measured, and whether it is stale.

        None before the first measurement.
        """
        return self._preview.at_hand()

    @as_annotated
    def foresee(
        self,
        drop: Mapping[str, Iterable[int]] | None = None,
        *,
        theta: float | None = None,
        method: Any = None,
        target_macs: float | None = None,
    ) -> Foresight:
        """Predict from the existing evidence: no run of the network, no event, no lock.

        It answers one question, also while a verb is running.

        Parameters
        ----------
        drop
            Units of each group: the effect of dropping them.
        theta
            What the session's method would propose with this theta.
        method
            What this method would propose. Without any argument: the session's method.
        target_macs
            As in `run`: the widths that spread this budget over the layers, an approximation of
            `allocate`.

        Raises
        ------
        WrongState
            Where the current network was not measured (see `measure`), or where the method has to
            run the network.
        InvalidValue
            For more than one argument.
        BudgetUnreachable
            For a budget that no widths meet.
        UnknownName, IllegalPlan
            For a `drop`, as `adjust`.
        """
        asked = {"drop": drop, "theta": theta, "method": method, "target_macs": target_macs}
        given = [name for name, value in asked.items() if value is not None]
        if len(given) > 1:
            raise InvalidValue(
                f"foresee answers one question at a time, not {' and '.join(given)}."
            )
        made = None if method is None else make_method(method)
        if theta is not None:
            made = with_theta(self.method, theta)
        return self._preview.foresee(made or self.method, drop, target_macs)

    # ------------------------------------------------------------ verbs

    def propose(
        self,
        target_macs: float | None = None,
        *,
        drop: Mapping[str, Iterable[int]] | None = None,
    ) -> Move | None:
        """Search for the method's next move; None when there is none.

        With `target_macs` (as in `run`) the move removes no more than the target needs. With `drop`
        it drops exactly these units of each group, and nothing is searched: a move of your own, or
        one that was decided elsewhere; raises `UnknownName` or `IllegalPlan` as `adjust`. Raises
        `WrongState` while a proposal is pending (approve, adjust or reject it first),
        `SessionBusy`, `Stopped`, `BadData`, `NotFinite`.
        """
        if drop is not None:
            if target_macs is not None:
                raise InvalidValue("propose takes target_macs or drop, not both.")
            return self._runner.run("propose", verbs.propose_given(self._parts, drop))
        return self._runner.run("propose", verbs.propose(self._parts, target_macs))

    def proposing(self, target_macs: float | None = None) -> Generator[Any, None, Move | None]:
        """`propose` as a generator that yields the evidence of the search, for a live view."""
        with self._runner.hold("propose"):
            return (yield from self._runner.relay(verbs.propose(self._parts, target_macs)))

    @as_annotated
    def adjust(self, drop: Mapping[str, Iterable[int]]) -> Move:
        """Change the pending move, so that it drops exactly these units.

        Raises `WrongState` when nothing is pending, `StaleEvidence` when the network has changed
        since, `IllegalPlan` or `UnknownName` for units that cannot be dropped; the proposal then
        stays as it was.
        """
        return self._runner.run("adjust", verbs.adjust(self._parts, drop))

    @as_annotated
    def approve(self, repair: bool = True) -> State:
        """Apply the pending move: cut, and repair with the session's `repair` (or not).

        It is applied whatever it costs. If the first metric falls by more than 5 points of an
        accuracy or 10% of the original's value, or rises by 20% where lower is better, the state's
        line, screen, history and report show an alarm with advice; a repair or tune does the same.

        Raises `WrongState` when nothing is pending, `StaleEvidence` when the network has changed
        since it was measured.
        """
        self._runner.run("approve", verbs.approve(self._parts, repair=repair))
        return self.state

    def reject(self, reason: str = "") -> State:
        """Reject the pending move; raises `WrongState` when there is none."""
        with self._runner.hold("reject"):
            verbs.reject(self._parts, str(reason))
        return self.state

    @as_annotated
    def undo(self, *, only_proposal: bool = False) -> State:
        """Discard a pending proposal and undo the latest step.

        A step is an approve (with the repair that came with it), a repair or a tune. With
        `only_proposal` a pending proposal is discarded and no step undone, as the screen does it.
        Raises `WrongState` when there is neither.
        """
        self._runner.run("undo", verbs.undo(self._parts, only_proposal))
        return self.state

    @as_annotated
    def go(self, seq: int) -> State:
        """Go to the point of the trajectory created by event `seq`, on any branch.

        A pending proposal is discarded; all points remain, and the next step starts a branch there.
        Raises `InvalidValue` where event `seq` created no point, or is the current one.
        """
        self._runner.run("go", verbs.go(self._parts, seq))
        return self.state

    @as_annotated
    def repair(self, kind: str = "lstsq") -> State:
        """Repair without training, front to back.

        "lstsq" solves every layer that has lost inputs since the original, or the latest tune, by
        least squares; the last layer of a residual branch also compensates for its shortcut
        (Channel Pruning). "rescale" fits one factor for each of their inputs (ThiNet's refit),
        "bn" recalibrates BatchNorm statistics.
        """
        self._runner.run("repair", verbs.repair(self._parts, kind))
        return self.state

    @as_annotated
    def tune(self, steps: int = STEPS) -> State:
        """Train the network for `steps` batches, and commit it when they are done.

        The session's `train` defines the loop; `Training` distils from the original network by
        default. If it leaves the first metric on the validation images noticeably worse (by a
        point of an accuracy), it is rejected, and the ledger records that; your own trainer is
        never rejected. Raises `NotFinite`, naming the layer, for a loss that is not finite, and
        `Stopped` on `stop()`. After `stop(keep=True)` the steps done so far are committed, as a
        tune that no script can replay.
        """
        self._runner.run("tune", verbs.tune(self._parts, steps, self._runner.enough))
        return self.state

    @as_annotated
    def step_time(self, *, background: bool = False) -> float | None:
        """Seconds of one step of `tune` on this machine, measured on a copy.

        None for your own trainer. In the `background`, it is preempted by a foreground verb: it
        raises `Stopped`.
        """
        return self._runner.run("step_time", verbs.step_time(self._parts), background)

    @as_annotated
    def latency(self, network: nn.Module | None = None, *, background: bool = False) -> Latency:
        """Measured seconds of one run: median and spread.

        It runs one training input, or a batch where `forward` is your own, through the current
        network or another `network`. The current one is timed in turn with the original, and
        `latencies` then holds both. In the `background`, it is
        preempted by a foreground verb: it raises `Stopped`.
        """
        return self._runner.run("latency", verbs.latency(self._parts, network), background)

    @as_annotated
    @contextmanager
    def tuning(self, by: str) -> Iterator[nn.Module]:
        """A context manager for your own trainer, named `by`: it yields a copy of the network.

        On exit the copy is evaluated and committed; an exception discards it. The step cannot be
        replayed bitwise, and is recorded as such.
        """
        with self._runner.hold("tune"):
            network = copy_of(self._history.network)
            before = tensors(network)
            yield network
            only_values(by, before, tensors(network))
            check_finite(network, "your trainer")
            network.eval()
            finish(self._runner.relay(verbs.adopt(self._parts, network, by)))

    @as_annotated
    def evaluate(self, split: Split = "test", network: nn.Module | None = None) -> dict[str, float]:
        """Metric to value on the test split (or "val", "train"); changes nothing.

        For the current network, or another `network`.
        """
        loader = getattr(self.data, split)
        judged = self._evaluator.judge(
            self._history.network if network is None else network, loader
        )
        return self._runner.run("evaluate", judged)[0]

    def run(
        self,
        target_macs: float = 0.5,
        min_accuracy: float | Literal["auto"] | None = "auto",
        *,
        moves: int | None = None,
        repair: bool = True,
        target_latency: float | None = None,
    ) -> State:
        """Propose and approve until the network has `target_macs`, or `moves` moves are made.

        A method that finds no move is relaxed (AOFP doubles theta).

        Parameters
        ----------
        target_macs
            A share of the original when at most 1, otherwise a number of MACs.
        min_accuracy
            The worst value allowed for the first metric on the validation images; None: no floor.
            A move that would break it, or make the metric NaN, stays pending; the run ends, and
            the ledger records why. "auto" is, for a classifier, halfway from chance (the share of
            the commonest validation label) to the original's accuracy; for another metric half of
            the original's value, or four times where lower is better. It sets no floor where the
            original is at most 5 points above chance, or its value is not positive.
        moves
            The largest number of moves; None: no limit.
        repair
            Whether each move is repaired with the session's `repair`.
        target_latency
            In place of `target_macs`: the share of the original's seconds that is left, by a
            `LatencyTable` measured on this machine with a training input.

        Raises
        ------
        BudgetUnreachable
            When the method has no further moves; it holds the best plan so far.
        InvalidValue
            For an invalid target, floor or number of moves.
        """
        work = run.run(self._parts, target_macs, min_accuracy, moves, repair, target_latency)
        self._runner.run("run", work)
        return self.state

    def note(self, text: str, kind: str = "note") -> State:
        """Write a note, or with `kind="reason"` a reason, in the ledger.

        With `kind="run"`, "tune" or "outcome" a replay script records again how a verb ended.
        """
        with self._runner.hold("note"):
            self._history.note(notes.note(text, kind))
        return self.state

    def predict(self, **guess: float) -> State:
        """Record a prediction before the result is known: `predict(accuracy=0.91)`.

        The result of a metric on the validation images comes with the next approve (and its
        repair), repair or tune. The results of `units`, the number dropped, and of `macs` and
        `params`, the shares of the original that would be left, come with the next proposal. Until
        then a new prediction replaces the old one; afterwards it stays, with its result, in
        `state.predictions`. Rejecting or undoing the move withdraws open predictions.

        Raises `UnknownName` for a quantity that cannot be predicted, `InvalidValue` for a value
        that is not a number or share, `WrongState` where a pending move already shows the result.
        """
        with self._runner.hold("predict"):
            self._history.note(notes.prediction(self.state, guess))
        return self.state

    def answer(self, exercise: str, value: Any) -> State:
        """Record `value` as the answer to an exercise; the latest one counts.

        It is a number, a text, True or False, or a list or dict of these; raises `InvalidValue`
        for anything else.
        """
        with self._runner.hold("answer"):
            self._history.note(notes.answer(exercise, value))
        return self.state

    @as_annotated
    def measure(self, *, background: bool = False) -> AtHand:
        """Measure the evidence for `foresee`, unless it exists already; changes nothing.

        It measures contributions, on as many training images as the method uses, and the time of
        every layer. In the `background`, it is preempted by a foreground verb: it raises `Stopped`.
        """
        self._runner.run("measure", verbs.measure(self._parts), background)
        measured = self.evidence
        assert measured is not None
        return measured

    @as_annotated
    def compare_move(
        self,
        drop: Mapping[str, Iterable[int]] | None = None,
        images: int = 1000,
        repair: bool = False,
        *,
        background: bool = False,
    ) -> PairedComparison:
        """Compare the network without these units with the current one, image by image.

        Nothing is changed.

        Parameters
        ----------
        drop
            Units of each group; None: those of the pending move.
        images
            The number of validation images, from the first.
        repair
            Whether it is repaired as approve would repair it, which takes longer.
        background
            Whether a foreground verb preempts it; it then raises `Stopped`.

        Raises
        ------
        WrongState, StaleEvidence
            Without `drop`, where no move is pending, or it was measured on another network.
        UnknownName, IllegalPlan
            For a `drop`, as `adjust`.
        """
        return self._runner.run(
            "compare_move", comparing.try_move(self._parts, drop, images, repair), background
        )

    @as_annotated
    def comparing_move(
        self,
        drop: Mapping[str, Iterable[int]] | None = None,
        images: int = 1000,
        repair: bool = False,
    ) -> Generator[Any, None, PairedComparison]:
        """`compare_move`, with its parameters, as a generator of Progress after each batch."""
        with self._runner.hold("compare_move"):
            return (
                yield from self._runner.relay(comparing.try_move(self._parts, drop, images, repair))
            )

    @as_annotated
    def compare(
        self,
        a: int | WidthPlan,
        b: int | WidthPlan,
        images: int = 1000,
        repair: bool = True,
        *,
        background: bool = False,
    ) -> PairedComparison:
        """Compare the network at `b` with that at `a`, image by image; changes nothing.

        Parameters
        ----------
        a, b
            Points of the trajectory, by event number, or plans: the original network cut to them.
        images
            The number of validation images, from the first.
        repair
            Whether the network of a plan is repaired with the session's `repair`.
        background
            Whether a foreground verb preempts it; it then raises `Stopped`.

        Raises
        ------
        UnknownName
            For an event that is not a point of the trajectory.
        """
        return self._runner.run(
            "compare", comparing.compare(self._parts, a, b, images, repair), background
        )

    @as_annotated
    def sensitivity(
        self,
        shares: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9),
        images: int = 256,
        *,
        background: bool = False,
    ) -> Sensitivity:
        """Measure what the network loses without more and more units of each group alone.

        The units are removed in ThiNet's greedy order, least needed first, and nothing is
        repaired: it says which layers are fragile, not how good a pruned network would be. Changes
        nothing. `print` shows it as a table, `pl.figures.sensitivity` as a figure.

        Parameters
        ----------
        shares
            The shares of a group's units that are removed.
        images
            The number of validation images on which the loss is measured, from the first.
        background
            Whether a foreground verb preempts it; it then raises `Stopped`.
        """
        work = surveys.sensitivity(self._parts, shares, images)
        return self._runner.run("sensitivity", work, background)

    @as_annotated
    def certify(
        self,
        drop: Mapping[str, Iterable[int]] | None = None,
        nodes: int = NODES,
        *,
        background: bool = False,
    ) -> dict[str, BestSet]:
        """How far each group's units in a move are from the best set of their size, proved.

        `session.certify()["conv1"]` holds the best set found and a bound that no set of as many
        units falls below: its `excess(move.damage["conv1"])` is the share by which the move's set
        is at most worse than the best. "Best" is by the signal lost, before any repair. Changes
        nothing; measures first if needed.

        Parameters
        ----------
        drop
            Units of each group; None: those of the pending move.
        nodes
            Branches that are looked at for each group, see `best_set`.
        background
            Whether a foreground verb preempts it; it then raises `Stopped`.

        Raises
        ------
        WrongState, StaleEvidence
            Without `drop`, where no move is pending, or it was measured on another network.
        UnknownName, IllegalPlan
            For a `drop`, as `adjust`.
        """
        return self._runner.run("certify", surveys.certify(self._parts, drop, nodes), background)

    @as_annotated
    def frontier(
        self,
        shares: Sequence[float] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
        method: Any = "surgeon",
        repair: bool = True,
    ) -> Frontier:
        """Run a method down to each share of the original's MACs, and return to the start.

        The networks stay in the trajectory as a branch: `go(point.seq)` goes to one of them, and
        `pl.figures.frontier` draws them. There is no floor; it ends where the method has no
        further moves. If it is stopped, the session stays at the latest network, as `run` does.

        Parameters
        ----------
        shares
            Falling shares of the original's MACs, at each of which a network is kept.
        method
            A method object or its name; the session's own method is the same afterwards.
        repair
            Whether each move is repaired with the session's `repair`.

        Raises
        ------
        WrongState
            While a proposal is pending.
        """
        return self._runner.run("frontier", surveys.frontier(self._parts, shares, method, repair))

    @as_annotated
    def what_if(self, drop: Mapping[str, Iterable[int]]) -> Move:
        """The move that would drop these units: `foresee(drop).move`; measures first if needed."""
        return self._runner.run("what_if", verbs.imagine(self._parts, drop))

    @as_annotated
    def export(self, path: str | Path) -> Path:
        """Write the network, or the plan (.json), script (.py) or report (.html) of the session.

        The network is written as .safetensors, for `load_pruned`; as .onnx or .pt2 (torch.export),
        which run without its code on batches of any size; or, without a suffix, as a folder with
        weights, plan and model card that `huggingface_hub.upload_folder` takes. Each is read again
        and compared before it replaces an older one. A report goes on answering what goes with any
        channels of the current network, which is measured first (see `measure`) if it was not.
        Raises what `export` does: `InvalidValue` for another suffix, `MissingPackage`, or
        `PruneLabError` where nothing could be written.
        """
        export(self, self._history.network, own_file(path))
        return Path(path)

    @as_annotated
    def push_to_hub(self, repo_id: str, *, private: bool | None = None) -> str:
        """Upload the network, as the folder that `export` writes, to the Hugging Face Hub.

        Returns the address of the repository. Needs `pip install 'prunelab[hub]'`, and a login by
        `hf auth login` or HF_TOKEN. To load the network again:
        `load_pruned(factory, huggingface_hub.snapshot_download(repo_id))`.

        Parameters
        ----------
        repo_id
            "user/name"; the repository is made unless it exists.
        private
            Whether a new repository is private; None: as its owner has set it, else public.

        Raises
        ------
        InvalidValue
            For a malformed `repo_id`.
        MissingPackage
            Where huggingface_hub is not installed.
        PruneLabError
            Where nothing could be exported, or the Hub did not take it.
        """
        push = pusher(repo_id, private)
        with TemporaryDirectory() as made:
            folder = self.export(Path(made) / "network")
            return followed(push(folder) if rank() == 0 else "")
