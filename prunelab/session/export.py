"""Exports of a session: weights with plan and card, programs, the plan, a script, a report.

Files are safetensors and JSON; nothing read from disk is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from prunelab.data.tensors import tensors_of
from prunelab.errors import (
    BadModel,
    IllegalPlan,
    InvalidValue,
    MissingPackage,
    PruneLabError,
    SessionFileError,
)
from prunelab.evidence.fingerprint import fingerprint
from prunelab.graph.modules.integers import set_integers
from prunelab.graph.modules.module_attributes import set_width
from prunelab.graph.surgery.factorisation import factorised, plain_factors
from prunelab.graph.surgery.held_tensors import checked_network
from prunelab.graph.surgery.network_state import NetworkState, captured, restore, unwrapped
from prunelab.graph.trace import copy_of
from prunelab.ledger.ledger import understood
from prunelab.loops.batch import device_of
from prunelab.session.portable import SIZES, Program, as_onnx, as_pt2, model_card, outputs_of
from prunelab.session.script import to_script
from prunelab.values import Cost, FrozenMap, Units, thaw
from prunelab.values.given import as_annotated

if TYPE_CHECKING:
    from prunelab.session.session import Session

FORMAT = "1"


def export(session: Session, network: nn.Module, path: Path) -> Path:
    """Write the kind of file that the suffix of `path` stands for; returns the path.

    `network` is the session's current one. A file that is there already is replaced once the new
    one is complete and was read again.

    Raises `InvalidValue` for another suffix, `PruneLabError` where it cannot be written,
    `MissingPackage` where that takes a package that is not installed.
    """
    writers: dict[str, Callable[[], Any]] = {
        ".safetensors": lambda: _write_network(session, network, path),
        ".onnx": lambda: _write_program(session, network, path, as_onnx),
        ".pt2": lambda: _write_program(session, network, path, as_pt2),
        "": lambda: _write_folder(session, network, path),
        ".json": lambda: _write({path: (session.plan.to_json() + "\n").encode()}),
        ".py": lambda: _write({path: to_script(session).encode()}),
        ".html": lambda: _write({path: _report(session).encode()}),
    }
    if path.suffix not in writers:
        raise InvalidValue(
            f"export writes {', '.join(filter(None, writers))}, or a folder where there is no "
            f"suffix; not {path.name!r}."
        )
    if not path.parent.is_dir():
        raise PruneLabError(f"There is no folder {path.parent}; make it first.")
    writers[path.suffix]()
    return path


def load_pruned(factory: Callable[[], nn.Module], path: str | Path) -> nn.Module:
    """Load the pruned network in `path` into the network that `factory()` builds.

    `factory` makes the unpruned architecture; its own weights do not matter. What it gives comes
    back in evaluation mode, with the exported tensors in memory of its own, on its devices. Raises
    `InvalidValue` for what is no function, `SessionFileError` for a file that is damaged or
    foreign, `BadModel` for another architecture. `path` may be the folder of an export.
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        given = type(factory).__name__
        raise InvalidValue(
            f"load_pruned takes a function that builds the unpruned network, not a {given}: "
            "load_pruned(lambda: Net(...), path), with the arguments that the network was built "
            "with."
        )
    metadata, tensors = _read(path)
    if "prunelab" not in metadata:
        raise SessionFileError(
            f"{path} was not exported by prunelab (its metadata has no plan). Load it with "
            "safetensors.torch.load_file instead."
        )
    if metadata["prunelab"] != FORMAT:
        raise SessionFileError(
            f"{path} has format {metadata['prunelab']}, this prunelab reads {FORMAT}. Upgrade."
        )
    try:
        state = NetworkState.read(tensors, metadata.get("state", "{}"))
        norms, edits = (
            {name: int(value) for name, value in json.loads(metadata.get(key, "{}")).items()}
            for key in ("norms", "edits")
        )
        factors = dict(json.loads(metadata.get("factors", "{}")))
    except (
        ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError,
    ) as error:  # fmt: skip
        raise SessionFileError(f"{path} is damaged: {error}. Export it again.") from None
    model = factory()
    checked_network(model, "What factory() gives")
    try:
        with understood(path):
            if factors:
                model = factorised(model, factors, lambda name, w: plain_factors(w, factors[name]))
            restore(model, state, resize=True)
    except (BadModel, IllegalPlan) as error:
        raise BadModel(
            f"The file holds another architecture than factory() builds: {error}"
        ) from None
    modules = {unwrapped(name): module for name, module in model.named_modules()}
    for name, width in norms.items():
        if unwrapped(name) in modules:
            set_width(modules[unwrapped(name)], width)
    _rewrite(model, edits)
    return model.eval()


