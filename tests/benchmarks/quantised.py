"""Prune, export, quantise to int8, compile: accuracy, size and latency of each stage in tables.

    python tests/benchmarks/quantised.py [NETWORK] [--target-macs 0.5] [--method surgeon] [--tune 0]
        [--images 512] [--round-to 8]

The stages are the original, the pruned network and its repair, in ONNX Runtime; then static int8
quantisation of both by ONNX Runtime (QDQ, weights per channel, calibrated on training images).
A second table has both networks in PyTorch: as they are, by `torch.compile` where there is a C++
compiler, under autocast to bfloat16 (AMP), in bfloat16, and the pruned one quantised by PT2E where
torchao is installed. Latencies are measured in turns; nothing here is asserted.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime import quantization
from torch import nn
from torch._inductor import config as inductor

import prunelab as pl
from prunelab.values import table

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Stage:
    """One stage; `size` in bytes, `milliseconds` for one batch."""

    name: str
    accuracy: float
    size: int
    milliseconds: float


def stages(
    session: pl.Session, folder: Path, images: int = 512, runs: int = 30, batch: int = 16
) -> list[Stage]:
    """The stages of a session that has been pruned, the files of which go to `folder`."""
    files = {"pruned": session.export(folder / "pruned.onnx")}
    begun = pl.Session(session.original(), session.data, method="random")
    files = {"original": begun.export(folder / "original.onnx"), **files}
    for name in tuple(files):
        made = folder / f"{name}-int8.onnx"
        to_int8(files[name], made, _images(session.data.train, images))
        files[f"{name}, int8"] = made
    timed = _latencies({name: _runner(path) for name, path in files.items()}, session, runs, batch)
    return [
        Stage(name, accuracy(_runner(path), session.data.test), path.stat().st_size, timed[name])
        for name, path in files.items()
    ]


def to_int8(path: Path, made: Path, images: Iterable[np.ndarray]) -> None:
    """Quantise an ONNX file, calibrated on batches of images."""
    prepared = made.with_suffix(".prepared.onnx")
    quantization.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared), str(made), _Reader(prepared, iter(images)), per_channel=True,
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    prepared.unlink()


class _Reader(quantization.CalibrationDataReader):
    def __init__(self, path: Path, images: Iterator[np.ndarray]) -> None:
        self.name = onnxruntime.InferenceSession(str(path)).get_inputs()[0].name
        self.images = images

    def get_next(self) -> dict[str, np.ndarray] | None:
        found = next(self.images, None)
        return None if found is None else {self.name: found}


def in_torch(
    session: pl.Session, folder: Path, images: int = 512, runs: int = 30, batch: int = 16
) -> list[Stage]:
    """The original and the pruned network in PyTorch; without `torch.compile` where it fails."""
    x = next(_images(session.data.test, 32))[:batch]
    made: dict[str, tuple[Run, int]] = {}
    for name, net in (("original", session.original()), ("pruned", session.model)):
        net, half = net.eval(), copy.deepcopy(net).eval().bfloat16()
        made[name] = _run_of(net), _bytes(net)
        if (run := _compiled(net, x)) is not None:
            made[f"{name}, torch.compile"] = run, _bytes(net)
        made[f"{name}, AMP in bfloat16"] = _run_of(net, amp=True), _bytes(net)
        made[f"{name}, bfloat16"] = _run_of(half, torch.bfloat16), _bytes(half)
    if (quantised := pt2e(session, folder, images)) is not None:
        if (run := _compiled(quantised, x)) is not None:
            made["pruned, int8 by PT2E, torch.compile"] = run, _bytes(quantised)
        else:
            made["pruned, int8 by PT2E"] = _run_of(quantised), _bytes(quantised)
    timed = _latencies({name: run for name, (run, _) in made.items()}, session, runs, batch)
    return [
        Stage(name, accuracy(_chunked(run, batch), session.data.test), size, timed[name])
        for name, (run, size) in made.items()
    ]


def _chunked(run: Run, size: int) -> Run:
    """`run` in batches of one size, which is what a network was compiled for."""

    def chunked(x: np.ndarray) -> np.ndarray:
        parts = [x[start : start + size] for start in range(0, len(x), size)]
        full = (np.resize(part, (size, *x.shape[1:])) for part in parts)
        return np.concatenate([run(some) for some in full])[: len(x)]

    return chunked


def pt2e(session: pl.Session, folder: Path, images: int) -> nn.Module | None:
    """The pruned network quantised by torchao's PT2E for x86, if it is installed."""
    try:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    except ImportError:
        return None
    program = torch.export.load(session.export(folder / "pruned.pt2")).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program, quantizer)
    for x in _images(session.data.train, images):
        prepared(torch.from_numpy(x))
    return convert_pt2e(prepared)


