"""Scores of subgroups of the images: by size of the true mask, and by view, sex and age."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd

from kernel_lib.postprocess.metrics import Resampler
from kernel_lib.postprocess.nested_cv_report import AREA_EDGES
from kernel_lib.postprocess.score_definitions import (
    Score,
    detection,
    image_auc,
    mean_score,
    per_image,
)
from kernel_lib.postprocess.units import AREA_UNIT, FULL_AREA

# A tenth of the true masks is below the first edge, half below the second, 88 % below the third.
SIZE_EDGES = (*AREA_EDGES[:-1:2], math.inf)
AGE_EDGES = (0, 18, 40, 60, math.inf)  # years
SIZE = f"mask size, {AREA_UNIT}"
N_BOOTSTRAP = 500  # draws for each of about fifty intervals
TRAITS = ("view", "sex", "age")


@dataclass(frozen=True)
class Subgroup:
    """Images with one trait in common, and their scores."""

    by: str  # the trait that the images are divided by
    name: str
    n_images: int
    n_positive: int
    scores: tuple[Score, ...]


def subgroups(
    images: pd.DataFrame, traits: pd.DataFrame | None = None, resampler: Resampler | None = None
) -> list[Subgroup]:
    """Return the non-empty subgroups of a table of images (see `score_definitions`).

    `traits` is indexed by image id and has some of the columns view, sex (text, "" unknown) and age
    (years, nan unknown). An image whose trait is unknown is in none of its subgroups. Dice is over
    all images and over positives; subgroups by mask size contain only positives.
    """
    resampler = resampler or replace(Resampler(), n_bootstrap=N_BOOTSTRAP)
    area = images["truth_px"] * (FULL_AREA / images["n_px"])
    size = area.clip(lower=1).where(area > 0)  # one pixel of a large image is less than 1
    divided = {SIZE: _by_range(size, SIZE_EDGES)}
    for name in TRAITS if traits is not None else ():
        if name in traits:
            of_image = traits[name].reindex(images["image_id"]).set_axis(images.index)
            is_age = name == "age"
            divided[name] = _by_range(of_image, AGE_EDGES) if is_age else _by_text(of_image)
    return [
        _subgroup(by, name, images[members], resampler)
        for by, parts in divided.items()
        for name, members in parts
        if members.any()
    ]


def with_traits(images: pd.DataFrame, traits: pd.DataFrame | None) -> pd.DataFrame:
    """Return a table of images with patients (as groups) and spacings taken from `traits`."""
    if traits is None:
        return images
    of_images = traits.reindex(images["image_id"]).set_axis(images.index)
    if "patient" in of_images:
        patient = of_images["patient"]
        known = patient.notna() & (patient != "")
        images = images.assign(group=patient.where(known, images["group"]))
    if "mm_per_px" in of_images:
        images = images.assign(mm_per_px=of_images["mm_per_px"])
    return images


def as_table(parts: Sequence[Subgroup]) -> pd.DataFrame:
    """Return subgroups as a table for display, each score with its interval and n."""
    rows = []
    for part in parts:
        row = {"by": part.by, "subgroup": part.name, "images": part.n_images}
        row["with a mask"] = part.n_positive
        rows.append(row | {score.name: _with_interval(score) for score in part.scores})
    return pd.DataFrame(rows)


def warnings(parts: Sequence[Subgroup]) -> list[str]:
    """Return a warning for each trait with differences smaller than an interval is wide.

    The difference is between the highest and the lowest value of a score among the subgroups; it is
    compared with the widest of their intervals.
    """
    texts = []
    for by in dict.fromkeys(part.by for part in parts):
        of_score: dict[str, list[Score]] = {}
        for score in (score for part in parts if part.by == by for score in part.scores):
            if not math.isnan(score.value):
                of_score.setdefault(score.name, []).append(score)
        unclear = []
        for name, scores in of_score.items():
            values = [score.value for score in scores]
            difference = max(values) - min(values)
            widest = max(score.interval.high - score.interval.low for score in scores)
            # The bootstrap of a single image has no width.
            is_single = any(score.n_images == 1 for score in scores)
            if len(scores) > 1 and (is_single or widest > difference):
                unclear.append(f"{name} ({difference:.3f} within {widest:.3f})")
        if unclear:
            texts.append(
                f"{by}: the subgroups differ by less than the width of the widest 95 % interval, "
                f"so their order may be chance: {', '.join(unclear)}"
            )
    return texts


def _subgroup(by: str, name: str, images: pd.DataFrame, resampler: Resampler) -> Subgroup:
    positive, dice, group = images["truth_px"] > 0, per_image(images), images["group"]
    sensitivity, specificity, *_ = detection(images)
    scores = (
        mean_score("dice", dice, group, resampler, ""),
        mean_score("dice of positives", dice[positive], group[positive], resampler, ""),
        sensitivity,
        specificity,
        image_auc(images, resampler),
    )
    return Subgroup(by, name, len(images), int(positive.sum()), scores)


def _with_interval(score: Score) -> str:
    if math.isnan(score.value):
        return "–"
    low, high = score.interval
    return f"{score.value:.3f} ({low:.3f}–{high:.3f}), n\u00a0{score.n_images:,}"


def _by_range(values: pd.Series, edges: Sequence[float]) -> Iterator[tuple[str, pd.Series]]:
    """Yield name and members (bool, by row) of each bin; its lower edge is included."""
    for low, high in pairwise(edges):
        name = f"{low:,} and more" if high == math.inf else f"{low:,} to under {high:,}"
        name = f"under {high:,}" if low == edges[0] else name
        yield name, (values >= low) & (values < high)


def _by_text(values: pd.Series) -> Iterator[tuple[str, pd.Series]]:
    """Yield each known text and its members (bool, by row)."""
    for name in np.unique(values[values.notna() & (values != "")].astype(str)):
        yield name, values == name
