"""The script that repeats a session, verb by verb."""

from __future__ import annotations

from keyword import iskeyword
from typing import TYPE_CHECKING, Any

from prunelab.data import zoo
from prunelab.data.named import LOADERS
from prunelab.errors import InvalidValue
from prunelab.ledger.events import Approved, Proposed, Tuned
from prunelab.session.replay import decisions, settings_of

if TYPE_CHECKING:
    from prunelab.session.session import Session


def to_script(session: Session) -> str:
    """A Python script that replays this session verb by verb."""
    began = session.state.began
    current = _method_text(began.method, dict(began.parameters))
    given = ", ".join(f"{name}={value!r}" for name, value in settings_of(began).items())
    lines = [
        f'"""Replays a prunelab session on a {_quoted(began.network)}: '
        f"{_quoted(session.state.line())}."
    ]
    tunes = [event for event in session.ledger if isinstance(event, Tuned) and event.unlike()]
    if tunes:
        lines += ["", "Not bitwise, so that what follows may differ from the record:"]
        lines += [f"- event {event.seq}: {_quoted(event.unlike())}." for event in tunes]
    lines[-1] += '\n"""' if tunes else '"""'
    lines += [
        "",
        "import sys",
        "",
        "import prunelab as pl",
        "from prunelab.cli import replay as program",
        "",
        *_decisions_text(session),
        "",
        "",
        "def begin(model, data, **more):",
        f"    return pl.Session(model, data, method={current},",
        f"        {given}, **more)",
        "",
        "",
        "def replay(model, data, **more):",
        "    session = begin(model, data, **more)",
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
            if event.given and event.move is not None:
                goal = f"drop={ {name: list(units) for name, units in event.move.drop.items()} }"
            lines.append(f"    session.propose({goal})")
        else:
            lines += [f"    {line}" for line in event.script()]
    lines += [
        "    return session",
        "",
        "",
        'if __name__ == "__main__":',
        f"    sys.exit(program.script(begin, DECISIONS, replay, {began.fingerprint!r}"
        f"{_sources_text(session)}))",
    ]
    return "\n".join(lines) + "\n"


def _decisions_text(session: Session) -> list[str]:
    """The decisions on the way to the present network, to be repeated on other data."""
    try:
        found = [f"    {decision!r}," for decision in decisions(session.ledger)]
    except InvalidValue as error:
        return [f"DECISIONS = None  # {' '.join(str(error).split())}"]
    return ["DECISIONS = [", *found, "]"]


def _sources_text(session: Session) -> str:
    """The names of the network and of the data, where they are prunelab's own."""
    network, data = type(session._evaluator.base), getattr(session.data, "name", "")
    model = network.__name__.lower() if network.__module__ == zoo.__name__ else None
    named = (name for name in LOADERS if data.lower().startswith(name))
    known = {"model": model, "data": next(named, None)}
    return "".join(f", {name}={value!r}" for name, value in known.items() if value)


def _method_text(name: str, parameters: dict[str, Any]) -> str:
    names = {key for key in parameters if key.isidentifier() and not iskeyword(key)}
    given = ", ".join(
        f"{key}={value!r}" if key in names else f"**{{{key!r}: {value!r}}}"
        for key, value in parameters.items()
    )
    return f"pl.make_method({name!r}{', ' + given if given else ''})"


def _quoted(text: str) -> str:
    """A text, which may come from a stranger's file, as a part of a docstring on one line."""
    return " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"')
