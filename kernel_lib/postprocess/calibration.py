"""Calibration of the image-level probability of a pneumothorax, and cross-fitted recalibration.

Probabilities are calibrated if, of the images with probability p, a share of p is positive. The
recalibration is a logistic curve of one score of the image, fitted on the other folds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kernel_lib.postprocess.histograms import Stacked, highest, sum_px
from kernel_lib.postprocess.metrics import wilson
from kernel_lib.postprocess.nested_cv import held_out
from kernel_lib.postprocess.serialization import JsonDocument

N_BINS = 10
IMAGES_PER_BIN = 20  # fewer bins for fewer images
MAX_STEPS = 100  # of Newton's method, which needs about ten

# Probabilities are stored in steps of 1/255: they are clipped half a step from 0 and 1.
_HALF_LEVEL = 0.5 / 255


def _logit(probability: np.ndarray) -> np.ndarray:
    clipped = np.clip(probability, _HALF_LEVEL, 1 - _HALF_LEVEL)
    return np.log(clipped / (1 - clipped))


# The scores of an image, as `oof.csv` calls them, and the feature of the logistic curve for each.
FEATURES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "label": _logit,  # the classification probability
    "max_prob": _logit,  # the probability map's largest value
    "sum_prob": lambda total: np.log2(1 + total),  # the map's sum, px of 1024²
}
PROBABILITIES = ("label", "max_prob")  # those that are probabilities without recalibration


@dataclass(frozen=True)
class Reliability:
    """Observed and predicted shares in bins of equal count (B,), and scores over all images.

    Bins that are empty because of ties are left out.
    """

    n: np.ndarray  # images in the bin
    predicted: np.ndarray  # mean probability of the bin
    observed: np.ndarray  # share of positive images in it
    low: np.ndarray  # 95 % interval of that share (Wilson)
    high: np.ndarray
    ece: float  # mean |observed − predicted| over images, 0–1
    brier: float  # mean (probability − truth)², 0–1


@dataclass(frozen=True)
class Logistic(JsonDocument):
    """Probability of an image from its score: 1 / (1 + exp(−(slope · feature + intercept)))."""

    score: Literal["label", "max_prob", "sum_prob"]
    slope: float
    intercept: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return the probabilities (N,) of images with these scores (N,)."""
        feature = FEATURES[self.score](np.asarray(values, dtype=np.float64))
        return _expit(self.slope * feature + self.intercept)


@dataclass(frozen=True)
class Calibration:
    """How well a score is calibrated as it is, and after cross-fitted recalibration."""

    score: str  # a name in FEATURES
    before: Reliability | None  # None if the score is not a probability
    after: Reliability


def calibrate(
    score: str, values: np.ndarray, truth: np.ndarray, part: np.ndarray, groups: np.ndarray
) -> Calibration | None:
    """Return the calibration of a score before and after recalibration by `cross_fitted`.

    None without images, or if `cross_fitted` gives nan for one. Shapes: all (N,).
    """
    corrected = cross_fitted(score, values, truth, part, groups)
    if not len(values) or np.isnan(corrected).any():
        return None
    before = reliability(values, truth) if score in PROBABILITIES else None
    return Calibration(score, before, reliability(corrected, truth))


def best(calibrations: Sequence[Calibration]) -> Calibration | None:
    """Return the one with the lowest Brier score after recalibration; None for an empty list."""
    return min(calibrations, key=lambda one: one.after.brier, default=None)


def image_scores(stats: Stacked) -> dict[str, np.ndarray]:
    """Return each score (N,) of FEATURES that all images have, by name."""
    found = {
        "max_prob": highest(stats.hist_all),
        "sum_prob": sum_px(stats.hist_all, stats.n_px),
    }
    return ({"label": stats.label / 255} if stats.has_labels else {}) | found


def best_curve(
    stats: Stacked, truth: np.ndarray, part: np.ndarray, groups: np.ndarray
) -> Logistic | None:
    """Return the curve for new images: of the `best` score when cross-fitted, fitted on all images.

    Shapes: truth, part and groups (N,), in the order of `stats`. None if no score can be
    cross-fitted.
    """
    known = image_scores(stats)
    tried = (calibrate(k, values, truth, part, groups) for k, values in known.items())
    winner = best([one for one in tried if one is not None])
    return winner and fit(winner.score, known[winner.score], truth)


