"""int8 after pruning: ONNX Runtime quantises the exported network; PT2E takes the .pt2 alike."""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime import quantization

import prunelab as pl


class Images(quantization.CalibrationDataReader):
    """Training images, on which the ranges of activations are measured."""

    def __init__(self, batches, name):
        self.batches = iter([{name: images.numpy()} for images, _ in batches])

    def get_next(self):
        """The next batch, or None."""
        return next(self.batches, None)


def accuracy(path, batches):
    """The share of images that the ONNX file classifies correctly."""
    run = onnxruntime.InferenceSession(path)
    name = run.get_inputs()[0].name
    right = [run.run(None, {name: x.numpy()})[0].argmax(1) == y.numpy() for x, y in batches]
    return float(np.concatenate(right).mean())


data = pl.data.load("fashion", subset=True)
session = pl.Session(pl.zoo.load("mobilenet"), data, method="magnitude", round_to=8)
session.run(target_macs=0.8)

folder = Path(tempfile.mkdtemp())
small = session.export(folder / "small.onnx")
quantization.quant_pre_process(small, folder / "ready.onnx", skip_symbolic_shape=True)
calibration = Images(
    [next(iter(data.train))], onnxruntime.InferenceSession(small).get_inputs()[0].name
)
quantization.quantize_static(
    folder / "ready.onnx", folder / "int8.onnx", calibration, per_channel=True,
    activation_type=quantization.QuantType.QUInt8,
)  # fmt: skip
for name in ("small.onnx", "int8.onnx"):
    size = (folder / name).stat().st_size / 1e3
    print(f"{name}: {size:.0f} kB, {accuracy(folder / name, data.test):.1%}")
