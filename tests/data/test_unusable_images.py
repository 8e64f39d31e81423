"""Unusable images (broken, blank, of one class): they are reported and not fitted."""

from __future__ import annotations

from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset
from toys import batches

import prunelab as pl
from prunelab.data.batches import batch_size, selected, take
from prunelab.data.holding_out import part
from prunelab.data.unusable import usable
from prunelab.ledger import history_words, words
from prunelab.ledger.events import Noted, Repaired
from prunelab.session import repairing


def spoilt(data: pl.Data, broken: int, blank: int) -> pl.Data:
    """The same data; some of the first training images are NaN, the next ones of one colour."""
    train = [(x.clone(), y) for x, y in data.train]
    for x, _ in train[:2]:
        x[:broken, :, 0, 0] = torch.nan
        x[broken : broken + blank] = 0.5
    return pl.Data(train=train, val=data.val)


def notes(session: pl.Session) -> list[str]:
    return [e.text for e in session.ledger if isinstance(e, Noted) and e.kind == "data"]


def test_broken_and_blank_images_are_left_out_and_told(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, spoilt(data, 2, 1), pl.AOFP(theta=0.05))
    total = sum(len(x) for x, _ in data.train)
    session.propose()
    session.approve()
    (told,) = notes(session)
    assert told == (
        f"Of {total:,} training images 4 hold NaN or infinity and 2 are blank: they are excluded "
        "from measuring, solving and training."
    )
    assert told in history_words.history(session.state, list(session.ledger))
    session.tune(steps=4)
    assert len(notes(session)) == 1
    assert all(torch.isfinite(p).all() for p in session.model.parameters())


def test_without_them_everything_comes_out_the_same(trained: nn.Module, data: pl.Data) -> None:
    """What is measured and solved is that of the images that are left."""
    bad = spoilt(data, 2, 0)
    good = pl.Data(
        train=[(x[y_ok], y[y_ok]) for x, y in bad.train
               if (y_ok := torch.isfinite(x).flatten(1).all(1)).any()],
        val=data.val,
    )  # fmt: skip
    models = []
    for given in (bad, good):
        session = pl.Session(trained, given, pl.AOFP(theta=0.05))
        session.propose()
        session.approve()
        models.append(session.model)
    for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(a, b)


def test_a_replay_says_so_again_by_itself(trained: nn.Module, data: pl.Data, tmp_path: Any) -> None:
    bad = spoilt(data, 1, 0)
    session = pl.Session(trained, bad, pl.AOFP(theta=0.05))
    session.propose()
    session.approve()
    session.export(tmp_path / "again.py")
    names: dict[str, Any] = {"__name__": "again"}
    exec((tmp_path / "again.py").read_text(), names)
    again = names["replay"](trained, bad)
    assert list(again.ledger) == list(session.ledger)


def test_images_that_are_all_blank_are_what_the_network_is_for() -> None:
    x = torch.arange(8.0)[:, None, None, None].expand(8, 1, 5, 5)
    left, found = usable((x, torch.arange(8)))
    assert found.total() == 0
    assert left[0] is x


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_whatever_a_batch_is_its_broken_images_go_with_their_labels(kind: type) -> None:
    x = torch.randn(4, 1, 5, 5)
    x[2, 0, 0, 0] = torch.inf
    y = torch.arange(4)
    batch: Any = {"x": x, "y": y} if kind is dict else kind([x, y])
    left, found = usable(batch)
    assert type(left) is kind
    assert found == {"nan": 1, "blank": 0}
    images, labels = left.values() if kind is dict else left
    assert labels.tolist() == [0, 1, 3]
    assert torch.equal(images, x[[0, 1, 3]])


class Sample(NamedTuple):
    x: Any
    y: Any


BROKEN = torch.randn(4, 1, 5, 5).index_fill_(0, torch.tensor([2]), torch.nan)
SOUND = torch.randn(4, 2, 5, 5)
FOUR = torch.arange(4)
MAKES = {
    "a named tuple": Sample(BROKEN, FOUR),
    "a mapping that is no dict": UserDict(x=BROKEN, y=FOUR),
    "labels first": (FOUR, BROKEN),
    "names first": {"id": ["a", "b", "c", "d"], "x": BROKEN, "y": FOUR},
    "a text and a number first": {"id": "abc", "w": torch.tensor(1.0), "x": BROKEN, "y": FOUR},
    "two inputs": ((BROKEN, SOUND), FOUR),
    "two inputs by name": {"in": {"a": BROKEN, "b": SOUND}, "y": FOUR},
    "a list of images": ([*BROKEN], [{"boxes": i} for i in range(4)]),
    "a list of mappings": [{"x": x, "y": y} for x, y in zip(BROKEN, FOUR, strict=True)],
}


