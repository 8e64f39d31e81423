"""`prunelab replay`, and what an exported script does when it is run: also under `torchrun`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunelab.cli import doctor
from prunelab.cli.sources import data_of, model_of, summary
from prunelab.errors import InvalidValue, PruneLabError

if TYPE_CHECKING:
    from prunelab.session.session import Session


def add(commands: Any) -> None:
    """Add the command to those of the program."""
    parser = commands.add_parser("replay", help="repeat a session's decisions on other data")
    parser.add_argument("session", type=Path, help="the session's file, run.prunelab")
    _arguments(parser)
    parser.set_defaults(run=_replay)


def script(
    begin: Callable[..., Session],
    decisions: Any,
    replay: Callable[..., Session],
    fingerprint: str,
    **known: str,
) -> int:
    """Run an exported script as a program; returns its exit status.

    Parameters
    ----------
    begin
        `begin(model, data, **more)` begins the session.
    decisions
        What `repeat` takes; None where only `replay` can go on.
    replay
        Does all that the session did, searching again.
    fingerprint
        That of the network that the session began with; another one is told.
    known
        The defaults of --model and --data.
    """
    parser = argparse.ArgumentParser(description="Repeat a prunelab session's decisions.")
    _arguments(parser, **known)

    def repeated(options: argparse.Namespace, model: Any, data: Any, **more: Any) -> Session:
        from prunelab.session.replay import repeat

        if options.redecide:
            return replay(model, data, **more)
        if decisions is None:
            raise InvalidValue("A tune by a trainer of your own: put it in replay, --redecide.")
        session = begin(model, data, resume="path" in more, **more)
        if session.state.began.fingerprint != fingerprint:
            said = "prunelab: these are not the weights that the recorded session began with."
            print(said, file=sys.stderr)
        return repeat(session, decisions)

    try:
        return _run(parser.parse_args(), repeated)
    except PruneLabError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _arguments(parser: argparse.ArgumentParser, **known: str) -> None:
    for name, what in (("model", "of the zoo, or module:function"), ("data", "or module:function")):
        default = known.get(name)
        shown = f"{what} (default: {default})" if default else what
        parser.add_argument(f"--{name}", default=default, required=default is None, help=shown)
    parser.add_argument("--root", type=Path, help="where a named set lies")
    parser.add_argument(
        "--redecide", action="store_true", help="search again, with the same methods and targets"
    )
    parser.add_argument("--path", type=Path, help="the new session's file, which is resumed")
    parser.add_argument("--device", help="where the network runs, such as cuda")
    parser.add_argument(
        "--out", type=Path, default=Path("replayed.safetensors"), help="what export writes"
    )


def _replay(options: argparse.Namespace) -> int:
    doctor.require_core()
    import prunelab as pl
    from prunelab.ledger.ledger import Ledger
    from prunelab.ledger.store import FileStore
    from prunelab.session.replay import decisions, original_of, repeat, settings_of

    ledger = Ledger(FileStore.open(options.session))
    if not len(ledger):
        raise InvalidValue(f"{options.session} holds no events, so there is nothing to replay.")

    def repeated(_: argparse.Namespace, model: Any, data: Any, **more: Any) -> Session:
        began = ledger.state.began
        method = pl.make_method(began.method, **dict(began.parameters))
        model = original_of(ledger, model, options.session)
        session = pl.Session(
            model, data, method, resume="path" in more, **settings_of(began), **more
        )
        return repeat(session, decisions(ledger, options.redecide))

    return _run(options, repeated)


def _run(options: argparse.Namespace, repeated: Callable[..., Session]) -> int:
    from prunelab.loops.ranks import rank

    data = data_of(options)
    model = model_of(options, data)
    more = {name: getattr(options, name) for name in ("path", "device") if getattr(options, name)}
    session = repeated(options, model, data, **more)
    before, after = session.evaluate(network=session.original()), session.evaluate()
    session.export(options.out)
    if rank() == 0:
        print(summary(session, session.original(), before, after))
        print(f"\nwritten: {options.out}")
    return 0
