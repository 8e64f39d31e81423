"""Inspection of a move's effect and of one channel, by runs of the network. For the worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunelab.errors import InvalidValue
from prunelab.figures.png import grey, shown, signed
from prunelab.graph.channels.channel_graph import ChannelGroup
from prunelab.graph.trace import copy_of
from prunelab.session.session import Session
from prunelab.values.paired_comparison import PairedComparison

MOST = 12  # images or kernels shown
IMAGES = 4  # images whose feature maps are shown


@dataclass(frozen=True, slots=True)
class Flipped:
    """A validation image whose answer changes; the classes are indices."""

    place: int
    picture: np.ndarray | None
    label: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Tried:
    """A paired comparison, and the first images that are lost or gained."""

    compared: PairedComparison
    flipped: tuple[Flipped, ...] = ()


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel: its kernels, some images, and its feature map on each.

    `norm` is the L2 norm of its weights, `zeros` the share of its map that is zero or less.
    """

    group: str
    unit: int
    layer: str
    kernels: tuple[np.ndarray, ...] = ()
    inputs: tuple[np.ndarray, ...] = ()
    maps: tuple[np.ndarray, ...] = ()
    norm: float = 0.0
    zeros: float = 0.0


def tried(session: Session, drop: dict[str, Any], repair: bool = False) -> Tried:
    """Compare the network without `drop`, in the background, and fetch the changed images."""
    compared = session.compare_move(drop, repair=repair, background=True)
    if compared.answers is None:
        return Tried(compared)
    places = [*compared.lost, *compared.gained][:MOST]
    try:
        pictures = session.pictures(places)
    except InvalidValue:  # not images: only the answers are shown
        pictures = {}
    before, after = compared.answers
    return Tried(
        compared,
        tuple(
            Flipped(i, _picture(pictures.get(i)), before.labels[i], before.given[i], after.given[i])
            for i in places
        ),
    )


def _picture(image: np.ndarray | None) -> np.ndarray | None:
    return None if image is None else shown(np.asarray(image, np.float32))


def channel(session: Session, group: ChannelGroup, unit: int) -> Channel:
    """Inspect `unit` of `group` in the current network."""
    name = group.producers[0]
    network = copy_of(session.model).eval()
    layer = dict(network.named_modules()).get(name, nn.Identity())
    made = Channel(group.name, unit, name)
    kept = group.units
    weight = getattr(layer, "weight", None)
    if unit not in kept or not isinstance(weight, Tensor) or len(weight) != len(kept):
        return made  # the layer's weights are shared by several groups, or missing
    place = kept.index(unit)
    own = weight[place].detach().float().cpu().numpy()
    inputs, maps = _maps(session, network, layer, place)
    return Channel(
        group.name,
        unit,
        name,
        _kernels(own),
        inputs,
        tuple(grey(m) for m in maps),
        float(np.linalg.norm(own)),
        float(np.mean([(m <= 0).mean() for m in maps])) if maps else 0.0,
    )


def _kernels(weight: np.ndarray) -> tuple[np.ndarray, ...]:
    """The kernels with the largest L1 norms in a channel's `weight` [inputs, height, width]."""
    if weight.ndim != 3:
        return ()
    heavy = np.argsort(-np.abs(weight).sum(axis=(1, 2)))[:MOST]
    most = float(np.abs(weight).max())
    return tuple(signed(weight[i], most) for i in sorted(heavy))


def _maps(
    session: Session, network: nn.Module, layer: nn.Module, place: int
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """The first validation images, and the feature map of the layer's channel on each."""
    batch = next(iter(session.data.val), None)
    images = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(images, Tensor) or images.ndim != 4:
        return (), ()
    images = images[:IMAGES].to(next(network.parameters()).device)
    caught: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _m, _x, out: caught.append(out))
    try:
        with torch.no_grad():
            network(images)
    finally:
        handle.remove()
    pictures = tuple(shown(image.float().cpu().numpy()) for image in images)
    if not caught or caught[0].ndim != 4:
        return pictures, ()
    return pictures, tuple(caught[0][:, place].float().cpu().numpy())
