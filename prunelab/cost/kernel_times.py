"""Seconds of single kernels, alone, in torch and in ONNX Runtime; stored for each machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.errors import MissingPackage
from prunelab.graph.labels.layer_calls import Call
from prunelab.graph.trace import copy_of

RUNS = 5  # timed runs of a kernel at least; the least counts, since other load only adds time
ENOUGH = 0.02  # seconds after which a kernel is timed no further


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kind and shape of layer call, but for its widths.

    `batch` inputs with `space` (none of a linear layer); `kernel` is its shape. Of a grouped
    convolution `each` is how many channels a group reads (0: it is not grouped).
    """

    batch: int
    space: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    each: int = 0

    @classmethod
    def of(cls, call: Call) -> Kernel:
        """The kernel of a call."""
        x, conv = call.x, call.conv
        if conv is None:
            return cls(x.numel() // max(1, x.shape[-1]), ())
        return cls(
            len(x), tuple(x.shape[2:]), tuple(call.weight.shape[2:]),
            tuple(conv.stride), tuple(conv.padding), tuple(conv.dilation),
            call.weight.shape[1] if conv.groups > 1 else 0,
        )  # fmt: skip


def seconds(kernel: Kernel, into: int, out: int, backend: str) -> float:
    """The least seconds of a kernel at these widths, of a few runs."""
    groups = into // kernel.each if kernel.each else 1
    x = torch.randn(kernel.batch, into, *kernel.space)
    weight = torch.randn(out, into // groups, *kernel.kernel)
    if backend == "onnxruntime":
        return least(_onnx_run(_one_node(kernel, x, weight, groups), [x]))
    if not kernel.kernel:
        return least(lambda: F.linear(x, weight))
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(kernel.kernel) - 1]
    how = kernel.stride, kernel.padding, kernel.dilation, groups
    return least(lambda: convolve(x, weight, None, *how))


def clock_of(device: str = "cpu") -> Callable[[], float]:
    """Where a single thread computes its CPU time, which other work hardly changes; else wall."""
    alone = device == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def least(run: Callable[[], object]) -> float:
    """The least seconds of `run`, after one run that warms up.

    The clock is that of `clock_of`.
    """
    clock = clock_of()
    with torch.inference_mode():
        run()
        found: list[float] = []
        while len(found) < RUNS or (sum(found) < ENOUGH and len(found) < 10 * RUNS):
            started = clock()
            run()
            found.append(clock() - started)
    return min(found)


def _one_node(kernel: Kernel, x: Tensor, weight: Tensor, groups: int) -> bytes:
    """An ONNX model of one convolution or linear layer."""
    onnx = _package("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    if kernel.kernel:
        how = {
            "strides": kernel.stride, "pads": kernel.padding * 2, "dilations": kernel.dilation,
            "group": groups,
        }  # fmt: skip
        node = helper.make_node("Conv", ["x", "w"], ["y"], **how)
    else:
        node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", list(x.shape)), ("y", None))
    ]
    graph = helper.make_graph(
        [node], "one", values[:1], values[1:], [numpy_helper.from_array(weight.numpy(), "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    written: bytes = model.SerializeToString()
    return written


def _onnx_run(model: bytes, inputs: list[Tensor]) -> Callable[[], object]:
    """What runs an ONNX model in ONNX Runtime on the CPU, with as many threads as torch."""
    runtime = _package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    fed = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=False)}
    return lambda: session.run(None, fed)


def onnx_latency(model: nn.Module, example_inputs: Any) -> float:
    """The least seconds of a network in ONNX Runtime, exported for these inputs."""
    _package("onnxruntime")
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(copy_of(model).eval(), inputs, dynamo=True, verbose=False)
    assert exported is not None
    buffer = io.BytesIO()
    _package("onnx").save(exported.model_proto, buffer)
    return least(_onnx_run(buffer.getvalue(), list(inputs)))


def _package(name: str) -> Any:
    try:
        return __import__(name, fromlist=["helper"])
    except ImportError:
        raise MissingPackage(
            f"Times in ONNX Runtime need {name}: pip install onnx onnxscript onnxruntime, or use "
            "backend='torch'."
        ) from None


class Store:
    """Times by a text that names what was timed, in a JSON file for each machine and versions.

    `folder` None is prunelab's folder in the user's cache; a file that cannot be read or written
    is measured anew, or not kept.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.path = Path(folder or Path(cache) / "prunelab") / f"latency-{_machine()}.json"
        self.known: dict[str, float] = {}
        with suppress(OSError, ValueError, AttributeError, TypeError):
            found = json.loads(self.path.read_text())
            self.known = {str(key): float(value) for key, value in found.items()}

    def get(self, key: str, measure: Callable[[], float]) -> float:
        """The time stored under `key`, measured where there is none."""
        if key not in self.known:
            self.known[key] = measure()
        return self.known[key]

    def save(self) -> None:
        """Write the file."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(self.known, indent=0, sort_keys=True))
            part.replace(self.path)


def _machine() -> str:
    """Names this machine's processor, its threads, and the versions that times depend on."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith("model name")), processor)
    versions = []
    for package in ("torch", "onnxruntime"):
        with suppress(metadata.PackageNotFoundError):
            versions.append(metadata.version(package))
    text = json.dumps([platform.node(), processor, torch.get_num_threads(), versions])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