@pytest.mark.parametrize("name", MAKES)
def test_samples_are_counted_and_taken_out_of_a_batch_of_any_make(name: str) -> None:
    batch = MAKES[name]
    assert batch_size(batch) == 4
    assert next(take([batch], 4)) is batch
    for samples, count in ((FOUR != 2, 3), (FOUR == 2, 1)):
        some = selected(batch, samples)
        assert type(some) is type(batch)
        assert batch_size(some) == count
        plain = dict(some) if isinstance(some, UserDict) else some
        tensors = [x for x in tree_leaves(plain) if isinstance(x, Tensor) and x.ndim == 4]
        assert all(len(t) == count for t in tensors)
    if name != "a list of mappings":
        left, found = usable(batch)
        assert found == {"nan": 1, "blank": 0}
        assert batch_size(left) == 3
        assert usable(left)[1].total() == 0, "what is said to be left out is left out"


@pytest.mark.parametrize("images", [2, 3])
def test_as_many_images_in_a_list_as_each_has_channels_are_images(images: int) -> None:
    batch = ([torch.randn(images, 8, 8) for _ in range(images)], torch.arange(images))
    assert batch_size(batch) == images
    (left,), label = selected(batch, torch.arange(images) == 1)
    assert left is batch[0][1]
    assert label.tolist() == [1]


def test_two_inputs_of_two_samples_are_two_inputs() -> None:
    given = torch.randn(2, 3, 8, 8), torch.randn(2, 1, 8, 8)
    (a, b), _ = selected((given, torch.arange(2)), torch.tensor([False, True]))
    assert torch.equal(a, given[0][1:])
    assert torch.equal(b, given[1][1:])


def test_batches_of_a_class_of_ones_own_are_held_out_whole() -> None:
    class Box:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    boxes = [Box(torch.randn(5, 3)) for _ in range(9)]
    assert list(part(boxes, held=True)) == boxes[3::4]
    assert list(part(boxes, held=False)) == [b for b in boxes if b not in boxes[3::4]]
    assert list(take(boxes, 2)) == boxes[:2]
    assert usable(boxes[0])[0] is boxes[0]


def test_a_list_of_images_of_their_own_sizes_is_looked_through() -> None:
    images = [torch.randn(3, 4, 6), torch.full((3, 7, 5), torch.nan), torch.randn(3, 5, 5)]
    left, found = usable((images, ["a", "b", "c"]))
    assert found["nan"] == 1
    assert left[1] == ["a", "c"]
    assert left[0][1] is images[2]


def test_whole_numbers_and_other_things_are_left_alone() -> None:
    for batch in (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), (["text"], [1]), object(), ()):
        assert usable(batch)[0] is batch


@pytest.mark.parametrize("size", [1, 3, 8, 64])
def test_the_parts_of_batches_are_all_of_them_and_have_nothing_in_common(size: int) -> None:
    x = torch.arange(64)
    given = list(zip(x.split(size), (10 * x).split(size), strict=True))
    apart = [list(part(given, held)) for held in (False, True)]
    rest, held = ([torch.cat(c).tolist() for c in zip(*some, strict=True)] for some in apart)
    assert held[0] == x[3::4].tolist()
    assert sorted(rest[0] + held[0]) == x.tolist()
    assert held[1] == [10 * i for i in held[0]]


def test_columns_of_another_length_stay_whole() -> None:
    x, scale = torch.arange(4), torch.ones(3)
    picked, same = selected((x, scale), torch.tensor([True, False, False, True]))
    assert picked.tolist() == [0, 3]
    assert same is scale


# ---------------------------------------------------------------- one class alone


def test_a_batch_of_no_images_and_images_in_a_list_are_looked_at_too() -> None:
    nothing = torch.zeros(0, 3, 8, 8)
    assert usable((nothing, torch.zeros(0)))[1].total() == 0
    assert usable(torch.zeros(3, 0, 8, 8))[1].total() == usable(torch.zeros(3, 0))[1].total() == 0
    x = torch.rand(6, 1, 8, 8)
    x[1, 0, 0, 0], x[2], x[4] = torch.inf, 0.5, torch.nan
    for images in (x, [*x]):
        (left, _), found = usable((images, torch.arange(6)))
        assert found == {"nan": 2, "blank": 1}
        assert len(left) == 3
    assert usable(torch.tensor([1.0, torch.nan]))[1]["nan"] == 1


