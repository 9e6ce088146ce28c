"""Bootstrap over patients: how far a mean over images may lie from what more images would give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
N_BOOTSTRAP = 2000
SEED = 20190904


class Interval(NamedTuple):
    """Lowest and highest value of a 95 % interval; both nan when there is nothing to draw from."""

    low: float
    high: float


@dataclass(frozen=True)
class Resampler:
    """Draws whole groups with replacement.

    All images of a patient come or stay away together: they resemble each other, and an interval
    that ignores it is too narrow.
    """

    n_bootstrap: int = N_BOOTSTRAP
    seed: int = SEED

    def interval(self, values: np.ndarray, groups: np.ndarray) -> Interval:
        """Percentile interval (95 %) of the mean over images; the same in whatever order.

        Shapes: values (N,), groups (N,) names.
        Source: Efron's percentile bootstrap, with clusters.
        """
        if not len(values):
            return Interval(math.nan, math.nan)
        names, group = np.unique(groups.astype(str), return_inverse=True)
        sums, counts = np.bincount(group, values), np.bincount(group)
        random = np.random.default_rng(self.seed)
        means = np.empty(self.n_bootstrap)
        for draw in range(self.n_bootstrap):
            drawn = random.integers(len(names), size=len(names))
            means[draw] = sums[drawn].sum() / counts[drawn].sum()
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(float(low), float(high))
