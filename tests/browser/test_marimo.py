"""The same screen in marimo: its buttons work, its figure follows, and a cell that runs again."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BEGIN
from lab import CHROMIUM, ENVIRONMENT, SECONDS, on, wait_for

pytest.importorskip("marimo", reason="marimo is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH"),
]

NOTEBOOK = """\
import marimo

app = marimo.App(width="full")


@app.cell
def _():
    import marimo as mo
    {begin}
    session = pl.Session(model, data, method=pl.AOFP(theta=0.01))
    again = mo.ui.button(label="again")
    return again, mo, pl, session


@app.cell
def _(again):
    again
    return


@app.cell
def _(again, mo, pl, session):
    again.value
    screen = pl.show(session)
    {shown}
    return (screen,)
"""
# marimo puts a widget under a shadow root, where `document.querySelector` does not look
PLOT = """() => {
  const found = (root) => root.querySelector('.js-plotly-plot')
    ?? [...root.querySelectorAll('*')].map(n => n.shadowRoot && found(n.shadowRoot)).find(n => n);
  return found(document); }"""


@pytest.fixture(params=["screen", "mo.ui.anywidget(screen)"])
def page(request: pytest.FixtureRequest, browser: Any, tmp_path: Path) -> Iterator[Any]:
    """A page of a marimo server that runs a notebook with a screen."""
    begin = BEGIN.strip().replace("\n", "\n    ").replace("\n    \n", "\n\n")
    (tmp_path / "prune.py").write_text(NOTEBOOK.format(begin=begin, shown=request.param))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "marimo", "run", "prune.py", "--headless", "--no-token"]
    with (tmp_path / "marimo.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--port", port], cwd=tmp_path, env=ENVIRONMENT, stdout=log, stderr=log
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server)
            made = browser.new_page(viewport={"width": 1300, "height": 1300})
            made.set_default_timeout(60 * SECONDS)
            made.goto(f"http://127.0.0.1:{port}")
            yield made
            made.close()
        finally:
            server.terminate()
            server.wait(20)


def settled(page: Any) -> None:
    """No verb is at work, and every message is answered."""
    page.wait_for_function(
        f"""() => {{ const screen = ({PLOT})()?.closest('.prunelab-screen');
             return screen?.querySelector('[data-arg=stop]')?.disabled
               && !screen.querySelector('.pl-waits'); }}"""
    )


def press(page: Any, verb: str) -> None:
    page.locator(on(verb)).first.click()
    settled(page)


def path(page: Any) -> list[float]:
    """The MACs of the points of the trajectory, as the figure draws it."""
    found: list[float] = page.evaluate(f"({PLOT})().data.find(t => t.name === 'path').x")
    return found


def test_marimo_shows_the_screen_and_its_buttons_work(page: Any) -> None:
    said: list[str] = []
    page.on("console", lambda told: said.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.wait_for_selector(".prunelab-screen .main-svg")
    settled(page)
    question = page.locator(".pl-question")
    first = question.inner_text()

    press(page, "propose")
    assert question.inner_text() != first
    assert question.inner_text().startswith("Remove ")
    page.wait_for_selector(".pl-trial:not(.pl-hint)")
    asked = question.inner_text()
    x, y = page.evaluate(
        f"""() => {{ const plot = ({PLOT})(), {{ xaxis, yaxis }} = plot._fullLayout;
             const box = plot.getBoundingClientRect();
             return [box.left + xaxis._offset + xaxis.c2p(40),
                     box.top + yaxis._offset + yaxis._length / 2]; }}"""
    )
    page.mouse.move(x - 2, y)
    page.mouse.move(x, y)
    page.wait_for_function(f"({PLOT})()._hoverdata?.[0]?.x === 40")
    page.mouse.click(x, y)
    page.wait_for_selector(".pl-question:has-text('instead?')")
    page.locator("[data-do=back]").click()
    settled(page)
    assert question.inner_text() == asked

    page.locator(".prunelab-screen").focus()
    page.keyboard.press("a")
    page.wait_for_selector(on("propose"))
    settled(page)
    assert question.inner_text() == "What next?"
    page.wait_for_function(f"({PLOT})().data.find(t => t.name === 'path').x.length >= 2")
    assert path(page)[-1] < path(page)[0] == 100
    assert said == []

    page.evaluate("document.body.classList.add('dark')")
    page.wait_for_function(
        f"getComputedStyle(({PLOT})().closest('.prunelab-screen')).backgroundColor"
        " === 'rgb(22, 25, 29)'"
    )


def test_a_cell_of_marimo_that_runs_again_shows_a_screen_that_works(page: Any) -> None:
    page.wait_for_selector(".prunelab-screen .main-svg")
    press(page, "propose")
    asked = page.locator(".pl-question").inner_text()
    page.evaluate(f"({PLOT})().closest('.prunelab-screen').classList.add('earlier')")
    page.get_by_role("button", name="again").click()
    page.wait_for_selector(".prunelab-screen:not(.earlier) .main-svg")
    settled(page)
    assert page.locator(".pl-question").inner_text() == asked
    press(page, "reject")
    assert page.locator(".pl-question").inner_text() != asked
