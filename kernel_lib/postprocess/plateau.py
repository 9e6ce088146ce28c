"""Choosing a rule from the plateau around the peak.

The peak of a searched surface owes part of its height to chance, and its neighbours do not share
it. The chooser takes, among the rules nearly as good as the peak, the one whose neighbours score
best on average.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from kernel_lib.postprocess.search import KEEP_NONE, LEVELS, Problem, Scan

# Means enter the smoothing as whole numbers, so that equal neighbourhoods tie exactly.
MEAN_UNIT = 1 << 30


@dataclass(frozen=True)
class Chooser:
    """How the chosen rule is found; the defaults are those of every figure in the project.

    A rule's neighbours lie within `levels` of its top and bottom (of 255) and within
    `area_factor` of its area, on a grid of areas that step by a quarter of an octave. A rule is on
    the plateau when its mean dice is within `standard_errors` of the peak's, but at least `within`.
    """

    levels: int = 12
    area_factor: float = 2.0
    standard_errors: float = 0.5
    within: float = 0.001

    def to_json(self) -> dict[str, float]:
        """The settings as a dict for JSON."""
        return asdict(self)


def area_grid() -> np.ndarray:
    """Areas (G,) int64 in px at 1024², rising by a quarter octave; the last keeps no image."""
    return np.append(np.unique(np.round(2 ** (np.arange(81) / 4)).astype(np.int64)), KEEP_NONE)


def tolerance(chooser: Chooser, peak_dice: np.ndarray) -> float:
    """How far below the peak (dice, 0–1) the plateau reaches.

    Shapes: peak_dice (N,), each image's dice under the peak.
    """
    spread = float(np.std(peak_dice, ddof=1)) if len(peak_dice) > 1 else 0.0
    return max(chooser.within, chooser.standard_errors * spread / len(peak_dice) ** 0.5)


def choose(
    problem: Problem, scan: Scan, chooser: Chooser, peak_score: float, tolerance: float
) -> tuple[int, int, int] | None:
    """(top level, area, bottom level) of the chosen rule; None when only the peak is that good.

    Ties as for the peak: larger area, then higher top, then higher bottom.
    """
    grid = area_grid()
    means = _means(problem, scan)
    floor = int(np.floor((peak_score - tolerance) * MEAN_UNIT))
    on_plateau = scan.valid & (means >= floor)
    if not on_plateau.any():
        return None
    smooth = _neighbourhood_means(means, scan.valid, grid, chooser)
    smooth[~on_plateau] = -1.0
    # The last of equals in the order area, top, bottom.
    flat = smooth.ravel()
    at = flat.size - 1 - int(flat[::-1].argmax())
    area, top, bottom = np.unravel_index(at, smooth.shape)
    return int(top), int(grid[area]), int(bottom)


def extent(problem: Problem, scan: Scan, peak: tuple[int, int, int], floor: float) -> dict:
    """Lowest and highest top level, bottom level and area among rules that score at least `floor`.

    The areas are those of the grid; the peak (top, area, bottom) belongs to it in any case.
    """
    grid = area_grid()
    on_grid = scan.valid & (_means(problem, scan) >= int(np.floor(floor * MEAN_UNIT)))
    somewhere = scan.valid & (problem.mean(scan.best) >= floor)
    tops = np.append(np.flatnonzero(somewhere.any(axis=1)), peak[0])
    bottoms = np.append(np.flatnonzero(somewhere.any(axis=0)), peak[2])
    areas = np.append(grid[on_grid.any(axis=(1, 2))], peak[1])
    return {
        name: (int(values.min()), int(values.max()))
        for name, values in (("top", tops), ("bottom", bottoms), ("min_area_px", areas))
    }


def _means(problem: Problem, scan: Scan) -> np.ndarray:
    """Mean dice (G, 255, 255) on the grid, int64 in MEAN_UNIT; 0 where no rule exists."""
    means = problem.mean(scan.volume)
    means *= MEAN_UNIT
    np.rint(means, out=means)
    return np.where(scan.valid, means, 0.0).astype(np.int64)


def _neighbourhood_means(
    means: np.ndarray, valid: np.ndarray, grid: np.ndarray, chooser: Chooser
) -> np.ndarray:
    """Mean (G, 255, 255) over each rule's neighbours that exist, float64 in MEAN_UNIT."""
    at = np.arange(LEVELS)
    first = np.maximum(at - chooser.levels, 0)
    end = np.minimum(at + chooser.levels, LEVELS - 1) + 1
    area_first = np.searchsorted(grid, grid / chooser.area_factor, side="left")
    area_end = np.searchsorted(grid, grid * chooser.area_factor, side="right")
    total = _window_sums(means, 0, area_first, area_end)
    total = _window_sums(_window_sums(total, 1, first, end), 2, first, end)
    count = _window_sums(_window_sums(valid.astype(np.int64), 0, first, end), 1, first, end)
    return total / (np.maximum(count, 1) * (area_end - area_first)[:, None, None])


def _window_sums(values: np.ndarray, axis: int, first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Sums of `values` from `first` up to `end` (not included) along one axis, in whole numbers."""
    sums = np.cumsum(values, axis=axis)
    sums = np.concatenate([np.zeros_like(np.take(sums, [0], axis=axis)), sums], axis=axis)
    return np.take(sums, end, axis=axis) - np.take(sums, first, axis=axis)
