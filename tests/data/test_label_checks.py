"""Labels that can't be right together: empty, inverted, drawn at another size. No false alarm."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from kernel_lib.data import label_checks, labels, rle
from kernel_lib.data.masks import resize_mask


def drawn(side: int, n: int, seed: int = 0) -> list[rle.Runs]:
    """n masks like a pneumothorax: a crescent along one lung's rim, left or right."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        centre = (rng.choice([0.3, 0.7]) * side, rng.uniform(0.35, 0.55) * side)
        size = np.array([rng.uniform(0.12, 0.18), rng.uniform(0.25, 0.35)]) * side
        mask = np.zeros((side, side), np.uint8)
        for shift, level in ((0, 1), (0.04 * side, 0)):
            at = (round(centre[0] + shift), round(centre[1] + shift))
            cv2.ellipse(mask, at, size.astype(int).tolist(), 0, 0, 360, level, -1)
        found.append(rle.runs_of(mask))
    return found


def of_images(masks: list[rle.Runs], height: int, width: int) -> list[label_checks.Label]:
    return [(runs, (height, width)) for runs in masks]


@pytest.mark.parametrize("side", [128, 224, 256, 500, 512, 896])
@pytest.mark.parametrize("n", [1, 3, 30])
def test_the_size_that_masks_were_drawn_at_is_named(side, n):
    doubt = label_checks.doubt(of_images(drawn(side, n), 1024, 1024))
    assert f"{side}×{side}" in doubt
    assert "1024×1024" in doubt
    assert "MASKS_ARE" in doubt


def test_the_size_is_named_where_images_are_not_square():
    assert label_checks.drawn_side(of_images(drawn(256, 5), 2000, 1500)) == 256


@pytest.mark.parametrize("side", [64, 256, 1024])
@pytest.mark.parametrize("n", [1, 2, 5, 50])
def test_masks_of_the_images_own_size_raise_no_doubt(side, n):
    for seed in range(5):
        assert label_checks.doubt(of_images(drawn(side, n, seed), side, side)) is None


def test_masks_that_all_lie_far_left_raise_no_doubt():
    mask = np.zeros((1024, 1024), np.uint8)
    mask[200:700, 20:90] = 1  # within the pixels of 320×320
    assert label_checks.drawn_side([(rle.runs_of(mask), mask.shape)] * 50) is None


def test_masks_of_one_column_or_of_full_columns_tell_nothing():
    for text in ("5 10", "0 2000", "3 4 100 4"):
        assert label_checks.drawn_side(of_images([rle.parse(text)] * 9, 128, 128)) is None


def test_the_competitions_masks_raise_no_doubt_in_any_number(shared_data):
    table = labels.read_labels(shared_data / "siim-labels" / "train-rle.csv")
    masks = of_images([rle.parse(text) for text in table["rle"] if text != "-1"], 1024, 1024)
    assert label_checks.doubt(masks) is None
    rng = np.random.default_rng(0)
    for n in (1, 5, 10, 50):
        for _ in range(50):
            chosen = [masks[i] for i in rng.choice(len(masks), n, replace=False)]
            assert label_checks.doubt(chosen) is None
    smaller = [resize_mask(rle.mask_of(*one), (256, 256)) for one in masks[:20]]
    as_read = of_images([rle.runs_of(mask) for mask in smaller], 1024, 1024)
    assert {label_checks.drawn_side([one]) for one in as_read} == {256}


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
