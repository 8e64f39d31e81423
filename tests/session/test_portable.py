"""What leaves Python: its outputs are the session's, on batches of any size, or nothing is kept."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torchvision
from torch import Tensor, nn

import prunelab as pl
from prunelab.session import export
from prunelab.session.portable import model_card


def pruned(net: nn.Module, x: Tensor, **more: Any) -> pl.Session:
    """A session on a network, after one approved move."""
    batches = [(x, torch.arange(len(x)))]
    data = pl.Data(batches, batches, batches)
    settings = {"method": pl.Random(pruning_ratio=0.3), "repair": None, **more}
    session = pl.Session(net, data, **settings)
    assert session.propose() is not None
    session.approve()
    return session


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card takes most of an export's time: it runs both networks a hundred times."""
    cost = {"macs": 2, "params": 1}
    card = {
        "network": "Net", "method": None, "moves": 1, "cost": {"before": cost, "after": cost},
        "rewritten": {},
        "latency_seconds": {"before": 1.0, "after": 1.0, "batch": 1},
        "validation": {"before": {}, "after": {}}, "test": {"before": {}, "after": {}},
    }  # fmt: skip
    monkeypatch.setattr(export, "_card", lambda session, data: card)


class Two(nn.Module):
    """Takes two inputs, one of them by name, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor, *, depth: Tensor) -> dict[str, Tensor]:
        both = (self.a(x) * self.b(depth)).relu()
        return {"logits": self.head(both.mean((2, 3))), "map": depth.mean(1)}


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


def onnx_outputs(path: Path, *given: Tensor) -> list[Tensor]:
    """What ONNX Runtime computes, in an interpreter of its own kind: no torch module is used."""
    runtime = pytest.importorskip("onnxruntime")
    run = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in run.get_inputs()]
    found = run.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})
    return [torch.from_numpy(x) for x in found]


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def assert_leaves_python(session: pl.Session, shape: tuple[int, ...], folder: Path) -> None:
    """Both programs give the network's outputs, on a batch of a size that none was made with."""
    network, x = session.model.eval(), torch.randn(7, *shape)
    with torch.no_grad():
        want = network(x)
        program = torch.export.load(session.export(folder / "net.pt2")).module()
        assert_close(program(x), want)
    (got,) = onnx_outputs(session.export(folder / "net.onnx"), x)
    assert_close(got, want)


