"""The rule that turns a probability map into a mask, and the search for it.

A pixel exceeds a threshold t when its level is above 255·t. An image keeps a mask if at least
`min_area_px` of its pixels (stated for 1024², scaled by H·W / 1024²) exceed `top`; the mask is then
what exceeds `bottom`. Everything but `apply` works on two histograms an image: of all its pixels,
and of those in its true mask.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import cv2
import numpy as np

from kernel_lib.errors import InputError
from kernel_lib.postprocess import plateau
from kernel_lib.postprocess import search as sums
from kernel_lib.postprocess.metrics import dice_of_counts, mean_dice
from kernel_lib.postprocess.search import FULL_AREA, LEVELS
from kernel_lib.progress import bar

# cv2 counts in float32, which is exact up to here.
CV2_EXACT_PX = 1 << 24


@dataclass(frozen=True)
class Triplet:
    """A rule: thresholds 0 ≤ bottom ≤ top ≤ 1, and an area ≥ 0 in px of a 1024² image.

    Raises: InputError when a value is out of its bounds.
    Source: the first place of the competition (sneddy); top == bottom is one threshold, one area.
    """

    top: float
    min_area_px: int
    bottom: float

    def __post_init__(self) -> None:
        for name in ("top", "bottom"):
            value = getattr(self, name)
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not 0 <= number <= 1:
                raise InputError(
                    f"{name} is {value!r}, not within 0–1: a level of a uint8 map is /255"
                )
            object.__setattr__(self, name, number)
        if self.bottom > self.top:
            raise InputError(
                f"bottom is {self.bottom}, above top, {self.top}: the order is "
                "Triplet(top, min_area_px, bottom)"
            )
        try:
            area = operator.index(self.min_area_px)
        except TypeError:
            area = -1
        if area < 0 or isinstance(self.min_area_px, bool):
            raise InputError(
                f"min_area_px is {self.min_area_px!r}, not a whole number of at least 0: "
                "give pixels of a 1024² image"
            )
        object.__setattr__(self, "min_area_px", area)

    def to_json(self) -> dict[str, float | int]:
        """The rule as a dict for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> Triplet:
        """The rule of a dict with exactly top, min_area_px and bottom; else InputError."""
        names = {"top", "min_area_px", "bottom"}
        if not isinstance(values, dict) or set(values) != names:
            raise InputError(f"a rule is {values!r}: it needs exactly {', '.join(sorted(names))}")
        return cls(**values)


@dataclass(frozen=True)
class Statistics:
    """What the search keeps of one image: (256,) int64 pixel counts by level."""

    hist_all: np.ndarray
    hist_true: np.ndarray  # of the pixels in the true mask
    n_px: int
    has_truth: bool = True  # False: no truth is known, as for test images


@dataclass(frozen=True)
class Stacked:
    """Statistics of N images as arrays; what the functions below work on."""

    hist_all: np.ndarray  # (N, 256) int64
    hist_true: np.ndarray  # (N, 256) int64
    n_px: np.ndarray  # (N,) int64
    has_truth: np.ndarray  # (N,) bool

    def __len__(self) -> int:
        return len(self.n_px)

    @property
    def true_px(self) -> np.ndarray:
        """Pixels (N,) int64 of the true masks."""
        return self.hist_true.sum(axis=1)

    def take(self, rows: np.ndarray) -> Stacked:
        """The images at these indices, or where a boolean array is true."""
        return Stacked(
            self.hist_all[rows], self.hist_true[rows], self.n_px[rows], self.has_truth[rows]
        )


@dataclass(frozen=True)
class SearchResult:
    """The exact peak over all rules, and the rule chosen from the plateau around it."""

    triplet: Triplet
    score: float  # mean dice (0–1) of `triplet` on the images searched
    chosen: Triplet
    chosen_score: float
    plateau: dict  # "within" of the peak's score: ranges of top, bottom, min_area_px
    chooser: plateau.Chooser
    n_images: int
    single: bool
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
        }


def statistics(prob: np.ndarray, mask: np.ndarray | None) -> Statistics:
    """Histograms of one image's map, over all pixels and over its true mask.

    Shapes: prob (H, W) uint8, round(255 · p) at the image's own size; mask (H, W), nonzero = mask
    (all zero: truth is empty), or None when no truth is known.
    Raises: InputError for another type or shape.
    """
    prob = _checked_map(prob)
    no_px = np.zeros(256, dtype=np.int64)
    if mask is None:
        return Statistics(_histogram(prob, None), no_px, prob.size, has_truth=False)
    mask = np.asarray(mask)
    if mask.shape != prob.shape:
        raise InputError(
            f"the mask is {mask.shape}, the map {prob.shape}: bring the map to the image's own size"
        )
    if mask.dtype != np.uint8:
        mask = (mask != 0).view(np.uint8)
    hist_true = _histogram(prob, mask) if mask.any() else no_px
    return Statistics(_histogram(prob, None), hist_true, prob.size)


def stack(stats: Iterable[Statistics] | Stacked) -> Stacked:
    """Statistics of N ≥ 1 images as arrays; what is stacked already comes back as it is.

    Raises: InputError when there is no image.
    """
    if isinstance(stats, Stacked):
        return stats
    stats = list(stats)
    if not stats:
        raise InputError("no image to search over: predict some held-out images first")
    return Stacked(
        np.stack([one.hist_all for one in stats]).astype(np.int64, copy=False),
        np.stack([one.hist_true for one in stats]).astype(np.int64, copy=False),
        np.array([one.n_px for one in stats], dtype=np.int64),
        np.array([one.has_truth for one in stats], dtype=bool),
    )


