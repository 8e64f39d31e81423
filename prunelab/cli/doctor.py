"""A report on the environment: versions, cores, memory, widgets, write access, data sets.

Finds packages without importing them, so that it works where torch is missing or broken.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from prunelab.data import fashion_mnist as fashion
from prunelab.errors import MissingPackage
from prunelab.values.machine import cores, memory

CORE = (
    *("prunelab", "torch", "torchvision", "numpy", "scipy", "safetensors", "scikit-learn"),
    "pillow",
)
MODULES = {"pillow": "PIL", "scikit-learn": "sklearn"}  # imported under another name than installed
WIDGETS = ("jupyterlab", "ipywidgets", "anywidget", "plotly")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report, with `advice` for a problem; `fatal` where pruning needs it."""

    name: str
    value: str
    advice: str = ""
    fatal: bool = False

    def __str__(self) -> str:
        mark = "ok" if not self.advice else "!!"
        return f"{mark}  {self.name:<14} {self.value}" + (f". {self.advice}" if self.advice else "")


def examine() -> list[Finding]:
    """All findings."""
    return [
        Finding("python", f"{platform.python_version()} at {sys.executable}"),
        *(_package(name) for name in CORE),
        *(_package(name, optional=True) for name in WIDGETS),
        _cores(),
        _memory(),
        _folder(),
        _images(),
    ]


def report(findings: list[Finding]) -> str:
    """The findings as text, with a conclusion in the last line."""
    lines = [str(finding) for finding in findings]
    if needed := [finding.name for finding in findings if finding.fatal]:
        lines.append(f"Pruning will not work: {lack(needed)}.")
    elif any(finding.advice for finding in findings):
        lines.append("Pruning works in scripts and in the terminal; see what is marked !!.")
    else:
        lines.append("Everything is installed: prunelab lab")
    return "\n".join(lines)


# ---------------------------------------------------------------- packages


def missing(names: Iterable[str]) -> list[str]:
    """Which of these packages cannot be imported."""
    return [name for name in names if not _found(name)]


def require_core() -> None:
    """Raise `MissingPackage` where a package that all of prunelab needs is missing."""
    if needed := missing(CORE):
        raise MissingPackage(f"{lack(needed)}. Install it: pip install {' '.join(needed)}")


def lack(names: list[str]) -> str:
    """A sentence that these packages are missing."""
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not installed"


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(MODULES.get(name, name)) is not None
    except ImportError:
        return False


def _package(name: str, optional: bool = False) -> Finding:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = ""
    if version and _found(name):
        return Finding(name, version)
    if optional:
        return Finding(name, "not installed", 'The screen needs it: pip install "prunelab[lab]"')
    if name == "prunelab":
        return Finding(name, "not installed, run from its folder", "pip install -e .")
    return Finding(name, "not installed", f"pip install {name}", fatal=True)


def environment() -> str:
    """Torch's environment report, for bug reports: drivers, processors, builds.

    It runs in a separate process, so that this one never loads torch; empty without torch.
    """
    if missing(["torch"]):
        return ""
    command = [sys.executable, "-c", "from torch.utils import collect_env as e; e.main()"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.strip()


# ---------------------------------------------------------------- cores and memory


def _cores() -> Finding:
    count, there = cores(), os.cpu_count() or 1
    limited = f", of {there} in the machine" if count < there else ""
    return Finding("cores", f"{count:g}{limited}")


def _memory() -> Finding:
    size = memory()
    if size is None:
        return Finding("memory", "unknown")
    small = size < 2 * 2**30
    advice = "Below 2 GiB the kernel may be killed; keep to the shipped subset" if small else ""
    return Finding("memory", f"{size / 2**30:.1f} GiB", advice)


# ---------------------------------------------------------------- files


def _folder() -> Finding:
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()):
            return Finding("this folder", f"{Path.cwd()}, writable")
    except OSError as error:
        return Finding(
            "this folder",
            f"not writable ({error.strerror})",
            "Go to a folder of yours to save sessions and networks",
        )


def _images() -> Finding:
    folder = fashion.find()
    if folder is None:
        return Finding("Fashion-MNIST", "the shipped subset; the full set is not installed")
    return Finding("Fashion-MNIST", f"the full set, in {folder}")
