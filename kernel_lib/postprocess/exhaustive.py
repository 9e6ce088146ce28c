"""Exhaustive search: the sum of dice over images for all (top, area, bottom), exactly.

An image's dice under a rule depends on two things only: whether its area at `top` reaches the
minimum, and its dice at `bottom` if so. So the images are sorted by their area at each `top`, and a
prefix sum of what each gains by keeping its mask gives every minimum area and every `bottom` at
once. Gains are integers (multiples of 2^-44): sums do not depend on the images' order, and equal
means compare equal.

Where only the best rule is wanted, or its label threshold, it is found by branch and bound, as
exactly. A gate is a level: images whose label level is above it pass. Boxes of gates, tops, bottoms
and areas are bounded from above and cut, the most promising first, until none is left that could
hold a better rule, or one as good that wins the tie. The bound counts, of the images whose truth
has a mask, those that pass the lowest gate of the box, with their areas at its lowest top, and the
largest gain over a block of neighbouring bottoms; of the others only those that pass its highest
gate, with areas at its highest top. No rule of the box keeps more of the former, which can only
gain, or fewer of the latter, which can only lose. A box is cut across its gates or its tops,
wherever the bound gives more away.
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
WIDEST, FINER = 3, 32  # blocks of bottoms in a bound: the first level, and when it falls
GAIN_BITS = 44  # 2^44 · 262,144 images stay below 2^62


@dataclass(frozen=True)
class Problem:
    """What the search needs of N images, P whose truth has a mask and E whose truth is empty.

    Images that a gate leaves out are in neither but stay in `n_images` and `n_empty`: their masks
    are empty under every rule.
    """

    above: np.ndarray  # (255, N) int64 pixels above each threshold, of all images
    n_px: np.ndarray  # (N,) int64 pixels of all images
    has_mask: np.ndarray  # (P,) indices of images whose truth has a mask
    area: np.ndarray  # (255, P) int64 areas at 1024² above each threshold
    gain: np.ndarray  # (255, P) int64 dice when kept, in units (not kept it is 0)
    label: np.ndarray  # (P,) int16 label levels, -1 = none
    empty: np.ndarray  # (E,) indices of images whose truth is empty
    empty_label: np.ndarray  # (E,) int16
    unit: int  # this many units are a dice of 1
    n_images: int
    n_empty: int  # of those, images whose truth is empty

    def passing(self, gate: int) -> Problem:
        """Return the problem of rules that leave out images whose label is not above `gate`."""
        has_mask, empty = self.label > gate, self.empty_label > gate
        return replace(
            self,
            has_mask=self.has_mask[has_mask],
            area=self.area[:, has_mask],
            gain=self.gain[:, has_mask],
            label=self.label[has_mask],
            empty=self.empty[empty],
            empty_label=self.empty_label[empty],
        )

    def empty_area(self, top: int) -> np.ndarray:
        """Return the areas (E,) int64 at 1024² above a threshold, of images whose truth is empty.

        Made when asked for: a search for the best rule needs few of the 255.
        """
        return area_at_1024(self.above[top].take(self.empty), self.n_px.take(self.empty))

    def n_shown(self) -> np.ndarray:
        """Return how many thresholds (E,), from the lowest, images of empty truth exceed anywhere.

        By bisection: the pixels above a threshold fall as it rises.
        """
        shown = np.zeros(len(self.empty), np.int64)
        for step in 2 ** np.arange(7, -1, -1):
            shown += step * (self.above[shown + step - 1, self.empty] > 0)
        return shown

    def keep_all(self) -> np.ndarray:
        """Return the sums (255,) by bottom where the area is 0, which keeps all at any top."""
        wrong = len(self.empty) - np.bincount(self.n_shown(), minlength=LEVELS + 1).cumsum()
        return self.gain.sum(axis=1) - self.unit * wrong[:LEVELS]

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


def area_at_1024(above: np.ndarray, n_px: np.ndarray) -> np.ndarray:
    """Return areas (…, N) in px at 1024² from pixels (…, N) of images (N,) of so many pixels."""
    return above if (n_px == FULL_AREA).all() else above * FULL_AREA // n_px


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
    keep_all = problem.keep_all()
    for top in tops:
        bottoms = slice(top, top + 1) if single else slice(0, top + 1)
        empty = np.sort(problem.empty_area(top))
        areas, sums = _sums_at(problem, top, bottoms)
        volume[:, top, : len(sums)] = _on_grid(problem.unit, empty, areas, sums, area_grid).T
        found = _best_at(problem, empty, areas, sums, keep_all[bottoms])
        best[top, bottoms], best_area[top, bottoms] = found
    valid = np.eye(LEVELS, dtype=bool) if single else np.tri(LEVELS, dtype=bool)
    volume_valid = np.ones((LEVELS, 1), dtype=bool) if single else valid
    return Scan(best, best_area, valid, volume, volume_valid)


def peak(scan: Scan, n_images: int) -> tuple[int, int, int]:
    """Return (top level, area, bottom level) of the best rule.

    Rules tie when their mean dice differ by less than 2^-42, where equal fractions may be rounded;
    then the larger area wins, then the higher top, then the higher bottom.
    """
    tops, bottoms = np.nonzero(scan.valid)
    return _peak_of(tops, bottoms, scan.best[scan.valid], scan.best_area[scan.valid], n_images)


def _peak_of(
    tops: np.ndarray, bottoms: np.ndarray, best: np.ndarray, best_area: np.ndarray, n_images: int
) -> tuple[int, int, int]:
    as_good = np.flatnonzero(best >= best.max() - n_images)
    order = np.lexsort((bottoms[as_good], tops[as_good], best_area[as_good]))
    at = as_good[order[-1]]
    return int(tops[at]), int(best_area[at]), int(bottoms[at])


def n_reaching(areas: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Return how many of the areas reach each minimum."""
    return _n_reaching(np.sort(areas), minima)


