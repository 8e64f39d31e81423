"""What many GPUs save and send, counted: evidence, repair and tuning on up to 512 of them.

    python tests/benchmarks/scale_out.py > tests/benchmarks/scale_out.md

No row was run. Times follow from the MACs, activations and parameters of a network, the bytes that
its evidence adds up over ranks, both taken from its graph, and the constants of `Machine`. Two and
four processes on this machine check the bytes: what they hand to all_reduce is counted there.
"""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import distributed, nn
from torchvision.models import get_model
from torchvision.transforms import v2

import prunelab as pl
from prunelab.evidence.gram_collector import columns_of
from prunelab.evidence.measure import measured_layers
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.loops import ranks
from prunelab.loops.batch import cross_entropy, finish
from prunelab.loops.training import training

GPUS = (1, 8, 64, 512)
SETS = {"ImageNet, 90 epochs": (1_281_167, 90), "100 M images, 1 epoch": (100_000_000, 1)}
# Forwards of a pass of evidence over many images, measured: resnet50 in speed.md, the others as
# there, 32 images at 224 pixels.
FORWARDS = {"resnet50": 2.41, "vgg16": 3.07, "mobilenet_v2": 1.68}
REPAIR = (512, 4.8)  # images, and forwards for each: resnet50 in speed.md; taken for all three
KINDS = ("contribution", "patches")
NODE = 8  # GPUs


@dataclass(frozen=True)
class Machine:
    """What a GPU and its share of a machine are taken to do; none of it was measured here.

    An A100 of 80 GB: a fifth of its peak in bfloat16 and in TF32, three quarters of its memory's
    bandwidth; NVLink in a node, and 200 Gbit/s for each GPU between nodes.
    """

    amp: float = 60e12  # floating-point operations a second, in training
    f32: float = 30e12  # in evidence and repair
    memory: float = 1.5e12  # bytes a second
    inside: float = 200e9
    across: float = 25e9
    latency: float = 2e-5  # seconds of a collective call, for each doubling of the GPUs
    cores: int = 12  # for each GPU, to read images

    def all_reduce(self, size: float, calls: int, gpus: int) -> float:
        """Seconds to add up `size` bytes in so many calls, as a ring does."""
        speed = self.inside if gpus <= NODE else self.across
        return 2 * (gpus - 1) / gpus * size / speed + calls * self.latency * math.log2(gpus)


@dataclass(frozen=True)
class Network:
    """A network's counts, for one image of 224 pixels where that matters."""

    name: str
    macs: int
    activations: int  # numbers that layers put out
    params: int
    tensors: int
    evidence: dict[str, tuple[int, int]]  # kind to the bytes and calls of all_reduce

    @classmethod
    def of(cls, name: str, model: nn.Module, x: torch.Tensor) -> Network:
        """Count a network on inputs like `x` [1, ...]."""
        cost, graph = pl.cost(model, x), pl.trace(model, x)
        sizes = [p.numel() for p in model.parameters()]
        found = {kind: added_up(graph, kind) for kind in KINDS}
        outputs = cost.activation_bytes // x.element_size()
        return cls(name, cost.macs, outputs, sum(sizes), len(sizes), found)

    def forward(self, at: float, machine: Machine, width: int) -> float:
        """Seconds of one image: its arithmetic, or its activations to and from memory if longer.

        Four moves of `width` bytes for each: out of a convolution, in and out of its BatchNorm
        and activation, which are fused, and in to what follows.
        """
        return max(2 * self.macs / at, 4 * self.activations * width / machine.memory)

    def step(self, machine: Machine) -> float:
        """Seconds of training on one image: a backward pass takes two forwards."""
        return 3 * self.forward(machine.amp, machine, 2)

    @property
    def gradients(self) -> int:
        """Bytes that a step of tuning adds up: gradients, which of them there are, and the loss."""
        return 4 * (self.params + self.tensors + 1)


def added_up(graph: ChannelGraph, kind: str) -> tuple[int, int]:
    """The bytes that evidence of one kind adds up over ranks, and in how many calls."""
    size = calls = 0
    for layer in measured_layers(graph, None):
        if kind == "contribution":
            rows = columns_of(layer)[1]
            size += 8 * (rows**2 + rows * len(layer.out_units))  # G, and the sums of contributions
            calls += 2
        else:
            size += 8 * (len(layer.in_units) * math.prod(layer.kernel) + 1) ** 2
            calls += 1
    return size, calls


# ---------------------------------------------------------------- two and four processes


def counting(work: Callable[[], Any]) -> tuple[int, int]:
    """The bytes and the calls of all_reduce that `work` makes on this rank."""
    sizes: list[int] = []
    real = distributed.all_reduce

    def counted(tensor: torch.Tensor, *more: Any, **also: Any) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return real(tensor, *more, **also)

    distributed.all_reduce = counted
    try:
        work()
    finally:
        distributed.all_reduce = real
    return sum(sizes), len(sizes)


def small(name: str) -> tuple[nn.Module, list[Any]]:
    """A network of the zoo, and eight batches."""
    draw = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(4, 1, 28, 28, generator=draw), torch.randint(10, (4,), generator=draw))
        for _ in range(8)
    ]
    return pl.zoo.load(name), batches


