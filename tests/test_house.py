"""The order of imports between rooms, the contents of notebooks, the contents of the wheel."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests import house

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = house.PACKAGE

# What each room may import, besides `errors`; a room stands below all that it imports. Rooms and
# arrows as they are: python -m tests.house
ORDER: dict[str, str] = {
    "errors": "",
    "values": "",
    "ledger": "values",
    "figures": "values ledger",
    "data": "values",
    "graph/modules": "",
    "graph/labels": "data graph/modules",
    "graph/channels": "values figures graph/labels",
    "graph/surgery": "values data graph/modules graph/channels",
    "graph": "values data graph/modules graph/labels graph/channels graph/surgery",
    "loops": "values data graph/surgery graph",
    "evidence": "values ledger data graph/modules graph/labels graph/channels graph/surgery graph "
    "loops",
    "cost": "values data graph/modules graph/labels graph/channels graph/surgery graph loops "
    "evidence",
    "repair": "values data graph/labels graph/channels graph/surgery loops evidence",
    "methods": "values data graph/labels graph/channels graph/surgery graph loops evidence cost "
    "repair",
    "session": "values ledger figures data graph/modules graph/channels graph/surgery graph loops "
    "evidence cost repair methods",
    "experiments": "values ledger figures data graph/surgery graph loops methods session",
    "classroom": "values ledger data graph/channels graph/surgery graph loops evidence cost "
    "session",
    "notebook": "values ledger figures graph/channels graph loops cost methods session",
    "cli": "values ledger data loops session classroom",
    "prunelab": "",
    "__main__": "cli",
}
JUPYTER = {"IPython", "anywidget", "ipykernel", "ipywidgets", "jupyter_client", "traitlets"}
PACKAGES = {
    **dict.fromkeys(JUPYTER, "notebook"),
    "plotly": "figures notebook",
    "pickle": "",
    "dill": "",
    "matplotlib": "",
}
LIGHT = ("errors", "values", "ledger", "figures", "cli", "prunelab")  # read where no torch is


def test_rooms_import_what_the_order_says_and_nothing_else() -> None:
    found = house.arrows()
    allowed = {(room, other) for room, others in ORDER.items() for other in others.split()}
    allowed |= {(room, "errors") for room in ORDER}
    assert {pair: found[pair] for pair in found.keys() - allowed} == {}
    assert {room for pair in found for room in pair} <= ORDER.keys()
    places = list(ORDER)
    assert [pair for pair in allowed if places.index(pair[0]) < places.index(pair[1])] == []
    assert house.circles(found) == []


def test_the_order_allows_no_arrow_that_is_not_there() -> None:
    found = house.arrows()
    idle = {(a, b) for a, others in ORDER.items() for b in others.split()} - found.keys()
    assert sorted(idle) == []


SOURCES = sorted(house.PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", house.modules())
def test_each_room_imports_only_the_packages_that_it_may(module: str) -> None:
    room = house.room(module)
    for name, now in house.imports(ast.parse(house.modules()[module].read_text("utf-8"))):
        package = name.split(".")[0]
        if package in PACKAGES:
            assert room in PACKAGES[package].split(), f"{module} imports {name}"
        if now:
            assert package not in ("torchvision", "sklearn"), f"{module} imports {name} eagerly"
            assert package != "torch" or room not in LIGHT, f"{module} is light, imports {name}"


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


# ---------------------------------------------------------------- what is installed


def test_the_dependency_groups_are_what_the_extras_install() -> None:
    given = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras, groups = given["project"]["optional-dependencies"], given["dependency-groups"]
    own = {name for name in extras["test"] if name.startswith("prunelab[")}
    assert own == {"prunelab[docs,lab]"}
    assert set(groups["docs"]) == set(extras["docs"])
    parts = {entry["include-group"] for entry in groups["dev"]}
    assert parts == groups.keys() - {"dev"}
    listed = {name for part in parts for name in groups[part]}
    assert listed == {*extras["test"], *extras["docs"]} - own


def test_types_are_checked_without_the_packages_that_the_tests_do_not_install() -> None:
    """mypy must say the same on a bare machine, where the optional packages are not there."""
    given = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = given["project"]["optional-dependencies"]
    optional = {
        re.split(r"[>=]", name)[0].replace("-", "_") for name in extras["onnx"] + extras["hub"]
    }
    imported = {
        name.split(".")[0]
        for path in (ROOT / "prunelab").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    overrides = given["tool"]["mypy"]["overrides"]
    assert all(override["ignore_missing_imports"] for override in overrides)
    listed = {name for override in overrides for name in override["module"]}
    assert {f"{name}.*" for name in optional & imported} <= listed
    assert {"onnxruntime", "huggingface_hub"} <= optional & imported


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


def test_the_top_level_holds_nothing_else() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in files()}
    assert {name for name in top if not name.startswith(".")} == {
        *("CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "pyproject.toml"),
        *("binder", "notebooks", "prunelab", "tests"),
    }


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


@pytest.mark.long
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
    assert {name for name in top if not name.endswith((".dist-info", ".data"))} == {"prunelab"}
    templates = "data/share/jupyter/nbconvert/templates/folded"
    beside = {name.partition(".data/")[2] for name in inside if ".data/" in name}
    assert beside == {f"{templates}/conf.json", f"{templates}/index.html.j2"}
    assert [name for name in inside if name.endswith("conftest.py")] == []


@pytest.mark.skipif(not NOTEBOOKS, reason="no tutorial is written yet")
def test_tutorials_of_a_wheel_are_copied_once_and_never_overwritten(
    wheel: Path, tmp_path: Path
) -> None:
    program = (
        "from prunelab.cli.main import tutorials; "
        "folder, said = tutorials(); print(folder); print(len(said))"
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


@pytest.mark.long
def test_the_readme_fits_a_screen_and_its_example_runs(tmp_path: Path) -> None:
    assert len(README.splitlines()) <= 70
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line and "import" not in line]) <= 8
    command = [sys.executable, "-W", "error", "-c", example]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "small.safetensors").is_file()
