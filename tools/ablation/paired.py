"""Differences of arms that share seeds and images, with an interval over both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kernel_lib.errors import InputError
from kernel_lib.postprocess.metrics import LEVEL, N_BOOTSTRAP, SEED, auc
from tools.ablation.score import Columns


@dataclass(frozen=True)
class Measure:
    """One number of an arm: a mean over some of the images, or an AUC over all."""

    values: Callable[[Mapping[str, np.ndarray]], np.ndarray]  # of the columns, (N,)
    among: str = "all"  # key of SUBSETS
    auc: bool = False
    unit: str = "dice"  # key of `table.UNITS`


SUBSETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of the true areas (N,) → (N,) bool
    "all": lambda area: area >= 0,
    "nonempty": lambda area: area > 0,
    "empty": lambda area: area == 0,
    "small": lambda area: (area > 0) & (area <= _third(area)),
    "larger": lambda area: area > max(_third(area), 0),
}


def _third(area: np.ndarray) -> float:
    """Return the area (px) that a third of the masks do not exceed."""
    return float(np.quantile(area[area > 0], 1 / 3)) if (area > 0).any() else 0.0


def _column(name: str) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    return lambda columns: columns[name]


def _shown(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    return columns["area_px"] > 0


def _hidden(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    return columns["area_px"] == 0


MEASURES = {
    "dice": Measure(_column("dice")),
    "dice_nonempty": Measure(_column("dice"), "nonempty"),
    "half": Measure(_column("half")),
    "auc_label": Measure(_column("label"), auc=True, unit="auc"),
    "auc_sum": Measure(_column("sum_prob"), auc=True, unit="auc"),
    "share": Measure(_shown, unit="share"),
    "true_share": Measure(lambda columns: columns["true_area_px"] > 0, unit="share"),
    "area": Measure(_column("area_px"), unit="px"),
    "rle": Measure(_column("rle_length"), unit="characters"),
    "missed": Measure(_hidden, "nonempty", unit="share"),
    "missed_small": Measure(_hidden, "small", unit="share"),
    "missed_larger": Measure(_hidden, "larger", unit="share"),
    "false_alarms": Measure(_shown, "empty", unit="share"),
}


class Difference(NamedTuple):
    """A − B, and the 95 % interval of it; all nan where no seed has both."""

    value: float
    low: float
    high: float
    n_seeds: int


class Draws:
    """Bootstrap draws of whole patients, and of seeds; the same for every claim."""

    def __init__(
        self,
        groups: Sequence[str],
        true_area_px: Sequence[float],
        n_bootstrap: int = N_BOOTSTRAP,
        seed: int = SEED,
    ) -> None:
        """Draw the bootstrap samples; groups (N,) and true_area_px (N,) are of the images."""
        self.true_area_px = np.asarray(true_area_px, np.float64)
        names, group = np.unique(np.asarray(groups).astype(str), return_inverse=True)
        self._random_seed = seed
        random = np.random.default_rng(seed)
        drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), n_bootstrap)
        # The first row is no draw: every image once, which gives the value itself.
        self.counts = np.concatenate([np.ones((1, len(group)), np.int64), drawn[:, group]])

    def value(self, columns: Columns, name: str) -> np.ndarray:
        """Return an arm's measure of all images, then of each draw of them, (1 + n_bootstrap,)."""
        measure = measure_named(name)
        arrays = {key: np.asarray(column, np.float64) for key, column in columns.items()}
        values = np.asarray(measure.values(arrays | {"true_area_px": self.true_area_px}), float)
        if measure.auc:
            truth, rows = self.true_area_px > 0, np.arange(len(values))
            drawn = (np.repeat(rows, counts) for counts in self.counts)
            return np.array([auc(values[rows], truth[rows]) for rows in drawn])
        counts = self.counts * SUBSETS[measure.among](self.true_area_px)
        with np.errstate(invalid="ignore"):  # a draw without any such image is nan
            return (counts @ values) / counts.sum(axis=1)

    def difference(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Difference:
        """Return the mean over seeds of A − B; images and seeds are resampled together.

        Shapes: one pair of `value`'s arrays a seed.
        Source: percentile bootstrap over two crossed factors (Owen 2007).
        """
        if not pairs:
            return Difference(np.nan, np.nan, np.nan, 0)
        gaps = np.stack([a - b for a, b in pairs])  # (seeds, 1 + draws)
        n_seeds, n_draws = gaps.shape[0], gaps.shape[1] - 1
        random = np.random.default_rng([self._random_seed, n_seeds])
        counts = random.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), n_draws)
        drawn = (counts * gaps[:, 1:].T).sum(axis=1) / n_seeds
        low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Difference(float(gaps[:, 0].mean()), float(low), float(high), n_seeds)


def measure_named(name: str) -> Measure:
    """Return the measure of that name.

    Raises: InputError where there is none.
    """
    if name not in MEASURES:
        raise InputError(f"measure {name!r} is none of {', '.join(MEASURES)}")
    return MEASURES[name]
