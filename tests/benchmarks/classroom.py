"""Memory of a class: several kernels that have run a lesson, alive at the same time.

    python tests/benchmarks/classroom.py                      # 1, 4 and 10 kernels, lesson 00
    python tests/benchmarks/classroom.py --kernels 1 --lesson 05-aofp

PSS counts a page shared by n processes as 1/n in each, so its sum is the memory of all kernels;
`alone` is the memory freed when one kernel ends (its private pages). The peak is the largest sum of
PSS, sampled five times a second while all run the lesson; `after` is measured when all are done.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jupyter_client.manager import start_new_kernel

LESSONS = Path(__file__).resolve().parents[2] / "notebooks"
MB = 1e6


def cells(lesson: str) -> list[str]:
    notebook = json.loads((LESSONS / f"{lesson}.ipynb").read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def memory(pid: int) -> dict[str, float]:
    """PSS, RSS and private memory of a process, in MB; nothing once it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return {"Pss": 0.0, "Rss": 0.0, "alone": 0.0}
    found = {k: int(v) * 1024 / MB for k, v in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    return {**found, "alone": found["Private_Clean"] + found["Private_Dirty"]}


def taught(kernel: Any, lesson: str) -> None:
    """Run every cell; raises when one fails."""
    _, client = kernel
    for source in cells(lesson):
        reply = client.execute_interactive(source, timeout=3600, output_hook=lambda message: None)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(reply["content"]["evalue"])


def measured(count: int, lesson: str) -> dict[str, float]:
    kernels = [start_new_kernel(cwd=str(LESSONS)) for _ in range(count)]
    pids = [manager.provisioner.process.pid for manager, _ in kernels]
    peak, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.2):
            peak = max(peak, sum(memory(pid)["Pss"] for pid in pids))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    try:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda kernel: taught(kernel, lesson), kernels))
        seconds = time.monotonic() - began
        after = [memory(pid) for pid in pids]
    finally:
        ended.set()
        watcher.join()
        for manager, client in kernels:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    sums = {key: sum(one[key] for one in after) for key in ("Pss", "Rss", "alone")}
    return {"peak": peak, **sums, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", type=int, nargs="+", default=[1, 4, 10])
    parser.add_argument("--lesson", default="00-start-here")
    options = parser.parse_args()
    print(
        "| kernels | peak PSS, MB | PSS after, MB | of each | alone, of each | RSS, of each | s |"
    )
    print("|---|---|---|---|---|---|---|")
    for count in options.kernels:
        found = measured(count, options.lesson)
        each = [found[key] / count for key in ("Pss", "alone", "Rss")]
        row = [found["peak"], found["Pss"], *each, found["seconds"]]
        print(f"| {count} | " + " | ".join(f"{value:,.0f}" for value in row) + " |", flush=True)


if __name__ == "__main__":
    main()
