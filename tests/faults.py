"""Faults to inject into a session, and what must be true of it at any time.

`Bomb` raises at the n-th call that the library makes or receives, as an interrupt or a lack of
memory would; `Tripwire` makes what a user brings fail: loader, network, loss, metric, trainer,
optimiser, method or view.
"""

from __future__ import annotations

import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Tiny, batches

import prunelab as pl
from prunelab.evidence.fingerprint import fingerprint
from prunelab.graph.surgery.network_state import captured
from prunelab.ledger.state import fold
from prunelab.methods.lasso import _Inside

HOME = str(Path(pl.__file__).parent)


class Bomb:
    """Within it, `error` is raised at call number `at` from or to the library's own code.

    KeyboardInterrupt comes as a signal, so that it is deferred where the library defers it; the
    interpreter delivers signals at calls and returns. MemoryError is raised where a call begins,
    which allocates; not where a generator goes on, which does not. `calls` counts them, with
    `commit` from the first commit on.
    """

    def __init__(self, at: int, error: type[BaseException], commit: bool = False) -> None:
        self.at, self.error = at, error
        self.calls, self.counts = 0, not commit
        self.where = ""

    def __enter__(self) -> Bomb:
        # a shell that starts the tests in the background has it ignored
        self._before = signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        signal.signal(signal.SIGINT, self._before)

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(HOME) or code.co_name == "hold":
            return  # `hold` goes on in no call of its own, but in those of contextlib
        if self.error is not KeyboardInterrupt:
            going_on = event == "call" and code.co_flags & 0x20 and frame.f_lasti > 16
            if event not in ("call", "c_call") or going_on or code.co_name == "uninterrupted":
                return
        self.counts = self.counts or "commit" in code.co_name
        self.calls += self.counts
        if self.calls == self.at:
            sys.setprofile(None)
            self.where = f"{event} {code.co_filename[len(HOME) :]}:{frame.f_lineno}"
            if self.error is KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
            else:
                raise self.error("a fault")


class Tripwire:
    """Counts calls of each kind of user code, and fails at one of them."""

    def __init__(self) -> None:
        self.calls = 0
        self.armed: tuple[str, int, Any] = ("", 0, None)

    def arm(self, kind: str, at: int, error: Any) -> None:
        """Fail at the call `at` of `kind`: raise `error`, or with nan return it."""
        self.armed, self.calls = (kind, at, error), 0

    def disarm(self) -> None:
        self.armed = ("", 0, None)

    def trip(self, kind: str) -> float:
        """0, nan, or the error."""
        wanted, at, error = self.armed
        if kind != wanted:
            return 0.0
        self.calls += 1
        if self.calls != at:
            return 0.0
        self.disarm()
        if isinstance(error, float):
            return error
        raise error("a fault")


WIRE = Tripwire()  # networks are copied, and each copy must fail


class Wired(Tiny):
    """Tiny with dropout and things of its own that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = [1, 2, {"a": [3]}]
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x))) + WIRE.trip("network")
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x = self.dropout(F.relu(self.conv3(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Loader:
    """Batches that may fail, or hold nan."""

    def __init__(self, count: int, seed: int) -> None:
        self.batches = batches(count, seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.batches:
            wrong = WIRE.trip("loader")
            yield (x + wrong if wrong else x), y

    def __len__(self) -> int:
        return len(self.batches)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets) + WIRE.trip("loss")


def metric(model: nn.Module, loader: Any) -> float:
    with torch.no_grad():
        hits = [(model(x).argmax(1) == y).float().mean() for x, y in loader]
    return float(torch.stack(hits).mean()) + WIRE.trip("metric")


class Step(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        WIRE.trip("optimiser")
        return super().step(closure)


def train(model: nn.Module, data: Any, steps: int) -> None:
    optimiser = Step(model.parameters(), lr=0.01)
    model.train()
    for _ in range(steps):
        for x, y in data.train:
            optimiser.zero_grad()
            (F.cross_entropy(model(x), y) + WIRE.trip("trainer")).backward()
            optimiser.step()


class Careless:
    """A method of the user's: it writes into the network that it is given, and may fail."""

    name = "careless"

    def __init__(self, method: Any) -> None:
        self.method = method

    def search(self, context: Any) -> Any:
        with torch.no_grad():
            for parameter in context.model.parameters():
                parameter.mul_(0.5)
        context.model.train()
        context.model.seen.append("mine")
        search = self.method.search(context)
        while True:
            WIRE.trip("method")
            try:
                yield next(search)
            except StopIteration as end:
                WIRE.trip("method")
                return end.value


