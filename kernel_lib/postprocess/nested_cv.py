"""The score to expect on images that no threshold was chosen on.

Each image is scored with a rule that was chosen without it and without any other image of its
patient, and so is whatever else is chosen on labels, such as members and their weights. Beside that
honest score stand the score in sample, which every search flatters, and those of two rules that
need no search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from kernel_lib.errors import InputError
from kernel_lib.postprocess import cv_splits
from kernel_lib.postprocess.bootstrap import N_BOOTSTRAP, SEED, Interval, Resampler
from kernel_lib.postprocess.gate import NO_LABEL
from kernel_lib.postprocess.histograms import Stacked, Statistics, per_image_dice, stack
from kernel_lib.postprocess.metrics import auc, mean_dice
from kernel_lib.postprocess.nested_cv_report import (
    AREA_EDGES,
    HonestReport,
    Missed,
    PartRule,
    Score,
    TestSummary,
    area_histogram,
)
from kernel_lib.postprocess.plateau import Chooser
from kernel_lib.postprocess.search import SearchResult, search, sweeps_label
from kernel_lib.postprocess.strategies import Choice, Fitted, OneRule, Strategy
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.postprocess.units import AREA_UNIT, FULL_AREA

ABOVE_HALF = Triplet(0.5, 0, 0.5)


def honest(
    stats: Sequence[Statistics] | Stacked,
    image_ids: Sequence[str],
    folds: Sequence[int],
    groups: Sequence[str] | None,
    *,
    single: bool = False,
    chooser: Chooser | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = SEED,
    result: SearchResult | None = None,
    label: bool | None = None,
) -> HonestReport:
    """Score the way a rule is chosen, on images that the rule did not see.

    The rule for a fold is chosen on the other folds, without the images of any patient who also
    stands in that fold; with one fold only, five patient-wise parts take the folds' place. `groups`
    are patients; None, or "" or a missing one for an image, makes each image its own group.
    `result`, when the search over all these images was made before, saves making it again. `label`
    is as in `search`: a label threshold is part of the rule, chosen with it on the other folds.

    Shapes: stats, image_ids, folds and groups of one length N.
    Raises: InputError for other lengths, an id twice, an image without truth, another `result`, or
    `label` True and an image without one.
    """
    stats = stack(stats)
    cv_splits.checked_groups(image_ids, folds, groups, len(stats))
    if result is None:
        result = search(stats, single=single, chooser=chooser, label=label)
    asked = (len(stats), single, sweeps_label(stats, label))
    if (result.n_images, result.single, result.label_swept) != asked:
        raise InputError(
            f"the search given was over {result.n_images} images with single={result.single} and "
            f"label={result.label_swept}, not over these {asked[0]} with single={single} and "
            f"label={asked[2]}: leave `result` out"
        )
    strategy = OneRule(
        stats, single=single, chooser=chooser or result.chooser, label=result.label_swept
    )
    found = Fitted(Choice(result.chosen), Choice(result.triplet), (result,))
    resampler = Resampler(n_bootstrap, seed)
    return of_strategy(strategy, found, stats, image_ids, folds, groups, resampler)


def of_strategy(
    strategy: Strategy,
    found: Fitted,
    facts: Stacked,
    image_ids: Sequence[str],
    folds: Sequence[int],
    groups: Sequence[str] | None,
    resampler: Resampler | None = None,
) -> HonestReport:
    """Score a way to choose, whatever it chooses, on images that the choice did not see.

    Parts and patients are as in `honest`. `found` is what the way chooses over all rows. `facts`
    are statistics of the same images that nothing was chosen for: their maps and labels are those
    of the AUCs and of probability > 0.5.

    Shapes: facts, image_ids, folds and groups of one length N, the rows of the way.
    Raises: InputError for other lengths, an id twice, or an image without truth.
    """
    names = cv_splits.checked_groups(image_ids, folds, groups, len(facts))
    every = np.arange(len(facts))
    part, method = cv_splits.parts_of(np.asarray(folds), names, _at_full(facts.true_px, facts))
    table = pd.DataFrame({"image_id": list(image_ids), "fold": np.asarray(folds)})
    table["part"], table["group"] = part, names
    table["true_area_px"] = _at_full(facts.true_px, facts)
    rules = _cross_fit(strategy, facts, table)
    table["dice_in_sample"] = strategy.apply(found.choice, every).dice
    table["sum_prob"] = _at_full(facts.hist_all @ (np.arange(256) / 255), facts)
    if (facts.label != NO_LABEL).any():
        table["label"] = np.where(facts.label == NO_LABEL, np.nan, facts.label / 255)
    in_sample = table["dice_in_sample"].to_numpy()
    peak = in_sample if found.peak == found.choice else strategy.apply(found.peak, every).dice
    method = _told(method, rules, int(table["dice"].isna().sum()), strategy.description)
    resampler = resampler or Resampler()
    return _report(facts, table, rules, found, peak, method, resampler)


def summary_of_areas(area_px: np.ndarray, report: HonestReport) -> TestSummary:
    """The test set's masks beside those out of fold, and a warning where they differ.

    Takes the areas (N,) in px at 1024² of masks made in any way, 0 = empty. What is expected is the
    bootstrap interval out of fold, widened for the chance in the test images themselves: its
    half-widths are multiplied by √(1 + n out of fold / n in test).
    """
    area_px = np.asarray(area_px, dtype=np.float64)
    predicted = area_px > 0
    n_oof = sum(rule.n_scored for rule in report.rules)
    share, mean = _mean(predicted), _mean(area_px[predicted])
    share_expected = _widened(
        report.share_predicted, report.share_interval, n_oof, len(area_px), most=1.0
    )
    mean_expected = _widened(
        report.mean_area_px,
        report.mean_area_interval,
        sum(report.area_histogram),
        int(predicted.sum()),
        most=float(FULL_AREA),
    )
    warnings = []
    if _beyond(share, share_expected):
        warnings.append(
            f"On test {share:.1%} of {len(area_px)} images get a mask, out of fold "
            f"{report.share_predicted:.1%}, and {share_expected.low:.1%} to "
            f"{share_expected.high:.1%} is expected: averaged folds are smoother than one, or the "
            "test images differ; look at the masks, and at a vote of the folds' own masks."
        )
    if _beyond(mean, mean_expected):
        warnings.append(
            f"On test a mask has {mean:,.0f} {AREA_UNIT} on average, out of fold "
            f"{report.mean_area_px:,.0f}, and {mean_expected.low:,.0f} to "
            f"{mean_expected.high:,.0f} is expected."
        )
    return TestSummary(
        n_images=len(area_px),
        share_predicted=share,
        share_out_of_fold=report.share_predicted,
        share_expected=share_expected,
        mean_area_px=mean,
        mean_area_out_of_fold=report.mean_area_px,
        mean_area_expected=mean_expected,
        area_edges_px=AREA_EDGES,
        area_histogram=area_histogram(area_px[predicted]),
        area_histogram_out_of_fold=report.area_histogram,
        warnings=tuple(warnings),
    )


def _cross_fit(strategy: Strategy, facts: Stacked, table: pd.DataFrame) -> tuple[PartRule, ...]:
    """Fill in each image's row by what was chosen outside its part and patient; the choices."""
    part, names = table["part"].to_numpy(), table["group"].to_numpy()
    columns = {name: np.full(len(table), np.nan) for name in ("dice", "area_px", "above_top_px")}
    rules = []
    for number in np.unique(part):
        inside = part == number
        same_patient = np.isin(names, names[inside])
        outside = ~inside & ~same_patient
        if not outside.any():
            continue  # nobody is left to choose on: these images have no honest score
        choice = strategy.fit(outside.nonzero()[0]).choice
        decided = strategy.apply(choice, inside.nonzero()[0])
        held_out = facts.take(inside)
        columns["dice"][inside] = decided.dice
        columns["area_px"][inside] = _at_full(decided.area_px, held_out)
        columns["above_top_px"][inside] = _at_full(decided.above_top_px, held_out)
        rules.append(
            PartRule(
                part=int(number),
                n_chosen_on=int(outside.sum()),
                n_scored=int(inside.sum()),
                n_left_out=int((same_patient & ~inside).sum()),
                score=_score(decided.dice, held_out.true_px > 0),
                triplet=choice.triplet,
                weights=choice.weights,
                rules=choice.rules,
                at_least=choice.at_least,
            )
        )
    for name, values in columns.items():
        table[name] = values
    return tuple(rules)