def test_a_program_needs_neither_prunelab_nor_a_batch_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    session = pruned(small(), torch.randn(2, 3, 8, 8))
    before = session.evaluate("val")
    assert_leaves_python(session, (3, 8, 8), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.pt2"]
    assert session.evaluate("val") == before
    assert session.state.events == len(session.ledger)


def test_a_program_takes_the_arguments_that_forward_gives(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    session = pruned(
        Two(),
        torch.randn(2, 4, 8, 8),
        forward=lambda net, batch: net(batch[0][:, :3], depth=batch[0][:, 3:]),
        loss=lambda net, batch: net(batch[0][:, :3], depth=batch[0][:, 3:])["logits"].sum(),
    )
    x, depth = torch.randn(4, 3, 8, 8), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        want = session.model.eval()(x, depth=depth)
    for name, got in zip(
        want, onnx_outputs(session.export(tmp_path / "net.onnx"), x, depth), strict=True
    ):
        assert_close(got, want[name])
    program = torch.export.load(session.export(tmp_path / "net.pt2")).module()
    assert_close(program(x, depth=depth)["map"], want["map"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg8", "resnet20", "mobilenet"])
def test_every_network_of_the_zoo_leaves_python(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    session = pruned(pl.zoo.load(name), torch.randn(4, 1, 28, 28))
    assert_leaves_python(session, (1, 28, 28), tmp_path)


VISION = (
    "alexnet", "densenet121", "efficientnet_b0", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1",
    "vgg11_bn", "convnext_tiny", "googlenet",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION)
@pytest.mark.filterwarnings("ignore")
def test_networks_of_torchvision_leave_python(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    net = torchvision.models.get_model(name, weights=None, num_classes=10)
    session = pruned(net, torch.randn(2, 3, 64, 64))
    assert_leaves_python(session, (3, 64, 64), tmp_path)


# ---------------------------------------------------------------- the folder


def test_a_folder_holds_what_the_hub_takes(tmp_path: Path) -> None:
    session = pruned(small(), torch.randn(2, 3, 8, 8))
    folder = session.export(tmp_path / "net")
    names = {"README.md", "config.json", "model.safetensors", "plan.json"}
    assert {file.name for file in folder.iterdir()} == names
    again = pl.load_pruned(small, folder)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x), session.model.eval()(x))
    config = json.loads((folder / "config.json").read_text())
    assert config["test"]["after"] == session.evaluate()
    assert pl.WidthPlan.from_json((folder / "plan.json").read_text(), pl.trace(small(), x))
    text = (folder / "README.md").read_text()
    assert text == model_card(config)
    hub = pytest.importorskip("huggingface_hub")
    (said,) = hub.ModelCard(text).data.to_dict()["model-index"]
    assert said["results"][0]["metrics"][0]["value"] == config["test"]["after"]["accuracy"]
    session.export(folder)  # again, over the older one
    assert {file.name for file in folder.iterdir()} == names


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An HfApi with the signatures of the real one, whose repositories are in tmp_path / "hub"."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    api = mock.create_autospec(huggingface_hub.HfApi, instance=True)

    def create_repo(repo_id: str, **more: Any) -> Any:
        whole = repo_id if "/" in repo_id else f"me/{repo_id}"
        (tmp_path / "hub" / whole).mkdir(parents=True, exist_ok=more["exist_ok"])
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{whole}")

    def upload_folder(*, repo_id: str, folder_path: Path, **more: Any) -> None:
        shutil.copytree(folder_path, tmp_path / "hub" / repo_id, dirs_exist_ok=True)

    api.create_repo.side_effect, api.upload_folder.side_effect = create_repo, upload_folder
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    return api


@pytest.mark.usefixtures("no_card")
def test_what_is_pushed_to_the_hub_is_loaded_again(tmp_path: Path, hub: Any) -> None:
    session, x = pruned(small(), torch.randn(2, 3, 8, 8)), torch.randn(2, 3, 8, 8)
    assert session.push_to_hub("me/small", private=True) == "https://huggingface.co/me/small"
    assert hub.create_repo.call_args == mock.call("me/small", private=True, exist_ok=True)
    pushed = tmp_path / "hub" / "me" / "small"
    names = {"README.md", "config.json", "model.safetensors", "plan.json"}
    assert {file.name for file in pushed.iterdir()} == names
    assert torch.equal(pl.load_pruned(small, pushed)(x), session.model.eval()(x))
    session.undo()
    assert session.push_to_hub("small") == "https://huggingface.co/me/small"  # a second commit
    assert torch.equal(pl.load_pruned(small, pushed)(x), session.model.eval()(x))


@pytest.mark.usefixtures("no_card")
def test_the_hub_may_refuse(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = pruned(small(), torch.randn(2, 3, 8, 8))
    hub.upload_folder.side_effect = OSError("401, not logged in\nand more")
    with pytest.raises(pl.PruneLabError, match=r"OSError: 401, not logged in\).*hf auth login"):
        session.push_to_hub("me/small")
    for wrong in ("a/b/c", "my net", ""):
        with pytest.raises(
            pl.errors.InvalidValue, match="repo_id is 'user/name'.*not " + repr(wrong)
        ):
            session.push_to_hub(wrong)
    assert hub.create_repo.call_count == 1
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(pl.errors.MissingPackage, match=r"pip install 'prunelab\[hub\]'"):
        session.push_to_hub("me/small")


# ---------------------------------------------------------------- failures


class Branching(nn.Module):
    """What it computes depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.a(x).relu().mean((2, 3)))
        return -y if float(y.sum()) > 1e9 else y


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_what_no_exporter_follows_leaves_the_older_file(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    session = pruned(Branching(), torch.randn(2, 3, 8, 8))
    path = tmp_path / f"net.{suffix}"
    with pytest.raises(pl.PruneLabError, match="cannot follow this network"):
        session.export(path)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"older")
    with pytest.raises(pl.PruneLabError, match=r"export \.safetensors"):
        session.export(path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"older"]


def test_another_output_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = pruned(small(), torch.randn(2, 3, 8, 8))
    right = export.as_pt2

    def wrong(network: nn.Module, call: Any) -> Any:
        with torch.no_grad():
            network[-1].weight.mul_(1.01)
        made = right(network, call)
        with torch.no_grad():
            network[-1].weight.div_(1.01)
        return made

    monkeypatch.setattr(export, "as_pt2", wrong)
    with pytest.raises(pl.PruneLabError, match="other outputs"):
        session.export(tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = pruned(small(), torch.randn(2, 3, 8, 8))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(pl.errors.MissingPackage, match=r"pip install 'prunelab\[onnx\]'"):
        session.export(tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_card")
def test_a_folder_that_fails_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = pruned(small(), torch.randn(2, 3, 8, 8))
    (tmp_path / "net").write_text("a file")
    with pytest.raises(pl.PruneLabError, match="cannot be made a folder"):
        session.export(tmp_path / "net")
    load: Callable[..., Any] = export.load_pruned

    def other(factory: Any, path: Path) -> nn.Module:
        made = load(factory, path)
        nn.init.zeros_(made[0].weight)
        return made

    monkeypatch.setattr(export, "load_pruned", other)
    with pytest.raises(pl.PruneLabError, match="nothing was written"):
        session.export(tmp_path / "other")
    assert [file.name for file in tmp_path.iterdir()] == ["net"]
