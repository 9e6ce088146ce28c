"""What the nested cross-validation and the test set's masks report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from kernel_lib.postprocess.metrics import Interval
from kernel_lib.postprocess.serialization import NAN_AS_NULL, JsonDocument, JsonFloat
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.postprocess.units import FULL_AREA

# Mask areas in px of 1024²: a tenth of the true ones lie below 2,000, a fifth below 3,500, and from
# there each bin is an octave.
AREA_EDGES = (1, 1000, 2000, 3500, 7000, 14000, 28000, FULL_AREA + 1)


@dataclass(frozen=True)
class Score:
    """Mean dice (0–1) over all images, and over those whose truth has a mask (nan: none has)."""

    dice: JsonFloat
    dice_nonempty: JsonFloat


@dataclass(frozen=True, kw_only=True)
class FoldChoice:
    """The choice that scored an outer fold, and the images that it was made on."""

    fold: Annotated[int, Field(alias="part")]
    triplet: Triplet | None = None  # of the mean map; a vote of members has `rules` instead
    n_chosen_on: int
    n_scored: int
    n_left_out: int  # images of other folds, left out since their patient is in this one
    score: Score
    weights: tuple[int, ...] | None = None  # of the members, where they were chosen; 0 = left out
    rules: tuple[Triplet, ...] | None = None  # of each member
    at_least: int | None = None  # members that must agree

    @property
    def choice(self) -> Choice:
        """What was chosen on labels."""
        return Choice(self.triplet, self.weights, self.rules, self.at_least)


@dataclass(frozen=True)
class FalseNegatives:
    """Images whose true mask has from `low_px` up to `high_px` (not included), at 1024²."""

    low_px: int
    high_px: int
    n: int
    n_false_negative: Annotated[int, Field(alias="n_missed")]  # of those, predicted empty


@dataclass(frozen=True, kw_only=True)
class NestedCVReport(JsonDocument):
    """What is known of a rule before the test set, out of fold unless called in sample."""

    method: str  # how the rules were chosen, in a sentence
    n_images: int
    n_nonempty: int
    n_groups: int
    # The peak over all images, and the rule to submit with, chosen over all. None for a vote of
    # members, whose rules are stored beside the report.
    triplet: Triplet | None = None
    chosen: Triplet | None = None
    in_sample_peak: Score
    in_sample: Score  # of what was chosen over all images
    honest: Score
    all_empty: Score
    above_half: Score  # of probability > 0.5, without an area
    interval: Interval  # of honest.dice
    resampled: str  # 'patients' or 'images'
    n_bootstrap: int
    seed: int
    share_true: float  # of images whose truth has a mask
    share_predicted: JsonFloat
    share_interval: Interval
    mean_area_px: JsonFloat  # of predicted masks that are not empty, at 1024²
    mean_area_interval: Interval
    area_edges_px: tuple[int, ...]
    area_histogram: tuple[int, ...]  # predicted masks by area
    false_negatives: Annotated[tuple[FalseNegatives, ...], Field(alias="missed")]
    n_false_positive: int
    auc_sum: JsonFloat  # image-level ROC AUC of the sum of probabilities
    auc_count: JsonFloat  # of the area above the `top` of the image's own rule
    rules: tuple[FoldChoice, ...]
    auc_label: Annotated[float | None, NAN_AS_NULL] = None  # of the label; None: some have none
    per_image: Annotated[pd.DataFrame | None, Field(exclude=True)] = field(
        default=None, repr=False, compare=False
    )


@dataclass(frozen=True)
class TestSummary(JsonDocument):
    """The test set's masks beside those out of fold, and warnings where they differ too much."""

    __test__ = False  # not a test case of pytest

    n_images: int
    share_predicted: JsonFloat
    share_out_of_fold: JsonFloat
    share_expected: Interval
    mean_area_px: JsonFloat  # of masks that are not empty, at 1024²
    mean_area_out_of_fold: JsonFloat
    mean_area_expected: Interval
    area_edges_px: tuple[int, ...]
    area_histogram: tuple[int, ...]
    area_histogram_out_of_fold: tuple[int, ...]
    warnings: tuple[str, ...]


def area_histogram(area_px: np.ndarray) -> tuple[int, ...]:
    """Return how many masks lie in each bin of AREA_EDGES.

    Shapes: area_px (N,) in px at 1024², of masks that are not empty (a single pixel of a larger
    image is below 1 and counts in the first bin).
    """
    bins = np.searchsorted(AREA_EDGES, np.maximum(area_px, AREA_EDGES[0]), side="right") - 1
    return tuple(np.bincount(bins, minlength=len(AREA_EDGES) - 1).tolist())
