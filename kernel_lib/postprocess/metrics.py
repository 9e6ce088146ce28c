"""The competition's score, the image-level ROC AUC, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kernel_lib.errors import InputError
from kernel_lib.postprocess.serialization import JsonFloat


def dice_of_counts(
    intersection: ArrayLike, predicted: ArrayLike, truth: ArrayLike
) -> np.ndarray | np.float64:
    """Return the dice (0–1) from pixel counts; empty against empty is 1.

    Shapes: any that broadcast; the result has the broadcast shape.
    Source: competition page, "Evaluation": 2·|X∩Y| / (|X| + |Y|), and 1 when both are empty.
    """
    both = np.add(predicted, truth, dtype=np.int64)
    dice = 2.0 * np.asarray(intersection, dtype=np.int64) / np.maximum(both, 1)
    return np.where(both == 0, 1.0, dice)[()]


def dice(pred_mask: np.ndarray, true_mask: np.ndarray) -> float:
    """Return the dice (0–1) of one image's masks; empty against empty is 1.

    Shapes: both (H, W), nonzero = mask.
    Raises: InputError when the shapes differ.
    """
    predicted, truth = np.asarray(pred_mask) != 0, np.asarray(true_mask) != 0
    if predicted.shape != truth.shape:
        raise InputError(
            f"the predicted mask is {predicted.shape}, the true one {truth.shape}: "
            "bring both to the image's own size first"
        )
    counts = map(np.count_nonzero, (predicted & truth, predicted, truth))
    return float(dice_of_counts(*counts))


def mean_dice(dice: np.ndarray) -> float:
    """Return the competition's score (0–1): the mean over images, nan without any.

    Shapes: dice (N,), one an image; their order does not change the last digit.
    """
    return math.fsum(dice) / len(dice) if len(dice) else math.nan


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the area under the ROC curve (0–1) of scores against labels, ties counted half.

    Shapes: both (N,), labels nonzero = positive. nan when there is only one class.
    Raises: InputError when the lengths differ or a score is nan.
    Source: Mann–Whitney: the share of (positive, negative) pairs in the right order.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels) != 0
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise InputError(
            f"scores have shape {scores.shape}, labels {labels.shape}: give one of each an image"
        )
    if np.isnan(scores).any():
        raise InputError(f"score {int(np.argmax(np.isnan(scores)))} is nan: leave that image out")
    positive, negative = scores[labels], np.sort(scores[~labels])
    if not len(positive) or not len(negative):
        return math.nan
    below = np.searchsorted(negative, positive, side="left").sum()
    not_above = np.searchsorted(negative, positive, side="right").sum()
    return float((int(below) + int(not_above)) / (2 * len(positive) * len(negative)))


LEVEL = 0.95
N_BOOTSTRAP = 2000
SEED = 20190904


class Interval(NamedTuple):
    """Lowest and highest value of a 95 % interval; both nan when there is nothing to draw from."""

    low: JsonFloat
    high: JsonFloat


def wilson(k: int, n: int) -> Interval:
    """Return the interval (95 %) of a share of k in n, by Wilson's score; (nan, nan) for n = 0.

    Source: Wilson 1927; it stays within 0–1 and is wider than a point at 0 and at n. It takes
    images as independent.
    """
    if n == 0:
        return Interval(math.nan, math.nan)
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, more = k / n, z**2 / n
    middle = (share + more / 2) / (1 + more)
    half = z * math.sqrt(share * (1 - share) / n + more / (4 * n)) / (1 + more)
    # At the ends the formula gives 0 and 1 but for the last digit.
    return Interval(0.0 if k == 0 else middle - half, 1.0 if k == n else middle + half)


@dataclass(frozen=True)
class Resampler:
    """Draws complete groups with replacement.

    Images of a patient resemble each other: an interval that draws them apart is too narrow.
    """

    n_bootstrap: int = N_BOOTSTRAP
    seed: int = SEED

    def interval(self, values: np.ndarray, groups: np.ndarray) -> Interval:
        """Return the percentile interval (95 %) of the mean over images, in any order the same.

        Shapes: values (N,), groups (N,) names.
        Source: Efron's percentile bootstrap, with clusters.
        """
        return self.interval_of_ratios([(values, np.ones(len(values)))], groups)

    def interval_of_ratios(
        self, ratios: Sequence[tuple[np.ndarray, np.ndarray]], groups: np.ndarray
    ) -> Interval:
        """Return the percentile interval (95 %) of Σ numerators / Σ denominators over images.

        Of several ratios it is that of their mean. Samples whose denominators are 0 do not count.

        Shapes: numerators and denominators (N,) of each ratio, groups (N,) names.
        """
        if not len(groups):
            return Interval(math.nan, math.nan)
        names, group = np.unique(groups.astype(str), return_inverse=True)
        sums = [tuple(np.bincount(group, part) for part in ratio) for ratio in ratios]
        drawn = np.empty(self.n_bootstrap)
        with np.errstate(invalid="ignore"):  # 0 / 0
            for at, sample in enumerate(self._samples(len(names))):
                parts = [top[sample].sum() / bottom[sample].sum() for top, bottom in sums]
                drawn[at] = sum(parts) / len(parts)
        return _percentiles(drawn)

    def interval_of_auc(
        self, scores: np.ndarray, labels: np.ndarray, groups: np.ndarray
    ) -> Interval:
        """Return the percentile interval (95 %) of `auc`. Samples of one class do not count.

        Shapes: scores (N,), labels (N,) bool, groups (N,) names.
        """
        if not len(groups):
            return Interval(math.nan, math.nan)
        names, group = np.unique(groups.astype(str), return_inverse=True)
        values, rank = np.unique(scores, return_inverse=True)
        positive, drawn = np.asarray(labels, dtype=bool), np.empty(self.n_bootstrap)
        for at, sample in enumerate(self._samples(len(names))):
            times = np.bincount(sample, minlength=len(names))[group]  # each image was drawn
            of_positive, of_negative = (
                np.bincount(rank[part], times[part], minlength=len(values))
                for part in (positive, ~positive)
            )
            # Negatives below each score, those with the same score counted half.
            below = np.cumsum(of_negative) - of_negative / 2
            pairs = of_positive.sum() * of_negative.sum()
            drawn[at] = of_positive @ below / pairs if pairs else math.nan
        return _percentiles(drawn)

    def _samples(self, n_groups: int) -> Iterator[np.ndarray]:
        random = np.random.default_rng(self.seed)
        for _ in range(self.n_bootstrap):
            yield random.integers(n_groups, size=n_groups)


def _percentiles(drawn: np.ndarray) -> Interval:
    """Return the interval of the samples' values, nan left out; (nan, nan) where all are."""
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Interval(math.nan, math.nan)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
