"""Labels that can't be right together: empty, inverted, of another size. No false alarm."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from kernel_lib.data import label_checks, labels, rle
from kernel_lib.data.masks import resize_mask


def crescents(height: int, width: int, n: int, seed: int = 0) -> list[np.ndarray]:
    """n masks (H, W) like a pneumothorax: a crescent along one lung's rim, left or right."""
    rng = np.random.default_rng(seed)
    scale, result = np.array([width, height]), []
    for _ in range(n):
        centre = np.array([rng.choice([0.3, 0.7]), rng.uniform(0.35, 0.55)]) * scale
        size = np.array([rng.uniform(0.12, 0.18), rng.uniform(0.25, 0.35)]) * scale
        mask = np.zeros((height, width), np.uint8)
        for shift, level in ((0, 1), (0.04, 0)):
            at = (centre + shift * scale).round().astype(int).tolist()
            cv2.ellipse(mask, at, size.astype(int).tolist(), 0, 0, 360, level, -1)
        result.append(mask)
    return result


def crescent_runs(side: int, n: int, seed: int = 0) -> list[rle.Runs]:
    return [rle.runs_of(mask) for mask in crescents(side, side, n, seed)]


def of_images(masks: list[rle.Runs], height: int, width: int) -> list[label_checks.Label]:
    return [(runs, (height, width)) for runs in masks]


@pytest.mark.parametrize("side", [128, 224, 256, 500, 512, 896])
@pytest.mark.parametrize("n", [1, 3, 30])
def test_the_size_that_masks_were_drawn_at_is_named(side, n):
    doubt = label_checks.doubt(of_images(crescent_runs(side, n), 1024, 1024))
    assert f"{side} px" in doubt
    assert "1024×1024" in doubt
    assert "MASKS_ARE" in doubt


@pytest.mark.parametrize("side", [960, 1000])
def test_a_size_that_is_larger_than_the_images_is_named(side):
    inside = [runs for runs in crescent_runs(1024, 30) if runs[-1].sum() <= side * side]
    assert label_checks.drawn_at(of_images(inside, side, side)) == "1024 px high"


@pytest.mark.parametrize(
    ("of_masks", "of_images_", "name"),
    [
        ((256, 256), (2000, 1500), "256 px high"),
        ((400, 500), (800, 1000), "400 px high"),
        ((427, 512), (1000, 1200), "512 px wide"),
        ((333, 333), (1000, 1000), "1/3 as high"),
    ],
)
def test_masks_that_are_not_square_are_named_by_a_side_or_a_share(of_masks, of_images_, name):
    masks = [rle.runs_of(mask) for mask in crescents(*of_masks, 20)]
    assert label_checks.drawn_at(of_images(masks, *of_images_)) == name


VARYING = [(960 + 40 * (at % 5), 1000 + 32 * (at % 7)) for at in range(30)]


