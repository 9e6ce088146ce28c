"""The rule that turns a probability map and a label into a mask.

A pixel exceeds a threshold t when its level is above 255·t. An image keeps a mask if at least
`min_area_px` of its pixels (stated for 1024², scaled by H·W / 1024²) exceed `top`; the mask is then
what exceeds `bottom`. A rule with a label threshold first empties the mask of every image whose
label level is not above 255·label. A label is the probability that the image has a mask, stored as
a level of 0–255 as a map's pixels are.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kernel_lib.config import LARGEST_NUMBER
from kernel_lib.errors import InputError
from kernel_lib.postprocess.exhaustive import KEEP_NONE
from kernel_lib.postprocess.serialization import JsonDocument
from kernel_lib.postprocess.units import AREA_UNIT, FULL_AREA

NO_LABEL = -1
LOG2_FULL = 20  # log2 of the pixels of a 1024² image


def checked_label(label: int | None) -> int | None:
    """Return a label's level as int, None without any; InputError unless it is 0–255."""
    if label is None:
        return None
    level = _whole_number(label)
    if not 0 <= level <= 255:
        raise InputError(
            f"the label is {label!r}, not a level of 0–255: give round(255 · p) of its probability"
        )
    return level


def _whole_number(value: object) -> int:
    """Return an integer of any type as int; -1 for anything else, also for a boolean."""
    try:
        return -1 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        return -1


def label_array(labels: Iterable[int | None]) -> np.ndarray:
    """Return labels (N,) int16, -1 where there is none; InputError as `checked_label`."""
    levels = map(checked_label, labels)
    return np.array([NO_LABEL if level is None else level for level in levels], dtype=np.int16)


def passes_gate(label: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return whether images pass a label threshold (0–1); all do where it is None.

    Shapes: label (N,) levels, -1 = none → (N,) bool.
    Raises: InputError when there is a threshold and an image has no label.
    """
    if threshold is None:
        return np.ones(len(label), dtype=bool)
    if (label == NO_LABEL).any():
        raise InputError(
            f"the rule has a label threshold, {threshold}, but image {int(np.argmin(label))} of "
            f"{len(label)} has no label: predict it by a network with a label head"
        )
    return label > math.floor(255 * threshold)


def sum_level(hist: np.ndarray, n_px: int) -> int:
    """Return a label level of 0–255 from the map's sum of probabilities.

    round(255 · log2(1 + Σp) / 20) with Σp scaled to 1024²: 0 px is level 0, 2^20 px level 255, and
    a level is a step of 5.6 % in the sum.

    Shapes: hist (256,) pixels by level of the map at the image's own size, n_px = H·W of that.
    Source: the reference solution, whose mask models' sums predict "has a mask" better than a
    classifier.
    """
    sum_px = int(hist @ np.arange(256)) / 255 * (FULL_AREA / n_px)
    return min(round(255 * math.log2(1 + sum_px) / LOG2_FULL), 255)


@dataclass(frozen=True)
class Triplet(JsonDocument):
    """A rule: thresholds 0 ≤ bottom ≤ top ≤ 1, and an area ≥ 0 in px of a 1024² image.

    `label` is a threshold 0–1 of the image's label; None needs no label.

    Raises: InputError when a value is out of its bounds.
    Source: the first place of the competition (sneddy); top == bottom is one threshold, one area.
    """

    top: float
    min_area_px: int
    bottom: float
    label: float | None = None

    def __post_init__(self) -> None:
        for name in ("top", "bottom") if self.label is None else ("top", "bottom", "label"):
            value = getattr(self, name)
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not 0 <= number <= 1:
                raise InputError(
                    f"{name} is {value!r}, not within 0–1: a level of a uint8 map or label is /255"
                )
            object.__setattr__(self, name, number)
        if self.bottom > self.top:
            raise InputError(f"bottom is {self.bottom}, above top, {self.top}: give it at most top")
        area = _whole_number(self.min_area_px)
        if not 0 <= area <= LARGEST_NUMBER:
            raise InputError(
                f"min_area_px is {self.min_area_px!r}, not a whole number of 0 to "
                f"{LARGEST_NUMBER:,}: give pixels of a 1024² image"
            )
        object.__setattr__(self, "min_area_px", area)

    @property
    def keeps_none(self) -> bool:
        """Whether the rule asks for more area than an image has, so that every mask is empty."""
        return self.min_area_px >= KEEP_NONE

    def __str__(self) -> str:
        label = "" if self.label is None else f"label {self.label:.4f}, "
        area = f"min area {self.min_area_px} {AREA_UNIT}"
        if self.keeps_none:
            area += f" (predicts nothing: an image has {FULL_AREA})"
        return f"{label}top {self.top:.4f}, {area}, bottom {self.bottom:.4f}"


def apply_rule(prob: np.ndarray, triplet: Triplet, label: int | None = None) -> np.ndarray:
    """Return the mask (H, W) uint8 0/1 of a map under a rule.

    Shapes: prob (H, W) uint8, at the image's own size; label a level, which a rule may ignore.
    Raises: InputError for another type or shape, or when the rule needs a label and none is given.
    """
    prob = checked_map(prob)
    above_top = np.count_nonzero(prob >= first_level(triplet.top))
    passes = passes_gate(label_array([label]), triplet.label)[0]
    if not passes or above_top * FULL_AREA < triplet.min_area_px * prob.size:
        return np.zeros(prob.shape, dtype=np.uint8)
    return (prob >= first_level(triplet.bottom)).view(np.uint8)


def first_level(threshold: float) -> int:
    """Return the lowest level that exceeds a threshold: 1–256, where no pixel reaches 256."""
    return math.floor(255 * threshold) + 1


def checked_map(prob: np.ndarray) -> np.ndarray:
    """Return the map, uint8 (H, W); InputError for another type or shape."""
    prob = np.asarray(prob)
    if prob.dtype != np.uint8 or prob.ndim != 2 or not prob.size:
        raise InputError(
            f"the map is {prob.dtype} of shape {prob.shape}, not uint8 (H, W): "
            "give round(255 · p) of one image"
        )
    return prob