def fit(score: str, values: np.ndarray, truth: np.ndarray) -> Logistic:
    """Return the logistic curve of a score that fits these images best.

    The targets are (n₊ + 1) / (n₊ + 2) for positive and 1 / (n₋ + 2) for other images, so that the
    curve is finite even if the score separates them, or all images are of one class.

    Shapes: values (N,) of the score, truth (N,) nonzero = positive; N above 0.
    Source: Platt 1999, with the targets of its section 2.2; Newton's method.
    """
    feature = FEATURES[score](np.asarray(values, dtype=np.float64))
    truth = np.asarray(truth) != 0
    n, n_positive = len(truth), int(truth.sum())
    target = np.where(truth, (n_positive + 1) / (n_positive + 2), 1 / (n - n_positive + 2))
    mean, scale = feature.mean(), feature.std() or 1.0
    x = np.stack([(feature - mean) / scale, np.ones(n)], axis=1)
    weights = np.zeros(2)
    for _ in range(MAX_STEPS):
        prob = _expit(x @ weights)
        gradient = x.T @ (prob - target)
        # Damped, for a score that is the same for all images: its slope then stays 0.
        hessian = (x.T * (prob * (1 - prob))) @ x + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        loss = _log_loss(x @ weights, target)
        while _log_loss(x @ (weights - step), target) > loss and np.abs(step).max() > 1e-12:
            step /= 2
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    slope = float(weights[0] / scale)
    return Logistic(score, slope, float(weights[1] - slope * mean))


def cross_fitted(
    score: str, values: np.ndarray, truth: np.ndarray, part: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Return the probability (N,) of each image by the curve fitted without its part and patients.

    Shapes: all (N,). nan if there is no image of another part and patient to fit on.
    """
    prob = np.full(len(values), math.nan)
    for _, inside, outside in held_out(part, groups):
        if outside.any():
            prob[inside] = fit(score, values[outside], truth[outside])(values[inside])
    return prob


def reliability(prob: np.ndarray, truth: np.ndarray, n_bins: int | None = None) -> Reliability:
    """Return how well probabilities agree with the truth, in `n_bins` bins of equal count.

    By default 10 bins, fewer below 200 images. Images of equal probability are in the same bin, so
    the order of rows does not matter.

    Shapes: prob (N,) 0–1, truth (N,) nonzero = positive; N above 0.
    Source: the bins of scikit-learn's calibration_curve(strategy="quantile"); Wilson 1927.
    """
    prob, truth = np.asarray(prob, dtype=np.float64), (np.asarray(truth) != 0).astype(float)
    if n_bins is None:
        n_bins = min(N_BINS, max(2, len(prob) // IMAGES_PER_BIN))
    edges = np.percentile(prob, 100 * np.linspace(0, 1, n_bins + 1))
    bins = np.searchsorted(edges[1:-1], prob)
    n = np.bincount(bins)
    filled = n > 0
    n = n[filled]
    predicted = np.bincount(bins, prob)[filled] / n
    positive = np.bincount(bins, truth)[filled]
    low, high = np.array([wilson(int(k), int(m)) for k, m in zip(positive, n, strict=True)]).T
    return Reliability(
        n, predicted, positive / n, low, high,
        ece=float(np.abs(positive / n - predicted) @ n / len(prob)),
        brier=float(np.mean((prob - truth) ** 2)),
    )  # fmt: skip


def entropy(prob: np.ndarray) -> np.ndarray:
    """Return the entropy in bits of "has a pneumothorax", 0 (certain) to 1 (p = 0.5).

    Shapes: prob of any shape, 0–1 → the same shape.
    """
    prob = np.asarray(prob, dtype=np.float64)
    sides = np.stack([prob, 1 - prob])
    return -(sides * np.log2(np.where(sides > 0, sides, 1))).sum(axis=0)


def _expit(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))  # never overflows


def _log_loss(logits: np.ndarray, target: np.ndarray) -> float:
    return float((np.logaddexp(0, logits) - target * logits).sum())
