from __future__ import annotations

import math

import numpy as np
import pytest

from kernel_lib.postprocess.bootstrap import Resampler


def test_interval_of_a_mean_has_the_width_that_theory_gives() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.3, 2000)
    low, high = Resampler().interval(values, np.arange(2000))
    half = 1.96 * values.std() / 2000**0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
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