def _n_reaching(rising: np.ndarray, minima: np.ndarray) -> np.ndarray:
    return len(rising) - np.searchsorted(rising, minima, side="left")


def _sums_at(problem: Problem, top: int, bottoms: slice) -> tuple[np.ndarray, np.ndarray]:
    """Return areas (K,) to try at a top, falling, and the gains (bottoms, K) of the first images.

    Only areas of images with a mask are candidates: between two of them a smaller minimum keeps
    nothing more but images whose truth is empty. Inside a tie of areas a sum lacks some gains, so
    that its end is never below it.
    """
    area = problem.area[top]
    order = np.argsort(-area)[: np.count_nonzero(area)]
    return area[order], problem.gain[bottoms].take(order, axis=1).cumsum(axis=1)


def _best_at(
    problem: Problem, empty: np.ndarray, areas: np.ndarray, sums: np.ndarray, keep_all: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best sums (B,) at a top by bottom, and the largest areas (B,) that reach them.

    Shapes: empty (E,) rising areas at this top, areas (K,) and sums (B, K) of `_sums_at`, which
    are changed; keep_all (B,).
    """
    sums -= problem.unit * _n_reaching(empty, areas)
    best = np.maximum(sums.max(axis=1, initial=0), keep_all)
    # Equal means may differ by half a unit an image; the first that is as good has most area.
    floor = best - problem.n_images
    as_good = sums >= floor[:, None]
    first = areas[as_good.argmax(axis=1)] if len(areas) else np.zeros(len(best), np.int64)
    first = np.where(as_good.any(axis=1), first, 0)
    return best, np.where(floor <= 0, KEEP_NONE, first)


def _on_grid(
    unit: int, empty: np.ndarray, areas: np.ndarray, sums: np.ndarray, area_grid: np.ndarray
) -> np.ndarray:
    """Return the sums (bottoms, G) of one top at the areas of the grid."""
    padded = np.concatenate([np.zeros((len(sums), 1), np.int64), sums], axis=1)
    return padded[:, _n_reaching(areas[::-1], area_grid)] - unit * _n_reaching(empty, area_grid)


class _Box(NamedTuple):
    """Rules by gate, top level, bottom level and area; first and last of each are included."""

    gates: tuple[int, int]  # positions among the gates tried
    tops: tuple[int, int]
    bottoms: tuple[int, int]
    areas: tuple[int, int]
    level: int  # blocks of 2^level bottoms share a bound
    across_gates: bool = False  # how to cut it: across its gates or its tops


def best_gate(problem: Problem, *, single: bool) -> int:
    """Return the lowest gate under which some rule scores best; -1 where all images may pass.

    Scores tie when their means differ by less than 2^-42, as those of rules do.
    """
    labels = np.concatenate([problem.label, problem.empty_label])
    # The highest level leaves out every image, as the largest area does without a gate.
    gates = np.concatenate([[NO_GATE], np.unique(labels)[:-1]])
    boxes = _Boxes(problem, single, gates)
    boxes.search()
    as_good = boxes.scored >= boxes.scored.max() - problem.n_images
    return int(gates[as_good.argmax()])


def best_rule(problem: Problem, *, single: bool) -> tuple[int, int, int]:
    """Return (top level, area, bottom level) of the best rule: the `peak` of a scan, in less time.

    Labels play no part.
    """
    boxes = _Boxes(problem, single)
    boxes.search()
    n_images, largest, keep_all = problem.n_images, int(boxes.scored[0]), boxes.keep_all[:, 0]
    if largest <= n_images:
        return LEVELS - 1, KEEP_NONE, LEVELS - 1
    # An area of 0 keeps all at any top: of those equals the highest top wins.
    rules = [
        (bottom if single else LEVELS - 1, [bottom])
        for bottom in np.flatnonzero(keep_all >= largest - n_images)
    ]
    rules += [(top, bottoms[sums >= largest - 2 * n_images]) for top, bottoms, sums in boxes.rules]
    found = []
    for top, bottoms in rules:
        areas, sums = _sums_at(problem, top, bottoms)
        empty = np.sort(problem.empty_area(top))
        best, best_area = _best_at(problem, empty, areas, sums, keep_all[bottoms])
        found.append((np.full(len(best), top), bottoms, best, best_area))
    return _peak_of(*map(np.concatenate, zip(*found, strict=True)), n_images)


class _Boxes:
    """The boxes left to cut, and the best score so far under each gate.

    Without gates every image passes, and all rules that tie with the best are kept in `rules`.
    """

    def __init__(self, problem: Problem, single: bool, gates: np.ndarray | None = None) -> None:
        self.problem, self.single, self.ties = problem, single, gates is None
        self.unit, self.n_images = problem.unit, problem.n_images
        self.area, self.empty_order = problem.area, np.arange(len(problem.empty))
        gain, shown = problem.gain, problem.n_shown()
        self.n_pass, self.n_empty_pass = np.array([[gain.shape[1]], [len(shown)]])
        if gates is not None:
            # Highest label first: the images that pass a gate are the first `n_pass`.
            self.n_pass = n_reaching(problem.label, gates + 1)
            self.n_empty_pass = n_reaching(problem.empty_label, gates + 1)
            order = np.argsort(-problem.label, kind="stable")
            self.empty_order = np.argsort(-problem.empty_label, kind="stable")
            gain, self.area = gain.take(order, axis=1), self.area.take(order, axis=1)
            shown = shown.take(self.empty_order)
        self.gains = _maxima_of_blocks(gain)
        # Keeping no mask gains nothing; an area of 0 keeps all, whatever the top.
        kept, wrong = _sums_after(gain, self.n_pass), np.empty((LEVELS, len(self.n_pass)), np.int64)
        for at, n in enumerate(self.n_empty_pass):
            wrong[:, at] = n - np.bincount(shown[:n], minlength=LEVELS + 1).cumsum()[:LEVELS]
        self.keep_all = kept - self.unit * wrong  # (255, G)
        self.scored = self.keep_all.max(axis=0).clip(min=0)  # (G,)
        self.by_area: dict[int, np.ndarray] = {}
        self.empty_area: dict[int, np.ndarray] = {}
        self.heap: list[tuple[int, _Box]] = []  # most promising first: minus the bound, and the box
        self.rules: list[tuple[int, np.ndarray, np.ndarray]] = []  # top, bottoms and their sums

    def search(self) -> None:
        """Cut boxes until none is left that could win."""
        every = (0, LEVELS - 1)
        self._add(_Box((0, len(self.n_pass) - 1), every, every, (1, FULL_AREA), WIDEST))
        while self.heap:
            bound, box = heapq.heappop(self.heap)
            if self._could_win(-bound, box):  # else a better rule was found meanwhile
                for part in self._parts(box):
                    self._add(part)

    def _add(self, box: _Box) -> None:
        """Bound a box from above, score the rule behind the bound, and keep it if it could win."""
        (gate, last), (top, highest), (low, high), (least, most), level, _ = box
        low, high = max(low, top) if self.single else low, min(high, highest)
        order = self._order(top)
        if gate:
            order = order[order < self.n_pass[gate]]
        falling = self.area[top].take(order)
        start, stop = _n_reaching(falling[::-1], np.array([most, least]))
        start = max(start - 1, 0)
        if low > high or start >= stop:
            return
        order, falling, first = order[:stop], falling[start:stop], low >> level
        # Inside a tie of areas a sum lacks some gains, so that its end is never below it.
        gains = self.gains[level][first : (high >> level) + 1].take(order, axis=1)
        sums = gains.cumsum(axis=1)[:, start:]
        empty = self._empty(highest)[: self.n_empty_pass[last]]
        sums -= self.unit * _n_reaching(np.sort(empty[empty >= least]), falling)
        bounds = sums.max(axis=1)
        at = int(bounds.argmax())
        if not self._could_win(bounds[at], box):
            return
        # The rule behind the bound is often nearly the best, under whichever gate. Where the box
        # holds a single rule but for areas, the bound is its score.
        n_kept = int(sums[at].argmax())
        area, bottom = (
            int(falling[n_kept]),
            min(max((first + at << level) + (1 << level >> 1), low), high),
        )
        self.scored = np.maximum(self.scored, self._scores(max(top, bottom), area, bottom))
        alive = np.flatnonzero(self._could_win(bounds, box))
        if not len(alive):
            return
        if not level and (gate, top) == (last, highest):
            if self.ties:
                self.rules.append((top, first + alive, bounds[alive]))
            return
        good = np.flatnonzero(self._could_win(sums.max(axis=0), box))
        most = min(most, int(falling[good[0]]))
        if good[-1] + 1 < len(falling):
            least = int(falling[good[-1] + 1]) + 1
        low = max(low, first + int(alive[0]) << level)
        high = min(high, (first + int(alive[-1]) + 1 << level) - 1)
        box = box._replace(bottoms=(low, high), areas=(least, most))
        kept = order[: start + n_kept + 1]
        box = self._with_cut(box, kept, gains[at, : len(kept)], area, bottom)
        heapq.heappush(self.heap, (-int(bounds[at]), box))

    def _could_win(self, bounds: np.ndarray | int, box: _Box) -> np.ndarray:
        """Return whether rules of a box may beat those found, by their bounds.

        A tie counts only if no gate as low is known to be as good; without gates all count, also
        those that tie with a tie.
        """
        if self.ties:
            return bounds >= self.scored[0] - 2 * self.n_images
        floor = self.scored.max() - self.n_images
        return (bounds >= floor) & (bounds > self.scored[: box.gates[0] + 1].max())

    def _with_cut(
        self, box: _Box, kept: np.ndarray, gains: np.ndarray, area: int, bottom: int
    ) -> _Box:
        """Return the box with the cut that lowers its bound most, as far as a rule can tell.

        Shapes: kept (K,) images that the rule keeps in the bound, gains (K,) of them there.
        """
        (gate, last), (top, highest), *_, level, _ = box
        empty, unit, n_pass = self._empty(highest), self.unit, self.n_empty_pass
        n_wrong = np.count_nonzero(empty[: n_pass[last]] >= area)
        by_gates = gains[kept >= self.n_pass[last]].sum() + unit * (
            np.count_nonzero(empty[: n_pass[gate]] >= area) - n_wrong
        )
        by_tops = gains[self.area[highest].take(kept) < area].sum() + unit * (
            np.count_nonzero(self._empty(top)[: n_pass[last]] >= area) - n_wrong
        )
        by_bottoms = gains.sum() - self.gains[0][bottom].take(kept).sum()
        # Narrower blocks cost more than another box, and are of use in all boxes cut from it.
        if level and FINER * by_bottoms > max(by_gates, by_tops):
            level -= 1
        across_gates = last > gate and (by_gates > by_tops or top == highest)
        return box._replace(level=level, across_gates=across_gates)

    def _parts(self, box: _Box) -> tuple[_Box, ...]:
        """Return the halves of a box; of one gate and top the box itself, with single bottoms."""
        (first, last), (top, highest), *_ = box
        level = 0 if last - first + highest - top <= 1 else box.level
        if (first, top) == (last, highest):
            return (box._replace(level=level),)
        if box.across_gates:
            middle = (first + last) // 2
            gates = (first, middle), (middle + 1, last)
            return tuple(box._replace(gates=half, level=level) for half in gates)
        middle = (top + highest) // 2
        tops = (top, middle), (middle + 1, highest)
        return tuple(box._replace(tops=half, level=level) for half in tops)

    def _order(self, top: int) -> np.ndarray:
        """Return the images with an area at a top, the largest first."""
        if top not in self.by_area:
            area = self.area[top]
            self.by_area[top] = np.argsort(-area)[: np.count_nonzero(area)]
        return self.by_area[top]

    def _empty(self, top: int) -> np.ndarray:
        """Return the areas at a top of images whose truth is empty, highest label first."""
        if top not in self.empty_area:
            self.empty_area[top] = self.problem.empty_area(top).take(self.empty_order)
        return self.empty_area[top]

    def _scores(self, top: int, area: int, bottom: int) -> np.ndarray:
        """Return what a rule gains under each gate (G,)."""
        kept = _sums_after(np.where(self.area[top] >= area, self.gains[0][bottom], 0), self.n_pass)
        return kept - self.unit * _sums_after(self._empty(top) >= area, self.n_empty_pass)


def _sums_after(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the sums (…, G) int64 of the first so many (G,) of the values (…, N)."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1), np.int64)
    np.cumsum(values, axis=-1, out=sums[..., 1:])
    return sums.take(counts, axis=-1)


def _maxima_of_blocks(gain: np.ndarray) -> list[np.ndarray]:
    """Return gains (256, P) from (255, P), and the largest (128, P) … of 2 … 2^WIDEST bottoms."""
    levels = [np.concatenate([gain, np.zeros_like(gain[:1])])]
    for _ in range(WIDEST):
        levels.append(np.maximum(levels[-1][::2], levels[-1][1::2]))
    return levels


def sums_of_first(values: np.ndarray) -> np.ndarray:
    """Return the sums (N + 1, …) int64 of the first 0…N rows."""
    sums = np.zeros((len(values) + 1, *values.shape[1:]), dtype=np.int64)
    np.cumsum(values, axis=0, out=sums[1:])
    return sums
