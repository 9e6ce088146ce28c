"""The order in which images are worth a look."""

from __future__ import annotations

import itertools

import numpy as np

from kernel_lib.postprocess.histograms import Stacked, areas, areas_above, per_image_dice
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.postprocess.units import FULL_AREA


def rank_images(stats: Stacked, rule: Triplet) -> list[int]:
    """Return the rows of all N images, one of each kind in turn.

    With ground truth: lowest Dice, largest false negatives, largest false positives, borderline
    (area above `top` nearest to the minimum area), highest Dice, and true negatives. Without:
    the largest masks, borderline, the smallest masks, and empty ones.
    """
    scale = FULL_AREA / stats.n_px
    area, above = areas(stats, rule) * scale, areas_above(stats, rule.top) * scale
    predicted = area > 0
    distance = np.abs(np.log((above + 1) / (rule.min_area_px + 1)))  # from the minimum area
    borderline = _ordered(above > 0, distance)
    if stats.has_truth.all():
        dice, true_area = per_image_dice(stats, rule), stats.true_px * scale
        positive = true_area > 0
        kinds = [
            _ordered(predicted & positive, dice),
            _ordered(~predicted & positive, -true_area),
            _ordered(predicted & ~positive, -area),
            borderline,
            _ordered(predicted & positive, -dice),
            _ordered(~predicted & ~positive, distance),
        ]
    else:
        kinds = [
            _ordered(predicted, -area),
            borderline,
            _ordered(predicted, area),
            _ordered(~predicted, distance),
        ]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*kinds))
    return list(dict.fromkeys(row for row in in_turn if row is not None))


def _ordered(which: np.ndarray, key: np.ndarray) -> list[int]:
    """Return the rows where `which` holds, smallest key first, ties in the table's order."""
    rows = np.flatnonzero(which)
    return rows[np.argsort(key[rows], kind="stable")].tolist()
