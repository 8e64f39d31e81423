"""Weights in a store: each distinct tensor is stored once and restored bitwise."""

from __future__ import annotations

import gc
import json
import math
import os
import re
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Tiny, batches

import prunelab as pl
from prunelab.errors import SessionFileError
from prunelab.evidence.fingerprint import fingerprint
from prunelab.graph.surgery.network_state import captured
from prunelab.ledger.events import Adjusted, Noted, Returned
from prunelab.ledger.rows import FORMAT, PIECE, RowStore
from prunelab.ledger.store import FileStore, TemporaryStore

OLD = Path(__file__).parents[1] / "format-1.prunelab"
KINDS = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda t: t,
    "transposed": lambda t: t.mT if t.ndim > 1 else t,
    "every other": lambda t: t[::2] if t.ndim else t,
    "expanded": lambda t: t.expand(3, *t.shape),
    "inside another": lambda t: torch.cat([t.reshape(-1)] * 2)[t.numel() :].reshape(t.shape),
}


@pytest.fixture(params=["file", "no file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RowStore:
    return FileStore.create(tmp_path / "w") if request.param == "file" else TemporaryStore()


def keep(store: RowStore, **weights: Tensor) -> None:
    """Store `weights` under the number of the event that brings them."""
    seq = len(store.events())
    store.append(Noted(seq=seq, text="w"), {str(seq): weights})


def held(store: RowStore) -> int:
    """Bytes of all tensors in the store."""
    with store._connection() as database:
        return int(database.execute("SELECT TOTAL(LENGTH(bytes)) FROM piece").fetchone()[0])


def size(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def bits(tensor: Tensor) -> bytes:
    flat = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
    return bytes(flat.view(torch.uint8).numpy())


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert bits(found) == bits(wanted)


# ---------------------------------------------------------------- one tensor


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    shape=st.lists(st.integers(0, 5), max_size=4),
    layout=st.sampled_from(list(LAYOUTS)),
    seed=st.integers(0, 99),
)
def test_any_tensor_comes_back_bit_by_bit(
    store: RowStore, kind: torch.dtype, shape: list[int], layout: str, seed: int
) -> None:
    numbers = torch.randint(0, 256, (math.prod(shape) * kind.itemsize,), dtype=torch.uint8)
    numbers = numbers % 2 if kind == torch.bool else numbers
    tensor = LAYOUTS[layout](numbers.view(kind).reshape(shape))
    keep(store, t=tensor)
    found = store.weights(str(len(store.events()) - 1))["t"]
    assert_same(found, tensor)
    assert found.is_contiguous()


def test_numbers_that_are_none_come_back(store: RowStore) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0])
    keep(store, odd=odd, bf16=odd.bfloat16())
    assert_same(store.weights("0")["odd"], odd)
    assert_same(store.weights("0")["bf16"], odd.bfloat16())


