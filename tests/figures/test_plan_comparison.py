"""The differences of two networks: recall of each class, costs of each layer, and two plans."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from toys import batches

import prunelab as pl
from prunelab.errors import InvalidValue, UnknownName
from prunelab.figures import (
    class_recall,
    class_recall_info,
    compare,
    compare_info,
    costs,
    costs_info,
    plan_side,
    point_side,
    widths,
    widths_info,
)
from prunelab.figures.class_recall import draw_confused, draw_recall
from prunelab.figures.plan_comparison import draw_compare
from prunelab.figures.png import data_uri
from prunelab.figures.row_grouping import modules
from prunelab.figures.widths import WidthRow, WidthsInfo, draw_widths, gathered
from prunelab.values import Cost
from prunelab.values.paired_comparison import Answers, by_batch, by_image

BEFORE = Answers((0, 0, 0, 1, 1, 2), (0, 0, 1, 1, 1, 0))
AFTER = Answers((0, 0, 0, 1, 1, 2), (0, 1, 1, 1, 1, 2))


# ---------------------------------------------------------------- class recall


def test_recall_and_confusion_are_counted_class_by_class() -> None:
    info = class_recall_info(BEFORE, AFTER, ["shoe", "bag"])
    assert info.classes == ("shoe", "bag", "2")
    assert info.before == pytest.approx((2 / 3, 1, 0))
    assert info.after == pytest.approx((1 / 3, 1, 1))
    assert info.images == (3, 2, 1)
    assert info.confused == ((-1, 1, 0), (0, 0, 0), (-1, 0, 1))


def test_flips_are_named_lost_ones_first() -> None:
    info = class_recall_info(BEFORE, AFTER, ["shoe", "bag", "hat"])
    assert [(f.image, f.label, f.before, f.after, f.kind) for f in info.flips] == [
        (1, "shoe", "shoe", "bag", "lost"),
        (5, "hat", "shoe", "hat", "gained"),
    ]
    wrong = class_recall_info(Answers((0,), (1,)), Answers((0,), (2,)))
    assert [flip.kind for flip in wrong.flips] == ["other"]


@given(st.data())
def test_confusion_is_the_difference_of_two_matrices(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30))
    digits = st.lists(st.integers(0, 4), min_size=count, max_size=count).map(tuple)
    labels, first, second = (data.draw(digits) for _ in range(3))
    info = class_recall_info(Answers(labels, first), Answers(labels, second))
    for i in range(len(info.classes)):
        for j in range(len(info.classes)):
            was = sum(a == i and b == j for a, b in zip(labels, first, strict=True))
            now = sum(a == i and b == j for a, b in zip(labels, second, strict=True))
            assert info.confused[i][j] == now - was
    trial = by_image(Answers(labels, first), Answers(labels, second))
    kinds = [flip.kind for flip in info.flips]
    assert (kinds.count("lost"), kinds.count("gained")) == (len(trial.lost), len(trial.gained))


def test_of_many_classes_those_that_change_most_are_shown() -> None:
    labels = tuple(range(100)) * 2
    after = tuple(label if label % 10 else 1 for label in labels)
    info = class_recall_info(Answers(labels, labels), Answers(labels, after))
    assert len(info.classes) == 20
    assert {str(10 * i) for i in range(10)} <= set(info.classes)
    assert info.left_out == 80
    assert "80 classes change less" in draw_recall(info).title


def test_a_fall_is_hatched_and_shapes_tell_before_from_after() -> None:
    drawn = {trace.name: trace for trace in draw_recall(class_recall_info(BEFORE, AFTER)).traces}
    assert list(drawn["fell"].y) == [0]
    assert list(drawn["rose"].y) == [1, 2]
    assert drawn["fell"].marker.pattern.shape == "/"
    assert drawn["before"].marker.symbol != drawn["after"].marker.symbol
    (cells,) = draw_confused(class_recall_info(BEFORE, AFTER)).traces
    assert list(cells.text) == ["-1", "+1", "-1", "+1"]
    assert list(cells.marker.symbol) == ["diamond", "diamond", "square", "square"]


def test_a_class_without_images_does_not_break_the_picture() -> None:
    info = class_recall_info(Answers((0, 2), (0, 2)), Answers((0, 2), (2, 2)))
    assert math.isnan(info.before[1])
    for trace in draw_recall(info).traces:
        assert all(math.isfinite(x) for x in trace.x)


def test_answers_to_other_images_are_refused() -> None:
    with pytest.raises(InvalidValue, match="same images"):
        class_recall_info(BEFORE, Answers((1,), (1,)))
    with pytest.raises(InvalidValue, match="answers with answers"):
        class_recall(BEFORE, (0.5,))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_losses_show_a_dozen_images_at_most(theme: Any) -> None:
    labels = (0,) * 40
    pictures = {i: np.full((1, 4, 4), float(i)) for i in range(0, 40, 2)}
    made = class_recall(Answers(labels, labels), Answers(labels, (1,) * 40), ["a", "b"], pictures,
                  theme=theme)  # fmt: skip
    assert len(made.layout.images) == 12
    assert sum("<b>lost</b>: a<br>a → b" in note.text for note in made.layout.annotations) == 12
    assert all(note.font.size >= 12 for note in made.layout.annotations)


def test_other_tasks_show_the_metric_of_every_batch() -> None:
    trial = by_batch("loss", (0.3, 0.5), (0.4, 0.2), (32, 32), False)
    made = class_recall(*trial.batches, metric=trial.metric)
    drawn = {trace.name: trace for trace in made.data}
    assert list(drawn["before"].y) == [0.3, 0.5]
    assert list(drawn["after"].y) == [0.4, 0.2]
    assert made.layout.yaxis.title.text == "loss"


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (3, 5, 7)])
def test_a_picture_becomes_a_png_that_others_read(shape: tuple[int, ...]) -> None:
    picture = np.random.default_rng(0).normal(size=shape)
    head, data = data_uri(picture).split(",")
    assert head == "data:image/png;base64"
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    want = (picture - picture.min()) / (picture.max() - picture.min())
    want = want.transpose(1, 2, 0) if len(picture) == 3 else want.reshape(5, 7)
    assert np.abs(read / 255 - want).max() < 0.51 / 255


def test_a_picture_of_two_channels_is_refused() -> None:
    with pytest.raises(InvalidValue, match=r"not \[2, 4, 4\]"):
        data_uri(np.zeros((2, 4, 4)))


# ---------------------------------------------------------------- costs


def test_costs_are_original_now_and_proposed_layer_by_layer(session: pl.Session) -> None:
    full = pl.WidthPlan.full(session.plan.graph)
    half = full.drop({"conv1": range(6)})
    info = costs_info(session.costs(full), session.costs(), session.costs(half))
    rows = {row.name: (row.original, row.now, row.proposed) for row in info.rows}
    assert rows["conv1"][0] == rows["conv1"][1] == 2 * rows["conv1"][2]
    assert rows["stem"][0] == rows["stem"][2]
    assert sum(row.proposed for row in info.rows) == pl.cost(full.graph, half).macs
    with pytest.raises(UnknownName, match="kind of cost"):
        costs_info(session.costs(), session.costs(), kind="watts")  # type: ignore[arg-type]


def test_long_networks_are_gathered_by_module_and_lose_nothing() -> None:
    names = [f"block{i // 12}.layer{i % 12}.conv{j}" for i in range(100) for j in range(2)]
    each = {name: Cost(10 + i, 1, 1) for i, name in enumerate(names)}
    info = costs_info(each, each)
    assert len(info.rows) <= 40
    assert sum(row.original for row in info.rows) == sum(cost.macs for cost in each.values())
    assert sum(row.layers for row in info.rows) == len(names)
    figure = costs(each, each)
    assert figure.layout.height > 12 * len(info.rows)


@given(st.lists(st.from_regex(r"[a-c]{1,2}(\.[a-c0-9]{1,2}){0,3}", fullmatch=True), unique=True))
def test_modules_are_the_names_or_their_beginnings(names: list[str]) -> None:
    found = modules(names, most=5)
    assert set(found) == set(names)
    assert all(name == row or name.startswith(f"{row}.") for name, row in found.items())
    first = {name.split(".")[0] for name in names}
    assert len(set(found.values())) <= max(5, len(first))
    for name in names:
        apart = modules(names, most=5, opened=name)
        assert apart[name] == name
        assert all(apart[n] == found[n] or n.startswith(f"{found[name]}.") for n in names)


def test_seconds_are_shown_with_all_that_is_no_layer(session: pl.Session) -> None:
    assert session.seconds() is None
    session.measure()
    seconds = session.seconds()
    info = costs_info(seconds, seconds, kind="seconds")
    assert info.rows[-1].name == "everything else"
    assert sum(row.now for row in info.rows) == pytest.approx(sum(seconds.values()))


def test_widths_of_a_long_network_are_gathered_too(session: pl.Session) -> None:
    layers = {name: (name,) for name in session.state.began.widths}
    info = gathered(widths_info(session.state, layers, "conv1"), most=1)
    assert [row.name for row in info.rows] == list(layers), "names without modules stay"
    assert isinstance(widths(session.state, layers, by="module"), go.Figure)


def test_a_module_has_the_mean_of_its_groups_and_opens_for_the_selected_one() -> None:
    rows = tuple(
        WidthRow(
            f"{block}.{i}.conv", 10 * (i + 1), 10 * (i + 1), 5 * (i + 1), (f"{block}.{i}.conv",)
        )
        for block in ("one", "two")
        for i in range(3)
    )
    closed = gathered(WidthsInfo(rows), most=2)
    assert [(row.name, row.original, row.proposed) for row in closed.rows] == [
        ("one", 20, 10),
        ("two", 20, 10),
    ]
    click = draw_widths(closed).traces[-1]
    assert list(click.customdata) == ["one.0.conv", "two.0.conv"], "a click opens the module"
    assert "mean of 3 groups" in click.hovertext[0]
    opened = gathered(WidthsInfo(rows, "two.1.conv"), most=2)
    assert [row.name for row in opened.rows] == ["one", "two.0.conv", "two.1.conv", "two.2.conv"]


# ---------------------------------------------------------------- compare


def test_two_points_are_compared_by_widths_costs_and_images(session: pl.Session) -> None:
    session.propose()
    session.approve()
    seq = session.state.head
    trial = session.compare(0, seq)
    sides = point_side(session.state, 0), point_side(session.state, seq)
    info = compare_info(*sides, trial)
    assert {name: (a, b) for name, a, b in info.rows} == {
        name: (session.state.began.widths[name], width)
        for name, width in session.state.widths().items()
    }
    table = {row[0]: row[1:] for row in info.table}
    now = session.state.now
    assert table["MACs"][2] == f"{now.cost.macs / session.state.base.cost.macs - 1:+.1%}"
    assert table["only right here, there"][:2] == (str(len(trial.lost)), str(len(trial.gained)))
    assert "±" in table["accuracy, 128 images"][2]
    assert trial.after == now.metrics["accuracy"]
    assert isinstance(compare(*sides, trial, theme="dark"), go.Figure)


def test_shapes_tell_the_two_sides_apart(session: pl.Session) -> None:
    side = point_side(session.state, 0)
    marks = [t for t in draw_compare(compare_info(side, side)).traces if t.mode == "markers"]
    assert len({mark.marker.symbol for mark in marks}) == 2


def test_two_plan_files_are_compared(session: pl.Session, tmp_path: Any) -> None:
    graph = session.plan.graph
    full = pl.WidthPlan.full(graph)
    half = pl.WidthPlan.from_json(full.drop({"conv1": range(6)}).to_json(), graph)
    trial = session.compare(full, half, repair=False)
    assert trial == session.compare_move({"conv1": range(6)})
    info = compare_info(plan_side("all", full), plan_side("half", half, pl.cost(graph, half)))
    assert ("conv1", 12, 6) in info.rows
    assert [row[0] for row in info.table] == ["channels"], "what is not known is not shown"


def test_a_plan_is_repaired_as_a_move_would_be(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, method=pl.AOFP(theta=0.3, images=128))
    half = session.plan.drop({"conv1": range(0, 12, 2), "conv3": range(0, 16, 2)})
    with_repair = session.compare(0, half)
    session.propose()
    session.adjust({"conv1": range(0, 12, 2), "conv3": range(0, 16, 2)})
    session.approve()
    assert with_repair.after == pytest.approx(session.state.now.metrics["accuracy"], abs=0.02)
    with pytest.raises(UnknownName, match="point of the trajectory"):
        session.compare(0, 77)


# ---------------------------------------------------------------- pictures


def test_pictures_are_the_validation_images_at_these_places(session: pl.Session) -> None:
    images = torch.cat([x for x, _ in batches(128, 2)])
    found = session.pictures([3, 40, 127])
    assert set(found) == {3, 40, 127}
    for place, picture in found.items():
        assert np.array_equal(picture, images[place].numpy())


def test_pictures_of_other_batches_are_refused(trained: nn.Module) -> None:
    flat = [(torch.zeros(4, 12), torch.zeros(4, dtype=torch.long))]
    session = pl.Session(
        trained,
        pl.Data(train=batches(64, 1), val=flat),
        metrics={"none": lambda model, loader: 0.0},
    )
    with pytest.raises(InvalidValue, match="are of another kind"):
        session.pictures([0])
