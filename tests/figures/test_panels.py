"""The panels: the numbers drawn are those of the state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from prunelab.cost.counting import Latency
from prunelab.errors import InvalidValue
from prunelab.figures import (
    bars,
    board,
    board_info,
    importance,
    importance_info,
    ladder,
    ladder_info,
    tiles,
    trajectory,
    trajectory_info,
    widths,
    widths_info,
)
from prunelab.figures.board import NAMES, faded, panels, traces
from prunelab.figures.importance import draw_importance
from prunelab.figures.ladder import draw_ladder
from prunelab.figures.style import shorten, wrap
from prunelab.figures.trajectory import draw_trajectory
from prunelab.figures.widths import WidthRow, WidthsInfo, draw_widths
from prunelab.ledger.events import (
    Adjusted,
    Approved,
    Began,
    Event,
    Noted,
    Proposed,
    Repaired,
    Undone,
)
from prunelab.ledger.state import State, fold
from prunelab.values import Cost, FrozenMap, Importance, Move, Rung

WIDTHS = {"conv1": 4, "conv2": 8}
LAYERS = {"conv1": ("conv1", "down"), "conv2": ("conv2",)}

RUNGS = (
    Rung("conv1", 0, (0, 1, 2, 3), (0.3, 0.1, 0.2, 0.4), (1, 2), 0.2, 0.05, "halve"),
    Rung("conv1", 1, (1, 2), (0.03, 0.06), (1,), 0.03, 0.05, "take"),
    Rung("conv2", 0, tuple(range(8)), (0.5,) * 8, (0, 1, 2, 3), 0.5, 0.05, "fail"),
)
SCORES = Importance("conv2", tuple(range(8)), (5, 3, 8, 1, 9, 2, 7, 4), "mean |w|")


def cost(macs: int) -> Cost:
    return Cost(macs=macs, params=macs, activation_bytes=macs)


def move(drop: Mapping[str, tuple[int, ...]], before: int, after: int) -> Move:
    return Move(
        drop=FrozenMap(drop),
        method="aofp",
        parameters=FrozenMap(),
        seed=0,
        damage=FrozenMap(dict.fromkeys(drop, 0.01)),
        before=cost(before),
        after=cost(after),
        fingerprint="f",
    )


def step(
    event: type[Event], kept: Mapping[str, Any], accuracy: float, macs: int, **more: Any
) -> Any:
    return lambda seq: event(
        seq=seq,
        kept=FrozenMap(kept),
        metrics=FrozenMap({"accuracy": accuracy}),
        cost=cost(macs),
        fingerprint=f"f{seq}",
        weights="w",
        **more,
    )


def began(widths: Mapping[str, int] = WIDTHS, accuracy: float = 0.92) -> Any:
    return lambda seq: Began(
        seq=seq,
        network="Net",
        fingerprint="f",
        seed=0,
        method="aofp",
        parameters=FrozenMap(),
        settings=FrozenMap(),
        widths=FrozenMap(widths),
        metrics=FrozenMap({"accuracy": accuracy}),
        cost=cost(1000),
        weights="w",
    )


def proposed(drop: Mapping[str, tuple[int, ...]], after: int, seen: tuple[Any, ...] = RUNGS) -> Any:
    return lambda seq: Proposed(
        seq=seq, method="aofp", parameters=FrozenMap(), move=move(drop, 1000, after), seen=seen
    )


def state_of(*makers: Any) -> State:
    return fold(make(seq) for seq, make in enumerate(makers))


START = state_of(began())
PENDING = state_of(began(), proposed({"conv1": (1,)}, 900))
KEPT = {"conv1": (0, 2, 3), "conv2": tuple(range(8))}
APPROVED = state_of(
    began(),
    proposed({"conv1": (1,)}, 900),
    step(Approved, KEPT, 0.90, 900),
    step(Repaired, KEPT, 0.91, 900, kind="lstsq", automatic=True),
)
UNDONE = state_of(
    began(),
    proposed({"conv1": (1,)}, 900),
    step(Approved, KEPT, 0.90, 900),
    lambda seq: Undone(seq=seq, step=2, proposal=False),
    proposed({"conv1": (2,)}, 950),
)


# ---------------------------------------------------------------- importance


def test_units_of_a_search_stand_at_their_last_damage_lowest_first() -> None:
    info = importance_info(PENDING, "conv1")
    assert info.units == (1, 2, 0, 3)
    assert info.values == (0.03, 0.06, 0.3, 0.4)
    assert info.fates == ("drop", "keep", "keep", "keep")
    assert info.threshold == 0.05


def test_scores_of_a_method_are_preferred_and_have_no_theta() -> None:
    state = state_of(began(), proposed({"conv2": (3, 5)}, 900, (*RUNGS, SCORES)))
    info = importance_info(state, "conv2")
    assert info.units == (3, 5, 1, 7, 0, 6, 2, 4)
    assert info.fates[:3] == ("drop", "drop", "keep")
    assert info.meaning == "mean |w|"
    assert info.threshold is None


def test_dropped_units_are_gone_after_approve_and_back_after_undo() -> None:
    assert importance_info(APPROVED, "conv1").fates == ("gone", "keep", "keep", "keep")
    assert "gone" not in importance_info(UNDONE, "conv1").fates


def test_an_adjusted_move_recolours_the_bars() -> None:
    adjusted = state_of(
        began(),
        proposed({"conv1": (1,)}, 900),
        lambda seq: Adjusted(seq=seq, move=move({"conv1": (2,)}, 1000, 900)),
    )
    assert importance_info(adjusted, "conv1").fates == ("keep", "drop", "keep", "keep")


def test_a_group_without_evidence_is_said_to_have_none() -> None:
    panel = draw_importance(importance_info(START, "conv1"))
    assert panel.note
    assert all(len(trace.x) == 0 for trace in panel.traces)


def test_drop_is_hatched_not_only_coloured() -> None:
    drawn = {t.name: t for t in draw_importance(importance_info(PENDING, "conv1")).traces}
    assert list(drawn["drop"].x) == [0]
    assert drawn["drop"].marker.pattern.shape == "/"
    assert drawn["drop"].marker.color != drawn["keep"].marker.color
    assert list(drawn["threshold"].y) == [0.05, 0.05]
    assert list(drawn["channel"].customdata) == [1, 2, 0, 3]


@pytest.mark.parametrize(
    ("values", "log"),
    [((1.0, 2.0), False), ((1e-4, 1.0), True), ((-1.0, 100.0), False), ((0.0, 0.0), False)],
)
def test_the_scale_is_logarithmic_only_where_values_span_decades(
    values: tuple[float, ...], log: bool
) -> None:
    seen = (Importance("conv1", (0, 1), values, "score"),)
    info = importance_info(START, "conv1", seen)
    assert info.log is log
    assert all(math.isfinite(y) for t in draw_importance(info).traces for y in t.y)


def test_a_bar_of_nothing_is_still_seen() -> None:
    seen = (Importance("conv1", (0, 1, 2), (0.0, 1e-4, 1.0), "score"),)
    panel = draw_importance(importance_info(START, "conv1", seen))
    kept = next(trace for trace in panel.traces if trace.name == "keep")
    assert math.log10(kept.y[0]) > panel.yaxis["range"][0]


# ---------------------------------------------------------------- how the choice was made


def test_halvings_are_bands_with_their_mean_damage() -> None:
    info = importance_info(PENDING, "conv1")
    assert [(band.first, band.last) for band in info.bands] == [(0, 0), (1, 1), (2, 3)]
    assert [band.searched for band in info.bands] == [2, 2, 4]
    assert [band.mean for band in info.bands] == pytest.approx([0.03, 0.06, 0.35])
    assert [band.words for band in info.bands] == ["0.03 < θ", "0.06", "0.35"]
    drawn = {trace.name: trace for trace in draw_importance(info).traces}
    assert list(drawn["halvings"].width) == [1, 1, 2], "behind the bars"
    assert draw_importance(info).traces[0].name == "halvings"
    assert list(drawn["mean damage"].text) == ["0.03 < θ", "0.06", "0.35"]


def test_a_bar_below_theta_that_stays_explains_itself() -> None:
    damages = (0.01, 0.011, 0.012, 0.013)
    rung = Rung("conv1", 0, (0, 1, 2, 3), damages, (0, 1), 0.011, 0.05, "take")
    state = state_of(began(), proposed({"conv1": (0, 1)}, 900, (rung,)))
    info = importance_info(state, "conv1")
    assert info.fates == ("drop", "drop", "keep", "keep")
    assert max(info.values) < info.threshold
    told = {t.name: t for t in draw_importance(info).traces}["channel"].hovertext
    assert "these, the worse half, stay" in told[3].replace("<br>", " ")
    assert "the better 2 go" in told[0].replace("<br>", " ")
    assert "The better 2 of the last 4 go" in info.how
    assert "the others stay, whatever their damage" in info.how


def test_theta_is_a_tick_and_no_other_is_near() -> None:
    ticks = draw_importance(importance_info(PENDING, "conv1")).yaxis
    at = list(ticks["ticktext"]).index("<b>θ 0.05</b>")
    assert ticks["tickvals"][at] == 0.05
    others = [value for i, value in enumerate(ticks["tickvals"]) if i != at]
    assert min(abs(value - 0.05) for value in others) > 0.02
    assert draw_importance(importance_info(START, "conv1")).yaxis["tickvals"] == []


def test_a_search_in_which_no_half_passes_says_so() -> None:
    failed = importance_info(PENDING, "conv2")
    assert [band.taken for band in failed.bands] == [False, False]
    assert "No half passes (mean damage at most 0.5, against theta 0.05): all stay" in failed.how


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("thinet", {"pruning_ratio": 0.25}, "the sum that the next layer would miss stays small"),
        ("thinet", {"selection": "omp"}, "matching pursuit"),
        ("channel_pruning", {}, "penalty of a LASSO"),
        ("group_fisher", {}, "least Fisher information"),
        ("surgeon", {}, "predicted rise of the loss, after a refit"),
        ("elimination", {}, "the refitted next layer misses least"),
        ("oracle", {}, "leaves out each channel and measures the loss"),
        ("magnitude", {"scope": "uniform"}, "Magnitude ranks channels by their mean |w|: the low"),
        ("taylor", {"scope": "global"}, "the lowest of all layers together go"),
    ],
)
def test_every_method_says_how_it_chose(method: str, given: dict[str, Any], said: str) -> None:
    def found(seq: int) -> Event:
        made = replace(move({"conv2": (3, 5)}, 1000, 900), method=method)
        return Proposed(
            seq=seq, method=method, parameters=FrozenMap(given), move=made, seen=(SCORES,)
        )

    how = importance_info(state_of(began(), found), "conv2").how
    assert said in how
    assert "Here 2 go" in how
    assert ("of pruning ratio 0.25" in how) == ("pruning_ratio" in given)


def test_a_choice_by_hand_is_told_apart_from_the_methods() -> None:
    adjusted = state_of(
        began(),
        proposed({"conv1": (1,)}, 900),
        lambda seq: Adjusted(seq=seq, move=move({"conv1": (2, 3)}, 1000, 900)),
    )
    assert importance_info(adjusted, "conv1").how.endswith("Hatched is your choice: 2 channels.")


def test_a_search_that_is_foreseen_is_no_choice_by_hand() -> None:
    foreseen = replace(PENDING, pending=move({"conv1": (1, 2)}, 1000, 900))
    how = importance_info(foreseen, "conv1", RUNGS).how
    assert "The better 1 of the last 2 goes" in how
    assert "your choice" not in how
    assert "The better 1 of the last 2 goes" in importance_info(START, "conv1", RUNGS[:2]).how


def test_what_was_decided_is_told_of_the_latest_proposal() -> None:
    assert importance_info(APPROVED, "conv1").how.startswith("The latest proposal: AOFP masks")
    assert "the last 2 goes" in importance_info(APPROVED, "conv1").how


# ---------------------------------------------------------------- ladder


def test_the_ladder_has_a_dot_per_halving() -> None:
    info = ladder_info(PENDING, "conv1")
    assert info.sizes == (4, 2)
    assert info.taken == (2, 1)
    assert info.worst == (0.2, 0.03)
    assert info.verdicts == ("halve", "take")
    assert info.theta == 0.05
    assert info.others == (((8,), (0.5,)),)


def test_the_ladder_says_the_verdicts_and_draws_theta() -> None:
    drawn = {trace.name: trace for trace in draw_ladder(ladder_info(PENDING, "conv1")).traces}
    assert list(drawn["search"].text) == ["halve", "drop 1"]
    assert set(drawn["theta"].y) == {0.05}
    assert list(drawn["other groups"].x) == [8, None]
    failed = draw_ladder(ladder_info(PENDING, "conv2"))
    assert list(failed.traces[2].text) == ["give up"]


def test_the_ladder_runs_from_wide_to_narrow() -> None:
    left, right = draw_ladder(ladder_info(PENDING, "conv1")).xaxis["range"]
    assert left > right


def test_only_the_latest_search_of_a_group_is_shown() -> None:
    again = Rung("conv1", 0, (0, 2, 3), (0.3, 0.2, 0.4), (2,), 0.2, 0.05, "fail")
    assert ladder_info(PENDING, "conv1", (*RUNGS, again)).sizes == (3,)


def test_rungs_under_way_are_drawn_before_the_proposal() -> None:
    assert ladder_info(START, "conv1").sizes == ()
    assert ladder_info(START, "conv1", RUNGS[:1]).sizes == (4,)


def test_dead_channels_do_not_break_the_logarithm() -> None:
    dead = Rung("conv1", 0, (0, 1), (0.0, 0.1), (0,), 0.0, 0.05, "take")
    drawn = draw_ladder(ladder_info(START, "conv1", (dead,)))
    assert all(y > 0 for y in drawn.traces[2].y)
    assert ladder_info(START, "conv1", (dead,)).worst == (0.0,)


# ---------------------------------------------------------------- widths


def test_widths_are_original_now_and_proposed() -> None:
    rows = widths_info(PENDING, LAYERS).rows
    assert [(r.original, r.now, r.proposed) for r in rows] == [(4, 4, 3), (8, 8, 8)]
    rows = widths_info(APPROVED, LAYERS).rows
    assert [(r.original, r.now, r.proposed) for r in rows] == [(4, 3, 3), (8, 8, 8)]


def test_coupled_layers_carry_a_marker_and_their_number() -> None:
    info = widths_info(PENDING, LAYERS, "conv2")
    assert [row.coupled for row in info.rows] == [True, False]
    drawn = {trace.name: trace for trace in draw_widths(info).traces}
    assert list(drawn["coupled"].y) == [0]
    assert list(drawn["coupled"].text) == ["2 layers"]
    assert list(drawn["proposed to drop"].x) == [1, 0]
    assert list(drawn["proposed to drop"].base) == [3, 8]


def test_the_selected_group_is_bold() -> None:
    panel = draw_widths(widths_info(START, LAYERS, "conv2"))
    assert [text.startswith("<b>") for text in panel.yaxis["ticktext"]] == [False, True]


@pytest.mark.parametrize("selected", [0, 1, 20, 39])
def test_forty_groups_stay_readable(selected: int) -> None:
    names = {f"features.denseblock{i}.denselayer{i}.conv1": 64 for i in range(40)}
    chosen = list(names)[selected]
    axis = draw_widths(widths_info(state_of(began(names)), None, chosen)).yaxis
    ticks = axis["tickvals"]
    assert selected in ticks
    assert len(ticks) <= 22
    assert min(b - a for a, b in pairwise(ticks)) >= 2
    assert all(len(text) <= 26 for text in axis["ticktext"])


# ---------------------------------------------------------------- trajectory


def test_the_path_runs_through_the_steps_in_effect() -> None:
    info = trajectory_info(APPROVED)
    assert [(d.macs, round(d.value, 6), d.kind, d.move) for d in info.path] == [
        (100, 92, "Began", 0),
        (90, 90, "Approved", 1),
        (90, 91, "Repaired", 1),
    ]
    assert info.metric == "accuracy"
    assert info.percent
    assert info.pending is None


def test_undone_steps_stay_as_a_branch() -> None:
    info = trajectory_info(UNDONE)
    assert [dot.seq for dot in info.path] == [0]
    assert [(a.seq, b.seq) for a, b in info.undone] == [(0, 2)]
    drawn = {trace.name: trace for trace in draw_trajectory(info).traces}
    assert list(drawn["undone"].x) == [100, 90, None]


def test_a_latency_is_said_of_the_points_where_it_was_measured() -> None:
    end = APPROVED.head
    panel = draw_trajectory(
        trajectory_info(APPROVED, {end: Latency(0.00183, 0.0018, 0.0019, 30, "cpu")})
    )
    said = dict(zip(panel.traces[-1].customdata, panel.traces[-1].hovertext, strict=True))
    assert said[end] == "repaired, move 1: 90.0% of the MACs, accuracy 91%, measured 1.83 ms"
    assert [seq for seq, text in said.items() if "ms" in text] == [end]


def test_the_pending_move_is_a_question_mark_at_its_macs() -> None:
    info = trajectory_info(UNDONE)
    assert info.pending == 95
    drawn = {trace.name: trace for trace in draw_trajectory(info).traces}
    assert list(drawn["proposed"].x) == [100, 95]
    assert "?" in drawn["proposed"].text[1]


def test_a_guess_is_a_cross_with_a_line_to_what_came_out() -> None:
    def guess(value: float) -> Any:
        told = FrozenMap({"accuracy": value})
        return lambda seq: Noted(seq=seq, text="", kind="prediction", value=told)

    open_one = state_of(began(), proposed({"conv1": (1,)}, 900), guess(0.5))
    settled = state_of(
        began(),
        proposed({"conv1": (1,)}, 900),
        guess(0.5),
        step(Approved, KEPT, 0.90, 900),
        step(Repaired, KEPT, 0.91, 900, kind="lstsq", automatic=True),
    )
    for state, y in ((open_one, [50, None, None]), (settled, [50, 91, None])):
        panel = draw_trajectory(trajectory_info(state))
        drawn = {trace.name: trace for trace in panel.traces}["predicted"]
        assert list(drawn.x) == [90, 90, None]
        assert list(drawn.y) == y
        low, high = panel.yaxis["range"]
        assert low < 50 < high, "it is in view"
    assert drawn.hovertext[0] == "predicted 50%, it became 91%"
    assert trajectory_info(APPROVED).guesses == ()


def test_a_metric_that_is_no_accuracy_keeps_its_unit() -> None:
    start = replace(began()(0), metrics=FrozenMap({"loss": 2.5}))
    info = trajectory_info(fold([start]))
    assert (info.path[0].value, info.percent) == (2.5, False)
    assert draw_trajectory(info).yaxis["title"]["text"] == "validation loss"


# ---------------------------------------------------------------- the board


STATES = {"start": START, "pending": PENDING, "approved": APPROVED, "undone": UNDONE}


def test_traces_never_change_in_number_kind_name_or_keys() -> None:
    """So that the drawn board can be updated in place."""
    shapes = set()
    for state in STATES.values():
        for group in WIDTHS:
            drawn = traces(panels(board_info(state, group, layers=LAYERS)))
            shapes.add(tuple((t.type, t.name, tuple(sorted(t.to_plotly_json()))) for t in drawn))
    kinds = {tuple((kind, name) for kind, name, _ in shape) for shape in shapes}
    assert len(kinds) == 1


def test_equal_states_give_equal_infos() -> None:
    again = state_of(began(), proposed({"conv1": (1,)}, 900))
    assert board_info(PENDING, "conv1") == board_info(again, "conv1")
    assert board_info(PENDING, "conv1") != board_info(PENDING, "conv2")


@pytest.mark.parametrize("arrange", ["grid", "stack"])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_every_axis_has_a_title_and_the_paper_is_transparent(
    state: State, theme: Any, arrange: Any
) -> None:
    figure = board(board_info(state, "conv1", layers=LAYERS), arrange=arrange, theme=theme)
    data = figure.to_plotly_json()["layout"]
    axes = [value for key, value in data.items() if key[:5] in ("xaxis", "yaxis")]
    assert len(axes) == 2 * len(NAMES)
    assert all(axis["title"]["text"] for axis in axes)
    assert all(axis["tickfont"]["size"] >= 12 for axis in axes)
    assert all(note["font"]["size"] >= 12 for note in data["annotations"])
    assert data["paper_bgcolor"] == data["plot_bgcolor"] == "rgba(0,0,0,0)"


def test_panels_do_not_overlap() -> None:
    for arrange in ("grid", "stack"):
        data = board(board_info(PENDING, "conv1"), arrange=arrange).layout
        boxes = [
            (*data[f"xaxis{n}"].domain, *data[f"yaxis{n}"].domain) for n in ("", "2", "3", "4")
        ]
        for i, (left, right, bottom, top) in enumerate(boxes):
            for left2, right2, bottom2, top2 in boxes[i + 1 :]:
                apart = right <= left2 or right2 <= left or top <= bottom2 or top2 <= bottom
                assert apart, arrange


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_each_panel_is_a_figure_of_its_own_too(state: State) -> None:
    for figure in (
        importance(state, "conv1"),
        ladder(state, "conv1", theme="dark"),
        widths(state, LAYERS),
        trajectory(state),
    ):
        assert isinstance(figure, go.Figure)
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text


def test_long_names_keep_their_end() -> None:
    assert shorten("layer1.0.conv1") == "layer1.0.conv1"
    assert shorten("features.denseblock1.denselayer2.conv1", 18) == "…denselayer2.conv1"
    assert shorten("features.denseblock1", 18) == "…denseblock1"
    assert shorten("features.transition1.conv", 18) == "…transition1.conv"
    assert shorten("a.downsampling_convolution.c", 18) == "…ing_convolution.c"
    assert shorten("x" * 30, 18) == "…" + "x" * 17
    assert all(len(line) <= 38 for line in wrap("a word " * 30).split("<br>"))


# ---------------------------------------------------------------- bars


def test_bars_stand_in_order_under_the_numbers_of_their_units() -> None:
    drawn = bars([0.3, -0.1, 0.2], "title", "damage", units=[7, 8, 9], marked={9}, threshold=0.25)
    plain, marked, line = drawn.data
    assert list(drawn.layout.xaxis.ticktext) == ["8", "9", "7"]
    assert (list(plain.x), list(plain.y)) == ([0, 2], [-0.1, 0.3])
    assert (list(marked.x), list(marked.y)) == ([1], [0.2])
    assert marked.marker.pattern.shape and not plain.marker.pattern.shape, "not by colour alone"
    assert set(line.y) == {0.25}
    assert drawn.layout.yaxis.title.text == "damage"


def test_bars_of_many_units_label_some_of_them() -> None:
    drawn = bars(np.linspace(0, 1, 100))
    assert len(drawn.layout.xaxis.tickvals) <= 32
    assert len(drawn.data[0].x) == 100
    assert not len(drawn.data[2].x), "no threshold, no line"


def test_bars_say_what_they_take() -> None:
    with pytest.raises(InvalidValue, match=r"one value for each unit; given values \[3\] and 2"):
        bars([1, 2, 3], units=[0, 1])
    with pytest.raises(InvalidValue, match=r"each item a number, not \[\[1, 2, 3\]\]"):
        bars([[1, 2, 3]])


# ---------------------------------------------------------------- tiles


def test_tiles_stand_in_rows_on_one_scale_or_each_on_its_own() -> None:
    pictures = np.stack([np.full((2, 3), value) for value in (1.0, 2.0, 4.0)])
    shared = tiles(pictures, ["a", "b", "c<br>d"], columns=2)
    assert [int(trace.z.max()) for trace in shared.data] == [32, 64, 127]
    assert [int(trace.z.max()) for trace in tiles(pictures, alike=True).data] == [127] * 3
    corners = [(shape.x0, shape.y0) for shape in shared.layout.shapes]
    assert corners[0][1] == corners[1][1] < corners[2][1], "two in a row"
    assert corners[0][0] == corners[2][0] < corners[1][0]
    assert [note.text for note in shared.layout.annotations] == ["a", "b", "c<br>d"]


def test_tiles_with_negative_values_are_white_at_zero() -> None:
    (trace,) = tiles([np.array([[-1.0, 0.0], [0.5, 1.0]])]).data
    assert trace.z.tolist() == [[-127, 0], [64, 127]]
    assert (trace.zmin, trace.zmax) == (-127, 127)
    assert trace.colorscale[1] == (0.5, "#ffffff")
    assert not tiles(np.zeros((1, 2, 2))).data[0].z.any(), "nothing is divided by zero"


@pytest.mark.parametrize(
    ("pictures", "labels", "columns", "told"),
    [
        (np.zeros((4, 4)), (), 8, r"\[n, height, width\].*\[4, 4\]"),
        (np.zeros((0, 4, 4)), (), 8, r"given \[0, 4, 4\]"),
        (np.zeros((2, 4, 4)), ["a"], 8, "1 labels for 2 pictures"),
        (np.zeros((2, 4, 4)), (), 0, "columns"),
    ],
)
def test_tiles_say_what_they_take(
    pictures: np.ndarray, labels: list[str], columns: int, told: str
) -> None:
    with pytest.raises(InvalidValue, match=told):
        tiles(pictures, labels, columns=columns)


def test_stale_evidence_is_pale_and_says_when_it_was_measured() -> None:
    panel = draw_widths(WidthsInfo((WidthRow("conv1", 16, 12, 12, ("conv1",)),)))
    assert {trace.opacity for trace in faded(panel, "").traces} == {1}
    stale = faded(panel, "measured after move 3")
    assert max(trace.opacity for trace in stale.traces) < 0.5
    assert "measured after move 3" in stale.title
