"""The choice of a rule from the plateau around the peak.

The peak of a searched surface owes part of its height to chance, which its neighbours do not share.
Of the rules nearly as good as the peak, the one whose neighbours score best on average is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernel_lib.postprocess.exhaustive import KEEP_NONE, LEVELS, Problem, Scan, sums_of_first

# Means are smoothed as integers, so that equal neighbourhoods tie exactly.
MEAN_UNIT = 1 << 30


@dataclass(frozen=True)
class Chooser:
    """Settings of the choice; the defaults are those of every figure in the project.

    A rule's neighbours lie within `levels` of its top and bottom (of 255) and within
    `area_factor` of its area, on the areas of `area_grid`. A rule is on the plateau when its mean
    dice lies below the peak's by no more than `standard_errors` of the peak's standard error, or
    `within`, whichever is more.
    """

    levels: int = 8
    area_factor: float = 2.0
    standard_errors: float = 0.5
    within: float = 0.001


def area_grid() -> np.ndarray:
    """Return areas (G,) int64 in px at 1024², rising by a quarter octave; the last keeps no image.

    Below 64 px, which no lesion is, they rise by whole octaves.
    """
    small, large = 2 ** np.arange(6), np.round(2 ** (np.arange(24, 81) / 4)).astype(np.int64)
    return np.concatenate([small, large, [KEEP_NONE]])


def tolerance(chooser: Chooser, peak_dice: np.ndarray) -> float:
    """Return how far below the peak (dice, 0–1) the plateau reaches.

    Shapes: peak_dice (N,), each image's dice under the peak.
    """
    # Sorted, so that the images' order does not change the last digit.
    spread = float(np.std(np.sort(peak_dice), ddof=1)) if len(peak_dice) > 1 else 0.0
    return max(chooser.within, chooser.standard_errors * spread / len(peak_dice) ** 0.5)


def choose(
    means: np.ndarray, valid: np.ndarray, chooser: Chooser, floor: float
) -> tuple[int, int, int] | None:
    """Return (top level, area, bottom level) of the chosen rule; None if only the peak qualifies.

    Rules that score less than `floor` (mean dice, 0–1) are not on the plateau. Ties as for the
    peak: larger area, then higher top, then higher bottom.

    Shapes: means (G, 255, B) of `grid_means`, valid (255, B) bool; B is 1 where top == bottom.
    """
    grid = area_grid()
    on_plateau = valid & (means >= int(np.floor(floor * MEAN_UNIT)))
    if not on_plateau.any():
        return None
    # Only the box around the plateau is smoothed, which is often a small part of all rules.
    places = [np.flatnonzero(on_plateau.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(at[0], at[-1] + 1) for at in places)
    smooth = _neighbourhood_means(means, valid, grid, chooser, box)
    smooth[~on_plateau[box]] = -1.0
    last_of_equals = np.flatnonzero(smooth == smooth.max())[-1]
    at = np.unravel_index(last_of_equals, smooth.shape)
    area, top, bottom = (axis.start + int(i) for axis, i in zip(box, at, strict=True))
    return top, int(grid[area]), top if means.shape[2] == 1 else bottom


def extent(
    means: np.ndarray,
    valid: np.ndarray,
    surface: np.ndarray,
    peak: tuple[int, int, int],
    floor: float,
) -> dict[str, tuple[int, int]]:
    """Return the lowest and highest top level, bottom level and area of rules that reach `floor`.

    The areas are those of the grid; the peak (top, area, bottom) is included in any case.

    Shapes: means (G, 255, B) of `grid_means`, valid (255, B), surface (255, 255) mean dice, nan =
    no rule.
    """
    reached = surface >= floor  # nan never is
    on_grid = means >= int(np.floor(floor * MEAN_UNIT))
    areas = area_grid()[(on_grid & valid).any(axis=(1, 2))]
    values = {
        "top": np.append(np.flatnonzero(reached.any(axis=1)), peak[0]),
        "bottom": np.append(np.flatnonzero(reached.any(axis=0)), peak[2]),
        "min_area_px": np.append(areas, peak[1]),
    }
    return {name: (int(each.min()), int(each.max())) for name, each in values.items()}


def grid_means(problem: Problem, scan: Scan) -> np.ndarray:
    """Return the mean dice (G, 255, B) on the grid, int64 in MEAN_UNIT; 0 where no rule exists."""
    means = problem.mean(scan.volume)
    means *= MEAN_UNIT
    np.rint(means, out=means)
    means[:, ~scan.volume_valid] = 0
    return means.astype(np.int64)


def _neighbourhood_means(
    means: np.ndarray,
    valid: np.ndarray,
    grid: np.ndarray,
    chooser: Chooser,
    box: tuple[slice, slice, slice],
) -> np.ndarray:
    """Return the mean over the neighbours that exist of each rule in a box, in MEAN_UNIT.

    Shapes: means (G, 255, B), valid (255, B), the result that of the box, float64.
    """
    at = np.arange(LEVELS)
    near = np.maximum(at - chooser.levels, 0), np.minimum(at + chooser.levels + 1, LEVELS)
    ends = (
        (
            np.searchsorted(grid, grid / chooser.area_factor, side="left"),
            np.searchsorted(grid, grid * chooser.area_factor, side="right"),
        ),
        near,
        near if means.shape[2] > 1 else (np.array([0]), np.array([1])),
    )
    windows = [(first[inside], end[inside]) for (first, end), inside in zip(ends, box, strict=True)]
    reach = tuple(slice(first[0], end[-1]) for first, end in windows)
    windows = [(first - first[0], end - first[0]) for first, end in windows]
    total, count = means[reach], valid[reach[1:]].astype(np.int64)
    for axis, (first, end) in enumerate(windows):
        total = _window_sums(total, axis, first, end)
        if axis:
            count = _window_sums(count, axis - 1, first, end)
    n_areas = windows[0][1] - windows[0][0]
    return total / (np.maximum(count, 1) * n_areas[:, None, None])


def _window_sums(values: np.ndarray, axis: int, first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the sums of `values` from `first` up to `end` (not included) along an axis."""
    sums = sums_of_first(np.moveaxis(values, axis, 0))
    return np.moveaxis(sums[end] - sums[first], 0, axis)
