"""The `prunelab` program: `lab` opens the tutorials, `prune` prunes, `doctor` reports.

`submit` and `grade` are in `classroom`. Imports torch only when pruning, so that help and doctor
are fast.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from prunelab.cli import classroom, doctor, replay
from prunelab.cli.sources import data_of, model_of, summary
from prunelab.cli.terminal import Terminal
from prunelab.errors import InvalidValue, MissingPackage, PruneLabError
from prunelab.ledger.words import at_chance, stopped
from prunelab.values.machine import cores


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns 0: done, 2: wrong usage, 1: an error, shown on stderr.

    An error is a PruneLabError, or a network that was pruned and written but is at chance or,
    because of the default floor, short of the target.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except PruneLabError as error:
        print(f"prunelab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prunelab: stopped; nothing was written.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prunelab",
        description="Prune a convolutional network move by move. Without a command: doctor.",
    )
    parser.set_defaults(run=_doctor, environment=False)
    commands = parser.add_subparsers(title="commands", metavar="")

    lab = commands.add_parser("lab", help="open JupyterLab at the first tutorial")
    lab.add_argument("--dir", type=Path, help="the folder for your copies of the tutorials")
    lab.add_argument("--no-browser", action="store_true", help="print the address instead")
    lab.add_argument("jupyter", nargs="*", metavar="-- ARGS", help="handed on to JupyterLab")
    lab.set_defaults(run=_lab)

    prune = commands.add_parser("prune", help="prune a network in the terminal")
    prune.add_argument("--model", default="resnet20", help="of the zoo, or module:function")
    prune.add_argument("--data", default="fashion", help="a named set, or module:function")
    prune.add_argument("--root", type=Path, help="where a named set lies")
    prune.add_argument("--method", default="aofp", help="how channels are chosen")
    prune.add_argument("--theta", type=float, help="AOFP: the largest damage of a unit")
    prune.add_argument(
        "--target-macs", type=float, default=0.5, help="share of the MACs to keep, or a number"
    )
    prune.add_argument(
        "--min-accuracy",
        type=_least,
        default="auto",
        metavar="auto|none|SHARE",
        help="stop before validation falls below, as in 0.9; auto: halfway from chance to the "
        "network's own",
    )
    prune.add_argument("--repair", choices=("lstsq", "rescale", "bn", "none"), default="lstsq")
    prune.add_argument(
        "--tune",
        type=int,
        metavar="STEPS",
        help="training batches at the end (400 when not given); 0: none",
    )
    prune.add_argument("--seed", type=int, default=0)
    prune.add_argument("--out", type=Path, help="the smaller network, as .safetensors")
    prune.set_defaults(run=_prune)

    classroom.add(commands)
    replay.add(commands)

    examine = commands.add_parser("doctor", help="what is installed, what the machine offers")
    examine.add_argument(
        "--environment", action="store_true", help="and torch's own report, for a bug report"
    )
    examine.set_defaults(run=_doctor)
    parser.add_argument("--version", action="store_const", const=_version, dest="run")
    return parser


def _version(_: argparse.Namespace) -> int:
    from prunelab import __version__

    print(f"prunelab {__version__}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    findings = doctor.examine()
    print(doctor.report(findings))
    if options.environment:
        print(f"\n{doctor.environment()}")
    return int(any(finding.fatal for finding in findings))


# ---------------------------------------------------------------- lab


def _lab(options: argparse.Namespace) -> int:
    if needed := doctor.missing(doctor.WIDGETS):
        raise MissingPackage(f'{doctor.lack(needed)}. Install it all: pip install "prunelab[lab]".')
    folder, said = tutorials(options.dir)
    first = min(path.name for path in folder.glob("*.ipynb"))
    command = [
        *(sys.executable, "-m", "jupyterlab"),
        f"--ServerApp.root_dir={folder}",
        f"--LabApp.default_url=/lab/tree/{first}",
        *(["--no-browser"] if options.no_browser else []),
    ]
    if getattr(os, "geteuid", lambda: 1)() == 0:
        command.append("--allow-root")  # in a container root is often the only user
        said.append("JupyterLab runs as root, as you do.")
    print("\n".join([*said, f"Tutorials are in {folder}; Ctrl-C ends."]), flush=True)
    # JupyterLab reads default settings from there; those that a person has set count before them
    places = [str(resources.files("prunelab") / "assets" / "jupyter")]
    places += filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(places)
    return _become([*command, *options.jupyter], folder)


def _become(command: list[str], folder: Path) -> int:
    """Replace this process by `command`, so that a signal reaches it."""
    if os.name == "nt":  # no exec on Windows
        return subprocess.call(command, cwd=folder)
    os.chdir(folder)
    os.execv(command[0], command)


def tutorials(folder: Path | None = None) -> tuple[Path, list[str]]:
    """The folder with copies of the tutorials to work in, and messages about it.

    An existing copy is never overwritten, and the shipped tutorials are never opened themselves.
    """
    checkout = Path(__file__).resolve().parents[2]
    inside = resources.files("prunelab") / "assets" / "notebooks"
    source: Any = checkout / "notebooks" if (checkout / "pyproject.toml").is_file() else inside
    paths = source.iterdir() if source.is_dir() else ()
    shipped = [path for path in paths if path.name.endswith(".ipynb")]
    if not shipped:
        raise PruneLabError(
            "This installation has no tutorial notebooks. Install prunelab from a wheel or a "
            "complete checkout."
        )
    if folder is None:
        home = Path.cwd() if os.access(Path.cwd(), os.W_OK) else Path.home()
        folder = home / "prunelab-notebooks"
    said = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for notebook in shipped:
            copy, text = folder / notebook.name, notebook.read_bytes()
            if not copy.exists():
                copy.write_bytes(text)
            elif copy.read_bytes() != text:
                said.append(f"Kept your own {copy.name}; rename it to get the shipped one.")
    except OSError as error:
        raise PruneLabError(
            f"The tutorials cannot be copied to {folder}: {error.strerror}. Name a folder that "
            "you may write to: prunelab lab --dir DIR."
        ) from None
    return folder.resolve(), said


# ---------------------------------------------------------------- prune


def _prune(options: argparse.Namespace) -> int:
    out = options.out or Path(f"{options.model.split(':')[-1]}-pruned.safetensors")
    if out.suffix != ".safetensors":
        raise InvalidValue(f"--out {out}: the network is written as .safetensors; name it so.")
    if not out.resolve().parent.is_dir():
        raise InvalidValue(f"--out {out}: there is no folder {out.resolve().parent}. Create it.")
    if options.tune is not None and options.tune < 0:
        raise InvalidValue(f"--tune {options.tune}: give a number of batches, 0 for none.")
    if options.theta is not None and options.method != "aofp":
        raise InvalidValue(f"--theta is AOFP's; {options.method} has none. Leave it out.")
    doctor.require_core()

    import torch

    import prunelab as pl

    # torch counts the machine's cores, a container may have fewer.
    torch.set_num_threads(max(1, min(torch.get_num_threads(), int(cores()))))
    terminal = Terminal(sys.stderr)
    data = data_of(options)
    model = model_of(options, data)
    theta = {} if options.theta is None else {"theta": options.theta}
    method = pl.make_method(options.method, **theta)
    repair = None if options.repair == "none" else options.repair
    session = pl.Session(model, data, method=method, repair=repair, seed=options.seed)
    session.listen(terminal)
    try:
        terminal.line(str(data))
        terminal.line(f"{options.model}: {session.state.line()}")
        before = session.evaluate()
        session.run(target_macs=options.target_macs, min_accuracy=options.min_accuracy)
        if options.tune != 0:
            session.tune(**({} if options.tune is None else {"steps": options.tune}))
        after = session.evaluate()
        terminal.clear()
        session.export(out)
    finally:
        terminal.clear()
    print(summary(session, model, before, after))
    print(f"\nwritten: {out}")
    why = [] if options.min_accuracy != "auto" else [*filter(None, map(stopped, session.ledger))]
    if ruined := at_chance(session.state):
        why.append(ruined)
    for line in why:
        print(f"prunelab: {line}", file=sys.stderr)
    return int(bool(why))


def _least(given: str) -> float | str | None:
    """The value of --min-accuracy."""
    if given in ("auto", "none"):
        return "auto" if given == "auto" else None
    try:
        return float(given)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"invalid value {given!r}: give a share, as in 0.9, auto or none"
        ) from None
