"""The state of a network: all of it is captured, and comes back in another network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl
from prunelab.evidence.fingerprint import fingerprint
from prunelab.graph.surgery.network_state import (
    NetworkState,
    captured,
    entries,
    restore,
    state_preserved,
)
from prunelab.graph.trace import copy_of

X = torch.randn(2, 3, 8, 8)


class Base(nn.Module):
    """Two convolutions and a head: input [N, 3, 8, 8]; `extend` adds what is odd about it."""

    def __init__(self, extend: Callable[[Any], Any] = lambda net: None) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 1)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Linear(12, 4)
        nn.init.normal_(self.norm.weight)
        extend(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.b(F.relu(self.a(x))))).mean((2, 3)))


class Epoch(nn.Identity):
    """Keeps what is no tensor of its own in its extra state."""

    seen: Any = None

    def get_extra_state(self) -> Any:
        return self.seen

    def set_extra_state(self, state: Any) -> None:
        self.seen = state


SEEN = {"epoch": 3, 1: [None, 0.1, (True, "x")], "mean": torch.tensor([[0.1, float("inf")]])}


def second_name(net: Any) -> None:
    net.backbone = nn.Sequential(net.a, nn.ReLU(), net.b)


def tied(net: Any) -> None:
    net.again = nn.Conv2d(3, 8, 3, padding=1)
    net.again.weight = net.a.weight


def extra(net: Any) -> None:
    net.epoch = Epoch()
    net.epoch.seen = SEEN


def transposed(net: Any) -> None:
    net.head.weight = nn.Parameter(torch.randn(12, 4).t())


def modes(net: Any) -> None:
    net.norm.eval()
    net.a.requires_grad_(False)


def infinite(net: Any) -> None:
    net.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))


def buffer(name: str, make: Callable[[], Tensor], persistent: bool = True) -> Callable[[Any], Any]:
    return lambda net: net.register_buffer(name, make(), persistent=persistent)


KINDS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda net: None,
    "a module under two names": second_name,
    "a tied parameter": tied,
    "a buffer that is not saved": buffer("blur", lambda: torch.randn(8, 1, 3, 3), False),
    "a buffer of one row, expanded": buffer("row", lambda: torch.randn(1, 3).expand(5, 3)),
    "a sparse buffer": buffer("adjacency", lambda: torch.randn(3, 3).to_sparse()),
    "a complex buffer": buffer("waves", lambda: torch.randn(3, dtype=torch.complex64)),
    "a complex buffer of two doubles": buffer("w", lambda: torch.randn(3, dtype=torch.complex128)),
    "a mask of infinity": infinite,
    "extra state": extra,
    "channels last": lambda net: net.to(memory_format=torch.channels_last),
    "a transposed weight": transposed,
    "float64": lambda net: net.double(),
    "modes and frozen parameters": modes,
}


def outputs(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return copy_of(net)(X.to(net.head.weight.dtype))


def about(net: nn.Module) -> dict[str, Any]:
    return captured(net).about


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks have the same state, each in memory of its own."""
    one, other = captured(a), captured(b)
    return one.about == other.about and all(
        (x.dtype, x.shape) == (y.dtype, y.shape)
        and torch.equal(x, y)
        and x.data_ptr() != y.data_ptr()
        for x, y in zip(one.tensors.values(), other.tensors.values(), strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_comes_back_in_another_network(kind: str) -> None:
    net, other = Base(KINDS[kind]), Base(KINDS[kind]).eval()
    assert not equal(net, other)
    packed = captured(net).packed()
    for tensors in (packed, load(save({k: v.contiguous() for k, v in packed.items()}))):
        made = copy_of(other)
        restore(made, NetworkState.unpacked(tensors))
        assert equal(made, net)
        assert torch.equal(outputs(made), outputs(net))
        assert fingerprint(made) == fingerprint(net) != fingerprint(other)
    assert equal(copy_of(net), net)


def test_a_state_ties_what_was_tied_after_the_network_was_built() -> None:
    net = Base(tied)
    made = Base(lambda net: setattr(net, "again", nn.Conv2d(3, 8, 3, padding=1)))
    restore(made, captured(net))
    assert made.again.weight is made.a.weight
    assert equal(made, net)


def test_tensors_that_are_two_do_not_fit_where_they_are_one() -> None:
    net = Base(lambda net: setattr(net, "again", nn.Conv2d(3, 8, 3, padding=1)))
    with pytest.raises(pl.BadModel, match="one tensor in the given network, two there"):
        restore(Base(tied), captured(net))


def test_a_buffer_that_a_run_registered_comes_back() -> None:
    class Lazy(Base):
        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "grid"):
                self.register_buffer("grid", torch.ones(x.shape[-1]), persistent=False)
            return super().forward(x * self.grid)

    net, made = Lazy(), Lazy()
    net(X)
    restore(made, captured(net))
    assert equal(made, net)
    restore(net, captured(Lazy()))  # what was not there then stays
    assert hasattr(net, "grid")


def test_a_buffer_that_is_none_until_a_run_comes_back() -> None:
    net, made = (Base(lambda net: net.register_buffer("grid", None)) for _ in range(2))
    net.grid = torch.ones(3)
    restore(made, captured(net))
    assert equal(made, net)


def test_a_tensor_of_the_same_form_is_written_in_place() -> None:
    net = Base()
    weight = net.a.weight
    restore(net, captured(Base()))
    assert net.a.weight is weight
    restore(net, captured(Base().to(memory_format=torch.channels_last)))
    assert net.a.weight.stride() == (27, 1, 9, 3)
    assert net.b.weight.stride() == (8, 1, 8, 8)


def test_the_state_dict_of_an_earlier_version_fits() -> None:
    for kind in (
        "plain",
        "a module under two names",
        "channels last",
        "modes and frozen parameters",
    ):
        net, made = Base(KINDS[kind]), Base(KINDS[kind])
        made.b.weight.requires_grad_(False)
        flags = about(made)
        restore(made, NetworkState.unpacked(OrderedDict(net.state_dict())))
        assert torch.equal(outputs(made), outputs(net))
        assert about(made) == flags


def test_another_architecture_is_told_before_anything_is_changed() -> None:
    made = Base()
    before = fingerprint(made)
    for other, says in (
        (Base(tied), "again"),
        (nn.Conv2d(3, 8, 3), "has no bias|is missing there"),
        (Base(lambda net: setattr(net, "a", nn.Conv2d(3, 8, 5))), r"a.weight is \(8, 3, 5, 5\)"),
    ):
        with pytest.raises(pl.BadModel, match=says):
            restore(made, captured(other))
    with pytest.raises(pl.BadModel, match="can only be smaller"):
        restore(
            made, captured(Base(lambda net: setattr(net, "a", nn.Conv2d(3, 8, 5)))), resize=True
        )
    assert fingerprint(made) == before


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: nn.ModuleDict({"_orig_mod": net})])
def test_names_of_wrappers_are_understood_on_both_sides(wrap: Any) -> None:
    net, made = Base(), Base()
    restore(made, captured(wrap(net)))
    assert torch.equal(outputs(made), outputs(net))
    assert made.training
    made = Base()
    restore(wrap(made), captured(net))
    assert torch.equal(outputs(made), outputs(net))


