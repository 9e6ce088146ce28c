"""RLE: against a pixel-by-pixel reference, at the edges, in error, and over every real row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernel_lib.data import rle
from kernel_lib.errors import InputError

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))
MASKS = SHAPES.flatmap(lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 1)))


def reference_encode(mask: np.ndarray) -> str:
    """One pixel after another, down the columns."""
    numbers, gap, length = [], 0, 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if mask[row, column]:
                length += 1
            elif length:
                numbers += [gap, length]
                gap, length = 1, 0
            else:
                gap += 1
    if length:
        numbers += [gap, length]
    return " ".join(str(number) for number in numbers) or "-1"


def reference_decode(text: str, shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.uint8)
    position = 0
    numbers = [] if text == "-1" else [int(token) for token in text.split()]
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        position += gap
        for pixel in range(position, position + length):
            mask[pixel % shape[0], pixel // shape[0]] = 1
        position += length
    return mask


def blob(shape: tuple[int, int], seed: int) -> np.ndarray:
    """A ragged mask with runs over many columns."""
    noise = np.random.default_rng(seed).random(shape)
    return (noise < np.linspace(0, 1, shape[1])).astype(np.uint8)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (["000", "000"], "-1"),
        (["100", "000"], "0 1"),
        (["000", "100"], "1 1"),
        (["010", "000"], "2 1"),
        (["010", "100"], "1 2"),
        (["101", "000"], "0 1 3 1"),
        (["000", "001"], "5 1"),
        (["111", "111"], "0 6"),
    ],
)
def test_strings_of_small_masks(rows, text):
    mask = np.array([list(map(int, row)) for row in rows], dtype=np.uint8)
    assert rle.encode(mask) == text
    np.testing.assert_array_equal(rle.decode(text, (2, 3)), mask)


@given(MASKS)
@example(np.ones((1, 1), dtype=np.uint8))
@example(np.zeros((1, 7), dtype=np.uint8))
@settings(max_examples=300)
def test_equals_the_reference_both_ways(mask):
    before = mask.copy()
    text = rle.encode(mask)
    np.testing.assert_array_equal(mask, before)
    assert text == reference_encode(mask)
    decoded = rle.decode(text, mask.shape)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, mask)
    np.testing.assert_array_equal(decoded, reference_decode(text, mask.shape))


@pytest.mark.parametrize("shape", [(1024, 1024), (700, 1300), (1300, 700), (1, 500), (500, 1)])
def test_large_masks_round_trip(shape):
    mask = blob(shape, seed=3)
    np.testing.assert_array_equal(rle.decode(rle.encode(mask), shape), mask)
    assert rle.encode(mask) == reference_encode(mask)


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        ((0, 0), "0 1"),
        ((0, -1), f"{1023 * 1024} 1"),
        ((-1, 0), "1023 1"),
        ((-1, -1), f"{1024 * 1024 - 1} 1"),
        (slice(None), "0 1048576"),
    ],
)
def test_runs_at_the_first_and_last_pixel_are_kept(pixels, text):
    mask = np.zeros((1024, 1024), dtype=np.uint8)
    mask[pixels] = 1
    assert rle.encode(mask) == text
    np.testing.assert_array_equal(rle.decode(text), mask)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.float32])
def test_nonzero_is_one_in_any_type_and_layout(dtype):
    mask = blob((30, 20), seed=1)
    expected = reference_encode(mask)
    typed = (mask * 2).astype(dtype)
    assert rle.encode(typed) == expected
    assert rle.encode(np.asfortranarray(typed)) == expected
    assert rle.encode(np.repeat(typed, 2, axis=1)[:, ::2]) == expected
    if np.dtype(dtype).kind in "if":
        assert rle.encode(-typed) == expected
    assert rle.encode(np.array([[1, 2, 0, 4]], dtype=np.uint8)) == "0 2 1 1"  # no bit in common


@given(MASKS)
@settings(max_examples=200)
def test_runs_are_ascending_merged_and_count_the_area(mask):
    runs = rle.runs_of(mask)
    assert runs.dtype == np.int64
    assert runs.shape == (len(runs), 2)
    assert rle.area(runs) == mask.sum()
    assert (runs[:, 1] > 0).all()
    assert (runs[1:, 0] > runs[:-1].sum(axis=1)).all()
    rle.check_inside(runs, mask.shape)
    before = runs.copy()
    np.testing.assert_array_equal(rle.mask_of(runs, mask.shape), mask)
    np.testing.assert_array_equal(rle.parse(rle.to_string(runs), mask.shape), runs)
    np.testing.assert_array_equal(runs, before)


@given(
    SHAPES.flatmap(
        lambda shape: st.lists(hnp.arrays(np.uint8, shape, elements=st.integers(0, 1)), max_size=5)
    )
)
@settings(max_examples=200)
def test_union_is_the_or_of_the_masks(many):
    united = rle.union([rle.runs_of(mask) for mask in many])
    if not many:
        assert united.shape == (0, 2)
        return
    np.testing.assert_array_equal(united, rle.runs_of(np.bitwise_or.reduce(many)))
    longer, short, later = np.array([[0, 10]]), np.array([[2, 3]]), np.array([[6, 1], [10, 2]])
    np.testing.assert_array_equal(rle.union([short, later, longer]), [[0, 12]])


@pytest.mark.parametrize(
    ("text", "runs", "written"),
    [
        *((empty, [], "-1") for empty in ("-1", " -1", "-1 ", "", "  ")),
        ("3 2 0 4 0 1 5 1", [[3, 7], [15, 1]], "3 7 5 1"),  # runs without a gap become one
        ("0 2 0 4", [[0, 6]], "0 6"),
        (" 3  2\t4\n1 ", [[3, 2], [9, 1]], "3 2 4 1"),
        ("11 1", [[11, 1]], "11 1"),  # the last pixel of 3×4
        ("11 2", [[11, 2]], "11 2"),  # beyond it: no shape, no bound
    ],
)
def test_strings_are_read_as_runs(text, runs, written):
    np.testing.assert_array_equal(rle.parse(text), np.reshape(runs, (-1, 2)))
    assert rle.to_string(rle.parse(text)) == written
    if text == "11 2":
        with pytest.raises(rle.RleError, match="pixel 13"):
            rle.parse(text, (3, 4))
    elif not runs:
        assert rle.decode(text, (3, 4)).shape == (3, 4)
        assert not rle.decode(text, (3, 4)).any()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 2 3", ["3 numbers", "odd", "pair 2"]),
        ("1 2 3 x", ["pair 2", "run length", "'x'", "whole number"]),
        ("1 2 y 4", ["pair 2", "gap", "'y'"]),
        ("1 2 3.0 4", ["pair 2", "'3.0'"]),
        ("1 2 1_0 4", ["pair 2", "'1_0'"]),
        ("1 2 5-3 4", ["pair 2", "'5-3'"]),
        ("1 2 +3 4", ["pair 2", "'+3'"]),
        ("1 2 ٣ 4", ["pair 2", "'٣'"]),
        ("1 2\u00a03 4", ["spaces"]),
        ("nan", ["pair 1", "'nan'"]),
        ("1 2 -3 4", ["pair 2", "gap", "-3", "below 0"]),
        ("1 2 3 -4", ["pair 2", "run length", "-4", "below 1"]),
        ("-1 -1", ["pair 1", "-1"]),
        ("1 2 3 0", ["pair 2", "run length is 0"]),
        ("9 9 99999999999999999999 1", ["pair 2", "99999999999999999999"]),
        ("9 9 2147483648 1", ["pair 2", "2147483648", "2,147,483,647"]),
        ("0 5 6 2", ["pair 2", "pixel 13", "3×4", "12 pixels"]),
    ],
)
def test_bad_strings_are_refused_by_pair(text, words):
    with pytest.raises(rle.RleError) as caught:
        rle.parse(text, (3, 4))
    for word in words:
        assert word in str(caught.value)
    assert isinstance(caught.value, InputError)
    with pytest.raises(rle.RleError):
        rle.decode(text, (3, 4))


@given(st.text(alphabet="0123456789 -x.", max_size=30))
@settings(max_examples=300)
def test_any_string_parses_or_is_refused_with_a_word(text):
    try:
        runs = rle.parse(text, (50, 40))
    except rle.RleError:
        return
    rle.check_inside(runs, (50, 40))
    np.testing.assert_array_equal(
        rle.mask_of(runs, (50, 40)), reference_decode(text.strip() or "-1", (50, 40))
    )


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([[0, 3], [2, 2]], ["run 2", "start 2", "(3)"]),
        ([[5, 1], [0, 1]], ["run 2"]),
        ([[-1, 2]], ["run 1", "start -1"]),
        ([[0, 0]], ["run 1", "length 0"]),
        ([[10, 3]], ["run 1", "12", "3×4"]),
    ],
)
def test_bad_runs_are_refused_by_number(runs, words):
    for call in (rle.check_inside, rle.mask_of):
        with pytest.raises(rle.RleError) as caught:
            call(np.array(runs), (3, 4))
        for word in words:
            assert word in str(caught.value)


def test_arguments_of_other_kinds_are_refused():
    with pytest.raises(rle.RleError, match=r"\(1, 4, 4\)"):
        rle.encode(np.zeros((1, 4, 4)))
    with pytest.raises(rle.RleError, match=r"\(0, 4\)"):
        rle.decode("-1", (0, 4))
    for value in (None, float("nan"), 12, b"1 2"):
        with pytest.raises(rle.RleError, match="keep_default_na=False"):
            rle.parse(value)


@pytest.fixture(scope="module")
def real_rows(shared_data) -> pd.DataFrame:
    path = shared_data / "siim-labels" / "train-rle.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return table.set_axis(["image_id", "rle"], axis=1)


def test_every_real_row_parses_and_the_counts_hold(real_rows):
    runs = [rle.parse(text, (1024, 1024)) for text in real_rows["rle"]]
    assert len(runs) == 12_954
    assert max(int(r[-1].sum()) for r in runs if len(r)) == 1_021_949
    assert [rle.to_string(r) for r in runs if not len(r)] == ["-1"] * (12_047 - 2_669)

    areas, overlapping = [], 0
    rows_of = real_rows.groupby("image_id").indices
    for rows in rows_of.values():
        united = rle.union([])
        for row in rows:
            wider = rle.union([united, runs[row]])
            overlapping += rle.area(wider) < rle.area(united) + rle.area(runs[row])
            united = wider
        areas.append(rle.area(united))
    positive = [area for area in areas if area]
    assert (len(areas), len(positive), overlapping) == (12_047, 2_669, 239)
    assert (min(positive), np.median(positive), max(positive)) == (55, 8_630, 161_421)


@pytest.mark.slow
def test_every_real_row_decodes_and_encodes_back(real_rows):
    for text in real_rows["rle"].unique():
        mask = rle.decode(text)
        runs = rle.parse(text)
        assert int(mask.sum(dtype=np.int64)) == rle.area(runs)
        assert rle.encode(mask) == rle.to_string(runs)
        # Not by this module's own way: every run's ends, found in the transposed mask.
        flat = np.concatenate([[0], mask.T.ravel(), [0]]).astype(np.int8)
        edges = np.flatnonzero(np.diff(flat))
        np.testing.assert_array_equal(edges, runs.cumsum(axis=1).ravel())


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 2**32 - 1),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_shared_pixels_of_runs_are_those_of_masks(shape, seed, shares):
    random = np.random.default_rng(seed)
    first, second = (random.random(shape) < share for share in shares)
    assert rle.shared_px(rle.runs_of(first), rle.runs_of(second)) == (first & second).sum()
