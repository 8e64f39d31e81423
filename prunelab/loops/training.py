"""Evaluation and training loops, as generators that can be stopped between batches.

Nothing here is specific to classification: `loss(model, batch)` returns a scalar, a metric is any
function of (model, loader).
"""

from __future__ import annotations

import math
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.data.batches import batch_size
from prunelab.data.private_random import private_random, private_steps
from prunelab.errors import BadData, InvalidValue, NotFinite
from prunelab.graph.trace import copy_of
from prunelab.loops.batch import Loss, checked, device_of, finish, guarded, run_batch
from prunelab.loops.labels import logits_of, targets_of
from prunelab.loops.modes import in_training
from prunelab.loops.ranks import averaged, in_order, sharded
from prunelab.values import Progress
from prunelab.values.given import as_annotated
from prunelab.values.paired_comparison import Answers

STEPS = 400  # default number of batches of tuning


@as_annotated
@dataclass(frozen=True, slots=True)
class Training:
    """Settings of prunelab's training loop: SGD with momentum, `lr` falling to zero by a cosine.

    Biases and BatchNorm have no weight decay, as in AOFP's released code. With `distil`, and the
    session's default loss, `tune` learns the original network's outputs instead of the labels
    (Hinton, Vinyals, Dean, 2015), which does not overfit a small training set.

    A step takes `accumulate` batches, on each rank where several processes train together, and the
    mean of their gradients. With `amp` the forward pass runs in bfloat16 where autocast allows.
    """

    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    distil: bool = True
    accumulate: int = 1
    amp: bool = False

    def __post_init__(self) -> None:
        decays = 0 <= self.weight_decay < math.inf
        if not (0 < self.lr < math.inf and 0 <= self.momentum < 1 and decays):
            raise InvalidValue(
                f"{self} cannot train: lr must be positive, momentum in [0, 1), weight_decay 0 "
                "or more."
            )
        if isinstance(self.accumulate, bool) or not isinstance(self.accumulate, int):
            raise InvalidValue(f"accumulate is a number of batches, not {self.accumulate!r}.")
        if self.accumulate < 1:
            raise InvalidValue(f"accumulate must be at least 1, not {self.accumulate}.")

    def optimiser(
        self, model: nn.Module, *, bias_lr: float = 1.0, momentum: nn.Module | None = None
    ) -> torch.optim.SGD:
        """SGD over the parameters that require gradients.

        Parameters
        ----------
        model
            The network that will be trained.
        bias_lr
            The factor of the learning rate for parameters called "bias".
        momentum
            The momentum of an earlier optimiser, see `momentum_of`; None: it begins at rest.
        """
        wanted = [p for p in model.parameters() if p.requires_grad]
        if not wanted:
            raise InvalidValue(
                "No parameter of the network requires gradients; set requires_grad to train it."
            )
        biases = {id(p) for name, p in model.named_parameters() if name.split(".")[-1] == "bias"}
        rest = [p for p in wanted if id(p) not in biases]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in rest if p.ndim <= 1]},
            {"params": [p for p in wanted if id(p) in biases], "lr": bias_lr * self.lr},
        ]
        made = torch.optim.SGD(
            [group for group in groups if group["params"]], lr=self.lr, momentum=self.momentum
        )
        if momentum is not None:
            earlier = dict(momentum.named_parameters())
            for name, parameter in model.named_parameters():
                made.state[parameter]["momentum_buffer"] = earlier[name].detach().clone()
        return made


def momentum_of(optimiser: torch.optim.Optimizer, model: nn.Module) -> nn.Module:
    """A copy of `model` whose parameters are their momentum in `optimiser`.

    As a network it is cut as the network is, and stored as one.
    """
    moving = copy_of(model)
    with torch.no_grad():
        for parameter, still in zip(model.parameters(), moving.parameters(), strict=True):
            found = optimiser.state.get(parameter, {}).get("momentum_buffer")
            still.zero_() if found is None else still.copy_(found)
    return moving


