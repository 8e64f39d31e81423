"""The session: the verbs, and the only object with side effects.

Every verb computes first and commits last: an error, a Stop or a kernel interrupt on the way
leaves model, ledger and state as they were. `Session` holds the parts together and says what they
do: `Runner` lets one verb at a time work, `Evaluator` has network and data, `History` commits,
`Preview` answers what-if. A verb goes from here to the generator of its name in `verbs`, `run` or
`comparing`, which is given the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from prunelab.cost.counting import Latency, layer_costs
from prunelab.errors import BadModel, InvalidValue, SessionFileError
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.trace import copy_of
from prunelab.ledger import notes
from prunelab.ledger.ledger import Ledger, Store
from prunelab.ledger.state import State
from prunelab.ledger.store import FileStore, TemporaryStore
from prunelab.loops.batch import finish
from prunelab.loops.training import STEPS, Metric
from prunelab.methods import Method, make_method
from prunelab.methods.base import with_theta
from prunelab.session import comparing, run, verbs
from prunelab.session.evaluator import Evaluator
from prunelab.session.export import export
from prunelab.session.history import History
from prunelab.session.parts import Parts
from prunelab.session.preview import AtHand, Foresight, Preview
from prunelab.session.repairing import check_finite
from prunelab.session.runner import Runner
from prunelab.session.settings import REPAIR_IMAGES, Settings
from prunelab.values import Cost, Move, WidthPlan
from prunelab.values.paired_comparison import PairedComparison


class Session:
    """A network being pruned move by move: propose, look, adjust, approve or reject, undo.

    `model` is copied and never touched. `data` has `.train` (evidence and tuning are made on
    it), `.val` (decisions) and `.test` (reports), each a re-iterable of batches. `method` is a
    method object or its lower-case name. `forward(model, batch)` runs the network on a batch,
    `loss(model, batch)` gives a scalar, `metrics` maps names to functions (model, loader) ->
    float, with "lower" in a pair where lower is better; the first guards `run`. `train` is a
    `Training`, or a function (model, data, steps) of your own. `repair` follows every approve:
    "lstsq", "rescale", "bn" or None (see `repair`); it takes as many training images as determine
    its layers, at most `repair_images`. `path` keeps the session in a file that `Session.open`
    resumes; without one what it has been lies in a temporary file that goes with it.
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
        repair_images: int = REPAIR_IMAGES,
        device: Any = None,
        seed: int = 0,
        path: str | Path | None = None,
    ) -> None:
        settings = Settings.of(forward, loss, metrics, train, repair, repair_images)
        evaluator = Evaluator(
            model, data, settings, graph=graph, example_inputs=example_inputs, device=device,
            seed=seed,
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
            raise SessionFileError(f"{path} holds no events, so it cannot be resumed.")
        known = ("graph", "forward", "loss", "metrics", "train", "example_inputs", "device")
        if unknown := set(own) - set(known):
            raise InvalidValue(
                f"Session.open takes {', '.join(known)}; not {', '.join(sorted(unknown))}, "
                "which the file holds."
            )
        began = ledger.state.began
        base = copy_of(model)
        try:
            base.load_state_dict(ledger.weights(began.weights))
        except (RuntimeError, KeyError) as error:
            raise SessionFileError(
                f"{path} is a session of a {began.network} whose weights do not fit the given "
                f"{type(model).__name__}: {str(error).splitlines()[0]} Give a network of the same "
                "architecture."
            ) from None
        settings = Settings.of(
            own.get("forward"), own.get("loss"), own.get("metrics"), own.get("train"),
            began.settings["repair"], began.settings.get("repair_images", REPAIR_IMAGES),
        )  # fmt: skip
        evaluator = Evaluator(
            base, data, settings, graph=own.get("graph"), seed=began.seed,
            example_inputs=own.get("example_inputs"), device=own.get("device"),
        )  # fmt: skip
        if {group.name: group.width for group in evaluator.graph.groups} != dict(began.widths):
            raise SessionFileError(f"{path} is a session of another network: its groups differ.")
        if method is None:
            last = ledger.state.proposed or began
            method = make_method(last.method, **dict(last.parameters))
        session = cls.__new__(cls)
        session._assemble(evaluator, make_method(method), ledger)
        session._history.resume()
        return session

    def __repr__(self) -> str:
        return f"<Session of {self.state.began.network}: {self.state.line()}>"

    # ------------------------------------------------------------ where it stands

    @property
    def state(self) -> State:
        """Where the session stands: a fold over its events."""
        return self._history.state

    @property
    def ledger(self) -> Ledger:
        """Everything that happened; iterate for the events."""
        return self._history.ledger

    @property
    def model(self) -> nn.Module:
        """The network now: always plain and, after approved moves, really smaller."""
        return self._history.network

    @property
    def plan(self) -> WidthPlan:
        """The units kept now, in original numbers."""
        return self._history.plan

    @property
    def graph(self) -> ChannelGraph:
        """The channel graph of the network now; groups and units keep their names and numbers."""
        return self._history.graph

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
        """One training input, as the network takes it."""
        return self._evaluator.example()

    @property
    def method(self) -> Method:
        """The method that proposes; set it to an object or a name to change it."""
        return self._parts.method

    @method.setter
    def method(self, method: Any) -> None:
        made = make_method(method)
        with self._runner.hold("method"):
            self._parts.method = made

    @property
    def busy(self) -> str | None:
        """The verb at work, if any."""
        return self._runner.busy

    def listen(self, callback: Callable[[Any], None]) -> Callable[[], None]:
        """Call `callback` with every Event, and with Progress and evidence while a verb works.

        Once a verb is over and the session free again, whatever the verb came to, it is called
        with `Ended`. It is called on the verb's thread. Gives a function that ends it.
        """
        return self._runner.listen(callback)

    def stop(self, keep: bool = False) -> None:
        """Ask the verb at work to stop at its next step: it raises `Stopped`, changing nothing.

        With `keep` a tune ends there and then, and commits what it has learnt.
        """
        self._runner.stop(keep)

    def preempt(self) -> None:
        """End what runs in the background: it raises `Stopped` at its next step."""
        self._runner.preempt()

    def original(self) -> nn.Module:
        """A new copy of the network that the session began with."""
        return copy_of(self._evaluator.base)

    def outputs(self, network: nn.Module) -> Any:
        """What `network` gives for the first training batch, in evaluation mode."""
        return self._evaluator.outputs(network)

    @property
    def latencies(self) -> dict[int, Latency]:
        """What `latency` measured of the points of the trajectory, by the number of their event."""
        known = self._evaluator.measurements.latencies
        marks = {point.seq: point.event.fingerprint for point in self.state.points}
        return {seq: known[mark] for seq, mark in marks.items() if mark in known}

    def costs(self, plan: WidthPlan | None = None) -> dict[str, Cost]:
        """What each convolution and linear layer costs with `plan` (None: as it is now)."""
        return layer_costs(self._evaluator.graph, self.plan if plan is None else plan)

    def seconds(self, plan: WidthPlan | None = None) -> dict[str, float] | None:
        """Seconds of each layer in one run with `plan` (None: as it is now); "" is all else.

        Estimated from the times that `measure` took, see `LayerTimes.scaled`; None before it did.
        """
        times = self._evaluator.measurements.layer_times
        return None if times is None else times.scaled(self._evaluator.graph, plan or self.plan)

    def pictures(self, images: Iterable[int]) -> dict[int, np.ndarray]:
        """Validation images by their place in the split, as the loader gives them.

        Such as those that a comparison lost; [channels, height, width] each. Raises `InvalidValue`
        for batches that do not begin with images.
        """
        return self._evaluator.splits.pictures(set(images))

    # ------------------------------------------------------------ what would be

    @property
    def evidence(self) -> AtHand | None:
        """The evidence that `foresee` answers from: when it was measured, and whether it is stale.

        None before anything was measured.
        """
        return self._preview.at_hand()

    def foresee(
        self,
        drop: Mapping[str, Iterable[int]] | None = None,
        *,
        theta: float | None = None,
        method: Any = None,
        target_macs: float | None = None,
    ) -> Foresight:
        """What would happen, from the evidence at hand: no run of the network, no event, no lock.

        With `drop` what dropping these units does; with `theta` or `method` what the session's
        method with this theta, or that method, would propose now; with `target_macs` (as in `run`)
        the widths that spread such a budget over the layers, a sketch of what `allocate` finds;
        with nothing what the session's method would propose. Answers while a verb is at work.

        Raises `WrongState` where there is no evidence of the network as it is now (see `measure`)
        or where the method has to run the network, `InvalidValue` for more than one question,
        `BudgetUnreachable`, and what `adjust` raises for a `drop`.
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

    def propose(self, target_macs: float | None = None) -> Move | None:
        """Let the method look for a move; None when it has nothing more.

        With `target_macs` (as in `run`) the move takes no more than the target needs. Raises
        `WrongState` while a proposal is pending (approve, adjust or reject it first),
        `SessionBusy`, `Stopped`, `BadData`, `NotFinite`.
        """
        return self._runner.run("propose", verbs.propose(self._parts, target_macs))

    def proposing(self, target_macs: float | None = None) -> Generator[Any, None, Move | None]:
        """`propose` as a generator that yields what the method sees, for a live view."""
        with self._runner.hold("propose"):
            return (yield from self._runner.relay(verbs.propose(self._parts, target_macs)))

    def adjust(self, drop: Mapping[str, Iterable[int]]) -> Move:
        """Change the pending move: it now drops exactly these units, and no others.

        Raises `WrongState` when nothing is pending, `StaleEvidence` when the network has changed
        since, `IllegalPlan` or `UnknownName` for units that cannot be dropped; the proposal then
        stays as it was.
        """
        return self._runner.run("adjust", verbs.adjust(self._parts, drop))

    def approve(self, repair: bool = True) -> State:
        """Carry out the pending move: cut, then repair as the session's `repair` says, or not.

        It is carried out whatever it costs. Where the first metric loses more than 5 points of an
        accuracy, 10% of the original's value, or rises by 20% where lower is better, the state's
        line, screen, history and report say so and what to do; after a repair or tune as well.

        Raises `WrongState` when nothing is pending, `StaleEvidence` when the network has changed
        since it was measured.
        """
        self._runner.run("approve", verbs.approve(self._parts, repair=repair))
        return self.state

    def reject(self, reason: str = "") -> State:
        """Decline the pending move; raises `WrongState` when there is none."""
        with self._runner.hold("reject"):
            verbs.reject(self._parts, str(reason))
        return self.state

    def undo(self) -> State:
        """Drop a pending proposal and take back the latest step.

        A step is an approve (with the repair that came with it), a repair or a tune. Raises
        `WrongState` when there is neither.
        """
        self._runner.run("undo", verbs.undo(self._parts))
        return self.state

    def go(self, seq: int) -> State:
        """Go to the point of the trajectory that event `seq` made, on whatever branch it lies.

        A pending proposal is dropped; nothing is lost, and the next step opens a branch there.
        Raises `InvalidValue` where no other network is.
        """
        self._runner.run("go", verbs.go(self._parts, seq))
        return self.state

    def repair(self, kind: str = "lstsq") -> State:
        """Repair without training, front to back.

        "lstsq" solves every layer that has lost inputs since the original, or the latest tune;
        the last one of a residual branch makes good what its shortcut lost too (Channel Pruning);
        "rescale" gives each of their inputs one factor (ThiNet's refit), "bn" measures BatchNorm
        statistics anew.
        """
        self._runner.run("repair", verbs.repair(self._parts, kind))
        return self.state

    def tune(self, steps: int = STEPS) -> State:
        """Train the network for `steps` batches; committed when they are done, or nothing is.

        The session's `train` says how; `Training` distils the original network by default. Where
        that leaves the first metric worse on the validation images than it was, by more than a
        step may noticeably cost (a point of an accuracy), it is not taken, and the ledger says so;
        a trainer of your own is always taken.
        Raises `NotFinite` when the loss is, naming the layer; `Stopped` on `stop()`. After
        `stop(keep=True)` the steps done so far are committed, as a tune that no script repeats.
        """
        self._runner.run("tune", verbs.tune(self._parts, steps, self._runner.enough))
        return self.state

    def step_time(self, *, background: bool = False) -> float | None:
        """Seconds that one step of `tune` takes here, tried on a copy: nothing is changed.

        None where the session's trainer is your own. In the `background`, it raises `Stopped` as
        soon as another verb wants the session.
        """
        return self._runner.run("step_time", verbs.step_time(self._parts), background)

    def latency(self, network: nn.Module | None = None, *, background: bool = False) -> Latency:
        """Measured seconds of one run as the session runs it: median and spread.

        One training input, or a batch where `forward` is your own. Of the network now, which
        `latencies` remembers, or of another `network`. In the `background`, it raises `Stopped` as
        soon as another verb wants the session.
        """
        return self._runner.run("latency", verbs.latency(self._parts, network), background)

    @contextmanager
    def tuning(self, by: str) -> Iterator[nn.Module]:
        """Hand over a copy of the plain small network to a trainer of your own, named `by`.

        On exit it is validated and recorded; an exception on the way discards it. A replay
        cannot be bitwise and says so.
        """
        with self._runner.hold("tune"):
            network = copy_of(self._history.network)
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
            finish(self._runner.relay(verbs.adopt(self._parts, network, by)))

    def evaluate(self, split: str = "test", network: nn.Module | None = None) -> dict[str, float]:
        """Metric to value on the test split (or "val", "train"); changes nothing.

        Of the network now, or of another `network`.
        """
        if split not in ("train", "val", "test"):
            raise InvalidValue(f"split is 'train', 'val' or 'test', not {split!r}.")
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
    ) -> State:
        """Propose and approve until the network has `target_macs`, or `moves` are made.

        That is a share of the original when at most 1, else a number. Where the method finds
        nothing it is relaxed (AOFP doubles theta).

        `min_accuracy` guards the first metric on the validation images: a move that would break
        it, or make it NaN, is left pending; the run ends, and says so in the ledger. It is a value
        of that metric, None for no floor, or "auto": of a network that classifies halfway from
        chance, the share of the commonest validation label, to the original network's accuracy;
        of another metric half of the original's value, or four times where lower is better. There
        is no such floor where the original is no more than 5 points over chance, or its value not
        positive.

        Raises `BudgetUnreachable`, with the best plan so far, when nothing is left to propose;
        `InvalidValue` for a target, floor or number of moves that is none.
        """
        self._runner.run("run", run.run(self._parts, target_macs, min_accuracy, moves, repair))
        return self.state

    def note(self, text: str, kind: str = "note") -> State:
        """Write a note, or with `kind="reason"` the reason for something, in the ledger.

        With `kind="run"` or "tune" a script that replays a session repeats why a run stopped, or a
        tune was not taken.
        """
        with self._runner.hold("note"):
            self._history.note(notes.note(text, kind))
        return self.state

    def predict(self, **guess: float) -> State:
        """Lock a guess before it comes out: `predict(accuracy=0.91)`; changes nothing else.

        A metric on the validation images comes out with the next approve (and the repair that
        comes with it), repair or tune. With the next proposal come `units`, how many it drops,
        and `macs` and `params`, the shares of the original that it would leave. Until then a
        second guess takes the place of the first; then it stays, beside its result, in
        `state.predictions`. Declining or undoing the move withdraws what is still open.

        Raises `UnknownName` for what cannot be predicted, `InvalidValue` for what is no number or
        share, `WrongState` for what a pending move says already.
        """
        with self._runner.hold("predict"):
            self._history.note(notes.prediction(self.state, guess))
        return self.state

    def answer(self, exercise: str, value: Any) -> State:
        """Hand in `value` as the answer to an exercise; the latest one counts.

        A number, a text, True or False, or a list or dict of such; raises `InvalidValue` for
        anything else.
        """
        with self._runner.hold("answer"):
            self._history.note(notes.answer(exercise, value))
        return self.state

    def measure(self, *, background: bool = False) -> AtHand:
        """Measure what `foresee` answers from, unless it is at hand; changes nothing.

        Contributions, on as many training images as the method takes, and the time of every layer.
        In the `background`, it raises `Stopped` as soon as another verb wants the session.
        """
        self._runner.run("measure", verbs.measure(self._parts), background)
        measured = self.evidence
        assert measured is not None
        return measured

    def compare_move(
        self,
        drop: Mapping[str, Iterable[int]] | None = None,
        images: int = 1000,
        repair: bool = False,
        *,
        background: bool = False,
    ) -> PairedComparison:
        """How the network without these units does on the first `images` validation images.

        Against the network now, image by image; `drop` defaults to the pending move's. With
        `repair` as the session would repair it on approve, which takes longer. Nothing is changed.
        In the `background`, it raises `Stopped` as soon as another verb wants the session. Raises
        `WrongState` or `StaleEvidence` where nothing is pending that could be tried, what `adjust`
        raises for a `drop`, `Stopped`.
        """
        return self._runner.run(
            "compare_move", comparing.try_move(self._parts, drop, images, repair), background
        )

    def comparing_move(
        self,
        drop: Mapping[str, Iterable[int]] | None = None,
        images: int = 1000,
        repair: bool = False,
    ) -> Generator[Any, None, PairedComparison]:
        """`compare_move` as a generator that yields Progress after every batch."""
        with self._runner.hold("compare_move"):
            return (
                yield from self._runner.relay(comparing.try_move(self._parts, drop, images, repair))
            )

    def compare(
        self,
        a: int | WidthPlan,
        b: int | WidthPlan,
        images: int = 1000,
        repair: bool = True,
        *,
        background: bool = False,
    ) -> PairedComparison:
        """How the network at `b` does against that at `a` on the first validation images.

        Each is a point of the trajectory, by the number of its event, or a plan: the original
        network cut to it, and with `repair` repaired as the session repairs. Nothing is changed.
        In the `background`, it raises `Stopped` as soon as another verb wants the session.
        """
        return self._runner.run(
            "compare", comparing.compare(self._parts, a, b, images, repair), background
        )

    def what_if(self, drop: Mapping[str, Iterable[int]]) -> Move:
        """The move that would drop these units: `foresee(drop).move`, measured first if need be."""
        return self._runner.run("what_if", verbs.imagine(self._parts, drop))

    def export(self, path: str | Path) -> Path:
        """Write the network (.safetensors), the plan (.json), script (.py) or report (.html)."""
        return export(self, Path(path))