def _compiled(net: nn.Module, x: np.ndarray) -> Run | None:
    """The network by torch.compile, already compiled for batches like `x`; None where it fails.

    It fails without a C++ compiler. The weights become constants, as int8 needs.
    """
    inductor.freezing = True  # not by options=, which fails with PT2E in torch 2.14
    run = _run_of(torch.compile(net))
    try:
        run(x)
    except Exception as error:
        print(f"torch.compile: {type(error).__name__}: {str(error).splitlines()[0]}")
        return None
    return run


def _bytes(net: nn.Module) -> int:
    return sum(x.nbytes for x in net.state_dict().values())


def _run_of(net: nn.Module, dtype: torch.dtype = torch.float32, amp: bool = False) -> Run:
    @torch.no_grad()
    def run(x: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, amp):
            return net(torch.from_numpy(x).to(dtype)).float().numpy()

    return run


def accuracy(run: Run, batches: Iterable[Any]) -> float:
    """The share of images that are classified correctly."""
    right = [run(x.numpy()).argmax(1) == y.numpy() for x, y in batches]
    return float(np.concatenate(right).mean())


def _images(batches: Iterable[Any], most: int) -> Iterator[np.ndarray]:
    """The first images of so many, in batches of 32."""
    every = (x[start : start + 32].numpy() for x, _ in batches for start in range(0, len(x), 32))
    return islice(every, max(1, most // 32))


def _runner(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    run = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = run.get_inputs()[0].name
    return lambda x: run.run(None, {name: x})[0]


def _latencies(
    runners: dict[str, Run], session: pl.Session, runs: int, batch: int
) -> dict[str, float]:
    """Median milliseconds of a batch, the stages in turn."""
    x = next(_images(session.data.test, 32))[:batch]
    took: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(runs):
        for name, run in runners.items():
            start = time.perf_counter()
            run(x)
            took[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(each) for name, each in took.items()}


def report(found: list[Stage]) -> str:
    """The table."""
    first = found[0]
    rows = [("stage", "test accuracy", "size", "latency", "of the first")]
    rows += [
        (
            stage.name,
            f"{stage.accuracy:.1%}",
            f"{stage.size / 1e3:,.0f} kB",
            f"{stage.milliseconds:.2f} ms",
            f"{stage.milliseconds / first.milliseconds:.0%}",
        )
        for stage in found
    ]
    return table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", default="resnet20")
    parser.add_argument("--method", default="surgeon")
    parser.add_argument("--target-macs", type=float, default=0.5)
    parser.add_argument("--tune", type=int, default=0)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--round-to", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = pl.data.load("fashion", subset=True)
    session = pl.Session(
        pl.zoo.load(given.network), data, method=given.method, round_to=given.round_to
    )
    session.run(given.target_macs)
    if given.tune:
        session.tune(given.tune)
    with tempfile.TemporaryDirectory() as folder:
        print(f"{given.network}, {session.state.line()}")
        print("in ONNX Runtime", onnxruntime.__version__)
        print(report(stages(session, Path(folder), given.images)))
        print("\nin PyTorch", torch.__version__)
        print(report(in_torch(session, Path(folder), given.images)))


if __name__ == "__main__":
    main()
