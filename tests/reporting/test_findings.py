"""Mean masks, and that a transposed decoding is told."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from kernel_lib.data import labels, rle
from kernel_lib.reporting import findings
from kernel_lib.reporting.findings import ENOUGH_MASKS, Mean


def lungs(n: int, transposed: bool = False) -> Mean:
    """n masks, left and right by turns, all in the upper half."""
    mean = Mean()
    for k in range(n):
        mask = np.zeros((64, 64), np.uint8)
        left = 8 if k % 2 else 44
        mask[6:30, left : left + 12] = 1
        mean.add(mask.T if transposed else mask)
    return mean


def test_a_mean_by_hand() -> None:
    mean = Mean(2)
    assert mean.picture.tolist() == [[0, 0], [0, 0]]
    mean.add(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]], np.uint8))
    mean.add(np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.uint8))  # two rows stretched to two
    assert mean.picture.tolist() == [[0.5, 0.5], [0, 0.875]]


def test_masks_abreast_are_well_and_transposed_ones_are_not() -> None:
    sideways, upside = findings.symmetry(lungs(ENOUGH_MASKS).picture)
    assert sideways == pytest.approx(1)
    assert upside < 0.2
    assert findings.symmetry(lungs(ENOUGH_MASKS, True).picture) == pytest.approx((upside, sideways))
    image = lungs(3)
    well = findings.means(image, lungs(ENOUGH_MASKS))
    assert "left to right by 1.00" in well.sentence
    assert "LOOK" not in well.sentence
    assert "LOOK" in findings.means(image, lungs(ENOUGH_MASKS, True)).sentence
    assert well.png(dpi=40)


def test_of_few_masks_nothing_is_said_of_symmetry() -> None:
    sentence = findings.means(lungs(2), lungs(ENOUGH_MASKS - 1, True)).sentence
    assert "LOOK" not in sentence
    assert f"Of {ENOUGH_MASKS - 1} no symmetry can be told" in sentence
    assert "1 mask that is not empty" in findings.means(lungs(2), lungs(1)).sentence


def test_without_masks_and_without_images() -> None:
    alone = findings.means(lungs(2), Mean())
    assert alone.sentence == "The mean of 2 radiographs; no mask is known."
    assert alone.png(dpi=40)
    assert findings.means(Mean(), Mean()).figure is None
    flat = Mean()
    flat.add(np.ones((8, 8), np.uint8))
    assert findings.symmetry(flat.picture) == (0, 0)


def test_the_competition_s_own_masks_stand_abreast(shared_data) -> None:
    table = labels.read_labels(shared_data / "siim-labels" / "train-rle.csv")
    positive = table["rle"][table["rle"] != rle.EMPTY]
    mean, turned = Mean(64), Mean(64)
    for text in positive[::9]:
        mask = rle.decode(text)
        small = cv2.resize(mask * 255, (64, 64), interpolation=cv2.INTER_AREA)
        mean.add(small)
        turned.add(small.T)
    sideways, upside = findings.symmetry(mean.picture)
    assert sideways > 0.7
    assert upside < 0.1
    assert "LOOK" in findings.means(turned, turned).sentence
