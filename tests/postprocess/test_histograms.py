"""Histograms of maps, and areas and dice of masks from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_lib.errors import InputError
from kernel_lib.postprocess import metrics
from kernel_lib.postprocess.histograms import Stacked, areas, per_image_dice, stack, statistics
from kernel_lib.postprocess.triplet import Triplet, apply_rule
from tests.postprocess.samples import KEEP_NONE, small_images, stacked


@settings(max_examples=60)
@given(
    images=small_images(most=3),
    thresholds=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    area=st.integers(0, KEEP_NONE),
)
def test_histograms_give_what_apply_does(images: list, thresholds: tuple, area: int) -> None:
    rule = Triplet(max(thresholds), area, min(thresholds))
    stats = stacked(images)
    masks = [apply_rule(prob, rule) for prob, _, _ in images]
    assert areas(stats, rule).tolist() == [int(mask.sum()) for mask in masks]
    dice = [metrics.dice(pred, mask) for pred, (_, mask, _) in zip(masks, images, strict=True)]
    assert per_image_dice(stats, rule).tolist() == dice
    for mask, (prob, _, _) in zip(masks, images, strict=True):
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1}
        assert not mask[prob <= 255 * rule.bottom].any()


def test_statistics_refuses_what_it_would_count_wrongly() -> None:
    prob, mask = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    for wrong in (prob.astype(np.float32), prob[None], prob[:0]):
        with pytest.raises(InputError, match="uint8"):
            statistics(wrong, mask)
        with pytest.raises(InputError, match="uint8"):
            apply_rule(wrong, Triplet(0.5, 0, 0.5))
    with pytest.raises(InputError, match="own size"):
        statistics(prob, mask[:2])


def test_statistics_takes_any_mask_and_any_memory_order() -> None:
    random = np.random.default_rng(3)
    prob = random.integers(0, 256, (40, 30)).astype(np.uint8)
    mask = random.integers(0, 2, (40, 30))
    expected = np.bincount(prob[mask == 1], minlength=256)
    for same in (mask, mask == 1, mask * 255.0, np.asfortranarray(mask.astype(np.uint8))):
        stats = statistics(np.asfortranarray(prob), same)
        np.testing.assert_array_equal(stats.hist_true, expected)
        np.testing.assert_array_equal(stats.hist_all, np.bincount(prob.ravel(), minlength=256))
        assert stats.n_px == 1200


def test_very_large_images_are_counted_exactly() -> None:
    prob = np.zeros((4097, 4097), np.uint8)  # 16,785,409 px, more than float32 counts
    prob[0, :3] = 9
    stats = statistics(prob, prob)
    assert stats.hist_all[0] == prob.size - 3
    assert stats.hist_true[9] == 3


def test_labels_stay_with_their_images() -> None:
    prob = np.zeros((2, 2), np.uint8)
    stats = stack([statistics(prob, prob, label) for label in (7, None, 255)])
    assert stats.label.tolist() == [7, -1, 255]
    assert stats.label.dtype == np.int16
    assert not stats.has_labels
    assert stats.take(np.array([2, 0])).label.tolist() == [255, 7]
    assert stats.take(np.array([True, False, True])).has_labels
    without = Stacked(stats.hist_all, stats.hist_true, stats.n_px, stats.has_truth)
    assert without.label.tolist() == [-1, -1, -1]
