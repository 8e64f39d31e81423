"""The program without torch or numpy, and the modules that it loads with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Makes packages impossible to import, as where they are not installed.
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
PROGRAM = "import sys; from prunelab.cli.main import main; sys.exit(main(sys.argv[1:]))\n"
RUBRIC = """
network.zoo = "resnet20"
data.set = "fashion"
[[check]]
kind = "accuracy"
at_least = 0.8
points = 1
"""
HEAVY = {
    *("torch", "torchvision", "numpy", "scipy", "sklearn", "safetensors"),
    *("plotly", "IPython", "ipywidgets", "anywidget", "jupyterlab", "PIL"),
}


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(params=[("torch",), ("torch", "numpy")], ids=" ".join)
def without(request: pytest.FixtureRequest) -> str:
    """A program's beginning, after which these packages cannot be imported."""
    return WITHOUT.format(names=request.param)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [("--help", "commands:"), ("prune --help", "--target-macs"), ("--version", "prunelab ")],
)
def test_without_torch_help_and_version_answer(without: str, arguments: str, words: str) -> None:
    done = python(without + PROGRAM, *arguments.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert words in done.stdout


def test_without_torch_prunelab_is_imported_and_lists_its_names(without: str) -> None:
    done = python(without + "import prunelab; print('Session' in dir(prunelab))")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.parametrize("command", [(), ("doctor",), ("doctor", "--environment")], ids=" ".join)
def test_without_torch_doctor_says_so_and_ends_with_status_1(
    without: str, command: tuple[str, ...]
) -> None:
    done = python(without + PROGRAM, *command)
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(r"^!!  torch +not installed. pip install torch$", done.stdout, re.MULTILINE)
    assert re.search(r"torch(, numpy are| is) not installed.$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "command", ["prune", "submit run.prunelab", "grade a.zip --rubric rubric.toml"]
)
def test_without_torch_a_command_that_needs_it_ends_in_one_line(
    without: str, command: str, tmp_path: Path
) -> None:
    (tmp_path / "rubric.toml").write_text(RUBRIC)
    given = command.replace("rubric.toml", str(tmp_path / "rubric.toml"))
    done = python(without + PROGRAM, *given.split())
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"prunelab: torch.* not installed\. .*pip install torch.*\n", done.stderr)


@pytest.mark.parametrize(
    "program",
    [
        "import prunelab",
        "from prunelab.cli.main import main; main(['doctor'])",
        "from prunelab.cli.main import main; main(['--version'])",
        "from prunelab.cli.main import _parser; _parser().format_help()",
    ],
)
def test_import_doctor_and_help_load_nothing_heavy(program: str) -> None:
    done = python(
        f"{program}\nimport sys; print([m for m in {sorted(HEAVY)!r} if m in sys.modules])"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_environment_is_torchs_own_report() -> None:
    done = python(PROGRAM, "doctor", "--environment")
    assert (done.returncode, done.stderr) == (0, "")
    assert "PyTorch version: " in done.stdout
