"""Which networks can be traced and cut, and whether the cut networks are exact.

    python tests/benchmarks/coverage.py                # all of torchvision, into coverage.md
    python tests/benchmarks/coverage.py --only resnet  # names that hold this text, printed only
    python tests/benchmarks/coverage.py --family timm smp  # a choice of other packages' networks

Every network is built with random weights and random BatchNorm statistics and tested in a
process of its own. `prunable` is the share of the weights of convolutions and linear layers that
belongs to some prunable group; `error` compares, in float64, the outputs of the cut and the
masked network for a random plan (30 to 70 % of the units of every prunable group dropped);
`train` says whether the cut network then runs in training mode. Times are CPU seconds of one
thread, the minimum of two or three runs; `of the bar` divides the time of the trace by its limit,
three plain forward passes and one second. Torch-Pruning's graph is built on the same network in
the same process, where the package is installed; `ratio` divides by its time (it has no probe).
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from networks import FAMILIES, build, names, package

HERE = Path(__file__).resolve()
PAGE = HERE.with_suffix(".md")
MEMORY = 19  # GB, for one network


# ---------------------------------------------------------------- one network


def randomise(model: Any, run: Callable[[Any], Any]) -> None:
    """Statistics and scales that a trained network could have, so that nothing hides at zero."""
    import torch

    def measure(module: Any, given: tuple[Any, ...]) -> None:
        axes = [axis for axis in range(given[0].ndim) if axis != 1]
        module.running_mean.copy_(given[0].mean(axes) * torch.rand(given[0].shape[1]))
        spread = given[0].square().mean(axes)
        module.running_var.copy_((spread + spread.mean()) * (0.5 + torch.rand(len(spread))))

    hooks = [
        module.register_forward_pre_hook(measure)
        for module in model.modules()
        if isinstance(getattr(module, "running_var", None), torch.Tensor)
    ]
    model.eval()
    with torch.no_grad():
        run(model)
        for hook in hooks:
            hook.remove()
        for parameter in model.parameters():
            if parameter.ndim == 1 or float(parameter.abs().max()) < 1e-3:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def child(name: str, compare: bool) -> dict[str, Any]:
    """Everything about one network, in this process."""
    import torch

    import prunelab as pl
    from prunelab.graph.trace import runner

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, inputs, train_inputs = build(name)
    run = runner(inputs)
    randomise(model, run)
    params = sum(parameter.numel() for parameter in model.parameters())
    found: dict[str, Any] = {"name": name, "params": params}
    with torch.no_grad():
        forward = least(lambda: run(model), 3)
    found["forward"] = forward
    started = time.process_time()
    graph = pl.trace(model, inputs, train_inputs=train_inputs)
    found["trace"] = time.process_time() - started
    if found["trace"] < 5:
        found["trace"] = min(
            found["trace"], least(lambda: pl.trace(model, inputs, train_inputs=train_inputs), 1)
        )
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    prunable = [group for group in graph.groups if group.prunable]
    found |= {"groups": len(prunable), "units": sum(group.width for group in prunable)}
    found["prunable"] = share(model, graph)
    found["unseen"] = list(graph.unseen)
    found["why"] = reasons(graph)
    if compare:
        found["torch_pruning"] = torch_pruning(model, inputs)
    found |= exactness(model, graph, inputs, train_inputs, params)
    return found


def share(model: Any, graph: Any) -> float:
    """The share of the weights that stands in a row or a column of some prunable group."""
    import numpy as np

    can = np.zeros(graph.units + 1, dtype=bool)
    for group in graph.groups:
        can[group.first : group.first + group.width] = group.prunable
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    reached = whole = 0.0
    for layer in graph.layers:
        outs, ins = can[layer.out_units].mean(), can[layer.in_units].mean()
        size = sizes.get(layer.weight, 0)
        whole += size
        reached += size * (1 - (1 - outs) * (1 - ins)) if layer.dense else size * outs
    for name in graph.unseen:
        whole += sizes.get(f"{name}.weight", 0)
    return reached / max(1, whole)


def reasons(graph: Any) -> dict[str, int]:
    """How many units are frozen for which reason."""
    found: dict[str, int] = {}
    for group in graph.groups:
        if not group.prunable:
            found[group.why] = found.get(group.why, 0) + group.width
    return dict(sorted(found.items(), key=lambda pair: -pair[1])[:6])


def exactness(
    model: Any, graph: Any, inputs: Any, train_inputs: Any, params: int
) -> dict[str, Any]:
    """Cut against masked at a random plan, in evaluation mode; then the cut one in training."""
    import numpy as np
    import torch
    from torch.utils._pytree import tree_leaves, tree_map

    import prunelab as pl
    from prunelab.graph.trace import runner

    rng = np.random.default_rng(1)
    drop = {}
    for group in graph.groups:
        if group.prunable:
            count = max(1, min(group.width - 1, round(group.width * rng.uniform(0.3, 0.7))))
            drop[group.name] = rng.choice(group.width, count, replace=False)
    plan = pl.WidthPlan.full(graph).drop(drop)
    before = sum(parameter.numel() for parameter in model.parameters())
    found: dict[str, Any] = {"double": params < 4e8}
    if found["double"]:
        try:
            small, error = compared(model.double(), graph, plan, tree_map(_double, inputs))
        except RuntimeError:  # forward code that makes float32 tensors whatever the network is
            found["double"] = False
    if not found["double"]:
        small, error = compared(model.float(), graph, plan, inputs)
    found |= {"error": error}
    found["left"] = sum(parameter.numel() for parameter in small.parameters()) / before
    inputs = inputs if train_inputs is None else train_inputs
    if train_inputs is None and isinstance(inputs, torch.Tensor):
        inputs = torch.cat([inputs, inputs])  # BatchNorm wants two
    try:
        small = small.float().train()
        losses = [x for x in tree_leaves(runner(inputs)(small)) if isinstance(x, torch.Tensor)]
        sum(x.float().square().mean() for x in losses if x.requires_grad).backward()
        found["train"] = "yes"
    except Exception as problem:
        found["train"] = f"{type(problem).__name__}: {problem}"[:200]
    return found


def _double(x: Any) -> Any:
    import torch

    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def compared(model: Any, graph: Any, plan: Any, inputs: Any) -> tuple[Any, float]:
    """The cut network, and the greatest relative difference of its outputs to the masked one's."""
    import torch
    from torch.utils._pytree import tree_leaves

    import prunelab as pl
    from prunelab.graph.trace import runner

    dtype = next(parameter.dtype for parameter in model.parameters())
    torch.set_default_dtype(dtype)
    try:
        with torch.no_grad():
            small = pl.cut(model, graph, plan)
            same = pl.masked(model, graph, plan)
            want = [x for x in tree_leaves(runner(inputs)(same)) if isinstance(x, torch.Tensor)]
            del same
            got = [x for x in tree_leaves(runner(inputs)(small)) if isinstance(x, torch.Tensor)]
    finally:
        torch.set_default_dtype(torch.float32)
    if [x.shape for x in got] != [x.shape for x in want]:
        return small, float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(got, want, strict=True) if a.numel()]
    return small, max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)


