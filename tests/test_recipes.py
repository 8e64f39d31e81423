"""The recipes of the reference run as they are."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import pytest

import prunelab as pl

RECIPES = Path(__file__).resolve().parents[1] / ".docs" / "recipes"
NEEDS = {"lightning_trainer": "lightning", "int8": "onnxruntime", "logs": "tensorboard"}

OWN_TESTS = {"imagenet", "yolo"}


def test_every_recipe_is_in_the_reference() -> None:
    page = (RECIPES.parent / "recipes.rst").read_text(encoding="utf-8")
    files = sorted(path.name for path in RECIPES.glob("*.py"))
    assert files
    assert all(f".. literalinclude:: recipes/{name}\n" in page for name in files)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the packages that they use
@pytest.mark.parametrize(
    "name", sorted(path.stem for path in RECIPES.glob("*.py") if path.stem not in OWN_TESTS)
)
def test_a_recipe_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    found = runpy.run_path(str(RECIPES / f"{name}.py"))
    session = found["session"]
    assert session.state.now.cost.macs <= 0.8 * session.state.base.cost.macs
    assert session.state.line() in capsys.readouterr().out or name == "int8"
    if name == "logs":
        check_logs(Path(found["folder"]), session)
    if name == "lightning_trainer":
        assert session.ledger[-1].by == "Lightning"
        assert found["module"].network is not None


def check_logs(folder: Path, session: pl.Session) -> None:
    """Both logs hold the metrics and MACs of every network, and the losses of the tune."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with (folder / "log.csv").open(newline="") as file:
        rows = {(name, int(step)): float(value) for name, step, value in csv.reader(file)}
    points = session.state.points
    for point in points:
        assert rows["MACs", point.seq] == point.cost.macs
        assert all(rows[name, point.seq] == value for name, value in point.metrics.items())
    tune = next(name for name, _ in rows if name.startswith("loss of tune"))
    assert [step for name, step in rows if name == tune] == [1, 2, 3, 4, 5]
    board = EventAccumulator(str(folder)).Reload()
    shown = {
        (name, scalar.step): scalar.value
        for name in board.Tags()["scalars"]
        for scalar in board.Scalars(name)
    }
    assert shown == pytest.approx(rows, rel=1e-6)
