"""The networks of the coverage table, with random weights, and inputs for them."""

from __future__ import annotations

import contextlib
from typing import Any

TIMM = [
    "resnetblur50",
    "resnetaa50",
    "res2net50_26w_4s",
    "res2next50",
    "resnest26d",
    "resnest50d_1s4x24d",
    "dpn68b",
    "hrnet_w18_small",
    "ghostnet_100",
    "tf_efficientnet_b0",
    "tf_efficientnetv2_b0",
    "mixnet_s",
    "cspresnet50",
    "cspdarknet53",
    "ese_vovnet19b_dw",
    "repvgg_a0",
    "nfnet_l0",
    "dm_nfnet_f0",
    "resnetv2_50",
    "resnetv2_50x1_bit",
    "tresnet_m",
    "coatnet_nano_rw_224",
    "convmixer_768_32",
    "convnext_atto",
    "convnextv2_atto",
    "regnetx_002",
    "darknet53",
    "legacy_xception",
    "inception_resnet_v2",
    "inception_v4",
    "levit_128s",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "edgenext_xx_small",
    "fastvit_t8",
    "hardcorenas_a",
    "selecsls42b",
    "dla34",
    "dla60_res2net",
    "nasnetalarge",
    "pnasnet5large",
    "bat_resnext26ts",
    "gcresnet33ts",
    "eca_resnet33ts",
    "skresnet18",
    "halonet26t",
    "botnet26t_256",
    "mobileone_s0",
    "poolformer_s12",
    "visformer_tiny",
    "vgg11_bn",
    "densenet121",
    "seresnet33ts",
    "resnet18d",
    "lambda_resnet26t",
    "rexnet_100",
    "efficientformer_l1",
    "fbnetv3_b",
    "mnasnet_100",
    "spnasnet_100",
    "tinynet_a",
    "lcnet_050",
    "semnasnet_075",
    "mobilenetv4_conv_small",
    "hgnet_tiny",
    "vovnet39a",
    "starnet_s1",
    "rdnet_tiny",
    "focalnet_tiny_srf",
    "inception_next_tiny",
    "caformer_s18",
    "repghostnet_050",
    "ghostnetv2_100",
    "fasternet_t0",
    "xcit_nano_12_p16_224",
    "davit_tiny",
    "cspresnext50",
    "seresnext26d_32x4d",
    "regnetz_b16",
]


ULTRALYTICS = [
    "yolov3-tiny",
    "yolov5n",
    "yolov8n",
    "yolov8n-seg",
    "yolov8n-pose",
    "yolov8n-obb",
    "yolov8n-cls",
    "yolov9t",
    "yolov10n",
    "yolo11n",
    "yolo12n",
    "yolo26n",
    "rtdetr-resnet50",
]

# Architecture and encoder.
SMP = [
    "Unet/resnet18",
    "UnetPlusPlus/resnet18",
    "MAnet/resnet18",
    "Linknet/resnet18",
    "FPN/resnet18",
    "PSPNet/resnet18",
    "PAN/resnet18",
    "DeepLabV3/resnet18",
    "DeepLabV3Plus/resnet18",
    "UPerNet/resnet18",
    "Segformer/resnet18",
    "Unet/mobilenet_v2",
    "FPN/efficientnet-b0",
    "DeepLabV3Plus/timm-regnetx_002",
]

# Class, its arguments, and the size of an image.
MONAI: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "UNet": (
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": (8, 16, 32),
         "strides": (2, 2), "num_res_units": 2},
        (1, 32, 32, 32),
    ),
    "BasicUNet": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "features": (8, 8, 16, 32, 64, 8)},
        (1, 64, 64),
    ),
    "BasicUNetPlusPlus": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "features": (8, 8, 16, 32, 64, 8)},
        (1, 64, 64),
    ),
    "AttentionUnet": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (8, 16, 32),
         "strides": (2, 2)},
        (1, 64, 64),
    ),
    "DynUNet": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3],
         "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]},
        (1, 64, 64),
    ),
    "SegResNet": ({"spatial_dims": 2, "init_filters": 8, "in_channels": 1}, (1, 64, 64)),
    "SegResNetDS": ({"spatial_dims": 2, "init_filters": 8, "in_channels": 1}, (1, 64, 64)),
    "VNet": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, (1, 64, 64)),
    "HighResNet": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, (1, 32, 32)),
    "DenseNet121": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, (1, 64, 64)),
    "SEResNet50": ({"spatial_dims": 2, "in_channels": 1, "num_classes": 2}, (1, 64, 64)),
    "EfficientNetBN": (
        {"model_name": "efficientnet-b0", "pretrained": False, "in_channels": 1}, (1, 64, 64),
    ),
    "resnet18": ({"spatial_dims": 3, "n_input_channels": 1, "num_classes": 2}, (1, 32, 32, 32)),
    "FlexibleUNet": (
        {"in_channels": 1, "out_channels": 2, "backbone": "resnet18", "spatial_dims": 2},
        (1, 64, 64),
    ),
    "UNETR": (
        {"in_channels": 1, "out_channels": 2, "img_size": 32, "feature_size": 8,
         "hidden_size": 48, "mlp_dim": 96, "num_heads": 4},
        (1, 32, 32, 32),
    ),
    "SwinUNETR": (
        {"in_channels": 1, "out_channels": 2, "feature_size": 12, "spatial_dims": 2}, (1, 64, 64),
    ),
}  # fmt: skip