DATA = pl.Data(train=Loader(64, 1), val=Loader(64, 2), test=Loader(32, 3))


def view(_item: Any) -> None:
    WIRE.trip("view")


def session(path: Path | None, own: bool, **more: Any) -> pl.Session:
    """A session with tripwires everywhere; with `own` also with loss, metric and trainer."""
    given = {"loss": loss, "metrics": {"accuracy": metric}, "train": train} if own else {}
    torch.manual_seed(0)
    made = pl.Session(Wired().eval(), DATA, pl.ThiNet(pruning_ratio=0.25, images=32), path=path,
                      graph=GRAPH(), **given, **more)  # fmt: skip
    made.listen(view)
    return made


def opened(path: Path, own: bool, method: Any = None) -> pl.Session:
    given = {"loss": loss, "metrics": {"accuracy": metric}, "train": train} if own else {}
    made = pl.Session.open(path, model=Wired(), data=DATA, graph=GRAPH(), method=method, **given)
    made.listen(view)
    return made


_GRAPHS: list[Any] = []


def GRAPH() -> Any:
    if not _GRAPHS:
        torch.manual_seed(0)
        _GRAPHS.append(pl.trace(Wired().eval(), torch.ones(1, 1, 12, 12)))
    return _GRAPHS[0]


# ---------------------------------------------------------------- what must be true


def bits(network: nn.Module) -> dict[str, bytes]:
    """Every tensor of a network, by name."""
    return {name: t.numpy().tobytes() for name, t in captured(network).tensors.items()}


def plain(network: nn.Module) -> Any:
    """All of a network that is no tensor's value: modes, flags, hooks, attributes."""
    return [
        (
            name,
            module.training,
            [(n, p.requires_grad, p.grad is None) for n, p in module.named_parameters()],
            {key: repr(value) for key, value in vars(module).items() if not key.startswith("_")},
            {key: len(value) for key, value in vars(module).items() if key.endswith("_hooks")},
        )
        for name, module in network.named_modules()
    ]


def process() -> tuple[Any, ...]:
    """What belongs to the process or to this thread."""
    return (
        torch.get_rng_state().numpy().tobytes(), random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
        torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(),
        [one for one in warnings.filters if type(one[1]) is not _Inside],  # that of one thread
        signal.getsignal(signal.SIGINT), len(nn.modules.module._global_forward_hooks),
    )  # fmt: skip


def seen(session: pl.Session) -> tuple[Any, ...]:
    """All that a session is: equal before and after where nothing was done."""
    history = session._history
    brought = history.brought
    return (
        tuple(session.ledger), session.state, session.plan, bits(history.network),
        plain(history.network), plain(session._evaluator.base),
        None if brought is None else bits(brought), history.answers,
    )  # fmt: skip


_exact: set[Any] = set()


def sound(session: pl.Session) -> None:
    """Assert that ledger, state, plan, graph and network agree, and that nothing is held."""
    state, history, evaluator = session.state, session._history, session._evaluator
    assert session.busy is None
    assert fold(session.ledger) == state
    assert [event.seq for event in session.ledger] == list(range(len(session.ledger)))
    assert bits(history.network_at(state.now)) == bits(history.network), "not the ledger's network"
    assert bits(session.model) == bits(history.network), "not the session's network is shown"
    for point in state.points:
        assert point.event.fingerprint == fingerprint(history.network_at(point))
    assert not any(module.training for module in history.network.modules())
    assert {group.name: len(group.units) for group in session.graph.groups} == session.plan.widths
    stored = state.pending is not None and state.proposed is not None and state.proposed.weights
    assert bool(stored) == (history.brought is not None)
    assert state.began.fingerprint == fingerprint(evaluator.base)
    key = (tuple(session.plan.kept.items()), state.began.fingerprint)
    if key not in _exact:
        _exact.add(key)
        base, x = session.original().double().eval(), DATA.val.batches[0][0].double()
        graph = evaluator.graph_of(session.plan)
        small, same = pl.cut(base, graph, session.plan), pl.masked(base, graph, session.plan)
        with torch.no_grad():
            got, want = small(x), same(x)
        assert float((got - want).norm()) <= 1e-10 * float(want.norm()), "cut and masked differ"


def faulty(work: Callable[[], Any]) -> BaseException | None:
    """The error of `work`, which is one of ours or the fault."""
    try:
        work()
    except (pl.PruneLabError, KeyboardInterrupt, MemoryError, torch.OutOfMemoryError) as error:
        return error
    except RuntimeError as error:
        assert str(error) == "a fault", repr(error)
        return error
    return None
