"""Nested cross-validation: the score to expect on images that no threshold was chosen on.

Each image is scored with what was chosen (rule, members, weights) without it and without any other
image of its patient. The in-sample score, which is always optimistic, is reported beside it, and so
are two baselines without a search: no mask at all, and probability > 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from kernel_lib.errors import InputError
from kernel_lib.postprocess.histograms import (
    AnyStatistics,
    Stacked,
    highest,
    per_image_dice,
    stack,
    sum_px,
)
from kernel_lib.postprocess.metrics import Interval, Resampler, auc, mean_dice
from kernel_lib.postprocess.nested_cv_report import (
    AREA_EDGES,
    FalseNegatives,
    FoldChoice,
    NestedCVReport,
    Score,
    TestSummary,
    area_histogram,
)
from kernel_lib.postprocess.search import DEFAULT_OPTIONS, SearchOptions
from kernel_lib.postprocess.strategies import Choice, Fitted, OneRule, Strategy
from kernel_lib.postprocess.triplet import NO_LABEL, Triplet
from kernel_lib.postprocess.units import AREA_UNIT, FULL_AREA

ABOVE_HALF = Triplet(0.5, 0, 0.5)


def score_rule(
    stats: AnyStatistics,
    image_ids: Sequence[str],
    folds: Sequence[int],
    groups: Sequence[str] | None,
    options: SearchOptions = DEFAULT_OPTIONS,
    resampler: Resampler | None = None,
) -> NestedCVReport:
    """Score the search for one rule: `score_strategy` with `OneRule`, arguments and errors alike.

    Raises: InputError as there, and if `options.label` is True and an image has no label.
    """
    stats = stack(stats)
    checked_groups(image_ids, folds, groups, len(stats))  # before the search
    strategy = OneRule(stats, options)
    return score_strategy(strategy, stats, image_ids, folds, groups, resampler)[1]


def score_strategy(
    strategy: Strategy,
    stats: Stacked,
    image_ids: Sequence[str],
    folds: Sequence[int],
    groups: Sequence[str] | None,
    resampler: Resampler | None = None,
    progress: bool = False,
) -> tuple[Fitted, NestedCVReport]:
    """Return what a strategy chooses on all images, and its score on images it did not see.

    The choice for a fold is made on the other folds, without the images of any patient who is also
    in that fold; a single fold is split into five, patient-wise. `groups` are patients; an image
    without any is its own group. `stats` are those of the ensemble's mean map, also for a strategy
    that votes: the AUCs and the score of probability > 0.5 are computed from them.

    Shapes: stats, image_ids, folds and groups of one length N, the rows of the strategy.
    Raises: InputError for different lengths, a repeated id, or an image without ground truth.
    """
    names = checked_groups(image_ids, folds, groups, len(stats))
    rows, true_area = np.arange(len(stats)), _at_full(stats.true_px, stats)
    outer, method = outer_folds(np.asarray(folds), names, true_area)
    table = pd.DataFrame({"image_id": list(image_ids), "fold": np.asarray(folds)})
    table["part"], table["group"], table["true_area_px"] = outer, names, true_area
    parts = [part for part in held_out(outer, names) if part[2].any()]
    # In one call: what several choices need of the maps is computed once.
    fitted, *by_part = strategy.fit([rows, *(p[2].nonzero()[0] for p in parts)], progress)
    choices = [each.choice for each in by_part]
    rules = _cross_fit(strategy, stats, table, zip(parts, choices, strict=True))
    in_sample = strategy.apply(fitted.choice, rows).dice
    table["dice_in_sample"] = in_sample
    table["sum_prob"] = sum_px(stats.hist_all, stats.n_px)
    table["max_prob"] = highest(stats.hist_all)
    if (stats.label != NO_LABEL).any():
        table["label"] = np.where(stats.label == NO_LABEL, np.nan, stats.label / 255)
    peak = in_sample if fitted.peak == fitted.choice else strategy.apply(fitted.peak, rows).dice
    n_unscored = int(table["dice"].isna().sum())
    method += strategy.description + _exceptions(rules, n_unscored)
    report = _report(stats, table, rules, fitted, peak, method, resampler or Resampler())
    return fitted, report


def compare_areas(area_px: np.ndarray, report: NestedCVReport) -> TestSummary:
    """Compare the test masks with the out-of-fold masks, and warn if they differ.

    The areas (N,) are px at 1024² of masks made in any way, 0 = empty. The expected range is the
    out-of-fold bootstrap interval, widened by the sampling error of the test images: its
    half-widths are multiplied by √(1 + n out of fold / n in test).
    """
    area_px = np.asarray(area_px, dtype=np.float64)
    predicted = area_px > 0
    share, share_oof = _mean(predicted), report.share_predicted
    mean, mean_oof = _mean(area_px[predicted]), report.mean_area_px
    n_oof = sum(choice.n_scored for choice in report.rules)
    low, high = in_share = _widened(share_oof, report.share_interval, n_oof, len(area_px), 1.0)
    warnings = []
    if share < low or share > high:  # never where either is nan
        warnings.append(
            f"On test {share:.1%} of {len(area_px)} images get a mask, out of fold "
            f"{share_oof:.1%}, and {low:.1%} to {high:.1%} is expected. The mean of several folds' "
            "maps is smoother than a single map, or the test images differ: look at the masks, and "
            "at a vote of the folds' own masks."
        )
    n_oof, n_test = sum(report.area_histogram), int(predicted.sum())
    low, high = in_mean = _widened(mean_oof, report.mean_area_interval, n_oof, n_test, FULL_AREA)
    if mean < low or mean > high:
        warnings.append(
            f"On test a mask has {mean:,.0f} {AREA_UNIT} on average, out of fold {mean_oof:,.0f}, "
            f"and {low:,.0f} to {high:,.0f} is expected."
        )
    return TestSummary(
        n_images=len(area_px),
        share_predicted=share,
        share_out_of_fold=share_oof,
        share_expected=in_share,
        mean_area_px=mean,
        mean_area_out_of_fold=mean_oof,
        mean_area_expected=in_mean,
        area_edges_px=AREA_EDGES,
        area_histogram=area_histogram(area_px[predicted]),
        area_histogram_out_of_fold=report.area_histogram,
        warnings=tuple(warnings),
    )


def _cross_fit(
    strategy: Strategy,
    stats: Stacked,
    table: pd.DataFrame,
    chosen: Iterable[tuple[tuple[int, np.ndarray, np.ndarray], Choice]],
) -> tuple[FoldChoice, ...]:
    """Add each image's dice and areas under the choice for its part, and return the choices.

    Images of a part that nothing could be chosen for have no honest score.
    """
    table[["dice", "area_px", "above_top_px"]] = np.nan
    rules = []
    for (fold, inside, outside), choice in chosen:
        outcome, scored = strategy.apply(choice, inside.nonzero()[0]), stats.take(inside)
        table.loc[inside, "dice"] = outcome.dice
        table.loc[inside, "area_px"] = _at_full(outcome.area_px, scored)
        table.loc[inside, "above_top_px"] = _at_full(outcome.above_top_px, scored)
        rules.append(
            FoldChoice(
                fold=fold,
                n_chosen_on=int(outside.sum()),
                n_scored=int(inside.sum()),
                n_left_out=int((~inside & ~outside).sum()),
                score=_score(outcome.dice, scored.true_px > 0),
                **vars(choice),
            )
        )
    return tuple(rules)


def _report(
    stats: Stacked,
    table: pd.DataFrame,
    rules: tuple[FoldChoice, ...],
    fitted: Fitted,
    peak_dice: np.ndarray,
    method: str,
    resampler: Resampler,
) -> NestedCVReport:
    has_mask, n_groups = stats.true_px > 0, table["group"].nunique()
    is_scored = table["dice"].notna().to_numpy()
    scored, truth = table[is_scored], has_mask[is_scored]
    dice, area = scored["dice"].to_numpy(), scored["area_px"].to_numpy()
    predicted, group = area > 0, scored["group"].to_numpy()
    return NestedCVReport(
        method=method,
        n_images=len(stats),
        n_nonempty=int(has_mask.sum()),
        n_groups=n_groups,
        triplet=fitted.peak.triplet,
        chosen=fitted.choice.triplet,
        in_sample_peak=_score(peak_dice, has_mask),
        in_sample=_score(table["dice_in_sample"].to_numpy(), has_mask),
        honest=_score(dice, truth),
        all_empty=_score(np.where(has_mask, 0.0, 1.0), has_mask),
        above_half=_score(per_image_dice(stats, ABOVE_HALF), has_mask),
        interval=resampler.interval(dice, group),
        resampled="patients" if n_groups < len(table) else "images",
        n_bootstrap=resampler.n_bootstrap,
        seed=resampler.seed,
        share_true=float(has_mask.mean()),
        share_predicted=_mean(predicted),
        share_interval=resampler.interval(predicted, group),
        mean_area_px=_mean(area[predicted]),
        mean_area_interval=resampler.interval(area[predicted], group[predicted]),
        area_edges_px=AREA_EDGES,
        area_histogram=area_histogram(area[predicted]),
        false_negatives=_false_negatives(scored["true_area_px"].to_numpy(), truth, predicted),
        n_false_positive=int((predicted & ~truth).sum()),
        auc_sum=auc(table["sum_prob"], has_mask),
        auc_count=auc(scored["above_top_px"], truth),
        auc_label=auc(stats.label, has_mask) if stats.has_labels else None,
        rules=rules,
        per_image=table,
    )


def _exceptions(rules: tuple[FoldChoice, ...], n_unscored: int) -> str:
    """Return sentences on images excluded from a choice or a score, or "" if there are none."""
    text = ""
    if n_left_out := sum(choice.n_left_out for choice in rules):
        text += (
            f" Some patients have images in several folds: {n_left_out} times an image was "
            "excluded from choosing for a fold because its patient is in that fold."
        )
    if n_unscored:
        text += (
            f" {n_unscored} images have no honest score, since no image of another patient was "
            "there to choose a rule on."
        )
    return text


def _false_negatives(
    area_px: np.ndarray, truth: np.ndarray, predicted: np.ndarray
) -> tuple[FalseNegatives, ...]:
    counts = area_histogram(area_px[truth]), area_histogram(area_px[truth & ~predicted])
    return tuple(map(FalseNegatives, AREA_EDGES[:-1], AREA_EDGES[1:], *counts))


def _widened(value: float, interval: Interval, n: int, n_new: int, upper: float) -> Interval:
    """Return the interval of a mean over n_new images, from that of the mean over n."""
    factor = math.sqrt(1 + n / n_new) if n_new else math.inf
    low = value - factor * (value - interval.low) if value > interval.low else value
    high = value + factor * (interval.high - value) if interval.high > value else value
    return Interval(max(low, 0.0), min(high, float(upper)))


def _score(dice: np.ndarray, has_mask: np.ndarray) -> Score:
    return Score(mean_dice(dice), mean_dice(dice[has_mask]))


def _at_full(px: np.ndarray, stats: Stacked) -> np.ndarray:
    """Convert pixel counts to px of a 1024² image, float64."""
    return px * (FULL_AREA / stats.n_px)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan


N_SPLITS = 5  # of the images of a single fold
SHUFFLE_SEED = 20190904


def checked_groups(
    image_ids: Sequence[str], folds: Sequence[int], groups: Sequence[str] | None, n_images: int
) -> np.ndarray:
    """Return the group name (N,) of each image, its own id where no patient is known.

    Raises: InputError for different lengths or a repeated id.
    """
    image_ids = [str(image_id) for image_id in image_ids]
    groups = [""] * n_images if groups is None else groups
    for name, values in {"image_ids": image_ids, "folds": folds, "groups": groups}.items():
        if len(values) != n_images:
            raise InputError(
                f"{len(values)} {name} for {n_images} images: give one for each image, in the same "
                "order"
            )
    repeated = pd.Index(image_ids).duplicated()
    if repeated.any():
        raise InputError(
            f"image {image_ids[repeated.argmax()]} appears twice: merge its masks into one row "
            "first"
        )
    known = ("" if pd.isna(group) else str(group).strip() for group in groups)
    names = [group or image_id for group, image_id in zip(known, image_ids, strict=True)]
    return np.array(names, dtype=object)


def held_out(part: np.ndarray, groups: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield each part, the rows (N,) bool in it, and those on which one may choose for it.

    The latter are of other parts, without the images of a patient who is also in this one.
    Shapes: part (N,) int, groups (N,) names.
    """
    names, _ = pd.factorize(groups)  # numbers, which are compared much faster
    for k in np.unique(part):
        inside = part == k
        yield int(k), inside, ~inside & ~np.isin(names, names[inside])


