"""YOLO of ultralytics: pruned between its own trainer, metric and exporter."""

import copy
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.nn.modules import C2f

import prunelab as pl

SIZE = 64  # yours: 640


def squares(folder: Path) -> Path:
    """A set as ultralytics reads it, of bright squares, red or green; returns its data.yaml."""
    draw = torch.Generator().manual_seed(0)
    for split, count in (("train", 16), ("val", 8)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            x = torch.randint(0, 60, (SIZE, SIZE, 3), generator=draw, dtype=torch.uint8)
            kind, top, left = torch.randint(0, SIZE // 2, (3,), generator=draw).tolist()
            x[top : top + 24, left : left + 24, kind % 2] = 255
            Image.fromarray(x.numpy()).save(folder / "images" / split / f"{number}.png")
            box = [(left + 12) / SIZE, (top + 12) / SIZE, 24 / SIZE, 24 / SIZE]
            line = " ".join(map(str, [kind % 2, *box]))
            (folder / "labels" / split / f"{number}.txt").write_text(line)
    yaml = folder / "data.yaml"
    yaml.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: [red, green]\n")
    return yaml


folder = Path(tempfile.mkdtemp())
settings = {
    "data": str(squares(folder)), "imgsz": SIZE, "batch": 4, "epochs": 1, "device": "cpu",
    "workers": 0, "project": str(folder), "amp": False, "plots": False, "verbose": False,
}  # fmt: skip


def train(network):
    """Train in place by its own trainer, which keeps to YOLO's widths unless given a network."""
    trainer = DetectionTrainer(overrides={**settings, "model": "yolov8n.yaml"})
    trainer.model = network
    trainer.train()
    network.load_state_dict(trainer.ema.ema.state_dict())


def mean_ap(network, loader):
    """The mAP at IoUs of 0.5 to 0.95, by its own validator, which fuses what it is given."""
    validator = DetectionValidator(args={**settings, "mode": "val"})
    return validator(model=copy.deepcopy(network))["metrics/mAP50-95(B)"]


def loader(split):
    """Its images and targets, without augmentation."""
    data = check_det_dataset(settings["data"])
    images = build_yolo_dataset(get_cfg(overrides=settings), data[split], 4, data, mode="val")

    def batch(items):
        made = images.collate_fn(items)
        return {**made, "img": made["img"].float() / 255}

    return DataLoader(images, batch_size=4, collate_fn=batch)


yolo = YOLO("yolov8n.yaml")  # yours: "yolov8n.pt"
own = yolo.model.args
yolo.model.args = get_cfg()  # its loss wants them as attributes, its exporter as it made them
session = pl.Session(
    yolo.model,
    pl.Data(loader("train"), loader("val")),
    "magnitude",
    forward=lambda network, batch: network(batch["img"]),
    loss=lambda network, batch: network.loss(batch)[0].sum(),
    metrics={"mAP": mean_ap},
)
session.run(target_macs=0.8, min_accuracy=None)
with session.tuning("ultralytics") as network:
    train(network)
yolo.model = session.model
yolo.model.args = own
yolo.model.pt_path = folder / "small.pt"  # beside it the export is written
for module in yolo.model.modules():
    if isinstance(module, C2f):
        module.c = module.cv1.conv.out_channels // 2  # read by its exporter alone
exported = yolo.export(format="onnx", imgsz=SIZE, simplify=False)
print(session.state.line(), exported)