@pytest.mark.parametrize(("part", "name"), [(2, "1/2 as high"), (1, None)])
def test_a_share_of_the_size_is_named_where_sizes_vary(part, name):
    masks = [crescents(h // part, w // part, 1, at)[0] for at, (h, w) in enumerate(VARYING)]
    labels = list(zip(map(rle.runs_of, masks), VARYING, strict=True))
    assert label_checks.drawn_at(labels) == name
    assert (label_checks.doubt(labels) is None) == (name is None)


@pytest.mark.parametrize("shape", [(400, 500), (500, 400), (480, 512)])
@pytest.mark.parametrize("n", [5, 30])
def test_runs_along_the_rows_are_named_and_not_to_be_taken_as_they_are(shape, n):
    by_rows = [rle.runs_of(mask.T) for mask in crescents(*shape, n)]
    doubt = label_checks.doubt(of_images(by_rows, *shape))
    assert label_checks.BY_ROWS in doubt
    assert "MASKS_ARE" not in doubt
    by_columns = [rle.runs_of(mask) for mask in crescents(*shape, n)]
    assert label_checks.doubt(of_images(by_columns, *shape)) is None


@pytest.mark.parametrize("side", [64, 256, 1024])
@pytest.mark.parametrize("n", [1, 2, 5, 50])
def test_masks_of_the_images_own_size_raise_no_doubt(side, n):
    for seed in range(5):
        assert label_checks.doubt(of_images(crescent_runs(side, n, seed), side, side)) is None


def test_masks_far_left_of_one_column_or_of_full_columns_are_no_sign():
    mask = np.zeros((1024, 1024), np.uint8)
    mask[200:700, 20:90] = 1  # within the pixels of 320×320
    assert label_checks.drawn_at([(rle.runs_of(mask), mask.shape)] * 50) is None
    for text in ("5 10", "0 2000", "3 4 100 4"):
        assert label_checks.drawn_at(of_images([rle.parse(text)] * 9, 128, 128)) is None


def test_the_competitions_masks_raise_no_doubt_in_any_number(shared_data):
    table = labels.read_labels(shared_data / "siim-labels" / "train-rle.csv")
    masks = of_images([rle.parse(text) for text in table["rle"] if text != "-1"], 1024, 1024)
    assert label_checks.doubt(masks) is None
    rng = np.random.default_rng(0)
    for n in (1, 5, 10, 50, 200):
        for _ in range(20):
            chosen = [masks[i] for i in rng.choice(len(masks), n, replace=False)]
            assert label_checks.doubt(chosen) is None
    smaller = [resize_mask(rle.mask_of(*one), (256, 256)) for one in masks[:20]]
    as_read = of_images([rle.runs_of(mask) for mask in smaller], 1024, 1024)
    assert {label_checks.drawn_at([one]) for one in as_read} == {"256 px high"}


def covering(*shares: float) -> list[label_checks.Label]:
    return [(np.array([[0, round(share * 10_000)]]), (100, 100)) for share in shares]


@pytest.mark.parametrize(
    ("shares", "is_doubted"),
    [
        ((0.9, 0.8, 0.1), True),
        ((0.9, 0.8, 0.1, 0.1), False),
        ((0.9,), False),
        ((0.5, 0.5), False),
        ((0.51, 0.51), True),
    ],
)
def test_masks_that_mostly_cover_more_than_half_look_inverted(shares, is_doubted):
    doubt = label_checks.doubt([*covering(*shares), *[(rle.parse("-1"), (100, 100))] * 20])
    assert is_doubted == (doubt is not None)
    if doubt:
        assert "MASKS_ARE inverted" in doubt


def test_labels_without_any_mask_are_doubted_and_none_at_all_are_not():
    assert "empty" in label_checks.doubt([(rle.parse("-1"), (9, 9))] * 3)
    assert label_checks.doubt([]) is None


def test_masks_that_cover_more_than_half_are_named_also_where_they_are_few():
    named = list(zip("abcde", covering(0.9, 0.1, 0.6, 0.5, 0.2), strict=True))
    assert label_checks.doubt_of_large(named).endswith(": a, c")
    assert label_checks.doubt_of_large(named[3:]) is None
    many = list(zip("abcde", covering(*[0.9] * 5), strict=True))
    assert label_checks.doubt_of_large(many).endswith(": a, b, c and 2 more")


@pytest.mark.parametrize(("thickness", "is_doubted"), [(1, True), (3, True), (-1, False)])
def test_outlines_are_doubted_where_most_masks_are(thickness, is_doubted):
    masks = [np.zeros((256, 256), np.uint8) for _ in range(9)]
    for at, mask in enumerate(masks):
        filled = thickness if at < 6 else -1
        cv2.ellipse(mask, (80, 120), (20 + at, 60), 0, 0, 360, 1, filled)
    doubt = label_checks.doubt(of_images([rle.runs_of(mask) for mask in masks], 256, 256))
    assert (doubt is not None and "MASKS_ARE right" in doubt) == is_doubted
