"""Stored values also where the header is wrong; flat pictures are stretched, others left."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset

from kernel_lib.data.levels import (
    FLAT,
    MISSED,
    WRONG_BITS,
    WRONG_SIGN,
    as_grey,
    depth,
    pixel_values,
    shown,
)
from kernel_lib.errors import InputError

ROWS, COLUMNS = np.mgrid[:64, :64]
RAMP = ((ROWS + COLUMNS) / 126 * 4095).astype(np.uint16)  # 12 bits, all of them in use
TEXTURE = (RAMP + np.random.default_rng(0).integers(0, 400, RAMP.shape)).clip(0, 4095)
SIGNED = (RAMP.astype(np.int32) - 2048).astype(np.int16)
BLOCK = np.zeros_like(RAMP)
BLOCK[20:30, 15:45] = 1


def header(bits: int, high: int | None = None, overlay: int | None = None) -> Dataset:
    dataset = Dataset()
    dataset.BitsStored = bits
    if high is not None:
        dataset.HighBit = high
    if overlay is not None:
        dataset.add_new(0x60020100, "US", 16)
        dataset.add_new(0x60020102, "US", overlay)
    return dataset


@pytest.mark.parametrize(
    ("words", "dataset"),
    [
        (RAMP, header(12)),
        (RAMP, header(12, 11)),
        (RAMP, header(12, 7)),  # a HighBit that can't be right says nothing
        (RAMP, header(12, 99)),
        (RAMP << 4, header(12, 15)),
        (RAMP << 2, header(12, 13)),
        (RAMP << 4 | BLOCK, header(12, 15, overlay=0)),
        (RAMP | 0xF000, header(12, 11)),
        (RAMP | BLOCK << 12, header(12, 11, overlay=12)),
        (RAMP | BLOCK << 15, header(12, 11, overlay=15)),
        (RAMP | BLOCK << 12, header(12, 11)),
        (RAMP | BLOCK << 15, header(12, 11)),
        (RAMP.astype(">u2"), header(12, 11)),
        ((RAMP | BLOCK << 13).astype(">u2"), header(12, 11)),
        (SIGNED, header(12, 11)),
        (SIGNED << 4, header(12, 15)),
        (SIGNED & 0x0FFF, header(12, 11)),  # no sign in the unused bits
    ],
)
def test_the_bits_that_the_header_states(words, dataset):
    values, bits, notes = pixel_values(words, dataset)
    np.testing.assert_array_equal(values, SIGNED if words.dtype.kind == "i" else RAMP)
    assert (bits, notes) == (12, [])


@pytest.mark.parametrize(
    ("words", "dataset", "expected", "bits"),
    [
        (RAMP * 2, header(12, 11), RAMP * 2, 14),
        (RAMP * 4, header(12, 11), RAMP * 4, 14),
        (RAMP * 16, header(12, 11), RAMP * 16, 16),
        (RAMP, header(8, 7), RAMP, 12),
        (RAMP >> 4 << 8, header(8, 7), RAMP >> 4 << 8, 16),
        (RAMP * 2 | BLOCK << 15, header(12, 11, overlay=15), RAMP * 2, 14),
        (RAMP * 2 | BLOCK << 15, header(12, 11), RAMP * 2, 14),
        (SIGNED * 2, header(12, 11), SIGNED * 2, 14),
        (RAMP, header(12, 15), RAMP, 12),  # never moved to the upper bits
        (SIGNED, header(12, 15), SIGNED, 12),
        ((RAMP >> 4).astype(np.uint8), header(12, 11), RAMP >> 4, 8),
    ],
)
def test_the_bits_that_the_values_use_where_the_header_is_wrong(words, dataset, expected, bits):
    values, result, notes = pixel_values(words, dataset)
    np.testing.assert_array_equal(values, expected)
    assert (result, notes) == (bits, [WRONG_BITS])


@pytest.mark.parametrize(
    ("words", "bits"), [(RAMP, 12), (RAMP >> 2, 10), (RAMP * 4, 14), (RAMP * 16, 16), (SIGNED, 12)]
)
def test_16_of_16_bits_are_those_in_use(words, bits):
    values, result, notes = pixel_values(words, header(16, 15))
    assert values is words
    assert (result, notes) == (bits, [])


@pytest.mark.parametrize(
    ("words", "bits", "expected", "used"),
    [
        (RAMP.astype(np.int16), 12, RAMP, 12),
        (TEXTURE.astype(np.int16), 12, TEXTURE, 12),
        ((RAMP * 16).view(np.int16), 16, RAMP * 16, 16),
        ((RAMP >> 4).astype(np.int8), 8, RAMP >> 4, 8),
        ((RAMP << 4).view(np.int16) >> 4, 12, RAMP, 12),  # its sign in the unused bits
        (SIGNED.view(np.uint16), 12, SIGNED, 12),
        (SIGNED.view(np.uint16) & 0x0FFF, 12, SIGNED, 12),
        (SIGNED.view(np.uint16), 16, SIGNED, 12),
        ((SIGNED + 1024).view(np.uint16), 14, SIGNED + 1024, 14),
        ((SIGNED + 1024).view(np.uint16).astype(">u2"), 14, SIGNED + 1024, 14),
        ((TEXTURE - 900).astype(np.int16).view(np.uint16), 16, TEXTURE - 900, 14),
    ],
)
def test_values_that_wrap_around_by_their_sign_have_the_other(words, bits, expected, used):
    dataset = header(bits)
    values, result, notes = pixel_values(words, dataset)
    np.testing.assert_array_equal(values, expected)
    assert (result, notes) == (used, [WRONG_SIGN])
    assert dataset.PixelRepresentation == (words.dtype.kind == "u")


NOISE = np.random.default_rng(1).integers(0, 65536, RAMP.shape).astype(np.uint16)
MARKED = np.where(BLOCK, 65535, RAMP).astype(np.uint16)


@pytest.mark.parametrize(
    ("words", "bits"),
    [
        (TEXTURE.astype(np.uint16), 12),
        (RAMP.astype(np.int16), 16),  # no value has a sign
        (SIGNED, 12),
        ((TEXTURE - 1024).astype(np.int16), 14),
        (NOISE, 16),
        (NOISE.view(np.int16), 16),
        (MARKED, 16),
        (MARKED.view(np.int16), 16),
        (np.where(RAMP > 2047, 255, BLOCK).astype(np.uint8), 8),  # black and white are no signs
    ],
)
def test_a_sign_that_is_right_or_makes_no_clear_difference_stays(words, bits):
    dataset = header(bits)
    values, _, notes = pixel_values(words, dataset)
    np.testing.assert_array_equal(values, words)
    assert notes == []
    assert "PixelRepresentation" not in dataset


# --- flat pictures and windows ---

VALUES = np.arange(4096.0)
FULL = as_grey(VALUES / 4095)
SAME = np.arange(256, dtype=np.uint8)
ALL = np.arange(4096).reshape(64, 64)


def grey_of(n: int, first: int = 0, step: int = 1) -> np.ndarray:
    """A picture of (64, 64) that uses n levels from the first on."""
    return (first + np.arange(64 * 64) % n * step).astype(np.uint8).reshape(64, 64)


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.floor(np.clip((values - low) / (high - low), 0, 1) * 255 + 0.5)


@pytest.mark.parametrize(
    ("grey", "flat"),
    [
        (grey_of(3, 100), True), (grey_of(65), True), (grey_of(65, 190), True),
        (grey_of(66), False), (grey_of(25, 0, 10), True), (grey_of(26, 0, 9), False),
        (grey_of(256), False),
        (grey_of(6, 0, 51), True),  # over the full range, so stretching changes nothing
    ],
)  # fmt: skip
def test_a_narrow_range_or_few_levels_are_flat(grey, flat):
    result, notes = shown(SAME, np.arange(256.0), grey)
    low, high = (grey.min(), grey.max()) if flat else (0, 255)
    np.testing.assert_array_equal(result, stretched(grey.astype(float), low, high))
    assert notes == ([FLAT] if flat else [])


def test_levels_that_few_pixels_have_do_not_hide_that_a_picture_is_flat():
    grey = grey_of(50)
    grey[0, :20] = np.arange(60, 260, 10).clip(max=255)  # 0.49 % of the pixels
    assert shown(SAME, np.arange(256.0), grey)[1] == [FLAT]


def window(low: float, high: float) -> np.ndarray:
    return as_grey((VALUES - low) / (high - low))


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
    result, notes = shown(table, VALUES, ALL, by_window=True)
    np.testing.assert_array_equal(result, FULL[ALL] if missed else table[ALL])
    assert notes == ([MISSED] if missed else [])
    assert shown(table, VALUES, ALL)[1] == []  # a look-up table may be of few values


def test_a_window_may_miss_air_and_collimation():
    stored = ALL % 1024
    stored[:, 30:] = 4000 + stored[:, 30:] % 90
    table = window(0, 1024)
    result, notes = shown(table, VALUES, stored, by_window=True)
    np.testing.assert_array_equal(result, table[stored])
    assert notes == []


def test_a_marker_does_not_set_the_range():
    stored = ALL % 256
    stored[5, :20] = 4095  # 0.49 % of the pixels
    result, notes = shown(FULL, VALUES, stored)
    np.testing.assert_array_equal(result, stretched(stored, 1, 255))
    assert notes == [FLAT]


def test_padding_of_a_picture_that_is_not_flat_is_as_in_the_table():
    result, notes = shown(FULL, VALUES, ALL, padding=slice(4000, 4096))
    np.testing.assert_array_equal(result, FULL[ALL])
    assert notes == []


def marked(n: int) -> np.ndarray:
    stored = ALL % 100
    stored.ravel()[:n] = 4095
    return stored


@pytest.mark.parametrize(
    "stored",
    [ALL * 0 + 7, (ALL == 9) * 7, ALL // 2048 * 4095, marked(60), (ALL < 50) * ALL],
)
def test_one_level_two_levels_and_what_stays_flat_are_no_picture(stored):
    with pytest.raises(InputError):
        shown(FULL, VALUES, stored)
    with pytest.raises(InputError):  # as is padding all over
        shown(FULL, VALUES, ALL * 0 + 7, padding=slice(7, 8))


@pytest.mark.parametrize(
    ("lowest", "highest", "signed", "bits"),
    [
        (0, 0, False, 8), (0, 255, False, 8), (0, 256, False, 10), (0, 1024, False, 12),
        (0, 4095, False, 12), (0, 4096, False, 14), (0, 16384, False, 16), (0, 65535, False, 16),
        (-128, 127, True, 8), (-129, 0, True, 10), (0, 128, True, 10), (-32768, 0, True, 16),
    ],
)  # fmt: skip
def test_depth_is_the_least_that_holds_the_values(lowest, highest, signed, bits):
    assert depth(lowest, highest, signed=signed) == bits
