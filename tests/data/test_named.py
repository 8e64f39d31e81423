"""Data sets: the shipped images are official, their order is fixed, bad input raises."""

from __future__ import annotations

import gzip
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from prunelab.data import fashion_mnist as fashion
from prunelab.data import zoo
from prunelab.data.named import Data, load, shuffled, take
from prunelab.errors import BadData, InvalidValue, PruneLabError, UnknownName

ASSETS = Path(fashion.__file__).parents[1] / "assets"


def pairs(count: int, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Batches whose labels number the images."""
    labels = torch.arange(count * size).split(size)
    return [(label[:, None, None, None].float().expand(-1, 1, 8, 8), label) for label in labels]


def labels_of(batches: Any) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist()


def dataset(count: int) -> TensorDataset:
    return TensorDataset(torch.zeros(count, 1, 8, 8), torch.arange(count))


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Ten images that can only be read in order."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((torch.zeros(1, 8, 8), torch.tensor(i)) for i in range(10))


@pytest.fixture
def no_full_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without Debian's dataset-fashion-mnist."""
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "nowhere")


# ---------------------------------------------------------------- what ships


def test_the_subset_is_what_was_packed() -> None:
    train, test = fashion.subset()
    assert (len(train.labels), len(test.labels)) == (4000, 2500)
    digest = hashlib.sha256()
    for part in (train, test):
        digest.update(part.images.tobytes())
        digest.update(part.labels.tobytes())
    assert digest.hexdigest()[:16] == "31994b1ddc93cf48"


def test_the_subset_is_the_official_data() -> None:
    folder = fashion.find()
    if folder is None:
        pytest.skip("the full Fashion-MNIST is not on this machine")
    for small, full in zip(fashion.subset(), fashion.full(folder), strict=True):
        count = len(small.labels)
        assert np.array_equal(small.images, full.images[:count])
        assert np.array_equal(small.labels, full.labels[:count])


def test_the_subset_ships_with_its_licence_in_less_than_three_megabytes() -> None:
    assert (ASSETS / fashion.ASSET).stat().st_size < 3_000_000
    notice = (ASSETS / "fashion-mnist.NOTICE.txt").read_text()
    assert "Zalando" in notice
    assert "MIT License" in notice


def test_fashion_has_disjoint_parts_with_every_class() -> None:
    data = load("fashion", subset=True)
    assert data.input_shape == (1, 28, 28)
    assert data.classes is not None
    assert len(data.classes) == 10
    counts = [torch.bincount(torch.tensor(labels_of(p))) for p in (data.train, data.val, data.test)]
    assert [int(c.sum()) for c in counts] == [4000, 1000, 1500]
    assert all(int(c.min()) >= 0.85 * int(c.sum()) / 10 for c in counts)
    images = torch.cat([x for x, _ in (*data.train, *data.val, *data.test)])
    assert len(torch.unique(images.flatten(1), dim=0)) >= 6495  # the originals repeat a few


def test_images_are_normalised() -> None:
    images = torch.cat([x for x, _ in load("fashion", subset=True).train])
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 0.02
    assert abs(float(images.std()) - 1) < 0.02
    raw = fashion.subset()[0].images[:128].astype(np.float32) / 255
    expected = (raw - fashion.MEAN) / fashion.STD
    assert np.allclose(images[:128, 0].numpy(), expected, atol=1e-6)


def test_the_order_is_the_official_one_every_time() -> None:
    data = load("fashion", subset=True)
    official = fashion.subset()[0].labels.tolist()
    assert labels_of(data.train) == labels_of(data.train) == official


def test_a_dataset_gives_single_samples_too() -> None:
    data = load("fashion", subset=True)
    assert isinstance(data.train, DataLoader)
    image, label = data.train.dataset[3]
    batch, labels = next(iter(data.train))
    assert torch.equal(image, batch[3])
    assert label == labels[3]
    again = DataLoader(data.train.dataset, batch_size=7)
    assert torch.equal(next(iter(again))[0], batch[:7])


def test_digits_take_the_shape_of_the_zoo() -> None:
    data = load("digits")
    assert data.input_shape == (1, 28, 28)
    assert [len(labels_of(p)) for p in (data.train, data.val, data.test)] == [1197, 300, 300]
    images = torch.cat([x for x, _ in data.train])
    assert abs(float(images.mean())) < 0.01
    assert abs(float(images.std()) - 1) < 0.01


# ---------------------------------------------------------------- the full set


