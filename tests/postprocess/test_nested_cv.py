from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kernel_lib.errors import InputError
from kernel_lib.postprocess import metrics, nested_cv
from kernel_lib.postprocess.histograms import Statistics, areas, areas_above, per_image_dice, stack
from kernel_lib.postprocess.metrics import Resampler
from kernel_lib.postprocess.nested_cv_report import NestedCVReport, TestSummary
from kernel_lib.postprocess.search import DEFAULT_OPTIONS, SearchOptions, search
from kernel_lib.postprocess.triplet import Triplet
from tests.postprocess.samples import image, random_images, with_labels


def scored(
    stats: Sequence[Statistics],
    folds: Sequence[int] | int,
    groups: Sequence[str] | None = None,
    options: SearchOptions = DEFAULT_OPTIONS,
    n_bootstrap: int = 10,
) -> NestedCVReport:
    """Return the report; an int of folds deals the images out among so many."""
    if isinstance(folds, int):
        folds = np.arange(len(stats)) % folds
    ids = [f"image{at}" for at in range(len(stats))]
    return nested_cv.score_rule(stats, ids, folds, groups, options, Resampler(n_bootstrap))


def through_json(report: NestedCVReport) -> NestedCVReport:
    text = json.dumps(report.to_json(), allow_nan=False)
    return NestedCVReport.from_json(json.loads(text))


def test_honest_score_is_that_of_rules_chosen_on_the_other_folds() -> None:
    stats, folds = random_images(30), np.arange(30) % 3
    report = scored(stats, folds, n_bootstrap=200)
    expected = np.empty(30)
    for fold in range(3):
        rule = search(stack(stats).take(folds != fold)).chosen
        expected[folds == fold] = per_image_dice(stack(stats).take(folds == fold), rule)
        assert report.rules[fold].triplet == rule
        assert (report.rules[fold].n_chosen_on, report.rules[fold].n_scored) == (20, 10)
    np.testing.assert_array_equal(report.per_image["dice"], expected)
    assert report.honest.dice == metrics.mean_dice(expected)
    assert report.interval.low <= report.honest.dice <= report.interval.high
    assert "3 folds" in report.method
    assert report.resampled == "images"


def test_a_patient_in_two_folds_does_not_reach_the_rule() -> None:
    """Patient P's lesion lies at level 30 in both folds, where others have false alarms."""
    stats = [image({}, {30: 9000}), image({30: 500}), image({}, {30: 9000}), image({30: 500})]
    folds, groups = [0, 0, 1, 1], ["P", "Q", "P", "R"]
    leaking = scored(stats, folds)  # as if the patients were not known
    assert leaking.honest.dice == 1.0  # P's image in the other fold gave the level away
    report = scored(stats, folds, groups)
    # Without it only an empty image is left to choose on, and then nothing is predicted.
    assert report.per_image["dice"].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert [rule.n_left_out for rule in report.rules] == [1, 1]
    assert [rule.n_chosen_on for rule in report.rules] == [1, 1]
    assert "several folds" in report.method


@pytest.mark.parametrize("n_folds", [1, 4])
def test_no_truth_of_a_fold_or_its_patients_moves_its_rule(n_folds: int) -> None:
    stats = random_images(40)
    groups = [f"patient{at % 17}" for at in range(40)]  # across folds, too
    folds = np.arange(40) % n_folds
    first = scored(stats, folds, groups)
    for rule in first.rules[:2]:
        table = first.per_image
        patients = set(table["group"][table["part"] == rule.fold])
        turned = [
            replace(each, hist_true=each.hist_all - each.hist_true) if group in patients else each
            for each, group in zip(stats, groups, strict=True)
        ]
        if n_folds == 1:  # the split itself follows the areas: hold it fixed as folds
            folds = table["part"].to_numpy()
        again = scored(turned, folds, groups)
        assert {r.fold: r.triplet for r in again.rules}[rule.fold] == rule.triplet