def torch_pruning(model: Any, inputs: Any) -> float | str | None:
    """Seconds that Torch-Pruning takes to build its graph of the same network."""
    try:
        import torch_pruning as tp
    except ImportError:
        return None
    import copy

    signal.signal(signal.SIGPROF, lambda *_: (_ for _ in ()).throw(TimeoutError()))
    signal.setitimer(signal.ITIMER_PROF, 120)
    try:
        theirs = copy.deepcopy(model)
        arguments = list(inputs) if isinstance(inputs, tuple) else inputs
        started = time.process_time()
        tp.DependencyGraph().build_dependency(theirs, example_inputs=arguments)
        return time.process_time() - started
    except Exception as problem:
        return type(problem).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def least(action: Callable[[], Any], times: int) -> float:
    """The least seconds of some runs."""
    taken = []
    for _ in range(times):
        started = time.process_time()
        action()
        taken.append(time.process_time() - started)
    return min(taken)


# ---------------------------------------------------------------- all networks


def guarded(name: str, compare: bool, limit: int) -> dict[str, Any]:
    """One network in a process of its own, with bounds on its memory and its time."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY * 10**9, MEMORY * 10**9))
        try:
            theirs.send(child(name, compare))
        except BaseException as problem:
            theirs.send({"name": name, "failed": f"{type(problem).__name__}: {problem}"[:300]})

    process = context.Process(target=work)
    process.start()
    theirs.close()
    try:
        if ours.poll(limit):
            return ours.recv()
        return {"name": name, "failed": f"longer than {limit} s"}
    except EOFError:
        return {"name": name, "failed": "ended by the system, probably for its memory"}
    finally:
        process.kill()
        process.join()


HEAD = (
    "| network | params M | groups | units | prunable | error | train | forward s "
    "| trace s | of the bar | Torch-Pruning s | ratio |\n"
    "|--|--:|--:|--:|--:|--:|--|--:|--:|--:|--:|--:|"
)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    if "failed" in row:
        return f"| {row['name']} | FAILED: {row['failed']} |" + " |" * 10
    theirs = row.get("torch_pruning")
    timed = isinstance(theirs, float)
    error = f"{row['error']:.0e}" + ("" if row["double"] else " (float32)")
    return (
        f"| {row['name']} | {row['params'] / 1e6:.1f} | {row['groups']} | {row['units']} "
        f"| {row['prunable']:.0%} | {error} | {row['train']} | {row['forward']:.2f} "
        f"| {row['trace']:.2f} | {of_the_bar(row):.2f} "
        f"| {f'{theirs:.2f}' if timed else theirs or '-'} "
        f"| {f'''{row['trace'] / theirs:.1f}''' if timed else '-'} |"
    )


def of_the_bar(row: dict[str, Any]) -> float:
    """What tracing takes, in parts of three plain forward passes and one second."""
    return row["trace"] / (3 * row["forward"] + 1)


def summary(rows: list[dict[str, Any]]) -> str:
    """The table in a sentence or two."""
    done = [row for row in rows if "failed" not in row]
    slow = [row["name"] for row in done if of_the_bar(row) > 1]
    ratios = sorted(
        row["trace"] / row["torch_pruning"]
        for row in done
        if isinstance(row.get("torch_pruning"), float)
    )
    text = f"{len(done)} of {len(rows)} traced and cut; {len(slow)} over the bar in time"
    text += f" ({', '.join(slow)})." if slow else "."
    if ratios:
        text += (
            f" Torch-Pruning builds a graph of {len(ratios)} of them; the trace, with its probe, "
            f"takes {ratios[len(ratios) // 2]:.1f} times as long in the median."
        )
    return text


def there(family: str) -> bool:
    """Whether the package of a family is installed; a notice where it is not."""
    try:
        importlib.import_module(package(family))
    except ImportError as error:
        print(f"{family} is skipped: {error}", file=sys.stderr)
        return False
    return True


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="a text in the name, or a pattern with *")
    parser.add_argument(
        "--family", nargs="+", default=["torchvision"], choices=FAMILIES,
        help="smp is segmentation_models_pytorch; one that is not installed is skipped",
    )  # fmt: skip
    parser.add_argument("--no-compare", action="store_true", help="leave Torch-Pruning out")
    parser.add_argument("--limit", type=int, default=600, help="seconds for one network")
    parser.add_argument("--log", type=Path, help="write rows as JSON lines, and skip those there")
    parser.add_argument("--write", type=Path, help=f"write the table here; {PAGE.name} for all")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(1, str(HERE.parents[2]))
    chosen = [name for family in asked.family if there(family) for name in names(family)]
    for other in ("prunelab", "torch_pruning"):
        with contextlib.suppress(ImportError):  # once here, rather than in every process
            importlib.import_module(other)
    if asked.only:
        pattern = asked.only if "*" in asked.only else f"*{asked.only}*"
        chosen = [name for name in chosen if fnmatch.fnmatch(name, pattern)]
    known = {}
    if asked.log and asked.log.exists():
        known = {row["name"]: row for row in map(json.loads, asked.log.read_text().splitlines())}
    print(HEAD)
    lines, rows = [], []
    for name in chosen:
        row = known.get(name)
        if row is None:
            row = guarded(name, not asked.no_compare, asked.limit)
            if asked.log:
                with asked.log.open("a") as log:
                    log.write(json.dumps(row) + "\n")
        rows.append(row)
        lines.append(line(row))
        print(lines[-1], flush=True)
        for why, units in row.get("why", {}).items() if asked.only else ():
            print(f"    {units} units: {why}")
        if asked.only and row.get("unseen"):
            print(f"    unseen: {row['unseen']}")
    print(summary(rows))
    page = asked.write or (PAGE if asked.family == ["torchvision"] and not asked.only else None)
    if page:
        intro = __doc__.split("\n\n", 2)
        page.write_text(
            f"# {intro[0]}\n\n{intro[2]}\n{summary(rows)}\n\n{HEAD}\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
