"""`compare`: equal data, targets and seeds for all methods, with random choice as control."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isnan
from statistics import fmean, stdev
from typing import Any, ClassVar

import numpy as np
import pytest
from torch import nn

import prunelab as pl
from prunelab.experiments.results import Outcome
from prunelab.figures import methods, methods_info
from prunelab.values import Progress


@pytest.fixture(scope="module")
def comparison(trained: nn.Module, data: pl.Data) -> pl.Comparison:
    return pl.compare(trained, data, ["thinet", "magnitude"], [0.6, 0.4], seeds=[3, 5])


def test_every_method_meets_every_target_and_random_stands_beside(
    comparison: pl.Comparison,
) -> None:
    keys = [(row.target, row.name) for row in comparison.rows]
    assert keys == [(t, n) for t in (0.6, 0.4) for n in ("thinet", "magnitude", "random")]
    for row in comparison.rows:
        assert [outcome.seed for outcome in row.outcomes] == [3, 5]
        assert row.macs <= row.target * comparison.base.cost.macs
        assert row.repair == "lstsq"
        assert not row.notes


def test_an_outcome_is_what_prune_gives(
    comparison: pl.Comparison, trained: nn.Module, data: pl.Data
) -> None:
    result = pl.prune(trained, data, method="thinet", target_macs=0.4, seed=5)
    outcome = comparison["thinet"][1].outcomes[1]
    assert dict(outcome.widths) == result.plan.widths
    judged = pl.Session(trained, data).evaluate(network=result.model)
    assert dict(outcome.metrics) == judged
    assert outcome.cost == result.trajectory[-1].cost


def test_rows_are_means_and_standard_deviations_over_the_seeds(comparison: pl.Comparison) -> None:
    row = comparison["random"][0]
    values = [outcome.metrics["loss"] for outcome in row.outcomes]
    assert values[0] != values[1]
    assert row.mean("loss") == fmean(values)
    assert row.spread("loss") == stdev(values)
    assert isnan(replace(row, outcomes=row.outcomes[:1]).spread("loss"))


def test_it_prints_as_a_table_with_the_original_on_top(comparison: pl.Comparison) -> None:
    said, head, first, *rows = repr(comparison).splitlines()
    assert said == "Tiny: mean and standard deviation over 2 seeds"
    assert " ".join(head.split()) == "MACs of original parameters test accuracy seconds repair"
    assert first.split()[0] == "original"
    assert [line.split()[0] for line in rows] == ["thinet", "magnitude", "random"] * 2
    assert all("±" in line and line.endswith("lstsq") for line in rows)


def test_it_goes_to_json_and_back(comparison: pl.Comparison) -> None:
    assert pl.Comparison.from_json(comparison.to_json()) == comparison
    for text in ("{}", "no json", '{"comparison": 3}', '{"comparison": {"is": "Nothing"}}'):
        with pytest.raises(pl.InvalidValue, match="not a comparison"):
            pl.Comparison.from_json(text)
    with pytest.raises(pl.UnknownName, match="thinet"):
        comparison["thinnet"]


def test_the_figure_has_a_line_for_each_method_and_a_level_for_the_original(
    comparison: pl.Comparison,
) -> None:
    info = methods_info(comparison)
    assert info.base == 100 * comparison.base.metrics["accuracy"]
    assert [(line.name, line.control) for line in info.lines] == [
        ("thinet", False),
        ("magnitude", False),
        ("random", True),
    ]
    rows = comparison["random"]
    assert info.lines[2].values == tuple(100 * row.mean("accuracy") for row in rows)
    assert info.lines[2].spreads == tuple(100 * row.spread("accuracy") for row in rows)
    drawn = comparison.figure(theme="dark")
    assert [trace.name for trace in drawn.data] == ["original", "thinet", "magnitude", "random"]
    assert drawn.data[3].line.dash == "dash"
    assert list(drawn.data[3].error_y.array) == list(info.lines[2].spreads)
    one_seed = replace(comparison, outcomes=comparison.outcomes[::2])
    assert not methods(one_seed).data[1].error_y.visible


def test_without_repair_random_is_shown_with_and_without_it(
    trained: nn.Module, data: pl.Data
) -> None:
    found = pl.compare(trained, data, ["magnitude"], 0.5, repair=None, seeds=1)
    assert [(row.name, row.repair) for row in found.rows] == [
        ("magnitude", None),
        ("random", None),
        ("random", "lstsq"),
    ]
    assert {line.name for line in methods_info(found).lines} == {
        "magnitude, repair none",
        "random, repair none",
        "random, repair lstsq",
    }


@dataclass(frozen=True)
class Fussy(pl.OneShot):
    """Finds nothing to its liking."""

    name: ClassVar[str] = "fussy"

    def scores(self, context: Any, evidence: Any) -> dict[str, np.ndarray]:
        raise pl.BadModel("not my kind of network")


def test_a_method_that_cannot_has_a_note_and_the_others_go_on(
    trained: nn.Module, data: pl.Data
) -> None:
    shy = pl.Magnitude(pruning_ratio={"conv1": 0.5})
    found = pl.compare(trained, data, {"mine": Fussy(), "shy": shy}, 0.05, seeds=1)
    mine, short, random = found.rows
    assert mine.notes == ("mine failed: not my kind of network",)
    assert not mine.outcomes[0].metrics
    assert short.notes[0].startswith("shy ended at ")
    assert short.outcomes[0].metrics
    assert "[1] mine failed" in repr(found)
    assert "[2] shy ended" in repr(found)
    assert [line.name for line in methods_info(found).lines] == ["shy", "random"]
    assert random.notes or random.macs <= 0.05 * found.base.cost.macs


def test_listeners_hear_of_progress_and_every_outcome(trained: nn.Module, data: pl.Data) -> None:
    heard: list[Any] = []
    found = pl.compare(
        trained, data, [pl.Magnitude(norm=2)], 0.5, seeds=1, tune=2, listen=heard.append
    )
    assert [item for item in heard if isinstance(item, Outcome)] == list(found.outcomes)
    steps = [item for item in heard if isinstance(item, Progress) and item.total == 2]
    assert "magnitude(norm=2) to 50% of the MACs, seed 0" in [step.what for step in steps]
    assert "tuning" in [step.what for step in steps]


@pytest.mark.parametrize(
    "wrong",
    [
        {"methods": "aofp"},
        {"methods": 3},
        {"methods": ["aofp", pl.AOFP()]},
        {"methods": {"random": "aofp"}},
        {"targets": []},
        {"targets": [0.5, 0.5]},
        {"targets": "half"},
        {"targets": [0]},
        {"seeds": 0},
        {"seeds": [1, 1]},
        {"seeds": 1.5},
        {"tune": -1},
        {"seed": 1},
        {"path": "a file"},
        {"split": "all"},
        {"repair": "magic"},
    ],
)
def test_what_makes_no_sense_is_refused(
    trained: nn.Module, data: pl.Data, wrong: dict[str, Any]
) -> None:
    with pytest.raises(pl.InvalidValue):
        pl.compare(trained, data, **{"methods": ["magnitude"], "targets": 0.5, **wrong})
    with pytest.raises(pl.UnknownName):
        pl.compare(trained, data, ["magnitud"])
