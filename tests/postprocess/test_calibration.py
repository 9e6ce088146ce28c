"""Reliability, ECE and Brier score by hand and by scikit-learn; the curve is the best one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from kernel_lib.postprocess import calibration
from kernel_lib.postprocess.calibration import FEATURES, Logistic, fit, reliability


@st.composite
def predicted(draw) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, often tied or at an end, and the truth of up to 60 images."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 60))
    prob = random.random(n) if draw(st.booleans()) else random.integers(0, 6, n) / 5
    return prob, random.random(n) < draw(st.sampled_from([0, 0.2, 0.6, 1]))


@given(predicted(), st.integers(1, 12))
def test_bins_and_scores_are_those_of_images_counted_one_by_one(images, n_bins):
    prob, truth = images
    found = reliability(prob, truth, n_bins)
    edges = np.percentile(prob, 100 * np.linspace(0, 1, n_bins + 1))[1:-1]
    bins: dict[int, list[int]] = {}
    for row, value in enumerate(prob):
        bins.setdefault(sum(edge < value for edge in edges), []).append(row)
    rows = [bins[k] for k in sorted(bins)]
    assert found.n.tolist() == [len(row) for row in rows]
    assert found.predicted == pytest.approx([prob[row].mean() for row in rows])
    assert found.observed == pytest.approx([truth[row].mean() for row in rows])
    gaps = [abs(prob[row].mean() - truth[row].mean()) * len(row) for row in rows]
    assert found.ece == pytest.approx(sum(gaps) / len(prob))
    assert found.brier == pytest.approx(
        np.mean([(p - t) ** 2 for p, t in zip(prob, truth, strict=True)])
    )
    assert (found.low <= found.observed + 1e-12).all()
    assert (found.observed <= found.high + 1e-12).all()
    shuffled = np.random.default_rng(0).permutation(len(prob))
    again = reliability(prob[shuffled], truth[shuffled], n_bins)
    assert again.n.tolist() == found.n.tolist()
    assert again.ece == pytest.approx(found.ece)


@pytest.mark.parametrize("seed", range(10))
def test_the_curve_and_the_brier_score_are_scikit_learn_s(seed):
    reference = pytest.importorskip("sklearn.calibration")
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(seed)
    n = int(random.integers(20, 500))
    prob = random.random(n) if seed % 2 else random.integers(0, 30, n) / 29
    truth = random.random(n) < prob
    n_bins = int(random.integers(2, 15))
    found = reliability(prob, truth, n_bins)
    curve = reference.calibration_curve(truth, prob, n_bins=n_bins, strategy="quantile")
    assert found.observed == pytest.approx(curve[0])
    assert found.predicted == pytest.approx(curve[1])
    assert found.brier == pytest.approx(metrics.brier_score_loss(truth, prob))
    sigmoid = reference._sigmoid_calibration(np.log2(1 + prob), truth)
    assert (-sigmoid[0], -sigmoid[1]) == pytest.approx(
        (fit("sum_prob", prob, truth).slope, fit("sum_prob", prob, truth).intercept), rel=1e-3
    )


def test_the_interval_of_a_bin_is_wilson_s():
    truth = np.repeat([0, 1], [7, 3])
    found = reliability(np.full(10, 0.4), truth, 5)
    expected = stats.binomtest(3, 10).proportion_ci(method="wilson")
    assert (found.low[0], found.high[0]) == pytest.approx((expected.low, expected.high))
    found = reliability(np.full(10, 0.4), np.zeros(10), 5)
    assert (found.n.tolist(), found.low[0]) == ([10], 0)
    assert found.high[0] == pytest.approx(stats.binomtest(0, 10).proportion_ci(method="wilson")[1])


def test_a_calibrated_probability_has_little_error_and_an_overconfident_one_much():
    random = np.random.default_rng(0)
    prob = random.random(20_000)
    truth = random.random(20_000) < prob
    exact = reliability(prob, truth)
    assert exact.n.tolist() == [2000] * 10
    assert exact.ece < 0.02
    assert ((exact.low <= exact.predicted) & (exact.predicted <= exact.high)).sum() >= 8
    sharp = prob**3 / (prob**3 + (1 - prob) ** 3)
    raw = reliability(sharp, truth)
    part, groups = np.arange(20_000) % 5, np.arange(20_000)
    corrected = calibration.cross_fitted("label", sharp, truth, part, groups)
    after = reliability(corrected, truth)
    assert raw.ece > 0.1 > 0.02 > after.ece
    assert after.brier < raw.brier
    inner = (prob > 0.2) & (prob < 0.8)  # where no logit is cut off
    slope = fit("label", sharp[inner], truth[inner]).slope
    assert slope == pytest.approx(1 / 3, abs=0.03), "the logit was multiplied by three"


@given(predicted(), st.sampled_from(sorted(FEATURES)))
def test_the_curve_is_where_a_general_minimiser_ends(images, score):
    values, truth = images
    n, positive = len(truth), truth.sum()
    target = np.where(truth, (positive + 1) / (positive + 2), 1 / (n - positive + 2))
    feature = FEATURES[score](values)

    def loss(weights: np.ndarray) -> float:
        logits = weights[0] * feature + weights[1]
        return float((np.logaddexp(0, logits) - target * logits).sum())

    found = fit(score, values, truth)
    assert all(map(math.isfinite, (found.slope, found.intercept)))
    best = optimize.minimize(loss, np.zeros(2), tol=1e-12)
    assert loss(np.array([found.slope, found.intercept])) <= best.fun + 1e-6
    assert found(values) == pytest.approx(
        1 / (1 + np.exp(-(found.slope * feature + found.intercept)))
    )


def test_what_separates_the_classes_or_says_nothing_has_a_finite_curve():
    truth = np.repeat([False, True], 20)
    separated = fit("sum_prob", np.arange(40.0) * 1e5, truth)
    assert (separated(np.array([0.0, 1e9])) > 0.5).tolist() == [False, True]
    constant = fit("label", np.full(40, 0.9), truth)
    assert constant(np.array([0.9])) == pytest.approx([0.5])
    assert fit("label", np.linspace(0, 1, 40), np.zeros(40))(np.array([0.5]))[0] < 0.05
    assert Logistic.from_json(separated.to_json()) == separated


def test_no_image_and_no_patient_has_a_part_in_its_own_correction():
    random = np.random.default_rng(3)
    values, part = random.random(60), np.arange(60) % 3
    truth, groups = random.random(60) < values, np.arange(60) // 2  # patients are in two parts
    found = calibration.cross_fitted("label", values, truth, part, groups)
    for row in range(60):
        others = (part != part[row]) & ~np.isin(groups, groups[part == part[row]])
        expected = fit("label", values[others], truth[others])(values[[row]])
        assert found[row] == pytest.approx(expected[0])
    flipped = truth ^ (part == 1)
    again = calibration.cross_fitted("label", values, flipped, part, groups)
    assert np.array_equal(again[part == 1], found[part == 1])
    assert np.isnan(calibration.cross_fitted("label", values, truth, part * 0, groups)).all()


def test_entropy_in_bits():
    assert calibration.entropy([0, 0.5, 1, 0.25]) == pytest.approx([0, 1, 0, 0.811278], abs=1e-6)
