"""A process that is killed within any verb loses nothing that a verb has returned from.

A reference session says how many events there are after each verb, and the network's fingerprint.
Children repeat it in a file, and each is killed by SIGKILL at a random instant of one of the verbs;
the file must then hold what the reference held before that verb or after it, and go on to its end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
VERBS = (
    "propose()", "adjust({'conv1': [3, 4]})", "approve()", "note('a thought')", "tune(2)", "undo()",
    "propose()", "reject('no')", "predict(accuracy=0.5)", "propose()", "approve()", "repair('bn')",
    "go(3)", "answer('1', [1, 2])", "run(0.6, None, moves=1)", "undo()",
)  # fmt: skip


def crashes(folder: str, trials: int, seed: int) -> dict[str, Any]:
    """Kill `trials` children; returns how many died before and after a commit, and what was lost.

    Runs in a process of its own, because it forks.
    """
    import torch
    from toys import Tiny, batches

    import prunelab as pl
    from prunelab.evidence.fingerprint import fingerprint
    from prunelab.ledger.state import fold

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, method = Tiny().eval(), pl.ThiNet(pruning_ratio=0.25, images=32)
    data = pl.Data(train=batches(32, 1), val=batches(32, 2))
    graph = pl.trace(model, data.train[0][0][:1])
    rng = random.Random(seed)

    def verb(session: pl.Session, number: int) -> None:
        eval(f"session.{VERBS[number]}", {"session": session})

    def seen(session: pl.Session) -> tuple[int, str, str]:
        state = session.state
        assert fold(session.ledger) == state
        return len(session.ledger), fingerprint(session.model), state.line()

    def reference() -> list[Any]:
        session = pl.Session(model, data, method, graph=graph, path=f"{folder}/reference")
        told = [(0.0, *seen(session))]
        for number in range(len(VERBS)):
            began = time.monotonic()
            verb(session, number)
            told.append((time.monotonic() - began, *seen(session)))
        return told

    def until(path: str, at: int, out: int) -> None:
        session = pl.Session(model, data, method, graph=graph, path=path)
        for number in range(at + 1):
            os.write(out, b".")
            verb(session, number)
        os.write(out, b"!")
        time.sleep(60)

    def resumed(path: str, at: int, returned: bool) -> str:
        session = pl.Session.open(path, model=Tiny(), data=data, graph=graph, method=method)
        now = list(seen(session))
        if VERBS[at].startswith("run") and told[at][0] < now[0] < told[at + 1][0]:
            # A run is several verbs: it was killed behind one of them, and returned from none.
            known = now[1] in (told[at][1], told[at + 1][1]) and not returned
            return "after" if known else f"lost: {now} within {VERBS[at]}"
        done = int(now == told[at + 1])
        if now != told[at + done] or done < returned:
            return f"lost: {now} after {VERBS[at]}, returned: {returned}"
        for number in range(at + done, len(VERBS)):
            verb(session, number)
        if list(seen(session)) != told[-1]:
            return f"lost: it went on to another end, {seen(session)}"
        return "too late" if returned else "after" if done else "before"

    times, told = [], []
    for took, *what in ended(reference):
        times.append(took)
        told.append(what)
    found: dict[str, Any] = {"before": 0, "after": 0, "too late": 0, "lost": []}
    for trial in range(trials):
        path, at = f"{folder}/{trial}", trial % len(VERBS)
        child, pipe = forked(lambda out, path=path, at=at: until(path, at, out))
        for _ in range(at + 1):
            assert pipe.read(1) == b"."
        time.sleep(rng.random() * 1.2 * times[at + 1])
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        returned = pipe.read(1) == b"!"
        pipe.close()
        how = ended(lambda path=path, at=at, returned=returned: resumed(path, at, returned))
        if how in found:
            found[how] += 1
        else:
            found["lost"].append(f"trial {trial}: {how}")
        Path(path).unlink(missing_ok=True)
    return found


def forked(work: Callable[[int], None]) -> tuple[int, Any]:
    """A child that runs `work` with the end of a pipe to write to, and the other end.

    PyTorch's backward pass does not work in a child of a process that has run one, so that all
    sessions are in children.
    """
    import torch

    inside, out = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # PyTorch makes its pool of threads anew in a child, when it is first asked for: not by
            # two threads of a backward pass at once.
            torch.set_num_threads(1)
            work(out)
        except BaseException as error:
            os.write(out, json.dumps(f"{error!r}").encode())
        os._exit(0)
    os.close(out)
    return child, os.fdopen(inside, "rb", buffering=0)


def ended(work: Callable[[], Any]) -> Any:
    """What `work` gives in a child."""
    child, pipe = forked(lambda out: write(out, work()))
    with pipe:
        text = b"".join(iter(lambda: pipe.read(1 << 16), b""))
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else f"lost: the child ended with status {status}"


def write(out: int, found: Any) -> None:
    os.write(out, json.dumps(found).encode())


def killed(folder: Path, trials: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, __file__, str(folder), str(trials), str(seed)]
    there = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    ran = subprocess.run(command, capture_output=True, text=True, env=there, check=False)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert found["lost"] == []
    assert found["before"] + found["after"] + found["too late"] == trials
    return found


@pytest.mark.long
def test_a_process_killed_within_a_verb_loses_nothing(tmp_path: Path) -> None:
    found = killed(tmp_path, len(VERBS), 0)
    assert found["before"] > 0


@pytest.mark.slow
def test_two_thousand_killed_processes_lose_nothing(tmp_path: Path) -> None:
    found = killed(tmp_path, 2000, 1)
    assert min(found["before"], found["after"]) > 0


if __name__ == "__main__":
    print(json.dumps(crashes(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
