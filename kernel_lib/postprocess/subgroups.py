"""Scores of parts of the images: by the true mask's size, and by view, sex and age."""

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

# A tenth of the true masks lie below the first edge, half below the second, 88 % below the third.
SIZE_EDGES = (*AREA_EDGES[:-1:2], math.inf)
AGE_EDGES = (0, 18, 40, 60, math.inf)  # years
SIZE = f"mask size, {AREA_UNIT}"
N_BOOTSTRAP = 500  # of each of some fifty intervals
TRAITS = ("view", "sex", "age")


@dataclass(frozen=True)
class Subgroup:
    """Images that have something in common, and their scores."""

    by: str  # what the images are divided by
    name: str
    n_images: int
    n_positive: int
    scores: tuple[Score, ...]


def subgroups(
    images: pd.DataFrame, traits: pd.DataFrame | None = None, resampler: Resampler | None = None
) -> list[Subgroup]:
    """Return the subgroups of a table of images (see `score_definitions`) that hold any.

    `traits` has the image ids as index and some of the columns view, sex (text, "" unknown) and age
    (years, nan unknown). Images whose trait is unknown are in none of its subgroups. Dice are over
    all images and over positives; by mask size there are positives alone.
    """
    resampler = resampler or replace(Resampler(), n_bootstrap=N_BOOTSTRAP)
    area = images["truth_px"] * (FULL_AREA / images["n_px"])
    size = area.clip(lower=1).where(area > 0)  # a pixel of a larger image is less than 1
    divided = {SIZE: _binned(size, SIZE_EDGES)}
    for name in TRAITS if traits is not None else ():
        if name in traits:
            of_image = traits[name].reindex(images["image_id"]).set_axis(images.index)
            is_age = name == "age"
            divided[name] = _binned(of_image, AGE_EDGES) if is_age else _named(of_image)
    return [
        _subgroup(by, name, images[members], resampler)
        for by, parts in divided.items()
        for name, members in parts
        if members.any()
    ]


def with_traits(images: pd.DataFrame, traits: pd.DataFrame | None) -> pd.DataFrame:
    """Return a table of images with the patients, as groups, and spacings that traits state."""
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


def as_table(found: Sequence[Subgroup]) -> pd.DataFrame:
    """Return subgroups as a table to show, each score with its n and interval."""
    rows = []
    for part in found:
        row = {"by": part.by, "subgroup": part.name, "images": part.n_images}
        row["with a mask"] = part.n_positive
        rows.append(row | {score.name: _with_interval(score) for score in part.scores})
    return pd.DataFrame(rows)


def warnings(found: Sequence[Subgroup]) -> list[str]:
    """Return a warning for each division some of whose differences are within an interval's width.

    A difference is that of the highest and the lowest value of a score among the subgroups.
    """
    texts = []
    for by in dict.fromkeys(part.by for part in found):
        of_score: dict[str, list[Score]] = {}
        for score in (score for part in found if part.by == by for score in part.scores):
            if not math.isnan(score.value):
                of_score.setdefault(score.name, []).append(score)
        doubted = []
        for name, scores in of_score.items():
            values = [score.value for score in scores]
            difference = max(values) - min(values)
            widest = max(score.interval.high - score.interval.low for score in scores)
            if len(scores) > 1 and widest > difference:
                doubted.append(f"{name} ({difference:.3f} within {widest:.3f})")
        if doubted:
            texts.append(
                f"{by}: the subgroups differ by less than the widest 95 % interval is wide, so "
                f"that the order may be chance, in {', '.join(doubted)}"
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


def _binned(values: pd.Series, edges: Sequence[float]) -> Iterator[tuple[str, pd.Series]]:
    """Yield names and members of the bins between edges, the lower one included."""
    for low, high in pairwise(edges):
        name = f"{low:,} and more" if high == math.inf else f"{low:,} to under {high:,}"
        name = f"under {high:,}" if low == edges[0] else name
        yield name, (values >= low) & (values < high)


def _named(values: pd.Series) -> Iterator[tuple[str, pd.Series]]:
    """Yield each text that occurs, and its members."""
    for name in np.unique(values[values.notna() & (values != "")].astype(str)):
        yield name, values == name
