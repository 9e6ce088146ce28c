"""The competition's score, the image-level ROC AUC, and bootstrap intervals over patients."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
        if not len(values):
            return Interval(math.nan, math.nan)
        names, group = np.unique(groups.astype(str), return_inverse=True)
        sums, counts = np.bincount(group, values), np.bincount(group)
        random = np.random.default_rng(self.seed)
        means = np.empty(self.n_bootstrap)
        for at in range(self.n_bootstrap):
            sample = random.integers(len(names), size=len(names))
            means[at] = sums[sample].sum() / counts[sample].sum()
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(float(low), float(high))
