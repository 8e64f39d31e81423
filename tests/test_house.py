"""The order of the house: who imports whom, what a notebook may hold, what a wheel carries."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "prunelab"

# A module imports from its own layer and from those above it in this list, never from below.
LAYERS = [
    {"errors"},
    {"values", "fashion", "sampler", "coupling"},
    {"ledger", "channels"},
    {"surgery"},
    {"tracing"},
    {"fingerprint", "evidence", "batches", "data", "zoo", "trial", "named"},
    {"cost", "repair", "training", "allocate", "methods", "fidelity"}
    | {"terminal", "comparison", "doctor", "figures"},
    {"workshop"},
    {"session", "prune", "compare", "redesign", "export"},
    {"notebook", "classroom"},
    {"cli"},
    {"__init__", "__main__"},
]
FIGURES = {"errors", "values", "ledger", "trial", "comparison"}
JUPYTER = {"IPython", "anywidget", "ipykernel", "ipywidgets", "jupyter_client", "traitlets"}
LIGHT = {
    *("errors", "values", "ledger", "trial", "comparison"),
    *("fashion", "terminal", "doctor", "figures", "named", "cli"),
}


def rank(part: str) -> int:
    places = [place for place, layer in enumerate(LAYERS) if part in layer]
    assert places, f"prunelab.{part} has no layer yet; give it one in LAYERS"
    return places[0]


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every imported module, and whether importing the file imports it."""

    def walk(node: ast.AST, now: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, now) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "relative import"
                module = child.module or ""
                for alias in child.names if module == "prunelab" else ():
                    yield f"prunelab.{alias.name}", now
                if module != "prunelab":
                    yield module, now
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, now and not lazy)

    yield from walk(tree, True)


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    modules = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}
    for name, now in imports(ast.parse(path.read_text())):
        words = name.split(".")
        if words[0] != "prunelab" or len(words) == 1 or words[1] not in modules:
            continue
        other = words[1]
        if part == "channels" and other == "figures" and not now:
            continue  # graph.show() fetches its picture when it is asked for
        assert rank(other) <= rank(part), f"{part} imports {name}"
        if part == "figures":
            assert other in {*FIGURES, "figures"}, f"figures import {name}"
        if other in ("notebook", "cli"):
            assert part in (other, "__init__", "__main__"), f"{part} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_layer_imports_only_the_packages_that_it_may(path: Path) -> None:
    part = part_of(path)
    for name, now in imports(ast.parse(path.read_text())):
        package = name.split(".")[0]
        assert package not in ("pickle", "dill", "matplotlib"), f"{part} imports {name}"
        if package in JUPYTER:
            assert part == "notebook", f"{part} imports {name}"
        if package == "plotly":
            assert part in ("figures", "notebook"), f"{part} imports {name}"
        if now:
            assert package not in ("torchvision", "sklearn"), f"{part} imports {name} eagerly"
            assert package != "torch" or part not in LIGHT, f"{part} is light, imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_no_more_than_its_docstring_says(path: Path) -> None:
    """`errors` and the modules of its own folder go without saying."""
    tree = ast.parse(path.read_text())
    said = re.search(r"may import (.+?)(\.\s|\.$|$)", ast.get_docstring(tree) or "", re.S | re.I)
    if said is None or "everything" in said[1]:
        return
    own = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    modules = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}
    unsaid = []
    for name, now in imports(tree):
        words = name.split(".")
        ours = words[0] == "prunelab" and len(words) > 1 and words[1] in modules
        if not ours or not now or words[1] in ("errors", "__init__"):
            continue
        inside = own != "prunelab" and f"{name}.".startswith(f"{own}.")
        if not inside and not any(re.search(rf"\b{word}\b", said[1]) for word in words[1:]):
            unsaid.append(name)
    assert unsaid == []


def test_importing_prunelab_imports_no_jupyter_and_no_plotly() -> None:
    heavy = sorted({*JUPYTER, "plotly", "matplotlib", "torchvision", "sklearn", "pandas"})
    program = f"import sys, prunelab; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_public_names_are_all_there() -> None:
    import prunelab as pl

    assert pl.__all__ == sorted(pl.__all__)
    assert [name for name in pl.__all__ if not hasattr(pl, name)] == []


# ---------------------------------------------------------------- files


