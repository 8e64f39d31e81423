"""Exported networks: they come back as they were, whatever they hold, or nothing is written."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file
from scripts import load
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl
from prunelab.evidence.fingerprint import fingerprint
from prunelab.session import export

networks = load("networks")


def batches(shape: tuple[int, ...], count: int = 1) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(2, *shape), torch.arange(2)) for _ in range(count)]


def pruned(net: nn.Module, shape: tuple[int, ...], **more: Any) -> pl.Session:
    """A session on a network, after one approved move."""
    given = batches(shape)
    settings = {"method": pl.Random(pruning_ratio=0.3), "repair": None, **more}
    session = pl.Session(net, pl.Data(given, given, given), **settings)
    assert session.propose() is not None
    session.approve()
    return session


def assert_same(a: nn.Module, b: nn.Module, x: Tensor) -> None:
    """The same state, in memory of its own, and outputs equal up to rounding."""
    assert fingerprint(a) == fingerprint(b)
    places = [{x.untyped_storage().data_ptr() for x in net.state_dict().values()} for net in (a, b)]
    assert not places[0] & places[1]
    assert all(p.data_ptr() % 64 == 0 for p in b.parameters() if p.numel())
    with torch.no_grad():
        one, other = a.eval()(x), b.eval()(x)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class Odd(nn.Module):
    """Its blur per channel is not saved, its convolutions have two names, two weights are one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Linear(12, 4)
        self.c = nn.Conv2d(3, 8, 1)
        self.c.weight = self.a.weight
        self.backbone = nn.ModuleList([self.a, self.b])
        self.register_buffer("blur", torch.rand(8, 1, 3, 3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x) + self.c(x))
        x = F.conv2d(x, self.blur, padding=1, groups=x.shape[1])
        return self.head(F.relu(self.backbone[1](x)).mean((2, 3)))


def last(net: nn.Module) -> nn.Module:
    return net.to(memory_format=torch.channels_last)


def vision(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=10)


# How each is built, the size of its images, and on how many threads it is tried: large networks
# on more threads than there are cores take minutes.
SOME: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "odd": (Odd, 8, (1, 2, 4)),
    "odd, channels last": (lambda: last(Odd()), 8, (1, 2, 4)),
    "mnasnet0_5": (vision("mnasnet0_5"), 32, (1,)),
    "squeezenet1_1": (vision("squeezenet1_1"), 32, (1,)),
    "shufflenet_v2_x0_5, channels last": (lambda: last(vision("shufflenet_v2_x0_5")()), 32, (1,)),
}


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card takes most of an export's time: it runs both networks a hundred times."""
    monkeypatch.setattr(export, "_card", lambda session, data: {})


@pytest.mark.parametrize("name", SOME)
@pytest.mark.usefixtures("no_card")
def test_an_exported_network_comes_back_on_any_number_of_threads(
    name: str, tmp_path: Path, threads: Callable[[int], None]
) -> None:
    make, size, counts = SOME[name]
    shape = (3, size, size)
    file = tmp_path / "s.prunelab"
    session = pruned(make(), shape, path=file)
    x = batches(shape)[0][0]
    for count in counts:
        threads(count)
        again = pl.load_pruned(make, session.export(tmp_path / "small.safetensors"))
        assert_same(session.model, again, x)
    resumed = pl.Session.open(file, model=make(), data=session.data)
    assert_same(session.model, resumed.model, x)
    session.undo()
    assert_same(session.original(), session.model, x)


CLASSIFIERS = torchvision.models.list_models(module=torchvision.models)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("no_card")
def test_every_classifier_of_torchvision_comes_back(
    name: str, tmp_path: Path, threads: Callable[[int], None]
) -> None:
    net, x, _ = networks.build(name)
    session = pruned(net, tuple(x.shape[1:]))
    for count in (1, 2, 4):
        threads(count)
        path = session.export(tmp_path / "small.safetensors")
        assert_same(session.model, pl.load_pruned(lambda: networks.build(name)[0], path), x)


# ---------------------------------------------------------------- sessions


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


def flags(net: nn.Module) -> list[Any]:
    return [
        *(module.training for module in net.modules()),
        *(parameter.requires_grad for parameter in net.parameters()),
    ]


def test_an_opened_session_has_the_modes_and_flags_that_it_had(tmp_path: Path) -> None:
    net, path = small(), tmp_path / "s.prunelab"
    net[1].eval()
    net[0].weight.requires_grad_(False)
    session = pruned(net, (3, 8, 8), path=path)
    marks = []
    for step in (lambda: None, lambda: session.tune(steps=1), session.undo):
        step()
        again = pl.Session.open(path, model=small().eval(), data=session.data)
        assert flags(again.model) == flags(session.model)
        assert flags(again.original()) == flags(session.original()) == flags(net)
        assert again.evaluate() == session.evaluate()
        assert_same(again.model, session.model, torch.randn(2, 3, 8, 8))
        marks.append(fingerprint(session.model))
    assert marks[0] == marks[2] != marks[1]


