"""Masks: files of every encoding; resizing to the exact area, against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from kernel_lib.data import images, labels, rle
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
def test_aligned_blocks_shrink_without_loss_and_doubling_repeats_pixels(times):
    small = (np.random.default_rng(1).random((16, 24)) < 0.5).astype(np.uint8)
    large = np.kron(small, np.ones((times, times), dtype=np.uint8))
    np.testing.assert_array_equal(resize_mask(large, small.shape), small)
    if times == 2:  # a pixel inside is always nearer to it than to any outside, 9/16 to 7/16
        np.testing.assert_array_equal(resize_mask(small, large.shape), large)


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
    table = labels.read_labels(shared_data / "siim-labels" / "train-rle.csv")
    errors = []
    for text in table["rle"][table["rle"] != "-1"]:
        mask = rle.decode(text)
        area_px, resized_px = int(mask.sum()), int(resize_mask(mask, (512, 512)).sum())
        errors.append(4 * resized_px / area_px - 1)
        assert abs(4 * resized_px - area_px) <= 2
    assert len(errors) == 2_669
    assert abs(np.mean(errors)) < 0.001
    assert np.mean(np.abs(errors)) < 0.001


# --- mask files ---

MASK = np.zeros((64, 48), np.uint8)
MASK[10:20, 20:30] = 1
MASK[30:50, 5:12] = 1
EMPTY = np.zeros_like(MASK)
RIM = cv2.dilate(MASK, np.ones((3, 3), np.uint8)) - MASK
LUNGS = EMPTY.copy()
LUNGS[5:60, 2:40] = 1
RAMP = [level for level in range(256) for _ in range(3)]
BLACK, WHITE = EMPTY, EMPTY + 255


def layers(*each: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack(each), "LA" if len(each) == 2 else None)


def palette(indices: np.ndarray, colours: list[int]) -> Image.Image:
    picture = Image.fromarray(indices, "P")
    picture.putpalette(colours)
    return picture


def grey(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels)


def over(mask: np.ndarray, level: int, of_lungs: int) -> np.ndarray:
    return np.where(mask, level, of_lungs * LUNGS).astype(np.uint8)


RIGHT = {
    "0 and 255": lambda m: grey(m * 255),
    "0 and 1": lambda m: grey(m),
    "3 and 200": lambda m: grey(np.where(m, 200, 3).astype(np.uint8)) if m.any() else grey(m),
    "1 bit": lambda m: grey(m * 255).convert("1"),
    "16 bits": lambda m: grey(m.astype(np.uint16) * 65535),
    "RGB": lambda m: layers(m * 255, m * 255, m * 255),
    "yellow": lambda m: layers(m * 255, m * 255, m * 0),
    "red": lambda m: layers(m * 255, BLACK, BLACK),
    "dark blue": lambda m: layers(BLACK, BLACK, m * 128),
    "colour of a class": lambda m: layers(m * 250, m * 50, m * 83),
    "opaque": lambda m: layers(m * 255, m * 255, m * 255, WHITE),
    "transparent by mistake": lambda m: layers(m * 255, m * 255, m * 255, BLACK),
    "opacity on black": lambda m: layers(BLACK, BLACK, BLACK, m * 255),
    "opacity on white": lambda m: layers(WHITE, WHITE, WHITE, m * 255),
    "opacity on black, LA": lambda m: layers(BLACK, m * 255),
    "opacity on white, LA": lambda m: layers(WHITE, m * 255),
    "grey and opacity agree": lambda m: layers(m * 255, m * 255),
    "half opaque": lambda m: layers(BLACK, BLACK, BLACK, m * 128),
    "opaque red": lambda m: layers(m * 255, BLACK, BLACK, m * 255),
    "black ink on transparent white": lambda m: layers(*[255 - m * 255] * 3, m * 255),
    "white is transparent": lambda m: layers(*[m * 255] * 3, 255 - m * 255),
    "opaque within a box": lambda m: layers(m * 255, cv2.dilate(m, np.ones((9, 9))) * 255),
    "ramp": lambda m: palette(m * 255, RAMP),
    "ramp, 0 and 1": lambda m: palette(m, RAMP),
    "dark red": lambda m: palette(m, [0, 0, 0, 128, 0, 0]),
    "white background": lambda m: palette(m, [255, 255, 255, 0, 0, 0]),
    "red on white": lambda m: palette(m, [255, 255, 255, 255, 0, 0]),
    "no colours": lambda m: palette(m, [0, 0, 0, 0, 0, 0]),
    "viridis": lambda m: palette(m * 255, [68, 1, 84] + [33, 145, 140] * 254 + [253, 231, 37]),
    "brightest colour first": lambda m: grey(m * 255).quantize(2),
}
REFUSED = {
    "void rim": (lambda m: grey(m + RIM * 255), "0, 1 and 255"),
    "two classes and a void rim": (lambda m: grey(m + m * (m.cumsum(1) > 4) + RIM * 255), "void"),
    "void rim, palette": (lambda m: palette(m + RIM * 2, RAMP[6:]), "levels up to|covers"),
    "classes, palette": (
        lambda m: palette(m + RIM * 2, [0, 0, 0, 128, 0, 0, 0, 128, 0]), "3 colours",
    ),
    "lungs at half": (lambda m: grey(over(m, 255, 128)), "0, 128, 255"),
    "lungs below half": (lambda m: grey(over(m, 255, 100)), "0, 100, 255"),
    "mask below lungs": (lambda m: grey(over(m, 60, 255)), "0, 60, 255"),
    "nearly one level": (lambda m: grey(255 * LUNGS - m), "0, 254, 255"),
    "many levels, some flat": (lambda m: grey(cv2.blur(over(m, 255, 150), (3, 3))), "level 150"),
    "green lungs, red": (lambda m: layers(m * 255, (LUNGS - m) * 255, BLACK), "colours.*0, 255, 0"),
    "blue, yellow lungs": (lambda m: layers(*[(LUNGS - m) * 255] * 2, m * 255), "colours"),
    "two colours of a program": (
        lambda m: layers(*[m * a + (LUNGS - m) * b for a, b in ((250, 51), (50, 221), (83, 255))]),
        "colours",
    ),
    "two colours, opaque": (
        lambda m: layers(m * 255, (LUNGS - m) * 255, BLACK, LUNGS * 255), "colours",
    ),
    "two colours on white": (
        lambda m: layers(255 - LUNGS * 255 + m * 255, 255 - m * 255, 255 - LUNGS * 255), "colours",
    ),
    "dark": (lambda m: grey(m * 90), "levels up to 90"),
    "8 bits in 16": (lambda m: grey(m.astype(np.uint16) * 255), "levels up to 255"),
    "red and blue": (lambda m: layers(m * 255, BLACK, RIM * 255), "levels up to 76"),
    "red, JPEG's blue": (lambda m: layers(m * 255, BLACK, BLACK + 3), "levels up to 77"),
    "colour against opacity": (
        lambda m: layers(m * 255, np.roll(m, 5, axis=0) * 255), "another by its opacity",
    ),
    "inverted": (lambda m: grey(255 - m * 255), "MASKS_ARE"),
    "inverted, 0 and 1": (lambda m: grey(1 - m), "MASKS_ARE"),
    "inverted, 1 bit": (lambda m: grey(255 - m * 255).convert("1"), "MASKS_ARE"),
    "opaque background": (lambda m: layers(BLACK, BLACK, BLACK, 255 - m * 255), "MASKS_ARE"),
    "all white": (lambda m: grey(WHITE), "MASKS_ARE"),
}  # fmt: skip
SHADES = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8) * 2 + 20  # 20 to 240
MARKED = cv2.dilate(MASK, np.ones((9, 9))) - cv2.dilate(MASK, np.ones((7, 7)))
PICTURES = {
    "itself": grey(SHADES),
    "itself, bright": grey(np.maximum(SHADES, 150)),
    "tinted": layers(np.where(MASK, 255, SHADES).astype(np.uint8), SHADES, SHADES),
    "with a contour": layers(*[np.where(MARKED, c, SHADES).astype(np.uint8) for c in (0, 255, 0)]),
    "cut out": grey(SHADES * LUNGS),
    "cut out by opacity": layers(*[SHADES * LUNGS] * 3, LUNGS * 255),
}

OPAQUE = [name for name, picture in PICTURES.items() if picture.mode != "RGBA"]


@pytest.fixture
def read(tmp_path):
    def call(picture: Image.Image, name: str = "m.png", masks_are: str | None = None, **how):
        picture.save(tmp_path / name, **how)
        return images.read_mask(tmp_path / name, masks_are)

    return call


@pytest.mark.parametrize("mask", [MASK, EMPTY], ids=["mask", "empty"])
@pytest.mark.parametrize("encoding", RIGHT)
def test_the_mask_is_the_one_that_was_drawn(read, encoding, mask):
    np.testing.assert_array_equal(read(RIGHT[encoding](mask)), mask)


@pytest.mark.parametrize("encoding", REFUSED)
def test_what_may_be_another_mask_is_refused(read, encoding):
    picture, why = REFUSED[encoding]
    with pytest.raises(InputError, match=rf"m\.png.*({why})"):
        read(picture(MASK))


@pytest.mark.parametrize("masks_are", [None, "right", "inverted"])
@pytest.mark.parametrize(
    ("picture", "ending"), [(one, "png") for one in PICTURES] + [(one, "jpg") for one in OPAQUE]
)
def test_a_radiograph_is_no_mask_whatever_masks_are(read, picture, ending, masks_are):
    with pytest.raises(InputError, match=rf"m\.{ending} (has|draws)"):
        read(PICTURES[picture], f"m.{ending}", masks_are)


@pytest.mark.parametrize("colour", [(255, 255, 0), (0, 255, 0), (250, 125, 187)])
@pytest.mark.parametrize("ground", [0, 255])
def test_a_smoothed_rim_of_one_colour_is_no_class(read, colour, ground):
    large, pixel = np.ones((8, 8), np.uint8), np.ones((3, 3), np.uint8)
    soft = np.kron(cv2.blur(np.kron(MASK, large) * 255, (3, 3)), pixel) / 255
    picture = [np.uint8(ground + soft * (level - ground)) for level in colour]
    assert read(layers(*picture), masks_are="right").any()
    assert read(layers(*picture), "m.jpg", "right", quality=80).any()


def test_a_mask_that_was_resized_or_smoothed_is_no_picture_and_no_classes(read):
    crescent, ellipse = np.zeros((512, 512), np.uint8), np.zeros((256, 256), np.uint8)
    cv2.ellipse(crescent, (150, 200), (60, 120), 0, 90, 270, 255, 9)
    cv2.ellipse(ellipse, (100, 120), (30, 60), 20, 0, 360, 255, -1)
    small = [
        *(cv2.resize(crescent, (256, 256), interpolation=how)
          for how in (cv2.INTER_AREA, cv2.INTER_LINEAR)),
        cv2.GaussianBlur(ellipse, (0, 0), 0.7),
    ]  # fmt: skip
    assert len(np.unique(small[-1])) > 10
    enlarged = [np.kron(each, np.ones((n, n), np.uint8)) for each in small for n in (4, 8)]
    for levels in (*small, *enlarged, cv2.GaussianBlur(crescent, (0, 0), 4)):
        np.testing.assert_array_equal(read(grey(levels)), (levels > 127).astype(np.uint8))


def test_large_masks_are_read_as_the_user_says_or_where_they_leave_a_corner(read):
    white = grey(255 - MASK * 255)
    np.testing.assert_array_equal(read(white, masks_are="inverted"), MASK)
    np.testing.assert_array_equal(read(white, masks_are="right"), 1 - MASK)
    huge = np.ones_like(MASK)
    huge[0, 0] = 0
    np.testing.assert_array_equal(read(grey(huge * 255)), huge)


def test_jpeg_of_0_and_255_is_cut_at_half_and_of_a_few_levels_refused(read):
    mask = np.kron(MASK, np.ones((4, 4), np.uint8))
    for quality in (30, 75, 95):
        levels = read(grey(mask * 255), "m.jpg", quality=quality)
        np.testing.assert_array_equal(levels, mask)
    for top in (1, 2, 5):
        with pytest.raises(InputError, match="JPEG blurs them"):
            read(grey(MASK * top), "m.jpg", quality=95)