def files() -> list[Path]:
    """What git holds or would hold; everything but hidden folders where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        cwd=ROOT,
    )
    if listed.returncode == 0:
        names = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        names = [p for p in ROOT.rglob("*") if not any(w.startswith(".") for w in p.parts)]
    return [path for path in names if path.is_file()]


def test_files_are_small() -> None:
    def limit(path: Path) -> int:
        kinds = {".xz": 3_000_000, ".safetensors": 2_100_000, ".ipynb": 600_000}
        return kinds.get(path.suffix, 200_000)

    assert [path for path in files() if path.stat().st_size > limit(path)] == []


def test_no_file_names_a_machine() -> None:
    folders = "|".join(("home", "root", "tmp", "work", "Users", "opt"))
    machine = re.compile(rf"(?<![\w.)])/({folders})/\w")
    found = []
    for path in files():
        if path.suffix in (".xz", ".safetensors", ".prunelab", ".png", ".svg"):
            continue
        found += [
            f"{path.relative_to(ROOT)}: {line.strip()[:100]}"
            for line in path.read_text(encoding="utf-8").splitlines()
            if machine.search(line)
        ]
    assert found == []


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


# ---------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = place.glob("*.whl")
    assert built.stat().st_size < 10_000_000
    with zipfile.ZipFile(built) as archive:
        archive.extractall(place / "site")
    return place / "site"


def test_the_first_cell_of_every_lesson_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    cells = [
        next(cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")
        for path in NOTEBOOKS
    ]
    program = "\n".join(
        [
            "import prunelab",
            *(f"exec({''.join(cell['source'])!r}, {{}})" for cell in cells),
            "print(prunelab.__file__)",
        ]
    )
    command = [sys.executable, "-W", "error", "-c", program]
    env = {**os.environ, "PYTHONPATH": str(wheel)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *versions, place = done.stdout.splitlines()
    assert Path(place).is_relative_to(wheel)
    assert len([line for line in versions if re.match(r"python .* prunelab \d", line)]) == len(
        cells
    )


def test_the_wheel_carries_images_networks_and_notebooks(wheel: Path) -> None:
    inside = {str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()}
    assets = {str(p.relative_to(ROOT)) for p in (PACKAGE / "assets").rglob("*") if p.is_file()}
    assert assets <= inside
    assert {f"prunelab/assets/notebooks/{path.name}" for path in NOTEBOOKS} <= inside
    assert "prunelab/py.typed" in inside
    top = {name.split("/")[0] for name in inside}
    assert {name for name in top if not name.endswith(".dist-info")} == {"prunelab"}
    assert [name for name in inside if name.endswith("conftest.py")] == []


@pytest.mark.skipif(not NOTEBOOKS, reason="no tutorial is written yet")
def test_tutorials_of_a_wheel_are_copied_once_and_never_overwritten(
    wheel: Path, tmp_path: Path
) -> None:
    program = (
        "from pathlib import Path; from prunelab import cli; "
        "folder, said = cli.tutorials(); print(folder); print(len(said))"
    )

    def run() -> list[str]:
        command = [sys.executable, "-c", program]
        env = {"PYTHONPATH": str(wheel), "PATH": ""}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    folder = tmp_path / "prunelab-notebooks"
    assert run() == [str(folder), "0"]
    assert {path.name for path in folder.iterdir()} == {path.name for path in NOTEBOOKS}
    mine = folder / NOTEBOOKS[0].name
    mine.write_text("mine")
    assert run() == [str(folder), "1"]
    assert mine.read_text() == "mine"


# ---------------------------------------------------------------- the README


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_quotes_the_cards_of_the_zoo() -> None:
    for path in sorted((PACKAGE / "assets" / "zoo").glob("*.json")):
        card = json.loads(path.read_text())
        row = next(line for line in README.splitlines() if line.startswith(f"| {path.stem} |"))
        assert f"{card['test_accuracy']:.1%}" in row
        assert f"{card['parameters'] / 1000:.0f} k" in row


def test_the_readme_fits_a_screen_and_its_example_runs(tmp_path: Path) -> None:
    assert len(README.splitlines()) <= 70
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line and "import" not in line]) <= 8
    command = [sys.executable, "-W", "error", "-c", example]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "small.safetensors").is_file()
