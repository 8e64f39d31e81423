"""The folders for Binder and a class hub: their contents, and that their scripts work.

Both install with uv, which finds the CPU-only builds of torch by itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BINDER = ROOT / "binder"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

UV = """#!/bin/sh
echo "$@" >> "$UV_LOG"
case "$*" in *--torch-backend=cpu*) exit 2 ;; esac
"""


def test_the_folder_holds_only_what_repo2docker_reads_here() -> None:
    # an environment.yml, a Pipfile or a Dockerfile would be taken instead
    assert {path.name for path in BINDER.iterdir()} == {
        "postBuild",
        "requirements.txt",
        "runtime.txt",
    }
    assert os.access(BINDER / "postBuild", os.X_OK)


def test_the_python_is_one_that_the_package_takes() -> None:
    found = re.fullmatch(r"python-(3\.(\d+))\n", (BINDER / "runtime.txt").read_text())
    assert found is not None
    assert int(found[2]) >= int(PROJECT["requires-python"].removeprefix(">=3."))


def test_requirements_bring_nothing_but_the_installer() -> None:
    text = (BINDER / "requirements.txt").read_text()
    wanted = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [re.split("[<>=]", line)[0] for line in wanted] == ["uv"]


def test_the_script_installs_imports_and_settles_jupyterlab(tmp_path: Path) -> None:
    """In a new environment that sees this one's packages; uv only takes notes."""
    place = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "these.pth").write_text(sysconfig.get_path("purelib") + "\n")
    uv, log = place / "bin" / "uv", tmp_path / "log"
    uv.write_text(UV)
    uv.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "UV_LOG": str(log),
    }
    done = subprocess.run([BINDER / "postBuild"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert ["--torch-backend=cpu" in call for call in calls] == [True, False]
    assert all(call.endswith("-e .[lab]") for call in calls)
    assert all(f"--python {place / 'bin' / 'python'} " in call for call in calls)
    overrides = json.loads((place / "share/jupyter/lab/settings/overrides.json").read_text())
    kernels = overrides["@jupyterlab/apputils-extension:kernels-settings"]
    assert kernels == {"commsOverSubshells": "disabled"}


def test_a_step_that_fails_ends_the_script(tmp_path: Path) -> None:
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\nexit 3\n")
    uv.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([BINDER / "postBuild"], cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 3


def test_the_hubs_image_is_built_from_what_is_here() -> None:
    text = (ROOT / ".hub" / "Dockerfile").read_text()
    steps = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    words = {step.split()[0] for step in steps if step.strip()}
    known = {"FROM", "ARG", "RUN", "ENV", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
    assert words <= known
    assert re.search(r"^FROM python:3\.\d+-slim$", text, re.MULTILINE)
    assert "UV_TORCH_BACKEND=cpu" in text
    assert "OMP_NUM_THREADS=1" in text
    entry = next(step for step in steps if step.startswith("ENTRYPOINT")).removeprefix("ENTRYPOINT")
    start = next(step for step in steps if step.startswith("CMD")).removeprefix("CMD")
    assert json.loads(entry)[:2] == ["sh", "-c"]
    assert json.loads(start)[:2] == ["prunelab", "lab"]


def test_the_hubs_image_copies_the_lessons_before_anything_starts(tmp_path: Path) -> None:
    text = (ROOT / ".hub" / "Dockerfile").read_text()
    entry = json.loads(text.split("ENTRYPOINT")[1].splitlines()[0])
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    command = [*entry, "echo", "the", "server"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "the server\n"), done.stderr
