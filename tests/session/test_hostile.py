"""Whatever a file holds, a reader gives a value or a typed error, in bounded time and memory.

A corpus of valid files is mutated: bytes, and within right checksums single places of the JSON.
"""

from __future__ import annotations

import ast
import json
import os
import resource
import sqlite3
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import DATA, GRAPH, Wired, bits, opened, session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import Tensor, nn

import prunelab as pl
from prunelab.classroom import handin
from prunelab.errors import PruneLabError, SessionFileError
from prunelab.ledger import history_words, words
from prunelab.ledger.store import FileStore

EXAMPLES = int(os.environ.get("PRUNELAB_EXAMPLES", 40))
MANY = 10**12
ODD = st.one_of(
    st.sampled_from([
        None, True, 0, -1, 1, MANY, 2**63, 1e308, float("nan"), float("inf"), -0.5, "", "x", "1",
        "../../x", "<script>alert(1)</script>", "\ud800", "\0", "x" * 5000, [], {}, [[]], [MANY],
        {"is": "Move"}, {"is": "Began"}, {"is": 3}, {"is": "pairs"}, {"is": "pairs", "pairs": 3},
        {"is": "Noted", "seq": 0, "text": "x"}, {"": None}, ["is"], {"conv1": MANY},
        {"conv1": [MANY]}, {"conv1": [-1, 0]}, {"stem": [0, 0]}, "conv1", "0", "aofp",
    ]),
    st.integers(-(2**70), 2**70), st.text(max_size=8),
)  # fmt: skip
QUIET = {
    "derandomize": True, "deadline": None, "database": None,
    "suppress_health_check": list(HealthCheck),
}  # fmt: skip


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within JSON data."""
    found = [path]
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data if isinstance(data, list) else ())
    )
    for key, value in items:
        found += places(value, (*path, key))
    return found


def changed(data: Any, place: tuple[Any, ...], how: str, value: Any) -> Any:
    """JSON data with one place replaced, taken out, doubled, or its key renamed."""
    if not place:
        return value
    data = json.loads(json.dumps(data))
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    key = place[-1]
    if how == "drop":
        del inner[key]
    elif how == "rename" and isinstance(inner, dict):
        inner[str(value)[:50]] = inner.pop(key)
    elif how == "twice" and isinstance(inner, list):
        inner.insert(key, inner[key])
    else:
        inner[key] = value
    return data


HOW = st.sampled_from(["replace", "replace", "replace", "drop", "rename", "twice"])


@st.composite
def bytes_like(draw: Any, whole: bytes) -> bytes:
    """Bytes of a valid file, some of them changed."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["flip", "cut", "put", "large", "take", "head"])):
            case "flip" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[place:]
            case "put":
                data[place:place] = draw(st.binary(max_size=20))
            case "large":
                data[place : place + 8] = struct.pack("<Q", draw(st.sampled_from([MANY, 2**63, 0])))
            case "take":
                del data[place : place + draw(st.integers(1, 40))]
            case _:
                data[:8] = struct.pack("<Q", draw(st.sampled_from([MANY, 2**31, len(data), 1])))
    return bytes(data)


def refused_or(work: Callable[[], Any]) -> Any:
    """What `work` gives; None where it refuses with an error of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return work()
        except PruneLabError:
            return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One valid file of each kind."""
    folder = tmp_path_factory.mktemp("corpus")
    made = session(folder / "run.prunelab", own=False)
    made.propose()
    made.approve()
    made.undo()
    made.propose()
    made.approve(repair=False)
    made.answer("1", {"a": [1, 2]})
    made.predict(accuracy=0.5)
    made.propose()
    made.export(folder / "small.safetensors")
    made.export(folder / "plan.json")
    pl.submit(made, folder / "hand-in.zip")
    compared = pl.compare(Wired().eval(), DATA, ["magnitude"], targets=(0.8,), example_inputs=None)
    (folder / "comparison.json").write_text(compared.to_json())
    return folder


# ---------------------------------------------------------------- session files


def rewritten(folder: Path, table: str, key: Any, text: str) -> Path:
    """The session file with one text in it changed, its checksum right."""
    path = folder / "changed.prunelab"
    path.write_bytes((folder / "run.prunelab").read_bytes())
    data = text.encode("utf-8", "surrogatepass")
    name = "seq" if table == "event" else "key"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            f"UPDATE {table} SET json = CAST(? AS TEXT), crc = ? WHERE {name} = ?",
            (data, zlib.crc32(data), key),
        )
    return path


def looked_at(path: Path) -> None:
    """Open a session and look at all of it."""
    found = opened(path, False)
    str(found)
    history_words.history(found.state, found.ledger)
    words.outcome(found.state, found.ledger[-1])
    pl.figures.report(found.ledger)
    found.plan.to_json()
    if len(found.state.points) > 1:
        found.go(next(p.seq for p in found.state.points if p.seq != found.state.head))


