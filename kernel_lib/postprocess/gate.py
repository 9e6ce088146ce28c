"""The label before a rule: which images pass it, and a label computed from the map itself.

A label is the probability that the image has a mask, stored as a level of 0–255 as a map's pixels
are. An image passes a threshold t when its level is above 255·t; an image that does not pass gets
an empty mask.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable

import numpy as np

from kernel_lib.errors import InputError
from kernel_lib.postprocess.units import FULL_AREA

NO_LABEL = -1
LOG2_FULL = 20  # log2 of the pixels of a 1024² image


def checked_level(label: int | None) -> int | None:
    """Return a label's level as int, or None where there is none.

    Raises: InputError for anything but a whole number of 0–255.
    """
    if label is None:
        return None
    try:
        level = operator.index(label)
    except TypeError:
        level = NO_LABEL
    if not 0 <= level <= 255 or isinstance(label, bool | np.bool_):
        raise InputError(
            f"the label is {label!r}, not a level of 0–255: give round(255 · p) of its probability"
        )
    return level


def as_array(labels: Iterable[int | None]) -> np.ndarray:
    """Return labels (N,) int16, -1 where there is none; `checked_level` says which it takes."""
    levels = map(checked_level, labels)
    return np.array([NO_LABEL if level is None else level for level in levels], dtype=np.int16)


def passes(label: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return whether images pass a label threshold (0–1); all do where it is None.

    Shapes: label (N,) levels, -1 = none → (N,) bool.
    Raises: InputError when there is a threshold and an image has no label.
    """
    if threshold is None:
        return np.ones(len(label), dtype=bool)
    if (label == NO_LABEL).any():
        raise InputError(
            f"the rule has a label threshold, {threshold}, but image {int(np.argmin(label))} of "
            f"{len(label)} has no label: predict it by a network with a label head, or take a rule "
            "without `label`"
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
