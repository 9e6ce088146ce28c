"""Exhaustive search: the sum of dice over images for all (top, area, bottom), exactly.

An image's dice under a rule depends on two things only: whether its area at `top` reaches the
minimum, and its dice at `bottom` if so. So the images are sorted by their area at each `top`, and a
prefix sum of what each gains by keeping its mask gives every minimum area and every `bottom` at
once. Gains are integers (multiples of 2^-44): sums do not depend on the images' order, and equal
means compare equal.

The label threshold of the best rule is found by branch and bound, as exactly. A gate is a level:
images whose label level is above it pass. Boxes of tops and gates are bounded from above and
halved, the most promising first, until none is left that could hold a better rule, or one as good
with a lower gate. The bound counts, of the images whose truth has a mask, those that pass the
lowest gate of the box, with their areas at its lowest top; of the others only those that pass its
highest gate, with areas at its highest top. No rule of the box keeps more of the former, which can
only gain, or fewer of the latter, which can only lose. An exhaustive search for each gate finds the
same, in 80 times the time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from kernel_lib.postprocess.units import FULL_AREA

LEVELS = 255  # thresholds halfway between the 256 levels of a uint8 map
KEEP_NONE = FULL_AREA + 1  # the least area that no image reaches
NO_GATE = -1  # every label level is above it
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
    wrong = n_reaching(problem.empty_area[:, top], area_grid)
    return padded[n_reaching(ends, area_grid)] - problem.unit * wrong[:, None]


class _Box(NamedTuple):
    """Rules by their gate, top level and bottom level; first and last of each are included."""

    gates: tuple[int, int]  # positions among the gates tried
    tops: tuple[int, int]
    bottoms: tuple[int, int]


def best_gate(problem: Problem, *, single: bool) -> int:
    """Return the lowest gate under which some rule scores best; -1 where all images may pass.

    Scores tie when their means differ by less than 2^-42, as those of rules do.
    """
    boxes = _Boxes(problem, single)
    boxes.add(_Box((0, len(boxes.gates) - 1), (0, LEVELS - 1), (0, LEVELS - 1)))
    while boxes.heap:
        bound, box = heapq.heappop(boxes.heap)
        if boxes.could_win(-bound, box):  # else a better rule was found meanwhile
            for half in boxes.halves(box):
                boxes.add(half)
    as_good = boxes.scored >= boxes.scored.max() - problem.n_images
    return int(boxes.gates[as_good.argmax()])


class _Boxes:
    """The boxes left to halve, and the best score so far under each gate."""

    def __init__(self, problem: Problem, single: bool) -> None:
        self.single, self.unit, self.n_images = single, problem.unit, problem.n_images
        labels = np.concatenate([problem.label, problem.empty_label])
        # The highest level leaves out every image, as the largest area does without a gate.
        self.gates = np.concatenate([[NO_GATE], np.unique(labels)[:-1]])
        # Highest label first: the images that pass a gate are the first `n_pass`.
        order = np.argsort(-problem.label, kind="stable")
        empty_order = np.argsort(-problem.empty_label, kind="stable")
        self.n_pass = n_reaching(problem.label, self.gates + 1)
        self.n_empty_pass = n_reaching(problem.empty_label, self.gates + 1)
        self.gain = problem.gain[order]
        self.area = np.ascontiguousarray(problem.area[order].T)  # (255, P)
        self.empty_area = np.ascontiguousarray(problem.empty_area[empty_order].T)  # (255, E)
        self.by_area = np.argsort(-self.area, axis=1, kind="stable")  # (255, P)
        # Keeping no mask gains nothing; an area of 0 keeps all, whatever the top.
        kept = sums_of_first(self.gain)[self.n_pass]
        wrong = sums_of_first(problem.empty_shown[empty_order])[self.n_empty_pass]
        self.scored = (kept - self.unit * wrong).max(axis=1).clip(min=0)  # (G,)
        self.heap: list[tuple[int, _Box]] = []  # most promising first: minus the bound, and the box

    def add(self, box: _Box) -> None:
        """Bound a box from above, score the rule behind the bound, and keep it if it could win."""
        (gate, last), (top, highest), (low, high) = box
        low, high = max(low, top) if self.single else low, min(high, highest)
        order = self.by_area[top]
        order = order[order < self.n_pass[gate]]
        falling = self.area[top, order]
        falling = falling[: np.count_nonzero(falling)]
        if low > high or not len(falling):
            return
        # Inside a tie of areas a sum lacks some gains, so that its end is never below it.
        sums = self.gain[order[: len(falling)], low : high + 1].cumsum(axis=0)
        wrong = self.empty_area[highest, : self.n_empty_pass[last]]
        sums -= self.unit * n_reaching(wrong, falling)[:, None]
        bounds = sums.max(axis=0)
        at = int(bounds.argmax())
        # The rule behind the bound is often nearly the best, under whichever gate. Where the box
        # holds a single top and gate, the bound is its score.
        rule = max(top, low + at), int(falling[sums[:, at].argmax()]), low + at
        self.scored = np.maximum(self.scored, self._scores(*rule))
        alive = np.flatnonzero(self.could_win(bounds, box))
        if len(alive) and (gate, top) != (last, highest):
            narrowed = box._replace(bottoms=(low + int(alive[0]), low + int(alive[-1])))
            heapq.heappush(self.heap, (-int(bounds[at]), narrowed))

    def could_win(self, bounds: np.ndarray | int, box: _Box) -> np.ndarray:
        """Return whether rules of a box may beat those found, by their bounds.

        A tie counts only if no gate as low is known to be as good.
        """
        floor = self.scored.max() - self.n_images
        return (bounds >= floor) & (bounds > self.scored[: box.gates[0] + 1].max())

    def halves(self, box: _Box) -> tuple[_Box, _Box]:
        """Return the box cut across its tops or its gates, whichever is wider."""
        (first, last), (top, highest), _ = box
        if (highest - top) * len(self.gates) >= (last - first) * LEVELS:
            middle = (top + highest) // 2
            return box._replace(tops=(top, middle)), box._replace(tops=(middle + 1, highest))
        middle = (first + last) // 2
        return box._replace(gates=(first, middle)), box._replace(gates=(middle + 1, last))

    def _scores(self, top: int, area: int, bottom: int) -> np.ndarray:
        """Return what a rule gains under each gate (G,)."""
        kept = np.where(self.area[top] >= area, self.gain[:, bottom], 0)
        wrong = sums_of_first(self.empty_area[top] >= area)[self.n_empty_pass]
        return sums_of_first(kept)[self.n_pass] - self.unit * wrong


def sums_of_first(values: np.ndarray) -> np.ndarray:
    """Return the sums (N + 1, …) int64 of the first 0…N rows."""
    sums = np.zeros((len(values) + 1, *values.shape[1:]), dtype=np.int64)
    np.cumsum(values, axis=0, out=sums[1:])
    return sums