@pytest.mark.long
def test_a_session_file_whose_events_are_changed_is_refused_or_a_session(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "run.prunelab")) as database:
        events = [json.loads(text) for (text,) in database.execute("SELECT json FROM event")]
    tried: list[str] = []

    @settings(max_examples=EXAMPLES, **QUIET)
    @given(st.data())
    def fuzz(data: Any) -> None:
        seq = data.draw(st.integers(0, len(events) - 1))
        place = data.draw(st.sampled_from(places(events[seq])))
        text = json.dumps(changed(events[seq], place, data.draw(HOW), data.draw(ODD)))
        path = rewritten(folder, "event", seq, text)
        tried.append("opened" if refused_or(lambda: [looked_at(path)]) else "refused")

    fuzz()
    assert {"opened", "refused"} == set(tried)


@pytest.mark.long
def test_a_session_file_whose_lists_of_weights_are_changed_is_refused_or_a_session(
    folder: Path,
) -> None:
    with closing(sqlite3.connect(folder / "run.prunelab")) as database:
        lists = {
            key: json.loads(text) for key, text in database.execute("SELECT key, json FROM weights")
        }

    @settings(max_examples=EXAMPLES // 2, **QUIET)
    @given(st.data())
    def fuzz(data: Any) -> None:
        key = data.draw(st.sampled_from(sorted(lists)))
        place = data.draw(st.sampled_from(places(lists[key])))
        text = json.dumps(changed(lists[key], place, data.draw(HOW), data.draw(ODD)))
        path = rewritten(folder, "weights", key, text)
        refused_or(lambda: looked_at(path))

    fuzz()


@pytest.mark.parametrize("depth", [100, 2000, 200_000])
def test_json_that_is_deep_is_refused(folder: Path, depth: int) -> None:
    text = "[" * depth + "]" * depth
    for table, key in (("event", 1), ("weights", "0")):
        path = rewritten(folder, table, key, text)
        with pytest.raises(SessionFileError):
            looked_at(path)
    with pytest.raises(PruneLabError):
        pl.WidthPlan.from_json(text, GRAPH())
    with pytest.raises(PruneLabError):
        pl.WidthPlan.from_json(f'{{"kept": {text}}}', GRAPH())


@pytest.mark.parametrize(
    "program",
    [
        "DROP TABLE event; CREATE VIEW event AS WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL "
        "SELECT i + 1 FROM n) SELECT i AS seq, '{}' AS json, 0 AS crc FROM n",
        "CREATE TRIGGER t AFTER INSERT ON event BEGIN DELETE FROM event; END",
        "CREATE INDEX i ON event (hex(zeroblob(length(json))))",
        "ALTER TABLE event ADD COLUMN g AS (hex(zeroblob(1000000000)))",
    ],
)  # fmt: skip
def test_a_session_file_that_holds_a_program_is_refused(folder: Path, program: str) -> None:
    path = folder / "program.prunelab"
    path.write_bytes((folder / "run.prunelab").read_bytes())
    with closing(sqlite3.connect(path)) as database:
        database.executescript(program)
    with pytest.raises(SessionFileError, match=r"no session writes|damaged"):
        FileStore.open(path)


# ---------------------------------------------------------------- other files


def test_plans_and_comparisons_that_are_changed_are_refused_or_read(folder: Path) -> None:
    texts = [(folder / name).read_text() for name in ("plan.json", "comparison.json")]
    readers = (lambda text: pl.WidthPlan.from_json(text, GRAPH()), pl.Comparison.from_json)
    graph = GRAPH()

    @settings(max_examples=2 * EXAMPLES, **QUIET)
    @given(st.data())
    def fuzz(data: Any) -> None:
        which = data.draw(st.integers(0, 1))
        if data.draw(st.booleans()):
            plain = json.loads(texts[which])
            place = data.draw(st.sampled_from(places(plain)))
            text = json.dumps(changed(plain, place, data.draw(HOW), data.draw(ODD)))
        else:
            text = data.draw(bytes_like(texts[which].encode())).decode("latin-1")
        found = refused_or(lambda: readers[which](text))
        if which == 0 and found is not None:
            pl.cut(Wired().eval(), graph, found)
        elif found is not None:
            str(found)

    fuzz()


def test_exported_networks_that_are_changed_are_refused_or_read(folder: Path) -> None:
    whole = (folder / "small.safetensors").read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    path = folder / "changed.safetensors"

    @settings(max_examples=2 * EXAMPLES, **QUIET)
    @given(st.data())
    def fuzz(data: Any) -> None:
        match data.draw(st.integers(0, 2)):
            case 0:
                path.write_bytes(data.draw(bytes_like(whole)))
            case 1:  # the header
                place = data.draw(st.sampled_from(places(header)))
                text = json.dumps(changed(header, place, data.draw(HOW), data.draw(ODD))).encode()
                path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])
            case _:  # JSON within the header
                about = dict(header["__metadata__"])
                key = data.draw(st.sampled_from(sorted(about)))
                inner = json.loads(about[key]) if about[key][:1] in "{[" else about[key]
                place = data.draw(st.sampled_from(places(inner)))
                about[key] = json.dumps(changed(inner, place, data.draw(HOW), data.draw(ODD)))
                path.write_bytes(save(load_file(folder / "small.safetensors"), about))
        refused_or(lambda: pl.load_pruned(Wired, path))

    fuzz()


