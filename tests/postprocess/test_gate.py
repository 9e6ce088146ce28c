from __future__ import annotations

import numpy as np
import pytest

from kernel_lib.errors import InputError
from kernel_lib.postprocess import gate
from kernel_lib.postprocess.histograms import areas, gate_by_sum, kept, per_image_dice, statistics
from kernel_lib.postprocess.triplet import Triplet, apply_rule
from tests.postprocess.samples import FULL


@pytest.mark.parametrize("wrong", [-1, 256, 0.5, "high", True])
def test_what_is_no_level_is_refused(wrong: object) -> None:
    with pytest.raises(InputError, match="level of 0–255"):
        statistics(np.zeros((2, 2), np.uint8), None, wrong)


def test_a_mask_needs_a_label_above_the_threshold() -> None:
    prob = np.array([[200, 0]], np.uint8)
    rule = Triplet(0.5, 0, 0.5, label=0.4)  # 0.4 is level 102
    masks = [apply_rule(prob, rule, label).tolist() for label in (0, 102, 103, 255)]
    assert masks == [[[0, 0]], [[0, 0]], [[1, 0]], [[1, 0]]]
    assert apply_rule(prob, Triplet(0.5, 0, 0.5), 0).tolist() == [[1, 0]]
    assert apply_rule(prob, Triplet(0.5, 0, 0.5, label=0), 0).tolist() == [[0, 0]]
    assert gate.passes(np.array([-1, 3]), None).tolist() == [True, True]
    assert gate.passes(np.array([0, 3, 4]), 3.5 / 255).tolist() == [False, False, True]


def test_a_rule_with_a_label_refuses_an_image_without() -> None:
    prob, rule = np.zeros((2, 2), np.uint8), Triplet(0.5, 0, 0.5, label=0.4)
    with pytest.raises(InputError, match="label head"):
        apply_rule(prob, rule)
    stats = [statistics(prob, prob, 3), statistics(prob, prob)]
    for under in (kept, areas, per_image_dice):
        with pytest.raises(InputError, match="image 1 of 2 has no label"):
            under(stats, rule)


@pytest.mark.parametrize(
    ("levels", "n_px", "expected"),
    [
        ({}, FULL, 0),
        ({255: FULL}, FULL, 255),
        ({255: 1023}, FULL, 128),  # log2(1024) = 10 of 20
        ({51: 5 * 1023}, FULL, 128),  # five pixels of a fifth are one
        ({255: 1}, FULL, 13),  # log2(2) = 1 of 20: 12.75
        ({255: 1}, FULL // 1024, 128),  # a pixel of 32² is 1,024 of 1024²
        ({255: 4 * FULL}, 4 * FULL, 255),
    ],
)
def test_the_level_of_a_sum(levels: dict[int, int], n_px: int, expected: int) -> None:
    hist = np.zeros(256, np.int64)
    for level, px in levels.items():
        hist[level] = px
    assert gate.sum_level(hist, n_px) == expected


def test_images_labelled_by_their_sum_are_what_one_map_gives() -> None:
    random = np.random.default_rng(0)
    maps = [(random.random((20, 30)) * peak).astype(np.uint8) for peak in (1, 20, 255)]
    stats = gate_by_sum([statistics(prob, prob) for prob in maps])
    assert stats.has_labels
    for prob, level in zip(maps, stats.label, strict=True):
        assert gate.sum_level(np.bincount(prob.ravel(), minlength=256), prob.size) == level
        assert level == round(255 * np.log2(1 + prob.sum() / 255 * FULL / 600) / 20)
    assert (np.diff(stats.label) > 0).all()
