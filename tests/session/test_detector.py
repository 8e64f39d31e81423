"""A detector of torchvision, from its training batches to a smaller detector."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

import prunelab as pl


class Features(nn.Module):
    """Two levels of features with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        for name, into, out in (("a", 3, 8), ("b", 8, 12)):
            self.add_module(
                name, nn.Sequential(nn.Conv2d(into, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU())
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def detector(kind: str) -> nn.Module:
    torch.manual_seed(0)
    backbone = BackboneWithFPN(Features(), {"a": "0", "b": "1"}, [8, 12], 8)
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    size = {"min_size": 32, "max_size": 32}
    if kind == "retinanet":
        return RetinaNet(backbone, 3, anchor_generator=anchors, **size)
    pool = MultiScaleRoIAlign(["0", "1"], 4, 2)
    return FasterRCNN(
        backbone, None, rpn_anchor_generator=anchors, box_roi_pool=pool,
        box_head=TwoMLPHead(8 * 4 * 4, 16), box_predictor=FastRCNNPredictor(16, 3),
        rpn_batch_size_per_image=16, box_batch_size_per_image=8, rpn_post_nms_top_n_train=20,
        **size,
    )  # fmt: skip


def squares(count: int, seed: int) -> list[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """Batches of two images with a bright square each, red or green."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        images, targets = [], []
        for _ in range(2):
            at, side = torch.randint(0, 16, (2,), generator=generator), 12
            kind = int(torch.randint(0, 2, (), generator=generator))
            image = torch.rand(3, 32, 32, generator=generator) / 4
            image[kind, at[1] : at[1] + side, at[0] : at[0] + side] = 1
            box = torch.cat([at, at + side]).float()[None]
            images.append(image)
            targets.append({"boxes": box, "labels": torch.tensor([kind + 1])})
        batches.append((images, targets))
    return batches


@pytest.fixture(params=["retinanet", "fasterrcnn"])
def session(request: pytest.FixtureRequest) -> pl.Session:
    data = pl.Data(train=squares(4, 0), val=squares(2, 1))
    method = pl.GroupFisher(**{**pl.GroupFisher.DETECTION, "interval": 1, "units_per_step": 4})
    return pl.Session(
        detector(request.param), data, method, loss=pl.detection_loss, repair=None,
        train=pl.Training(lr=0.01),
    )  # fmt: skip


def test_a_session_traces_training_on_its_own_batches(session: pl.Session) -> None:
    graph = session.graph
    assert not graph.untrained
    pyramid = graph["backbone.fpn.layer_blocks.0.0"]
    assert pyramid.prunable
    frozen = {group.name.split(".")[-1] for group in graph.groups if not group.prunable}
    assert frozen <= {"cls_logits", "bbox_reg", "bbox_pred", "cls_score"}  # what heads predict


def test_group_fisher_prunes_it_and_it_stays_a_detector(session: pl.Session) -> None:
    before = session.evaluate("val")["loss"]
    assert before > 0
    session.run(target_macs=0.8, min_accuracy=None)
    assert session.state.now.cost.macs <= 0.8 * session.state.base.cost.macs
    session.tune(steps=2)
    assert not any(module.training for module in session.model.modules())
    images, targets = squares(1, 2)[0]
    found = session.model.eval()(images)
    assert set(found[0]) == {"boxes", "scores", "labels"}
    losses = session.model.train()(images, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_the_loss_is_the_detectors_own_and_sets_no_flag() -> None:
    model, batch = detector("retinanet").train(), squares(1, 0)[0]
    with torch.no_grad():
        want = sum(model(*batch).values())
        model.load_state_dict(detector("retinanet").state_dict())
        assert torch.equal(pl.detection_loss(model, batch), want)
    model.eval()
    statistics = model.backbone.body["a"][1].running_mean.clone()
    loss = pl.detection_loss(model, batch)
    loss.backward()
    assert not any(module.training for module in model.modules())
    assert torch.equal(model.backbone.body["a"][1].running_mean, statistics)
    assert not torch.equal(loss, want)  # with running statistics


@pytest.mark.parametrize("batch", [torch.zeros(2, 3), ([torch.zeros(3, 8, 8)],)])
def test_other_batches_are_refused(batch: Any) -> None:
    with pytest.raises(pl.BadData, match="images, targets"):
        pl.detection_loss(nn.Identity(), batch)


def test_other_networks_are_refused() -> None:
    class Plain(nn.Module):
        def forward(self, images: list[Tensor], targets: Any) -> Tensor:
            return F.relu(images[0]) if self.training else images[0]

    with pytest.raises(pl.BadData, match="dict of losses"):
        pl.detection_loss(Plain(), ([torch.zeros(3, 8, 8)], [{}]))


def test_a_plain_classifier_is_not_given_its_labels(trained: nn.Module, data: pl.Data) -> None:
    class Auxiliary(nn.Module):
        """Asks for the mode, and needs no targets."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = trained

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if self.training else self.inner(x).softmax(1)

    session = pl.Session(Auxiliary(), data, repair=None)
    assert not session.graph.untrained
