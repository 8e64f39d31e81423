"""A real JupyterLab for browser tests and benchmarks, and actions on its pages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
from playwright.sync_api import TimeoutError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
REPOSITORY = Path(__file__).parents[2]
SECONDS = 1000  # Playwright counts in ms
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
}
FIGURE = ".prunelab-screen .js-plotly-plot .main-svg"


def write(path: Path, cells: Sequence[str]) -> None:
    """A notebook of code cells."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    nbformat.write(notebook, path)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab on `folder`, with the settings of `prunelab lab`."""
    news = folder / "settings" / "@jupyterlab" / "apputils-extension"
    news.mkdir(parents=True, exist_ok=True)
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
        **ENVIRONMENT,
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_CONFIG_PATH": str(REPOSITORY / "prunelab" / "assets" / "jupyter"),
    }
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/api/status", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(20)


def wait_for(address: str, server: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urlopen(address, timeout=2).close()
            return
        except (URLError, OSError):
            time.sleep(0.3)
    raise RuntimeError(f"the server did not start: {server.args}")


def opened(browser: Any, address: str, notebook: str, **viewport: int) -> Any:
    """A page with `notebook` open and its kernel idle."""
    page = browser.new_page(viewport={"width": 1400, "height": 1500, **viewport})
    page.set_default_timeout(120 * SECONDS)
    page.goto(f"{address}/lab/tree/{notebook}?reset")
    ready(page)
    return page


def ready(page: Any) -> None:
    """The application is restored, the notebook's session is ready and the kernel idle."""
    page.wait_for_function("window.jupyterapp !== undefined")
    page.evaluate("jupyterapp.restored.then(() => true)")
    page.wait_for_function("jupyterapp.shell.currentWidget?.sessionContext !== undefined")
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.ready.then(() => true)")
    idle(page)


def idle(page: Any) -> None:
    """The kernel has nothing to do."""
    page.wait_for_function(
        "jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'"
    )


def run_all(page: Any) -> None:
    """Run every cell, and wait until the screen with its figure stands."""
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(FIGURE)
    settled(page)


def settled(page: Any) -> None:
    """No verb is at work (Stop is off), every message is answered, and the screen says so."""
    try:
        page.wait_for_function(
            """() => document.querySelector('.prunelab-screen [data-arg=stop]')?.disabled
                 && !document.querySelector('.prunelab-screen .pl-waits')"""
        )
    except TimeoutError as late:
        shown = page.evaluate(
            """() => { const screen = document.querySelector('.prunelab-screen');
                 const waits = [...screen?.querySelectorAll('.pl-waits') ?? []];
                 return [screen?.className, waits.length, screen?.innerText.slice(0, 1500)]; }"""
        )
        raise AssertionError(f"the screen does not settle: {shown}") from late


# ---------------------------------------------------------------- what one does on the page


def on(verb: str) -> str:
    """The selector of a button."""
    return f".prunelab-screen [data-do=press][data-arg={verb}]:not(:disabled)"


def press(page: Any, verb: str) -> None:
    """Click a button, and wait until its verb is over."""
    page.locator(on(verb)).first.click()
    settled(page)


def unfold(page: Any, name: str) -> None:
    """Open a section, and wait for its contents."""
    if not page.evaluate(f"document.querySelector('details[data-section={name}]').open"):
        page.locator(f"details[data-section={name}] > summary").click()
    page.wait_for_selector(f"details[data-section={name}] > .pl-inside > *")
    settled(page)


def type_into(page: Any, selector: str, value: str) -> None:
    """Type over what stands in a box."""
    page.locator(selector).fill(value)
    page.locator(selector).press("Enter")
    settled(page)


def drag(page: Any, selector: str, start: float, end: float) -> None:
    """Drag the knob of a slider from one share of its length to another, and leave it there."""
    slider = page.locator(selector)
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], y)
    page.mouse.down()
    for step in range(1, 6):
        page.mouse.move(box["x"] + (start + (end - start) * step / 5) * box["width"], y)
    settled(page)


def question(page: Any) -> str:
    """The one sentence that the screen asks."""
    return page.locator(".pl-question").inner_text()


def drawn(page: Any) -> dict[str, Any]:
    """What plotly draws, by trace name: [x, y] as lists."""
    return page.evaluate(
        """() => Object.fromEntries(document.querySelector('.js-plotly-plot').data.map(
             t => [t.name, [Array.from(t.x ?? []), Array.from(t.y ?? [])]]))"""
    )


def wait_for_drawn(page: Any, test: str, arg: Any = None) -> None:
    """Wait until plotly's data pass `test`, JavaScript of (traces by name, arg)."""
    page.wait_for_function(
        f"""arg => {{
              const data = document.querySelector('.js-plotly-plot')?.data;  // none: put anew
              return data && ({test})(Object.fromEntries(data.map(t => [t.name, t])), arg);
            }}""",
        arg=arg,
        timeout=90 * SECONDS,
    )


def click_bar(page: Any, rank: int) -> None:
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
    page.mouse.move(x - 2, y)
    page.mouse.move(x, y)
    # plotly clicks what it hovered over last, and looks for that at most every 50 ms: a click
    # that comes sooner would hit the column that the mouse crossed on its way
    page.wait_for_function(
        "rank => document.querySelector('.js-plotly-plot')._hoverdata?.[0]?.x === rank", arg=rank
    )
    page.mouse.click(x, y)