def test_one_fold_is_cut_by_patient_and_the_report_says_so() -> None:
    report = scored(random_images(40), [2] * 40, [f"patient{at // 2}" for at in range(40)])
    assert "one fold" in report.method
    assert "5 patient-wise parts" in report.method
    assert len(report.rules) == 5
    assert report.resampled == "patients"
    assert report.n_groups == 20
    assert (report.per_image.groupby("group")["part"].nunique() == 1).all()


def test_the_report_s_counts_add_up() -> None:
    stats = random_images(60, seed=3)
    report = scored(stats, 2)
    table, stacked = report.per_image, stack(stats)
    truth, predicted = stacked.true_px > 0, (table["area_px"] > 0).to_numpy()
    assert report.n_nonempty == truth.sum() == sum(each.n for each in report.false_negatives)
    n_false_negative = sum(each.n_false_negative for each in report.false_negatives)
    assert n_false_negative == (truth & ~predicted).sum()
    assert report.n_false_positive == (~truth & predicted).sum()
    assert sum(report.area_histogram) == predicted.sum()
    assert report.share_predicted == predicted.mean()
    assert report.all_empty.dice == (~truth).mean()
    assert report.all_empty.dice_nonempty == 0.0
    half = per_image_dice(stats, Triplet(0.5, 0, 0.5))
    assert report.above_half.dice == pytest.approx(half.mean())
    assert report.above_half.dice_nonempty == pytest.approx(half[truth].mean())
    assert report.in_sample_peak.dice >= report.in_sample.dice
    assert report.auc_sum == metrics.auc(stacked.hist_all @ np.arange(256), truth)
    for rule in report.rules:
        rows = (table["part"] == rule.fold).to_numpy()
        above = areas_above(stacked.take(rows), rule.triplet.top)
        np.testing.assert_array_equal(table["above_top_px"][rows], above)
    result = search(stats)
    assert (report.triplet, report.chosen) == (result.triplet, result.chosen)
    assert isinstance(table, pd.DataFrame)
    assert through_json(report) == report


def test_one_patient_has_no_honest_score_and_the_report_says_so() -> None:
    report = scored(random_images(3), [0, 0, 0], ["P"] * 3)
    assert math.isnan(report.honest.dice)
    assert math.isnan(report.interval.low)
    assert "3 images have no honest score" in report.method
    assert 0 <= report.in_sample.dice <= 1
    assert math.isnan(through_json(report).honest.dice)


def test_only_empty_truth() -> None:
    report = scored([image({level: 400}) for level in range(20, 30)], 2)
    assert report.honest.dice == 1.0
    assert math.isnan(report.honest.dice_nonempty)
    assert math.isnan(report.auc_sum)
    assert report.share_predicted == 0.0


def test_a_test_set_with_other_shares_or_sizes_warns_and_another_does_not() -> None:
    report = scored(random_images(120, seed=5), 3, n_bootstrap=300)
    summary = nested_cv.compare_areas(areas(random_images(60, seed=6), report.chosen), report)
    assert summary.warnings == ()
    assert summary.share_out_of_fold == report.share_predicted
    assert summary.share_expected.low <= report.share_interval.low  # 60 images: wider than 120
    assert sum(summary.area_histogram) == round(60 * summary.share_predicted)
    assert TestSummary.from_json(json.loads(json.dumps(summary.to_json()))) == summary
    summary = nested_cv.compare_areas(np.zeros(200), report)
    assert summary.share_predicted == 0.0
    assert math.isnan(summary.mean_area_px)
    (warning,) = summary.warnings
    assert "0.0% of 200 images" in warning
    share = int(200 * report.share_predicted)
    huge = np.where(np.arange(200) < share, 500_000, 0)
    (warning,) = nested_cv.compare_areas(huge, report).warnings
    assert "500,000 px of 1024²" in warning


def test_labels_stand_in_the_report() -> None:
    stats = random_images(30, seed=2)
    truth = np.array([each.hist_true.any() for each in stats])
    labels = np.where(truth, 200, 100)
    labels[[3, 7]] = 150
    report = scored(with_labels(stats, labels), 3)
    assert report.auc_label == metrics.auc(labels, truth) > report.auc_sum
    np.testing.assert_array_equal(report.per_image["label"], labels / 255)
    assert report.chosen.label is not None
    assert "label" in report.method
    assert through_json(report) == report
    one_class = scored(with_labels([image({9: 50})] * 4, [1, 2, 3, 4]), [0, 0, 1, 1])
    assert math.isnan(through_json(one_class).auc_label)


