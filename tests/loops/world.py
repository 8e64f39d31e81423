"""Runs a script in several processes that work together, as `torchrun` starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    said: str
    result: Any


def run(script: str, ranks: int, folder: Path, timeout: float = 240) -> list[Ended]:
    """Run `script` as each of so many ranks; it puts its result in a dict called `result`.

    `folder` is where it runs.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {
        **os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    program = (
        "import json, os, torch\nresult = {}\n"
        f"{script}\n"
        "open('result-' + os.environ['RANK'] + '.json', 'w').write(json.dumps(result))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=folder, env=given | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    found = []
    try:
        for rank, process in enumerate(processes):
            said, _ = process.communicate(timeout=timeout)
            path = folder / f"result-{rank}.json"
            result = json.loads(path.read_text()) if path.exists() else None
            found.append(Ended(process.returncode, said, result))
    finally:
        for process in processes:
            process.kill()
    return found