FAMILIES = ("torchvision", "timm", "ultralytics", "smp", "monai")
# The package of a family where it has another name.
PACKAGES = {"smp": "segmentation_models_pytorch"}


def package(family: str) -> str:
    """What is imported for a family."""
    return PACKAGES.get(family, family)


def names(family: str) -> list[str]:
    """Every network of torchvision, and the chosen ones of another family, as `family/name`."""
    if family == "torchvision":
        from torchvision import models

        return list(models.list_models())
    listed = {"timm": TIMM, "ultralytics": ULTRALYTICS, "smp": SMP, "monai": MONAI}[family]
    return [f"{family}/{name}" for name in listed]


def build(name: str) -> tuple[Any, Any, Any]:
    """A network, inputs for evaluation, and other ones for training (None: the same)."""
    import torch

    torch.manual_seed(0)
    family, _, own = name.partition("/")
    return BUILDERS[family](own) if own else _from_torchvision(name)


def _from_torchvision(name: str) -> tuple[Any, Any, Any]:
    import torch
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    if name.startswith("quantized_"):
        options["quantize"] = False
    kind = models.get_model_builder(name).__module__.split(".")[2]
    if kind in ("detection", "segmentation"):
        options["weights_backbone"] = None
    if kind == "detection":
        return _detector(models, name, options)
    if kind == "segmentation" and "lraspp" not in name:
        options["aux_loss"] = True
    if "googlenet" in name or "inception" in name:
        options |= {"aux_logits": True, "init_weights": False}
    model = models.get_model(name, **options)
    if kind == "optical_flow":
        return model, (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128), 2), None
    return model, torch.randn(1, *_size(kind, name)), None


def _size(kind: str, name: str) -> tuple[int, ...]:
    if kind == "video":
        if name.startswith("mvit"):
            return 3, 16, 224, 224
        return (3, 16, 224, 224) if name == "s3d" else (3, 8, 64, 64)
    if "inception" in name:
        return 3, 299, 299
    if name.startswith(("vit", "maxvit")):
        return 3, 224, 224
    return 3, 64, 64


def _detector(models: Any, name: str, options: dict[str, Any]) -> tuple[Any, Any, Any]:
    import torch

    if "rcnn" in name:
        options |= {"min_size": 128, "max_size": 160, "box_score_thresh": 0.0}
        options |= {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 10}
        options |= {"rpn_post_nms_top_n_train": 40, "box_batch_size_per_image": 16}
    elif not name.startswith("ssd"):
        options |= {"min_size": 128, "max_size": 160}
    if "rcnn" not in name:
        options |= {"score_thresh": 0.0, "detections_per_img": 10, "topk_candidates": 50}
    model = models.get_model(name, **options)
    image = torch.rand(3, 128, 144)
    box = torch.tensor([[10.0, 12.0, 90.0, 100.0], [30.0, 20.0, 70.0, 60.0]])
    target = {"boxes": box, "labels": torch.tensor([1, 2])}
    if "keypoint" in name:
        target["labels"] = torch.tensor([1, 1])
        target["keypoints"] = torch.rand(2, 17, 3) * 40 + 20
        target["keypoints"][..., 2] = 1
    if "mask" in name:
        target["masks"] = (torch.rand(2, 128, 144) > 0.5).to(torch.uint8)
    return model, ([image],), ([image, image.clone()], [target, target])


def _from_timm(name: str) -> tuple[Any, Any, Any]:
    import timm
    import torch

    model = timm.create_model(name, pretrained=False)
    config = model.pretrained_cfg
    sizes = [64, 96, 128, 160, 192, config["input_size"][-1]]
    if config.get("fixed_input_size"):
        sizes = sizes[-1:]
    model.eval()
    for size in sizes:
        x = torch.randn(1, 3, size, size)
        with contextlib.suppress(Exception), torch.no_grad():
            model(x)
            return model, x, None
    raise RuntimeError(f"{name} runs on no size that was tried")


def _from_ultralytics(name: str) -> tuple[Any, Any, Any]:
    import torch
    from ultralytics import RTDETR, YOLO

    model = (RTDETR if name.startswith("rtdetr") else YOLO)(f"{name}.yaml").model
    return model, torch.rand(1, 3, 64, 64), None


def _from_smp(name: str) -> tuple[Any, Any, Any]:
    import segmentation_models_pytorch as smp
    import torch

    architecture, encoder = name.split("/")
    model = getattr(smp, architecture)(encoder, encoder_weights=None, classes=3)
    return model, torch.randn(1, 3, 128, 128), None


def _from_monai(name: str) -> tuple[Any, Any, Any]:
    import torch
    from monai.networks import nets

    arguments, size = MONAI[name]
    return getattr(nets, name)(**arguments), torch.randn(1, *size), None


BUILDERS = {
    "timm": _from_timm,
    "ultralytics": _from_ultralytics,
    "smp": _from_smp,
    "monai": _from_monai,
}
