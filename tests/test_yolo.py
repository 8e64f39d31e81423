"""YOLO of ultralytics: traced, cut exactly, and the recipe of its own trainer, metric and exporter.

Each test runs in a process of its own, which downloads nothing: ultralytics replaces functions of
torch and OpenCV when it is imported. Needs `pip install ultralytics`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

SHARES = {"yolov8n": 0.999, "yolo11n": 0.97}  # of the weights, that can be reached
ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("ultralytics") is None, reason="needs pip install ultralytics"),
]
CUT = """
import sys
sys.path[:0] = ["tests/benchmarks"]  # `coverage` has a namesake
import coverage, networks
import prunelab as pl
from prunelab.graph.trace import runner
model, inputs, train_inputs = networks.build("ultralytics/NAME")
coverage.randomise(model, runner(inputs))
graph = pl.trace(model, inputs, train_inputs=train_inputs)
result = coverage.exactness(model, graph, inputs, train_inputs, params=0)
result |= {"unseen": graph.unseen, "untrained": graph.untrained}
result["share"] = coverage.share(model, graph)
"""
RECIPE = """
import runpy
import onnxruntime, torch
found = runpy.run_path(".docs/recipes/yolo.py")
session, exported = found["session"], found["exported"]
x = torch.rand(1, 3, 64, 64)
run = onnxruntime.InferenceSession(exported)
got = torch.from_numpy(run.run(None, {run.get_inputs()[0].name: x.numpy()})[0])
with torch.no_grad():
    want = session.model.eval()(x)[0]
before, after = (point.event.fingerprint for point in session.state.path[-2:])
result = {
    "by": session.ledger[-1].by,
    "share": session.state.now.cost.macs / session.state.base.cost.macs,
    "trained": before != after,
    "error": float((got - want).abs().max() / want.abs().max()),
    "metric": [session.evaluate("val")["mAP"], found["mean_ap"](session.model, None)],
    "file": exported,
}
"""


def run(script: str, folder: Path) -> dict[str, Any]:
    """The `result` of a script in a process of its own."""
    program = f"import json\n{script}\nopen(OUT, 'w').write(json.dumps(result, default=str))\n"
    out = folder / "result.json"
    given = {
        **os.environ, "YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        "TMPDIR": str(folder),
    }  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", f"OUT = {str(out)!r}\n{program}"],
        cwd=ROOT, env=given, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n"])
def test_a_yolo_is_traced_and_cut_in_both_modes(name: str, tmp_path: Path) -> None:
    found = run(CUT.replace("NAME", name), tmp_path)
    assert found["error"] < 1e-10
    assert found["train"] == "yes"
    assert (found["unseen"], found["untrained"]) == ([], "")
    assert found["share"] > SHARES[name]


def test_its_own_trainer_metric_and_exporter_take_the_pruned_network(tmp_path: Path) -> None:
    found = run(RECIPE, tmp_path)
    assert found["by"] == "ultralytics"
    assert found["trained"]
    assert found["share"] <= 0.8
    assert found["error"] < 1e-4
    mine, own = found["metric"]
    assert mine == own
    assert Path(found["file"]).parent.is_relative_to(tmp_path)
