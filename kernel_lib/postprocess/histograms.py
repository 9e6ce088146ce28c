"""Two histograms of an image's map, of all its pixels and of those in its true mask.

They give the area and the dice of its mask under every rule, without the map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from kernel_lib.errors import InputError
from kernel_lib.postprocess.metrics import dice_of_counts
from kernel_lib.postprocess.triplet import (
    NO_LABEL,
    Triplet,
    checked_label,
    checked_map,
    first_level,
    label_array,
    passes_gate,
    sum_level,
)
from kernel_lib.postprocess.units import FULL_AREA

CV2_EXACT_PX = 1 << 24  # cv2 counts in float32, which is exact up to here


@dataclass(frozen=True)
class Statistics:
    """What the search needs of one image: (256,) int64 pixel counts by level."""

    hist_all: np.ndarray
    hist_true: np.ndarray  # of the pixels in the true mask
    n_px: int
    has_truth: bool = True  # False: no truth is known, as for test images
    label: int | None = None  # level 0–255 of "has a mask", round(255 · p)


@dataclass(frozen=True)
class Stacked:
    """Statistics of N images as arrays."""

    hist_all: np.ndarray  # (N, 256) int64, or int32 to save memory
    hist_true: np.ndarray  # (N, 256), likewise
    n_px: np.ndarray  # (N,) int64
    has_truth: np.ndarray  # (N,) bool
    label: np.ndarray = None  # (N,) int16 levels of "has a mask", -1 = none; not given: all -1

    def __post_init__(self) -> None:
        if self.label is None:
            object.__setattr__(self, "label", np.full(len(self), NO_LABEL, dtype=np.int16))

    def __len__(self) -> int:
        return len(self.n_px)

    @property
    def true_px(self) -> np.ndarray:
        """Pixels (N,) int64 of the true masks."""
        return self.hist_true.sum(axis=1)

    @property
    def has_labels(self) -> bool:
        """Whether every image has a label."""
        return bool((self.label != NO_LABEL).all())

    def take(self, rows: np.ndarray) -> Stacked:
        """Return the images at these indices, or where a boolean array is true."""
        arrays = self.hist_all, self.hist_true, self.n_px, self.has_truth, self.label
        return Stacked(*(array[rows] for array in arrays))


AnyStatistics = Sequence[Statistics] | Stacked


def statistics(prob: np.ndarray, mask: np.ndarray | None, label: int | None = None) -> Statistics:
    """Return the histograms of one image's map, over all pixels and over its true mask.

    Shapes: prob (H, W) uint8, round(255 · p) at the image's own size; mask (H, W), nonzero = mask
    (all zero: truth is empty), or None when no truth is known; label a level, too, or None.
    Raises: InputError for another type, shape or level.
    """
    prob, label = checked_map(prob), checked_label(label)
    hist_all, hist_true = _histogram(prob, None), np.zeros(256, dtype=np.int64)
    if mask is None:
        return Statistics(hist_all, hist_true, prob.size, has_truth=False, label=label)
    mask = np.asarray(mask)
    if mask.shape != prob.shape:
        raise InputError(
            f"the mask is {mask.shape}, the map {prob.shape}: bring the map to the image's own size"
        )
    if mask.dtype != np.uint8:
        mask = (mask != 0).view(np.uint8)
    if mask.any():
        hist_true = _histogram(prob, mask)
    return Statistics(hist_all, hist_true, prob.size, label=label)


def stack(stats: Iterable[Statistics] | Stacked) -> Stacked:
    """Return the statistics of images as arrays, `Stacked` as it is; InputError without images."""
    if isinstance(stats, Stacked):
        return stats
    stats = list(stats)
    if not stats:
        raise InputError("no image to search over: predict some held-out images first")
    return Stacked(
        np.stack([s.hist_all for s in stats]).astype(np.int64, copy=False),
        np.stack([s.hist_true for s in stats]).astype(np.int64, copy=False),
        np.array([s.n_px for s in stats], dtype=np.int64),
        np.array([s.has_truth for s in stats], dtype=bool),
        label_array(s.label for s in stats),
    )


def with_truth(stats: AnyStatistics) -> Stacked:
    """Return the images stacked; InputError naming the first one whose truth is not known."""
    stats = stack(stats)
    if not stats.has_truth.all():
        raise InputError(
            f"image {int(np.argmin(stats.has_truth))} of {len(stats)} has no truth: give an "
            "all-zero mask where the truth is empty, and leave test images out"
        )
    return stats


def gate_by_sum(stats: AnyStatistics) -> Stacked:
    """Return the same images, labelled by their map's sum of probabilities (`sum_level`)."""
    stats = stack(stats)
    return replace(stats, label=label_array(map(sum_level, stats.hist_all, stats.n_px)))


def areas_above(stats: AnyStatistics, threshold: float) -> np.ndarray:
    """Return the pixels (N,) int64 that exceed a threshold (0–1), in each image's own pixels."""
    return stack(stats).hist_all[:, first_level(threshold) :].sum(axis=1)


def sum_px(hist_all: np.ndarray, n_px: np.ndarray) -> np.ndarray:
    """Return the sum of the probability map in px of 1024².

    Shapes: hist_all (..., 256) pixels by level, n_px (...) pixels of the image.
    """
    return (hist_all @ (np.arange(256) / 255)) * (FULL_AREA / n_px)


def highest(hist_all: np.ndarray) -> np.ndarray:
    """Return the largest probability 0–1 of maps with (..., 256) pixels by level."""
    return (255 - (hist_all[..., ::-1] > 0).argmax(axis=-1)) / 255


def kept(stats: AnyStatistics, triplet: Triplet) -> np.ndarray:
    """Return whether each image (N,) passes the rule's label and reaches its area above `top`.

    Raises: InputError when the rule has a label threshold and an image no label.
    """
    stats = stack(stats)
    reached = areas_above(stats, triplet.top) * FULL_AREA >= triplet.min_area_px * stats.n_px
    return reached & passes_gate(stats.label, triplet.label)


def areas(stats: AnyStatistics, triplet: Triplet) -> np.ndarray:
    """Return the pixels (N,) int64 of each image's mask under the rule, in its own pixels."""
    return np.where(kept(stats, triplet), areas_above(stats, triplet.bottom), 0)


def per_image_dice(stats: AnyStatistics, triplet: Triplet) -> np.ndarray:
    """Return the dice (N,) float64 (0–1) of each image's mask under the rule.

    Raises: InputError when an image lacks its truth, or a label that the rule needs.
    """
    stats = with_truth(stats)
    shared = stats.hist_true[:, first_level(triplet.bottom) :].sum(axis=1)
    shared = np.where(kept(stats, triplet), shared, 0)
    return dice_of_counts(shared, areas(stats, triplet), stats.true_px)


def _histogram(prob: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Return the pixels (256,) int64 by level, of all or of those where the mask is not 0."""
    if prob.size < CV2_EXACT_PX:
        return cv2.calcHist([prob], [0], mask, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(prob.ravel() if mask is None else prob[mask != 0], minlength=256)
