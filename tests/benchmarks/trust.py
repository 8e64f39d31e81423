"""Measures what `trust.md` reports: faults tried and lost, and what long sessions cost.

    python -m tests.benchmarks.trust [--events 10000] [--moves 300] [--screens 200]

The sections print one line each. The counts of faults come from the tests that inject them, with
`-s`: tests/session/test_atomic.py, test_damage.py, test_hostile.py and test_crash.py.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
sys.path[:0] = [str(HERE), str(HERE / "session")]


def screens(count: int) -> list[tuple[int, int, int, int, int]]:
    """Screens opened and closed: number, listeners, widgets, threads, KiB of peak memory."""
    from faults import session
    from ipywidgets.widgets import widget

    from prunelab.notebook.screen import Screen

    made, found = session(None, own=False), []
    made.propose()
    for number in range(1, count + 1):
        Screen(made).close()
        if number in (1, count // 4, count // 2, count):
            gc.collect()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            listeners, widgets = len(made._runner._listeners), len(widget._instances)
            found.append((number, listeners, widgets, threading.active_count(), peak))
    return found


def main() -> None:
    """Print each measurement."""
    import torch
    from test_load import many_events, many_moves

    parser = argparse.ArgumentParser(description=__doc__)
    for name, usual in (("events", 10_000), ("moves", 300), ("screens", 200)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name, work in (
            ("events", lambda: many_events(Path(folder), asked.events)),
            ("moves", lambda: many_moves(Path(folder) / "moves.prunelab", asked.moves)),
            ("screens", lambda: screens(asked.screens)),
        ):
            if getattr(asked, name):
                began = time.process_time()
                print(name, work(), f"{time.process_time() - began:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
