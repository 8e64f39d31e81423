"""`trace`: the channel graph of a network, checked by a probe cut."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import gcd
from typing import Any

import torch
from torch import nn

from prunelab.data.private_random import private_random
from prunelab.data.tensors import tensors_of
from prunelab.errors import InvalidValue, PruneLabError, TraceError
from prunelab.graph.channels.channel_graph import ChannelGraph
from prunelab.graph.edits import edited
from prunelab.graph.given import check_network
from prunelab.graph.grouping import build_graph
from prunelab.graph.independence import check_copies
from prunelab.graph.kept_state import changed, kept_state, own, python_random_kept
from prunelab.graph.labels.label_mode import LabelMode, run_on_labels
from prunelab.graph.probe import probed
from prunelab.graph.stirring import stir
from prunelab.graph.surgery.editing import copy_with
from prunelab.graph.surgery.network_state import state_preserved
from prunelab.graph.survey import checked_size, surveyed, told
from prunelab.graph.train_mode import idle, mode_dependent
from prunelab.graph.untaken import entered_above, readable, untaken
from prunelab.values.given import as_annotated

Run = Callable[[nn.Module], Any]
OUTPUT = "it is an output of the network"
ASKED = "you asked to freeze it"


@as_annotated
def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    train_inputs: Any = None,
    freeze: str | Sequence[str] = (),
    round_to: int = 1,
    min_width: int = 1,
    inexact: bool = False,
    edit: bool = False,
    time_limit: float | None = None,
    batch_size: int | None = None,
) -> ChannelGraph:
    """Find the coupled channels of `model` by running it on labels.

    Parameters
    ----------
    model
        Any network; it is left bitwise as it was.
    example_inputs
        A tensor, a tuple of arguments, or a dict of keyword arguments; a list of such tuples and
        dicts is several calls, traced together, for a network with several heads or branches (MACs
        are those of the first). With `forward`, whatever `forward(model, example_inputs)` takes.
        The network runs in evaluation mode and, where its
        code behaves differently there (auxiliary heads), in training mode; both traces are joined.
    forward
        How to run the network, where `model(example_inputs)` does not.
    train_inputs
        Inputs for training mode, where they differ (images and targets of a detector).
    freeze
        Layers, or parts of the network, whose channels must all stay.
    round_to, min_width
        Methods keep widths at multiples of `round_to` channels and at `min_width` units or more;
        a plan's own `drop` is literal.
    inexact
        Statistics over channels freeze them, because they depend on their number: a LayerNorm,
        RMSNorm, GroupNorm of one group, local or global response normalisation, attention by the
        mean or maximum over channels or by a convolution over them, a standardised weight, a
        spectral norm (whose vectors are cut, and put right by the power iterations of training).
        True makes them prunable, marked `group.inexact`.
    edit
        Code that holds a width as an integer freezes it. True rewrites, in cut networks, integer
        attributes of modules, and those in lists and tuples, that are found to hold such a width;
        `graph.edits` names them. Every one is tried out, and left as it is where the cut network
        would differ from the masked one. Parts of an axis become groups of their own, those too
        whose width code reads from a tensor.
    time_limit
        Seconds that tracing may take (None: no limit).
    batch_size
        How many inputs `example_inputs` holds, for costs. None: what the run shows, see
        `inputs_of`; where that cannot be known, costs ask for it.

    At the end a copy is cut and compared with the masked network; groups where the two differ
    are frozen, because forward code hard-codes their width. Layers that never ran are listed in
    `graph.unseen`; what they may read is frozen, unless no code mentions them. Raises `TraceError`
    when the network does not run on these inputs or exceeds `time_limit`, `BadModel` for a network
    that is scripted, exported, quantised or without values, `InvalidValue` for widths below 1.
    """
    _check_widths(round_to, min_width)
    check_network(model)
    calls_of = [_run(call, forward) for call in several(example_inputs, forward)]
    run = runner(example_inputs, forward)
    tensors = tensors_of(example_inputs)
    count = checked_size(batch_size)
    itemsize = next((x.element_size() for x in tensors if x.is_floating_point()), 4)
    deadline = None if time_limit is None else time.monotonic() + time_limit
    with state_preserved(model):
        check_copies(model, run, forward is not None)
    given, model = model, copy_with(model, {}).eval()
    with running_on(example_inputs):
        with state_preserved(model), private_random():
            stand_in = partial(copy_with, model, {}, share=True)
            found, left, values, derived = surveyed(stand_in, run, example_inputs)
        count = count or found
        size = count or 1
        fresh = partial(LabelMode, model, size, inexact, deadline, edit, derived)
        mode = _followed(model, calls_of, fresh, values)
    calls, untrained = tuple(mode.calls), ""
    train: Run | None = None
    again = _SecondRun(mode, model, run)
    if train_inputs is not None or mode_dependent(model) or _unused(model, mode):
        train = _in_training(run if train_inputs is None else runner(train_inputs, forward))
        try:
            _follow_in_training(model, mode, train)
        except TraceError:
            raise
        except Exception as error:
            untrained = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
            if train_inputs is not None:
                raise TraceError(
                    f"The network does not run in training mode on train_inputs: {untrained}."
                ) from error
            again.guard()
            train = None  # training mode fails on these inputs, so the probe cannot use it
    others = [] if untrained else again.unowned(untaken(model, mode.used))
    again.keep(others)
    shapes = tuple(tuple(tensor.shape) for tensor in tensors)
    graph = build_graph(model, mode.store.close(), shapes, itemsize)
    named = [f"{layer}." for layer in graph.unseen]
    others = [part for part in others if not any(n.startswith(f"{part}.") for n in named)]
    unseen = (*graph.unseen, *others)
    graph = replace(graph, untrained=untrained, unseen=unseen, network=weakref.ref(given))
    graph = replace(graph, inputs=count, left_out=told(left, size))
    graph = restricted(graph, freeze, round_to, min_width)
    if mode.wrote:
        model = copy_with(given, {}).eval()  # what was written are zeros in part
    stir(model)
    try_out = partial(probed, private=mode.wrote or bool(mode.keeps), writes=mode.wrote)

    def checked(graph: ChannelGraph, seed: int) -> ChannelGraph:
        return try_out(model, graph, run, calls, train, deadline, seed=seed)

    graph = edited(model, graph, run, checked, deadline) if edit else checked(graph, 0)
    if mode.keeps and any(group.prunable for group in graph.groups):
        stir(model := copy_with(given, {}).eval())
        with torch.no_grad(), private_random():
            run(model)
        why = f"the network keeps {', '.join(mode.keeps)} from one run to the next"
        graph = try_out(model, graph, run, calls, None, deadline, why=why)
    return graph


def _followed(
    model: nn.Module, calls: Sequence[Run], fresh: Callable[[], LabelMode], values: bool
) -> LabelMode:
    """The mode after `calls` of `model` on labels; values are computed only where needed.

    The work of layers is that of the first call; with `values`, code depends on values.
    """

    def follow(mode: LabelMode) -> LabelMode:
        for call in calls:
            mode.counting = call is calls[0]
            _run_stand_in(mode, model, call, OUTPUT)
        return mode

    mode = fresh()
    mode.numbers = values
    try:
        return follow(mode)
    except TraceError:
        raise
    except Exception:  # code may branch on zeros: run again with the real values
        if values:
            raise
        return follow(fresh())


def _follow_in_training(model: nn.Module, mode: LabelMode, train: Run) -> None:
    """Add to `mode` what running `model` in training mode finds; see `_followed`."""
    mode.counting, mode.numbers, mode.careful = False, False, False
    outputs = "it is an output of the network in training"
    try:
        _run_stand_in(mode, model, train, outputs)
        missed = _unused(model, mode)
    except TraceError:
        raise
    except Exception:
        missed = True
    if missed:
        mode.numbers = True
        _run_stand_in(mode, model, train, outputs)


class _SecondRun:
    """Repeats the run in evaluation mode, to freeze what code that did not run may read."""

    def __init__(self, mode: LabelMode, model: nn.Module, run: Run) -> None:
        self.mode, self.model, self.run = mode, model, run
        self.numbers, self.known = mode.numbers, set(mode.store.trace.layers)

    def guard(self) -> None:
        """Freeze what training-only code may read, because that code could not be run.

        Such code is in a module that reads its `training` flag, or that has an unused submodule.
        It can access the module's inputs, what the module computes, and the outputs of its
        submodules, but nothing inside these.
        """
        mode, store = self.mode, self.mode.store
        for layer in store.trace.layers.values():
            if layer.name not in self.known:
                store.freeze(layer.out, "it runs only in training mode, which failed")
        for name in mode_dependent(self.model):
            store.guarded[name] = f"it may be read by training-only code of {name or 'the network'}"
        for part in idle(self.model, mode.used):
            above = entered_above(part, mode.stack.entered)
            store.guarded[above] = f"it may be read in training by {part}, which did not run"
        self._follow()

    def unowned(self, parts: Sequence[str]) -> list[str]:
        """Of `parts`, those that are not the unused bias of a layer that ran: it is cut with it."""
        left = []
        for part in parts:
            owner = self.mode.store.trace.layers.get(f"{part.removesuffix('bias')}weight")
            if part.endswith("bias") and owner is not None and owner.cuttable:
                self.mode.store.slot((part, 0), owner.out, owner.name)
            else:
                left.append(part)
        return left

    def keep(self, parts: Sequence[str]) -> None:
        """Freeze what `parts` may read, which other calls take: see `readable`."""
        if not parts:
            return
        store = self.mode.store
        store.met = []
        self._follow()
        for part in parts:
            above = entered_above(part, self.mode.stack.entered)
            for labels in readable(self.model, part, above, store.met):
                store.freeze(labels, f"{part} may read it, in a call that was not traced")

    def _follow(self) -> None:
        mode = self.mode
        mode.numbers, mode.careful, mode.counting = self.numbers, True, False
        self.model.eval()
        _run_stand_in(mode, self.model, self.run, OUTPUT)


def _run_stand_in(mode: LabelMode, model: nn.Module, run: Run, outputs: str) -> None:
    """`run_on_labels` on a copy of `model` that shares its tensors.

    Code may store what it computes in an attribute or a buffer, and zeros must not be stored.
    """
    made = copy_with(model, {}, share=True)
    before = kept_state(made) if outputs is OUTPUT else {}
    with state_preserved(model), private_random():
        run_on_labels(mode, made, run, outputs)
    if outputs is OUTPUT:
        mode.keeps = changed(before, kept_state(made))


def _unused(model: nn.Module, mode: LabelMode) -> bool:
    """Whether some parameter was not used so far, such as that of an auxiliary head."""
    return any(name not in mode.used for name, _ in model.named_parameters())


def _in_training(run: Run) -> Run:
    """`run` in training mode, with normalisation layers kept in evaluation mode.

    Batch statistics need more than one value per channel, and write buffers; the coupling of
    channels is the same in both modes.
    """

    def train(model: nn.Module) -> Any:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
        return run(model)

    return train


def restricted(
    graph: ChannelGraph, freeze: str | Sequence[str] = (), round_to: int = 1, min_width: int = 1
) -> ChannelGraph:
    """The graph with these layers frozen, and these widths for its groups; see `trace`.

    Where `round_to` or `min_width` is 1, that of the graph stays. Raises `UnknownName` for a layer
    that is not in the graph, `InvalidValue` for widths below 1.
    """
    _check_widths(round_to, min_width)
    graph = graph.freeze(_asked(graph, [freeze] if isinstance(freeze, str) else freeze))
    groups = []
    for group in graph.groups:
        channels = -(-len(graph.layer(group.producers[0]).out_units) // group.width)
        groups.append(
            replace(
                group,
                min_width=group.min_width if min_width == 1 else min(min_width, group.width),
                step=group.step if round_to == 1 else round_to // gcd(round_to, max(1, channels)),
            )
        )
    round_to = graph.round_to if round_to == 1 else round_to
    return replace(graph, groups=tuple(groups), round_to=round_to)


def _check_widths(*given: int) -> None:
    if any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in given):
        raise InvalidValue(
            "round_to and min_width count channels and units, whole numbers from 1; not "
            f"{' and '.join(map(repr, given))}."
        )


def runner(
    inputs: Any, forward: Callable[[nn.Module, Any], Any] | None = None
) -> Callable[[nn.Module], Any]:
    """A function that runs a network on `inputs`, as `trace` takes them.

    Every run has a copy of the inputs, and leaves the random state of Python and NumPy as it was.
    """
    calls = [_run(call, forward) for call in several(inputs, forward)]
    return calls[0] if len(calls) == 1 else lambda model: [call(model) for call in calls]


def several(inputs: Any, forward: Callable[[nn.Module, Any], Any] | None = None) -> list[Any]:
    """The inputs of each call: of several if it is a list of tuples and dicts."""
    listed = forward is None and isinstance(inputs, list) and bool(inputs)
    return inputs if listed and all(isinstance(x, tuple | dict) for x in inputs) else [inputs]


def _run(inputs: Any, forward: Callable[[nn.Module, Any], Any] | None) -> Run:
    def run(model: nn.Module) -> Any:
        with python_random_kept():
            return called(model, own(inputs), forward)

    return run


@contextmanager
def running_on(inputs: Any) -> Iterator[None]:
    """Within it a network runs on `inputs`: an error in its code is raised as `TraceError`."""
    try:
        yield
    except PruneLabError:
        raise
    except Exception as error:
        shown = [tuple(tensor.shape) for tensor in tensors_of(inputs)]
        single = any(shape[:1] == (1,) for shape in shown[:1])
        raise TraceError(
            f"The network does not run on the example inputs (shapes {shown}): "
            f"{type(error).__name__}: {error}. Give inputs that model(inputs) takes, "
            f"{'two if it takes no batch of one, ' if single else ''}or forward=."
        ) from error


def called(
    model: nn.Module, inputs: Any, forward: Callable[[nn.Module, Any], Any] | None = None
) -> Any:
    """Run a network on `inputs`, one call."""
    if forward is not None:
        return forward(model, inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def _asked(graph: ChannelGraph, freeze: Sequence[str]) -> dict[str, str]:
    reasons = {}
    for name in freeze:
        inside = [
            group.name
            for group in graph.groups
            if any(p == name or p.startswith(f"{name}.") for p in group.producers)
        ]
        for found in inside or [graph[name].name]:
            reasons[found] = ASKED
    return reasons


def copy_of(model: nn.Module) -> nn.Module:
    """A private copy of `model`; raises `BadModel` when it cannot be copied."""
    return copy_with(model, {})
