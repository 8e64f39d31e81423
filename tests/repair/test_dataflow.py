"""A recorded forward pass, advanced piece by piece, computes what the network computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from foreign import NETWORKS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.evidence.reconstruction_target import OutputWatch
from prunelab.loops.batch import run_batch
from prunelab.repair.dataflow import NotReplayable, Run, signature
from prunelab.repair.recorder import record


class InPlace(nn.Module):
    """Views, parts written in place, and an activation that overwrites what a shortcut reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.c, self.d = nn.Conv2d(3, 6, 1), nn.Conv2d(12, 4, 1)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        first = x[:, :3]
        first += 1  # changes x
        y = self.norm(self.b(x))
        y += x
        F.relu_(x)  # b and the sum read what it was before
        z = self.c(first)  # after the activation
        z[:, 1::2] = y[:, ::2]
        return self.fc(self.d(torch.cat([z, x], 1)).relu_().mean((2, 3)))


class Shared(nn.Module):
    """A layer that reads what it gave, and a state that the code keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for _ in range(3):
            x = torch.tanh(self.b(x))
        self.last = x
        return self.fc(x.mean((2, 3)))


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    own = {"in place": InPlace, "shared": Shared}
    net = own[name]() if name in own else NETWORKS[name].build()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def outputs(net: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    """The outputs of all layers without their bias, call by call."""
    watch = OutputWatch(net, [name for name, _ in net.named_parameters()], inputs=False)
    with watch:
        run_batch(net, x)
    return {name: [one.y for one in found] for name, found in watch.found.items() if found}


CHOSEN = ["in place", "shared", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"]
CHOSEN += ["densenet121_narrow", "squeezenet1_1", "regnet_y_400mf", "unet"]


@pytest.mark.parametrize("name", CHOSEN)
@torch.no_grad()
def test_every_layer_gives_what_it_gives_in_the_network(name: str) -> None:
    net, x = built(name), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    want = outputs(net, x)
    found = record(net, torch.zeros_like(x), run_batch)
    calls = sorted((c for calls in found.layers.values() for c in calls), key=lambda c: c.at)
    assert {call.call.name for call in calls} == set(want)
    run = Run(found, x, [call.y for call in calls])
    taken: dict[str, list[Tensor]] = {}
    for call in calls:
        y = run.take(call.y)
        bias = call.call.bias
        bare = y if bias is None else y - bias.view(1, -1, *[1] * (y.ndim - 2))
        taken.setdefault(call.call.name, []).append(bare.clone())
    for key, ys in want.items():
        assert all(torch.equal(a, b) for a, b in zip(taken[key], ys, strict=True)), key
    assert run.carried == 0, "nothing is left to read"


@settings(max_examples=25, deadline=None)
@given(st.data())
@torch.no_grad()
def test_what_is_taken_does_not_depend_on_what_else_is_or_on_starting_anew(data: Any) -> None:
    name = data.draw(st.sampled_from(["in place", "shared"]))
    net, x = built(name), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = record(net, x, run_batch)
    calls = sorted((c for calls in found.layers.values() for c in calls), key=lambda c: c.at)
    chosen = [call for call in calls if data.draw(st.booleans())]
    alone = [Run(found, x, [call.x]).take(call.x).clone() for call in chosen]
    run = Run(found, x, [call.x for call in chosen])
    for call, want in zip(chosen, alone, strict=True):
        if data.draw(st.booleans()):
            run.restart()
        if data.draw(st.integers(0, 3)) == 0:
            run.leave([call.x])
        else:
            assert torch.equal(run.take(call.x), want)
    assert not run.wanted and run.carried == 0


@torch.no_grad()
def test_each_operation_runs_once_and_what_nobody_reads_is_let_go() -> None:
    net = nn.Sequential(*[m for _ in range(4) for m in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())])
    x = torch.randn(2, 3, 16, 16)
    found = record(net, x, run_batch)
    calls = [found.layers[f"{2 * i}.weight"][0] for i in range(4)]
    run = Run(found, x, [call.x for call in calls])
    for call in calls:
        run.take(call.x)
        left = x.nbytes if call is not calls[-1] else 0
        assert run.carried == (0 if call is calls[0] else left)
    assert sum(run.done) == 6  # the last convolution and its activation are not needed


@torch.no_grad()
def test_images_that_wait_see_the_weights_that_changed_behind_them() -> None:
    net, x = built("squeezenet1_1"), torch.randn(2, 3, 32, 32)
    found = record(net, x, run_batch)
    first, last = found.layers["features.0.weight"][0], found.layers["features.9.squeeze.weight"][0]
    run = Run(found, x, [first.x, last.x])
    run.take(first.x)
    net.get_submodule("features.0").weight.mul_(-1)
    watch = OutputWatch(net, ["features.9.squeeze.weight"])
    with watch:
        net(x)
    assert torch.equal(run.take(last.x), watch.found["features.9.squeeze.weight"][0].call.x)


def test_recording_leaves_no_trace_in_the_network() -> None:
    net = built("shared").train()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    record(net, torch.randn(2, 3, 8, 8), run_batch)
    assert net.last is None and net.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


class Odd(nn.Module):
    """One network for each way in which the shapes do not say what is computed."""

    def __init__(self, odd: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.odd = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), odd

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.odd(self.a(x)))


ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "a branch on a value": lambda x: x.relu() if x.mean() > 0 else x,
    "a value": lambda x: x * float(x.std()),
    "a random draw": lambda x: x + torch.rand_like(x),
    "a selection": lambda x: x[x.mean((1, 2, 3)).argsort()],
    "a shape that depends on values": lambda x: x[x.mean((1, 2, 3)) > 0],
    "numpy": lambda x: torch.from_numpy(x.detach().numpy() + 1),
}


class Changing(nn.Module):
    """Changes a buffer, a view of one, statistics, its weight or its input; or keeps a state."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.a, self.b, self.what = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), what
        self.register_buffer("calls", torch.zeros(6))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("variance", torch.ones(6))
        self.before: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "a buffer":
            self.calls.add_(1)
        elif self.what == "a view of a buffer":
            self.calls[0] += 1
        elif self.what == "a detached buffer":
            self.calls.detach().add_(1)
        elif self.what == "its weight":
            self.b.weight.data *= 0.5
        elif self.what == "its input":
            x.add_(1)
        x = self.a(x)
        if self.what == "statistics":
            x = F.batch_norm(x, self.mean, self.variance, training=True)
        elif self.what == "its state":
            x, self.before = x + self.before, x.mean()
        return self.b(x)


