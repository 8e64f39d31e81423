"""A network is recorded once for each shape of batch, the target of repairs once for all moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Tiny, batches

import prunelab as pl
from prunelab.loops.batch import run_batch
from prunelab.repair import recordings
from prunelab.repair.dataflow import Run
from prunelab.repair.recordings import SHAPES, Recordings


class Counted(nn.Module):
    """Counts how often its code runs, in copies too."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        type(self).runs += 1
        y = self.a(x)
        return y.relu() if len(x) > 2 else y.tanh()


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setattr(Counted, "runs", 0)
    torch.manual_seed(0)
    return Counted().eval()


def of(found: Recordings, net: nn.Module, count: int, wanted: tuple[str, ...] = ()) -> Any:
    return found.of(net, torch.randn(count, 1, 8, 8), run_batch, wanted)


def test_a_shape_that_is_known_does_not_run_the_network(net: Counted) -> None:
    found = Recordings()
    first, sums = of(found, net, 4, ("a.weight",))
    assert (Counted.runs, list(sums)) == (3, ["a.weight"])
    again, none = of(found, net, 4, ("a.weight",))
    assert again is first and none == {}
    assert Counted.runs == 3


@pytest.mark.parametrize(("images", "runs"), [(5, 2), (2, 3)])
def test_another_shape_is_recorded_twice_only_if_its_operations_differ(
    images: int, runs: int, net: Counted
) -> None:
    found = Recordings()
    of(found, net, 4)
    before = Counted.runs
    recording, _ = of(found, net, images)
    assert Counted.runs - before == runs
    x = torch.randn(images, 1, 8, 8)
    with torch.no_grad():
        last = recording.output(len(recording.operations) - 1)
        assert torch.equal(Run(recording, x, [last]).take(last), net(x))


def test_a_shape_too_many_takes_the_place_of_the_oldest(net: Counted) -> None:
    found = Recordings()
    kept = [of(found, net, count)[0] for count in range(3, 4 + SHAPES)]
    before = Counted.runs
    assert of(found, net, 3 + SHAPES)[0] is kept[-1]
    assert of(found, net, 4)[0] is kept[1]
    assert Counted.runs == before
    assert of(found, net, 3)[0] is not kept[0]
    assert Counted.runs > before


def test_the_target_of_repairs_is_recorded_once_and_stays_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded: list[nn.Module] = []
    record = recordings.record

    def counting(network: nn.Module, *more: Any) -> Any:
        recorded.append(network)
        return record(network, *more)

    monkeypatch.setattr(recordings, "record", counting)
    torch.manual_seed(0)
    data = pl.Data(train=batches(64, 1), val=batches(64, 2))
    session = pl.Session(Tiny().eval(), data, "thinet", repair_images=64)
    base = session._evaluator.base
    before = {name: x.clone() for name, x in base.state_dict().items()}
    trained = session._history.trained()[0]
    ours = zip(base.parameters(), trained.parameters(), strict=True)
    assert trained is not base, "whoever reads the base sees no modes of a repair"
    assert all(a.data_ptr() == b.data_ptr() for a, b in ours), "but it takes no memory"
    for _ in range(2):
        session.propose()
        session.approve()
    shapes = 2  # of the images that are solved on and of those held out
    first, second = recorded[0], recorded[2 * shapes]
    target = recorded[1]
    assert len(recorded) == 3 * shapes
    assert recorded.count(target) == shapes
    assert first is not second
    after = base.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in before.items())


def test_after_a_tune_repairs_aim_at_what_was_trained() -> None:
    torch.manual_seed(0)
    data = pl.Data(train=batches(64, 1), val=batches(64, 2))
    session = pl.Session(Tiny().eval(), data, pl.Magnitude(pruning_ratio=0.2), repair_images=64)
    session.propose()
    session.approve()
    session.tune(3)
    tuned = session._history.trained()[0]
    assert session._history.trained()[0] is tuned
    now = dict(session.model.state_dict())
    assert all(torch.equal(x, now[name]) for name, x in tuned.state_dict().items())
    session.undo()
    assert session._history.trained()[0] is not tuned
