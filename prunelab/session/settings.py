"""A session's settings: how its network is run, evaluated, trained and repaired."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from prunelab.errors import InvalidValue
from prunelab.loops.batch import Loss, cross_entropy, run_batch
from prunelab.loops.own import loss_of
from prunelab.loops.training import Metric, Training, metrics_of
from prunelab.methods.base import Method, published_repair
from prunelab.values.machine import Memory

REPAIRS = ("lstsq", "rescale", "bn")
PUBLISHED = "published"
Split = Literal["train", "val", "test"]
REPAIR_IMAGES = 1024  # at most; on resnet18 at 32 px 2,048 gain 0.1 points, 512 lose 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The checked keywords of a `Session`.

    `own_forward`: `forward` is the user's, so its input is a whole batch. `classifies`: forward,
    loss and metrics are the defaults, so answers can be compared image by image. `train` is a
    `Training` or the user's function (model, data, steps).
    """

    forward: Callable[[nn.Module, Any], Any]
    loss: Loss
    metrics: dict[str, Metric]
    train: Any
    repair: str | None
    repair_images: int
    own_forward: bool
    classifies: bool
    memory: Memory

    @classmethod
    def of(
        cls,
        forward: Callable[[nn.Module, Any], Any] | None,
        loss: Callable[..., Tensor] | None,
        metrics: Mapping[str, Any] | None,
        train: Any,
        repair: str | None,
        repair_images: int,
        memory: float | None,
    ) -> Settings:
        """Check a session's keywords and fill in the defaults; raises `InvalidValue`."""
        if repair not in (None, PUBLISHED):
            check_repair(repair)
        if repair_images < 1:
            raise InvalidValue(f"repair_images must be at least 1, not {repair_images}.")
        train = train if train is not None else Training()
        if not isinstance(train, Training) and not callable(train):
            raise InvalidValue(
                f"train is a pl.Training or a function (model, data, steps), not "
                f"{type(train).__name__}."
            )
        own_forward = forward is not None
        classifies = metrics is None and loss is None and forward is None
        forward = forward or run_batch
        loss = loss_of(cross_entropy if loss is None else loss, forward)
        return cls(
            forward=forward,
            loss=loss,
            metrics=metrics_of(metrics, loss, classifies),
            train=train,
            repair=repair,
            repair_images=repair_images,
            own_forward=own_forward,
            classifies=classifies,
            memory=Memory.of(memory),
        )

    def repair_after(self, method: Method) -> str | None:
        """The repair that follows an approve of a move of `method`."""
        return published_repair(method) if self.repair == PUBLISHED else self.repair

    @property
    def guard(self) -> tuple[str, Metric]:
        """The first metric, which guards `run`, and its name."""
        return next(iter(self.metrics.items()))


def check_repair(kind: str) -> None:
    """Raise `InvalidValue` for an unknown repair."""
    if kind not in REPAIRS:
        names = ", ".join(map(repr, REPAIRS))
        raise InvalidValue(f"repair is {names} or None, not {kind!r}.")
