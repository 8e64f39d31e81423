"""The recipe for ImageNet runs on a folder of small JPEGs, alone and under torchrun."""

from __future__ import annotations

import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model

import prunelab as pl

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / ".docs" / "recipes" / "imagenet.py"
SMALL = ["--weights", "none", "--crop", "32", "--workers", "0", "--batch", "16", "--epochs", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 JPEGs as ImageFolder takes them: four classes, of different brightness."""
    made, draw = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for split, count in (("train", 48), ("val", 16)):
        for kind in range(4):
            (made / split / f"n{kind}").mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 64, (40, 48, 3)) + 60 * kind
                path = made / split / f"n{kind}" / f"{number}.jpg"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return made


def check(network: str, path: Path) -> pl.Session:
    """The session in `path` has pruned and trained, and its network was exported."""
    weights = path.with_suffix(".safetensors")
    small = pl.load_pruned(lambda: get_model(network, weights=None), weights)
    inputs = torch.zeros(1, 3, 32, 32)
    session = pl.Session.open(
        path, model=get_model(network, weights=None),
        data=pl.Data([inputs.repeat(2, 1, 1, 1)], [(inputs, torch.zeros(1, dtype=torch.int64))]),
    )  # fmt: skip
    assert session.state.now.event.verb == "tune"
    assert session.state.now.event.by == "torchvision's reference"
    assert pl.cost(small, inputs).macs == session.state.now.cost.macs
    assert session.state.now.cost.macs <= 0.8 * session.state.base.cost.macs
    return session


@pytest.mark.filterwarnings("default")
def test_it_prunes_trains_and_exports(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run.prunelab"
    given = ["--network", "mobilenet_v2", "--method", "magnitude", "--target-macs", "0.8", *SMALL]
    monkeypatch.setattr(sys, "argv", ["imagenet.py", str(folder), "--path", str(path), *given])
    found = runpy.run_path(str(RECIPE))
    session = found["session"]
    assert session.state.line() in capsys.readouterr().out
    data = session.data
    assert [len(split.dataset) for split in (data.train, data.val, data.test)] == [154, 38, 64]
    assert not set(data.train.dataset.indices) & set(data.val.dataset.indices)
    assert data.input_shape == (3, 32, 32)
    check("mobilenet_v2", path)
    rates_are_those_of_the_reference(found["schedule"])


def rates_are_those_of_the_reference(schedule: Any) -> None:
    """By hand: warmed up from a hundredth; then by steps, or down by a cosine."""

    def rates(**given: Any) -> list[float]:
        optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        made = schedule(optimiser, Namespace(**given))
        found = []
        for _ in range(given["epochs"]):
            found.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            made.step()
        return found

    steps: dict[str, Any] = {"lr_scheduler": "step", "lr_step": 2, "lr_gamma": 0.1, "warmup": 0}
    assert rates(epochs=5, **steps) == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    warmed = rates(epochs=5, **(steps | {"warmup": 2}))
    assert warmed == pytest.approx([0.01, 0.505, 1, 1, 0.1])
    cosine = rates(epochs=5, lr_scheduler="cosine", warmup=1)
    assert cosine == pytest.approx([0.01, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])


@pytest.mark.parametrize(
    "network",
    [
        pytest.param("mobilenet_v2", marks=pytest.mark.long),
        pytest.param("resnet50", marks=pytest.mark.long),
        pytest.param("vgg16", marks=pytest.mark.slow),  # 138 M parameters
    ],
)
def test_it_runs_under_torchrun(network: str, folder: Path, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = ["--network", network, "--method", "magnitude", "--target-macs", "0.8", *SMALL]
    given += ["--amp", "--lr-scheduler", "cosine", "--warmup", "1", "--smoothing", "0.1"]
    events = set()
    for _ in range(2):  # the second goes on where the first stands: at the end
        ended = subprocess.run(
            [*run, str(RECIPE), str(folder), *given],
            cwd=tmp_path, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-2000:]
        session = check(network, tmp_path / "imagenet.prunelab")
        assert ended.stdout.count(session.state.line()) == 1  # the first rank alone reports
        events.add(len(session.ledger))
    assert len(events) == 1