def outer_folds(
    folds: np.ndarray, groups: np.ndarray, area_px: np.ndarray
) -> tuple[np.ndarray, str]:
    """Return the outer fold (N,) int64 of each image, and a sentence on how rules are chosen.

    Two or more folds are taken as they are. A single fold is split into five: whole groups are
    dealt to them in order of mask area, so that each gets all sizes.

    Shapes: folds (N,), groups (N,) names, area_px (N,) of the true masks.
    """
    present = np.unique(folds)
    if len(present) > 1:
        return folds.astype(np.int64), (
            f"Each of {len(present)} folds is scored with the rule chosen on the other folds."
        )
    names, group = np.unique(groups.astype(str), return_inverse=True)
    n_splits = min(N_SPLITS, len(names))
    # Groups of equal area, above all those without a mask, are shuffled first.
    shuffled = np.random.default_rng(SHUFFLE_SEED).permutation(len(names))
    area = np.bincount(group, area_px, len(names))
    order = shuffled[np.argsort(-area[shuffled], kind="stable")]
    # In snake order (0…4, 4…0): else one part would get the largest of every five.
    zigzag = np.concatenate([np.arange(n_splits), np.arange(n_splits)[::-1]])
    split_of_group = np.empty(len(names), dtype=np.int64)
    split_of_group[order] = np.resize(zigzag, len(names))
    by = " patient-wise" if len(names) < len(groups) else ""
    return split_of_group[group], (
        f"There is only one fold ({present[0]}): it is cut into {n_splits}{by} parts, and "
        "each is scored with the rule chosen on the others."
    )
