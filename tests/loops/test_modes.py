"""Training mode: single images under BatchNorm run, and what the user froze stays frozen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Tiny, batches

import prunelab as pl
from prunelab.loops.modes import frozen_modules, in_training


class Pooled(nn.Module):
    """A BatchNorm behind global pooling: a batch of one image has one value for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.p, self.n = nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8)
        self.h = nn.Conv2d(20, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        f = F.relu(self.b(F.relu(self.a(x))))
        g = F.relu(self.n(self.p(f.mean((2, 3), keepdim=True))))
        return self.h(torch.cat([f, g.expand(-1, -1, *f.shape[2:])], 1))


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("repair", ["lstsq", "bn", None])
def test_single_image_batches_are_tuned_and_repaired(count: int, repair: str | None) -> None:
    x, y = torch.randn(count, 3, 8, 8), torch.randint(0, 3, (count, 8, 8))
    some = list(zip(x.split(4), y.split(4), strict=True))
    work = pl.Session(
        Pooled().eval(), pl.Data(some, some), method="magnitude", loss=nn.CrossEntropyLoss(),
        repair=repair,
    )  # fmt: skip
    work.propose(0.7)
    work.approve()
    before = work.model.n.running_mean.clone()
    work.tune(steps=3)
    assert torch.equal(work.model.n.running_mean, before) == (count == 1)
    assert not work.model.n._forward_pre_hooks


def test_modules_that_the_user_froze_are_tuned_in_evaluation_mode(data: pl.Data) -> None:
    net = Tiny().train()
    net.bn1.eval()
    for parameter in net.bn2.parameters():
        parameter.requires_grad_(False)
    assert frozen_modules(net) == {"bn1", "bn2"}
    work = pl.Session(net, data, method="magnitude", repair=None)
    before = {name: value.clone() for name, value in work.model.state_dict().items()}
    work.tune(steps=2)
    now = work.model.state_dict()
    for name in ("bn1", "bn2"):
        assert torch.equal(now[f"{name}.running_mean"], before[f"{name}.running_mean"])
    assert not torch.equal(now["bn0.running_mean"], before["bn0.running_mean"])


def test_a_network_in_evaluation_mode_has_nothing_frozen_by_it() -> None:
    assert not frozen_modules(Tiny().eval())
    assert not frozen_modules(Tiny().requires_grad_(False))


def test_training_mode_keeps_what_a_networks_own_train_method_does() -> None:
    class Own(Tiny):
        def train(self, mode: bool = True) -> Own:
            super().train(mode)
            self.bn1.eval()
            return self

    net = Own()
    mean = net.bn1.running_mean.clone()
    with in_training(net):
        net(batches(32, 1)[0][0])
    assert torch.equal(net.bn1.running_mean, mean)
    assert not net.training


@pytest.mark.parametrize(
    "method",
    [
        pl.AOFP(theta=0.3, scoring="sampled", batches=2, warmup=0, retire_after=2),
        pl.GroupFisher(interval=2, units_per_step=4),
    ],
    ids=["aofp", "group fisher"],
)
def test_modules_that_the_user_froze_stay_so_in_methods_that_train(
    method: pl.AOFP | pl.GroupFisher, data: pl.Data
) -> None:
    net = Tiny().train()
    net.bn1.eval()
    for parameter in net.bn2.parameters():
        parameter.requires_grad_(False)
    session = pl.Session(net, data, method, repair=None)
    move = session.propose()
    assert move is not None
    session.approve()
    now = session.model.state_dict()
    for bn, group in (("bn0", "stem"), ("bn1", "conv1"), ("bn2", "stem")):
        kept = list(session.plan.kept[group])
        before = net.state_dict()[f"{bn}.running_mean"][kept]
        assert torch.equal(now[f"{bn}.running_mean"], before) == (bn != "bn0")
        assert (int(now[f"{bn}.num_batches_tracked"]) == 0) == (bn != "bn0")


@pytest.mark.parametrize(
    "method",
    [
        pl.AOFP(theta=0.3, scoring="sampled", batches=2, warmup=0, retire_after=2),
        pl.GroupFisher(interval=2, units_per_step=4),
    ],
    ids=["aofp", "group fisher"],
)
def test_a_unit_put_back_after_training_is_read_as_before_it(
    method: pl.AOFP | pl.GroupFisher, trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data, method, repair=None)
    move = session.propose()
    assert move is not None
    name = max(move.drop, key=lambda group: len(move.drop[group]))
    back, *rest = move.drop[name]
    readers = {"stem": "conv1", "conv1": "conv2", "conv3": "fc"}
    column = getattr(trained, readers[name]).weight[:, back]
    session.adjust(drop={**move.drop, name: rest})
    session.approve()
    assert back in session.plan.kept[name]
    now = getattr(session.model, readers[name]).weight
    at = session.plan.kept[name].index(back)
    rows = session.plan.kept.get({"stem": "conv1", "conv1": "stem"}.get(name, ""), range(len(now)))
    assert torch.equal(now[:, at], column[list(rows)])
