"""Lessons: their parts, outputs that any viewer shows, no traces of the machine."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SHOWN = {"text/plain", "image/png", "image/svg+xml", "application/vnd.plotly.v1+json"}
MODULES = {"scikit-learn": "sklearn"}  # where a package's module has another name

lessons = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path: Path, kind: str) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind and "".join(cell["source"])]


def text_of(path: Path, kind: str) -> str:
    return "\n\n".join("".join(cell["source"]) for cell in cells_of(path, kind))


def outputs_of(path: Path) -> Iterator[dict[str, Any]]:
    for cell in cells_of(path, "code"):
        yield from cell["outputs"]


def declared() -> set[str]:
    """The modules that an installation with the widgets has, by what pyproject.toml declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["lab"]]
    names = [re.split(r"[<>=\[;! ]", one)[0] for one in wanted]
    return {MODULES.get(name, name) for name in names}


def test_the_course_is_whole() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(14)]


@lessons
def test_lessons_are_executed_from_top_to_bottom_without_an_error(path: Path) -> None:
    cells = cells_of(path, "code")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert [out for out in outputs_of(path) if out["output_type"] == "error"] == []


@lessons
def test_lessons_hold_no_state_of_widgets_or_kernels(path: Path) -> None:
    assert json.loads(path.read_text(encoding="utf-8"))["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in cells_of(path, "code"):
        assert set(cell["metadata"]) <= {"collapsed", "jupyter"}


@lessons
def test_every_output_shows_where_no_script_runs(path: Path) -> None:
    for output in outputs_of(path):
        kinds = set(output.get("data", ()))
        assert kinds <= SHOWN
        if kinds & {"application/vnd.plotly.v1+json", "image/svg+xml"}:
            assert "image/png" in kinds, "run tests/benchmarks/notebooks.py --write"


@lessons
def test_lessons_import_only_what_is_installed_with_prunelab(path: Path) -> None:
    allowed = {"prunelab", *declared(), *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(text_of(path, "code"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        else:
            continue
        assert {name.split(".")[0] for name in names} <= allowed


@lessons
def test_every_lesson_asks_before_it_shows(path: Path) -> None:
    assert "**Predict" in text_of(path, "markdown")
    hidden = [cell for cell in cells_of(path, "code") if "jupyter" in cell["metadata"]]
    assert [cell for cell in hidden if cell["metadata"]["jupyter"]["outputs_hidden"]]


@lessons
def test_pages_to_hand_out_keep_answers_folded(path: Path) -> None:
    from nbconvert import HTMLExporter  # slow to import

    place = ROOT / "prunelab" / "assets" / "nbconvert"
    exporter = HTMLExporter(template_name="folded", extra_template_basedirs=[str(place)])
    page, _ = exporter.from_filename(str(path))
    folded = re.findall(r'<details class="folded">(.*?)</details>', page, re.DOTALL)
    hidden = [cell for cell in cells_of(path, "code") if "jupyter" in cell["metadata"]]
    assert len(folded) == len([cell for cell in hidden if cell.get("outputs")])
    assert all("jp-OutputArea-output" in inside for inside in folded)


@lessons
def test_every_lesson_has_an_exercise_and_its_answer_folded_away(path: Path) -> None:
    assert re.search(r"^(answer =|\s+return) \.\.\.$", text_of(path, "code"), re.MULTILINE)
    words = text_of(path, "markdown")
    assert "## Your turn" in words
    assert re.search(r"<details><summary>Answer</summary>\n\n.*?</details>", words, re.DOTALL)


@lessons
def test_the_words_of_a_lesson_are_read_in_a_quarter_of_an_hour(path: Path) -> None:
    words, code = (text_of(path, kind).split() for kind in ("markdown", "code"))
    assert len(words) / 200 + len(code) / 200 < 15


@lessons
def test_formulas_have_lost_no_backslash(path: Path) -> None:
    """A backslash and a letter that were read as one control character, such as of \\binom."""
    assert re.findall(r"[^\n\t -\U0010ffff]\w*", text_of(path, "markdown")) == []


@lessons
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([\w./-]+\.(?:ipynb|md))\)", text_of(path, "markdown")):
        assert (FOLDER / target).is_file()


@lessons
def test_lessons_give_the_same_numbers_everywhere(path: Path) -> None:
    code = text_of(path, "code")
    assert "torch.set_num_threads(1)" in code
    loads = re.findall(r'data\.load\("fashion".*?\)', code)  # the full set is not on every machine
    assert [load for load in loads if "subset=True" not in load] == []