def apply(prob: np.ndarray, triplet: Triplet) -> np.ndarray:
    """Mask (H, W) uint8 0/1 of a map under a rule.

    Shapes: prob (H, W) uint8, at the image's own size.
    Raises: InputError for another type or shape.
    """
    prob = _checked_map(prob)
    above_top = np.count_nonzero(prob >= _first_level(triplet.top))
    if above_top * FULL_AREA < triplet.min_area_px * prob.size:
        return np.zeros(prob.shape, dtype=np.uint8)
    return (prob >= _first_level(triplet.bottom)).view(np.uint8)


def areas_above(stats: Sequence[Statistics] | Stacked, threshold: float) -> np.ndarray:
    """Pixels (N,) int64 that exceed a threshold (0–1), in each image's own pixels."""
    return stack(stats).hist_all[:, _first_level(threshold) :].sum(axis=1)


def kept(stats: Sequence[Statistics] | Stacked, triplet: Triplet) -> np.ndarray:
    """Whether each image (N,) reaches the rule's least area above `top`."""
    stats = stack(stats)
    return areas_above(stats, triplet.top) * FULL_AREA >= triplet.min_area_px * stats.n_px


def areas(stats: Sequence[Statistics] | Stacked, triplet: Triplet) -> np.ndarray:
    """Pixels (N,) int64 of each image's mask under the rule, in the image's own pixels."""
    return np.where(kept(stats, triplet), areas_above(stats, triplet.bottom), 0)


def per_image_dice(stats: Sequence[Statistics] | Stacked, triplet: Triplet) -> np.ndarray:
    """Dice (N,) float64 (0–1) of each image's mask under the rule.

    Raises: InputError when an image's truth is not known.
    """
    stats = _with_truth(stats)
    shared = stats.hist_true[:, _first_level(triplet.bottom) :].sum(axis=1)
    shared = np.where(kept(stats, triplet), shared, 0)
    return dice_of_counts(shared, areas(stats, triplet), stats.true_px)


def search(
    stats: Sequence[Statistics] | Stacked,
    *,
    single: bool = False,
    progress: bool = False,
    chooser: plateau.Chooser | None = None,
) -> SearchResult:
    """The best rule over all pairs bottom ≤ top of the 255 thresholds and all areas, and a choice.

    `single` holds top == bottom. Means closer than 2^-42 tie: the larger area wins, then the higher
    top, then the higher bottom; a rule that keeps no image has an area of 1024² + 1.
    Raises: InputError without images, or when an image's truth is not known.
    """
    stats, chooser = _with_truth(stats), chooser or plateau.Chooser()
    problem = _problem(stats)
    scan = sums.scan(problem, plateau.area_grid(), single=single, tops=_tops(progress))
    peak = sums.peak(scan, problem.n_images)
    triplet = _triplet(*peak)
    dice = per_image_dice(stats, triplet)
    score, within = mean_dice(dice), plateau.tolerance(chooser, dice)
    means = plateau.grid_means(problem, scan)
    surface = np.where(scan.valid, problem.mean(scan.best), np.nan)
    choice = plateau.choose(means, scan.valid, chooser, score - within)
    chosen = triplet if choice is None else _triplet(*choice)
    ranges = plateau.extent(means, surface, peak, score - within)
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
        surface=surface,
        surface_area_px=scan.best_area,
    )


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
        empty_area=area[~has_mask],
        empty_kept_wrong=np.count_nonzero(above[~has_mask], axis=0),
        unit=unit,
    )


def _above(hist: np.ndarray) -> np.ndarray:
    """Pixels (N, 255) that exceed each of the 255 thresholds, from counts (N, 256)."""
    return np.ascontiguousarray(hist[:, :0:-1].cumsum(axis=1)[:, ::-1])


def _threshold(level: int) -> float:
    """The threshold halfway between `level` and the next, 0–1."""
    return (level + 0.5) / 255


def _triplet(top: int, area: int, bottom: int) -> Triplet:
    return Triplet(_threshold(top), area, _threshold(bottom))


def _first_level(threshold: float) -> int:
    """The lowest level that exceeds a threshold: 1–256, the last of which none reaches."""
    return math.floor(255 * threshold) + 1


def _tops(progress: bool) -> Iterable[int]:
    return bar(range(LEVELS), desc="thresholds", unit="top") if progress else range(LEVELS)


def _with_truth(stats: Sequence[Statistics] | Stacked) -> Stacked:
    stats = stack(stats)
    if not stats.has_truth.all():
        raise InputError(
            f"image {int(np.argmin(stats.has_truth))} of {len(stats)} has no truth to score "
            "against: give an all-zero mask where the truth is empty, and leave test images out"
        )
    return stats


def _checked_map(prob: np.ndarray) -> np.ndarray:
    prob = np.asarray(prob)
    if prob.dtype != np.uint8 or prob.ndim != 2 or not prob.size:
        raise InputError(
            f"the map is {prob.dtype} of shape {prob.shape}, not uint8 (H, W): "
            "give round(255 · p) of one image"
        )
    return prob


def _histogram(prob: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Pixels (256,) int64 by level, of all or of those where the mask is not 0."""
    if prob.size < CV2_EXACT_PX:
        return cv2.calcHist([prob], [0], mask, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(prob.ravel() if mask is None else prob[mask != 0], minlength=256)