def _rewrite(model: nn.Module, edits: Mapping[str, int]) -> None:
    """Give the attributes of a pruned network their values."""
    names = {unwrapped(name): name for name, _ in model.named_modules()}
    for edit, value in edits.items():
        path, _, key = edit.rpartition(".")
        try:
            set_integers(model, {f"{names[unwrapped(path)]}.{key}": value})
        except (KeyError, IndexError, TypeError, ValueError):
            raise BadModel(
                f"The file holds another architecture than factory() builds: it rewrites {edit}, "
                "which the built network does not have."
            ) from None


@as_annotated
def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and tensors of a safetensors file, or of that in the folder of an export."""
    if Path(path).is_dir():
        path = Path(path) / "model.safetensors"
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except FileNotFoundError:
        raise SessionFileError(f"There is no file {path}.") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise SessionFileError(
            f"{path} cannot be read: {error}. It is damaged or not safetensors; export again."
        ) from None


def _write_network(session: Session, network: nn.Module, path: Path) -> None:
    """Write weights and plan, load them again and compare; then write the card."""
    data = _weights(session, network)
    card = _json(_card(session, data))
    _write({path: data, path.with_suffix(".card.json"): card}, _weights_check(session, network))


def _write_folder(session: Session, network: nn.Module, path: Path) -> None:
    """Write the folder that `huggingface_hub.upload_folder` takes."""
    data = _weights(session, network)
    card = _card(session, data)
    files = {
        "model.safetensors": data,
        "config.json": _json(card),
        "plan.json": (session.plan.to_json() + "\n").encode(),
        "README.md": model_card(card).encode(),
    }
    made = not path.exists()
    there = {item.name for item in path.iterdir()} if path.is_dir() else set()
    if others := sorted(there - files.keys()):
        raise PruneLabError(
            f"{path} holds other files ({others[0]}), so nothing was written there. Name a new "
            "folder, or a file with a suffix."
        )
    try:
        path.mkdir(exist_ok=True)
        _write(
            {path / name: data for name, data in files.items()}, _weights_check(session, network)
        )
    except OSError as error:
        raise PruneLabError(f"{path} cannot be made a folder: {error.strerror}.") from None
    finally:
        if made and path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _write_program(
    session: Session, network: nn.Module, path: Path, convert: Callable[..., Program]
) -> None:
    """Write a program that runs without this network's code, and compare its outputs."""
    network = copy_of(network).eval().cpu()
    call = session._evaluator.call_of(network)
    program = convert(network, call)

    def check(part: Path) -> None:
        run = program.opened(part.read_bytes())
        for size in SIZES:
            now = call.of(size)
            want, got = outputs_of(network, now), run(*now.args, **now.kwargs)
            if len(want) != len(got) or not all(map(_close, want, got)):
                raise PruneLabError(
                    f"The written {path.suffix} gives other outputs than the network on a batch of "
                    f"{size}, so nothing was written. Export .safetensors instead."
                )

    _write({path: program.data}, check)


def _weights(session: Session, network: nn.Module) -> bytes:
    """Weights and plan as safetensors."""
    state = captured(network)
    metadata = {
        "prunelab": FORMAT,
        "plan": session.plan.to_json(),
        "network": session.state.began.network,
        "fingerprint": session.state.now.event.fingerprint,
        "norms": json.dumps({name: len(units) for name, units in session.graph.bare.items()}),
        "state": json.dumps(state.about),
        "factors": json.dumps(dict(session.graph.factors)),
        "edits": json.dumps(_edits(session)),
    }
    plain = torch.contiguous_format
    tensors = {name: t.cpu().clone(memory_format=plain) for name, t in state.tensors.items()}
    return save_tensors(tensors, metadata)


