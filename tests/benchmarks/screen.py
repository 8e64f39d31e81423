"""Speed of the screen in a browser: first paint, bytes, time from slider to redraw.

Run: python tests/benchmarks/screen.py [resnet20|resnet50|deep]; needs Chromium and Playwright.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))
from lab import CHROMIUM, FIGURE, FLAGS, idle, opened, serving, settled, write

ZOO = """\
import torch
import prunelab as pl

torch.manual_seed(0)
torch.set_num_threads(1)
model = pl.zoo.load("resnet20")
data = pl.data.load("fashion", subset=True)
"""
IMAGENET = """\
import torch, torchvision
import prunelab as pl

torch.manual_seed(0)
torch.set_num_threads(1)
model = torchvision.models.{model}(weights=None).eval()
few = [(torch.randn(8, 3, 64, 64), torch.randint(0, 1000, (8,)))]
data = pl.Data(train=few, val=few, test=few)
"""
NETWORKS = {
    "resnet20": ZOO,
    "resnet50": IMAGENET.format(model="resnet50"),
    "deep": IMAGENET.format(model="densenet201"),
}
SESSION = "session = pl.Session(model, data, method=pl.AOFP(theta=0.01, images=64))\nsession"
SHOW = "screen = pl.show(session)\nscreen"
WATCH = """() => {
  window.seen = {};
  new MutationObserver(() => {
    const look = (name, there) => { if (there && !(name in seen)) seen[name] = performance.now(); };
    look('line', document.querySelector('.prunelab-screen .pl-line'));
    look('picture', document.querySelector('.prunelab-screen .pl-picture svg'));
    look('buttons', document.querySelector('.prunelab-screen [data-arg=propose]:not(:disabled)'));
    look('figure', document.querySelector('.prunelab-screen .js-plotly-plot .main-svg'));
  }).observe(document.body, { childList: true, subtree: true });
}"""
SLIDE = """async (n) => {
  const slider = document.querySelector('.prunelab-screen [data-do=theta]'), took = [];
  const words = () => document.querySelector('.prunelab-screen .pl-words').textContent;
  for (let i = 0; i < n; i++) {
    const before = words(), start = performance.now();
    slider.value = -2.5 + 1.5 * i / n;
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    while (words() === before && performance.now() - start < 5000)
      await new Promise(requestAnimationFrame);
    took.push(performance.now() - start);
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


def measured(browser: Any, address: str, notebook: str, megabits: float | None) -> dict[str, Any]:
    """Milliseconds from running the cell to each part, and the bytes that came meanwhile."""
    page = opened(browser, address, notebook)
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
    page.wait_for_selector(FIGURE, timeout=300_000)
    seen = {name: at - start for name, at in page.evaluate("seen").items()}
    painted = (
        page.evaluate("performance.getEntriesByName('prunelab-painted').at(-1).startTime") - start
    )
    settled(page)
    total = sum(came)
    result = {"first paint": round(painted), **{n: round(v) for n, v in seen.items()}}
    result["kB in all"] = round(total / 1000)
    if megabits is None:
        page.locator(".prunelab-screen [data-arg=propose]").click()
        page.wait_for_timeout(300)
        settled(page)
        page.locator(".prunelab-screen summary", has_text="Method").click()
        page.wait_for_selector(".prunelab-screen [data-do=theta]")
        settled(page)
        took = page.evaluate(SLIDE, 20)
        result["slider to redraw, median"] = round(statistics.median(took))
        result["slider to redraw, worst"] = round(max(took))
    page.close()
    return result


def main() -> None:
    """Print the table of one network."""
    name = sys.argv[1] if len(sys.argv) > 1 else "resnet20"
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        for at in ("full", "slow"):
            write(Path(folder) / f"{at}.ipynb", (NETWORKS[name] + SESSION, SHOW))
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with serving(Path(folder)) as address:
            for at, megabits in (("full", None), ("slow", 10.0)):
                label = f"{megabits:g} Mbit/s" if megabits else "local"
                found = measured(browser, address, f"{at}.ipynb", megabits)
                print(f"{name}, {label}: {json.dumps(found)}", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
