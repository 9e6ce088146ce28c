"""Branch and bound for the label threshold of the best rule, exactly.

A gate is a level: images whose label level is above it pass. Boxes of tops and gates are bounded
from above and halved, the most promising first, until none is left that could hold a better rule,
or one as good with a lower gate. The bound counts, of the images whose truth has a mask, those that
pass the lowest gate of the box, with their areas at its lowest top; of those whose truth is empty
only those that pass its highest gate, with areas at its highest top. No rule of the box keeps more
of the former, which can only gain, or fewer of the latter, which can only lose.

Raising a gate over images whose truth is empty never hurts: each scores 1 left out, and at most 1
otherwise. So a gate matters only right below the label of an image with a mask. These need no list:
if no such label lies between the gates of a box, its bound is exactly the score of its highest
gate, and the box is halved further only to see whether a lower gate does as well.

A plain grid, one exhaustive search for each gate, gives the same gate but takes 80 times as long:
373 s instead of 4.7 s for 236 gates of 10,675 images (labels of AUC 0.92 as in
`tools.benchmarks.thresholds`, one thread).
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

from kernel_lib.postprocess.exhaustive import KEEP_NONE, LEVELS, Problem, n_reaching

NO_GATE = -1  # every label level is above it


class Box(NamedTuple):
    """Rules by their gate, top level and bottom level; first and last of each are included."""

    gates: tuple[int, int]  # positions among the gates tried
    tops: tuple[int, int]
    bottoms: tuple[int, int]


def best_gate(problem: Problem, *, single: bool) -> int:
    """Return the lowest gate under which some rule scores best; -1 where all images may pass.

    Scores tie when their means differ by less than 2^-42, as those of rules do.
    """
    sweep = _Sweep(problem, single)
    heap = sweep.promising(Box((0, len(sweep.gates) - 1), (0, LEVELS - 1), (0, LEVELS - 1)))
    while heap:
        bound, box = heapq.heappop(heap)
        if sweep.could_win(np.array([-bound]), box):  # else a better rule was found meanwhile
            for half in sweep.halves(box):
                for entry in sweep.promising(half):
                    heapq.heappush(heap, entry)
    as_good = sweep.scored >= sweep.scored.max() - problem.n_images
    return int(sweep.gates[as_good.argmax()])


class _Sweep:
    """The problem sorted by label, and the best score so far under each gate."""

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
        self.share = self.n_pass / max(len(order), 1) + self.n_empty_pass / max(len(empty_order), 1)
        self.gain = problem.gain[order]
        self.area = np.ascontiguousarray(problem.area[order].T)  # (255, P)
        self.empty_area = np.ascontiguousarray(problem.empty_area[empty_order].T)  # (255, E)
        self.by_area = np.argsort(-self.area, axis=1, kind="stable")  # (255, P)
        # What an area of 0 gains and loses, (G, 255).
        self.gain_all = _sums_of_first(self.gain)[self.n_pass]
        shown = problem.empty_shown[empty_order].astype(np.int32)
        self.loss_all = self.unit * _sums_of_first(shown)[self.n_empty_pass].astype(np.int64)
        self.scored = np.zeros(len(self.gates), np.int64)  # keeping no mask gains nothing

    def could_win(self, bounds: np.ndarray, box: Box) -> np.ndarray:
        """Return whether rules of a box may beat those found, by their bounds.

        A tie counts only if no gate as low is known to be as good.
        """
        floor = self.scored.max() - self.n_images
        return (bounds >= floor) & (bounds > self.scored[: box.gates[0] + 1].max())

    def halves(self, box: Box) -> tuple[Box, Box]:
        """Return the box cut across its tops or its gates, whichever is wider."""
        (lowest, highest), (first, last) = box.tops, box.gates
        share = self.share[first : last + 1]
        if first == last or (highest - lowest) / LEVELS > share[0] - share[-1]:
            middle = (lowest + highest) // 2
            return box._replace(tops=(lowest, middle)), box._replace(tops=(middle + 1, highest))
        # By images, not by levels: labels crowd at both ends.
        below = np.count_nonzero(share > (share[0] + share[-1]) / 2)
        middle = first + min(max(below, 1), last - first) - 1
        return box._replace(gates=(first, middle)), box._replace(gates=(middle + 1, last))

    def promising(self, box: Box) -> list[tuple[int, Box]]:
        """Return [(-bound, the box narrowed to bottoms that could win)], or [] without any."""
        least = max(box.bottoms[0], box.tops[0]) if self.single else box.bottoms[0]
        bottoms = np.arange(least, min(box.bottoms[1], box.tops[1]) + 1)
        if not len(bottoms):
            return []
        bounds, areas = self._bounds(box, bottoms)
        # The rule behind the bound is often nearly the best, under whichever gate. Where the box
        # holds a single top and gate, the bound is its score.
        at = int(bounds.argmax())
        bottom = int(bottoms[at])
        scores = self._scores(max(box.tops[0], bottom), int(areas[at]), bottom)
        self.scored = np.maximum(self.scored, scores)
        alive = bottoms[self.could_win(bounds, box)]
        if not len(alive) or (box.tops[0] == box.tops[1] and box.gates[0] == box.gates[1]):
            return []
        return [(-int(bounds[at]), box._replace(bottoms=(int(alive[0]), int(alive[-1]))))]

    def _bounds(self, box: Box, bottoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the upper bound (B,) for each bottom, and the area (B,) behind it."""
        (top, highest), (gate, last) = box.tops, box.gates
        columns = slice(int(bottoms[0]), int(bottoms[-1]) + 1)
        order = self.by_area[top]
        order = order[order < self.n_pass[gate]]
        falling = self.area[top, order]
        falling = falling[: np.count_nonzero(falling)]
        sums = self.gain[order[: len(falling)], columns].cumsum(axis=0)
        # Inside a tie of areas a sum lacks some gains, so that its end is never below it.
        wrong = self.empty_area[highest, : self.n_empty_pass[last]]
        sums -= self.unit * n_reaching(wrong, falling)[:, None]
        keep_all = self.gain_all[gate, columns] - self.loss_all[last, columns]
        sums = np.concatenate([np.zeros((1, len(bottoms)), np.int64), sums, keep_all[None]])
        at = sums.argmax(axis=0)
        areas = np.concatenate([[KEEP_NONE], falling, [0]])
        return sums[at, np.arange(len(bottoms))], areas[at]

    def _scores(self, top: int, area: int, bottom: int) -> np.ndarray:
        """Return what a rule gains under each gate (G,)."""
        if area == 0:
            return self.gain_all[:, bottom] - self.loss_all[:, bottom]
        kept = np.where(self.area[top] >= area, self.gain[:, bottom], 0)
        wrong = (self.empty_area[top] >= area).astype(np.int64)
        lost = self.unit * _sums_of_first(wrong)[self.n_empty_pass]
        return _sums_of_first(kept)[self.n_pass] - lost


def _sums_of_first(values: np.ndarray) -> np.ndarray:
    """Return the sums (N + 1, …) of the first 0…N rows."""
    sums = np.zeros((len(values) + 1, *values.shape[1:]), dtype=values.dtype)
    np.cumsum(values, axis=0, out=sums[1:])
    return sums
