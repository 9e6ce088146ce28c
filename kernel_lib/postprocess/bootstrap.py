"""Bootstrap over patients: intervals of a mean over images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kernel_lib.postprocess.serialization import JsonFloat

LEVEL = 0.95
N_BOOTSTRAP = 2000
SEED = 20190904


class Interval(NamedTuple):
    """Lowest and highest value of a 95 % interval; both nan when there is nothing to draw from."""

    low: JsonFloat
    high: JsonFloat


@dataclass(frozen=True)
class Resampler:
    """Draws complete groups with replacement.

    Images of a patient resemble each other: an interval that draws them apart is too narrow.
    """

    n_bootstrap: int = N_BOOTSTRAP
    seed: int = SEED

    def interval(self, values: np.ndarray, groups: np.ndarray) -> Interval:
        """Return the percentile interval (95 %) of the mean over images, in any order the same.

        Shapes: values (N,), groups (N,) names.
        Source: Efron's percentile bootstrap, with clusters.
        """
        if not len(values):
            return Interval(math.nan, math.nan)
        names, group = np.unique(groups.astype(str), return_inverse=True)
        sums, counts = np.bincount(group, values), np.bincount(group)
        random = np.random.default_rng(self.seed)
        means = np.empty(self.n_bootstrap)
        for at in range(self.n_bootstrap):
            sample = random.integers(len(names), size=len(names))
            means[at] = sums[sample].sum() / counts[sample].sum()
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(float(low), float(high))
