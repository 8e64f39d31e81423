"""Speed of the evidence against its targets, as a table in Markdown.

    python tests/benchmarks/speed.py [IMAGES | surgeon | choice NETWORK | scaling]
    python tests/benchmarks/speed.py trace [NETWORK ...]
    python tests/benchmarks/speed.py latency NETWORK [torch | onnxruntime]

Every ratio is of CPU times of one thread in this run, after a first one, against a plain
forward pass, or training step, over the same images: other work on the machine hardly shows.
resnet50 has random weights and sees noise at 224 pixels, in batches of 16; resnet20 is the shipped
one on Fashion-MNIST. "surgeon" times its first move on resnet50, which is no matter of
milliseconds. "trace" times the trace of networks of the coverage table, timm's as timm/NAME,
against three forwards and a second, and beside Torch-Pruning's graph of the same network. "choice"
times what a repair's choice of a ridge costs: all ridges but one, and what judges them, as a share
of an approve. "latency" compares a latency table, and MACs, with measured times of random plans.
"scaling" is explained in scaling.py. Nothing here is asserted.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import prunelab as pl
from prunelab.evidence.mask_gradients import MaskWatch, differentiable
from prunelab.loops.batch import cross_entropy
from prunelab.loops.training import Training, descend
from prunelab.methods.aofp_sampled import ScoringPath
from prunelab.methods.aofp_search import iter_rungs

BATCH = 16


def seconds(work: Callable[[], object], repeats: int = 1, warm: bool = True) -> float:
    """The least CPU time of `work`, in this thread."""
    if warm:
        work()
    found = []
    for _ in range(repeats):
        started = time.thread_time()
        work()
        found.append(time.thread_time() - started)
    return min(found)


def row(what: str, ratio: float, bar: float | None, taken: float, of: str = "forwards") -> None:
    """Print one line of the table."""
    verdict = "" if bar is None else "met" if ratio <= bar else "not met"
    asked = "" if bar is None else f"{bar:g}"
    print(f"| {what} | {ratio:.2f} {of} | {asked} | {verdict} | {taken:.3g} s |", flush=True)


def halves(groups: list[Any], share: int = 2) -> dict[str, tuple[int, ...]]:
    """A random part of every group."""
    rng = np.random.default_rng(0)
    return {
        g.name: tuple(rng.choice(g.width, max(1, g.width // share), replace=False).tolist())
        for g in groups
    }


def off_by(exact: pl.Evidence, some: pl.Evidence, sets: dict[str, tuple[int, ...]]) -> float:
    """The mean relative difference of two evidences' damages."""
    pairs = [(exact[name].damage(units), some[name].damage(units)) for name, units in sets.items()]
    return float(np.mean([abs(b - a) / a for a, b in pairs]))


def evidence(
    name: str, model: nn.Module, xs: list[Tensor], bars: tuple[float | None, float | None]
) -> pl.Evidence:
    """Evidence of all groups, exact and at few positions; gives the exact one."""
    positions = 4
    graph = pl.trace(model, xs[0][:1])
    images = sum(len(x) for x in xs)

    def forward() -> None:
        with torch.no_grad():
            for x in xs:
                model(x)

    plain = seconds(forward, 2)
    print(f"| {name}: a plain forward, {images} images | 1 | | | {plain:.3g} s |")
    kept: list[pl.Evidence] = []
    taken = seconds(lambda: kept.append(pl.measure(model, graph, xs)), 1, warm=False)
    row(f"{name}: exact G of all groups", taken / plain, bars[0], taken)
    few = lambda: kept.append(pl.measure(model, graph, xs, positions=positions))  # noqa: E731
    taken = seconds(few, 1, warm=False)
    row(f"{name}: {positions} positions an image", taken / plain, bars[1], taken)
    groups = [group for group in graph.groups if group.prunable]
    off = off_by(kept[0], kept[1], halves(groups))
    verdict = "met" if off <= 0.02 else "not met"
    print(f"| {name}: their damages of random halves | {off:.2%} off | 2% | {verdict} | |")
    return kept[0]