def write_full(folder: Path, compressed: bool) -> None:
    """Four small files in the official format."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 50), ("test", 1200)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in ((fashion.IMAGES[part], images), (fashion.LABELS[part], labels)):
            head = bytes([0, 0, 8, array.ndim])
            raw = head + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
            else:
                (folder / name).write_bytes(raw)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"])
def test_the_full_set_is_found_where_the_user_says(
    tmp_path: Path, compressed: bool, inside: str
) -> None:
    write_full(tmp_path / "data" / inside, compressed)
    data = load("fashion", root=tmp_path / "data")
    assert [len(labels_of(p)) for p in (data.train, data.val, data.test)] == [50, 1000, 200]
    assert "full" in repr(data)
    assert len(labels_of(load("fashion", root=tmp_path / "data", subset=True).train)) == 4000


def test_val_is_the_same_in_the_subset_and_the_full_set() -> None:
    if fashion.find() is None:
        pytest.skip("the full Fashion-MNIST is not on this machine")
    full, small = load("fashion", subset=False), load("fashion", subset=True)
    for ours, theirs in zip(small.val, full.val, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert len(labels_of(full.test)) == 9000


@pytest.mark.usefixtures("no_full_set")
def test_without_the_full_set_the_subset_is_taken_unless_the_full_is_asked_for() -> None:
    assert "subset" in repr(load("fashion"))
    with pytest.raises(BadData, match=r"dataset-fashion-mnist.*subset=True"):
        load("fashion", subset=False)


def test_a_root_without_the_set_is_an_error_not_a_silent_subset(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="not in"):
        load("fashion", root=tmp_path)
    with pytest.raises(BadData, match="not in"):
        load("fashion", root=tmp_path / "missing")


def test_a_half_downloaded_file_is_named(tmp_path: Path) -> None:
    write_full(tmp_path / "whole", compressed=True)
    for path in list((tmp_path / "whole").iterdir()):
        raw = path.read_bytes()
        path.write_bytes(raw[: len(raw) // 2])
        with pytest.raises(BadData, match="incomplete"):
            load("fashion", root=tmp_path / "whole")
        path.write_bytes(raw)


# ---------------------------------------------------------------- names and downloads


@pytest.mark.parametrize("name", ["fashion", "cifar10"])
def test_nothing_is_downloaded_unless_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(BadData, match="download=True"):
        load(name, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_names_what_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(root: Path, download: bool) -> None:
        raise OSError("no route")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", fail)
    with pytest.raises(BadData, match=r"no route.*subset=True"):
        load("fashion", root=tmp_path, download=True)


def test_cifar10_is_split_and_normalised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cifar(root: Path, train: bool, download: bool) -> SimpleNamespace:
        count = 60 if train else 5040
        pixels = np.full((count, 32, 32, 3), 255, np.uint8)
        return SimpleNamespace(data=pixels, targets=[0] * count, classes=list("abcdefghij"))

    monkeypatch.setattr("torchvision.datasets.CIFAR10", cifar)
    data = load("cifar10", root=tmp_path)
    assert data.input_shape == (3, 32, 32)
    assert [len(labels_of(p)) for p in (data.train, data.val, data.test)] == [60, 5000, 40]
    white = next(iter(data.train))[0][0, :, 0, 0]
    assert torch.allclose(white, torch.tensor([2.0591, 2.1265, 2.1158]), atol=1e-3)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"name": "fashoin"}, UnknownName, "Did you mean 'fashion'"),
        ({"name": "cifar10"}, InvalidValue, "root="),
        ({"name": "cifar10", "download": True}, InvalidValue, "needs root="),
        ({"name": "fashion", "download": True}, InvalidValue, "needs root="),
        ({"name": "digits", "subset": True}, InvalidValue, "only the whole set"),
        ({"name": "digits", "batch_size": 0}, InvalidValue, "batch_size=0"),
    ],
)
def test_bad_requests_say_what_to_do(
    given: dict[str, Any], error: type[PruneLabError], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(**given)


# ---------------------------------------------------------------- data of one's own


def test_batches_datasets_and_loaders_are_taken() -> None:
    data = Data(pairs(3), DataLoader(dataset(10), batch_size=3), dataset(9), batch_size=4)
    assert data.input_shape == (1, 8, 8)
    assert [len(y) for _, y in data.val] == [3, 3, 3, 1]
    assert [len(y) for _, y in data.test] == [4, 4, 1]
    assert repr(data) == "Data(your data: train 3 batches, val 10 images, test 9 images)"
    assert len(labels_of(Data(Stream(), pairs(1)).train)) == 10


def test_without_test_reports_are_made_on_val() -> None:
    data = Data(pairs(2), pairs(1))
    assert data.test is data.val
    assert data.test_is_val
    assert "test = val" in repr(data)


class Anew:
    """Batches that are no list and have no length."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from pairs(2)