def simulated(name: str) -> dict[str, tuple[int, int]]:
    """What this rank adds up for evidence of each kind, and in two steps of tuning."""
    model, batches = small(name)
    graph = pl.trace(model, batches[0][0][:1])
    mine = list(ranks.sharded(batches))
    found = {
        kind: counting(lambda kind=kind: pl.measure(model, graph, mine, (kind,)).all_reduce())
        for kind in KINDS
    }
    settings = pl.Training(lr=1e-3)
    work = training(model, lambda epoch: iter(batches), 2, cross_entropy, settings)
    return found | {"tuning": counting(lambda: finish(work))}


def counted(name: str) -> dict[str, tuple[int, int]]:
    """The same, counted."""
    model, batches = small(name)
    network = Network.of(name, model, batches[0][0][:1])
    return network.evidence | {"tuning": (2 * network.gradients, 2)}


def processes(name: str, many: int) -> list[dict[str, Any]]:
    """`simulated` of every one of so many gloo processes."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
             str(many), __file__, name, folder],
            check=True, capture_output=True,
        )  # fmt: skip
        files = sorted(Path(folder).iterdir())
        return [json.loads(file.read_text()) for file in files]


def rank(name: str, folder: str) -> None:
    """One of these processes."""
    ranks.join()
    text = json.dumps(simulated(name))
    Path(folder, f"{ranks.rank()}.json").write_text(text)


# ---------------------------------------------------------------- the page


def decoding(images: int = 200) -> float:
    """CPU seconds to decode and augment a JPEG of 500 x 375, on one core of this machine."""
    draw = np.random.default_rng(0)
    smooth = Image.fromarray(draw.integers(0, 255, (94, 125, 3)).astype(np.uint8))
    file = io.BytesIO()
    smooth.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    augment = v2.Compose([
        v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor(),
        v2.ToDtype(torch.float, scale=True), v2.Normalize((0.485,) * 3, (0.229,) * 3),
    ])  # fmt: skip
    start = time.thread_time()
    for _ in range(images):
        augment(Image.open(file).convert("RGB"))
    return (time.thread_time() - start) / images


def markdown(rows: list[tuple[str, ...]]) -> str:
    """Rows as a table, the first of them its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|--" * len(rows[0]) + "|", *lines[1:]])


def span(seconds: float) -> str:
    """A time in the unit that suits it."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{1e3 * seconds:.1f} ms"


def sizes(networks: list[Network]) -> str:
    """What each network adds up."""
    rows = [("network", "MACs", "parameters", *(f"evidence: {kind}" for kind in KINDS), "a step")]
    rows += [
        (
            net.name,
            f"{net.macs / 1e9:.2f} G",
            f"{net.params / 1e6:.1f} M",
            *(f"{size / 1e6:,.0f} MB in {calls} calls" for size, calls in net.evidence.values()),
            f"{net.gradients / 1e6:.0f} MB",
        )
        for net in networks
    ]
    return markdown(rows)


def times(networks: list[Network], machine: Machine, decode: float) -> str:
    """Evidence of all images, a repair and tuning, on so many GPUs."""
    rows = [("network, set", "", *(f"{n} GPU" + "s" * (n > 1) for n in GPUS), "flops", "read")]
    for net in networks:
        forward = net.forward(machine.f32, machine, 4)
        images, passes = REPAIR
        repair = images * passes * forward
        flops = f"{images * passes * 2 * net.macs:.1e}"
        rows.append((f"{net.name}, any", "repair", *(span(repair) for _ in GPUS), flops, "-"))
        for name, (images, epochs) in SETS.items():
            passed = FORWARDS[net.name] * forward
            size, calls = net.evidence["contribution"]
            evidence = [
                images * max(passed, decode / machine.cores) / n
                + machine.all_reduce(size, calls, n)
                for n in GPUS
            ]
            tuning = [tuned(net, machine, decode, images * epochs, n) for n in GPUS]
            work = 2 * net.macs * images
            read = images * 110e3 / 1e12
            for what, found, done, often in (
                ("evidence", evidence, FORWARDS[net.name] * work, 1),
                ("tuning", tuning, 3 * epochs * work, epochs),
            ):
                shown = (span(x) for x in found)
                rows.append((
                    f"{net.name}, {name}", what, *shown, f"{done:.1e}", f"{often * read:,.1f} TB",
                ))  # fmt: skip
    return markdown(rows)


def tuned(net: Network, machine: Machine, decode: float, images: float, gpus: int) -> float:
    """Seconds of tuning with 32 images on each GPU; nothing hides the adding up of gradients."""
    step = 32 * max(net.step(machine), decode / machine.cores)
    return images / (32 * gpus) * (step + machine.all_reduce(net.gradients, 1, gpus))


def limits(networks: list[Network], machine: Machine, decode: float) -> str:
    """The share of work in a step of tuning, and the GPUs that evidence can use."""
    rows = [
        ("network", *(f"tuning, {n}" for n in GPUS[1:]), "evidence of 512 images", "of 1.28 M"),
    ]
    for net in networks:
        one = tuned(net, machine, decode, 1, 1)
        shares = (f"{one / (n * tuned(net, machine, decode, 1, n)):.0%}" for n in GPUS[1:])
        passed = FORWARDS[net.name] * net.forward(machine.f32, machine, 4)
        image = max(passed, decode / machine.cores)
        send = machine.all_reduce(*net.evidence["contribution"], GPUS[-1])
        ends = (f"{min(n / 32, n * image / send):,.0f} GPUs" for n in (512, 1_281_167))
        rows.append((net.name, *shares, *ends))
    return markdown(rows)


def checked() -> str:
    """Counted against what processes here hand to all_reduce."""
    rows = [("network", "processes", "what", "counted", "measured", "calls")]
    for name in ("resnet20", "vgg8", "mobilenet"):
        want = counted(name)
        for many in (2, 4):
            every = processes(name, many)
            for what, (size, calls) in want.items():
                (got,) = {tuple(one[what]) for one in every}
                rows.append((
                    name, str(many), what, f"{size:,}", f"{got[0]:,}", f"{got[1]} of {calls}",
                ))  # fmt: skip
    return markdown(rows)


PAGE = """# Many GPUs, counted

    python tests/benchmarks/scale_out.py > tests/benchmarks/scale_out.md

