"""The loss of torchvision's detectors, which compute it themselves in training mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from prunelab.errors import BadData
from prunelab.graph.surgery.held_tensors import checked_network
from prunelab.graph.train_mode import mode_dependent
from prunelab.loops.batch import device_of, on_device


def detection_loss(model: nn.Module, batch: Any) -> Tensor:
    """The sum of the losses that a detector of torchvision returns for (images, targets).

    For `loss=` of a session, of `measure` and of `ablate`: no flag has to be set. The detector's
    own code runs as in training, where it takes targets; BatchNorm and dropout stay in the mode
    they are in, evaluation while a network is measured, training while it is tuned.

    Parameters
    ----------
    model
        A network that in training mode takes images and targets and returns a dict of losses.
    batch
        A list of images [3, height, width] and a list of dicts with their boxes [N, 4] and labels
        [N], as a DataLoader with `collate_fn=lambda samples: tuple(zip(*samples))` gives them.

    Raises
    ------
    BadData
        For a batch or a network of another kind.

    Examples
    --------
    A detector, pruned as in the Group Fisher paper while it trains:

    >>> import prunelab as pl
    >>> from torchvision.models.detection import retinanet_resnet50_fpn
    >>> model = retinanet_resnet50_fpn(weights="DEFAULT")  # doctest: +SKIP
    >>> method = pl.GroupFisher(**pl.GroupFisher.DETECTION)
    >>> data = pl.Data(train=train_loader, val=val_loader)  # doctest: +SKIP
    >>> session = pl.Session(
    ...     model, data, method, loss=pl.detection_loss, repair=None
    ... )  # doctest: +SKIP
    >>> session.run(target_macs=0.5, min_accuracy=None)  # doctest: +SKIP

    The metric is then the loss; give `metrics=` for the average precision of your own.
    """
    checked_network(model)
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise BadData("detection_loss takes batches of (images, targets), both lists.")
    images, targets = on_device(list(batch), device_of(model))
    with _as_in_training(model):
        try:
            losses = model(list(images), list(targets))
        except TypeError as error:
            raise BadData(
                f"This network does not take images and targets ({error}). Give a loss= of yours."
            ) from error
    if not isinstance(losses, dict) or not losses:
        raise BadData(
            f"In training mode this network returns {type(losses).__name__}, not a dict of losses "
            "as torchvision's detectors do. Give a loss= of your own."
        )
    return sum(losses.values(), next(iter(losses.values())).new_zeros(()))


@contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    """Set the flags of modules whose own code asks for the mode, and restore them."""
    modules = dict(model.named_modules())
    asked = [(modules[name], modules[name].training) for name in mode_dependent(model)]
    for module, _ in asked:
        module.training = True
    try:
        yield
    finally:
        for module, flag in asked:
            module.training = flag
