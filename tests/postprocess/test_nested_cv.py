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
from kernel_lib.postprocess import search as th
from kernel_lib.postprocess.histograms import Statistics, areas, areas_above, per_image_dice, stack
from kernel_lib.postprocess.nested_cv_report import HonestReport, TestSummary
from kernel_lib.postprocess.triplet import Triplet

FULL = 1024 * 1024


def image(outside: dict[int, int], true: dict[int, int] | None = None) -> Statistics:
    """A 1024² image from pixels by level, outside its true mask and inside it."""
    hist_true, hist_all = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for level, px in (true or {}).items():
        hist_true[level] += px
    for level, px in outside.items():
        hist_all[level] += px
    hist_all += hist_true
    hist_all[0] += FULL - hist_all.sum()
    return Statistics(hist_all, hist_true, FULL)


def random_set(n: int, seed: int = 0, positives: float = 0.4) -> list[Statistics]:
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(n):
        px, strength = int(random.integers(500, 20_000)), int(random.integers(20, 250))
        true = {strength: px // 2, strength // 2: px // 4, 0: px // 4}
        alarm = {int(random.integers(1, 120)): int(random.integers(1, 6000))}
        drawn.append(image(alarm, true if random.random() < positives else None))
    return drawn


def labelled(stats: list[Statistics], labels: Sequence[int]) -> list[Statistics]:
    return [replace(one, label=int(label)) for one, label in zip(stats, labels, strict=True)]


def ids(n: int) -> list[str]:
    return [f"image{at}" for at in range(n)]


def test_honest_score_is_that_of_rules_chosen_on_the_other_folds() -> None:
    stats, folds = random_set(30), np.arange(30) % 3
    report = nested_cv.honest(stats, ids(30), folds, None, n_bootstrap=200)
    expected = np.empty(30)
    for fold in range(3):
        rule = th.search([one for one, at in zip(stats, folds, strict=True) if at != fold]).chosen
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
    leaking = nested_cv.honest(stats, ids(4), folds, None)  # as if the patients were not known
    assert leaking.honest.dice == 1.0  # P's image in the other fold gave the level away
    report = nested_cv.honest(stats, ids(4), folds, groups)
    # Without it only an empty image is left to choose on, and then nothing is predicted.
    assert report.per_image["dice"].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert [rule.n_left_out for rule in report.rules] == [1, 1]
    assert [rule.n_chosen_on for rule in report.rules] == [1, 1]
    assert "several folds" in report.method


@pytest.mark.parametrize("n_folds", [1, 4])
def test_no_truth_of_a_part_or_its_patients_moves_its_rule(n_folds: int) -> None:
    stats = random_set(40)
    groups = [f"patient{at % 17}" for at in range(40)]  # across folds, too
    folds = np.arange(40) % n_folds
    first = nested_cv.honest(stats, ids(40), folds, groups, n_bootstrap=10)
    for rule in first.rules[:2]:
        table = first.per_image
        patients = set(table["group"][table["part"] == rule.part])
        turned = [
            Statistics(one.hist_all, one.hist_all - one.hist_true, one.n_px)
            if group in patients
            else one
            for one, group in zip(stats, groups, strict=True)
        ]
        if n_folds == 1:  # the parts themselves follow the areas: hold them fixed as folds
            folds = table["part"].to_numpy()
        again = nested_cv.honest(turned, ids(40), folds, groups, n_bootstrap=10)
        assert next(one for one in again.rules if one.part == rule.part).triplet == rule.triplet


def test_one_fold_is_cut_by_patient_and_the_report_says_so() -> None:
    stats, groups = random_set(40), [f"patient{at // 2}" for at in range(40)]
    report = nested_cv.honest(stats, ids(40), [2] * 40, groups, n_bootstrap=50)
    assert "one fold" in report.method
    assert "5 patient-wise parts" in report.method
    assert len(report.rules) == 5
    assert report.resampled == "patients"
    assert report.n_groups == 20
    assert (report.per_image.groupby("group")["part"].nunique() == 1).all()


def test_the_report_s_counts_add_up() -> None:
    stats = random_set(60, seed=3)
    report = nested_cv.honest(stats, ids(60), np.arange(60) % 2, None, n_bootstrap=100)
    table, stacked = report.per_image, stack(stats)
    truth, predicted = stacked.true_px > 0, (table["area_px"] > 0).to_numpy()
    assert report.n_nonempty == truth.sum() == sum(one.n for one in report.missed)
    assert sum(one.n_missed for one in report.missed) == (truth & ~predicted).sum()
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
        rows = (table["part"] == rule.part).to_numpy()
        np.testing.assert_array_equal(
            table["above_top_px"][rows], areas_above(stacked.take(rows), rule.triplet.top)
        )


def test_a_search_made_before_is_used_and_checked() -> None:
    stats = random_set(12)
    found = th.search(stats)
    report = nested_cv.honest(stats, ids(12), np.arange(12) % 2, None, result=found, n_bootstrap=10)
    assert (report.triplet, report.chosen) == (found.triplet, found.chosen)
    with pytest.raises(InputError, match="leave `result` out"):
        nested_cv.honest(stats[:11], ids(11), np.arange(11) % 2, None, result=found)


def test_one_patient_has_no_honest_score_and_the_report_says_so() -> None:
    report = nested_cv.honest(random_set(3), ids(3), [0, 0, 0], ["P"] * 3, n_bootstrap=10)
    assert math.isnan(report.honest.dice)
    assert math.isnan(report.interval.low)
    assert "3 images have no honest score" in report.method
    assert 0 <= report.in_sample.dice <= 1
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert math.isnan(HonestReport.from_json(plain).honest.dice)


def test_only_empty_truth() -> None:
    stats = [image({level: 400}) for level in range(20, 30)]
    report = nested_cv.honest(stats, ids(10), np.arange(10) % 2, None, n_bootstrap=10)
    assert report.honest.dice == 1.0
    assert math.isnan(report.honest.dice_nonempty)
    assert math.isnan(report.auc_sum)
    assert report.share_predicted == 0.0


def test_the_report_goes_through_json() -> None:
    report = nested_cv.honest(random_set(20), ids(20), np.arange(20) % 2, None, n_bootstrap=10)
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert HonestReport.from_json(plain) == report
    assert isinstance(report.per_image, pd.DataFrame)
    assert "per_image" not in plain
    with pytest.raises(InputError, match="honest"):
        HonestReport.from_json({name: plain[name] for name in plain if name != "honest"})


def test_a_test_set_like_the_others_raises_no_warning() -> None:
    stats = random_set(120, seed=5)
    report = nested_cv.honest(stats, ids(120), np.arange(120) % 3, None, n_bootstrap=300)
    summary = nested_cv.summary_of_areas(areas(random_set(60, seed=6), report.chosen), report)
    assert summary.warnings == ()
    assert summary.share_out_of_fold == report.share_predicted
    assert summary.share_expected.low <= report.share_interval.low  # 60 images: wider than 120
    assert sum(summary.area_histogram) == round(60 * summary.share_predicted)
    assert TestSummary.from_json(json.loads(json.dumps(summary.to_json()))) == summary


def test_a_test_set_with_other_shares_or_sizes_warns() -> None:
    report = nested_cv.honest(
        random_set(120, seed=5), ids(120), np.arange(120) % 3, None, n_bootstrap=300
    )
    summary = nested_cv.summary_of_areas(np.zeros(200), report)
    assert summary.share_predicted == 0.0
    assert math.isnan(summary.mean_area_px)
    assert len(summary.warnings) == 1
    assert "0.0% of 200 images" in summary.warnings[0]
    share = int(200 * report.share_predicted)
    huge = np.where(np.arange(200) < share, 500_000, 0)
    (warning,) = nested_cv.summary_of_areas(huge, report).warnings
    assert "500,000 px of 1024²" in warning


def test_a_report_without_labels_says_nothing_of_them() -> None:
    report = nested_cv.honest(random_set(12), ids(12), np.arange(12) % 2, None, n_bootstrap=10)
    assert report.auc_label is None
    assert "label" not in report.per_image
    plain = report.to_json()
    assert "auc_label" not in plain
    assert "label" not in json.dumps(plain)


def test_labels_stand_in_the_report() -> None:
    stats = random_set(30, seed=2)
    truth = np.array([one.hist_true.any() for one in stats])
    labels = np.where(truth, 200, 100)
    labels[[3, 7]] = 150
    report = nested_cv.honest(
        labelled(stats, labels), ids(30), np.arange(30) % 3, None, n_bootstrap=9
    )
    assert report.auc_label == metrics.auc(labels, truth) > report.auc_sum
    np.testing.assert_array_equal(report.per_image["label"], labels / 255)
    assert report.chosen.label is not None
    assert "label" in report.method
    again = HonestReport.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False)))
    assert again == report
    one_class = labelled([image({9: 50})] * 4, [1, 2, 3, 4])
    report = nested_cv.honest(one_class, ids(4), [0, 0, 1, 1], None, n_bootstrap=9)
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert math.isnan(HonestReport.from_json(plain).auc_label)


