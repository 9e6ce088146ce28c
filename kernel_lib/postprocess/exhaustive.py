"""Exhaustive search: the sum of dice over images for all (top, area, bottom), exactly.

An image's dice under a rule depends on two things only: whether its area at `top` reaches the
minimum, and its dice at `bottom` if so. So the images are sorted by their area at each `top`, and a
prefix sum of what each gains by keeping its mask gives every minimum area and every `bottom` at
once. Gains are integers (multiples of 2^-44): sums do not depend on the images' order, and equal
means compare equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from kernel_lib.postprocess.units import FULL_AREA

LEVELS = 255  # thresholds halfway between the 256 levels of a uint8 map
KEEP_NONE = FULL_AREA + 1  # the least area that no image reaches
GAIN_BITS = 44  # 2^44 · 262,144 images stay below 2^62


@dataclass(frozen=True)
class Problem:
    """What the search needs of the images; rows are images, columns the 255 thresholds.

    Images that a gate leaves out have no row but stay in `n_images` and `n_empty`: their masks are
    empty under every rule.
    """

    area: np.ndarray  # (P, 255) int64 areas at 1024², of images whose truth has a mask
    gain: np.ndarray  # (P, 255) int64 dice of those when kept, in units (not kept it is 0)
    label: np.ndarray  # (P,) int16 label levels of those, -1 = none
    empty_area: np.ndarray  # (E, 255) int64 areas at 1024², of images whose truth is empty
    empty_shown: np.ndarray  # (E, 255) bool whether those exceed the threshold anywhere
    empty_label: np.ndarray  # (E,) int16
    unit: int  # this many units are a dice of 1
    n_images: int
    n_empty: int  # of those, images whose truth is empty

    def passing(self, gate: int) -> Problem:
        """Return the problem of rules that leave out images whose label is not above `gate`."""
        has_mask, empty = self.label > gate, self.empty_label > gate
        return replace(
            self,
            area=self.area[has_mask],
            gain=self.gain[has_mask],
            label=self.label[has_mask],
            empty_area=self.empty_area[empty],
            empty_shown=self.empty_shown[empty],
            empty_label=self.empty_label[empty],
        )

    def mean(self, gained: np.ndarray | int) -> np.ndarray:
        """Return the mean dice (0–1) from the sum of gains over predicting nothing anywhere."""
        return (gained + self.n_empty * self.unit) / (self.n_images * self.unit)


@dataclass(frozen=True)
class Scan:
    """The best rule of each (top, bottom), and all sums over a grid of areas."""

    best: np.ndarray  # (255, 255) int64 [top, bottom] largest sum of gains
    best_area: np.ndarray  # (255, 255) int64 the largest area that reaches it
    valid: np.ndarray  # (255, 255) bool where a rule exists
    # (G, 255, B) int64 [area, top, bottom] sums on the grid of areas, and (255, B) where a rule
    # exists; B is 255, or 1 where top == bottom.
    volume: np.ndarray
    volume_valid: np.ndarray


def unit_for(n_images: int) -> int:
    """Return the units in a dice of 1 such that sums over the images fit into 63 bits."""
    return 1 << min(GAIN_BITS, 62 - int(n_images).bit_length())


def scan(problem: Problem, area_grid: np.ndarray, *, single: bool, tops: Iterable[int]) -> Scan:
    """Return the sums of gains of every rule; `tops` is 0…254, in a progress bar or not.

    Shapes: area_grid (G,) int64 ascending, for the volume only: the best is over all areas.
    """
    shape = (LEVELS, LEVELS)
    best, best_area = np.zeros(shape, np.int64), np.full(shape, KEEP_NONE, np.int64)
    volume = np.zeros((len(area_grid), LEVELS, 1 if single else LEVELS), np.int64)
    # An area of 0 keeps every image whatever the top, even one with nothing above it.
    wrong = np.count_nonzero(problem.empty_shown, axis=0)
    keep_all = problem.gain.sum(axis=0) - problem.unit * wrong
    for top in tops:
        bottoms = slice(top, top + 1) if single else slice(0, top + 1)
        ends, sums = _sums_at(problem, top, bottoms)
        # The first row keeps none, the last keeps all; between them the areas fall.
        candidates = np.concatenate([[KEEP_NONE], ends, [0]])
        rows = np.zeros((len(candidates), sums.shape[1]), np.int64)
        rows[1:-1], rows[-1] = sums, keep_all[bottoms]
        rows[1:-1] -= problem.unit * n_reaching(problem.empty_area[:, top], ends)[:, None]
        best[top, bottoms] = rows.max(axis=0)
        # Equal means may differ by half a unit an image; the first that is as good has most area.
        as_good = rows >= best[top, bottoms] - problem.n_images
        best_area[top, bottoms] = candidates[as_good.argmax(axis=0)]
        volume[:, top, : sums.shape[1]] = _on_grid(problem, top, ends, sums, area_grid)
    valid = np.eye(LEVELS, dtype=bool) if single else np.tri(LEVELS, dtype=bool)
    volume_valid = np.ones((LEVELS, 1), dtype=bool) if single else valid
    return Scan(best, best_area, valid, volume, volume_valid)


def peak(scan: Scan, n_images: int) -> tuple[int, int, int]:
    """Return (top level, area, bottom level) of the best rule.

    Rules tie when their mean dice differ by less than 2^-42, where equal fractions may be rounded;
    then the larger area wins, then the higher top, then the higher bottom.
    """
    largest = scan.best[scan.valid].max()
    tops, bottoms = np.nonzero(scan.valid & (scan.best >= largest - n_images))
    areas = scan.best_area[tops, bottoms]
    at = np.lexsort((bottoms, tops, areas))[-1]
    return int(tops[at]), int(areas[at]), int(bottoms[at])


def n_reaching(areas: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Return how many of the areas reach each minimum."""
    return len(areas) - np.searchsorted(np.sort(areas), minima, side="left")


def _sums_at(problem: Problem, top: int, bottoms: slice) -> tuple[np.ndarray, np.ndarray]:
    """Return areas (K,) to try at a top, falling, and the gains (K, bottoms) of reaching images.

    Only areas of images with a mask are candidates: between two of them a smaller minimum keeps
    nothing more but images whose truth is empty.
    """
    area = problem.area[:, top]
    order = np.argsort(-area, kind="stable")[: np.count_nonzero(area)]
    falling = area[order]
    sums = problem.gain[:, bottoms][order].cumsum(axis=0)
    last_of_tie = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)[: len(falling)])
    return falling[last_of_tie], sums[last_of_tie]


def _on_grid(
    problem: Problem, top: int, ends: np.ndarray, sums: np.ndarray, area_grid: np.ndarray
) -> np.ndarray:
    """Return the sums (G, bottoms) of one top at the areas of the grid."""
    padded = np.concatenate([np.zeros((1, sums.shape[1]), np.int64), sums])
    reached = len(ends) - np.searchsorted(ends[::-1], area_grid, side="left")
    wrong = n_reaching(problem.empty_area[:, top], area_grid)
    return padded[reached] - problem.unit * wrong[:, None]
