"""The recipes of the reference run as they are."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[1] / ".docs" / "recipes"
NEEDS = {"lightning_trainer": "lightning", "int8": "onnxruntime"}


def test_every_recipe_is_in_the_reference() -> None:
    page = (RECIPES.parent / "recipes.rst").read_text(encoding="utf-8")
    files = sorted(path.name for path in RECIPES.glob("*.py"))
    assert files
    assert all(f".. literalinclude:: recipes/{name}\n" in page for name in files)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the packages that they use
@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.py")))
def test_a_recipe_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    found = runpy.run_path(str(RECIPES / f"{name}.py"))
    session = found["session"]
    assert session.state.now.cost.macs <= 0.8 * session.state.base.cost.macs
    assert session.state.line() in capsys.readouterr().out or name == "int8"
    if name == "lightning_trainer":
        assert session.ledger[-1].by == "Lightning"
        assert found["module"].network is not None
