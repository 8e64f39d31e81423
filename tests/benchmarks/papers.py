"""The papers' networks: widths, multiply-adds and parameters against the published figures.

    python tests/benchmarks/papers.py [NAME ...] [--plans]

A network gets its widths from the method's own search in a session, on random weights and two
random images: where a rule prescribes widths, neither has a say in them. Where only a budget is
published, the session stops at it, and which units went is up to the weights. VGG-16 is searched
below ThiNet-GAP's head: the methods leave the head alone, and that of VGG-16 holds 124 million
weights. ResNet-50 is searched with images of 64 pixels. Without a session are ThiNet-70 and -30,
whose rule is that of ThiNet-50, and mmrazor's networks, whose widths came out of training. Then the
whole network is costed at 224 pixels, by its plan and cut, and set against the published figure to
the digits that the paper prints. Last comes a network of many branches: Channel Pruning on timm's
Xception, to half its multiply-adds; it is left out, with a notice, where timm is not installed.

NAME picks networks by a part of their names. --plans leaves the sessions out and costs the
published widths alone, in seconds. The exit status is 1 if a figure or a width that should be the
same is not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec

import torch
from published import PAPERS, Paper, Search, X, counted
from torch import Tensor, nn

import prunelab as pl


def planned(graph: pl.ChannelGraph, widths: Mapping[str, int]) -> pl.WidthPlan:
    """The plan that keeps the first units of these groups, and all of the others."""
    drop = {name: range(width, graph[name].width) for name, width in widths.items()}
    return pl.WidthPlan.full(graph).drop(drop)


def found(search: Search) -> dict[str, tuple[int, ...]]:
    """The units that a session drops, by group."""
    torch.manual_seed(0)
    model = search.network().eval()
    batch = [(torch.randn(2, 3, search.side, search.side), torch.arange(2))]
    data = pl.Data(train=batch, val=batch, test=batch)
    session = pl.Session(model, data, search.method(model), repair=None, example_inputs=X)
    graph = session.graph
    if search.target is not None:
        session.run(target_macs=search.target)
    else:
        while session.propose() is not None:
            session.approve()
    kept = session.plan.kept
    return {
        group.name: tuple(sorted(set(range(group.width)) - set(kept[group.name])))
        for group in graph.groups
        if len(kept[group.name]) < group.width
    }


def judged(paper: Paper, sessions: bool) -> tuple[bool, str]:
    """Print a network's lines of the table: whether all is as it should be, and its widths."""
    started = time.perf_counter()
    model = paper.network().eval()
    graph = pl.trace(model, X)
    published = planned(graph, paper.widths)
    if sessions and paper.search is not None:
        plan = pl.WidthPlan.full(graph).drop(found(paper.search))
        by = f"a session of {time.perf_counter() - started:.0f} s"
    else:
        plan, by = published, "the published plan" if paper.widths else "nothing is cut"
    right = not paper.widths or plan.widths == published.widths
    if paper.search is not None and paper.widths and plan is not published:
        by += ", as published" if right else ", NOT AS PUBLISHED"
    count = counted(model, graph, plan)
    name = f"{paper.name} | {by}"
    for figure in paper.figures:
        same = figure.same(count)
        right &= same or bool(figure.differs)
        verdict = "same" if same else f"differs: {figure.differs}" if figure.differs else "DIFFERS"
        print(
            f"| {name} | {figure.what} | {figure.published} | {figure.told(count)} "
            f"| {figure.ours(count):,.12g} | {verdict} |",
            flush=True,
        )
        name = " | "
    return right, told(plan, graph)


def told(plan: pl.WidthPlan, graph: pl.ChannelGraph) -> str:
    """The widths of every module that has a layer with fewer channels than it had."""
    modules: dict[str, list[str]] = {}
    cut = set()
    for name, width in plan.widths.items():
        module = name.removesuffix(".sampler").rpartition(".")[0]
        modules.setdefault(module, []).append(str(width))
        if width < graph[name].width:
            cut.add(module)
    return "; ".join(
        f"{module or 'outside'} {'-'.join(widths)}"
        for module, widths in modules.items()
        if module in cut
    )


def fitted(model: nn.Module, x: Tensor) -> nn.Module:
    """`model` in evaluation mode, with the BatchNorm statistics that its random weights give."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # an average of all batches: this one
    with torch.no_grad():
        model.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def xception(side: int = 64) -> bool:
    """Channel Pruning on a network of many branches, to half its MACs; prints what came out."""
    if find_spec("timm") is None:
        print("\ntimm is not installed, so Xception is left out: pip install timm.")
        return True
    import timm

    torch.manual_seed(0)
    x, unseen = torch.randn(2, 16, 3, side, side)
    batch = [(x, torch.arange(16) % 10)]
    model = fitted(timm.create_model("legacy_xception", num_classes=10), x)
    data = pl.Data(train=batch, val=batch, test=batch)
    session = pl.Session(model, data, pl.ChannelPruning(images=16), repair="lstsq")
    graph = session.graph
    session.run(target_macs=0.5)
    plan, state = session.plan, session.state
    with torch.no_grad():
        pairs = [(session.model(images), model(images)) for images in (x, unseen)]
    seen, other = (float((got - want).norm() / want.norm()) for got, want in pairs)
    model = model.double()
    small, same = pl.cut(model, graph, plan), pl.masked(model, graph, plan)
    with torch.no_grad():
        got, want = small(x.double()), same(x.double())
    apart = float((got - want).norm() / want.norm())
    print(
        f"\nXception (timm's legacy_xception, random weights, {side} pixels), Channel Pruning to "
        f"half its MACs: {state.moves} moves, {state.base.cost.macs:,} to "
        f"{state.now.cost.macs:,} MACs, every move repaired by least squares. Masked and cut "
        f"differ by {apart:.0e} of the output. Outputs are {seen:.2g} times their size off the "
        f"original's on the {len(x)} images of the repair, and {other:.2g} on others: there are "
        f"many more channels than that, so of the repair's quality this tells nothing."
    )
    return state.now.cost.macs <= 0.5 * state.base.cost.macs and apart < 1e-9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--plans", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)

    def chosen(name: str) -> bool:
        return not asked.names or any(part.lower() in name.lower() for part in asked.names)

    print("| network | widths from | counted | published | ours | in full | |")
    print("|--|--|--|--|--|--|--|")
    right, widths = True, {}
    for paper in PAPERS:
        only_searched = paper.search is not None and not paper.widths
        if chosen(paper.name) and not (asked.plans and only_searched):
            fine, widths[paper.name] = judged(paper, not asked.plans)
            right &= fine
    print("\nWidths by module, a residual stream's where it begins; others have all channels.\n")
    for name, text in widths.items():
        if text:
            print(f"- {name}: {text}.")
    if chosen("xception") and not asked.plans:
        right &= xception()
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