def test_labels_that_some_images_lack_are_told_but_not_searched() -> None:
    stats = random_set(12)
    some = [*labelled(stats[:4], [10, 20, 30, 40]), *stats[4:]]
    report = nested_cv.honest(some, ids(12), np.arange(12) % 2, None, n_bootstrap=10)
    assert report.auc_label is None
    assert report.per_image["label"].notna().tolist() == [True] * 4 + [False] * 8
    assert report == nested_cv.honest(stats, ids(12), np.arange(12) % 2, None, n_bootstrap=10)
    with pytest.raises(InputError, match="8 of 12 images have no label"):
        nested_cv.honest(some, ids(12), np.arange(12) % 2, None, label=True)


def test_a_label_that_informs_in_one_fold_only_does_not_flatter_it() -> None:
    """In fold 1 the label is the truth; in fold 0 every image, with or without a mask, has 90.

    Maps know nothing: lesions and false alarms look alike, and keeping all scores a half.
    """
    alike = [image({200: 4000}) if at % 2 else image({}, {200: 4000}) for at in range(24)]
    folds = np.repeat([0, 1], 12)
    labels = np.where(folds == 0, 90, np.where(np.arange(24) % 2, 50, 200))
    stats = labelled(alike, labels)
    report = nested_cv.honest(stats, ids(24), folds, None, n_bootstrap=10)
    informative, blind = report.rules[0].triplet, report.rules[1].triplet
    # The rule for fold 0 saw fold 1's label: it asks for more than 50, which all of fold 0 have.
    assert informative == th.search(stats[12:]).chosen
    assert informative.label == 50.5 / 255
    # The rule for fold 1 saw a constant: no threshold of it helps, though one would in fold 1.
    assert blind.label is None
    assert report.rules[1].score.dice == 0.5
    assert report.in_sample.dice == 0.75  # both rules fitted on both folds
    assert report.honest.dice == 0.5


def test_a_search_that_swept_the_label_is_not_taken_for_one_that_did_not() -> None:
    stats = labelled(random_set(12), range(12))
    found, folds = th.search(stats, label=False), np.arange(12) % 2
    with pytest.raises(InputError, match="leave `result` out"):
        nested_cv.honest(stats, ids(12), folds, None, result=found)
    report = nested_cv.honest(stats, ids(12), folds, None, result=found, label=False, n_bootstrap=9)
    assert all(rule.triplet.label is None for rule in report.rules)
    bare = nested_cv.honest(random_set(12), ids(12), folds, None, n_bootstrap=9)
    assert replace(report, auc_label=None) == bare
