"""What the honest score and the look at the test set report."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from kernel_lib.postprocess import plain
from kernel_lib.postprocess.bootstrap import Interval
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.postprocess.units import FULL_AREA

# Mask areas in px of 1024²: a tenth of the true ones lie below 2,000, a fifth below 3,500, and from
# there each bin is an octave.
AREA_EDGES = (1, 1000, 2000, 3500, 7000, 14000, 28000, FULL_AREA + 1)


@dataclass(frozen=True)
class Score:
    """Mean dice (0–1) over all images, and over those whose truth has a mask (nan: none has)."""

    dice: float
    dice_nonempty: float


@dataclass(frozen=True, kw_only=True)
class PartRule:
    """The choice that scored one fold (or part), and what it was chosen on."""

    part: int
    triplet: Triplet | None = None  # of the one map; a vote of members has `rules` instead
    n_chosen_on: int
    n_scored: int
    n_left_out: int  # images of other parts, left out since their patient is in this one
    score: Score
    weights: tuple[int, ...] | None = None  # of the members, where they were chosen; 0 = left out
    rules: tuple[Triplet, ...] | None = None  # of each member
    at_least: int | None = None  # members that must agree

    @property
    def choice(self) -> Choice:
        """What was chosen on labels."""
        return Choice(self.triplet, self.weights, self.rules, self.at_least)


@dataclass(frozen=True)
class Missed:
    """Images whose true mask has from `low_px` up to `high_px` (not included), at 1024²."""

    low_px: int
    high_px: int
    n: int
    n_missed: int  # of those, predicted empty


@dataclass(frozen=True, kw_only=True)
class HonestReport:
    """What is known of a rule before the test set; figures are honest unless called in sample."""

    method: str  # how the rules were chosen, in a sentence
    n_images: int
    n_nonempty: int
    n_groups: int
    # The peak over all images, and chosen over all: the rule to submit with. A vote of members
    # has several, which stand beside the report.
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
    share_predicted: float
    share_interval: Interval
    mean_area_px: float  # of predicted masks that are not empty, at 1024²
    mean_area_interval: Interval
    area_edges_px: tuple[int, ...]
    area_histogram: tuple[int, ...]  # predicted masks by area
    missed: tuple[Missed, ...]  # false negatives by true area
    n_false_positive: int  # truth empty, a mask predicted
    auc_sum: float  # of "has a mask", by the sum of probabilities
    auc_count: float  # by the area above the `top` of the image's own rule
    rules: tuple[PartRule, ...]
    auc_label: float | None = None  # by the label; None where images have none
    per_image: pd.DataFrame | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict:
        """All but the table of images, as a dict for JSON; nan becomes None."""
        return plain.to_plain(self, leave_out=("per_image",))

    @classmethod
    def from_json(cls, values: dict) -> HonestReport:
        """The report of such a dict, without the table of images.

        Raises: InputError naming fields that are missing or unknown.
        """
        return plain.from_plain(cls, values, leave_out=("per_image",))


@dataclass(frozen=True)
class TestSummary:
    """The test set's masks beside those out of fold, and warnings where they differ too much."""

    __test__ = False  # the name is no test case to pytest

    n_images: int
    share_predicted: float
    share_out_of_fold: float
    share_expected: Interval
    mean_area_px: float  # of masks that are not empty, at 1024²
    mean_area_out_of_fold: float
    mean_area_expected: Interval
    area_edges_px: tuple[int, ...]
    area_histogram: tuple[int, ...]
    area_histogram_out_of_fold: tuple[int, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict:
        """The summary as a dict for JSON; nan becomes None."""
        return plain.to_plain(self)

    @classmethod
    def from_json(cls, values: dict) -> TestSummary:
        """The summary of such a dict.

        Raises: InputError naming fields that are missing or unknown.
        """
        return plain.from_plain(cls, values)


def area_histogram(area_px: np.ndarray) -> tuple[int, ...]:
    """How many masks lie in each bin of AREA_EDGES.

    Shapes: area_px (N,) in px at 1024², of masks that are not empty (a lone pixel of a larger image
    is below 1 and counts in the first bin).
    """
    bins = np.searchsorted(AREA_EDGES, np.maximum(area_px, AREA_EDGES[0]), side="right") - 1
    return tuple(np.bincount(bins, minlength=len(AREA_EDGES) - 1).tolist())
