"""Stored values of words whose header is right, and of those whose header is not."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset

from kernel_lib.data.dicom_levels import WRONG_BITS, WRONG_SIGN, pixel_values

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
    values, found, notes = pixel_values(words, dataset)
    np.testing.assert_array_equal(values, expected)
    assert (found, notes) == (bits, [WRONG_BITS])


@pytest.mark.parametrize(
    ("words", "bits"), [(RAMP, 12), (RAMP >> 2, 10), (RAMP * 4, 14), (RAMP * 16, 16), (SIGNED, 12)]
)
def test_16_of_16_bits_are_those_in_use(words, bits):
    values, found, notes = pixel_values(words, header(16, 15))
    assert values is words
    assert (found, notes) == (bits, [])


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
    values, found, notes = pixel_values(words, dataset)
    np.testing.assert_array_equal(values, expected)
    assert (found, notes) == (used, [WRONG_SIGN])
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
