"""Time and peak memory of the lessons, each run in its own kernel.

    python tests/benchmarks/notebooks.py [NUMBER ...] [--write]

Prints a table: CPU seconds of the kernel (one thread, so about the seconds on an idle machine), of
its longest cell (the longest wait), its peak of memory, and the size of the file. `--write` puts
the outputs back into the notebooks, a PNG beside every figure for viewers that run no JavaScript
and, as JupyterLab does in a notebook that it does not trust yet, draw no SVG either; it needs
Chromium.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import nbformat
import plotly
import psutil
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
PLOTLY, SVG = "application/vnd.plotly.v1+json", "image/svg+xml"
WIDGET = "application/vnd.jupyter.widget-view+json"
STILL = 'class="prunelab-still"'  # the picture beside a screen, which needs no kernel
WIDTH, SCALE = 860, 1  # pixels of a PNG, for figures that say no width of their own
ASK = (  # ru_maxrss is in kB on Linux
    "import resource, time\n"
    "print(time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
)


def executed(path: Path) -> tuple[Any, float, float, float]:
    """The notebook with fresh outputs, CPU seconds of kernel and longest cell, peak in bytes."""
    clock = [0.0]

    def look(**_: Any) -> None:
        spent = psutil.Process(client.km.provisioner.pid).cpu_times()
        clock.append(spent.user + spent.system)

    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(ASK))
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False, record_timing=False, on_cell_executed=look,
    )  # fmt: skip
    client.execute()
    seconds, peak = map(float, notebook.cells.pop().outputs[0].text.split())
    longest = max(after - before for before, after in itertools.pairwise(clock))
    return notebook, seconds, longest, peak


def stored(notebook: Any) -> Any:
    """The notebook as it is kept: what a kernel or a front end adds of its own is left out."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02}"
        pages = [out.get("data", {}).get("text/html", "") for out in cell.get("outputs", ())]
        if any(STILL in page for page in pages):
            cell.outputs = [out for out in cell.outputs if WIDGET not in out.get("data", {})]
        for output in cell.get("outputs", ()):
            for kind in (WIDGET, "text/html"):
                output.get("data", {}).pop(kind, None)
    return notebook


def light(png: bytes) -> str:
    """A PNG as a notebook holds it, of at most 128 colours: a third of the bytes, and as clear."""
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def drawn(notebook: Any) -> None:
    """Put a PNG beside every plotly figure, every SVG, and every screen."""
    from playwright.sync_api import sync_playwright

    outputs = [
        out.data for cell in notebook.cells for out in cell.get("outputs", ()) if "data" in out
    ]
    found = [data for data in outputs if PLOTLY in data]
    still = [data for data in outputs if SVG in data]
    screens = [data for data in outputs if STILL in data.get("text/html", "")]
    if not found and not still and not screens:
        return
    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
            args=["--no-sandbox"],
        )
        page = browser.new_page()
        page.set_content("<div id='figure'></div>")
        page.add_script_tag(path=script)
        for data in found:
            figure = json.loads(json.dumps(data[PLOTLY]))
            layout = figure["layout"]
            size = {"width": layout.get("width", WIDTH), "height": layout.get("height", 450)}
            layout |= size | {"paper_bgcolor": "white", "plot_bgcolor": "white"}
            url = page.evaluate(
                "async ([figure, size]) => {"
                "  await Plotly.newPlot('figure', figure.data, figure.layout);"
                "  return await Plotly.toImage('figure', {format: 'png', ...size}); }",
                [figure, size | {"scale": SCALE}],
            )
            data["image/png"] = light(base64.b64decode(url.split(",", 1)[1]))
        for data in still:
            page.set_content(data[SVG])
            data["image/png"] = light(page.locator("svg").first.screenshot())
        for data in screens:
            page.set_content(data["text/html"])
            data["image/png"] = light(page.locator("img").first.screenshot())
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", help="such as 00 04; all without any")
    parser.add_argument("--write", action="store_true", help="keep the outputs")
    given = parser.parse_args()
    print(
        "| lesson | CPU, s | longest cell, s | peak memory, MB | file, kB |\n|---|---|---|---|---|"
    )
    for path in sorted(FOLDER.glob("*.ipynb")):
        if given.numbers and path.name.split("-")[0] not in given.numbers:
            continue
        notebook, seconds, longest, peak = executed(path)
        if given.write:
            drawn(notebook)
            nbformat.write(stored(notebook), path)
        size = path.stat().st_size / 1e3
        row = (path.stem, f"{seconds:.0f}", f"{longest:.0f}", f"{peak / 1e6:.0f}", f"{size:.0f}")
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
