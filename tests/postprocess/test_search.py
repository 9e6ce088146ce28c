from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_lib.errors import InputError
from kernel_lib.postprocess import metrics
from kernel_lib.postprocess.histograms import areas_above, per_image_dice, statistics
from kernel_lib.postprocess.search import SearchOptions, best_score, search
from kernel_lib.postprocess.triplet import Triplet, apply_rule
from tests.postprocess.samples import (
    FULL,
    KEEP_NONE,
    check_against_brute_force,
    small_images,
    stacked,
)


@pytest.mark.parametrize("n_examples", [15, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("most", "labels"), [(5, False), (6, True)])
def test_search_finds_what_trying_every_rule_finds(
    most: int, labels: bool, n_examples: int
) -> None:
    @settings(max_examples=n_examples)
    @given(small_images(most, labels), st.booleans())
    def check(images: list, single: bool) -> None:
        check_against_brute_force(images, single)

    check()


@pytest.mark.parametrize("labels", [False, True])
@settings(max_examples=8)
@given(single=st.booleans(), data=st.data())
def test_scores_are_those_of_the_masks_and_do_not_depend_on_order(
    labels: bool, single: bool, data: st.DataObject
) -> None:
    images, options = data.draw(small_images(6, labels)), SearchOptions(single)
    result = search(stacked(images), options)
    for rule, score in ((result.triplet, result.score), (result.chosen, result.chosen_score)):
        dice = [metrics.dice(apply_rule(prob, rule, label), mask) for prob, mask, label in images]
        assert score == metrics.mean_dice(dice)
        assert rule.top == rule.bottom or not single
    assert result.label_swept == labels
    assert result.chosen.label == result.triplet.label
    # More rules cannot score less.
    assert result.score >= search(stacked(images), SearchOptions(single, label=False)).score - 1e-12
    assert result.chosen_score <= result.score + 1e-12
    assert best_score(stacked(images), options) == result.score
    shuffled = search(stacked(data.draw(st.permutations(images))), options)
    assert shuffled == result
    np.testing.assert_array_equal(shuffled.surface, result.surface)


@settings(max_examples=6)
@given(images=small_images(), seed=st.integers(0, 1000))
def test_surface_is_the_best_over_areas_of_any_pair_of_levels(images: list, seed: int) -> None:
    stats = stacked(images)
    result = search(stats)
    assert np.isnan(result.surface[np.triu_indices(255, 1)]).all()
    assert np.nanmax(result.surface) == pytest.approx(result.score, abs=1e-12)
    # More rules cannot score less.
    assert search(stats, SearchOptions(single=True)).score <= result.score + 1e-12
    random = np.random.default_rng(seed)
    for top in random.integers(0, 255, 5):
        bottom = int(random.integers(0, top + 1))

        def score(area: int, top: int = top, bottom: int = bottom) -> float:
            rule = Triplet((top + 0.5) / 255, int(area), (bottom + 0.5) / 255)
            return metrics.mean_dice(per_image_dice(stats, rule))

        counts = areas_above(stats, (top + 0.5) / 255) * FULL // stats.n_px
        best = max(map(score, [0, KEEP_NONE, *counts]))
        assert result.surface[top, bottom] == pytest.approx(best, abs=1e-12)
        assert score(result.surface_area_px[top, bottom]) == pytest.approx(best, abs=1e-12)


def test_equal_fractions_tie_although_their_roundings_differ() -> None:
    """2/3 + 2/3 + 2/3 against 1 + 1 + 0: the rule of larger area has to win, whichever it is."""
    two_thirds = (np.array([[200, 100]], np.uint8), np.array([[1, 0]], np.uint8))
    result = search([statistics(*two_thirds)] * 3)
    assert result.score == 1.0
    assert result.triplet == Triplet(199.5 / 255, FULL // 2, 199.5 / 255)
    wide = (np.full((1, 4), 90, np.uint8), np.array([[1, 1, 0, 0]], np.uint8))  # dice 2/3
    empty = (np.full((1, 4), 90, np.uint8), np.zeros((1, 4), np.uint8))
    # Keeping all scores 2/3 · 3 = 2 of 5, as keeping none does with its two empty images.
    result = search([statistics(*each) for each in (wide, wide, wide, empty, empty)])
    assert result.score == pytest.approx(0.4)
    assert result.triplet.min_area_px == KEEP_NONE


def test_a_search_needs_images_and_their_truth() -> None:
    prob = np.zeros((4, 4), np.uint8)
    with pytest.raises(InputError, match="no image"):
        search([])
    with pytest.raises(InputError, match="image 1 of 2 has no truth"):
        search([statistics(prob, prob), statistics(prob, None)])


def test_a_search_is_written_as_before() -> None:
    result = search([statistics(np.full((2, 2), 9, np.uint8), np.ones((2, 2)))])
    assert json.dumps(result.to_json(), allow_nan=False) == (
        '{"triplet": {"top": 0.03333333333333333, "min_area_px": 1048576, '
        '"bottom": 0.03333333333333333}, "score": 1.0, '
        '"chosen": {"top": 0.00196078431372549, "min_area_px": 524288, '
        '"bottom": 0.00196078431372549}, "chosen_score": 1.0, '
        '"plateau": {"within": 0.001, "top": [0.00196078431372549, 0.9980392156862745], '
        '"bottom": [0.00196078431372549, 0.03333333333333333], "min_area_px": [1, 1048576]}, '
        '"chooser": {"levels": 8, "area_factor": 2.0, "standard_errors": 0.5, "within": 0.001}, '
        '"n_images": 1, "single": false, "label_swept": false}'
    )


def test_the_search_starts_without_matplotlib() -> None:
    code = "import sys, kernel_lib.postprocess.nested_cv; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