def _report(
    stats: Stacked,
    table: pd.DataFrame,
    rules: tuple[PartRule, ...],
    found: Fitted,
    peak: np.ndarray,
    method: str,
    resampler: Resampler,
) -> HonestReport:
    has_mask = stats.true_px > 0
    scored = table["dice"].notna().to_numpy()
    seen, truth = table[scored], has_mask[scored]
    dice, area = seen["dice"].to_numpy(), seen["area_px"].to_numpy()
    predicted, group = area > 0, seen["group"].to_numpy()
    return HonestReport(
        method=method,
        n_images=len(stats),
        n_nonempty=int(has_mask.sum()),
        n_groups=table["group"].nunique(),
        triplet=found.peak.triplet,
        chosen=found.choice.triplet,
        in_sample_peak=_score(peak, has_mask),
        in_sample=_score(table["dice_in_sample"].to_numpy(), has_mask),
        honest=_score(dice, truth),
        all_empty=_score(np.where(has_mask, 0.0, 1.0), has_mask),
        above_half=_score(per_image_dice(stats, ABOVE_HALF), has_mask),
        interval=resampler.interval(dice, group),
        resampled="patients" if table["group"].nunique() < len(table) else "images",
        n_bootstrap=resampler.n_bootstrap,
        seed=resampler.seed,
        share_true=float(has_mask.mean()),
        share_predicted=_mean(predicted),
        share_interval=resampler.interval(predicted, group),
        mean_area_px=_mean(area[predicted]),
        mean_area_interval=resampler.interval(area[predicted], group[predicted]),
        area_edges_px=AREA_EDGES,
        area_histogram=area_histogram(area[predicted]),
        missed=_missed(seen["true_area_px"].to_numpy(), truth, predicted),
        n_false_positive=int((predicted & ~truth).sum()),
        auc_sum=auc(table["sum_prob"], has_mask),
        auc_count=auc(seen["above_top_px"], truth),
        auc_label=auc(stats.label, has_mask) if stats.has_labels else None,
        rules=rules,
        per_image=table,
    )