@as_annotated
@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a network: `function(model, loader)`, and which direction is better."""

    function: Callable[[nn.Module, Iterable[Any]], float]
    higher_is_better: bool = True


def distillation_loss(teacher: nn.Module, seed: int) -> Loss:
    """The distillation loss towards the logits of `teacher`, at temperature 2, without labels.

    Each image is first mixed with another one of its batch, at random from `seed`: the teacher
    labels any image, and a small training set is not memorised (Beyer, Zhai, Royer, Markeeva,
    Anil, Kolesnikov; CVPR 2022).
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        if isinstance(x, Tensor) and x.is_floating_point():
            other = torch.randperm(len(x), generator=generator)
            share = torch.rand(len(x), *(1,) * (x.ndim - 1), generator=generator) / 2
            x = torch.lerp(x, x[other.to(x.device)], share.to(x))
        with torch.no_grad():
            aim = F.log_softmax(logits_of(run_batch(teacher, x)) / 2, dim=1)
        given = F.log_softmax(logits_of(run_batch(model, x)) / 2, dim=1)
        return 4 * F.kl_div(given, aim, reduction="batchmean", log_target=True)

    return loss


@private_steps
@torch.no_grad()
def answering(
    model: nn.Module, loader: Iterable[Any], batches: int = 0
) -> Generator[Progress, None, tuple[Answers, float]]:
    """The predictions of `model` on the loader's images, and the mean cross entropy.

    It runs in evaluation mode, and yields Progress after each of `batches` batches (0: unknown).
    """
    mine: list[tuple[list[int], list[int], float]] = []  # a batch: labels, answers, loss
    expected = batches or (len(loader) if isinstance(loader, Sized) else 0)
    model = copy_of(model).eval()
    for done, batch in enumerate(guarded(sharded(loader))):
        logits = logits_of(checked(run_batch, model, batch))
        wanted = targets_of(batch, logits)
        if torch.isnan(logits).any():
            raise NotFinite(
                f"The network outputs NaN on batch {done} of the images that it is evaluated "
                "on: the batch holds NaN, or weights have grown too large. Nothing was changed."
            )
        classes = wanted if wanted.ndim == 1 else wanted.argmax(1)
        loss = float(F.cross_entropy(logits, wanted, reduction="sum"))
        mine.append((classes.tolist(), logits.argmax(1).tolist(), loss))
        yield Progress(done + 1, max(expected, done + 1), "evaluating")
    found = in_order(mine)
    labels = tuple(chain.from_iterable(labels for labels, _, _ in found))
    given = tuple(chain.from_iterable(given for _, given, _ in found))
    if not labels:
        raise BadData("There are no images to evaluate on; give at least one batch of them.")
    return Answers(labels, given), sum(loss for _, _, loss in found) / len(labels)


def accuracy(model: nn.Module, loader: Iterable[Any]) -> float:
    """The share of images that are classified correctly, in evaluation mode."""
    return float(finish(answering(model, loader))[0].accuracy)


def average_loss(loss: Loss) -> Callable[[nn.Module, Iterable[Any]], float]:
    """The mean of `loss` per input, in evaluation mode, as a metric function."""

    def measured(model: nn.Module, loader: Iterable[Any]) -> float:
        model = copy_of(model).eval()
        with private_random(), torch.no_grad():
            mine = [
                (float(loss(model, batch)), batch_size(batch)) for batch in guarded(sharded(loader))
            ]
        found = in_order(mine)
        if not found:
            raise BadData("There are no batches to evaluate on; give at least one.")
        return sum(value * size for value, size in found) / sum(size for _, size in found)

    return measured


def training(
    model: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    steps: int,
    loss: Loss,
    settings: Training,
    frozen: Collection[str] = (),
) -> Generator[Progress, None, None]:
    """Train `model` in place for `steps` batches; yields Progress, with the loss, after each.

    Parameters
    ----------
    model
        The network.
    batches
        `batches(epoch)` returns the batches of one epoch, in its own order.
    steps
        The number of batches.
    loss
        `loss(model, batch)` returns a scalar.
    settings
        The optimiser's settings.
    frozen
        Modules that stay in evaluation mode, see `frozen_modules`.

    Raises
    ------
    NotFinite
        When the loss is NaN or infinite; names the first layer whose output is.
    """
    if steps < 1:
        raise InvalidValue(f"steps must be at least 1, not {steps}.")
    optimiser = settings.optimiser(model)
    stream = forever(batches)
    with in_training(model, frozen):
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            some = [next(stream) for _ in range(settings.accumulate)]
            with torch.autocast(device_of(model).type, torch.bfloat16, settings.amp):
                value = _descend(model, some, loss, optimiser, nullcontext())
            yield Progress(step + 1, steps, "tuning", value)


