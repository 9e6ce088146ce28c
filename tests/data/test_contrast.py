"""Flat pictures are stretched and named, all others are left as they are."""

from __future__ import annotations

import numpy as np
import pytest

from kernel_lib.data import contrast
from kernel_lib.data.contrast import FLAT, MISSED
from kernel_lib.errors import InputError

VALUES = np.arange(4096.0)
FULL = contrast.as_grey(VALUES / 4095)
SAME = np.arange(256, dtype=np.uint8)
RAMP = np.arange(4096).reshape(64, 64)


def levels(n: int, first: int = 0, step: int = 1) -> np.ndarray:
    """A picture of (64, 64) that uses n levels from the first on."""
    return (first + np.arange(64 * 64) % n * step).astype(np.uint8).reshape(64, 64)


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.floor(np.clip((values - low) / (high - low), 0, 1) * 255 + 0.5)


@pytest.mark.parametrize(
    ("grey", "flat"),
    [
        (levels(3, 100), True), (levels(65), True), (levels(65, 190), True), (levels(66), False),
        (levels(25, 0, 10), True), (levels(26, 0, 9), False), (levels(256), False),
        (levels(6, 0, 51), True),  # over the full range, so stretching changes nothing
    ],
)  # fmt: skip
def test_a_narrow_range_or_few_levels_are_flat(grey, flat):
    found, notes = contrast.shown(SAME, np.arange(256.0), grey)
    low, high = (grey.min(), grey.max()) if flat else (0, 255)
    np.testing.assert_array_equal(found, stretched(grey.astype(float), low, high))
    assert notes == ([FLAT] if flat else [])


def test_levels_that_few_pixels_have_do_not_hide_that_a_picture_is_flat():
    grey = levels(50)
    grey[0, :20] = np.arange(60, 260, 10).clip(max=255)  # 0.49 % of the pixels
    assert contrast.shown(SAME, np.arange(256.0), grey)[1] == [FLAT]


def test_values_behind_a_window_that_misses_them_are_shown():
    found, notes = contrast.shown(np.full(5000, 255, np.uint8), -np.arange(5000.0), RAMP)
    np.testing.assert_array_equal(found, stretched(-RAMP, -4095, 0))
    assert notes == [FLAT]


def window(low: float, high: float) -> np.ndarray:
    return contrast.as_grey((VALUES - low) / (high - low))


@pytest.mark.parametrize(
    ("table", "missed"),
    [
        (window(0, 1024), True),
        (window(3000, 4095), True),
        (window(0, 2100), False),  # what is beyond is no wider than the window
        (window(1000, 2800), False),
        (255 - window(0, 1024), True),
    ],
)
def test_a_window_that_misses_most_values_is_left_out(table, missed):
    found, notes = contrast.shown(table, VALUES, RAMP, by_window=True)
    np.testing.assert_array_equal(found, FULL[RAMP] if missed else table[RAMP])
    assert notes == ([MISSED] if missed else [])
    assert contrast.shown(table, VALUES, RAMP)[1] == []  # a look-up table may be of few values


def test_a_window_may_miss_air_and_collimation():
    stored = RAMP % 1024
    stored[:, 30:] = 4000 + stored[:, 30:] % 90
    table = window(0, 1024)
    found, notes = contrast.shown(table, VALUES, stored, by_window=True)
    np.testing.assert_array_equal(found, table[stored])
    assert notes == []


def test_a_marker_does_not_set_the_range():
    stored = RAMP % 256
    stored[5, :20] = 4095  # 0.49 % of the pixels
    found, notes = contrast.shown(FULL, VALUES, stored)
    np.testing.assert_array_equal(found, stretched(stored, 1, 255))
    assert notes == [FLAT]


@pytest.mark.parametrize("at", [0, 4000])
def test_padding_does_not_count_and_is_black(at):
    stored = 1000 + RAMP % 256
    stored[:20] = at
    found, notes = contrast.shown(FULL, VALUES, stored, padding=slice(at, at + 1))
    right = stretched(stored, 1000, 1255)
    right[:20] = 0
    np.testing.assert_array_equal(found, right)
    assert notes == [FLAT]


def test_padding_of_a_picture_that_is_not_flat_is_as_the_table_has_it():
    found, notes = contrast.shown(FULL, VALUES, RAMP, padding=slice(4000, 4096))
    np.testing.assert_array_equal(found, FULL[RAMP])
    assert notes == []


def marked(n: int) -> np.ndarray:
    stored = RAMP % 100
    stored.ravel()[:n] = 4095
    return stored


@pytest.mark.parametrize(
    "stored", [RAMP * 0 + 7, (RAMP == 9) * 7, RAMP // 2048 * 4095, marked(60), (RAMP < 50) * RAMP]
)
def test_one_level_two_levels_and_what_stays_flat_are_no_picture(stored):
    with pytest.raises(InputError):
        contrast.shown(FULL, VALUES, stored)
    with pytest.raises(InputError):  # as is padding all over
        contrast.shown(FULL, VALUES, RAMP * 0 + 7, padding=slice(7, 8))


@pytest.mark.parametrize(
    ("lowest", "highest", "signed", "bits"),
    [
        (0, 0, False, 8), (0, 255, False, 8), (0, 256, False, 10), (0, 1024, False, 12),
        (0, 4095, False, 12), (0, 4096, False, 14), (0, 16384, False, 16), (0, 65535, False, 16),
        (-128, 127, True, 8), (-129, 0, True, 10), (0, 128, True, 10), (-32768, 0, True, 16),
    ],
)  # fmt: skip
def test_depth_is_the_least_that_holds_the_values(lowest, highest, signed, bits):
    assert contrast.depth(lowest, highest, signed=signed) == bits
