"""The search for a rule: every one of them, exactly.

Where every image has a label, the rule's label threshold is searched, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import Field

from kernel_lib.errors import InputError
from kernel_lib.notebook import bar
from kernel_lib.postprocess import exhaustive, plateau
from kernel_lib.postprocess.exhaustive import LEVELS
from kernel_lib.postprocess.histograms import AnyStatistics, Stacked, per_image_dice, with_truth
from kernel_lib.postprocess.metrics import dice_of_counts, mean_dice
from kernel_lib.postprocess.serialization import JsonDocument
from kernel_lib.postprocess.triplet import Triplet


@dataclass(frozen=True)
class SearchOptions:
    """Which rules a search tries, and how it chooses among the best."""

    single: bool = False  # only rules with top == bottom
    label: bool | None = None  # search the label threshold; None: where every image has a label
    chooser: plateau.Chooser = field(default_factory=plateau.Chooser)


DEFAULT_OPTIONS = SearchOptions()


@dataclass(frozen=True)
class SearchResult(JsonDocument):
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
    label_swept: bool  # whether label thresholds were tried; None in the rules: none of them helps
    # (255, 255) [top, bottom]: the best score, and the area that reaches it
    surface: Annotated[np.ndarray, Field(exclude=True)] = field(repr=False, compare=False)
    surface_area_px: Annotated[np.ndarray, Field(exclude=True)] = field(repr=False, compare=False)


def search(
    stats: AnyStatistics, options: SearchOptions = DEFAULT_OPTIONS, *, progress: bool = False
) -> SearchResult:
    """Return the best rule over all pairs bottom ≤ top of the 255 thresholds and all areas.

    Means closer than 2^-42 tie: the larger area wins, then the higher top, then the higher bottom;
    a rule that keeps no image has an area of 1024² + 1. Label thresholds lie halfway between
    levels; of rules that tie, those without one come before those of the lowest, and both before
    the larger area.

    Raises: InputError without images, when an image's truth is not known, or when `options.label`
    is True and an image has no label.
    """
    stats, tops = with_truth(stats), range(LEVELS)
    if progress:
        tops = bar(tops, desc="thresholds", unit="top")
    problem, label = _problem_of_label(stats, options)
    scan = exhaustive.scan(problem, plateau.area_grid(), single=options.single, tops=tops)
    peak = exhaustive.peak(scan, problem.n_images)
    triplet = _triplet(*peak, label)
    dice = per_image_dice(stats, triplet)
    score, within = mean_dice(dice), plateau.tolerance(options.chooser, dice)
    means = plateau.grid_means(problem, scan)
    surface = np.where(scan.valid, problem.mean(scan.best), np.nan)
    levels = plateau.choose(means, scan.volume_valid, options.chooser, score - within)
    chosen = triplet if levels is None else _triplet(*levels, triplet.label)
    ranges = plateau.extent(means, scan.volume_valid, surface, peak, score - within)
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
        chooser=options.chooser,
        n_images=len(stats),
        single=options.single,
        label_swept=searches_label(stats, options.label),
        surface=surface,
        surface_area_px=scan.best_area,
    )


def best_score(stats: AnyStatistics, options: SearchOptions = DEFAULT_OPTIONS) -> float:
    """Return the mean dice (0–1) of the best rule, exactly as `search` does, in less time.

    Raises: InputError as `search` does.
    """
    stats = with_truth(stats)
    problem, _ = _problem_of_label(stats, options)
    return _score(stats, problem, exhaustive.best_rule(problem, single=options.single))


def searches_label(stats: Stacked, label: bool | None) -> bool:
    """Return whether a search over these images tries label thresholds.

    Raises: InputError when `label` is True and an image has no label.
    """
    if label and not stats.has_labels:
        raise InputError(
            f"{int((stats.label < 0).sum())} of {len(stats)} images have no label to search a "
            "threshold of: predict them by a network with a label head, or leave label=True out"
        )
    return stats.has_labels and label is not False


def _problem_of_label(
    stats: Stacked, options: SearchOptions
) -> tuple[exhaustive.Problem, float | None]:
    """Return the problem of the images that pass the best label threshold, and that threshold."""
    problem = _problem(stats)
    if searches_label(stats, options.label):
        gate = exhaustive.best_gate(problem, single=options.single)
        if gate != exhaustive.NO_GATE:
            return problem.passing(gate), _threshold(gate)
    return problem, None


def _problem(stats: Stacked) -> exhaustive.Problem:
    true_px = stats.true_px
    has_mask, empty = np.flatnonzero(true_px), np.flatnonzero(true_px == 0)
    above = _above(stats.hist_all)
    unit = exhaustive.unit_for(len(stats))
    predicted, shared = above.take(has_mask, axis=1), _above(stats.hist_true[has_mask])
    dice = 2 * shared / (predicted + true_px[has_mask])
    return exhaustive.Problem(
        above=above,
        n_px=stats.n_px,
        has_mask=has_mask,
        area=exhaustive.area_at_1024(predicted, stats.n_px[has_mask]),
        gain=np.rint(dice * unit).astype(np.int64),
        label=stats.label[has_mask],
        empty=empty,
        empty_label=stats.label[empty],
        unit=unit,
        n_images=len(stats),
        n_empty=len(empty),
    )


def _score(stats: Stacked, problem: exhaustive.Problem, rule: tuple[int, int, int]) -> float:
    """Return the mean dice of a rule (top, area, bottom), from the images whose mask it keeps."""
    top, area, bottom = rule
    kept = problem.has_mask[problem.area[top] >= area]
    shared = stats.hist_true[kept, bottom + 1 :].sum(axis=1)
    true_px = stats.hist_true[kept].sum(axis=1)
    dice = dice_of_counts(shared, problem.above[bottom, kept], true_px)
    wrong = (problem.empty_area(top) >= area) & (problem.above[bottom, problem.empty] > 0)
    ones = problem.n_empty - np.count_nonzero(wrong)
    # A sum of any grouping is the same: it is rounded once.
    return math.fsum([*dice, ones]) / len(stats)


def _above(hist: np.ndarray) -> np.ndarray:
    """Return the pixels (255, N) that exceed each of the 255 thresholds, from counts (N, 256)."""
    above = np.empty((LEVELS, len(hist)), np.int64)
    for at in range(0, len(hist), 64):  # as few rows as a cache holds
        above[:, at : at + 64] = hist[at : at + 64, 1:].T
    for level in range(LEVELS - 2, -1, -1):
        above[level] += above[level + 1]
    return above


def _threshold(level: int) -> float:
    """Return the threshold halfway between `level` and the next, 0–1."""
    return (level + 0.5) / 255


def _triplet(top: int, area: int, bottom: int, label: float | None) -> Triplet:
    return Triplet(_threshold(top), area, _threshold(bottom), label)
