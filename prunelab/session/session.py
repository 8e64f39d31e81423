"""The session: the verbs, and the only object with side effects.

Every verb computes first and commits last: an error, a Stop or a kernel interrupt on the way
leaves model, ledger and state as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from prunelab.cost.counting import Latency
from prunelab.errors import (
    BadModel,
    InvalidValue,
    SessionFileError,
)
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.trace import copy_of
from prunelab.ledger import notes
from prunelab.ledger.events import Tuned
from prunelab.ledger.ledger import Ledger, Store
from prunelab.ledger.state import State
from prunelab.ledger.store import FileStore, TemporaryStore
from prunelab.loops.batch import finish
from prunelab.loops.training import STEPS
from prunelab.methods import Method, make_method
from prunelab.session.evaluator import REPAIR_IMAGES, Bench, check_finite
from prunelab.session.preview import AtHand
from prunelab.session.shown import Shown
from prunelab.session.verbs import Engine
from prunelab.values import Move, WidthPlan
from prunelab.values.paired_comparison import Trial


class Session(Shown):
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
        bench = Bench(
            model, data, graph=graph, forward=forward, loss=loss, metrics=metrics, train=train,
            example_inputs=example_inputs, repair=repair, repair_images=repair_images,
            device=device, seed=seed,
        )  # fmt: skip
        made = make_method(method)
        store: Store = TemporaryStore() if path is None else FileStore.create(path)
        try:
            self._settle(bench, made, Ledger(store))
            self._engine.begin()
        except BaseException:
            if path is not None:
                Path(path).unlink(missing_ok=True)
            raise

    def _settle(self, bench: Bench, method: Method, ledger: Ledger) -> None:
        super().__init__()
        self._bench = bench
        self._engine = Engine(bench, method, ledger, self._tell)

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
            base.load_state_dict(ledger.weights(began.weights))
        except (RuntimeError, KeyError) as error:
            raise SessionFileError(
                f"{path} is a session of a {began.network} whose weights do not fit the given "
                f"{type(model).__name__}: {str(error).splitlines()[0]} Give a network of the same "
                "architecture."
            ) from None
        bench = Bench(
            base, data, repair=began.settings["repair"], seed=began.seed,
            repair_images=began.settings.get("repair_images", REPAIR_IMAGES),
            **{name: own.get(name) for name in known},
        )  # fmt: skip
        if {group.name: group.width for group in bench.graph.groups} != dict(began.widths):
            raise SessionFileError(f"{path} is a session of another network: its groups differ.")
        if method is None:
            last = ledger.state.proposed or began
            method = make_method(last.method, **dict(last.parameters))
        session = cls.__new__(cls)
        session._settle(bench, make_method(method), ledger)
        session._engine.resume()
        return session

    @property
    def method(self) -> Method:
        """The method that proposes; set it to an object or a name to change it."""
        return self._engine.method

    @method.setter
    def method(self, method: Any) -> None:
        made = make_method(method)
        with self._verb("method"):
            self._engine.method = made

    # ------------------------------------------------------------ verbs

    def propose(self, target_macs: float | None = None) -> Move | None:
        """Let the method look for a move; None when it has nothing more.

        With `target_macs` (as in `run`) the move takes no more than the target needs. Raises
        `WrongState` while a proposal is pending (approve, adjust or reject it first),
        `SessionBusy`, `Stopped`, `BadData`, `NotFinite`.
        """
        return self._drive("propose", self._engine.propose(target_macs))

    def proposing(self, target_macs: float | None = None) -> Generator[Any, None, Move | None]:
        """`propose` as a generator that yields what the method sees, for a live view."""
        with self._verb("propose"):
            return (yield from self._telling(self._engine.propose(target_macs)))

    def adjust(self, drop: Mapping[str, Iterable[int]]) -> Move:
        """Change the pending move: it now drops exactly these units, and no others.

        Raises `WrongState` when nothing is pending, `StaleEvidence` when the network has changed
        since, `IllegalPlan` or `UnknownName` for units that cannot be dropped; the proposal then
        stays as it was.
        """
        return self._drive("adjust", self._engine.adjust(drop))

    def approve(self, repair: bool = True) -> State:
        """Carry out the pending move: cut, then repair as the session's `repair` says, or not.

        It is carried out whatever it costs. Where the first metric loses more than 5 points of an
        accuracy, 10% of the original's value, or rises by 20% where lower is better, the state's
        line, screen, history and report say so and what to do; after a repair or tune as well.

        Raises `WrongState` when nothing is pending, `StaleEvidence` when the network has changed
        since it was measured.
        """
        self._drive("approve", self._engine.approve(repair=repair))
        return self.state

    def reject(self, reason: str = "") -> State:
        """Decline the pending move; raises `WrongState` when there is none."""
        with self._verb("reject"):
            self._engine.reject(str(reason))
        return self.state

    def undo(self) -> State:
        """Drop a pending proposal and take back the latest step.

        A step is an approve (with the repair that came with it), a repair or a tune. Raises
        `WrongState` when there is neither.
        """
        self._drive("undo", self._engine.undo())
        return self.state

    def go(self, seq: int) -> State:
        """Go to the point of the trajectory that event `seq` made, on whatever branch it lies.

        A pending proposal is dropped; nothing is lost, and the next step opens a branch there.
        Raises `InvalidValue` where no other network is.
        """
        self._drive("go", self._engine.go(seq))
        return self.state

    def repair(self, kind: str = "lstsq") -> State:
        """Repair without training, front to back.

        "lstsq" solves every layer that has lost inputs since the original, or the latest tune;
        the last one of a residual branch makes good what its shortcut lost too (Channel Pruning);
        "rescale" gives each of their inputs one factor (ThiNet's refit), "bn" measures BatchNorm
        statistics anew.
        """
        self._drive("repair", self._engine.repair(kind))
        return self.state

    def tune(self, steps: int = STEPS) -> State:
        """Train the network for `steps` batches; committed when they are done, or nothing is.

        The session's `train` says how; `Training` imitates the original network by default. Where
        that leaves the first metric worse on the validation images than it was, by more than a
        step may noticeably cost (a point of an accuracy), it is not taken, and the ledger says so;
        a trainer of your own is always taken.
        Raises `NotFinite` when the loss is, naming the layer; `Stopped` on `stop()`. After
        `stop(keep=True)` the steps done so far are committed, as a tune that no script repeats.
        """
        self._drive("tune", self._engine.tune(steps, self._enough.is_set))
        return self.state

    def pace(self, *, aside: bool = False) -> float | None:
        """Seconds that one step of `tune` takes here, tried on a copy: nothing is changed.

        None where the session's trainer is your own. Done `aside`, it raises `Stopped` as soon as
        another verb wants the session.
        """
        return self._drive("pace", self._engine.pace(), aside)

    def latency(self, network: nn.Module | None = None, *, aside: bool = False) -> Latency:
        """Measured seconds of one run as the session runs it: median and spread.

        One training input, or a batch where `forward` is your own. Of the network now, which
        `latencies` remembers, or of another `network`. Done `aside`, it raises `Stopped` as soon
        as another verb wants the session.
        """
        return self._drive("latency", self._engine.latency(network), aside)

    @contextmanager
    def tuning(self, by: str) -> Iterator[nn.Module]:
        """Hand over a copy of the plain small network to a trainer of your own, named `by`.

        On exit it is validated and recorded; an exception on the way discards it. A replay
        cannot be bitwise and says so.
        """
        with self._verb("tune"):
            network = copy_of(self._engine.network)
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
            finish(self._telling(self._engine.step(Tuned, network, self.plan, extra)))

    def evaluate(self, split: str = "test", network: nn.Module | None = None) -> dict[str, float]:
        """Metric to value on the test split (or "val", "train"); changes nothing.

        Of the network now, or of another `network`.
        """
        if split not in ("train", "val", "test"):
            raise InvalidValue(f"split is 'train', 'val' or 'test', not {split!r}.")
        loader = getattr(self.data, split)
        judged = self._bench.judged(self._engine.network if network is None else network, loader)
        return self._drive("evaluate", judged)[0]

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
        self._drive("run", self._engine.run(target_macs, min_accuracy, moves, repair))
        return self.state

    def note(self, text: str, kind: str = "note") -> State:
        """Write a note, or with `kind="reason"` the reason for something, in the ledger.

        With `kind="run"` or "tune" a script that replays a session repeats why a run stopped, or a
        tune was not taken.
        """
        with self._verb("note"):
            self._engine.note(notes.note(text, kind))
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
        with self._verb("predict"):
            self._engine.note(notes.prediction(self.state, guess))
        return self.state

    def answer(self, exercise: str, value: Any) -> State:
        """Hand in `value` as the answer to an exercise; the latest one counts.

        A number, a text, True or False, or a list or dict of such; raises `InvalidValue` for
        anything else.
        """
        with self._verb("answer"):
            self._engine.note(notes.answer(exercise, value))
        return self.state

    def measure(self, *, aside: bool = False) -> AtHand:
        """Measure what `foresee` answers from, unless it is at hand; changes nothing.

        Contributions, on as many training images as the method takes, and the time of every layer.
        Done `aside`, it raises `Stopped` as soon as another verb wants the session.
        """
        self._drive("measure", self._engine.measure(), aside)
        measured = self.evidence
        assert measured is not None
        return measured

    def trial(
        self,
        drop: Mapping[str, Iterable[int]] | None = None,
        images: int = 1000,
        repair: bool = False,
        *,
        aside: bool = False,
    ) -> Trial:
        """How the network without these units does on the first `images` validation images.

        Against the network now, image by image; `drop` defaults to the pending move's. With
        `repair` as the session would repair it on approve, which takes longer. Nothing is changed.
        Done `aside`, it raises `Stopped` as soon as another verb wants the session. Raises
        `WrongState` or `StaleEvidence` where nothing is pending that could be tried, what `adjust`
        raises for a `drop`, `Stopped`.
        """
        return self._drive("trial", self._engine.trying(drop, images, repair), aside)

    def trying(
        self,
        drop: Mapping[str, Iterable[int]] | None = None,
        images: int = 1000,
        repair: bool = False,
    ) -> Generator[Any, None, Trial]:
        """`trial` as a generator that yields Progress after every batch."""
        with self._verb("trial"):
            return (yield from self._telling(self._engine.trying(drop, images, repair)))

    def compare(
        self,
        a: int | WidthPlan,
        b: int | WidthPlan,
        images: int = 1000,
        repair: bool = True,
        *,
        aside: bool = False,
    ) -> Trial:
        """How the network at `b` does against that at `a` on the first validation images.

        Each is a point of the trajectory, by the number of its event, or a plan: the original
        network cut to it, and with `repair` repaired as the session repairs. Nothing is changed.
        Done `aside`, it raises `Stopped` as soon as another verb wants the session.
        """
        return self._drive("compare", self._engine.comparing(a, b, images, repair), aside)

    def what_if(self, drop: Mapping[str, Iterable[int]]) -> Move:
        """The move that would drop these units: `foresee(drop).move`, measured first if need be."""
        return self._drive("what_if", self._engine.imagined(drop))

    def export(self, path: str | Path) -> Path:
        """Write the network (.safetensors), the plan (.json), script (.py) or report (.html)."""
        from prunelab.session.export import export

        return export(self, Path(path))