def test_a_module_inside_itself_is_read_once() -> None:
    net = Base()
    net.a.parent = net
    assert [entry.name for entry in entries(net)] == list(Base().state_dict())
    made = Base()
    restore(made, captured(net))
    assert torch.equal(made.a.weight, net.a.weight)


def test_what_only_pickle_could_write_is_told() -> None:
    net = Base(extra)
    net.epoch.seen = {"when": object()}
    with pytest.raises(pl.BadModel, match="get_extra_state of epoch gives a object"):
        captured(net)


def test_a_quantised_layer_is_told() -> None:
    class Packed(nn.Module):
        def _save_to_state_dict(self, saved: dict[str, Any], prefix: str, keep_vars: bool) -> None:
            saved[f"{prefix}packed"] = torch.qint8

    net = Base(lambda net: setattr(net, "inner", Packed()))
    with pytest.raises(pl.BadModel, match=r"inner.packed is neither.*before it is quantised"):
        captured(net)


def test_a_fingerprint_sees_what_outputs_depend_on_and_no_more() -> None:
    net = Base(extra)
    before = fingerprint(net)
    net.eval().to(memory_format=torch.channels_last).requires_grad_(False)
    assert fingerprint(net) == before
    net.epoch.seen = {**SEEN, "epoch": 4}
    assert fingerprint(net) != before
    net = Base(KINDS["a buffer that is not saved"])
    before = fingerprint(net)
    net.blur += 1
    assert fingerprint(net) != before


