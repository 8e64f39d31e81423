"""Speed of the screen in a browser: first paint, interactive figure, bytes, slider to redraw.

Run: python tests/benchmarks/screen.py [--pictures FOLDER] [NETWORK ...]; needs Chromium,
Playwright and, for densenet201, timm.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
from lab import CHROMIUM, FLAGS, idle, opened, press, serving, settled, write

ZOO = """\
import torch
import prunelab as pl

torch.manual_seed(0)
torch.set_num_threads(1)
model = pl.zoo.load("resnet20")
data = pl.data.load("fashion", subset=True)
"""
IMAGENET = """\
import torch, timm, torchvision
import prunelab as pl

torch.manual_seed(0)
torch.set_num_threads(1)
model = {model}.eval()
few = [(torch.randn(8, 3, 64, 64), torch.randint(0, 1000, (8,)))]
data = pl.Data(train=few, val=few, test=few)
"""
NETWORKS = {
    "resnet20": ZOO,
    "resnet50": IMAGENET.format(model="torchvision.models.resnet50(weights=None)"),
    "densenet201": IMAGENET.format(model='timm.create_model("densenet201")'),
}
SIZE = {"width": 1300, "height": 800}  # of the pictures
SESSION = "session = pl.Session(model, data, method=pl.AOFP(theta=0.01, images=64))\nsession"
SHOW = "screen = pl.show(session)\nscreen"
WATCH = """() => {
  window.seen = {};
  new MutationObserver(() => {
    const look = (name, there) => { if (there && !(name in seen)) seen[name] = performance.now(); };
    look('line', document.querySelector('.prunelab-screen .pl-line'));
    look('picture', document.querySelector('.prunelab-screen .pl-picture svg'));
    look('buttons', document.querySelector('.prunelab-screen [data-arg=propose]:not(:disabled)'));
    look('figure', document.querySelector('.prunelab-screen.pl-drawn'));
  }).observe(document.body, { childList: true, subtree: true, attributes: true });
}"""
SLIDE = """async (n) => {
  const slider = document.querySelector('.prunelab-screen [data-do=theta]'), took = [];
  const drawn = () => document.querySelector('.prunelab-screen .js-plotly-plot').layout.meta;
  for (let i = 0; i < n; i++) {
    const before = drawn(), start = performance.now();
    slider.value = -2.5 + 1.5 * i / n;
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    do await new Promise(requestAnimationFrame);
    while (drawn() === before && document.querySelector('.prunelab-screen .pl-waits'));
    if (drawn() !== before) took.push(performance.now() - start);  // else it changed nothing
  }
  slider.dispatchEvent(new Event('change', { bubbles: true }));
  return took;
}"""


def run_cell(page: Any) -> None:
    """Run the chosen cell and go to the next."""
    page.evaluate("jupyterapp.commands.execute('notebook:run-cell-and-select-next')")


def _size(frame: Any) -> float:
    """Bytes of a frame; what is binary is told in base64."""
    return len(frame["payloadData"]) * (0.75 if frame["opcode"] == 2 else 1)


def measured(
    browser: Any, address: str, notebook: str, megabits: float | None, pictures: Path | None
) -> dict[str, Any]:
    """Milliseconds from running the cell to each part, and the bytes that came meanwhile."""
    page = opened(browser, address, notebook, **SIZE)
    run_cell(page)
    page.wait_for_timeout(500)
    page.wait_for_function(
        "document.querySelectorAll('.jp-Notebook .jp-OutputArea-output').length >= 1",
        timeout=400_000,
    )
    idle(page)
    client = page.context.new_cdp_session(page)
    client.send("Network.enable")
    if megabits:
        speed = megabits * 1e6 / 8
        client.send("Network.emulateNetworkConditions", {
            "offline": False, "latency": 20, "downloadThroughput": speed, "uploadThroughput": speed,
        })  # fmt: skip
    came: list[float] = []
    client.on(
        "Network.webSocketFrameReceived",
        lambda frame: came.append(_size(frame["response"])),
    )
    page.evaluate(WATCH)
    start = page.evaluate("performance.now()")
    run_cell(page)
    page.wait_for_selector(".prunelab-screen.pl-drawn", timeout=300_000)
    seen = {name: at - start for name, at in page.evaluate("seen").items()}
    painted = (
        page.evaluate("performance.getEntriesByName('prunelab-painted').at(-1).startTime") - start
    )
    settled(page)
    result = {"first paint": round(painted), "figure": round(seen["figure"])}
    result["kB"] = round(sum(came) / 1000)
    if megabits is None:
        picture(page, pictures, f"{Path(notebook).stem}-start")
        press(page, "propose")
        picture(page, pictures, f"{Path(notebook).stem}-proposed")
        took = page.evaluate(SLIDE, 20)
        result["slider"] = round(statistics.median(took))
        result["worst"] = round(max(took))
    page.close()
    return result


def picture(page: Any, folder: Path | None, name: str) -> None:
    """The screen at the top of the window, as a file for a person to look at."""
    if folder is None:
        return
    page.evaluate("jupyterapp.shell.collapseLeft()")
    page.evaluate("document.querySelector('.prunelab-screen').scrollIntoView()")
    page.wait_for_timeout(1500)
    page.screenshot(path=folder / f"{name}.png")


HEADS = ("network", "line", "first paint", "figure", "kB", "slider", "worst")


def main() -> None:
    """Print a table of all networks, or of those named."""
    parser = argparse.ArgumentParser(description="Speed of the screen in a browser.")
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    print("| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        for name in given.networks:
            for at in (name, f"{name}-slow"):
                write(Path(folder) / f"{at}.ipynb", (NETWORKS[name] + SESSION, SHOW))
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with serving(Path(folder)) as address:
            for name in given.networks:
                for at, megabits in ((name, None), (f"{name}-slow", 10.0)):
                    line = f"{megabits:g} Mbit/s" if megabits else "local"
                    row = {"network": name, "line": line}
                    row |= measured(browser, address, f"{at}.ipynb", megabits, given.pictures)
                    print("| " + " | ".join(str(row.get(h, "")) for h in HEADS) + " |", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
