"""A prediction's scores in every published definition, each with its interval.

A table of images has one row per image, and these columns:
image_id, group (patient, or the image's own id), shared_px (intersection), predicted_px, truth_px,
n_px (size of the image), and, nan if unknown, probability (0–1 that the image has a mask), hd95_px,
assd_px, mm_per_px. Distances are defined only if both masks have pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from kernel_lib.data import rle
from kernel_lib.postprocess.metrics import Interval, Resampler, auc, dice_of_counts, wilson
from kernel_lib.postprocess.surface_distance import NOT_DEFINED, surface_distance

COUNTS = ["shared_px", "predicted_px", "truth_px", "n_px"]
DISTANCES = ["hd95_px", "assd_px"]
# Who publishes which definition on the competition's data, as far as they state it.
COMPETITION = 'the competition, sneddy, raju-sah; "mean dice" of CheXWorld (empties not stated)'
POSITIVES = "raju-sah"
POOLED = "Foundation X (this or per image, not stated which)"
BACKGROUND = "EVA-X"


class Score(NamedTuple):
    """The value of one definition."""

    name: str
    value: float
    interval: Interval  # 95 %
    n_images: int
    formula: str
    published: str = ""


def measure_images(
    images: Iterable[tuple[str, rle.Runs, rle.Runs, tuple[int, int]]], distances: bool = True
) -> pd.DataFrame:
    """Return the table of images from (image_id, predicted runs, true runs, (H, W)) of each.

    Each image is its own group. `distances` adds HD95 and ASSD of images with both masks.
    """
    rows = []
    for image_id, predicted, truth, shape in images:
        counts = rle.shared_px(predicted, truth), rle.area(predicted), rle.area(truth)
        found = NOT_DEFINED
        if distances and len(predicted) and len(truth):
            found = surface_distance(rle.mask_of(predicted, shape), rle.mask_of(truth, shape))
        rows.append((image_id, image_id, *counts, shape[0] * shape[1], *found))
    table = pd.DataFrame(rows, columns=["image_id", "group", *COUNTS, *DISTANCES])
    return table.assign(probability=math.nan, mm_per_px=math.nan)


def scores(images: pd.DataFrame, resampler: Resampler | None = None) -> list[Score]:
    """Return the scores of a table of images, in every definition that its columns allow.

    Means, ratios and the AUC have bootstrap intervals over groups, shares of images Wilson
    intervals.
    """
    resampler = resampler or Resampler()
    positives = images[images["truth_px"] > 0]
    found = []
    for measure in ("dice", "IoU"):
        found += _overlaps(images, positives, measure, resampler)
    return [*found, *detection(images), *_auc(images, resampler), *_distances(images, resampler)]


def per_image(images: pd.DataFrame, measure: str = "dice") -> np.ndarray:
    """Return the dice or IoU (N,) of each image; empty against empty is 1."""
    dice = dice_of_counts(images["shared_px"], images["predicted_px"], images["truth_px"])
    return dice if measure == "dice" else dice / (2 - dice)


def mean_score(
    name: str, values: np.ndarray, groups: pd.Series, resampler: Resampler, *about: str
) -> Score:
    """Return the mean over images with its interval; `about`: formula, optionally publisher."""
    value = math.fsum(values) / len(values) if len(values) else math.nan
    interval = resampler.interval(values, groups.to_numpy())
    return Score(name, value, interval, len(values), *about)


def detection(images: pd.DataFrame) -> list[Score]:
    """Return sensitivity, specificity, PPV and NPV for "the image has a mask"."""
    truth, predicted = images["truth_px"] > 0, images["predicted_px"] > 0
    parts = {
        "sensitivity": (predicted, truth, "images with a mask that get one"),
        "specificity": (~predicted, ~truth, "images without a mask that get none"),
        "PPV": (truth, predicted, "images with a predicted mask that have one"),
        "NPV": (~truth, ~predicted, "images predicted empty that are empty"),
    }
    found = []
    for name, (correct, among, formula) in parts.items():
        k, n = int((correct & among).sum()), int(among.sum())
        value = k / n if n else math.nan
        found.append(Score(name, value, wilson(k, n), n, formula))
    return found


def image_auc(images: pd.DataFrame, resampler: Resampler) -> Score:
    """Return the ROC AUC for "the image has a mask", over images whose probability is known."""
    known = images[images["probability"].notna()]
    probability, truth = known["probability"].to_numpy(), (known["truth_px"] > 0).to_numpy()
    value = auc(probability, truth)
    interval = Interval(math.nan, math.nan)
    if not math.isnan(value):
        interval = resampler.interval_of_auc(probability, truth, known["group"].to_numpy())
    formula = "share of pairs of an image with and one without a mask that are in the right order"
    return Score("AUC", value, interval, len(known), formula)


def as_table(found: Sequence[Score]) -> pd.DataFrame:
    """Return scores as a table for display: values rounded to four decimals, nan if undefined."""
    rows = [
        (
            score.name,
            *(round(value, 4) for value in (score.value, *score.interval)),
            score.n_images,
            score.formula,
            score.published,
        )
        for score in found
    ]
    columns = ["score", "value", "95 % from", "to", "images", "formula", "published by"]
    return pd.DataFrame(rows, columns=columns)


def _overlaps(
    images: pd.DataFrame, positives: pd.DataFrame, measure: str, resampler: Resampler
) -> list[Score]:
    """Return dice or IoU in five definitions."""
    mean_name, ratio = f"m{measure[0].upper()}{measure[1:]}", "2·|X∩Y| / (|X| + |Y|)"
    if measure == "IoU":
        ratio = "|X∩Y| / |X∪Y|"
    each = [
        mean_score(name, per_image(rows, measure), rows["group"], resampler, formula, by)
        for name, rows, formula, by in (
            (f"{measure}, per image", images, f"mean of {ratio}, empty against empty = 1",
             COMPETITION if measure == "dice" else ""),
            (f"{measure}, positives", positives, "the same, over images with a true mask",
             POSITIVES if measure == "dice" else ""),
        )
    ]  # fmt: skip
    pooled = [
        _ratio_score(f"{measure}, pooled", images, measure, 1, resampler,
                     f"{ratio}, over the pixels of all images together",
                     POOLED if measure == "dice" else ""),
        _ratio_score(f"{mean_name}, pooled", images, measure, 2, resampler,
                     f"mean of pooled {measure} of mask and background"),
        _ratio_score(f"{mean_name}, positives, pooled", positives, measure, 2, resampler,
                     "the same, over images with a true mask", BACKGROUND),
    ]  # fmt: skip
    return each + pooled


def _ratio_score(
    name: str, rows: pd.DataFrame, measure: str, n_classes: int, resampler: Resampler, *about: str
) -> Score:
    """Return pooled dice or IoU: of the mask (1 class), or the mean with the background's (2)."""
    shared, predicted, truth, n_px = (rows[column].to_numpy(dtype=float) for column in COUNTS)
    classes = [(shared, predicted, truth)]
    classes += [(n_px - (predicted + truth - shared), n_px - predicted, n_px - truth)]
    ratios = [
        (2 * both, one + other) if measure == "dice" else (both, one + other - both)
        for both, one, other in classes[:n_classes]  # intersection, and both areas
    ]
    parts = [
        numerator.sum() / denominator.sum() if denominator.any() else math.nan
        for numerator, denominator in ratios
    ]
    interval = resampler.interval_of_ratios(ratios, rows["group"].to_numpy())
    return Score(name, float(np.mean(parts)), interval, len(rows), *about)


def _auc(images: pd.DataFrame, resampler: Resampler) -> list[Score]:
    return [image_auc(images, resampler)] if images["probability"].notna().any() else []


def _distances(images: pd.DataFrame, resampler: Resampler) -> list[Score]:
    """Return HD95 and ASSD in pixels, and in mm over images whose spacing is known."""
    found, both = [], images[images["hd95_px"].notna()]
    parts = {
        "hd95_px": ("HD95", "95th percentile of boundary distances, larger of both directions"),
        "assd_px": ("ASSD", "mean of boundary distances, both directions"),
    }
    for column, (name, formula) in parts.items():
        for unit, factor in (("px", 1.0), ("mm", both["mm_per_px"])):
            values = (both[column] * factor).dropna()
            if len(values):
                about = f"{formula}; mean over images with both masks"
                group = both.loc[values.index, "group"]
                found.append(mean_score(f"{name}, {unit}", values, group, resampler, about))
    return found
