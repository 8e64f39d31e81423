"""Labels and outputs in their usual forms give the same session, or an error that names them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl
from prunelab.loops.batch import cross_entropy
from prunelab.loops.labels import logits_of, targets_of
from prunelab.loops.training import Training, distillation_loss


def network(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, classes),
    ).eval()  # fmt: skip


IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(16) % 4


def session(net: nn.Module, labels: Tensor) -> pl.Session:
    some = [(IMAGES, labels)] * 2
    return pl.Session(net, pl.Data(some, some), method="magnitude")


@pytest.mark.parametrize(
    "given",
    [
        lambda y: y[:, None],
        lambda y: y.int(),
        lambda y: y.to(torch.uint8),
        lambda y: y[:, None].short(),
        lambda y: F.one_hot(y, 4),
        lambda y: F.one_hot(y, 4).float(),
        lambda y: F.one_hot(y, 4).bool(),
    ],
)
def test_class_labels_of_any_form_give_the_same_metrics(given: Callable[[Tensor], Tensor]) -> None:
    net = network(4)
    plain, same = session(net, CLASSES), session(net, given(CLASSES))
    assert same.state.now.metrics == pytest.approx(dict(plain.state.now.metrics))
    same.propose(0.7)
    same.approve()
    same.tune(steps=1)


def test_soft_labels_are_learned_as_probabilities() -> None:
    net, shares = network(4), torch.rand(16, 4).softmax(1)
    found = cross_entropy(net, (IMAGES, shares))
    log = net(IMAGES).detach().log_softmax(1)
    assert found.detach().item() == pytest.approx(float(-(shares * log).sum(1).mean()), rel=1e-5)


@pytest.mark.parametrize(
    "given",
    [lambda y: y, lambda y: y.bool(), lambda y: y.float(), lambda y: y[:, None].float()],
)
@pytest.mark.parametrize("flat", [False, True])
def test_a_single_logit_is_a_binary_classifier(
    given: Callable[[Tensor], Tensor], flat: bool
) -> None:
    net = nn.Sequential(*network(1), nn.Flatten(0)) if flat else network(1)
    y = CLASSES % 2
    work = session(net, given(y))
    z = net(IMAGES).flatten().detach()
    assert work.state.now.metrics["accuracy"] == float(((z > 0) == y.bool()).float().mean())
    want = float(F.binary_cross_entropy_with_logits(z, y.float()))
    assert work.state.now.metrics["loss"] == pytest.approx(want, rel=1e-5)
    work.propose(0.7)
    work.approve()
    work.tune(steps=1)


def test_a_single_logit_has_curvature() -> None:
    net = network(1)
    graph = pl.trace(net, IMAGES)
    found = pl.measure(net, graph, [(IMAGES, CLASSES % 2)], kinds=("curvature",))
    assert float(torch.as_tensor(found.curvature["2"]).trace()) > 0


def test_a_single_logit_is_distilled() -> None:
    loss = distillation_loss(network(1), seed=0)
    assert float(loss(network(1), (IMAGES, CLASSES % 2)).detach()) > 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.ones(16, 4), r"\[16, 4\] of float32.*sum to 1.*BCEWithLogitsLoss"),
        (CLASSES.float(), r"\[16\] of float32.*labels\.long\(\).*MSELoss"),
        (CLASSES > 1, r"\[16\] of bool.*two classes"),
        (CLASSES[:8], r"\[8\] of int64, for logits \[16, 4\].*one label for each image"),
        (torch.zeros(16, 8, 8), r"\[16, 8, 8\] of float32"),
        (torch.zeros(16, 5), r"\[16, 5\] of float32"),
        (CLASSES - 1, r"from -1 to 2.*0 \.\. 3"),
        (torch.tensor(3), r"one label for each image"),
        (CLASSES.to(torch.complex64), r"complex64"),
    ],
)
def test_labels_that_cannot_be_understood_are_named(labels: Tensor, message: str) -> None:
    with pytest.raises(pl.BadData, match=message):
        targets_of((IMAGES, labels), torch.zeros(16, 4))


def test_batches_that_are_no_pairs_are_named() -> None:
    for batch, message in (
        ({"x": IMAGES, "y": CLASSES}, "a dict of 'x', 'y'"),
        ((IMAGES, CLASSES, CLASSES), r"a tensor \[16\] of int64, a tensor \[16\] of int64"),
        ((IMAGES, CLASSES.tolist()), "a list of 16"),
        (IMAGES, r"a tensor \[16, 3, 8, 8\]"),
    ):
        with pytest.raises(pl.BadData, match=message):
            targets_of(batch, torch.zeros(16, 4))


def test_outputs_that_are_no_logits_are_named() -> None:
    for outputs, message in (
        (torch.zeros(2, 4, 8, 8), r"a tensor \[2, 4, 8, 8\] of float32.*loss="),
        ({"out": torch.zeros(2, 4)}, "a dict of 'out'"),
        ((torch.zeros(2, 4), None), "a tuple of 2"),
    ):
        with pytest.raises(pl.BadData, match=message):
            logits_of(outputs)


def test_several_classes_in_an_image_are_learned_with_the_loss_that_the_error_names() -> None:
    net, labels = network(4), (torch.rand(16, 4) > 0.5).float()
    some = [(IMAGES, labels)] * 2
    loss = nn.BCEWithLogitsLoss()
    work = pl.Session(
        net, pl.Data(some, some), method="magnitude", loss=loss, train=Training(lr=0.01)
    )
    assert work.state.now.metrics["loss"] == pytest.approx(
        float(loss(net(IMAGES).detach(), labels))
    )
    work.propose(0.7)
    work.approve()
    work.tune(steps=2)
