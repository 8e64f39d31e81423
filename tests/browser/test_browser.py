"""In a real browser: the screen in JupyterLab, where clicks reach the session, and the report.

Run with `pytest -m browser`; needs Playwright and a chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

import prunelab as pl

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
REPOSITORY = Path(__file__).parents[2]
SECONDS = 1000  # Playwright counts in ms

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH"),
]

CELLS = (
    """\
import torch
import prunelab as pl

torch.manual_seed(0)
torch.set_num_threads(1)
model = pl.zoo.load("resnet20")
data = pl.data.load("fashion", subset=True)
session = pl.Session(model, data, method=pl.AOFP(theta=0.01))
""",
    "screen = pl.show(session)\nscreen",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab whose folder holds screen.ipynb."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in CELLS],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    nbformat.write(notebook, folder / "screen.ipynb")
    news = folder / "settings" / "@jupyterlab" / "apputils-extension"
    news.mkdir(parents=True)
    (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "ServerApp.port": port,
        "ServerApp.root_dir": folder,
        "IdentityProvider.token": "",
        "ServerApp.allow_root": True,
        "LabApp.open_browser": False,
        "LabApp.expose_app_in_browser": True,
        "LabApp.user_settings_dir": folder / "settings",
        "LabApp.workspaces_dir": folder / "workspaces",
    }
    command = [sys.executable, "-m", "jupyterlab"]
    command += [f"--{name}={value}" for name, value in options.items()]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
    }
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api/status", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(20)


def _wait_for(address: str, server: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urlopen(address, timeout=2).close()
            return
        except (URLError, OSError):
            time.sleep(0.3)
    raise RuntimeError("JupyterLab did not start")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A chromium without a window."""
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser: Any, lab: str) -> Any:
    """The notebook, run to its end, with the screen drawn."""
    page = browser.new_page(viewport={"width": 1400, "height": 1500})
    page.set_default_timeout(120 * SECONDS)
    page.goto(f"{lab}/lab/tree/screen.ipynb?reset")
    _ready(page)
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(".prunelab-screen .js-plotly-plot .main-svg")
    _settled(page)
    return page


def _ready(page: Any) -> None:
    """The application is restored, the notebook's session is ready and the kernel idle."""
    page.wait_for_function("window.jupyterapp !== undefined")
    page.evaluate("jupyterapp.restored.then(() => true)")
    page.wait_for_function("jupyterapp.shell.currentWidget?.sessionContext !== undefined")
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.ready.then(() => true)")
    page.wait_for_function(
        "jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'"
    )


def _settled(page: Any) -> None:
    """No verb is at work (Stop is off) and the figure stands still."""
    page.wait_for_function(
        """() => { const stop = [...document.querySelectorAll('.prunelab-screen button')]
             .find(b => b.textContent.trim() === 'Stop'); return stop && stop.disabled; }"""
    )
    page.wait_for_timeout(1500)


def _click(page: Any, verb: str) -> None:
    page.locator(".prunelab-screen button", has_text=verb).first.click()
    page.wait_for_timeout(300)
    _settled(page)


def _click_bar(page: Any, rank: int) -> None:
    """Click into the column of the importance panel that has this rank."""
    x, y = page.evaluate(
        """rank => {
             const plot = document.querySelector('.js-plotly-plot');
             plot.scrollIntoView({block: 'center'});
             const { xaxis, yaxis } = plot._fullLayout, box = plot.getBoundingClientRect();
             return [box.left + xaxis._offset + xaxis.c2p(rank),
                     box.top + yaxis._offset + yaxis._length / 2]; }""",
        rank,
    )
    page.mouse.move(x, y)
    page.wait_for_timeout(500)
    page.mouse.click(x, y)
    page.wait_for_timeout(2 * SECONDS)


def _drawn(page: Any) -> dict[str, Any]:
    """What plotly draws, by trace name: [x, y] as lists."""
    return page.evaluate(
        """() => Object.fromEntries(document.querySelector('.js-plotly-plot').data.map(
             t => [t.name, [Array.from(t.x ?? []), Array.from(t.y ?? [])]]))"""
    )


