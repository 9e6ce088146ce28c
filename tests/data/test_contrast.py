"""Flat pictures are stretched and named, all others are left as they are."""

from __future__ import annotations

import numpy as np
import pytest

from kernel_lib.data import contrast
from kernel_lib.errors import InputError

VALUES = np.arange(256.0)


def levels(n: int, first: int = 0, step: int = 1) -> np.ndarray:
    """A picture of (64, 64) that uses n levels from the first on."""
    return (first + np.arange(64 * 64) % n * step).astype(np.uint8).reshape(64, 64)


@pytest.mark.parametrize(("n", "flat"), [(2, True), (25, True), (26, False), (256, False)])
def test_less_than_a_tenth_of_the_levels_is_flat(n, flat):
    grey = levels(n, 100 if n < 100 else 0)
    found, notes = contrast.unflattened(grey, VALUES, grey)
    if flat:
        np.testing.assert_array_equal(
            found, np.floor((grey.astype(float) - 100) / (n - 1) * 255 + 0.5)
        )
        assert notes == [contrast.FLAT]
    else:
        assert found is grey
        assert notes == []


def test_levels_that_few_pixels_have_count_too():
    grey = levels(25)
    grey[63, 63] = 200
    assert contrast.unflattened(grey, VALUES, grey) == (grey, [])


def test_few_levels_over_the_full_range_stay_and_are_named():
    grey = levels(6, 0, 51)
    found, notes = contrast.unflattened(grey, VALUES, grey)
    np.testing.assert_array_equal(found, grey)
    assert notes == [contrast.FLAT]


def test_values_behind_a_window_that_misses_them_are_shown():
    stored = np.arange(4096).reshape(64, 64)
    found, notes = contrast.unflattened(
        np.full((64, 64), 255, np.uint8), -np.arange(5000.0), stored
    )
    np.testing.assert_array_equal(found, np.floor((4095 - stored) / 4095 * 255 + 0.5))
    assert notes == [contrast.FLAT]


def test_one_level_is_no_picture():
    with pytest.raises(InputError):
        contrast.unflattened(levels(1, 7), VALUES, levels(1, 7))


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