CHANGED = ["a buffer", "a view of a buffer", "a detached buffer", "its weight", "its input"]
CHANGED += ["statistics", "its state"]


@pytest.mark.parametrize("what", CHANGED)
@torch.no_grad()
def test_what_changes_more_than_it_makes_is_refused(what: str) -> None:
    net, x = Changing(what), torch.zeros(4, 3, 8, 8)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(NotReplayable):
        record(net, x, run_batch)
    assert not x.any() and net.before == 0 and net.training
    for name, tensor in net.state_dict().items():
        assert tensor.device == x.device and torch.equal(tensor, state[name]), name


class Twice(nn.Module):
    """Two layers that take turns; what one gave is overwritten, or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.a, self.t, self.p = (nn.Conv2d(3 if i == 0 else 6, 6, 1) for i in range(3))
        self.fc = nn.Linear(6, 6)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for layer in (self.t, self.p) * 2:
            x = F.relu(layer(x), inplace=self.in_place)
        x = x.mean((2, 3))
        for _ in range(2):
            y = torch.tanh(self.fc(x))
            x = x.add_(y) if self.in_place else x + y
        return x


@torch.no_grad()
def test_what_is_taken_stays_though_it_is_overwritten_before_or_after() -> None:
    x = torch.randn(4, 3, 6, 6)
    taken = []
    for in_place in (True, False):
        torch.manual_seed(0)
        found = record(Twice(in_place).eval(), x, run_batch)
        reads = [r for calls in found.layers.values() for c in calls for r in (c.x, c.y)]
        run = Run(found, x, reads)  # layer by layer, not in the order of the calls
        taken.append([run.take(read) for read in reads])
        assert not run.carried
    assert all(torch.equal(a, b) for a, b in zip(*taken, strict=True))


@torch.no_grad()
def test_a_tensor_that_the_code_writes_down_is_new_for_every_batch() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            total = torch.tensor([0.0])
            total += x.mean()
            return self.a(x + total)

    net, x = Sum().eval(), torch.ones(2, 3, 4, 4)
    found = record(net, x, run_batch)
    (call,) = found.layers["a.weight"]
    for _ in range(2):
        assert torch.equal(Run(found, x, [call.x]).take(call.x), x + 1)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_attention_without_dropout_is_recorded(rate: float) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=rate)
            return self.out(x.transpose(1, 2).reshape(2, 5, 8))

    x = torch.randn(2, 5, 8)
    if rate:
        with pytest.raises(NotReplayable, match="random"):
            record(Attends(), x, run_batch)
        return
    net = Attends().eval()
    with torch.no_grad():
        found = record(net, x, run_batch)
        (call,) = found.layers["out.weight"]
        y = Run(found, x, [call.y]).take(call.y)
        torch.testing.assert_close(y.view(2, 5, 8), net(x))


@pytest.mark.parametrize("odd", ODD)
def test_what_depends_on_more_than_shapes_is_refused(odd: str) -> None:
    with pytest.raises(NotReplayable):
        record(Odd(ODD[odd]), torch.randn(4, 3, 8, 8), run_batch)


def test_a_batch_in_which_tensors_may_hide_is_refused() -> None:
    class Box:
        x = torch.zeros(2)

    x = torch.zeros(2, 3)
    assert signature({"x": x, "size": 3}) == signature({"x": x + 1, "size": 3})
    assert signature([x]) != signature([x[:1]])
    assert signature([x, 1]) != signature([x, 2])
    assert signature([x, 1]) != signature([x, 1.0])
    with pytest.raises(NotReplayable, match="other objects"):
        signature([x, Box()])