def _enabled(page: Any) -> set[str]:
    return set(
        page.evaluate(
            """() => [...document.querySelectorAll('.prunelab-screen button')]
                 .filter(b => !b.disabled).map(b => b.textContent.trim())"""
        )
    )


def _shoot(page: Any, folder: Path, name: str) -> None:
    """A picture for a person to look at; nothing is asserted on it."""
    target = folder / f"{name}.png"
    page.locator(".prunelab-screen").screenshot(path=target)
    print(f"\nscreenshot: {target}")


def test_clicks_reach_the_session_and_the_figure_follows(
    page: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shots")
    start = _drawn(page)
    assert start["path"][0] == [100]
    assert not start["search"][0]
    _shoot(page, folder, "1-start")

    _click(page, "Propose")
    proposed = _drawn(page)
    assert proposed["drop"][0], "bars: some are to be dropped"
    assert len(proposed["search"][0]) >= 1, "ladder: at least one halving"
    assert max(proposed["proposed to drop"][0]) > 0, "widths"
    assert proposed["proposed"][0][1] < 100, "trajectory: the question mark"
    assert {"Approve", "Adjust", "Reject", "Undo"} <= _enabled(page)
    assert "Propose" not in _enabled(page)
    _shoot(page, folder, "2-proposed")

    _click_bar(page, len(proposed["channel"][0]) - 1)
    assert len(_drawn(page)["drop"][0]) == len(proposed["drop"][0]) + 1, "a bar was clicked"
    _click_bar(page, len(proposed["channel"][0]) - 1)
    assert _drawn(page)["drop"] == proposed["drop"], "and clicked again"

    box = page.locator(".prunelab-screen input[type=number]").first
    box.fill(str(len(proposed["drop"][0]) + 1))
    box.press("Enter")
    page.wait_for_timeout(2 * SECONDS)
    _click(page, "Adjust")
    adjusted = _drawn(page)
    assert len(adjusted["drop"][0]) == len(proposed["drop"][0]) + 1
    _shoot(page, folder, "3-adjusted")

    _click(page, "Approve")
    approved = _drawn(page)
    assert len(approved["path"][0]) >= 2
    assert approved["path"][0][-1] < 100
    assert len(approved["gone"][0]) == len(adjusted["drop"][0])
    assert sum(approved["kept"][0]) < sum(start["kept"][0])
    _shoot(page, folder, "4-approved")

    _click(page, "Undo")
    undone = _drawn(page)
    assert undone["path"][0] == [100]
    assert undone["undone"][0], "the branch stays, in grey"
    assert undone["kept"][0] == start["kept"][0]
    _shoot(page, folder, "5-undone")


def test_the_figure_fills_the_screen_and_nothing_sticks_out(
    page: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("widths")
    if "Propose" in _enabled(page):
        _click(page, "Propose")
    page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
    for width in (1900, 1400, 1000, 600, 1200):
        page.set_viewport_size({"width": width, "height": 2400})
        page.wait_for_timeout(4 * SECONDS)
        # the browser redraws when it finds the time: it must come to fit, and stay so
        page.wait_for_function(
            """stacked => { const [screen, place, drawn] =
                 ['.prunelab-screen', '.js-plotly-plot', '.js-plotly-plot .main-svg']
                 .map(s => document.querySelector(s).getBoundingClientRect());
                 return Math.abs(screen.width - drawn.width) < 20
                   && Math.abs(place.height - drawn.height) < 2
                   && stacked === drawn.height > drawn.width; }""",
            arg=width == 600,
            timeout=30 * SECONDS,
        )
        _shoot(page, folder, f"{width}px")


def test_a_key_presses_the_button_and_a_reload_shows_the_same(page: Any) -> None:
    page.set_viewport_size({"width": 1400, "height": 1500})
    if "Reject" in _enabled(page):
        _click(page, "Reject")
    page.locator(".prunelab-screen").focus()
    page.keyboard.press("p")
    page.wait_for_timeout(300)
    _settled(page)
    before = _drawn(page)
    assert before["drop"][0]
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(2 * SECONDS)
    page.reload()
    _ready(page)
    page.wait_for_selector(".prunelab-screen .js-plotly-plot .main-svg")
    _settled(page)
    assert _drawn(page) == before


# ---------------------------------------------------------------- the method's fold


def test_a_theta_that_is_typed_reaches_the_next_search(page: Any) -> None:
    page.set_viewport_size({"width": 1400, "height": 1500})
    if "Reject" in _enabled(page):
        _click(page, "Reject")
    drawn = _drawn(page)["search"]
    page.locator(".prunelab-screen .jupyter-widget-Collapse-header", has_text="Method").click()
    box = page.get_by_label("theta", exact=True).first
    box.fill("0.05")
    box.press("Enter")
    page.wait_for_timeout(2 * SECONDS)
    assert page.get_by_text("0.050 = stop where a layer would lose more than 5.0%").is_visible()
    foreseen = _drawn(page)["search"]
    assert foreseen != drawn, "the search as it would go with this theta"
    _click(page, "Propose")
    assert _drawn(page)["search"] == foreseen
    _click(page, "Reject")


# ---------------------------------------------------------------- the report


def test_the_report_steps_through_the_session_without_a_network(
    browser: Any, session: pl.Session, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    session.propose()
    session.approve()
    address = session.export(tmp_path / "run.html").as_uri()
    page = browser.new_page(viewport={"width": 1200, "height": 1400})
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda told: errors.append(told.text))
    page.goto(address)
    page.wait_for_selector(".pictures svg")
    seen = []

    def look(step: int) -> None:
        page.wait_for_function(
            "step => document.querySelector('#place').textContent.startsWith(`step ${step} `)",
            arg=step,
        )
        seen.append((page.locator(".line").inner_text(), page.inner_html(".pictures")))

    look(1)
    page.click("#next")
    look(2)
    page.keyboard.press("ArrowRight")
    look(3)
    assert len(set(seen)) == 3, "line and figure change with every step"
    assert len({picture for _, picture in seen}) == 3
    assert page.locator("#next").is_disabled()
    page.keyboard.press("ArrowLeft")
    look(2)
    assert seen[3][0] == seen[1][0]
    page.locator("#history tbody tr").last.click()
    look(1)
    page.click("#play")
    look(3)
    assert page.locator("#play").inner_text() == "Play", "it ends by itself"

    page.keyboard.press("Home")
    page.get_by_text("Costs by layer", exact=True).click()
    assert page.locator("details[open] svg").count() == 3
    page.click("#every")
    assert page.locator("article").count() == 3, "all steps under each other"
    page.click("#every")
    assert page.locator("details[open] svg").count() == 3, "what was unfolded stays so"
    page.focus("#history tbody tr:first-child")
    page.keyboard.press("Enter")
    assert page.locator("#place").inner_text() == "step 3 of 3"

    def fits() -> bool:
        return page.evaluate(
            """() => {
                 const wide = document.documentElement.clientWidth;
                 const drawn = [...document.querySelectorAll('.pictures svg')]
                   .map((one) => one.getBoundingClientRect()).filter((box) => box.width);
                 return document.documentElement.scrollWidth <= wide
                   && drawn.every((box) => box.left >= 0 && box.right <= wide && box.width >= 480);
               }"""
        )

    target = tmp_path_factory.mktemp("report")
    for width in (1500, 700, 600):
        page.set_viewport_size({"width": width, "height": 1400})
        assert fits(), f"{width} px"
        page.screenshot(path=target / f"{width}px.png", full_page=True)
        print(f"\nscreenshot: {target / f'{width}px.png'}")
        page.click("#theme")
    assert (asked, errors) == ([address], [])
    page.close()
