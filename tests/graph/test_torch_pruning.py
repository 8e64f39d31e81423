"""Our coupled channels against those of Torch-Pruning, an independent implementation.

Torch-Pruning (Fang et al., CVPR 2023) finds couplings in the graph of the backward pass, prunelab
by running the network on labels. For the same network both partition the pairs (layer, output
channel); the partitions must be equal. Where they are not, DIFFERENCES says why, and the reason is
a rule that turns theirs into ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

import prunelab as pl

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch_pruning
    from torchvision import models

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)

Channel = tuple[str, str, int]  # layer, "out" or "in", position
Links = list[tuple[Channel, Channel]]
Partition = set[frozenset[tuple[str, int]]]


def torchvision(name: str, **more: bool) -> Callable[[], nn.Module]:
    return lambda: getattr(models, name)(weights=None, **more)


def pyramid() -> nn.Module:
    detector = models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    return detector.backbone


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": torchvision("resnet18"),
    "resnet50": torchvision("resnet50"),
    "resnext50_32x4d": torchvision("resnext50_32x4d"),
    "mobilenet_v2": torchvision("mobilenet_v2"),
    "mobilenet_v3_small": torchvision("mobilenet_v3_small"),
    "mnasnet0_5": torchvision("mnasnet0_5"),
    "densenet121": torchvision("densenet121"),
    "efficientnet_b0": torchvision("efficientnet_b0"),
    "regnet_y_400mf": torchvision("regnet_y_400mf"),
    "googlenet": torchvision("googlenet", init_weights=False, aux_logits=False),
    "squeezenet1_1": torchvision("squeezenet1_1"),
    "vgg11_bn": torchvision("vgg11_bn"),
    "retinanet's pyramid": pyramid,
}

GROUPED = (
    "a convolution of g groups needs groups of one size: to prunelab one of them is one unit with "
    "its inputs and outputs, Torch-Pruning leaves that to the pruner (channel_groups=)"
)
DIFFERENCES = {"resnext50_32x4d": GROUPED, "regnet_y_400mf": GROUPED}


def ours(model: nn.Module, x: Tensor) -> Partition:
    classes: dict[int, set[tuple[str, int]]] = {}
    for layer in pl.trace(model, x).layers:
        for position, unit in enumerate(layer.out_units.tolist()):
            classes.setdefault(unit, set()).add((layer.name, position))
    return {frozenset(members) for members in classes.values()}


def their_links(model: nn.Module, x: Tensor) -> Links:
    """Pairs of channels that a group of Torch-Pruning takes together."""
    names = {module: name for name, module in model.named_modules()}
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    links: Links = []
    for group in graph.get_all_groups(root_module_types=LAYERS):
        root = names[group[0].dep.target.module]
        for item in group:
            layer = item.dep.target.module
            if isinstance(layer, LAYERS):
                out = graph.is_out_channel_pruning_fn(item.dep.handler)
                side, name = "out" if out else "in", names[layer]
                links += [
                    ((root, "out", int(first)), (name, side, int(getattr(index, "idx", index))))
                    for first, index in zip(item.root_idxs, item.idxs, strict=True)
                ]
    return links


def grouped_links(model: nn.Module) -> Links:
    """What GROUPED adds: all inputs and outputs of one group of a convolution go together."""
    links: Links = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and 1 < layer.groups < layer.in_channels:
            ins, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
            for group in range(layer.groups):
                members: list[Channel] = [(name, "in", group * ins + i) for i in range(ins)]
                members += [(name, "out", group * outs + i) for i in range(outs)]
                links += pairwise(members)
    return links


def partition(links: Links) -> Partition:
    """The classes of output channels that `links` make."""
    number: dict[Channel, int] = {}
    ends = np.array([[number.setdefault(end, len(number)) for end in link] for link in links])
    matrix = coo_array((np.ones(len(ends)), tuple(ends.T)), shape=(len(number), len(number)))
    _, found = connected_components(matrix, directed=False)
    classes: dict[int, set[tuple[str, int]]] = {}
    for (name, side, position), index in number.items():
        if side == "out":
            classes.setdefault(int(found[index]), set()).add((name, position))
    return {frozenset(members) for members in classes.values()}


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("name", NETWORKS)
def test_coupled_channels_are_those_that_torch_pruning_finds(name: str) -> None:
    model, x = NETWORKS[name]().eval(), torch.randn(1, 3, 64, 64)
    found, links = ours(model, x), their_links(model, x)
    if name not in DIFFERENCES:
        assert found == partition(links)
        return
    assert found != partition(links), f"nothing is left to explain by: {DIFFERENCES[name]}"
    assert found == partition(links + grouped_links(model))
