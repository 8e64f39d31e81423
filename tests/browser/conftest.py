"""Fixtures: a headless Chromium, and a JupyterLab with notebooks that show a screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("nbformat", reason="nbformat is not installed")
pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from lab import CHROMIUM, FLAGS, opened, run_all, serving, write  # noqa: E402

BEGIN = """\
import torch
import prunelab as pl

torch.manual_seed(0)
torch.set_num_threads(1)
model = pl.zoo.load("resnet20")
data = pl.data.load("fashion", subset=True)
"""
SESSION = 'session = pl.Session(model, data, method=pl.AOFP(theta=0.01), path="run.prunelab")'
SHOW = "screen = pl.show(session)\nscreen"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A chromium without a window."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    with sync_api.sync_playwright() as play:
        made = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab whose folder holds screen.ipynb."""
    folder = tmp_path_factory.mktemp("lab")
    write(folder / "screen.ipynb", (BEGIN + SESSION, SHOW))
    for name in ("plain", "still", "monkey"):
        write(folder / f"{name}.ipynb", (BEGIN + "session = pl.Session(model, data)", SHOW))
    write(
        folder / "two.ipynb",
        (
            BEGIN + "session = pl.Session(model, data)",
            "from prunelab.notebook.figure_slot import FigureSlot\n"
            "loads, load = [], FigureSlot.load\n"
            "FigureSlot.load = lambda slot: loads.append(load(slot))",
            SHOW,
            'pl.show(session, theme="dark")',
        ),
    )
    write(
        folder / "poor.ipynb",
        (
            BEGIN + "session = pl.Session(model, data)",
            "from IPython.display import Javascript\n"
            "Javascript('delete window.DecompressionStream')",
            SHOW,
        ),
    )
    with serving(folder) as address:
        yield address


@pytest.fixture(scope="session")
def page(browser: Any, lab: str) -> Any:
    """The notebook, run to its end, with the screen and its figure drawn."""
    made = opened(browser, lab, "screen.ipynb", height=2400)
    run_all(made)
    return made
