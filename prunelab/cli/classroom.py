"""The commands `submit` (session to hand-in) and `grade` (hand-ins to a table of points).

Imports torch only when grading.
"""

from __future__ import annotations

import argparse
import csv
import glob
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunelab.classroom import handin
from prunelab.classroom.rubric import Rubric
from prunelab.cli import doctor
from prunelab.cli.terminal import Terminal
from prunelab.errors import InvalidValue, PruneLabError

if TYPE_CHECKING:
    from prunelab.classroom.grading import Grade


def add(commands: Any) -> None:
    """Add both commands to the program's parser."""
    submit = commands.add_parser("submit", help="write a session as one small file, to hand in")
    submit.add_argument("session", type=Path, help="the session's file, as run.prunelab")
    submit.add_argument("--out", type=Path, help="the hand-in; run.zip for run.prunelab")
    submit.set_defaults(run=_submit)

    grade = commands.add_parser("grade", help="grade hand-ins by a rubric")
    grade.add_argument("handins", nargs="+", metavar="ZIP", help="what `prunelab submit` wrote")
    grade.add_argument("--rubric", type=Path, required=True, help="what earns points, as TOML")
    grade.add_argument("--csv", type=Path, help="a CSV file of points and reasons")
    grade.set_defaults(run=_grade)


def _submit(options: argparse.Namespace) -> int:
    doctor.require_core()
    path = handin.submit(options.session, options.out)
    print(f"written: {path} ({path.stat().st_size / 1000:,.0f} kB). Hand in this one file.")
    return 0


def _grade(options: argparse.Namespace) -> int:
    rubric = Rubric.read(options.rubric)
    paths = [path for given in options.handins for path in _paths(given)]
    if options.csv is not None and not options.csv.resolve().parent.is_dir():
        raise InvalidValue(f"--csv {options.csv}: its folder does not exist. Create it.")

    doctor.require_core()

    from prunelab.classroom.grading import Grader

    grader = Grader(rubric)
    terminal = Terminal(sys.stderr)
    terminal.line(f"{rubric.network} itself has {grader.accuracy:.2%} on the {rubric.split} images")
    grades = []
    for path in paths:
        grades.append(grader.grade(path))
        terminal.line(str(grades[-1]))
    if options.csv is not None:
        try:
            options.csv.write_text(table(grades, rubric), encoding="utf-8", newline="")
        except OSError as error:
            raise PruneLabError(f"{options.csv} cannot be written: {error.strerror}.") from None
        print(f"written: {options.csv} ({len(grades)} hand-ins)")
    return 0


def _paths(given: str) -> list[str]:
    """Expand a pattern that the shell did not, as on Windows; a name without matches stays."""
    found = sorted(glob.glob(given)) if not Path(given).exists() else [given]
    return found or [given]


def table(grades: Iterable[Grade], rubric: Rubric) -> str:
    """The grades as CSV: a row for each hand-in, two columns for each check of the rubric."""
    out = io.StringIO()
    writer = csv.writer(out)
    checks = [word for check in rubric.checks for word in (check.name, f"{check.name}: why")]
    heads = ("hand-in", "points", "of", "accuracy", "MACs", "MACs share", "parameters")
    writer.writerow([*heads, "claimed validation accuracy", "problems", *map(_cell, checks)])
    for grade in grades:
        found = grade.measured
        measured = [found.get(key, "") for key in ("accuracy", "macs", "macs_share", "params")]
        marks: list[Any] = [x for mark in grade.marks for x in (mark.points, mark.why)]
        claimed = "" if grade.claimed is None else grade.claimed
        row: Sequence[Any] = [grade.name, grade.points, grade.of, *measured, claimed]
        writer.writerow([_cell(x) for x in (*row, "; ".join(grade.problems), *marks)])
    return out.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet does not read as a formula; students choose some of these texts."""
    if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")):
        return f"'{value}"
    return round(value, 4) if isinstance(value, float) else value
