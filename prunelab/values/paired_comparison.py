"""Paired comparison of two networks on the same images, with a 95% interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from prunelab.values import as_text

NORMAL = NormalDist().inv_cdf(0.975)  # intervals hold 95%


@dataclass(frozen=True, slots=True)
class Answers:
    """A network's answers, image by image: the true `labels` and the predicted classes `given`."""

    labels: tuple[int, ...]
    given: tuple[int, ...]

    @property
    def right(self) -> np.ndarray:
        """Whether each image is classified correctly [images]."""
        found: np.ndarray = np.asarray(self.labels) == np.asarray(self.given)
        return found

    @property
    def accuracy(self) -> float:
        """The share of images that are classified correctly."""
        return float(self.right.mean())

    def first(self, count: int) -> Answers:
        """The answers to the first `count` images."""
        return Answers(self.labels[:count], self.given[:count])


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """The metric of two networks on the same images, `before` and `after`.

    `margin` is half the width of the 95% interval of the difference, paired image by image
    (accuracy) or batch by batch (any other metric); NaN for a single batch. `lost` and `gained`
    are the images, by index in the split, that only the first or only the second classifies right.
    `answers` are those of the two networks where they classify; `batches` the two networks' metric
    on each batch where they do not.
    """

    metric: str
    before: float
    after: float
    margin: float
    images: int
    higher_is_better: bool = True
    lost: tuple[int, ...] = ()
    gained: tuple[int, ...] = ()
    answers: tuple[Answers, Answers] | None = None
    batches: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def difference(self) -> float:
        """`after` minus `before`."""
        return self.after - self.before

    @property
    def within_noise(self) -> bool:
        """Whether the interval of the difference contains zero; true where there is no interval."""
        return not abs(self.difference) > self.margin

    def __str__(self) -> str:
        percent = "accuracy" in self.metric
        before = as_text(self.metric, self.before).removesuffix("%")
        change = f"{100 * self.difference:+.1f}" if percent else f"{self.difference:+.3g}"
        text = f"{before} -> {as_text(self.metric, self.after)} ({change}"
        if math.isnan(self.margin):
            return f"{text}; one batch, so no interval)"
        text += f" +- {100 * self.margin:.1f} points" if percent else f" +- {self.margin:.3g}"
        if self.answers is not None:
            text += f"; {len(self.lost)} images lost, {len(self.gained)} gained"
        if self.batches is not None:
            text += f" over {len(self.batches[0])} batches"
        return text + ("; within noise)" if self.within_noise else ")")


def by_image(before: Answers, after: Answers) -> PairedComparison:
    """The comparison of two classifiers image by image.

    The interval is Bonett and Price's for a difference of paired proportions (2012): Wald's, with
    one image added to each count, which is valid for small counts too.
    """
    was, is_ = before.right, after.right
    lost, gained = np.flatnonzero(was & ~is_), np.flatnonzero(~was & is_)
    images = len(was)
    down, up = (len(lost) + 1) / (images + 2), (len(gained) + 1) / (images + 2)
    margin = NORMAL * math.sqrt((down + up - (up - down) ** 2) / (images + 2))
    return PairedComparison(
        "accuracy",
        before.accuracy,
        after.accuracy,
        margin,
        images,
        lost=tuple(lost.tolist()),
        gained=tuple(gained.tolist()),
        answers=(before, after),
    )


def by_batch(
    metric: str,
    before: Sequence[float],
    after: Sequence[float],
    sizes: Sequence[int],
    higher_is_better: bool,
) -> PairedComparison:
    """The comparison of two networks by a metric on each batch; means are over images.

    The interval is Student's for paired differences, with batches weighted by their size.

    Parameters
    ----------
    metric
        The name of the metric.
    before, after
        Its values on each batch, of the two networks [batches].
    sizes
        Images in each batch [batches].
    higher_is_better
        The direction of the metric.
    """
    weights = np.asarray(sizes, dtype=float) / sum(sizes)
    differences = np.asarray(after) - np.asarray(before)
    mean = float(weights @ differences)
    count = len(differences)
    margin = math.nan
    if count > 1:
        from scipy.special import stdtrit

        spread = float((weights**2) @ (differences - mean) ** 2) * count / (count - 1)
        margin = float(stdtrit(count - 1, 0.975)) * math.sqrt(spread)
    return PairedComparison(
        metric,
        float(weights @ np.asarray(before)),
        float(weights @ np.asarray(after)),
        margin,
        sum(sizes),
        higher_is_better,
        batches=(tuple(map(float, before)), tuple(map(float, after))),
    )
