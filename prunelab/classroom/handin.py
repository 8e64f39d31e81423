"""A hand-in: one small zip with a session's ledger, plan and weights, and no executable code.

`ledger.jsonl` holds one event per line, `plan.json` the kept units, `weights.safetensors` the
weights now, and `step-N.safetensors` the weights after event N, if that event decided a prediction.
Reading is defensive: members are read by name and never unpacked to disk, and each has a limit on
its size.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunelab.errors import HandInError, InvalidValue, PruneLabError
from prunelab.ledger.events import Event, Step
from prunelab.ledger.ledger import Ledger
from prunelab.ledger.state import State
from prunelab.ledger.store import FileStore
from prunelab.values import plan_json, revive, thaw
from prunelab.values.given import as_annotated

LEDGER, PLAN, WEIGHTS = "ledger.jsonl", "plan.json", "weights.safetensors"
TEXT = 16 << 20  # largest size of ledger or plan, in bytes
DIRECTORY = 1 << 16  # largest size of the zip's central directory, in bytes
USUAL = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
EVENTS = 2000
WIDEST = 1 << 24  # channels of a group
STEPS = 100


@as_annotated
def submit(source: Any, out: str | Path | None = None) -> Path:
    """Write the hand-in of a session, and return its path.

    `source` is a session file, which is only read, or a `Session`. `out` defaults to run.zip for
    run.prunelab; an older hand-in there is replaced. The same session always gives the same bytes.

    Raises `SessionFileError` for a file that is not a session, `HandInError` for a session that is
    too long to be graded, `PruneLabError` where the zip cannot be written.
    """
    if isinstance(source, str | os.PathLike):
        ledger = Ledger(FileStore.open(source))
        path = Path(source).with_suffix(".zip") if out is None else Path(out)
    elif hasattr(source, "ledger"):
        ledger = source.ledger
        path = Path("hand-in.zip" if out is None else out)
    else:
        raise InvalidValue(f"submit takes a session file or a Session, not {source!r:.80}.")
    if not len(ledger):
        raise HandInError(f"{source} holds no events; there is nothing to hand in.")
    from safetensors.torch import save

    state = ledger.state
    if any(not 0 < width <= WIDEST for width in state.began.widths.values()):
        raise HandInError(f"{source} tells of a group without channels, or of more than {WIDEST:,}")
    full = {name: tuple(range(width)) for name, width in state.began.widths.items()}
    kept = full if state.now.kept is None else state.now.kept
    parts = {
        LEDGER: "".join(json.dumps(thaw(event)) + "\n" for event in ledger).encode(),
        PLAN: plan_json(kept, state.now.factors).encode(),
        WEIGHTS: save(ledger.weights(state.now.event.weights)),
    }
    for seq in deciding_steps(state):
        parts[step(seq)] = save(ledger.weights(state.point(seq).event.weights))
    _check_length(len(ledger), parts)
    part = path.with_name(path.name + ".part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in parts.items():
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        part.replace(path)
    except OSError as error:
        raise PruneLabError(
            f"{path} cannot be written: {error.strerror}. Name another with --out."
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return path


def step(seq: int) -> str:
    """The name of the member with the weights after event `seq`."""
    return f"step-{seq}.safetensors"


def deciding_steps(state: State) -> list[int]:
    """The steps, other than the last, that decided predictions of metrics."""
    steps = {p.settled for p in state.predictions} - {state.head}
    return [point.seq for point in state.points[1:] if point.seq in steps]


class Archive:
    """An open hand-in: reads members by name, up to a limit of their size."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def read(self, name: str, most: int) -> bytes:
        """The bytes of member `name`; raises `HandInError` if there are more than `most`."""
        try:
            info = self._archive.getinfo(name)
        except KeyError:
            raise HandInError(f"it has no {name}") from None
        if info.flag_bits & 1 or info.compress_type not in USUAL:
            raise HandInError(f"{name} is encrypted or packed in an unusual way")
        with _zip_errors(), self._archive.open(info) as member:
            data = member.read(most + 1)
        if len(data) > most:
            raise HandInError(f"{name} is larger than the {most:,} bytes that it may have")
        return data

    def plan(self) -> str:
        """The text of the plan."""
        return self.read(PLAN, TEXT).decode()

    def events(self) -> list[Event]:
        """The events of the ledger, in order, not yet audited."""
        lines = self.read(LEDGER, TEXT).decode().rstrip("\n").split("\n")
        if len(lines) > EVENTS:
            raise HandInError(f"the ledger has more than {EVENTS:,} events")
        events = []
        for number, line in enumerate(lines):
            event = revive(json.loads(line))
            if not isinstance(event, Event) or type(event) in (Event, Step):
                raise HandInError(f"line {number + 1} of the ledger is not an event")
            if type(event.seq) is not int or event.seq != number:
                raise HandInError(f"event {number} of the ledger is missing")
            events.append(event)
        return events


@contextmanager
def opened(path: str | Path) -> Iterator[Archive]:
    """Open the hand-in at `path`; errors of the zip are raised as `HandInError`."""
    with _zip_errors():
        _check_directory(Path(path))
        archive = zipfile.ZipFile(path)
    with archive:
        names = archive.namelist()
        if len(names) != len(set(names)):
            raise HandInError("it holds a name twice")
        odd = [n for n in names if n not in (LEDGER, PLAN, WEIGHTS) and not _is_step(n)]
        if odd:
            raise HandInError(f"it holds {odd[0]!r}, which is not part of a hand-in")
        yield Archive(archive)


@contextmanager
def _zip_errors() -> Iterator[None]:
    """Raise the errors of reading a zip as `HandInError`."""
    try:
        yield
    except FileNotFoundError:
        raise HandInError("there is no such file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise HandInError(f"it is not a zip file, or a damaged one ({error})") from None
    except OSError as error:
        raise HandInError(f"it cannot be read: {error.strerror}") from None


def _check_directory(path: Path) -> None:
    """Raise for a zip with a huge central directory, which `ZipFile` reads into memory.

    `submit` writes neither a comment nor the 64-bit records that could hide a longer directory.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 42))
        end = file.read().rjust(42, b"\0")
    if end[20:24] != b"PK\x05\x06" or end[40:] != b"\0\0":
        raise HandInError("it is not a zip file that submit writes")
    count, size = struct.unpack("<HL", end[30:36])
    if end[:4] == b"PK\x06\x07" or count > STEPS + 3 or size > DIRECTORY:
        raise HandInError(f"it holds more than {STEPS + 3} files")


def _is_step(name: str) -> bool:
    number = name.removeprefix("step-").removesuffix(".safetensors")
    return number.isascii() and number.isdigit() and len(number) < 8 and name == step(int(number))


def _check_length(events: int, parts: dict[str, bytes]) -> None:
    large = max(len(parts[LEDGER]), len(parts[PLAN])) > TEXT
    if events > EVENTS or len(parts) > STEPS + 3 or large:
        raise HandInError(
            f"This session has {events:,} events and a ledger of {len(parts[LEDGER]):,} bytes; a "
            f"hand-in has at most {EVENTS:,} events, {STEPS} predictions and {TEXT:,} bytes. Begin "
            "a new session and hand that in."
        )
