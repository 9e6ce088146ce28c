"""The search for a rule: every one of them, exactly.

Where every image has a label, the search sweeps the rule's label threshold, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from kernel_lib.errors import InputError
from kernel_lib.postprocess import exhaustive as sums
from kernel_lib.postprocess import label_threshold, plateau
from kernel_lib.postprocess.exhaustive import LEVELS
from kernel_lib.postprocess.histograms import (
    Stacked,
    Statistics,
    per_image_dice,
    with_truth,
)
from kernel_lib.postprocess.metrics import dice_of_counts, mean_dice
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.postprocess.units import FULL_AREA
from kernel_lib.progress import bar


@dataclass(frozen=True)
class SearchResult:
    """The exact peak over all rules, and the rule chosen from the plateau around it.

    Plateau and surface are those of rules with the peak's label threshold, which `chosen` shares.
    """

    triplet: Triplet
    score: float  # mean dice (0–1) of `triplet` on the images searched
    chosen: Triplet
    chosen_score: float
    plateau: dict  # "within" of the peak's score: ranges of top, bottom, min_area_px
    chooser: plateau.Chooser
    n_images: int
    single: bool
    label_swept: bool  # False: no label was looked at; True with None in the rules: none helps
    surface: np.ndarray = field(repr=False, compare=False)  # (255, 255) [top, bottom]
    surface_area_px: np.ndarray = field(repr=False, compare=False)  # (255, 255) its area

    def to_json(self) -> dict:
        """All but the surfaces, as a dict for JSON."""
        return {
            "triplet": self.triplet.to_json(),
            "score": self.score,
            "chosen": self.chosen.to_json(),
            "chosen_score": self.chosen_score,
            "plateau": self.plateau,
            "chooser": self.chooser.to_json(),
            "n_images": self.n_images,
            "single": self.single,
            "label_swept": self.label_swept,
        }


def search(
    stats: Sequence[Statistics] | Stacked,
    *,
    single: bool = False,
    progress: bool = False,
    chooser: plateau.Chooser | None = None,
    label: bool | None = None,
) -> SearchResult:
    """The best rule over all pairs bottom ≤ top of the 255 thresholds and all areas, and a choice.

    `single` holds top == bottom. Means closer than 2^-42 tie: the larger area wins, then the higher
    top, then the higher bottom; a rule that keeps no image has an area of 1024² + 1.

    Where every image has a label, unless `label` is False, all this is also over the thresholds of
    the label, halfway between levels; of rules that tie, those without it, then those of the lowest
    come before the larger area. The plateau is then that of rules with the peak's label threshold.

    Raises: InputError without images, when an image's truth is not known, or when `label` is True
    and an image has none.
    """
    stats, chooser = with_truth(stats), chooser or plateau.Chooser()
    best = _best(stats, plateau.area_grid(), single, label, _tops(progress))
    problem, scan, threshold, triplet = best.problem, best.scan, best.label, best.triplet
    dice = per_image_dice(stats, triplet)
    score, within = mean_dice(dice), plateau.tolerance(chooser, dice)
    means = plateau.grid_means(problem, scan)
    surface = np.where(scan.valid, problem.mean(scan.best), np.nan)
    choice = plateau.choose(means, scan.volume_valid, chooser, score - within)
    chosen = triplet if choice is None else _triplet(*choice, threshold)
    ranges = plateau.extent(means, scan.volume_valid, surface, best.peak, score - within)
    return SearchResult(
        triplet=triplet,
        score=score,
        chosen=chosen,
        chosen_score=mean_dice(per_image_dice(stats, chosen)),
        plateau={
            "within": within,
            "top": [_threshold(level) for level in ranges["top"]],
            "bottom": [_threshold(level) for level in ranges["bottom"]],
            "min_area_px": list(ranges["min_area_px"]),
        },
        chooser=chooser,
        n_images=len(stats),
        single=single,
        label_swept=best.swept,
        surface=surface,
        surface_area_px=scan.best_area,
    )


def best_score(
    stats: Sequence[Statistics] | Stacked, *, single: bool = False, label: bool | None = None
) -> float:
    """Return the mean dice (0–1) of the best rule, exactly as `search` does, in less time.

    Raises: InputError as `search` does.
    """
    stats = with_truth(stats)
    best = _best(stats, np.empty(0, np.int64), single, label, range(LEVELS))
    return mean_dice(per_image_dice(stats, best.triplet))


@dataclass(frozen=True)
class _Best:
    """The best rule, and what was scanned to find it."""

    problem: sums.Problem  # of the images that pass the rule's label threshold
    scan: sums.Scan
    swept: bool
    peak: tuple[int, int, int]  # top level, area, bottom level
    label: float | None
    triplet: Triplet


def _best(
    stats: Stacked, area_grid: np.ndarray, single: bool, label: bool | None, tops: Iterable[int]
) -> _Best:
    swept, problem = sweeps_label(stats, label), _problem(stats)
    gate = label_threshold.best_gate(problem, single=single) if swept else label_threshold.NO_GATE
    problem = problem if gate == label_threshold.NO_GATE else problem.passing(gate)
    threshold = None if gate == label_threshold.NO_GATE else _threshold(gate)
    scan = sums.scan(problem, area_grid, single=single, tops=tops)
    peak = sums.peak(scan, problem.n_images)
    return _Best(problem, scan, swept, peak, threshold, _triplet(*peak, threshold))


def sweeps_label(stats: Stacked, label: bool | None) -> bool:
    """Whether a search over these images looks at their labels; InputError where it cannot."""
    if label and not stats.has_labels:
        raise InputError(
            f"{int((stats.label < 0).sum())} of {len(stats)} images have no label to search a "
            "threshold of: predict them by a network with a label head, or leave label=True out"
        )
    return stats.has_labels and label is not False


def _problem(stats: Stacked) -> sums.Problem:
    """What the search needs, from the histograms."""
    has_mask = stats.true_px > 0
    above = _above(stats.hist_all)
    area = above * FULL_AREA // stats.n_px[:, None]
    shared = _above(stats.hist_true[has_mask])
    unit = sums.unit_for(len(stats))
    dice = dice_of_counts(shared, above[has_mask], stats.true_px[has_mask, None])
    return sums.Problem(
        area=area[has_mask],
        gain=np.rint(dice * unit).astype(np.int64),
        label=stats.label[has_mask],
        empty_area=area[~has_mask],
        empty_shown=above[~has_mask] > 0,
        empty_label=stats.label[~has_mask],
        unit=unit,
        n_images=len(stats),
        n_empty=int(np.count_nonzero(~has_mask)),
    )


def _above(hist: np.ndarray) -> np.ndarray:
    """Pixels (N, 255) that exceed each of the 255 thresholds, from counts (N, 256)."""
    return np.ascontiguousarray(hist[:, :0:-1].cumsum(axis=1)[:, ::-1])


def _threshold(level: int) -> float:
    """The threshold halfway between `level` and the next, 0–1."""
    return (level + 0.5) / 255


def _triplet(top: int, area: int, bottom: int, label: float | None) -> Triplet:
    return Triplet(_threshold(top), area, _threshold(bottom), label)


def _tops(progress: bool) -> Iterable[int]:
    return bar(range(LEVELS), desc="thresholds", unit="top") if progress else range(LEVELS)
