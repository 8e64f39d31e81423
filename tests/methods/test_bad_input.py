"""Every method on difficult networks, data and budgets: a correct result or a clear error.

An error leaves the session unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl
from prunelab.methods import METHODS


class Small(nn.Module):
    """Two convolutions with BatchNorm and a third layer that decides the outputs."""

    def __init__(self, middle: int = 6, last: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.an = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.bn = nn.Conv2d(6, middle, 3, padding=1), nn.BatchNorm2d(middle)
        self.last = last or nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(middle, 3)
        )

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.b(F.relu(self.an(self.a(x))))))

    def forward(self, x: Tensor) -> Any:
        return self.last(self.features(x))


class Detector(Small):
    """Takes a list of images of their own sizes and gives a dict for each, as detectors do."""

    def __init__(self) -> None:
        super().__init__(last=nn.Conv2d(6, 5, 1))

    def forward(self, x: list[Tensor]) -> list[dict[str, Tensor]]:
        maps = [self.last(self.features(image[None])).mean((2, 3))[0] for image in x]
        return [{"boxes": found[:4], "score": found[4]} for found in maps]


@dataclass(frozen=True)
class Case:
    """A network, batches for all three splits, and what a session is told besides."""

    model: Callable[[], nn.Module]
    batches: list[Any]
    more: dict[str, Any]


X = torch.randn(24, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3
PLAIN = [(X[:12], Y[:12]), (X[12:], Y[12:])]


def dead() -> nn.Module:
    model = Small()
    with torch.no_grad():
        model.an.weight.zero_()
        model.an.bias.fill_(-1)  # nothing passes the ReLU behind it
    return model


def mse(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def of_dict(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["image"]), batch["label"])


def of_pixels(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def of_boxes(model: nn.Module, batch: Any) -> Tensor:
    pairs = zip(model(batch[0]), batch[1], strict=True)
    return torch.stack(
        [F.mse_loss(f["boxes"], t["boxes"]) + f["score"] ** 2 for f, t in pairs]
    ).mean()


CASES = {
    "one image": Case(Small, [(X[:1], Y[:1])], {}),
    "one image again and again": Case(Small, [(X[:1].expand(12, 1, 6, 6), Y[:1].expand(12))], {}),
    "black images": Case(Small, [(0 * X, Y)], {}),
    "a dead layer": Case(dead, PLAIN, {}),
    "a layer of one channel": Case(lambda: Small(1), PLAIN, {}),
    "regression": Case(Small, [(X, torch.randn(24, 3))], {"loss": mse}),
    "batches of dicts": Case(
        Small,
        [{"image": X[:12], "label": Y[:12]}, {"image": X[12:], "label": Y[12:]}],
        {"loss": of_dict, "forward": lambda model, batch: model(batch["image"])},
    ),
    "segmentation": Case(
        lambda: Small(last=nn.Conv2d(6, 3, 1)), [(X, (X[:, 0] > 0).long())], {"loss": of_pixels}
    ),
    "detection": Case(
        Detector,
        [
            ([torch.randn(1, 6, 6), torch.randn(1, 8, 7)], [{"boxes": torch.ones(4)}] * 2),
            ([torch.randn(1, 7, 6)], [{"boxes": torch.zeros(4)}]),
        ],
        {"loss": of_boxes, "forward": lambda model, batch: model(batch[0])},
    ),
}

QUICK: dict[str, dict[str, Any]] = {
    "aofp": {"theta": 0.1},
    "group_fisher": {"interval": 1, "units_per_step": 2, "share": 0.2},
}


def made(name: str) -> Any:
    if name == "aofp, sampled":
        return pl.AOFP(theta=0.3, scoring="sampled", batches=1, warmup=0, retire_after=1)
    return pl.make_method(name, **QUICK.get(name, {}))


NAMES = [*METHODS, "aofp, sampled"]


def session_of(case: Case, name: str) -> pl.Session:
    torch.manual_seed(1)
    model = case.model().eval()
    data = pl.Data(train=case.batches, val=case.batches)
    return pl.Session(model, data, made(name), **case.more)


def remembered(session: pl.Session) -> tuple[Any, ...]:
    weights = {name: tensor.clone() for name, tensor in session.model.state_dict().items()}
    return len(session.ledger), session.state, session.plan, weights


def assert_unchanged(session: pl.Session, before: tuple[Any, ...]) -> None:
    events, state, plan, weights = before
    assert (len(session.ledger), session.state, session.plan) == (events, state, plan)
    torch.testing.assert_close(dict(session.model.state_dict()), weights, rtol=0, atol=0)
    assert session.busy is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_a_hard_case_gives_a_smaller_network_or_says_why_not(case: str, name: str) -> None:
    session = session_of(CASES[case], name)
    move = session.propose(target_macs=0.7)
    assert move is not None
    session.approve()
    state = session.state
    assert state.now.cost.macs == move.after.macs < state.base.cost.macs
    assert min(session.plan.widths.values()) >= 1
    assert all(torch.isfinite(tensor).all() for tensor in session.model.state_dict().values())
    metrics = torch.tensor([float(value) for value in state.now.metrics.values()])
    assert torch.isfinite(metrics).all()
    assert session.undo().now.cost == state.base.cost


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_out_of_reach_comes_with_the_best_plan(name: str) -> None:
    session = session_of(Case(Small, PLAIN, {}), name)
    with pytest.raises(pl.BudgetUnreachable) as caught:
        session.run(target_macs=0.001)
    assert caught.value.plan == session.plan
    assert session.state.now.cost == pl.cost(session.model, X[:1])


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_does_not_fit_the_network_is_told(name: str) -> None:
    with pytest.raises(pl.BadData, match="loss="):
        session_of(replace(CASES["segmentation"], more={}), name)
    with pytest.raises(pl.BadData, match="loss="):
        session_of(Case(Small, [X[:12], X[12:]], {}), name)


@pytest.mark.parametrize("name", ["aofp", "taylor", "group_fisher", "oracle", "aofp, sampled"])
def test_labels_that_are_none_are_told_when_they_turn_up(name: str) -> None:
    torch.manual_seed(1)
    data = pl.Data(train=[(X, Y + 7)], val=PLAIN)
    session = pl.Session(Small().eval(), data, made(name), repair=None)
    before = remembered(session)
    if name == "aofp":  # reads no labels
        assert session.propose() is not None
        return
    with pytest.raises(pl.BadData, match="They run from 7 to 9"):
        session.propose()
    assert_unchanged(session, before)


@pytest.mark.parametrize("name", NAMES)
def test_images_that_are_no_numbers_leave_the_session_unchanged(name: str) -> None:
    torch.manual_seed(1)
    data = pl.Data(train=[(torch.full_like(X, torch.nan), Y)], val=PLAIN)
    session = pl.Session(Small().eval(), data, made(name))
    before = remembered(session)
    try:
        session.propose(target_macs=0.7)
    except pl.NotFinite:
        assert_unchanged(session, before)
        return
    before = remembered(session)  # the method looks at no image; the repair does
    with pytest.raises(pl.NotFinite):
        session.approve()
    assert_unchanged(session, before)


def test_a_network_of_one_channel_layers_has_nothing_to_prune() -> None:
    class Thin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3), nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))

    data = pl.Data(train=PLAIN, val=PLAIN)
    with pytest.raises(pl.BadModel, match="at least one must be kept"):
        pl.Session(Thin(), data)


def test_without_batchnorm_its_scale_is_no_criterion() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    session = pl.Session(plain, pl.Data(train=PLAIN, val=PLAIN), "batchnorm_scale")
    before = remembered(session)
    with pytest.raises(pl.BadModel, match="'magnitude'"):
        session.propose()
    assert_unchanged(session, before)