def test_a_look_at_the_model_changes_nothing(tmp_path: Path) -> None:
    session = pruned(small(), (3, 8, 8))
    before, mark = session.evaluate("val"), session.state.now.event.fingerprint
    assert session.model is session.model
    assert session.model.training
    session.model(torch.randn(4, 3, 8, 8))  # moves the statistics of its BatchNorm
    nn.init.zeros_(session.model[0].weight)
    assert session.evaluate("val") == before
    path = session.export(tmp_path / "small.safetensors")
    assert fingerprint(pl.load_pruned(small, path)) == mark
    session.tune(steps=1)
    assert float(session.model[0].weight.detach().abs().max()) > 0


class Keeping(nn.Module):
    """Keeps its features, as for Grad-CAM."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head, self.kept = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), {}

    def forward(self, x: Tensor) -> Tensor:
        self.kept["features"] = F.relu(self.a(x))
        return self.head(self.kept["features"].mean((2, 3)))


@pytest.mark.parametrize("method", ["aofp", "taylor", "group_fisher", "surgeon"])
def test_nothing_that_a_session_computed_stays_in_its_network(method: str) -> None:
    net = Keeping()
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    session = pl.Session(net, pl.Data(*[batches((3, 8, 8))] * 3), method=method)
    session.propose(0.7)
    session.adjust({"a": [0]})
    session.approve()
    assert session.model.kept["features"].shape[1] == 8  # the copy of what it was given
    session.tune(steps=1)
    assert session.model.kept["features"].shape[1] == 8
    session.undo()


def test_a_session_of_a_wrapped_network_says_so(tmp_path: Path) -> None:
    path = tmp_path / "s.prunelab"
    session = pruned(nn.DataParallel(small()), (3, 8, 8), path=path)
    with pytest.raises(pl.SessionFileError, match=r"0 is module.0 there; wrap the network alike"):
        pl.Session.open(path, model=small(), data=session.data)
    again = pl.load_pruned(small, session.export(tmp_path / "small.safetensors"))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x), session.model.eval()(x))


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("suffix", [".safetensors", ".json", ".py", ".html"])
def test_a_failed_export_leaves_what_was_there(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = pruned(small(), (3, 8, 8))
    path = session.export(tmp_path / f"small{suffix}")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    session.tune(steps=1)
    with pytest.raises(pl.PruneLabError, match="No space left on device"):
        session.export(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    with pytest.raises(pl.PruneLabError, match="No space left on device"):
        session.export(tmp_path / f"other{suffix}")
    assert {file.name for file in tmp_path.iterdir()} == before.keys()


def test_a_card_that_fails_leaves_no_network(tmp_path: Path) -> None:
    session = pruned(small(), (3, 8, 8))
    session.data.test.append((torch.randn(2, 5, 8, 8), torch.arange(2)))
    with pytest.raises(pl.BadData):
        session.export(tmp_path / "small.safetensors")
    (tmp_path / "net.card.json").mkdir()
    session.data.test.pop()
    with pytest.raises(pl.PruneLabError, match=r"card.json is a folder"):
        session.export(tmp_path / "net.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["net.card.json"]


def test_state_outside_of_the_state_is_told(tmp_path: Path) -> None:
    calls: Iterator[int] = itertools.repeat(0)

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x).relu().mean((2, 3))) + next(calls)

    session = pruned(Counting(), (3, 8, 8))
    calls = itertools.count()
    with pytest.raises(pl.PruneLabError, match="nothing was written"):
        session.export(tmp_path / "small.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [nn.Linear(1, 2), "small.safetensors", {}])
def test_what_builds_no_network_is_told(given: Any, tmp_path: Path) -> None:
    with pytest.raises(pl.InvalidValue, match=r"load_pruned\(lambda: Net\(...\), path\)"):
        pl.load_pruned(given, tmp_path / "small.safetensors")
    path = pruned(small(), (3, 8, 8)).export(tmp_path / "small.safetensors")
    with pytest.raises(pl.BadModel, match=r"factory\(\) gives is a int"):
        pl.load_pruned(lambda: 3, path)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("key", ["norms", "edits", "factors", "state"])
@pytest.mark.parametrize("value", ["[1, 2]", "{", "3", '{"net.0": "wide"}', '{"net.0": null}'])
def test_metadata_of_another_kind_is_refused_by_name(tmp_path: Path, key: str, value: str) -> None:
    """Whatever a stranger wrote there, loading ends in an error of ours or in a sound network."""
    session = pruned(small(), (3, 8, 8))
    path = session.export(tmp_path / "small.safetensors")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {**file.metadata(), key: value}
    save_file(tensors, path, metadata)
    with pytest.raises(pl.PruneLabError, match=r"damaged|another architecture"):
        pl.load_pruned(small, path)


@pytest.mark.parametrize("name", ["3.nothing", "9.padding", "3.padding[9]", "3.padding[one]"])
def test_an_attribute_that_the_network_lacks_is_refused(tmp_path: Path, name: str) -> None:
    path = pruned(small(), (3, 8, 8)).export(tmp_path / "small.safetensors")
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = {**file.metadata(), "edits": json.dumps({name: 1})}
    save_file(tensors, path, metadata)
    with pytest.raises(pl.BadModel, match="another architecture"):
        pl.load_pruned(small, path)
