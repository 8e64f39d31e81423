"""The catalogue of bad inputs: every public function and verb says what was given and what to do.

`bad_arguments.txt` has, for each, the expression, the class of the error and a part of its message
that names the value. Nothing may change: the network, its flags, the session, the random numbers.
"""

from __future__ import annotations

import random
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toys import Tiny, batches

import prunelab as pl

LINES = (Path(__file__).parent / "bad_arguments.txt").read_text().splitlines()
CASES = [
    (asked, *said.strip().split(": ", 1))
    for asked, said in zip(LINES, [*LINES[1:], ""], strict=True)
    if said.startswith("    ")
]
ZOO = {"network": {"zoo": "vgg8"}, "data": {"set": "fashion"}}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the expressions may name."""
    folder = tmp_path_factory.mktemp("bad input")
    torch.manual_seed(0)
    model = Tiny().eval()
    model.conv2.eval().train()  # a flag that differs from the others
    other = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(192, 4))
    ).eval()
    data = pl.Data(train=batches(64, 1), val=batches(64, 2), test=batches(64, 3))
    x, y = data.train[0]
    graph, other_graph = pl.trace(model, x[:1]), pl.trace(other, x[:1])
    saved = folder / "run.prunelab"
    pl.Session(model, data, "random", path=saved)
    session = pl.Session(model, data, pl.AOFP(theta=0.05, images=64))
    session.measure()
    check = {"kind": "macs", "points": 1, "at_most": 0.5}
    return {
        **{"pl": pl, "torch": torch, "np": np, "nn": nn, "nan": nan, "inf": inf, "Tiny": Tiny},
        **{"model": model, "graph": graph, "full": pl.WidthPlan.full(graph)},
        **{
            "linear": nn.Linear(3, 2),
            "other": other,
            "other_graph": other_graph,
            "data": data,
            "x": x,
            "y": y,
        },
        "other_full": pl.WidthPlan.full(other_graph),
        "evidence": pl.measure(model, graph, data.train),
        "other_evidence": pl.measure(other, other_graph, data.train),
        **{"folder": folder, "saved": saved, "session": session, "state": session.state},
        "exported": session.export(folder / "small.safetensors"),
        "rubric": pl.Rubric.of({**ZOO, "check": [check]}, folder),
    }


def everything(names: dict[str, Any]) -> tuple[Any, ...]:
    """All that a refused call must leave as it is."""
    session, folder = names["session"], names["folder"]
    networks = names["model"], names["other"], session.model
    tensors = [t.numpy().tobytes() for net in networks for t in net.state_dict().values()]
    flags = [part.training for net in networks for part in net.modules()]
    drawn = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    files = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    here = tuple(session.ledger), session.state, session.method, session.busy
    return (*here, tensors, flags, drawn, torch.get_rng_state().numpy().tobytes(), files)


@pytest.mark.parametrize(("asked", "error", "part"), CASES, ids=[case[0] for case in CASES])
def test_a_bad_input_is_told_and_changes_nothing(
    asked: str, error: str, part: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(names["folder"])  # what a relative path writes is seen as well
    before = everything(names)
    with pytest.raises(getattr(pl, error)) as caught:
        eval(asked, dict(names))
    said = " ".join(str(caught.value).split())
    assert isinstance(caught.value, pl.PruneLabError)
    assert part in said
    assert len(said.split()) > 3
    assert everything(names) == before


def test_every_public_function_is_in_the_catalogue() -> None:
    asked = "\n".join(case[0] for case in CASES)
    values = {  # made by the library, or errors
        *("Grade", "Mark", "Latency", "LatencyTable", "Fidelity", "Redesign", "Comparison"),
        *(
            "ChannelGraph",
            "ChannelGroup",
            "Explanation",
            "Ledger",
            "Prediction",
            "State",
            "Foresight",
            "Pruned",
        ),
        *("Cost", "Ended", "Importance", "Move", "PathPoint", "Progress", "Rung", "OneShot"),
        *("PairedComparison", "Evidence", "figures", "data", "zoo", "Sensitivity", "Frontier"),
        *("BestSet", "Interval", "Jackknife", "Redundancy"),
    }
    stub = (Path(pl.__file__).parent / "__init__.pyi").read_text()
    public = {line.split(" as ")[1].strip(" ,") for line in stub.splitlines() if " as " in line}
    errors = {n for n in public if isinstance(getattr(pl, n), type(Exception)) and (
        issubclass(getattr(pl, n), Exception))}  # fmt: skip
    assert sorted(n for n in public - values - errors if f"pl.{n}" not in asked) == []
