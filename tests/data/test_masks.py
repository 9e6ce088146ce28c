"""Resizing masks: the area to the pixel, the choice of pixels against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernel_lib.data import rle
from kernel_lib.data.masks import resize_mask, resized_area
from kernel_lib.errors import InputError

SHAPES = st.tuples(st.integers(1, 8), st.integers(1, 8))
MASKS = SHAPES.flatmap(lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 1)))


def weights(n_in: int, n_out: int) -> list[list[Fraction]]:
    """How much of each input pixel lies in each output pixel's window, as exact fractions."""
    half = Fraction(max(n_in, n_out), 2 * n_out)
    table = []
    for out in range(n_out):
        centre = Fraction((2 * out + 1) * n_in, 2 * n_out)
        row = []
        for pixel in range(n_in):
            # The first and last pixel stand for all that lies beyond the edge as well.
            low = Fraction(pixel) if pixel else Fraction(-(10**6))
            high = Fraction(pixel + 1) if pixel < n_in - 1 else Fraction(10**6)
            row.append(max(Fraction(0), min(high, centre + half) - max(low, centre - half)))
        table.append(row)
    return table


def reference_resize(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    down, across = (
        np.array(weights(n, m), dtype=object) for n, m in zip(mask.shape, shape, strict=True)
    )
    cover = down @ mask.astype(object) @ across.T
    exact = Fraction(int(mask.sum()) * shape[0] * shape[1], mask.size)
    n_px = int(exact + Fraction(1, 2))  # halves up
    if mask.any():
        n_px = max(n_px, 1)
    edged = np.pad(cover, 1, mode="edge")
    keys = {
        (i, j): (-cover[i, j], -edged[i : i + 3, j : j + 3].sum(), i, j)
        for i in range(shape[0])
        for j in range(shape[1])
    }
    resized = np.zeros(shape, dtype=np.uint8)
    for pixel in sorted(keys, key=keys.get)[:n_px]:
        resized[pixel] = 1
    return resized


@given(MASKS, SHAPES)
@example(np.array([[0, 0, 0], [0, 0, 1]], dtype=np.uint8), (1, 1))
@example(np.tril(np.ones((8, 6), dtype=np.uint8)), (4, 2))  # whole blocks of pixels
@example(np.tril(np.ones((8, 6), dtype=np.uint8)), (4, 4))  # whole along one side only
@example(np.array([[1, 0, 1, 0, 1]], dtype=np.uint8), (1, 7))
@settings(max_examples=300)
def test_equals_the_choice_by_exact_fractions(mask, shape):
    resized = resize_mask(mask, shape)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, reference_resize(mask, shape))


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(0, 2**32),
    st.floats(0, 1),
)
@settings(max_examples=300)
def test_area_is_what_resized_area_says(old, new, seed, share):
    mask = np.random.default_rng(seed).random(old) < share
    resized = resize_mask(mask, new)
    assert resized.shape == new
    assert int(resized.sum()) == resized_area(int(mask.sum()), old, new)


@pytest.mark.parametrize(
    ("area_px", "old", "new", "expected"),
    [
        (0, (8, 8), (4, 4), 0),
        (4, (8, 8), (4, 4), 1),
        (5, (8, 8), (4, 4), 1),  # 1.25
        (6, (8, 8), (4, 4), 2),  # 1.5: halves go up
        (7, (8, 8), (4, 4), 2),  # 1.75
        (10, (8, 8), (4, 4), 3),  # 2.5, up as well
        (1, (8, 8), (4, 4), 1),  # 0.25, but no positive turns negative
        (64, (8, 8), (4, 4), 16),
        (5, (4, 4), (8, 8), 20),
        (55, (1024, 1024), (512, 512), 14),  # 13.75, the smallest real mask
        (55, (1024, 1024), (64, 64), 1),  # 0.21
        (3, (3, 5), (2, 7), 3),  # 2.8
    ],
)
def test_areas_by_hand(area_px, old, new, expected):
    assert resized_area(area_px, old, new) == expected


def test_a_single_pixel_survives_any_shrinking_where_it_was():
    mask = np.zeros((1024, 1024), dtype=np.uint8)
    mask[700, 300] = 1
    resized = resize_mask(mask, (64, 64))
    assert resized.sum() == 1
    assert resized[700 // 16, 300 // 16] == 1


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_aligned_blocks_shrink_without_loss(times):
    small = (np.random.default_rng(1).random((16, 24)) < 0.5).astype(np.uint8)
    large = np.kron(small, np.ones((times, times), dtype=np.uint8))
    np.testing.assert_array_equal(resize_mask(large, small.shape), small)


def test_doubling_repeats_pixels():
    # At twice the size a pixel inside is always nearer to it than to any outside, 9/16 to 7/16.
    small = (np.random.default_rng(1).random((16, 24)) < 0.5).astype(np.uint8)
    np.testing.assert_array_equal(
        resize_mask(small, (32, 48)), np.kron(small, np.ones((2, 2), dtype=np.uint8))
    )


def test_enlarging_more_smooths_the_corners_and_keeps_the_area():
    small = np.zeros((6, 6), dtype=np.uint8)
    small[2:4, 2:4] = 1
    large = resize_mask(small, (48, 48))
    assert large.sum() == 4 * 64
    assert not large[16, 16]  # a corner of the block that repeated pixels would make
    assert large[15, 24]  # beyond the middle of its side


def test_types_and_the_input_left_alone():
    mask = np.zeros((6, 6), dtype=np.uint8)
    mask[1:5, 2:5] = 255
    before = mask.copy()
    expected = resize_mask(mask != 0, (3, 3))
    np.testing.assert_array_equal(resize_mask(mask, (3, 3)), expected)
    np.testing.assert_array_equal(resize_mask(mask.astype(np.float32), (3, 3)), expected)
    np.testing.assert_array_equal(resize_mask(np.asfortranarray(mask), (3, 3)), expected)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize(
    ("mask_shape", "shape", "word"),
    [
        ((4, 4, 1), (2, 2), r"\(4, 4, 1\)"),
        ((0, 4), (2, 2), r"\(0, 4\)"),
        ((4, 4), (2, 0), r"\(2, 0\)"),
        ((4, 4), (2,), r"\(2,\)"),
    ],
)
def test_bad_shapes_are_refused(mask_shape, shape, word):
    with pytest.raises(InputError, match=word):
        resize_mask(np.zeros(mask_shape), shape)


@pytest.mark.slow
def test_real_masks_keep_their_area_at_512(shared_data):
    table = pd.read_csv(
        shared_data / "siim-labels" / "train-rle.csv", dtype=str, keep_default_na=False
    ).set_axis(["image_id", "rle"], axis=1)
    runs = table["rle"].map(rle.parse).groupby(table["image_id"]).apply(rle.union)
    errors = []
    for united in runs[runs.map(len) > 0]:
        mask = rle.mask_of(united, (1024, 1024))
        resized = resize_mask(mask, (512, 512))
        errors.append(4 * int(resized.sum()) / rle.area(united) - 1)
        assert abs(4 * int(resized.sum()) - rle.area(united)) <= 2
    assert len(errors) == 2_669
    assert abs(np.mean(errors)) < 0.001
    assert np.mean(np.abs(errors)) < 0.001
