"""The script that repeats a session, verb by verb."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunelab.ledger.events import Approved, Proposed, Tuned

if TYPE_CHECKING:
    from prunelab.session.session import Session


def to_script(session: Session) -> str:
    """A Python script that replays this session verb by verb."""
    began = session.state.began
    current = _method_text(began.method, dict(began.parameters))
    kept = [name for name in ("repair", "repair_images") if name in began.settings]
    kept += ["freeze"] * bool(began.settings.get("freeze"))
    kept += ["round_to"] * (began.settings.get("round_to", 1) > 1)
    settings = ", ".join(f"{name}={began.settings[name]!r}" for name in kept)
    line = session.state.line().replace("\\", "\\\\").replace('"', '\\"')
    lines = [f'"""Replays a prunelab session on a {began.network}: {line}.']
    tunes = [event for event in session.ledger if isinstance(event, Tuned) and event.unlike()]
    if tunes:
        lines += ["", "Not bitwise, so that what follows may differ from the record:"]
        lines += [f"- event {event.seq}: {event.unlike()}." for event in tunes]
    lines[-1] += '\n"""' if tunes else '"""'
    lines += [
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
