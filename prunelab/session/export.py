"""Exports of a session: weights with plan and card, the plan, a script, a report.

Files are safetensors and JSON; nothing read from disk is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from safetensors.torch import save as save_tensors
from torch import nn

from prunelab.data.tensors import tensors_of
from prunelab.errors import (
    BadModel,
    InvalidValue,
    MissingPackage,
    PruneLabError,
    SessionFileError,
)
from prunelab.graph.modules.module_attributes import set_width
from prunelab.graph.surgery.editing import replace_tensors
from prunelab.ledger.events import (
    Approved,
    Proposed,
)
from prunelab.loops.batch import device_of
from prunelab.values import Cost, FrozenMap, Units, WidthPlan, thaw

if TYPE_CHECKING:
    from prunelab.session.session import Session

FORMAT = "1"


def export(session: Session, path: Path) -> Path:
    """Write the kind of file that the suffix of `path` stands for; returns the path.

    Raises `InvalidValue` for another suffix, `PruneLabError` where it cannot be written.
    """
    writers: dict[str, Callable[[Session, Path], None]] = {
        ".safetensors": _write_network,
        ".json": lambda s, p: _write_text(p, s.plan.to_json() + "\n"),
        ".py": lambda s, p: _write_text(p, to_script(s)),
        ".html": lambda s, p: _write_text(p, _report(s)),
    }
    if path.suffix not in writers:
        raise InvalidValue(
            f"export writes {', '.join(writers)} files, not {path.name!r}: weights with their "
            "plan and card, the plan, the script, or the report."
        )
    if not path.parent.is_dir():
        raise PruneLabError(f"There is no folder {path.parent}; make it first.")
    writers[path.suffix](session, path)
    return path


def load_pruned(factory: Callable[[], nn.Module], path: str | Path) -> nn.Module:
    """Load the pruned network in `path` into the network that `factory()` builds.

    `factory` makes the unpruned architecture; its own weights do not matter. Raises
    `SessionFileError` for a file that is damaged or foreign, `BadModel` for another architecture.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise SessionFileError(f"There is no file {path}.") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise SessionFileError(
            f"{path} cannot be read: {error}. It is damaged or not safetensors; export again."
        ) from None
    if "prunelab" not in metadata:
        raise SessionFileError(
            f"{path} was not exported by prunelab (its metadata has no plan). Load it with "
            "safetensors.torch.load_file instead."
        )
    if metadata["prunelab"] != FORMAT:
        raise SessionFileError(
            f"{path} has format {metadata['prunelab']}, this prunelab reads {FORMAT}. Upgrade."
        )
    model = factory()
    own = model.state_dict()
    if set(own) != set(tensors):
        odd = sorted(set(own) ^ set(tensors))[0]
        raise BadModel(f"The file holds another architecture than factory() builds: {odd} differs.")
    smaller = {}
    for name, tensor in tensors.items():
        if tensor.ndim != own[name].ndim or any(
            a > b for a, b in zip(tensor.shape, own[name].shape, strict=True)
        ):
            raise BadModel(
                f"{name} is {tuple(tensor.shape)} in the file and {tuple(own[name].shape)} in what "
                "factory() builds; a pruned network can only be smaller."
            )
        if tensor.shape != own[name].shape:
            smaller[name] = tensor.to(own[name].device, own[name].dtype)
    replace_tensors(model, smaller)
    modules = dict(model.named_modules())
    for name, width in json.loads(metadata.get("norms", "{}")).items():
        if name in modules:
            set_width(modules[name], int(width))
    model.load_state_dict(tensors)
    return model.eval()


def _write_network(session: Session, path: Path) -> None:
    """Write weights and plan, load them again and compare outputs; then write the card."""
    state = session.model.state_dict()
    metadata = {
        "prunelab": FORMAT,
        "plan": session.plan.to_json(),
        "network": session.state.began.network,
        "fingerprint": session.state.now.event.fingerprint,
        "norms": json.dumps({name: len(units) for name, units in session.graph.bare.items()}),
    }
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    data = save_tensors(tensors, metadata)
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_bytes(data)
        again = load_pruned(session.original, temporary)
        _same_outputs(session, again)
        temporary.replace(path)
    except OSError as error:
        raise PruneLabError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        temporary.unlink(missing_ok=True)
    _write_text(path.with_suffix(".card.json"), json.dumps(_card(session, data), indent=2) + "\n")


def _same_outputs(session: Session, again: nn.Module) -> None:
    again = again.to(device_of(session.model))
    want, got = (tensors_of(session.outputs(net)) for net in (session.model, again))
    if not all(torch.equal(a, b) for a, b in zip(want, got, strict=True)):
        raise PruneLabError(
            "The written network does not give the session's outputs when it is opened again; "
            "the card was not written. Does the architecture hold state outside its state_dict?"
        )


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


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PruneLabError(f"{path} cannot be written: {error.strerror}.") from None


def _report(session: Session) -> str:
    try:
        from prunelab.figures.report import report
    except ImportError as error:
        raise MissingPackage(
            f"A report needs plotly, and {error.name} is missing: pip install 'prunelab[lab]'."
        ) from error
    layers = {group.name: group.producers for group in session.graph.groups if group.prunable}
    graph = session.plan.graph
    full = WidthPlan.full(graph)

    def costs(kept: FrozenMap[Units] | None) -> dict[str, Cost]:
        return session.costs(full if kept is None else WidthPlan(kept, graph))

    return report(session.ledger, layers, costs)


# ---------------------------------------------------------------- the script


def to_script(session: Session) -> str:
    """A Python script that replays this session verb by verb."""
    began = session.state.began
    current = _method_text(began.method, dict(began.parameters))
    kept = [name for name in ("repair", "repair_images") if name in began.settings]
    settings = ", ".join(f"{name}={began.settings[name]!r}" for name in kept)
    line = session.state.line().replace("\\", "\\\\").replace('"', '\\"')
    lines = [
        f'"""Replays a prunelab session on a {began.network}: {line}."""',
        "",
        "import prunelab as pl",
        "",
        "",
        "def replay(model, data):",
        f"    session = pl.Session(model, data, method={current},",
        f"        {settings}, seed={began.seed})",
    ]
    events = list(session.ledger)
    for event, after in zip(events, [*events[1:], None], strict=True):
        if isinstance(event, Approved):
            default_repair = began.settings["repair"] is None or getattr(after, "automatic", False)
            lines.append(f"    session.approve({'' if default_repair else 'repair=False'})")
        elif isinstance(event, Proposed):
            asked = _method_text(event.method, dict(event.parameters))
            if asked != current:
                current = asked
                lines.append(f"    session.method = {current}")
            goal = f"target_macs={event.target}" if event.target is not None else ""
            lines.append(f"    session.propose({goal})")
        else:
            lines += [f"    {line}" for line in event.script()]
    lines += [
        "    return session",
        "",
        "",
        'if __name__ == "__main__":',
        "    model = ...  # the network that the session began with",
        "    data = ...  # its data, e.g. pl.data.load(...)",
        "    print(replay(model, data))",
    ]
    return "\n".join(lines) + "\n"


def _method_text(name: str, parameters: dict[str, Any]) -> str:
    given = ", ".join(f"{key}={value!r}" for key, value in parameters.items())
    return f"pl.make_method({name!r}{', ' + given if given else ''})"