def test_a_hand_in_of_changed_bytes_is_refused_or_read(folder: Path) -> None:
    whole, path = (folder / "hand-in.zip").read_bytes(), folder / "changed.zip"

    @settings(max_examples=2 * EXAMPLES, **QUIET)
    @given(bytes_like(whole))
    def fuzz(data: bytes) -> None:
        path.write_bytes(data)

        def read() -> None:
            with handin.opened(path) as archive:
                for name in (handin.PLAN, handin.WEIGHTS, handin.LEDGER):
                    assert len(archive.read(name, 1 << 20)) <= 1 << 20

        refused_or(read)

    fuzz()


def test_a_reader_takes_no_more_memory_than_the_file_is_worth(folder: Path) -> None:
    """What a header claims is not allocated; what is packed is not unpacked without end."""
    claims, bomb = folder / "claims.safetensors", folder / "bomb.zip"
    head = {"w": {"dtype": "F32", "shape": [MANY], "data_offsets": [0, 4 * MANY]}}
    text = json.dumps(head).encode()
    heads = [struct.pack("<Q", len(text)) + text, struct.pack("<Q", MANY), struct.pack("<Q", 2**63)]
    packed = zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED)
    with packed, packed.open("plan.json", "w") as member:
        for _ in range(512):
            member.write(b"[" * (1 << 20))
    with closing(sqlite3.connect(folder / "run.prunelab")) as database:
        (found,) = database.execute("SELECT json FROM event WHERE seq = 0").fetchone()
    wide = json.dumps({**json.loads(found), "widths": {"conv1": MANY}})
    path = rewritten(folder, "event", 0, wide)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in heads:
        claims.write_bytes(data + bytes(64))
        with pytest.raises(PruneLabError):
            pl.load_pruned(Wired, claims)
    with pytest.raises(PruneLabError, match="larger than"), handin.opened(bomb) as opened_bomb:
        opened_bomb.plan()
    for look in (lambda: looked_at(path), lambda: pl.submit(path, folder / "x.zip")):
        with pytest.raises(PruneLabError):
            look()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 256 << 10  # KiB


# ---------------------------------------------------------------- names

NAMES = (
    "<img src=x onerror=alert(1)>",
    "a|b\n# c",
    '"; raise SystemExit(3) #',
    "'; raise SystemExit(3) #",
    "=1+1",
    "]]>&amp;",
    "`x`",
)


class Named(nn.Module):
    """Layers whose names mean something in other languages."""

    def __init__(self) -> None:
        super().__init__()
        for place, name in enumerate(NAMES):
            self.add_module(name, nn.Conv2d(4 if place else 1, 4, 3, padding=1))
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for name in NAMES:
            x = torch.relu(self.get_submodule(name)(x))
        return self.fc(x.mean((2, 3)))


Named.__name__ = Named.__qualname__ = NAMES[0]


class Tags(HTMLParser):
    """The tags of a page, and the handlers in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.handlers: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.add(tag)
        self.handlers |= {name for name, _ in attrs if name.startswith("on")}


def test_names_of_a_stranger_are_text_in_every_page_and_program(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = {"path": tmp_path / "x.prunelab", "repair": "bn"}
    made = pl.Session(Named().eval(), DATA, pl.Magnitude(), **given)
    made.propose()
    made.approve()
    made.note(" ".join(NAMES))
    for name in NAMES:
        made.answer(name, name)
    made.propose(drop={NAMES[1]: [made.graph[NAMES[1]].units[0]]})
    made.reject(NAMES[2])
    made.propose()
    pages = [
        pl.figures.report(made.ledger),
        history_words.history(made.state, made.ledger),
    ]
    for page in pages:
        tags = Tags(page)
        assert "img" not in tags.found and not tags.handlers
    script = made.export(tmp_path / "run.py").read_text()
    for node in ast.walk(ast.parse(script)):
        assert not (isinstance(node, ast.Raise) and "'SystemExit'" in ast.dump(node))
    made.export(tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "<img" not in card
    assert "\n# c" not in card
    assert bits(pl.load_pruned(Named, tmp_path / "folder")) == bits(made.model)


BAD = '"""\nraise SystemExit(3)\n"""\\'


@pytest.mark.parametrize(
    "change",
    [
        {"network": BAD},
        {"method": BAD},
        {"parameters": {"x=1)\nraise SystemExit(3)\n(": 1, "lambda": BAD, "ok": [BAD]}},
        {"metrics": {BAD: 0.5, "accuracy": 0.1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_script_holds_nothing_of_a_strangers_file_but_text(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    with closing(sqlite3.connect(folder / "run.prunelab")) as database:
        (found,) = database.execute("SELECT json FROM event WHERE seq = 0").fetchone()
    path = rewritten(folder, "event", 0, json.dumps({**json.loads(found), **change}))
    made = opened(path, False, pl.Magnitude())
    with made.tuning(f"me\nraise SystemExit(3)\n{BAD}' + 1"):
        pass
    script = made.export(tmp_path / "run.py").read_text()
    raised = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Raise)]
    assert not any("'SystemExit'" in ast.dump(node) for node in raised)