class Used:
    """Hands out one iterator again and again."""

    def __init__(self) -> None:
        self.batches = iter(pairs(2))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no batches"),
        (TensorDataset(torch.zeros(0, 1)), "no batches"),
        (DataLoader(dataset(3), batch_size=4, drop_last=True), "drop_last"),
        ((batch for batch in pairs(2)), "one-shot generator"),
        (iter(pairs(2)), "one-shot list_iterator"),
        (Used(), "one-shot Used"),
        (lambda: pairs(2), "function; it must be"),
        ("fashion", "str; it must be"),
        (torch.zeros(4, 1, 8, 8), "Tensor; it must be"),
        (None, "NoneType; it must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_again_and_again_is_refused(given: Any, message: str) -> None:
    for part in ("train", "val"):
        with pytest.raises(BadData, match=f"{part}= .*{message}"):
            Data(**{"train": pairs(1), "val": pairs(1), part: given})


def test_an_object_that_starts_anew_is_taken() -> None:
    assert labels_of(Data(Anew(), Anew()).train) == list(range(8))


class Noisy(Dataset[tuple[Tensor, int]]):
    """Augments with every global generator there is."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 8, 8) + random.random() + np.random.rand(), index  # noqa: NPY002


def test_looking_at_the_first_batch_draws_no_random_numbers() -> None:
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].sum())  # noqa: NPY002
    Data(DataLoader(Noisy(), batch_size=2, shuffle=True), DataLoader(Noisy()))
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].sum())  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_reading_our_own_loaders_draws_no_random_numbers() -> None:
    data = Data(dataset(10), dataset(10), batch_size=4)
    before = torch.get_rng_state()
    labels_of(data.train)
    labels_of(data.shuffled(0))
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------- order and amount


@pytest.mark.parametrize("shuffle", [False, True])
def test_shuffling_is_a_permutation_that_the_seed_decides(shuffle: bool) -> None:
    loader = DataLoader(dataset(50), batch_size=8, shuffle=shuffle, drop_last=True)
    data = Data(loader, pairs(1))
    one, same, other = (labels_of(data.shuffled(seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert len(one) == len(set(one)) == 48
    assert one != sorted(one)


def test_what_has_an_order_of_its_own_keeps_it() -> None:
    assert labels_of(shuffled(pairs(3), 1)) == list(range(12))
    assert labels_of(Data(Stream(), pairs(1)).shuffled(1)) == list(range(10))
    only_three = WeightedRandomSampler([0.0, 0.0, 0.0, 1.0], num_samples=6)
    assert set(labels_of(shuffled(DataLoader(dataset(4), sampler=only_three), 1))) == {3}


def test_take_gives_just_so_many_images() -> None:
    assert [len(y) for _, y in take(pairs(5), 10)] == [4, 4, 2]
    assert [len(y) for _, y in take(pairs(5), 8)] == [4, 4]
    assert [len(y) for _, y in take(pairs(2), 100)] == [4, 4]
    images, labels = next(take(pairs(2), 3))
    assert images.shape == (3, 1, 8, 8)
    assert labels.tolist() == [0, 1, 2]


def test_take_cuts_batches_of_any_make() -> None:
    columns = {"image": torch.zeros(4, 1), "label": [1, 2, 3, 4], "scale": 0.5}
    assert next(take([columns], 3))["label"] == [1, 2, 3]
    assert next(take([columns], 3))["scale"] == 0.5
    detection = ([torch.zeros(3, 9, 9)] * 4, [{"boxes": 1}] * 4)
    assert [len(column) for column in next(take([detection], 3))] == [3, 3]
    assert next(take([torch.zeros(4, 1)], 3)).shape == (3, 1)


# ---------------------------------------------------------------- the networks that ship


@pytest.mark.parametrize("name", ["vgg8", "resnet20", "mobilenet"])
def test_a_network_ships_trained_with_its_card(name: str) -> None:
    model, card = zoo.load(name), zoo.card(name)
    assert not model.training
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert card["test_accuracy"] >= (0.925 if name == "mobilenet" else 0.935)
    assert card["recipe"]["command"].endswith(name)
    data = load("fashion", subset=True)
    with torch.inference_mode():
        right = [(model(x).argmax(1) == y).float() for x, y in (*data.val, *data.test)]
    assert abs(float(torch.cat(right).mean()) - card["test_accuracy"]) < 0.015


def test_fresh_networks_are_the_same_every_time_and_draw_nothing() -> None:
    before = torch.get_rng_state()
    one, two = (zoo.load("resnet20", pretrained=False, in_channels=3, classes=7) for _ in "ab")
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_weights_that_do_not_fit_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ({"in_channels": 3}, {"classes": 100}):
        with pytest.raises(InvalidValue, match="pretrained=False"):
            zoo.load("vgg8", **given)
    for ask in (zoo.load, zoo.card):
        with pytest.raises(UnknownName, match="Did you mean 'vgg8'"):
            ask("vgg88")
    monkeypatch.setitem(zoo.ARCHITECTURES, "other", zoo.VGG8)
    with pytest.raises(PruneLabError, match=r"train_zoo\.py other"):
        zoo.load("other")