def _edits(session: Session) -> dict[str, int]:
    """The attributes that are rewritten in the session's network, with their values."""
    return {name: len(units) for name, units in session.graph.edits.items()}


def _weights_check(session: Session, network: nn.Module) -> Callable[[Path], None]:
    return lambda part: _check_same(session, network, load_pruned(session.original, part))


def _json(card: Mapping[str, Any]) -> bytes:
    return (json.dumps(card, indent=2) + "\n").encode()


def _check_same(session: Session, network: nn.Module, again: nn.Module) -> None:
    """Raise unless `again` has the state of `network`, and its outputs up to rounding."""
    again = again.to(device_of(network))
    want, got = (tensors_of(session.outputs(net)) for net in (network, again))
    same = fingerprint(again) == fingerprint(network) and len(want) == len(got)
    if not same or not all(map(_close, want, got)):
        raise PruneLabError(
            "The written network does not give the session's outputs when it is opened again, so "
            "nothing was written. Does the architecture hold state that is no parameter, buffer "
            "or extra state?"
        )


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs differ by rounding at most.

    Equal weights may be summed in another order where they lie in memory in another way, which
    changes the last digits of an output; other weights change the first. So half of the digits
    must be those of the largest output.
    """
    if a.shape != b.shape or not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    tolerance = torch.finfo(a.dtype).eps ** 0.5
    largest = float(b[torch.isfinite(b)].abs().max()) if torch.isfinite(b).any() else 0.0
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def _card(session: Session, data: bytes) -> dict[str, Any]:
    state = session.state
    original = session.original()
    before, after = session.latency(original), session.latency()
    return {
        "prunelab": FORMAT,
        "network": state.began.network,
        "method": state.proposed.method if state.proposed else None,
        "moves": state.moves,
        "widths": {
            group.name: [group.width, len(session.plan.kept[group.name])]
            for group in session.graph.groups
            if group.prunable
        },
        "validation": {"before": thaw(state.base.metrics), "after": thaw(state.now.metrics)},
        "test": {
            "before": session.evaluate(network=original),
            "after": session.evaluate(),
        },
        "rewritten": _edits(session),
        "never_ran": list(session.graph.unseen),
        "cost": {
            "before": thaw(state.base.cost),
            "after": thaw(state.now.cost),
        },
        "latency_seconds": {
            "before": before.median,
            "after": after.median,
            "batch": after.inputs,
        },
        "versions": {
            **thaw(state.began.versions),
            "python": platform.python_version(),
            "platform": platform.machine(),
        },
        "sha256": hashlib.sha256(data).hexdigest(),
        "fingerprint": {
            "before": state.base.event.fingerprint,
            "after": state.now.event.fingerprint,
        },
    }


def _write(files: Mapping[Path, bytes], check: Callable[[Path], None] = lambda part: None) -> None:
    """Write all files or none; `check` is given the first before it replaces an older one."""
    parts = {path: path.with_name(path.name + ".part") for path in files}
    try:
        for path, data in files.items():
            if path.is_dir():
                raise PruneLabError(f"{path} is a folder, so it cannot be written. Choose another.")
            parts[path].write_bytes(data)
        check(next(iter(parts.values())))
        for path, part in parts.items():
            part.replace(path)
    except OSError as error:
        raise PruneLabError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _report(session: Session) -> str:
    try:
        from prunelab.figures.report import report
        from prunelab.session.report_what_if import what_if
    except ImportError as error:
        raise MissingPackage(
            f"A report needs plotly, and {error.name} is missing: pip install 'prunelab[lab]'."
        ) from error
    layers = {group.name: group.producers for group in session.graph.groups if group.prunable}

    def costs(kept: FrozenMap[Units] | None, factors: FrozenMap[str]) -> dict[str, Cost]:
        return session.costs(session._evaluator.plan(kept, factors))

    return report(session.ledger, layers, costs, what_if(session))