def test_evidence_is_of_all_classes_where_a_dataset_is_sorted(trained: nn.Module) -> None:
    x, y = (torch.cat(parts) for parts in zip(*batches(256, 3), strict=True))
    order = y.argsort()
    data = pl.Data(train=TensorDataset(x[order], y[order]), val=[(x, y)])
    session = pl.Session(trained, data)
    seen = torch.cat([labels for _, labels in session._evaluator.splits.images(64)])
    assert len(seen.unique()) == len(y.unique())


def test_a_repair_that_costs_something_is_set_against_the_others(
    trained: nn.Module, data: pl.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = pl.Session(trained, data, pl.Magnitude(pruning_ratio=0.5))
    repair = repairing.repair_towards

    def harmful(evaluator: Any, small: Any, kind: str, *more: Any) -> Any:
        refits = yield from repair(evaluator, small, kind, *more)
        if kind == "lstsq":
            with torch.no_grad():
                small[0].fc.weight.neg_()
        return refits

    monkeypatch.setattr(repairing, "repair_towards", harmful)
    session.propose()
    foretold = session.compare_move(repair=True).after
    session.approve()
    event = session.ledger[-1]
    assert isinstance(event, Repaired)
    assert foretold == event.metrics["accuracy"]
    assert event.kind in ("bn", "none")
    assert set(event.tried) == {"lstsq", "bn", "none"}
    assert event.metrics["accuracy"] == max(event.tried.values())
    assert event.refits == ()
    text = words.outcome(session.state, event)
    assert "were worse on validation images" in text
    session.undo()
    assert session.state.moves == 0


def test_what_a_repair_gave_the_layers_is_in_the_history(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, pl.Magnitude(pruning_ratio=0.3))
    session.propose()
    session.approve()
    event = session.ledger[-1]
    assert isinstance(event, Repaired)
    assert {refit.layer for refit in event.refits} == {
        layer.name
        for layer in session.graph.layers
        if len(layer.in_units) < len(session._evaluator.graph.layer(layer.name).in_units)
    }
    for refit in event.refits:
        assert refit.choice == min(refit.errors, key=refit.errors.get)
    told = history_words.told(event)
    assert "least squares in" in told
    assert told in history_words.history(session.state, list(session.ledger))


def test_repair_images_are_at_least_one(trained: nn.Module, data: pl.Data) -> None:
    for wrong in (0, -1, 2.5, True, "all"):
        with pytest.raises(pl.InvalidValue, match="repair_images"):
            pl.Session(trained, data, repair_images=wrong)


def test_with_no_image_to_judge_by_nothing_is_solved(trained: nn.Module, data: pl.Data) -> None:
    x, y = next(iter(data.train))
    few = pl.Data(train=[(x[:3], y[:3])], val=data.val)
    session = pl.Session(trained, few, pl.Magnitude(pruning_ratio=0.3))
    session.propose()
    session.approve()
    event = session.ledger[-1]
    assert {refit.choice for refit in event.refits} <= {"bn", "kept"}


@pytest.mark.parametrize(("images", "kinds"), [(1, ["lstsq", "bn"]), (512, ["lstsq"])])
def test_a_repair_that_few_images_determine_is_set_against_the_others(
    trained: nn.Module, monkeypatch: pytest.MonkeyPatch, images: int, kinds: list[str]
) -> None:
    val = batches(512, 5)
    x, y = (torch.cat(part) for part in zip(*val, strict=True))
    data = pl.Data(train=[(x[:images], y[:images])], val=val)
    session = pl.Session(trained, data, pl.Magnitude(pruning_ratio=0.25))
    repair, done = repairing.repair_towards, []

    def noted(evaluator: Any, small: Any, kind: str, *more: Any) -> Any:
        refits = yield from repair(evaluator, small, kind, *more)
        done.append((kind, [refit.determined for refit in refits]))
        return refits

    monkeypatch.setattr(repairing, "repair_towards", noted)
    session.propose()
    session.approve()
    assert [kind for kind, _ in done] == kinds
    determined = done[0][1]
    assert (2 * sum(determined) <= len(determined)) == (len(kinds) == 2)