def _told(method: str, rules: tuple[PartRule, ...], n_unscored: int, description: str) -> str:
    """The method's sentence, what else was chosen, and one more for whatever bent it."""
    method += description
    n_left_out = sum(rule.n_left_out for rule in rules)
    if n_left_out:
        method += (
            f" Some patients have images in several folds: {n_left_out} times an image was left "
            "out of the choice for the fold that its patient is scored in."
        )
    if n_unscored:
        method += (
            f" {n_unscored} images have no honest score, since no image of another patient was "
            "there to choose a rule on."
        )
    return method


def _missed(area_px: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> tuple[Missed, ...]:
    counts = area_histogram(area_px[truth])
    missed = area_histogram(area_px[truth & ~predicted])
    bins = zip(AREA_EDGES[:-1], AREA_EDGES[1:], counts, missed, strict=True)
    return tuple(Missed(*values) for values in bins)


def _widened(value: float, interval: Interval, n: int, n_new: int, most: float) -> Interval:
    """The interval for a mean over n_new images, from that of the mean over n."""
    factor = math.sqrt(1 + n / n_new) if n_new else math.inf
    low = value - factor * (value - interval.low) if value > interval.low else value
    high = value + factor * (interval.high - value) if interval.high > value else value
    return Interval(max(low, 0.0), min(high, most))


def _beyond(value: float, interval: Interval) -> bool:
    return value < interval.low or value > interval.high  # never where either is nan


def _score(dice: np.ndarray, has_mask: np.ndarray) -> Score:
    return Score(mean_dice(dice), mean_dice(dice[has_mask]))


def _at_full(px: np.ndarray, stats: Stacked) -> np.ndarray:
    """Areas in px of a 1024² image, float64."""
    return px * (FULL_AREA / stats.n_px)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan
