"""The user's own functions: which signature is meant, and what an error in them says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Tiny, batches

import prunelab as pl
from prunelab.loops.own import loss_of, train_by

BATCH = batches(32, 1)[0]


class Focal:
    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores, labels)


class Both(nn.Module):
    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])


def typed(a: Tensor, b: Tensor) -> Tensor:
    return F.cross_entropy(a, b)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        F.cross_entropy,
        partial(F.cross_entropy, label_smoothing=0.0),
        Focal(),
        Both(),
        typed,
        lambda outputs, targets: F.cross_entropy(outputs, targets),
        lambda p, y_true: F.cross_entropy(p, y_true),
        lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        lambda model, y: F.cross_entropy(model(y[0]), y[1]),
    ],
)
def test_losses_of_either_signature_give_the_same_number(loss: Any, trained: nn.Module) -> None:
    found = loss_of(loss)(trained, BATCH)
    assert float(found.detach()) == float(F.cross_entropy(trained(BATCH[0]), BATCH[1]).detach())


def test_a_loss_of_outputs_uses_the_sessions_forward(trained: nn.Module) -> None:
    class Wrapped(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(x)}

    some = batches(64, 1)
    work = pl.Session(
        Wrapped(trained), pl.Data(some, some), method="taylor", loss=nn.CrossEntropyLoss(),
        forward=lambda model, batch: model(batch[0])["logits"],
    )  # fmt: skip
    assert work.propose(0.8) is not None
    work.approve()
    work.tune(steps=1)


def test_listeners_hear_the_loss_of_each_step_of_tuning(trained: nn.Module) -> None:
    given: list[float] = []

    def noted(model: nn.Module, batch: Any) -> Tensor:
        value = F.cross_entropy(model(batch[0]), batch[1])
        if value.requires_grad:
            given.append(float(value.detach()))
        return value

    heard: list[Any] = []
    some = batches(64, 1)
    work = pl.Session(trained, pl.Data(some, some), loss=noted)
    work.listen(heard.append)
    work.tune(steps=3)
    told = [item.loss for item in heard if isinstance(item, pl.Progress) and item.what == "tuning"]
    assert told == given
    assert len(told) == 3


def test_measuring_takes_a_loss_of_outputs(trained: nn.Module) -> None:
    graph, kinds = pl.trace(trained, BATCH[0]), ("gradient",)
    plain = pl.measure(trained, graph, [BATCH], kinds)
    same = pl.measure(trained, graph, [BATCH], kinds, loss=nn.CrossEntropyLoss())
    assert torch.equal(torch.as_tensor(plain.gradients), torch.as_tensor(same.gradients))
    drops = [{"conv1": (0, 1)}]
    assert pl.ablate(trained, graph, [BATCH], drops, loss=F.cross_entropy) == pytest.approx(
        pl.ablate(trained, graph, [BATCH], drops)
    )


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, b: float(m(b[0]).detach().mean()), r"<lambda>\) returned a float"),
        (lambda m, b: {"ce": m(b[0]).mean()}, "returned a dict of 'ce'"),
        (lambda m, b: m(b[0]).mean(1), r"returned a tensor \[32\] of float32.*Take its mean"),
        (lambda m, b: m(b[0]).mean().detach(), "without a gradient"),
        (lambda m, b: None, "returned None"),
        (nn.CrossEntropyLoss(reduction="none"), r"CrossEntropyLoss\) returned a tensor \[32\]"),
    ],
)
def test_what_a_loss_returns_is_named(loss: Any, message: str, trained: nn.Module) -> None:
    with pytest.raises(pl.InvalidValue, match=message):
        loss_of(loss)(trained, BATCH)


def test_an_error_in_a_loss_is_told_as_the_users_own(trained: nn.Module, data: pl.Data) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return batch["label"]

    with pytest.raises(pl.InvalidValue, match=r"Your loss \(loss\) raised TypeError") as caught:
        pl.Session(trained, data, loss=loss)
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(pl.InvalidValue, match=r"nn\.CrossEntropyLoss\(\); not 'ce'"):
        pl.Session(trained, data, loss="ce")
    with pytest.raises(pl.InvalidValue, match=r"takes .outputs, targets., but a batch is a tensor"):
        loss_of(nn.MSELoss())(trained, BATCH[0])


def test_what_a_metric_does_is_told(trained: nn.Module, data: pl.Data) -> None:
    def quality(model: nn.Module, loader: Any) -> float:
        raise KeyError("mask")

    with pytest.raises(pl.InvalidValue, match=r"metric 'q' \(quality\) raised KeyError"):
        pl.Session(trained, data, metrics={"q": quality})
    with pytest.raises(pl.InvalidValue, match=r"'q' returned \{'acc': 1.*quality"):
        named = lambda *_: {"acc": 1.0}  # noqa: E731
        named.__name__ = "quality"
        pl.Session(trained, data, metrics={"q": named})
    with pytest.raises(pl.InvalidValue, match="metrics is a mapping from names"):
        pl.Session(trained, data, metrics=quality)  # type: ignore[arg-type]


def pruned(trained: nn.Module, data: pl.Data, train: Any) -> pl.Session:
    work = pl.Session(trained, data, method="magnitude", train=train)
    work.propose(0.7)
    work.approve()
    return work


def moved(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.fc.bias.add_(1.0)
    return model


@pytest.mark.parametrize(
    "train",
    [
        lambda model, data, steps: moved(model),
        lambda model, data, steps: moved(copy.deepcopy(model)),
        lambda model, data, steps: nn.Sequential(moved(model)),
        lambda model, data, steps: [moved(model).fc.bias.mean()],
    ],
)
def test_a_trainer_may_return_the_trained_network(
    train: Callable[..., Any], trained: nn.Module, data: pl.Data
) -> None:
    work = pruned(trained, data, train)
    before = work.model.fc.bias.clone()
    work.tune(steps=1)
    assert torch.equal(work.model.fc.bias, before + 1)


def wider(model: nn.Module, data: Any, steps: int) -> None:
    model.fc = nn.Linear(model.fc.in_features, 9)


def halved(model: nn.Module, data: Any, steps: int) -> None:
    model.half()


def another(model: nn.Module, data: Any, steps: int) -> nn.Module:
    return Tiny()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (wider, r"train \(wider\) changed .* fc\.weight, from \(4, \d+\) .* to \(9, \d+\)"),
        (halved, r"train \(halved\) changed .* torch\.float32 to .* torch\.float16"),
        (another, r"train \(another\) changed"),
    ],
)
def test_a_trainer_changes_values_only(
    train: Any, message: str, trained: nn.Module, data: pl.Data
) -> None:
    work = pruned(trained, data, train)
    before, events = copy.deepcopy(work.model.state_dict()), len(work.ledger)
    with pytest.raises(pl.BadModel, match=message):
        work.tune(steps=1)
    assert len(work.ledger) == events
    now = work.model.state_dict()
    assert all(torch.equal(before[name], now[name]) for name in before)


def test_an_error_in_a_trainer_is_told_as_the_users_own() -> None:
    def fit(model: nn.Module, data: Any, steps: int) -> None:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(pl.InvalidValue, match=r"Your train \(fit\) raised ZeroDivisionError"):
        train_by(fit, Tiny(), None, 1)
