"""The jackknife: intervals as by leaving chunks out, ranks and ties that follow from them."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import nn

import prunelab as pl
from prunelab.evidence.contribution import ConsumerGram, ContributionGram
from prunelab.evidence.jackknife import Jackknife


@pytest.fixture(scope="module")
def measured(trained: nn.Module, data: pl.Data) -> Jackknife:
    graph = pl.trace(trained, data.train[0][0][:1])
    return pl.jackknife(trained, graph, data.train, chunks=8)


def test_all_chunks_together_are_the_evidence_of_one_pass(
    measured: Jackknife, trained: nn.Module, data: pl.Data
) -> None:
    whole = pl.measure(trained, measured.evidence.graph, data.train)
    assert measured.evidence.images == whole.images == sum(c.images for c in measured.chunks)
    assert measured.evidence.fingerprint == whole.fingerprint
    for name in whole.groups:
        np.testing.assert_allclose(measured.evidence[name].gram, whole[name].gram, rtol=1e-5)
    assert measured.damage("conv1", [0, 3]).value == pytest.approx(
        whole["conv1"].damage([0, 3]), rel=1e-5
    )


def test_an_interval_is_that_of_evidence_measured_without_each_chunk(measured: Jackknife) -> None:
    chunks = measured.chunks
    without = [reduce(add, (c for c in chunks if c is not one)) for one in chunks]
    for units in ([0], [1, 4, 7], range(11)):
        left = np.array([evidence["conv1"].damage(units) for evidence in without])
        count = len(chunks)
        deviation = np.sqrt((count - 1) / count * ((left - left.mean()) ** 2).sum())
        margin = student.ppf(0.975, count - 1) * deviation
        found = measured.damage("conv1", units)
        assert found.high - found.value == pytest.approx(margin, rel=1e-6)
        assert found.low == pytest.approx(max(0, found.value - margin))
    alone = measured.alone("conv1")
    third = measured.damage("conv1", [3])
    assert (alone[3].low, alone[3].value, alone[3].high) == pytest.approx(
        (third.low, third.value, third.high)
    )
    np.testing.assert_allclose(
        measured.margins("conv1"), [one.high - one.value for one in alone], rtol=1e-9
    )


class Fixed:
    """Evidence of one group whose contributions are written down."""

    def __init__(self, lost: np.ndarray) -> None:
        self.lost = lost

    def __getitem__(self, name: str) -> ContributionGram:
        units = tuple(10 + unit for unit in range(len(self.lost)))
        gram = np.diag(self.lost)
        return ContributionGram(
            name, units, {"next": ConsumerGram("next", units, gram, self.lost, 100.0)}
        )


def written(lost: np.ndarray) -> Jackknife:
    """A jackknife of these damages, chunk by chunk [chunks, units]."""
    chunks = tuple(Fixed(row) for row in lost)
    total = Fixed(lost.mean(axis=0))
    return Jackknife(chunks, total)  # type: ignore[arg-type]


def test_ranks_say_which_units_are_surely_apart() -> None:
    noise = np.random.default_rng(0).normal(size=(16, 4)) * 0.01
    found = written(np.array([1.0, 1.0, 5.0, 9.0]) + noise)
    assert found.ranks("conv1") == ((1, 2), (1, 2), (3, 3), (4, 4))


def test_units_that_vary_together_are_told_apart_though_their_intervals_overlap() -> None:
    common = np.random.default_rng(0).normal(size=(16, 1))
    found = written(np.array([5.0, 5.2]) + common)
    first, second = found.alone("conv1")
    assert first.high > second.low
    assert found.ranks("conv1") == ((1, 1), (2, 2))


def test_a_tie_across_the_cut_is_undecided_and_one_beside_it_is_not() -> None:
    noise = np.random.default_rng(0).normal(size=(16, 5)) * 0.05
    found = written(np.array([1.0, 4.0, 4.0, 8.0, 8.0]) + noise)
    assert found.undecided("conv1", 1) == ()
    assert found.undecided("conv1", 2) == (11, 12)
    assert found.undecided("conv1", 3) == ()
    with pytest.raises(pl.InvalidValue, match="from 1 to 4"):
        found.undecided("conv1", 5)


def test_intervals_cover_the_damage_on_all_data() -> None:
    """Of many samples of images, about 95% of the intervals hold the value of the population."""
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.5, 2, 20)
    covered = []
    for _ in range(200):
        energies = rng.exponential(scales, size=(16, 32, 20)).sum(axis=1)
        found = written(energies / 32)
        want = scales / 100
        covered += [
            one.low <= value <= one.high
            for one, value in zip(found.alone("conv1"), want, strict=True)
        ]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_images_are_dealt_out_and_batches_of_own_classes_stay_whole(
    trained: nn.Module, data: pl.Data
) -> None:
    class Own:
        def __init__(self, x: torch.Tensor) -> None:
            self.x = x

        def __len__(self) -> int:
            return len(self.x)

    graph = pl.trace(trained, data.train[0][0][:1])
    x = data.train[0][0][:12]
    split = pl.jackknife(trained, graph, [x[:6], x[6:]], chunks=4)
    assert [chunk.images for chunk in split.chunks] == [3, 3, 3, 3]
    even = pl.jackknife(trained, graph, list(x.split(3)), chunks=4)
    for chunk, part in zip(even.chunks, x.split(3), strict=True):
        np.testing.assert_allclose(
            chunk["conv1"].gram, pl.measure(trained, graph, [part])["conv1"].gram, rtol=1e-5
        )
    whole = pl.jackknife(
        trained, graph, [Own(x[:5]), Own(x[5:])], chunks=2, forward=lambda m, b: m(b.x)
    )
    for chunk, part in zip(whole.chunks, (x[:5], x[5:]), strict=True):
        alone = pl.measure(trained, graph, [part])
        np.testing.assert_allclose(chunk["conv1"].gram, alone["conv1"].gram, rtol=1e-5)


def test_whiskers_stand_on_the_bars_of_their_units() -> None:
    drawn = pl.figures.bars([3.0, 1.0, 2.0], margins=[0.3, 0.1, 0.2], marked=[2])
    kept, marked = drawn.data[0], drawn.data[1]
    assert tuple(kept.y) == (1.0, 3.0)
    assert tuple(kept.error_y.array) == (0.1, 0.3)
    assert tuple(marked.error_y.array) == (0.2,)
    assert "± 0.1" in kept.hovertext[0]
    assert not pl.figures.bars([1.0, 2.0]).data[0].error_y.visible
