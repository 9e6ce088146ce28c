from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from kernel_lib.errors import InputError
from kernel_lib.postprocess import metrics
from kernel_lib.postprocess.metrics import Resampler


def test_dice_of_counts_has_the_competition_s_values_broadcasts_and_takes_unsigned() -> None:
    intersection, predicted, truth = [0, 0, 0, 3, 5], [0, 4, 0, 4, 5], [0, 0, 7, 6, 5]
    expected = [1.0, 0.0, 0.0, 0.6, 1.0]
    np.testing.assert_array_equal(metrics.dice_of_counts(intersection, predicted, truth), expected)
    truth = np.array([[0], [10]], dtype=np.uint8)
    # 250 + 10 would wrap round in uint8.
    dice = metrics.dice_of_counts(np.zeros(3, np.uint8), np.full(3, 250, np.uint8), truth)
    np.testing.assert_array_equal(dice, np.zeros((2, 3)))


def test_dice_of_masks() -> None:
    pred, true = np.zeros((4, 6), np.uint8), np.zeros((4, 6), bool)
    assert metrics.dice(pred, true) == 1.0
    pred[:2] = 255  # nonzero is mask, whatever the number
    true[1:3] = True
    assert metrics.dice(pred, true) == 0.5
    with pytest.raises(InputError, match="own size"):
        metrics.dice(pred, true[:2])


def test_mean_dice_is_the_same_in_any_order() -> None:
    dice = np.random.default_rng(0).random(10_000)
    assert metrics.mean_dice(dice) == metrics.mean_dice(np.sort(dice))
    assert math.isnan(metrics.mean_dice(np.empty(0)))


@pytest.mark.parametrize("seed", range(4))
def test_auc_is_the_share_of_pairs_in_order(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, labels = random.integers(0, 6, 30), random.integers(0, 2, 30)
    pairs = list(product(scores[labels == 1], scores[labels == 0]))
    share = sum((p > n) + (p == n) / 2 for p, n in pairs) / len(pairs)
    assert metrics.auc(scores, labels) == pytest.approx(share, abs=1e-12)


def test_auc_at_its_ends_and_without_a_class() -> None:
    assert metrics.auc([1, 2, 3], [0, 0, 1]) == 1.0
    assert metrics.auc([1, 2, 3], [1, 1, 0]) == 0.0
    assert metrics.auc([5, 5], [0, 1]) == 0.5
    assert math.isnan(metrics.auc([1, 2], [1, 1]))
    assert math.isnan(metrics.auc([], []))
    with pytest.raises(InputError, match="score 1 is nan"):
        metrics.auc([1.0, math.nan], [0, 1])
    with pytest.raises(InputError, match="one of each an image"):
        metrics.auc([1.0], [0, 1])


def test_interval_of_a_mean_has_the_width_that_theory_gives() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.3, 2000)
    low, high = Resampler().interval(values, np.arange(2000))
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 2000**0.5, rel=0.1)
    assert low < values.mean() < high


def test_patients_whose_images_agree_widen_the_interval() -> None:
    values = np.repeat(np.random.default_rng(0).normal(0.8, 0.3, 200), 9)
    images = Resampler().interval(values, np.arange(1800))
    patients = Resampler().interval(values, np.repeat(np.arange(200), 9))
    assert (patients.high - patients.low) / (images.high - images.low) == pytest.approx(3, rel=0.2)


def test_same_seed_same_interval() -> None:
    values, groups = np.random.default_rng(1).random(50), np.arange(50) // 2
    assert Resampler(200).interval(values, groups) == Resampler(200).interval(values, groups)
    assert Resampler(200).interval(values, groups) != Resampler(200, 1).interval(values, groups)


def test_nothing_to_draw_from() -> None:
    assert all(math.isnan(end) for end in Resampler().interval(np.empty(0), np.empty(0, str)))
    assert Resampler().interval(np.array([0.5]), np.array(["a"])) == (0.5, 0.5)


@given(st.integers(0, 60), st.integers(1, 60))
def test_wilson_s_interval_is_scipy_s(k: int, n: int) -> None:
    k = min(k, n)
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert metrics.wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert metrics.wilson(k, n).low >= 0
    assert metrics.wilson(k, n).high <= 1


def test_wilson_s_interval_of_nothing() -> None:
    assert all(map(math.isnan, metrics.wilson(0, 0)))


def test_the_interval_of_a_ratio_is_that_of_a_mean_where_denominators_are_one() -> None:
    random = np.random.default_rng(0)
    values, groups = random.random(60), np.arange(60) // 3
    drawn = Resampler(200)
    assert drawn.interval_of_ratios([(values, np.ones(60))], groups) == drawn.interval(
        values, groups
    )
    twice = drawn.interval_of_ratios([(values, np.full(60, 2)), (values, np.ones(60))], groups)
    assert twice == pytest.approx(0.75 * np.array(drawn.interval(values, groups)))


def test_samples_without_a_denominator_or_a_class_do_not_count() -> None:
    top, bottom, groups = np.array([1.0, 0.0]), np.array([2.0, 0.0]), np.array(["a", "b"])
    assert Resampler(50).interval_of_ratios([(top, bottom)], groups) == (0.5, 0.5)
    assert all(map(math.isnan, Resampler(50).interval_of_ratios([(top * 0, top * 0)], groups)))
    assert Resampler(50).interval_of_auc(np.array([0.1, 0.9]), np.array([0, 1]), groups) == (1, 1)
    of_one_class = Resampler(50).interval_of_auc(np.array([0.1, 0.9]), np.array([1, 1]), groups)
    assert all(map(math.isnan, of_one_class))
    for interval in (
        Resampler().interval_of_ratios([(np.empty(0), np.empty(0))], np.empty(0, str)),
        Resampler().interval_of_auc(np.empty(0), np.empty(0), np.empty(0, str)),
    ):
        assert all(map(math.isnan, interval))


def test_the_auc_s_interval_is_of_the_aucs_of_resampled_images() -> None:
    random = np.random.default_rng(2)
    groups = np.repeat(np.arange(15), 2)
    labels = random.integers(0, 2, 30)
    scores = random.integers(0, 8, 30) + 2 * labels
    draws, aucs = np.random.default_rng(metrics.SEED), []
    for _ in range(100):
        sample = draws.integers(15, size=15)
        rows = np.concatenate(
            [np.flatnonzero(groups == g) for g in np.unique(groups.astype(str))[sample].astype(int)]
        )
        aucs.append(metrics.auc(scores[rows], labels[rows]))
    expected = np.quantile(aucs, [0.025, 0.975])
    assert Resampler(100).interval_of_auc(scores, labels, groups) == pytest.approx(expected)
