"""The machine: the cores and the memory that this process may use, and a budget of memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prunelab.errors import InvalidValue, OverBudget

SHARE = 0.5  # of the machine's memory: the default budget
UNKNOWN = 8 * 2**30  # bytes that a machine is taken to have where it does not say


@dataclass(frozen=True, slots=True)
class Memory:
    """A budget of memory, in bytes: what measuring and solving may hold at once.

    The network, its activations and the session's copies of its weights come on top.
    """

    bytes: int

    @classmethod
    def of(cls, given: float | None) -> Memory:
        """A share of the machine's memory when at most 1, else bytes; None: half of it."""
        number = SHARE if given is None else given
        if isinstance(number, bool) or not isinstance(number, int | float) or not number > 0:
            raise InvalidValue(
                "memory is a share of the machine's memory, above 0 and at most 1, or a number of "
                f"bytes; not {given!r}."
            )
        whole = memory() or UNKNOWN
        return cls(int(number * whole) if number <= 1 else int(number))

    def ask(self, needed: float, what: str, instead: str) -> None:
        """Raise `OverBudget` where `what` needs more bytes; asked before they are allocated.

        `instead` is what a person can do but for giving more memory.
        """
        if needed > self.bytes:
            raise OverBudget(
                f"{what} needs {needed / 2**30:.3g} GiB at once; memory= allows "
                f"{self.bytes / 2**30:.3g} GiB. Give memory={int(needed * 1.01) + 1} or more, or "
                f"{instead}"
            )


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