@pytest.mark.parametrize("length", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
def test_a_tensor_of_any_length_comes_back(store: RowStore, length: int) -> None:
    tensor = torch.randint(0, 256, (length,), dtype=torch.uint8)
    keep(store, t=tensor)
    assert_same(store.weights("0")["t"], tensor)
    assert held(store) == length


def test_names_come_back_in_order_whatever_they_are(store: RowStore) -> None:
    names = ["z", "a.b", "größe", "'; DROP TABLE piece; --", "", "a"]
    keep(store, **{name: torch.tensor(place) for place, name in enumerate(names)})
    assert list(store.weights("0")) == names
    assert [int(t) for t in store.weights("0").values()] == list(range(len(names)))


def test_equal_bytes_of_another_type_or_shape_are_another_tensor(store: RowStore) -> None:
    zeros = {
        "float": torch.zeros(4),
        "int": torch.zeros(4, dtype=torch.int32),
        "square": torch.zeros(2, 2),
        "bytes": torch.zeros(16, dtype=torch.uint8),
    }
    keep(store, **zeros)
    for name, tensor in store.weights("0").items():
        assert_same(tensor, zeros[name])


# ---------------------------------------------------------------- each once


def test_what_did_not_change_is_kept_once(store: RowStore) -> None:
    body, head = torch.randn(300, 1000), torch.randn(10)
    keep(store, body=body, head=head)
    for _ in range(5):
        head = head + 1
        keep(store, body=body.clone(), head=head)
    assert held(store) == size(body) + 6 * size(head)
    keep(store, body=body, head=head)
    assert held(store) == size(body) + 6 * size(head)
    assert_same(store.weights("5")["body"], body)


def test_a_file_grows_by_the_layer_that_changed(tmp_path: Path) -> None:
    store = FileStore.create(tmp_path / "w")
    body, head = torch.randn(1 << 20), torch.randn(1 << 14)
    keep(store, body=body, head=head)
    before = store.path.stat().st_size
    assert size(body, head) < before < 1.02 * size(body, head)
    for k in range(4):
        keep(store, body=body, head=head + k + 1)
    grown = store.path.stat().st_size - before
    assert 3.9 * size(head) < grown < 5 * size(head) < size(body) / 10


def test_tied_tensors_are_kept_once_and_come_back_apart(store: RowStore) -> None:
    tied = torch.randn(50)
    keep(store, a=tied, b=tied, view=tied[:])
    assert held(store) == size(tied)
    weights = store.weights("0")
    weights["a"].zero_()
    assert_same(weights["b"], tied)
    assert_same(weights["view"], tied)
    assert_same(store.weights("0")["a"], tied)


def test_what_is_stored_does_not_follow_the_network(store: RowStore) -> None:
    weight = torch.ones(5)
    keep(store, w=weight)
    weight.zero_()
    assert_same(store.weights("0")["w"], torch.ones(5))


# ---------------------------------------------------------------- sessions


class Heavy(nn.Module):
    """Three small convolutions that are pruned, then a linear layer of a million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)),
        )
        self.fc = nn.Linear(8 * 144, 900)
        self.out = nn.Linear(900, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.fc(self.convs(x).flatten(1))))


@pytest.mark.parametrize("named", [False, True], ids=["no file", "file"])
@pytest.mark.parametrize("repair", [None, "lstsq"])
def test_a_session_grows_by_what_its_moves_change(
    tmp_path: Path, named: bool, repair: str | None
) -> None:
    data = pl.Data(train=batches(32, 1), val=batches(32, 2), test=batches(32, 3))
    ratios = {"convs.0": 0.25, "convs.2": 0.25, "convs.4": 0.25}
    method = pl.ThiNet(pruning_ratio=ratios, images=32)
    path = tmp_path / "run" if named else None
    session = pl.Session(Heavy(), data, method=method, repair=repair, path=path)
    store = session.ledger._store
    assert isinstance(store, RowStore)
    whole = size(*captured(session.model).packed().values())
    assert held(store) == whole > 4_000_000
    for _ in ratios:
        assert session.propose() is not None
        session.approve()
    points = [session.ledger.weights(point.event.weights) for point in session.state.points]
    assert len(points) == 4 if repair is None else 7
    apart = {(t.dtype, t.shape, bits(t)): size(t) for point in points for t in point.values()}
    assert held(store) == sum(apart.values())
    convolutions = size(*session.original().convs.state_dict().values())
    assert held(store) - whole < len(points) * convolutions < whole / 50
    for point in session.state.points:
        assert fingerprint(session._history.network_at(point)) == point.event.fingerprint


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks at open files as Linux does")
def test_without_a_file_large_weights_lie_in_one_without_a_name() -> None:
    def nameless() -> int:
        """Bytes in SQLite's temporary files."""
        places = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
        ours = [fd for fd in places if re.search(r"etilqs.*\(deleted\)", os.readlink(fd))]
        return sum(fd.stat().st_size for fd in ours)

    gc.collect()
    before = nameless()
    store = TemporaryStore()
    keep(store, t=torch.randn(5_000_000))
    assert nameless() - before > 16_000_000  # of 20; a few lie in memory
    del store
    gc.collect()
    assert nameless() == before


def test_a_full_disk_changes_nothing_without_a_file_either() -> None:
    store = TemporaryStore()
    keep(store, t=torch.randn(100))
    store._database.execute("PRAGMA max_page_count = 20")
    with pytest.raises(SessionFileError, match=r"temporary file cannot be used: .*full"):
        keep(store, t=torch.randn(100_000))
    assert len(store.events()) == 1
    store._database.execute("PRAGMA max_page_count = 100000")
    keep(store, t=torch.randn(100_000))
    assert len(store.weights("1")["t"]) == 100_000


# ---------------------------------------------------------------- damage


def listed(weights: object) -> tuple[str, tuple[object, ...]]:
    """The statement that puts another list in place of the one of event 0, with its checksum."""
    text = json.dumps(weights)
    return "UPDATE weights SET json = ?, crc = ?", (text, zlib.crc32(text.encode()))


@pytest.mark.parametrize(
    ("statement", "values", "found"),
    [
        ("UPDATE piece SET bytes = zeroblob(LENGTH(bytes))", (), "'0': conv is corrupted"),
        ("UPDATE piece SET bytes = X'00'", (), "'0': conv is corrupted"),
        ("UPDATE piece SET bytes = 'text'", (), "'0': conv is corrupted"),
        ("UPDATE piece SET place = -place", (), "'0': conv is corrupted"),
        ("DELETE FROM piece WHERE place > 0", (), "'0': conv is corrupted"),
        ("DELETE FROM piece", (), "'0': conv is corrupted"),
        ("UPDATE weights SET json = '{}'", (), "the weights '0' are not what was written"),
        ("DELETE FROM weights", (), "it holds no weights '0'"),
        ("DROP TABLE weights", (), "it holds no weights '0'"),
        ("DROP TABLE piece", (), "no such table"),
        (*listed({"conv": ["00", "float32", [2]]}), "'0': conv is corrupted"),
        (*listed({"conv": ["00", "float32"]}), "'0': not enough values"),
        (*listed([1, 2]), "'0': "),
        (*listed("none"), "'0': "),
    ],
)
def test_changed_weights_are_called_damaged(
    tmp_path: Path, statement: str, values: tuple[object, ...], found: str
) -> None:
    store = FileStore.create(tmp_path / "w")
    keep(store, conv=torch.arange(300_000.0))
    assert held(store) > PIECE
    with sqlite3.connect(store.path) as other:
        other.execute(statement, values)
    other.close()
    with pytest.raises(SessionFileError, match=f"damaged: .*{found}"):
        FileStore.open(store.path).weights("0")


@pytest.mark.parametrize(
    ("kind", "shape", "found"),
    [
        ("load", [2], "this torch knows no type 'load'"),
        ("float1024", [2], "this torch knows no type 'float1024'"),
        ("float32", [3], "shape '.3.' is invalid"),
        ("float64", [2], "shape '.2.' is invalid"),
        ("complex128", [1], "multiple of element size"),
        ("float32", ["a"], ""),
    ],
)
def test_bytes_that_are_no_such_tensor_are_called_damaged(
    tmp_path: Path, kind: str, shape: list[int], found: str
) -> None:
    from prunelab.ledger.content import content_hash

    store = FileStore.create(tmp_path / "w")
    keep(store, conv=torch.tensor([1.0, 2.0]))
    tensor = content_hash(kind, shape, bytearray(bits(torch.tensor([1.0, 2.0]))))
    with sqlite3.connect(store.path) as other:
        other.execute("UPDATE piece SET tensor = ?", (tensor,))
        other.execute(*listed({"conv": [tensor, kind, shape]}))
    other.close()
    with pytest.raises(SessionFileError, match=f"damaged: the weights '0': .*{found}"):
        FileStore.open(store.path).weights("0")


# ---------------------------------------------------------------- files of format 1


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A session that was written before tensors were kept once: whole networks, format 1.

    Two moves by ThiNet, a tune that was undone, and a proposal that brings weights of its own.
    """
    return Path(shutil.copy(OLD, tmp_path / "run.prunelab"))


def resumed(path: Path) -> pl.Session:
    data = pl.Data(train=batches(64, 1), val=batches(64, 2), test=batches(64, 3))
    return pl.Session.open(path, model=Tiny(), data=data)


def format_of(path: Path) -> int:
    with sqlite3.connect(path) as database:
        found = database.execute("PRAGMA user_version").fetchone()[0]
    database.close()
    return int(found)


def test_a_file_of_format_1_resumes_and_is_left_as_it_was(old: Path) -> None:
    session = resumed(old)
    assert session.state.moves == 2
    assert [point.seq for point in session.state.points] == [0, 2, 3, 4, 7]
    for point in session.state.points:
        network = session._history.network_at(point)
        assert fingerprint(network) == point.event.fingerprint == point.event.weights
    assert session.evaluate("val") == dict(session.state.now.metrics)
    pl.submit(old)
    assert old.read_bytes() == OLD.read_bytes()


def test_a_file_of_format_1_goes_on(old: Path) -> None:
    assert format_of(old) == 1
    session = resumed(old)
    session.note("read by a newer prunelab")
    assert format_of(old) == 1  # an older one can still go on with it
    brought = session.state.proposed.weights
    assert fingerprint(session._history.brought) == brought
    session.approve()
    assert format_of(old) == FORMAT
    session.undo()
    session.go(4)
    assert isinstance(list(session.ledger)[-1], Returned)
    session.tune(1)
    before = session.state, fingerprint(session.model)
    again = resumed(old)
    assert (again.state, fingerprint(again.model)) == before
    for point in again.state.points:
        assert fingerprint(again._history.network_at(point)) == point.event.fingerprint


def test_a_file_of_format_1_stays_one_where_nothing_comes_of_an_append(old: Path) -> None:
    store = FileStore.open(old)
    before = store.events()
    with pytest.raises(AttributeError):
        store.append(Noted(seq=9, text="x"), {"k": {"bad": object()}})  # type: ignore[dict-item]
    assert format_of(old) == 1
    assert FileStore.open(old).events() == before
    store.append(Noted(seq=9, text="x"), {"k": {"good": torch.ones(3)}})
    assert format_of(old) == FORMAT
    assert_same(FileStore.open(old).weights("k")["good"], torch.ones(3))


def test_damage_in_a_file_of_format_1_is_told(old: Path) -> None:
    with sqlite3.connect(old) as other:
        other.execute("UPDATE blob SET bytes = zeroblob(LENGTH(bytes))")
    other.close()
    key = FileStore.open(old).events()[0].weights  # type: ignore[attr-defined]
    with pytest.raises(SessionFileError, match=f"damaged: the weights '{key}' are not what was"):
        FileStore.open(old).weights(key)
    with sqlite3.connect(old) as other:
        junk = b"\x08\0\0\0\0\0\0\0junkjunk"
        other.execute("UPDATE blob SET bytes = ?, crc = ?", (junk, zlib.crc32(junk)))
    other.close()
    with pytest.raises(SessionFileError, match=f"damaged: the weights '{key}': "):
        FileStore.open(old).weights(key)


# ---------------------------------------------------------------- files of format 2


def test_a_file_with_every_verb_in_it_resumes_and_goes_on(tmp_path: Path) -> None:
    """Format 2, from before an adjusted event held its units once: both copies are in the file."""
    path = Path(shutil.copy(OLD.with_name("format-2.prunelab"), tmp_path / "run.prunelab"))
    session = resumed(path)
    adjusted = [event for event in session.ledger if isinstance(event, Adjusted)]
    assert [dict(event.move.drop) for event in adjusted] == [{"conv1": (0, 1)}, {"stem": (2,)}]
    assert session.state.pending == adjusted[-1].move
    for point in session.state.points:
        assert fingerprint(session._history.network_at(point)) == point.event.fingerprint
    assert session.evaluate("val") == dict(session.state.now.metrics)
    script = session.export(tmp_path / "run.py").read_text()
    assert "session.adjust(drop={'conv1': [0, 1]})" in script
    session.approve()
    assert resumed(path).state == session.state