def answers(found: pl.Evidence) -> None:
    """What is asked of evidence at hand, in milliseconds."""
    graph = found.graph
    groups = [group for group in graph.groups if group.prunable]
    sets = halves(groups)
    worst = max(groups, key=lambda group: group.width**2 * len(group.consumers)).name
    x = torch.zeros(1, 3, 224, 224)
    network = graph.network()
    assert network is not None
    data = pl.Data(*[[(x, torch.zeros(1, dtype=torch.int64))]] * 3)
    method = pl.AOFP(theta=0.01, groups="all", images=1)
    session = pl.Session(network, data, method, graph=graph)
    session.propose()

    def propose(target: float | None = None) -> None:
        session.reject()
        session.propose(**({} if target is None else {"target_macs": target}))

    plan = pl.WidthPlan.full(graph).drop(sets)
    for what, bar, work in (
        ("all groups' first damages", None, lambda: [found[n].damage(u) for n, u in sets.items()]),
        ("propose for all groups, a session's verb", 100, propose),
        ("the same towards half the MACs", 100, lambda: propose(0.5)),
        (f"a damage ({worst})", 50, lambda: found[worst].damage(sets[worst])),
        ("all groups' damages", 50, lambda: [found[n].damage(u) for n, u in sets.items()]),
        (
            "a new theta, all ladders",
            50,
            lambda: [list(iter_rungs(found[group.name], 0.02)) for group in groups],
        ),
        ("a plan's cost", 50, lambda: pl.cost(graph, plan)),
        ("a plan, and its cost", 50, lambda: pl.cost(graph, pl.WidthPlan.full(graph).drop(sets))),
    ):
        once = bar is None
        taken = seconds(work, 1 if once else 5, warm=not once) * 1e3
        verdict = "" if bar is None else "met" if taken <= bar else "not met"
        print(f"| resnet50: {what} | {taken:.1f} ms | {bar or ''} | {verdict} | |", flush=True)


def gradients(model: nn.Module) -> None:
    """Group Fisher and sampled AOFP beside what they add to."""
    batch = (torch.randn(8, 3, 224, 224), torch.randint(0, 1000, (8,)))
    graph = pl.trace(model, batch[0][:1])

    def both_ways() -> None:
        model.zero_grad(set_to_none=True)
        cross_entropy(model, batch).backward()

    plain = seconds(both_ways)
    taken = seconds(lambda: pl.measure(model, graph, [batch], kinds=("gradient",)))
    row("resnet50: Group Fisher's evidence", taken / plain, 1.3, taken, "forwards + backwards")
    model.train()
    optimiser = Training(lr=1e-3).optimiser(model)
    step = seconds(lambda: descend(model, batch, cross_entropy, optimiser))
    watch = MaskWatch(model, graph)

    def fisher() -> None:
        with differentiable(model):
            descend(model, batch, cross_entropy, optimiser, watch=watch.on(batch))
        watch.add()

    taken = seconds(fisher)
    row("resnet50: Group Fisher while training", taken / step, 1.3, taken, "training steps")
    for which in ("internal", "all"):
        groups = [g for g in graph.groups if g.prunable and (which == "all" or not g.residual)]
        masks = halves(groups)

        def score(masks: dict[str, tuple[int, ...]] = masks) -> None:
            path = ScoringPath(model, graph, masks, "relu")
            descend(model, batch, cross_entropy, optimiser, watch=path)
            for name in masks:
                path.damage(name)

        taken = seconds(score)
        what = f"resnet50: sampled AOFP, {len(groups)} groups ({which})"
        row(what, taken / step, 1.5, taken, "training steps")
    model.eval()


