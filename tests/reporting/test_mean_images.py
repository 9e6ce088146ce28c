"""Mean masks, and the warning where masks were transposed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from kernel_lib.data import labels, rle
from kernel_lib.reporting.mean_images import ENOUGH_MASKS, RunningMean, plot_means, symmetry


def lungs(n: int, transposed: bool = False) -> RunningMean:
    """Return the mean of n masks, left and right in turn, all in the upper half."""
    mean = RunningMean()
    for k in range(n):
        mask = np.zeros((64, 64), np.uint8)
        left = 8 if k % 2 else 44
        mask[6:30, left : left + 12] = 1
        mean.add(mask.T if transposed else mask)
    return mean


def test_a_mean_by_hand() -> None:
    mean = RunningMean(2)
    assert mean.image.tolist() == [[0, 0], [0, 0]]
    mean.add(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]], np.uint8))
    mean.add(np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.uint8))  # two rows stretched to two
    assert mean.image.tolist() == [[0.5, 0.5], [0, 0.875]]


def test_transposed_masks_raise_a_warning() -> None:
    left_right, top_bottom = symmetry(lungs(ENOUGH_MASKS).image)
    assert left_right == pytest.approx(1)
    assert top_bottom < 0.2
    assert symmetry(lungs(ENOUGH_MASKS, True).image) == pytest.approx((top_bottom, left_right))
    picture = plot_means(lungs(3), lungs(ENOUGH_MASKS))
    assert "1.00 left to right" in picture.sentence
    assert "LOOK" not in picture.sentence
    assert "LOOK" in plot_means(lungs(3), lungs(ENOUGH_MASKS, True)).sentence
    assert picture.png(dpi=40)


def test_symmetry_needs_enough_masks() -> None:
    sentence = plot_means(lungs(2), lungs(ENOUGH_MASKS - 1, True)).sentence
    assert "LOOK" not in sentence
    assert f"Too few masks to test symmetry ({ENOUGH_MASKS - 1}; needs 50)" in sentence
    assert "1 non-empty mask (" in plot_means(lungs(2), lungs(1)).sentence
    flat = RunningMean()
    flat.add(np.ones((8, 8), np.uint8))
    assert symmetry(flat.image) == (0, 0)


def test_without_masks_and_without_images() -> None:
    picture = plot_means(lungs(2), RunningMean())
    assert picture.sentence == "The mean of 2 radiographs; no mask is known."
    assert picture.png(dpi=40)
    assert plot_means(RunningMean(), RunningMean()).figure is None


def test_the_competition_s_own_masks_lie_side_by_side(shared_data) -> None:
    table = labels.read_labels(shared_data / "siim-labels" / "train-rle.csv")
    mean, transposed = RunningMean(64), RunningMean(64)
    for text in table["rle"][table["rle"] != rle.EMPTY][::9]:
        small = cv2.resize(rle.decode(text) * 255, (64, 64), interpolation=cv2.INTER_AREA)
        mean.add(small)
        transposed.add(small.T)
    left_right, top_bottom = symmetry(mean.image)
    assert left_right > 0.7
    assert top_bottom < 0.1
    assert "LOOK" in plot_means(transposed, transposed).sentence