def test_buffers_are_restored_however_a_run_changed_them() -> None:
    net = nn.Module()
    for name in ("added", "assigned", "resized"):
        net.register_buffer(name, torch.zeros(2))
    net.child = nn.Dropout()
    net.child.eval()
    with state_preserved(net):
        net.added += 1
        net.assigned = torch.ones(3)
        net.resized.resize_(4)
        net.train()
    assert [buffer.tolist() for buffer in net.buffers()] == [[0.0, 0.0]] * 3
    assert (net.training, net.child.training) == (True, False)


class Keeping(Base):
    """Keeps what it computes in a dict, in an attribute and in its hooks' object."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        self.kept["outputs"] = [self.last]
        return self.last


def test_a_copy_detaches_what_a_network_keeps_and_leaves_the_network() -> None:
    net = Keeping()
    net(X).sum().backward()
    made = copy_of(net)
    (kept,) = made.kept["outputs"]
    assert kept is made.last
    assert kept is not net.last
    assert torch.equal(kept, net.last)
    assert not kept.requires_grad
    assert net.last.requires_grad


def test_running_a_network_of_the_users_leaves_nothing_in_it() -> None:
    net = Keeping().eval()
    data = [(X, torch.tensor([0, 1]))]
    graph = pl.trace(copy_of(net), X)
    pl.measure(net, graph, data, kinds=("contribution", "gradient", "ablation"))
    pl.cost(net, X)
    pl.latency(net, X, runs=1)
    assert net.kept == {}
    assert not hasattr(net, "last")


def test_an_attribute_that_cannot_be_copied_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    net[1].stream = (number for number in range(3))
    with pytest.raises(pl.BadModel, match="stream of 1, a generator, has no copy"):
        copy_of(net)


def test_a_network_without_values_is_told() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3))
    for call in (lambda: pl.trace(net, X), lambda: pl.Session(net, pl.Data([(X, X)], [(X, X)]))):
        with pytest.raises(pl.BadModel, match=r"0.weight has no values: .*run the network once"):
            call()


@pytest.mark.parametrize(
    ("given", "what"),
    [("model.pt", "'model.pt'"), ({}, "a dict"), (None, "a NoneType"), (Base, "<class .*Base'>")],
)
def test_what_is_no_network_is_told(given: Any, what: str) -> None:
    graph = pl.trace(Base(), X)
    plan = pl.WidthPlan.full(graph)
    data = pl.Data([(X, X)], [(X, X)])
    for call in (
        lambda: pl.trace(given, X),
        lambda: pl.Session(given, data),
        lambda: pl.cost(given, X),
        lambda: pl.latency(given, X),
        lambda: pl.measure(given, graph, data.train),
        lambda: pl.cut(given, graph, plan),
        lambda: pl.masked(given, graph, plan),
    ):
        with pytest.raises(pl.BadModel, match=f"model is {what}; it must be the network itself"):
            call()