def test_labels_are_searched_only_where_all_images_have_one_and_it_is_asked() -> None:
    stats = random_images(12)
    bare = scored(stats, 2)
    assert "label" not in bare.per_image
    assert "label" not in json.dumps(bare.to_json())
    some = [*with_labels(stats[:4], [10, 20, 30, 40]), *stats[4:]]
    report = scored(some, 2)
    assert report.auc_label is None
    assert report.per_image["label"].notna().tolist() == [True] * 4 + [False] * 8
    assert report == bare
    with pytest.raises(InputError, match="8 of 12 images have no label"):
        scored(some, 2, options=SearchOptions(label=True))
    report = scored(with_labels(stats, range(12)), 2, options=SearchOptions(label=False))
    assert replace(report, auc_label=None) == bare


def test_a_label_that_informs_in_one_fold_only_does_not_flatter_it() -> None:
    """In fold 1 the label is the truth; in fold 0 every image, with or without a mask, has 90.

    Maps know nothing: lesions and false alarms look alike, and keeping all scores a half.
    """
    alike = [image({200: 4000}) if at % 2 else image({}, {200: 4000}) for at in range(24)]
    folds = np.repeat([0, 1], 12)
    labels = np.where(folds == 0, 90, np.where(np.arange(24) % 2, 50, 200))
    stats = with_labels(alike, labels)
    report = scored(stats, folds)
    informative, blind = report.rules[0].triplet, report.rules[1].triplet
    # The rule for fold 0 saw fold 1's label: it asks for more than 50, which all of fold 0 have.
    assert informative == search(stats[12:]).chosen
    assert informative.label == 50.5 / 255
    # The rule for fold 1 saw a constant: no threshold of it helps, though one would in fold 1.
    assert blind.label is None
    assert report.rules[1].score.dice == 0.5
    assert report.in_sample.dice == 0.75  # both rules fitted on both folds
    assert report.honest.dice == 0.5


def test_groups_are_checked_and_an_image_without_a_patient_is_its_own() -> None:
    groups = ["p", "", None, float("nan")]
    names = nested_cv.checked_groups(["a", "b", "c", "d"], [0] * 4, groups, 4)
    assert names.tolist() == ["p", "b", "c", "d"]
    assert nested_cv.checked_groups(["a", "b"], [0, 1], None, 2).tolist() == ["a", "b"]
    with pytest.raises(InputError, match="1 folds for 2 images"):
        nested_cv.checked_groups(["a", "b"], [0], None, 2)
    with pytest.raises(InputError, match="image a "):
        nested_cv.checked_groups(["a", "b", "a"], [0] * 3, None, 3)


def test_one_fold_is_dealt_by_patient_and_area() -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 200, 500).astype(str)
    area = np.where(random.random(500) < 0.22, random.integers(100, 50_000, 500), 0)
    outer, _ = nested_cv.outer_folds(np.full(500, 2), groups, area)
    totals = np.bincount(outer, area)
    assert totals.max() < 1.5 * totals.min()
    positives = np.bincount(outer[area > 0])
    assert positives.max() < 1.6 * positives.min()
    order = random.permutation(500)  # the order of the images makes no difference
    again, _ = nested_cv.outer_folds(np.full(500, 2), groups[order], area[order])
    np.testing.assert_array_equal(again, outer[order])


def test_fewer_patients_than_splits_and_several_folds() -> None:
    folds, groups = np.array([3, 1, 3]), np.array(["a", "a", "b"])
    assert nested_cv.outer_folds(folds, groups, np.zeros(3))[0].tolist() == [3, 1, 3]
    outer, method = nested_cv.outer_folds(np.zeros(3, int), groups, np.zeros(3))
    assert sorted(set(outer.tolist())) == [0, 1]
    assert "2 patient-wise parts" in method