def descend(
    model: nn.Module,
    batch: Any,
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    watch: AbstractContextManager[Any] | None = None,
) -> float:
    """One step of gradient descent; returns the loss.

    Only parameters of `model` receive gradients, even if the loss runs other networks.

    Parameters
    ----------
    model, batch, loss
        The loss is `loss(model, batch)`.
    optimiser
        Holds the parameters of `model`.
    watch
        A context that is entered for the forward pass.

    Raises
    ------
    NotFinite
        When the loss is NaN or infinite; names the first layer whose output is.
    """
    return _descend(model, [batch], loss, optimiser, watch or nullcontext())


def _descend(
    model: nn.Module,
    batches: Sequence[Any],
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    watch: AbstractContextManager[Any],
) -> float:
    """One step along the mean gradient of several batches, on every rank."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimiser.zero_grad(set_to_none=True)
    losses = []
    for batch in batches:
        with watch:
            value = checked(loss, model, batch) / len(batches)
        value.backward(inputs=wanted)
        losses.append(value.detach())
    value = averaged(torch.stack(losses).sum(), wanted)
    if not torch.isfinite(value):
        where = _first_bad_layer(model, batches, loss)
        raise NotFinite(
            f"The loss is {float(value)} {where}. Nothing was changed. Look for NaN in "
            "images and weights, or lower the learning rate."
        )
    optimiser.step()
    return float(value)


def forever(batches: Callable[[int], Iterable[Any]]) -> Iterator[Any]:
    """Epoch after epoch of this rank's batches; raises `BadData` when an epoch has none."""
    epoch = 0
    while True:
        empty = True
        for batch in guarded(sharded(batches(epoch))):
            empty = False
            yield batch
        if empty:
            raise BadData("There are no training batches; give at least one for each process.")
        epoch += 1


def _first_bad_layer(model: nn.Module, batches: Iterable[Any], loss: Loss) -> str:
    """Where NaN or infinity first occurs when the network runs on `batches`, in words."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"because the weights {name} hold NaN or infinity"
    bad: list[str] = []

    def look(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            if isinstance(out, Tensor) and not torch.isfinite(out).all():
                bad.append(name)

        return hook

    handles = [m.register_forward_hook(look(n)) for n, m in model.named_modules() if n]
    try:
        with torch.no_grad():
            for batch in batches:
                loss(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return f"from the layer {bad[0]} on" if bad else "though no layer's output is"


def metrics_of(given: Mapping[str, Any] | None, loss: Loss, classifies: bool) -> dict[str, Metric]:
    """The metrics of a session: those of the user, or accuracy and loss.

    A value is a `Metric`, a function (higher is better) or (function, "higher" or "lower").
    """
    if given is None:
        mean = Metric(average_loss(loss), higher_is_better=False)
        return {"accuracy": Metric(accuracy), "loss": mean} if classifies else {"loss": mean}
    if not isinstance(given, Mapping) or not given:
        raise InvalidValue(
            "metrics is a mapping from names to functions of (model, loader), at least one: "
            f"metrics={{'quality': function}}; not {given!r}."
        )
    found = {}
    for name, value in given.items():
        if not isinstance(name, str):
            raise InvalidValue(f"the names of metrics are strings, not {name!r}.")
        if isinstance(value, Metric):
            found[name] = value
        elif callable(value):
            found[name] = Metric(value)
        elif isinstance(value, tuple) and len(value) == 2 and value[1] in ("higher", "lower"):
            found[name] = Metric(value[0], value[1] == "higher")
        else:
            raise InvalidValue(
                f"metrics[{name!r}] must be a function of (model, loader), a pair of it and "
                f"'higher' or 'lower', or a Metric; not {value!r}."
            )
    return found