def memory() -> None:
    """Peak memory of measuring few and many batches, each in a process of its own."""
    peaks = []
    for count in (4, 64):
        command = [sys.executable, __file__, "stream", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    growth = peaks[1] / peaks[0]
    verdict = "met" if growth < 1.05 else "not met"
    what = f"resnet20: peak memory of 64 batches against 4 ({peaks[1]:.0f} and {peaks[0]:.0f} MB)"
    print(f"| {what} | {growth:.3f} | 1, within 5% | {verdict} | |")


def stream(count: int) -> None:
    """Measure fresh batches and print the peak in kB."""
    model = pl.zoo.load("resnet20")

    def batches() -> Iterator[Tensor]:
        for _ in range(count):
            yield torch.randn(64, 1, 28, 28)

    pl.measure(model, pl.trace(model, torch.zeros(1, 1, 28, 28)), batches())
    status = Path("/proc/self/status").read_text()  # getrusage tells the peak of the parent
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def surgeon() -> None:
    """The Surgeon's first move on resnet50 with 64 images of 64 pixels, and its repair."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = resnet50(weights=None, num_classes=10).eval()
    batches = [(torch.randn(BATCH, 3, 64, 64), torch.arange(BATCH) % 10) for _ in range(4)]
    data = pl.Data(train=batches, val=batches, test=batches)
    session = pl.Session(model, data, pl.Surgeon(images=64))
    ends: dict[str, float] = {}

    def listener(item: Any) -> None:
        if isinstance(item, pl.Progress):
            what = "removing" if item.what.endswith(" out") else item.what.split()[0]
            ends[what] = time.thread_time()

    session.listen(listener)
    started = first = time.thread_time()
    print(session.propose())
    one = seconds(lambda: [model(x) for x, _ in batches])
    taken = ends["removing"] - first
    row("resnet50, 64 images of 64 px: the Surgeon's first move", taken / one, None, taken)
    for what, end in ends.items():
        print(f"{what}: {end - started:.0f} s")
        started = end
    session.reject()
    again = seconds(session.propose, warm=False)
    row("the same, asked for again with the evidence at hand", again / one, None, again)
    started = time.thread_time()
    session.approve()
    print(f"approve and repair: {time.thread_time() - started:.0f} s")


def latencies(name: str, backend: str, plans: int = 10) -> None:
    """A latency table against measured times of random plans, as shares of the whole network."""
    import torchvision

    from prunelab.cost.kernel_times import least, onnx_latency

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, x = getattr(torchvision.models, name)(weights=None).eval(), torch.randn(1, 3, 224, 224)
    graph = pl.trace(model, x)
    table = pl.latency_table(model, graph, x, backend=backend)
    full = pl.WidthPlan.full(graph)

    def took(net: nn.Module) -> float:
        """The least of two tries, apart in time: other work on the machine only adds."""
        if backend == "onnxruntime":
            return min(onnx_latency(net, x) for _ in range(2))
        return min(least(lambda: net(x)) for _ in range(2))

    whole, found = took(model), []
    for seed in range(plans):
        rng, drop = np.random.default_rng(seed), {}
        for group in graph.groups:
            if group.prunable and group.width >= 16:
                count = int(rng.uniform(0, 0.7) * group.width) // 8 * 8
                drop[group.name] = rng.choice(group.width, count, replace=False).tolist()
        plan = full.drop(drop)
        macs, share = (f(plan) / f(full) for f in (lambda p: pl.cost(graph, p).macs, table))
        found.append((took(pl.cut(model, graph, plan)), share, macs))
        whole = min(whole, took(model))
    print(f"{name}, {backend}: of the whole network's time, and of its MACs")
    print("| plan | table | measured | MACs | realised share |\n|--|--|--|--|--|")
    off = []
    for seed, (spent, share, macs) in enumerate(found):
        real = spent / whole
        off.append((abs(share / real - 1), abs(macs / real - 1)))
        gain = (1 - real) / (1 - macs)
        print(f"| {seed} | {share:.3f} | {real:.3f} | {macs:.3f} | {gain:.0%} |", flush=True)
    for what, column in zip(("table", "MACs"), np.array(off).T, strict=True):
        print(f"{what}: {np.median(column):.1%} off, 95% within {np.quantile(column, 0.95):.1%}")


def choice(name: str, images: int = 256) -> None:
    """What choosing a ridge costs in an approve of a torchvision network, 30% of all channels gone.

    Of the time in `fit` all is the choice's but the equations and one solution of them.
    """
    import torchvision

    from prunelab.repair import fit as fitting
    from prunelab.repair import layer_problem
    from prunelab.repair.regression import regression

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = getattr(torchvision.models, name)(weights=None, num_classes=10).eval()
    batches = [(torch.randn(BATCH, 3, 64, 64), torch.arange(BATCH) % 10)
               for _ in range(images // BATCH)]  # fmt: skip

    def forward() -> None:
        with torch.no_grad():
            for x, _ in batches:
                model(x)

    spent = {"fit": 0.0, "needed": 0.0}
    fit, layers = fitting.fit, 0

    def timed(solved: Any, held: Any, old: Tensor, **how: Any) -> Any:
        nonlocal layers
        layers += 1
        started = time.thread_time()
        found = fit(solved, held, old, **how)
        spent["fit"] += time.thread_time() - started
        started = time.thread_time()
        regression(solved, old, how["constant"]).at(1e-2)(slice(None))
        spent["needed"] += time.thread_time() - started
        return found

    session = pl.Session(
        model, pl.Data(train=batches, val=batches[:1]), pl.Magnitude(pruning_ratio=0.3)
    )
    session.propose()
    layer_problem.fit = timed
    started = time.thread_time()
    session.approve()
    approve = time.thread_time() - started - spent["needed"]
    one, extra = seconds(forward), spent["fit"] - spent["needed"]
    print(
        f"{name}, {images} images of 64 px, {layers} layers: approve {approve / one:.1f} forwards"
    )
    print(f"the choice {extra / one:.1f} forwards, {extra / approve:.1%} of it")


TRACED = [
    "resnet18", "resnet50", "vgg16_bn", "densenet121", "mobilenet_v3_large", "inception_v3",
    "swin_t",
    *(f"timm/{name}" for name in (
        "repvit_m0_9", "fastvit_t8", "efficientformer_l1", "levit_128s", "coatnet_nano_rw_224",
        "ghostnet_050", "fbnetv3_b", "nextvit_small", "lambda_resnet26rpt_256", "mixnet_m",
        "ese_vovnet39b_evos", "res2net50d",
    )),
]  # fmt: skip


def traces(names: list[str]) -> None:
    """The trace of each network, against three forwards and a second of its own."""
    from coverage import torch_pruning
    from networks import build

    torch.set_num_threads(1)
    print("| network | a forward | trace | forwards | of the bar | | Torch-Pruning's graph |")
    print("|--|--|--|--|--|--|--|")
    for name in names or TRACED:
        model, inputs, train_inputs = build(name)
        model.eval()

        def forward(model: nn.Module = model, inputs: Any = inputs) -> None:
            with torch.no_grad():
                model(*inputs) if isinstance(inputs, tuple) else model(inputs)

        def trace(model: nn.Module = model, inputs: Any = inputs, more: Any = train_inputs) -> None:
            pl.trace(model, inputs, train_inputs=more)

        one, taken = seconds(forward, 5), seconds(trace, 3)
        share, theirs = taken / (3 * one + 1), torch_pruning(model, inputs)
        verdict = "met" if share <= 1 else "not met"
        beside = f"{theirs:.2f} s" if isinstance(theirs, float) else theirs or "not installed"
        print(
            f"| {name} | {one:.3f} s | {taken:.2f} s | {taken / one:.1f} | {share:.2f} | {verdict} "
            f"| {beside} |",
            flush=True,
        )


def main(images: int) -> None:
    """Print the table."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    torch.set_num_threads(1)
    print("| what | measured | bar | | CPU time |\n|--|--|--|--|--|")
    model = resnet50(weights=None).eval()
    xs = [torch.randn(BATCH, 3, 224, 224) for _ in range(images // BATCH)]
    answers(evidence("resnet50", model, xs, (3, 1.5)))
    gradients(model)
    data = pl.data.load("fashion", subset=True, batch_size=64)
    xs = [x for (x, _), _ in zip(data.train, range(8), strict=False)]
    evidence("resnet20", pl.zoo.load("resnet20"), xs, (None, None))
    memory()


if __name__ == "__main__":
    if sys.argv[1:2] == ["stream"]:
        stream(int(sys.argv[2]))
    elif sys.argv[1:] == ["surgeon"]:
        surgeon()
    elif sys.argv[1:2] == ["trace"]:
        traces(sys.argv[2:])
    elif sys.argv[1:2] == ["latency"]:
        latencies(*sys.argv[2:4])
    elif sys.argv[1:] == ["scaling"]:
        import scaling

        torch.set_num_threads(1)
        scaling.main(lambda work: seconds(work, warm=False))
    elif sys.argv[1:2] == ["choice"]:
        choice(sys.argv[2])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 48)