**No row of the times was run.** They follow from counts of the networks (MACs, activations and
parameters at 224 pixels, and the bytes that evidence adds up, from the graph), from measurements on
one core of a CPU, and from a GPU that is assumed:

- An A100 of 80 GB that does {amp:.0f} TFLOP/s in training (bfloat16) and {f32:.0f} in evidence and
  repair (TF32), a fifth of its peaks, and moves {memory:.1f} TB/s of memory; {inside:.0f} GB/s in a
  node of {node} GPUs and {across:.0f} GB/s for each GPU between nodes; {latency:.0f} us of a
  collective call for each doubling of the GPUs; {cores} cores for each GPU to read images.
- Measured, in CPU time: a pass of evidence costs {forwards}
  plain forwards; a repair {passes} forwards of {images} images (resnet50; taken for all). Decoding
  and augmenting a JPEG of 500 x 375 pixels took {decode:.1f} ms of one core.
- Evidence is measured over all images of the set here. The methods' default is 512 images: a
  second or two of one GPU. Tuning has 32 images on each GPU, as torchvision's reference.

## What is added up

{sizes}

"contribution" is the evidence of AOFP, ThiNet and Channel Pruning, "patches" that of least squares
where it is measured for all layers at once. Neither grows with the images. A step of tuning adds up
gradients in float32.

## Times

{times}

"read" is the bytes of the images, at 110 kB each. A repair runs on every rank as it is.

## Where it stops

The share of a step of tuning that is work on images, by GPUs; and the GPUs beyond which adding up
evidence takes longer than measuring it, or has no batch of 32 images for each:

{limits}

- **Evidence** scales until a GPU has few images left: what is sent is fixed, what is measured is
  divided. For the default of 512 images, a second or two of one GPU, a node is too much.
- **Repair, and the search of a method,** run on each rank as they are, on the same images, so that
  all have the same weights: their time is constant, and what is left of a move on many GPUs.
- **Tuning** adds up all gradients in one call after the backward pass, where
  DistributedDataParallel sends them during it. So the share falls as soon as gradients leave a
  node, most where a network has many parameters for its arithmetic. `pl.Training(accumulate=4)`
  sends a quarter as often. 512 GPUs with 32 images take 16,384 images a step: the schedule needs a
  warm-up, and an epoch has few steps.
- **Reading** bounds networks of little arithmetic: {cores} cores decode {rate:,.0f} images a
  second, and a GPU would train mobilenet_v2 on more. Decode on the GPU, or store smaller images.

## Counted and measured

Processes of this machine (gloo), eight batches of random images, two steps of tuning; bytes that
each hands to `all_reduce`.

{checked}
"""


def main() -> None:
    """Print the page."""
    torch.set_num_threads(1)
    machine, decode, x = Machine(), decoding(), torch.zeros(1, 3, 224, 224)
    networks = [Network.of(n, get_model(n, weights=None).eval(), x) for n in FORWARDS]
    images, passes = REPAIR
    print(
        PAGE.format(
            amp=machine.amp / 1e12, f32=machine.f32 / 1e12, memory=machine.memory / 1e12,
            inside=machine.inside / 1e9, across=machine.across / 1e9, latency=1e6 * machine.latency,
            cores=machine.cores, node=NODE, images=images, passes=passes, decode=1e3 * decode,
            rate=machine.cores / decode,
            forwards=", ".join(f"{ratio} ({name})" for name, ratio in FORWARDS.items()),
            sizes=sizes(networks), times=times(networks, machine, decode),
            limits=limits(networks, machine, decode), checked=checked(),
        ),
        end="",
    )  # fmt: skip


if __name__ == "__main__":
    rank(*sys.argv[1:]) if sys.argv[1:] else main()
