"""Which images are worth a look: the worst, the missed, false alarms, border cases, the best."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from kernel_lib.postprocess.histograms import Stacked, areas, areas_above, per_image_dice
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.postprocess.units import FULL_AREA


def most_telling(stats: Stacked, rule: Triplet) -> list[int]:
    """Rows of all N images, the most telling first: one of each kind in turn.

    With truth: masks drawn worst, the largest missed, the largest false alarms, border cases
    (areas above `top` nearest the least area, where a little decides), drawn best, and empty ones
    rightly so. Without: the largest masks, border cases, the smallest masks, and empty ones.
    """
    area = areas(stats, rule) * (FULL_AREA / stats.n_px)
    drawn = area > 0
    above = areas_above(stats, rule.top) * (FULL_AREA / stats.n_px)
    nearness = np.abs(np.log((above + 1) / (rule.min_area_px + 1)))
    border = _ordered(above > 0, nearness)
    if not stats.has_truth.all():
        kinds = [_ordered(drawn, -area), border, _ordered(drawn, area), _ordered(~drawn, nearness)]
        return _in_turns(kinds)
    dice, truth = per_image_dice(stats, rule), stats.true_px * (FULL_AREA / stats.n_px)
    both, neither = drawn & (truth > 0), ~drawn & (truth == 0)
    return _in_turns(
        [
            _ordered(both, dice),
            _ordered(~drawn & (truth > 0), -truth),
            _ordered(drawn & (truth == 0), -area),
            border,
            _ordered(both, -dice),
            _ordered(neither, nearness),
        ]
    )


def _ordered(which: np.ndarray, by: np.ndarray) -> list[int]:
    """The rows where `which` holds, smallest `by` first, ties in the table's order."""
    rows = np.flatnonzero(which)
    return rows[np.argsort(by[rows], kind="stable")].tolist()


def _in_turns(kinds: Sequence[Sequence[int]]) -> list[int]:
    """One of each kind in turn, each row once."""
    turns = itertools.chain.from_iterable(itertools.zip_longest(*kinds))
    return list(dict.fromkeys(row for row in turns if row is not None))
