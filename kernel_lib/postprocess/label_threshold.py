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
from dataclasses import dataclass, replace

import numpy as np

from kernel_lib.postprocess.exhaustive import KEEP_NONE, LEVELS, Problem, n_reaching

NO_GATE = -1  # every label level is above it


@dataclass(frozen=True)
class Box:
    """Rules by their top level, gate and bottom level; first and last of each are included."""

    tops: tuple[int, int]
    gates: tuple[int, int]  # positions among the gates tried
    bottoms: tuple[int, int]

    @property
    def settled(self) -> bool:
        """Whether it holds a single top and gate, so that its bound is a score."""
        return self.tops[0] == self.tops[1] and self.gates[0] == self.gates[1]


def best_gate(problem: Problem, *, single: bool) -> int:
    """Return the lowest gate under which some rule scores best; -1 where all images may pass.

    Scores tie when their means differ by less than 2^-42, as those of rules do.
    """
    sweep = _Sweep(problem, single)
    root = Box((0, LEVELS - 1), (0, len(sweep.gates) - 1), (0, LEVELS - 1))
    heap = list(sweep.promising(root))
    while heap:
        bound, *_, box = heapq.heappop(heap)
        if not sweep.could_win(np.array([-bound]), box.gates[0]).any():
            continue  # a better rule has been found meanwhile
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
        self.gain = problem.gain[order]
        self.area = np.ascontiguousarray(problem.area[order].T)  # (255, P)
        self.empty_area = np.ascontiguousarray(problem.empty_area[empty_order].T)  # (255, E)
        self.by_area = np.argsort(-self.area, axis=1, kind="stable")  # (255, P)
        self.keep_all = _sums_of_first(self.gain)[self.n_pass]  # (G, 255) by an area of 0
        shown = problem.empty_shown[empty_order].astype(np.int32)
        self.keep_all_wrong = _sums_of_first(shown)[self.n_empty_pass]  # (G, 255)
        self.scored = np.zeros(len(self.gates), np.int64)  # keeping no mask gains nothing

    def could_win(self, bounds: np.ndarray, gate: int) -> np.ndarray:
        """Return whether rules of that gate or higher may beat those found, by their bounds.

        A tie counts only if no gate as low is known to be as good.
        """
        floor = self.scored.max() - self.n_images
        return (bounds >= floor) & (bounds > self.scored[: gate + 1].max())

    def halves(self, box: Box) -> tuple[Box, Box]:
        """Return the box cut across its tops or its gates, whichever is wider."""
        first, last = box.gates
        tops = (box.tops[1] - box.tops[0]) / LEVELS
        size = self.n_pass[first : last + 1] / max(len(self.gain), 1)
        size = size + self.n_empty_pass[first : last + 1] / max(self.empty_area.shape[1], 1)
        if first == last or tops > size[0] - size[-1]:
            middle = sum(box.tops) // 2
            return (
                replace(box, tops=(box.tops[0], middle)),
                replace(box, tops=(middle + 1, box.tops[1])),
            )
        # By images, not by levels: labels crowd at both ends.
        below = np.count_nonzero(size > (size[0] + size[-1]) / 2)
        middle = first + min(max(below, 1), last - first) - 1
        return replace(box, gates=(first, middle)), replace(box, gates=(middle + 1, last))

    def promising(self, box: Box) -> list[tuple]:
        """Return the box, narrowed to bottoms that could win, as a heap entry; [] without any."""
        least = box.bottoms[0] if not self.single else max(box.bottoms[0], box.tops[0])
        bottoms = np.arange(least, min(box.bottoms[1], box.tops[1]) + 1)
        if not len(bottoms):
            return []
        bounds, areas = self._bounds(box, bottoms)
        at = int(bounds.argmax())
        if box.settled:
            gate = box.gates[0]
            self.scored[gate] = max(self.scored[gate], bounds[at])
            return []
        if not self.could_win(bounds, box.gates[0]).any():
            return []
        # The rule behind the bound, scored under all gates, is often nearly the best.
        top = int(bottoms[at]) if self.single else max(box.tops[0], int(bottoms[at]))
        scores = self._scores(top, int(areas[at]), int(bottoms[at]))
        self.scored = np.maximum(self.scored, scores)
        alive = bottoms[self.could_win(bounds, box.gates[0])]
        if not len(alive):
            return []
        box = replace(box, bottoms=(int(alive[0]), int(alive[-1])))
        # Boxes of the heap are apart, so that no two entries compare equal before the box.
        return [(-int(bounds[at]), box.gates, box.tops, box)]

    def _bounds(self, box: Box, bottoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the upper bound (B,) for each bottom, and the area (B,) behind it."""
        top, gate = box.tops[0], box.gates[0]
        columns = slice(int(bottoms[0]), int(bottoms[-1]) + 1)
        order = self.by_area[top]
        order = order[order < self.n_pass[gate]]
        falling = self.area[top, order]
        falling = falling[: np.count_nonzero(falling)]
        sums = self.gain[order[: len(falling)], columns].cumsum(axis=0)
        wrong = self.empty_area[box.tops[1], : self.n_empty_pass[box.gates[1]]]
        # Inside a tie of areas a sum lacks some gains, so that its end is never below it.
        sums -= self.unit * n_reaching(wrong, falling)[:, None]
        keep_all = self.keep_all[gate, columns]
        keep_all = keep_all - self.unit * self.keep_all_wrong[box.gates[1], columns].astype(int)
        sums = np.concatenate([np.zeros((1, len(bottoms)), np.int64), sums, keep_all[None]])
        at = sums.argmax(axis=0)
        areas = np.concatenate([[KEEP_NONE], falling, [0]])
        return sums[at, np.arange(len(bottoms))], areas[at]

    def _scores(self, top: int, area: int, bottom: int) -> np.ndarray:
        """Return what a rule gains under each gate (G,)."""
        if area == 0:
            return self.keep_all[:, bottom] - self.unit * self.keep_all_wrong[:, bottom].astype(int)
        kept = np.where(self.area[top] >= area, self.gain[:, bottom], 0)
        wrong = (self.empty_area[top] >= area).astype(np.int64)
        lost = self.unit * _sums_of_first(wrong)[self.n_empty_pass]
        return _sums_of_first(kept)[self.n_pass] - lost


def _sums_of_first(values: np.ndarray) -> np.ndarray:
    """Return the sums (N + 1, …) of the first 0…N rows."""
    sums = np.zeros((len(values) + 1, *values.shape[1:]), dtype=values.dtype)
    np.cumsum(values, axis=0, out=sums[1:])
    return sums
