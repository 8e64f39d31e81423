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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from prunelab.data import fashion_mnist as fashion
from prunelab.errors import MissingPackage

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


def cores(system: Path = Path("/")) -> float:
    """Cores that this process may use: affinity and the quotas of its control groups."""
    count = float(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    for folder in _groups(system, "cpu"):
        words = _words(folder / "cpu.max")  # version 2: "quota period" or "max period"
        if not words:
            words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0] not in ("max", "-1"):
            count = min(count, int(words[0]) / int(words[1]))
    return count


def memory(system: Path = Path("/")) -> int | None:
    """Bytes of memory that this process may use, or None where it is unknown."""
    sizes = []
    for line in _lines(system / "proc/meminfo"):
        if line.startswith("MemTotal:"):
            sizes.append(int(line.split()[1]) * 1024)
    for folder in _groups(system, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            sizes += [int(word) for word in _words(folder / name) if word != "max"]
    return min(sizes, default=None)


def _groups(system: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control groups, from its own up to the root's."""
    mount = system / "sys/fs/cgroup"
    for line in _lines(system / "proc/self/cgroup"):
        number, names, path = line.split(":", 2)
        if number == "0":  # version 2
            top = mount
        elif controller in names.split(","):
            top = mount / names if (mount / names).is_dir() else mount / controller
        else:
            continue
        # Inside a container the path may be the host's; only existing folders count.
        own = top / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


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
