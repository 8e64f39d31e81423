"""The default job on third-party networks: repair never harms, and its record is correct.

The same at full size: tests/benchmarks/foreign.py.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from foreign import NETWORKS, batches, loss_of, trained

import prunelab as pl
from prunelab.ledger.events import Repaired

EIGHT = [name for name in NETWORKS if name not in ("vgg11_bn", "mobilenet_v2")]  # these are slow
IMAGES, EPOCHS = 1024, 3
SLOW = {"regnet_y_400mf": 6}  # epochs until it has learnt something
NOISE = 0.03  # about two standard errors of a difference, on 512 images


@cache
def stand(name: str) -> tuple[Any, pl.Data]:
    """A network after a few seconds of training, and its data."""
    shipped, task = pl.data.load("fashion", subset=True), NETWORKS[name].task
    train, val = batches(shipped.train, task), batches(shipped.val, task)
    model = trained(name, train[: IMAGES // 128], epochs=SLOW.get(name, EPOCHS))
    return model, pl.Data(train=train[:4], val=val[:4])


def few(data: pl.Data, images: int) -> pl.Data:
    x, y = next(iter(data.train))
    return pl.Data(train=[(x[:images], y[:images])], val=data.val)


def after(name: str, repair: str, images: int) -> tuple[dict[str, float], dict[str, float], Any]:
    """First metrics before and after 30% of all channels went, and the event of the repair."""
    model, data = stand(name)
    session = pl.Session(
        model, few(data, images), pl.Magnitude(pruning_ratio=0.3), repair=repair,
        loss=loss_of(NETWORKS[name].task),
    )  # fmt: skip
    session.propose()
    session.approve()
    return session.state.base.metrics, session.state.now.metrics, session.ledger[-1]


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("signal", 128),
        *(
            pytest.param(name, images, marks=pytest.mark.long)
            for name, images in [
                *((name, 128) for name in EIGHT if name != "signal"),
                *(("shufflenet_v2_x0_5", 16), ("unet", 16)),
            ]
        ),
        ("signal", 16),
    ],
)
def test_least_squares_is_never_below_batchnorm_alone(name: str, images: int) -> None:
    base, by_bn, _ = after(name, "bn", images)
    assert base.get("accuracy", 1) > 0.3, "it has learnt something that can be lost"
    _, solved, event = after(name, "lstsq", images)
    assert isinstance(event, Repaired)
    if "accuracy" in solved:
        assert solved["accuracy"] >= by_bn["accuracy"] - NOISE
    else:
        assert solved["loss"] <= 1.05 * by_bn["loss"]
    for refit in event.refits:
        assert refit.errors[refit.choice] == min(refit.errors.values())


@pytest.mark.long
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "signal"])
def test_a_run_to_seventy_percent_stays_near_the_original(name: str) -> None:
    model, data = stand(name)
    session = pl.Session(model, data, loss=loss_of(NETWORKS[name].task))
    session.run(target_macs=0.7)
    base, now = (p.metrics["accuracy"] for p in (session.state.base, session.state.now))
    assert session.state.now.cost.macs <= 0.7 * session.state.base.cost.macs
    assert now >= base - 0.02 - NOISE


@pytest.mark.long
def test_one_class_of_images_does_no_harm_that_validation_can_see() -> None:
    model, data = stand("shufflenet_v2_x0_5")
    x, y = (torch.cat(part) for part in zip(*data.train, strict=True))
    alone = pl.Data(train=[(x[y == 0], y[y == 0])], val=data.val)
    values = {}
    for repair in ("bn", "lstsq"):
        session = pl.Session(model, alone, pl.Magnitude(pruning_ratio=0.3), repair=repair)
        session.propose()
        session.approve()
        values[repair] = session.state.now.metrics["accuracy"]
    assert values["lstsq"] >= values["bn"] - NOISE
